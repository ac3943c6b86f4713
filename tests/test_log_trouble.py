"""The log where disks fill up, the cap is reached, operators move files, and owners die."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require
from helpers_log import LogKeeper, compile_writer, files, numbered, output, size_of, text, wait_for_text
from helpers_wire import ROOT, SPEC, wait_until

LINE = b"%099d\n"


def lines(first: int, after: int) -> bytes:
    return b"".join(LINE % i for i in range(first, after))


def settled(k: LogKeeper, total: int) -> dict:
    """The state once all that was fed has been dealt with: `total` bytes, the start marker included."""
    state: dict = {}

    def done() -> bool:
        nonlocal state
        state = k.state()
        return state["written_bytes"] + state["lost_bytes"] + state["dropped_bytes"] >= total

    wait_until(done, "what was fed does not come out")
    return state


# ---- full disks


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system of its own, in a mount namespace of its own: it is gone with its process."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    require("unshare")
    script = f"mount -t tmpfs -o size={size},mode=777 tmpfs /mnt && echo ready && exec cat"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        if holder.stdout.readline() != b"ready\n":
            pytest.skip(f"no mount here: {holder.communicate()[1]!r}")
        fd = os.open(f"/proc/{holder.pid}/root/mnt", os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
            holder.stdin.close()


def test_a_full_disk_and_after():
    with small_disk("256k") as disk, LogKeeper(disk) as k:
        k.cat()
        started = settled(k, 1)["written_bytes"]
        k.feed(lines(0, 1000))
        state = settled(k, started + 100_000)
        assert state == {"written_bytes": started + 100_000, "lost_bytes": 0, "dropped_bytes": 0, "error": 0}
        k.feed(lines(1000, 5000))
        state = settled(k, started + 500_000)
        assert state["error"] == errno.ENOSPC
        assert state["written_bytes"] + state["lost_bytes"] == started + 500_000
        assert state["written_bytes"] == size_of(disk) <= 256 << 10
        for _ in range(3):  # it goes on, and so does the loss
            k.feed(LINE % 0)
        lost = settled(k, started + 500_300)["lost_bytes"]
        assert lost == started + 500_300 - size_of(disk)
        os.truncate(disk / "current", 0)  # room
        k.feed(lines(6000, 6010))
        wait_for_text(disk / "current", LINE % 6009)
        state = k.state()
        assert (state["lost_bytes"], state["error"]) == (lost, 0)
        after = b"--- holdfast: %d bytes lost: No space left on device\n" % lost + lines(6000, 6010)
        assert (disk / "current").read_bytes().lstrip(b"\n") == after  # a cut line got its end, before
        k.finish()
        assert (disk / "current").read_bytes().endswith(LINE % 6009 + b"--- holdfast: web@41 exited with code 0\n")


@pytest.mark.parametrize("timestamps", [False, True], ids=["plain", "stamped"])
def test_a_file_size_limit(tmp_path, timestamps):
    """EFBIG, anywhere in a line: what is there is whole lines but for one, and the sum is right."""
    with LogKeeper(tmp_path) as k:
        k.cat(timestamps=timestamps)
        started = settled(k, 1)["written_bytes"]
        resource.prlimit(k.pid, resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        each = 100 + 28 * timestamps
        k.feed(lines(0, 300))
        _, first = k.wait_for("LOG_STATE")  # unasked
        assert first["error"] == errno.EFBIG
        state = settled(k, started + 300 * each)
        assert (state["written_bytes"], state["error"]) == (10_000, errno.EFBIG)
        assert state["lost_bytes"] == started + 300 * each - 10_000
        resource.prlimit(k.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        k.feed(b"again\n")
        wait_for_text(tmp_path / "current", b"again\n")
        assert k.state()["error"] == 0
        k.finish()
    found = (tmp_path / "current").read_bytes().splitlines(keepends=True)
    found = [line[28:] if timestamps and len(line) > 28 and line[4:5] == b"-" else line for line in found]
    (at,) = [i for i, line in enumerate(found) if b"bytes lost" in line]
    assert found[at] == b"--- holdfast: %d bytes lost: File too large\n" % state["lost_bytes"]
    assert b"".join(found[1 : at - 1]) == lines(0, at - 2)  # whole; then a cut one
    assert found[at - 1].endswith(b"\n") and len(found[at - 1]) < 100
    assert found[at + 1 : -1] == [b"again\n"]


def test_the_rest_of_a_line_whose_start_was_lost_is_lost_too(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat()
        started = settled(k, 1)["written_bytes"]
        resource.prlimit(k.pid, resource.RLIMIT_FSIZE, (started, resource.RLIM_INFINITY))
        k.feed(b"start, ")
        settled(k, started + 7)
        resource.prlimit(k.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        k.feed(b"rest\nnext\n")
        wait_for_text(tmp_path / "current", b"next\n")
        k.finish()
    assert text(tmp_path).splitlines()[1:-1] == [b"--- holdfast: 12 bytes lost: File too large", b"next"]


def test_a_loss_at_the_end_is_said_when_there_is_room_again(tmp_path):
    """stderr has no exit marker: its gap is named when it is closed."""
    with LogKeeper(tmp_path) as k:
        k.cat(to=2, merge=False)
        started = settled(k, 1)["written_bytes"]
        resource.prlimit(k.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        k.feed(b"gone\n")
        settled(k, started + 5)
        resource.prlimit(k.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        state = k.finish()["LOG_STATE"]
    assert (state["lost_bytes"], state["error"]) == (4, 0)
    assert (tmp_path / "stderr").read_bytes() == b"g\n--- holdfast: 4 bytes lost: File too large\n"


# ---- the cap


def test_the_cap_holds_and_room_is_used_again(tmp_path):
    (tmp_path / "00000007").write_bytes(b"x" * 2999 + b"\n")
    with LogKeeper(tmp_path) as k:
        k.cat(cap=10_000, size=4000, count=100)
        started = settled(k, 1)["written_bytes"]
        k.feed(lines(0, 200))
        state = settled(k, started + 20_000)
        assert size_of(tmp_path) <= 10_000
        assert size_of(tmp_path) > 9_800
        assert (state["lost_bytes"], state["error"]) == (0, 0)
        assert state["dropped_bytes"] == started + 20_000 - state["written_bytes"]
        kept = (state["written_bytes"] - started) // 100
        assert output(tmp_path) == b"x" * 2999 + b"\n" + lines(0, kept)  # whole lines
        (tmp_path / "00000007").unlink()
        deadline = time.monotonic() + 30
        fed = 200
        while b"log cap reached" not in text(tmp_path):
            k.feed(LINE % fed)
            settled(k, started + 100 * (fed + 1))
            fed += 1
            assert time.monotonic() < deadline
            wait_a_moment()
        k.finish()
    whole = text(tmp_path)
    dropped = int(re.search(rb"--- holdfast: (\d+) bytes lost: log cap reached\n", whole)[1])
    resumed = kept + dropped // 100
    assert dropped % 100 == 0
    assert output(tmp_path) == lines(0, kept) + lines(resumed, fed)
    assert size_of(tmp_path) <= 10_000


def wait_a_moment() -> None:
    """Between two tries of something that the keeper looks at once a second."""
    with open(os.devnull) as nothing:
        subprocess.run(["sleep", "0.05"], stdin=nothing, check=True)


def test_both_streams_share_the_cap(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.shell(
            "i=0; while [ $i -lt 300 ]; do i=$((i+1));"
            " echo 'this is a line of thirty bytes'; echo 'so it is for the other stream' >&2; done",
            cap=6000, size=1000, count=100, merge=False, timestamps=True,
        )  # fmt: skip
        state = dict(k.rest())["LOG_STATE"]
    assert size_of(tmp_path) <= 6000
    assert size_of(tmp_path) > 5900
    assert state["written_bytes"] == size_of(tmp_path)
    assert state["dropped_bytes"] > 600 * 58 - 6000
    for name in ("current", "stderr"):
        assert all(path.read_bytes().endswith(b"\n") for path in files(tmp_path, name) if path.stat().st_size)


def test_rotation_makes_room_below_the_cap(tmp_path):
    """With a cap above (count + 2) x size nothing is ever dropped."""
    with LogKeeper(tmp_path) as k:
        k.cat(cap=5000, size=1000, count=3)
        k.feed(lines(0, 600))
        assert "LOG_STATE" not in k.finish()
    assert output(tmp_path).endswith(lines(570, 600))


# ---- reports


def test_losses_are_reported_at_once_and_then_once_a_second(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat(cap=1)
        began = time.monotonic()
        _, first = k.wait_for("LOG_STATE")  # the start marker already
        assert time.monotonic() - began < 10
        assert first["dropped_bytes"] > 0
        fed = 0
        k.seen.clear()
        while time.monotonic() - began < 1.7:
            k.feed(b"x\n")
            fed += 2
            wait_a_moment()
        marker = first["dropped_bytes"]
        told = []
        while not told or told[-1] < marker + fed:
            told.append(k.wait_for("LOG_STATE")[1]["dropped_bytes"])
        assert told == sorted(told)
        assert len(told) <= time.monotonic() - began + 1
        k.assert_idle()
        k.finish()


def test_a_keeper_without_a_log_has_no_state(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.spawn("/bin/sleep", "60")
        k.say("QUERY", id=5)
        k.say("STOP", id=6, signo=9, scope=0, grace_ms=0)
        assert [name for name, _ in k.rest()].count("LOG_STATE") == 0


# ---- what operators do


@pytest.mark.parametrize("act", ["rename", "remove", "replace"])
def test_current_is_moved_away(tmp_path, act):
    with LogKeeper(tmp_path) as k:
        k.cat()
        k.feed(b"before\n")
        wait_for_text(tmp_path / "current", b"before\n")
        if act == "remove":
            (tmp_path / "current").unlink()
        else:
            (tmp_path / "current").rename(tmp_path / "aside")
        if act == "replace":
            (tmp_path / "current").write_bytes(b"mine")
        fed = 0
        while not (tmp_path / "current").exists() or b"line" not in (tmp_path / "current").read_bytes():
            k.feed(b"line %d\n" % fed)  # noticed with the next data, within a second
            fed += 1
            assert fed < 600
            wait_a_moment()
        k.feed(b"last\n")
        k.finish()
    now = (tmp_path / "current").read_bytes()
    assert now.endswith(b"last\n--- holdfast: web@41 exited with code 0\n")
    if act != "remove":
        aside = (tmp_path / "aside").read_bytes()
        assert re.findall(rb"line (\d+)\n", aside + now) == [b"%d" % i for i in range(fed)]
        assert now.startswith(b"mine\n") == (act == "replace")


def test_copy_and_truncate(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat(size=1000)
        k.feed(lines(0, 8))
        wait_for_text(tmp_path / "current", LINE % 7)
        os.truncate(tmp_path / "current", 0)
        k.feed(b"after\n")
        wait_for_text(tmp_path / "current", b"after\n")
        k.finish()
    assert (tmp_path / "current").read_bytes().startswith(b"after\n")


def test_the_directory_is_removed(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    with LogKeeper(logs) as k:
        k.cat(size=1000)
        shutil.rmtree(logs)
        fed = 0
        while k.state()["lost_bytes"] == 0:
            k.feed(lines(fed, fed + 20))
            fed += 20
            assert fed < 6000
            wait_a_moment()
        assert k.state()["error"] == errno.ENOENT
        seen = k.finish()
        assert seen["EXITED"]["status"] == 0
    assert not logs.exists()


@pytest.mark.parametrize("what", ["link", "fifo", "directory"])
def test_current_is_something_else(tmp_path, what):
    """Never followed, never waited for: counted, and tried again."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "precious").write_bytes(b"keep\n")
    current = logs / "current"
    if what == "link":
        current.symlink_to(tmp_path / "precious")
    elif what == "fifo":
        os.mkfifo(current)
    else:
        current.mkdir()
    with LogKeeper(logs) as k:
        k.cat()
        state = settled(k, 1)
        assert state["error"] == {"link": errno.ELOOP, "fifo": errno.EINVAL, "directory": errno.EISDIR}[what]
        k.feed(b"lost\n")
        settled(k, state["lost_bytes"] + 5)
        current.rmdir() if what == "directory" else current.unlink()
        k.feed(b"kept\n")
        wait_for_text(current, b"kept\n")
        k.finish()
    assert (tmp_path / "precious").read_bytes() == b"keep\n"
    assert re.match(rb"--- holdfast: \d+ bytes lost: .*\nkept\n", current.read_bytes())


