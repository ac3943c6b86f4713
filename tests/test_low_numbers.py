"""Starts by an owner that lends its low numbers: the same keeper, the owner's own table untouched, whatever the kernel
can do."""

from __future__ import annotations

import os
import subprocess
import sys

from helpers_held import PATIENCE, Place, ended, place, until

from holdfast.process.held import HeldTree, LowNumbers

__all__ = ["place"]

MANY = 300  # descriptors above the low ones

# No close_range, as before Linux 5.9: what is done instead must not happen to the owner's own table.
WITHOUT_CLOSE_RANGE = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 436), (6, 0, 0, 0x50000 | 38), (6, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
class Prog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
prog = Prog(len(code), ctypes.addressof(program))
assert libc.prctl(22, 2, ctypes.byref(prog), 0, 0) == 0
assert libc.syscall(436, 1000, 1000, 0) == -1 and ctypes.get_errno() == 38
"""


def table(pid: int | str = "self") -> dict[str, str]:
    """Numbers and what they are; without that of the look itself, and the numbers of pipes and sockets."""
    directory, found = f"/proc/{pid}/fd", {}
    for number in os.listdir(directory):
        try:
            found[number] = os.readlink(f"{directory}/{number}").partition("[")[0]
        except FileNotFoundError:
            continue
    return found


def start(place: Place, name: str, low: LowNumbers | None) -> HeldTree:
    address, report = (os.path.join(place.directory, f"{name}.{end}") for end in ("sock", "report"))
    plan = place.plan('read line < "$1"; exit 7', place.gate(name))
    tree = HeldTree.start(plan, address=address, report=report, low=low)
    place.trees.append(tree)
    until(tree, "Spawned")
    return tree


def check(place: Place) -> None:
    low = LowNumbers()
    many = [os.dup(low.owner) for _ in range(MANY)]
    try:
        before = table()
        usual, lent = start(place, "usual", None), start(place, "lent", low)
        ours = {str(fd) for tree in (usual, lent) for fd in (tree.fileno(), tree.pidfd, tree.keeper_pidfd)}
        ours.update(map(str, place.fds))
        assert {number: what for number, what in table().items() if number not in ours} == before
        assert table(lent.keeper_pid) == table(usual.keeper_pid)
        assert os.path.sameopenfile(low.socket, low.owner) and not os.get_inheritable(low.socket)
        for name, tree in (("usual", usual), ("lent", lent)):
            place.open(os.path.join(place.directory, name))
            events = until(tree, "Exited", "Empty")
            assert next(event.status.code for event in events if type(event).__name__ == "Exited") == 7
            tree.acknowledge(exited=True, stopped=True, empty=True)
            assert ended(tree.keeper_pidfd)  # it has removed its socket
    finally:
        for fd in many:
            os.close(fd)
        low.close()


def test_the_keeper_is_the_same_and_our_table_too(place):
    check(place)


def test_the_same_without_close_range(tmp_path):
    source = WITHOUT_CLOSE_RANGE + "import sys\nfrom test_low_numbers import Place, check\n"
    source += "place = Place(sys.argv[1])\ncheck(place)\nplace.close()\nprint('the same')"
    done = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )  # fmt: skip
    assert done.stdout == "the same\n", done.stderr