def test_a_number_that_is_taken_meanwhile_is_not_overwritten(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat(size=500, count=100)
        wait_for_text(tmp_path / "current", b"started")
        (tmp_path / "00000001").write_bytes(b"mine\n")
        k.feed(lines(0, 30))
        k.finish()
    assert (tmp_path / "00000001").read_bytes() == b"mine\n"
    assert output(tmp_path) == b"mine\n" + lines(0, 30)


# ---- the owner dies

OWNER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from helpers_log import LogKeeper
from helpers_wire import SPEC
k = LogKeeper(sys.argv[2])
k.start(*sys.argv[3:], size=1 << 20, count=1000, head={"on_owner_loss": SPEC.numbers["LOSS_KEEP"]})
print(k.pid, flush=True)
sys.stdin.read()
"""


def test_kill_9_of_the_owner_in_a_flood_loses_nothing(tmp_path):
    writer = compile_writer(tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    count = 1_000_000
    command = [sys.executable, "-c", OWNER, os.path.join(ROOT, "tests"), str(logs), writer, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        keeper = os.pidfd_open(int(owner.stdout.readline()))
        wait_until(lambda: len(numbered(logs)) > 3)
        owner.send_signal(signal.SIGKILL)
    assert select.select([keeper], [], [], 60)[0], "the keeper does not end"
    os.close(keeper)
    whole = output(logs)
    assert len(whole) == 100 * count
    numbers = [whole[at : at + 10] for at in range(0, len(whole), 100)]
    assert numbers == [b"%010d" % i for i in range(count)]
    assert text(logs).endswith(b"--- holdfast: web@41 exited with code 0\n")


def test_a_new_owner_and_the_report_file_are_told_of_losses(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    address = tmp_path / "41.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound, LogKeeper(logs) as k:
        bound.bind(str(address))
        where = os.open(tmp_path, os.O_RDONLY)
        k.send(SPEC.record("HELLO", {"version": 1, "flags": 0}))
        k.send(SPEC.record("HELD", {"flags": 1, "report": b"41.report"}), [bound.fileno(), where])
        os.close(where)
        k.cat(cap=1)
        k.say("ON_OWNER_LOSS", on_owner_loss=SPEC.numbers["LOSS_KEEP"])
        bound.close()
        dropped = settled(k, 1)["dropped_bytes"]
        k.feed(b"12345\n")
        settled(k, dropped + 6)
        k.sock.close()
        k.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        k.sock.connect(str(address))
        k.seen.clear()
        k.say("HELLO", version=1, flags=0)
        assert k.wait_for("LOG_STATE")[1]["dropped_bytes"] == dropped + 6
        k.sock.close()
        os.close(k.feed_fd)
        k.feed_fd = -1
        assert k.wait() == 0
    name, state = SPEC.decode((tmp_path / "41.report").read_bytes())[-1]
    assert (name, state["written_bytes"]) == ("LOG_STATE", 0)
    assert state["dropped_bytes"] > dropped + 6  # the exit marker's, too
