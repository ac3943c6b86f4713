"""The real keeper under a hostile, frozen or vanishing owner, spoken to in raw packets."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys

import pytest
from helpers_wire import KEEPER, PATIENCE, SPEC, RawKeeper, align, marked, raw_record, wait_until

import holdfast

N = SPEC.numbers
REUSED = N["KEEPER_REUSED"]
TAG = {name: record.tag for name, record in SPEC.records.items()}
SH = "/bin/sh"


def open_fds(pid: int) -> dict[str, str]:
    result = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            result[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            pass
    return result


def settle(k: RawKeeper, question: int) -> list:
    """Everything that the keeper said before it answered a QUERY that was sent last."""
    k.say("QUERY", id=question)
    assert k.wait_for("MEMBERS")[1]["id"] == question
    return k.passed


def run_one(k: RawKeeper, code: int = 0) -> None:
    """A whole process through a reused keeper: it is in order."""
    started = k.spawn(SH, "-c", f"exit {code}", hello=REUSED)
    assert started["name"] == "SPAWNED", started
    assert k.wait_for("EXITED")[1]["status"] == code
    k.wait_for("EMPTY")
    os.close(k.fds.pop())


# ---- malformed requests


def body_with(**changes) -> bytes:
    return SPEC.spawn_body([SH, "-c", ":"], ["A=b"], cwd="/", fd_targets=(0, 1), groups=(1,), **changes)


def patched(field: str, value: int) -> bytes:
    """A good body with one field of its head overwritten."""
    body = bytearray(body_with())
    at, kind = next((at, kind) for at, kind, name in SPEC.records["SPAWN"].fields if name == field)
    struct.pack_into({"u32": "<I", "i32": "<i", "u64": "<Q"}[kind], body, at, value)
    return bytes(body)


def with_slot(which: str, index: int, value: int) -> bytes:
    """A good body with one offset of argv or env overwritten."""
    body = bytearray(body_with())
    at = SPEC.size("SPAWN") + align(4) + align(8) + (0 if which == "argv" else 4 * 8) + index * 8
    struct.pack_into("<Q", body, at, value)
    return bytes(body)


GOOD = body_with()
FIRST_STRING = SPEC.read_spawn_body(GOOD) and GOOD.index(b"/bin/sh\0")
BAD_BODIES = {
    "empty": b"",
    "half a head": GOOD[:48],
    "head alone": GOOD[:96],
    "cut in the arrays": GOOD[:120],
    "cut in the strings": GOOD[:-8],
    "not a multiple of 8": GOOD[:-1],
    "last byte not zero": GOOD[:-1] + b"x",
    "unknown option": patched("options", 1 << 31),
    "all options": patched("options", 2**32 - 1),
    "loss 3": patched("on_owner_loss", 3),
    "stop signal 0": patched("stop_signal", 0),
    "stop signal 65": patched("stop_signal", 65),
    "stop signal -1": patched("stop_signal", -1),
    "scope 3": patched("stop_scope", 3),
    "closed_std 8": patched("closed_std", 8),
    "umask 01000": patched("umask", 0o1000),
    "no argv": patched("n_argv", 0),
    "one argv too many": patched("n_argv", 4),
    "one env too many": patched("n_env", 2),
    "executable 0": patched("executable", 0),
    "executable in the arrays": patched("executable", FIRST_STRING - 1),
    "executable at the end": patched("executable", len(GOOD)),
    "executable far away": patched("executable", 2**64 - 1),
    "cwd in the head": patched("cwd", 8),
    "cwd far away": patched("cwd", 2**63),
    "argv before the strings": with_slot("argv", 0, FIRST_STRING - 8),
    "argv at the end": with_slot("argv", 1, len(GOOD)),
    "argv far away": with_slot("argv", 2, 2**64 - 8),
    "argv 0 in the middle": with_slot("argv", 1, 0),
    "argv without its end": with_slot("argv", 3, FIRST_STRING),
    "env before the strings": with_slot("env", 0, 1),
    "env without its end": with_slot("env", 1, FIRST_STRING),
    "target -1": body_with()[: 96 + 8] + struct.pack("<ii", -1, 1) + GOOD[96 + 16 :],
    "target 2**30 + 2": body_with()[: 96 + 8] + struct.pack("<ii", 0, 2**30 + 2) + GOOD[96 + 16 :],
    "a cgroup ahead of a descriptor": body_with()[: 96 + 8] + struct.pack("<ii", 2**30 + 1, 0) + GOOD[96 + 16 :],
    **{f"{name} {value:#x}": patched(name, value)
       for name in ("n_groups", "n_rlimits", "n_fds", "n_argv", "n_env")
       for value in (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)},
}  # fmt: skip


def test_malformed_spawn_requests_start_nothing():
    """Each is answered with EBADMSG, leaks nothing, and the same keeper then works."""
    with RawKeeper() as k, open(os.devnull) as null:
        run_one(k)
        before = open_fds(k.pid)
        fds = [null.fileno()] * 2
        k.send(raw_record(TAG["SPAWN"], GOOD), fds)  # what is not spoilt does start
        assert k.answer()["name"] == "SPAWNED"
        k.wait_for("EMPTY")
        for name, body in BAD_BODIES.items():
            k.send(raw_record(TAG["SPAWN"], body), fds)
            answer = k.answer()
            wanted = {"stage": N["STAGE_RECEIVE"], "error": errno.EBADMSG, "name": "FAILED"}
            assert answer == wanted, f"{name}: {answer}"
        for count in (0, 1, 3, 253):  # two targets
            k.send(raw_record(TAG["SPAWN"], GOOD), [null.fileno()] * count)
            assert k.answer()["error"] == errno.EBADMSG
        run_one(k, 5)
        assert len(open_fds(k.pid)) == len(before)
        assert k.runs()[0] < 5e9


def memfd(data: bytes, seals: int | None, size: int | None = None) -> int:
    import fcntl

    fd = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if size is not None:
        os.ftruncate(fd, size)
    if seals is not None:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_a_mapped_plan_must_be_sealed_and_as_long_as_it_says(tmp_path):
    import fcntl

    both = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE
    plan = SPEC.spawn_body([SH, "-c", "exit 9"], ["BIG=" + "x" * 100_000])
    file = tmp_path / "plan"
    file.write_bytes(plan)
    absurd = bytearray(plan[:4096])
    at = next(at for at, _, name in SPEC.records["SPAWN"].fields if name == "n_argv")
    struct.pack_into("<I", absurd, at, 0xFFFFFFFE)
    reader, writer = os.pipe()
    cases = {
        "not sealed": (memfd(plan, None), len(plan)),
        "may shrink": (memfd(plan, fcntl.F_SEAL_WRITE), len(plan)),
        "may be written": (memfd(plan, fcntl.F_SEAL_SHRINK), len(plan)),
        "shorter than it says": (memfd(plan, both), len(plan) + 8),
        "longer than it says": (memfd(plan, both), len(plan) - 8),
        "empty": (memfd(b"", both), 0),
        "an ordinary file": (os.open(file, os.O_RDWR), len(plan)),
        "a pipe": (reader, 0),
        "40 GiB of holes": (memfd(bytes(absurd), both, 40 << 30), 40 << 30),
    }
    with RawKeeper() as k:
        run_one(k)
        before = open_fds(k.pid)
        for name, (fd, size) in cases.items():
            k.send(SPEC.record("SPAWN_MAP", {"size": size}), [fd])
            answer = k.answer()
            assert answer["name"] == "FAILED" and answer["stage"] == N["STAGE_RECEIVE"], name
            assert answer["error"] in (errno.EBADMSG, errno.ENOMEM), name
        k.send(SPEC.record("SPAWN_MAP", {"size": 8}))
        assert k.answer()["error"] == errno.EBADMSG  # no descriptor at all
        k.send(raw_record(TAG["SPAWN_MAP"], b"1234"), [cases["not sealed"][0]])
        assert k.answer()["error"] == errno.EBADMSG  # a short body
        good = memfd(plan, both)
        k.send(SPEC.record("SPAWN_MAP", {"size": len(plan)}), [good])
        assert k.answer()["name"] == "SPAWNED"
        assert k.wait_for("EXITED")[1]["status"] == 9
        k.wait_for("EMPTY")
        os.close(k.fds.pop())
        assert len(open_fds(k.pid)) == len(before)
    for fd in [good, writer, *(fd for fd, _ in cases.values())]:
        os.close(fd)


IGNORED = {
    "seven bytes": b"\x04\0\0\0\x08\0\0",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "length beyond the packet": raw_record(TAG["SIGNAL"], b"\x0f\0\0\0\0\0\0\0", length=9000),
    "length 2**32 - 1": raw_record(TAG["STOP"], b"", length=2**32 - 1),
    "short signal": raw_record(TAG["SIGNAL"], b"\x0f\0\0\0"),
    "short stop": raw_record(TAG["STOP"], b"\x01\0\0\0\x0f\0\0\0"),
    "short query": raw_record(TAG["QUERY"], b"\x01"),
    "short loss": raw_record(TAG["ON_OWNER_LOSS"], b""),
    "short hello": raw_record(TAG["HELLO"], b"\xff\xff"),
    "loss 3": SPEC.record("ON_OWNER_LOSS", {"on_owner_loss": 3}),
    **{f"signal {n}": SPEC.record("SIGNAL", {"signo": n, "scope": 0}) for n in (0, -1, 65, -(2**31), 2**31 - 1)},
    **{f"stop {n}": SPEC.record("STOP", {"id": 1, "signo": n, "scope": 0, "grace_ms": 0}) for n in (0, -9, 65)},
    "scope 3": SPEC.record("SIGNAL", {"signo": 9, "scope": 3}),
    "stop scope 2**32 - 1": SPEC.record("STOP", {"id": 1, "signo": 9, "scope": 2**32 - 1, "grace_ms": 0}),
    "reports": b"".join(raw_record(tag, b"\1" * 96) for tag in range(64, 76)),
    "unknown tags": raw_record(0) + raw_record(63, b"x" * 100) + raw_record(65535, b"y"),
}


def test_other_malformed_requests_change_nothing():
    with RawKeeper() as k:
        started = k.spawn(SH, "-c", "read x; exit 6", fd_targets=(0,), fds=(stdin := os.pipe())[:1])
        os.close(stdin[0])
        before = open_fds(k.pid)
        for number, data in enumerate(IGNORED.values()):
            k.send(data)
            assert settle(k, number) == [], list(IGNORED)[number]
        with open(os.devnull) as null:  # descriptors that nobody asked for
            k.send(SPEC.record("QUERY", {"id": 99}), [null.fileno()] * 50)
            assert k.wait_for("MEMBERS")[1]["members"] == [{"pid": started["pid"], "flags": 1, "name": "sh"}]
        assert len(open_fds(k.pid)) == len(before)
        os.close(stdin[1])
        assert k.wait_for("EXITED")[1]["status"] == 6
        k.wait_for("EMPTY")


def test_requests_without_a_tree_change_nothing():
    with RawKeeper() as k:
        k.say("SIGNAL", signo=9, scope=2)
        k.say("STOP", id=1, signo=15, scope=2, grace_ms=0)
        k.say("ON_OWNER_LOSS", on_owner_loss=2)
        assert settle(k, 1) == [("KEEPER_HELLO", {"version": 1, "pid": k.pid})]
        k.send(SPEC.record("LAUNCH"))  # and is no template
        assert k.answer()["error"] == errno.EBADMSG
        assert k.wait() == 0  # a keeper that could not start anything ends


def test_a_packet_that_is_too_long():
    with RawKeeper() as k:
        run_one(k)
        for size in (N["PACKET_MAX"] + 1, 150_000):
            k.send(raw_record(TAG["SPAWN"], b"\0" * size))
            assert k.answer() == {"name": "FAILED", "stage": N["STAGE_RECEIVE"], "error": errno.EMSGSIZE}
        longest = SPEC.spawn_body([SH, "-c", "exit 8"], ["X=" + "y" * 65_000])
        assert N["INLINE_MAX"] - 1000 < len(longest) <= N["INLINE_MAX"]
        k.send(raw_record(TAG["SPAWN"], longest))
        assert k.answer()["name"] == "SPAWNED"
        assert k.wait_for("EXITED")[1]["status"] == 8
        k.wait_for("EMPTY")


def test_a_full_table_of_the_keeper_is_an_error_and_not_a_loss():
    with RawKeeper() as k, open(os.devnull) as null:
        run_one(k)
        before = open_fds(k.pid)
        used = max(int(fd) for fd in before) + 1
        _, hard = resource.prlimit(k.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(k.pid, resource.RLIMIT_NOFILE, (used + 4, hard))
        k.send(raw_record(TAG["SPAWN"], SPEC.spawn_body([SH], fd_targets=range(10))), [null.fileno()] * 10)
        assert k.answer() == {"name": "FAILED", "stage": N["STAGE_RECEIVE"], "error": errno.EMFILE}
        resource.prlimit(k.pid, resource.RLIMIT_NOFILE, (used, hard))
        assert k.spawn(SH, "-c", ":")["error"] == errno.EMFILE
        resource.prlimit(k.pid, resource.RLIMIT_NOFILE, (hard, hard))
        run_one(k)
        assert len(open_fds(k.pid)) == len(before)


def test_a_second_spawn_while_the_tree_lives_is_busy():
    with RawKeeper() as k:
        stdin, writer = os.pipe()
        first = k.spawn(SH, "-c", "read x; exit 2", hello=REUSED, fd_targets=(0,), fds=(stdin,))
        os.close(stdin)
        for _ in range(3):
            assert k.spawn(SH, "-c", ":", hello=REUSED)["error"] == errno.EBUSY
        os.close(writer)
        exited = k.wait_for("EXITED")[1]
        assert (exited["pid"], exited["status"]) == (first["pid"], 2)
        k.wait_for("EMPTY")
        run_one(k)


def test_one_answered_request_a_packet():
    """The place for the answer is one: SPAWNED is never overwritten by what came along with it."""
    with RawKeeper() as k:
        spawn = SPEC.record("SPAWN", body=SPEC.spawn_body([SH, "-c", "exit 1"]))
        k.send(SPEC.record("HELLO", {"version": 1, "flags": REUSED}) + spawn * 5 + SPEC.record("LAUNCH"))
        assert k.answer()["name"] == "SPAWNED"
        k.wait_for("EMPTY")
        assert [name for name, _ in settle(k, 1)] == []
        run_one(k)


def test_answers_of_an_owner_that_does_not_read_are_kept():
    """Packets that are sent at once are answered one by one, each exactly once."""
    with RawKeeper(sndbuf=1) as k:
        stdin, writer = os.pipe()
        k.send(
            SPEC.record("HELLO", {"version": 1, "flags": REUSED})
            + SPEC.record("SPAWN", body=SPEC.spawn_body([SH, "-c", "read x; exit 2"], fd_targets=(0,))),
            [stdin],
        )
        os.close(stdin)
        for _ in range(40):
            k.send(SPEC.record("SPAWN", body=SPEC.spawn_body([SH, "-c", ":"])))
        k.assert_idle()
        assert k.answer()["name"] == "SPAWNED"
        for _ in range(40):
            assert k.answer()["error"] == errno.EBUSY
        os.close(writer)
        assert k.wait_for("EXITED")[1]["status"] == 2
        k.wait_for("EMPTY")


# ---- an owner that never reads


def test_a_frozen_owner_blocks_nothing_and_loses_only_counted_events():
    """300 members come, are adopted and go while nobody reads; then everything fixed is there."""
    children = 300
    script = f"i=0; while [ $i -lt {children} ]; do (sh -c 'exit 1' &) ; i=$((i+1)); done; exit 3"
    with RawKeeper(sndbuf=1) as k:
        started = k.spawn(SH, "-c", script)
        assert select.select([k.fds[0]], [], [], PATIENCE)[0]
        wait_until(lambda: _children(k.pid) == [], "the keeper has not reaped everything")
        k.assert_idle()
        records = k.rest()
    names = [name for name, _ in records]
    main = [v for name, v in records if name == "EXITED" and v["flags"] == 1]
    assert [(v["pid"], v["status"]) for v in main] == [(started["pid"], 3)]
    assert names[-1] == "EMPTY" and names.count("EMPTY") == 1
    reaped = records[-1][1]["reaped"]
    lost = sum(v["events"] for name, v in records if name == "LOST")
    told = sum(1 for name, v in records if name == "ADOPTED" or (name == "EXITED" and v["flags"] == 0))
    assert lost > 0
    assert reaped - 1 <= told + lost <= 2 * (reaped - 1)  # each member ended, most were seen adopted before
    assert k.code == 0


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def test_a_stop_is_done_and_reported_to_an_owner_that_reads_late():
    with RawKeeper(sndbuf=1) as k:
        k.spawn(SH, "-c", "for i in 1 2 3 4 5 6 7 8; do (sleep 99 &); done; sleep 98", hello=REUSED)
        for number in range(60):  # fill the socket with answers
            k.say("QUERY", id=number)
        k.say("STOP", id=4, signo=15, scope=2, grace_ms=10_000)
        assert select.select([k.fds[0]], [], [], PATIENCE)[0]
        wait_until(lambda: _children(k.pid) == [])
        k.assert_idle()
        report = k.wait_for("STOP_REPORT")[1]
        assert report["id"] == 4 and report["survivors"] == 0
        before = [name for name, v in k.passed if name == "EXITED" and v["flags"]]
        k.wait_for("EMPTY")
        after = [name for name, v in k.passed if name == "EXITED" and v["flags"]]
        assert len(before + after) == 1
        run_one(k)


def test_queries_of_an_owner_that_does_not_read_share_an_answer():
    with RawKeeper(sndbuf=1) as k:
        stdin, writer = os.pipe()
        k.spawn(SH, "-c", "read x", fd_targets=(0,), fds=(stdin,))
        os.close(stdin)
        for number in range(200):
            k.say("QUERY", id=number)
        k.assert_idle()
        os.close(writer)
        ids = [v["id"] for name, v in k.rest() if name == "MEMBERS"]
        assert ids == sorted(ids) and ids[-1] == 199 and len(ids) < 200


def test_a_spawn_is_busy_until_everything_about_the_last_one_was_sent():
    with RawKeeper(sndbuf=1) as k:
        stdin, writer = os.pipe()
        k.spawn(SH, "-c", "read x; exit 5", hello=REUSED, fd_targets=(0,), fds=(stdin,))
        os.close(stdin)
        for number in range(60):
            k.say("QUERY", id=number)
        k.assert_idle()  # the socket is full now
        os.close(writer)
        wait_until(lambda: _children(k.pid) == [])
        k.send(SPEC.record("SPAWN", body=SPEC.spawn_body([SH, "-c", ":"])))
        k.assert_idle()
        exits = []
        answers = []
        while True:
            name, values = k.wait_for("EXITED", "FAILED", "SPAWNED", "EMPTY")
            if name == "EMPTY":
                break
            (exits if name == "EXITED" else answers).append(values)
        assert [v["status"] for v in exits] == [5]
        assert [v.get("error") for v in answers] == [errno.EBUSY]
        run_one(k)


SECCOMP = r"""
import ctypes, os, struct, sys
number, error, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
code = b"".join(struct.pack("HBBI", *i) for i in [
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7FFF0000)])
buffer = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
for call in ((38, 1, 0, 0, 0), (22, 2, ctypes.byref(Program(4, ctypes.addressof(buffer))), 0, 0)):
    if libc.prctl(*call):
        sys.exit(f"prctl: errno {ctypes.get_errno()}")
os.execv(program[0], program[:1] + program[1:])
"""
SYS_SENDMSG = {"x86_64": 46, "aarch64": 211, "riscv64": 211}.get(platform.machine())
SYS_CLONE3 = 435


@pytest.mark.skipif(SYS_SENDMSG is None, reason="the number of sendmsg is not known for this machine")
@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_a_kernel_without_memory_for_packets_is_waited_for(error):
    """sendmsg always fails: neither a spin, nor taken for the loss of the owner."""
    argv = [sys.executable, "-c", SECCOMP, str(SYS_SENDMSG), str(error), KEEPER]
    with RawKeeper(argv=argv) as k:
        stdin, writer = os.pipe()
        k.send(SPEC.record("SPAWN", body=SPEC.spawn_body([SH, "-c", "read x"], fd_targets=(0,))), [stdin])
        os.close(stdin)
        wait_until(lambda: _children(k.pid) != [])
        (main,) = _children(k.pid)
        ns, times = k.runs()
        assert not select.select([k.sock], [], [], 0.5)[0]
        now_ns, now_times = k.runs()
        assert now_ns - ns < 0.5e9 / 5 and 2 <= now_times - times < 100
        assert _children(k.pid) == [main]
        os.close(writer)
        k.sock.close()
        assert k.wait() == 0


# ---- no busy loop in any state


def test_idle_in_every_state():
    with RawKeeper() as k:
        k.assert_idle()  # 1. nothing asked yet
        stdin, writer = os.pipe()
        k.spawn(SH, "-c", "(read x; sleep 99) & exit 3", fd_targets=(0,), fds=(stdin,), options=N["NEW_SESSION"])
        os.close(stdin)
        assert k.wait_for("EXITED")[1]["status"] == 3
        k.assert_idle()  # 2. main has ended, the tree lives
        k.say("STOP", id=1, signo=signal.SIGWINCH, scope=2, grace_ms=60_000)
        k.assert_idle()  # 3. in the grace
        k.say("STOP", id=2, signo=15, scope=2, grace_ms=0)
        report = k.wait_for("STOP_REPORT")[1]
        assert report["id"] == 2 and report["signo"] == signal.SIGWINCH and report["killed"] >= 1
        k.wait_for("EMPTY")
        os.close(writer)
        assert k.wait() == 0


@pytest.mark.parametrize("loss", ["socket", "process"])
def test_idle_when_the_owner_is_gone_and_the_tree_is_kept(loss):
    owner = subprocess.Popen(["sleep", "99"])
    owner_fd = os.pidfd_open(owner.pid)
    stdin, writer = os.pipe()
    with RawKeeper(owner=owner_fd) as k:
        os.close(owner_fd)
        k.spawn(SH, "-c", "(read x) <&0 & exit 3", fd_targets=(0,), fds=(stdin,), on_owner_loss=N["LOSS_KEEP"])
        os.close(stdin)
        k.wait_for("EXITED")
        if loss == "socket":
            k.sock.close()
        else:
            owner.kill()
            owner.wait()
            while k.receive():  # it lets go of its end
                pass
        k.assert_idle()
        os.close(writer)
        assert k.wait() == 0
    owner.kill()
    owner.wait()


# ---- the loss of the owner


@pytest.mark.parametrize("loss", ["socket", "process"])
@pytest.mark.parametrize("policy", ["LOSS_STOP", "LOSS_KILL"])
def test_the_loss_of_the_owner_ends_the_tree(loss, policy):
    """By the end of the socket alone, and by the death of the process alone (a copy holds the socket)."""
    marker = f"HF_TEST_{os.getpid()}_{os.urandom(8).hex()}=1"
    owner = subprocess.Popen(["sleep", "99"])
    owner_fd = os.pidfd_open(owner.pid)
    reader, stdout = os.pipe()
    script = "trap 'echo TERM; exit' TERM; (setsid sleep 99 &); echo ready; while :; do sleep 0.05; done"
    with RawKeeper(owner=owner_fd) as k:
        os.close(owner_fd)
        k.spawn(
            SH, "-c", script, env=[marker, "PATH=/usr/bin:/bin"], fd_targets=(1,), fds=(stdout,),
            options=N["NEW_SESSION"], on_owner_loss=N[policy], grace_ms=10_000,
        )  # fmt: skip
        os.close(stdout)
        with open(reader) as file:
            assert file.readline() == "ready\n"
            assert marked(marker)
            if loss == "socket":
                k.sock.close()
            else:
                owner.kill()
                owner.wait()
            assert k.wait() == 0
            assert file.read() == ("TERM\n" if policy == "LOSS_STOP" else "")
        assert marked(marker) == []
    owner.kill()
    owner.wait()


def test_a_second_stop_with_no_grace_and_the_owners_loss_in_the_middle():
    marker = f"HF_TEST_{os.getpid()}_{os.urandom(8).hex()}=1"
    with RawKeeper() as k:
        k.spawn(SH, "-c", "trap '' TERM; sleep 99; sleep 99", env=[marker], on_owner_loss=N["LOSS_KILL"])
        k.say("STOP", id=1, signo=15, scope=1, grace_ms=600_000)
        settle(k, 1)
        k.sock.close()
        assert k.wait() == 0
        assert marked(marker) == []


def test_requests_that_wait_in_the_socket_of_a_lost_owner():
    """Spawn was sent and the owner died at once: whatever was started is ended again."""
    marker = f"HF_TEST_{os.getpid()}_{os.urandom(8).hex()}=1"
    for _ in range(10):
        with RawKeeper() as k:
            k.send(SPEC.record("SPAWN", body=SPEC.spawn_body(["/bin/sleep", "99"], [marker], grace_ms=100)))
            k.sock.close()
            assert k.wait() == 0
    assert marked(marker) == []


def test_without_its_descriptors_it_ends_at_once():
    done = subprocess.run([KEEPER], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for arguments in ("what", "run", "run --", "run signal=0 -- true", "run x=1 -- true"):
        done = subprocess.run([KEEPER, *arguments.split()], capture_output=True, timeout=PATIENCE)
        assert done.returncode == 125 and done.stderr


# ---- what a process gets


def test_a_process_has_no_descriptor_of_its_keeper():
    with RawKeeper() as k:
        stdin, writer = os.pipe()
        reader, stdout = os.pipe()
        started = k.spawn(SH, "-c", "echo; read x", fd_targets=(0, 1), fds=(stdin, stdout), closed_std=4)
        os.close(stdin)
        os.close(stdout)
        with open(reader) as file:
            assert file.readline() == "\n"  # its loader has closed what it opened
        assert set(open_fds(started["pid"])) == {"0", "1"}
        os.close(writer)
        k.rest()


def test_the_library_passes_on_exactly_what_it_was_told():
    script = "import os; at = '/proc/self/fd/'; print([int(f) for f in os.listdir(at) if os.path.exists(at + f)])"
    reader, writer = os.pipe()
    os.dup2(writer, 50, inheritable=True)  # inheritable, and still not asked for
    try:
        with holdfast.Runner() as runner:
            for run in (holdfast.run, runner.run):
                out = run([sys.executable, "-c", script], capture_output=True, pass_fds=[writer]).stdout
                assert sorted(eval(out)) == [0, 1, 2, writer]
            out = holdfast.run([sys.executable, "-c", script], capture_output=True, private=False).stdout
            assert sorted(eval(out)) == [0, 1, 2]
    finally:
        for fd in (reader, writer, 50):
            os.close(fd)


RUNNER = r"""
import resource, signal, sys
import holdfast
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
command = ["grep", "-hE", "SigIgn|open files", "/proc/self/status", "/proc/self/limits"]
with holdfast.Runner() as runner:
    for run in (holdfast.run, runner.run):
        sys.stdout.write(run(command, capture_output=True, text=True).stdout)
"""


def test_descriptor_limit_and_ignored_sigchld_come_through_keeper_and_template():
    out = subprocess.run([sys.executable, "-c", RUNNER], capture_output=True, text=True, check=True).stdout
    ignored = [int(line.split()[1], 16) for line in out.splitlines() if line.startswith("SigIgn")]
    limits = re.findall(r"open files +(\d+)", out)
    assert [bool(mask & 1 << (signal.SIGCHLD - 1)) for mask in ignored] == [True, True]
    assert limits == ["200", "200"]


@pytest.mark.parametrize("reused", [False, True])
def test_plans_of_every_length(reused):
    """Inside the packet and in a memfd, and what comes after one is as before."""
    with holdfast.Runner() as runner:
        run = runner.run if reused else holdfast.run
        for length in [*range(0, 3 * 4096, 1000), *range(16_000, 80_000, 5000), 65_300, 120_000]:
            done = run([SH, "-c", "exit $((${#X} % 251))"], env={"X": "y" * length})
            assert done.returncode == length % 251


# ---- owners in a bad state

@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_an_owner_with_closed_standard_descriptors(closed):
    """What subprocess's child would not have, ours does not have: above all no socket of ours on 0."""
    script = r"""
import os, sys
import {module} as module
os.dup2(1, 9)
for fd in {closed!r}:
    os.close(fd)
held = [os.pipe() for _ in range(2)]  # close-on-exec descriptors now lie on 0 to 2
for options in {options!r}:
    p = module.{call}(["sh", "-c", "for f in 0 1 2; do [ -e /proc/$$/fd/$f ] && echo $f >&9; done; echo end >&9"],
                      pass_fds=[9], **options)
    p.wait()
    p.__exit__(None, None, None)
"""
    outputs = []
    for module, call, options in (
        ("subprocess", "Popen", [{}]),
        ("holdfast", "spawn", [{}]),
        ("holdfast", "spawn", [{"private": False}]),
    ):
        text = script.format(module=module, call=call, options=options, closed=closed)
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE)
        outputs.append((done.returncode, done.stdout, done.stderr))
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0][1].split() == [str(fd) for fd in range(3) if fd not in closed] + ["end"]


@pytest.mark.parametrize("closed", ["0<&-", "0<&- 1>&-", "1>&-"])
def test_run_with_closed_standard_descriptors(closed, tmp_path):
    """The keeper's own descriptors must not come to lie where the command's are replaced."""
    report = tmp_path / "report"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [SH, "-c", f'"$0" run signal=15 grace_ms=9 json="$1" -- sh -c "sleep 0.5; exit 5" {closed}', KEEPER, report],
        timeout=PATIENCE,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 5
    assert b'"exit_code": 5' in report.read_bytes()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.25


NO_CLONE3 = r"""
import os, sys
import holdfast
from holdfast.process import _native
assert holdfast.run(["sh", "-c", "exit 3"]).returncode == 3
assert holdfast.run(["sh", "-c", "echo x; exit 4"], private=False, capture_output=True).stdout == b"x\n"
assert not _native.has_clone3()
for private in (True, False):
    for what, options in (("/nonexistent", {}), ("true", {"cwd": "/nonexistent"})):
        try:
            holdfast.run([what], private=private, **options)
        except holdfast.SpawnError as error:
            assert error.errno == 2 and error.stage == ("chdir" if options else "exec"), error
        else:
            raise AssertionError
with holdfast.Runner() as runner:
    assert [runner.run(["sh", "-c", f"exit {i}"]).returncode for i in range(5)] == [0, 1, 2, 3, 4]
try:
    holdfast.run(["sh", "-c", "(setsid sleep 99 &); trap '' TERM; sleep 98"], timeout=0.3, grace=0.1)
except holdfast.TimeoutExpired as error:
    assert error.report.empty
os.execv(sys.argv[1], [sys.argv[1], "run", "signal=15", "grace_ms=100", "--", "sh", "-c", "exit 9"])
"""


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_everything_works_where_clone3_is_forbidden(error):
    """A filter that containers had for years: the extension and the keeper fall back to clone(2)."""
    done = subprocess.run(
        [sys.executable, "-c", SECCOMP, str(SYS_CLONE3), str(error), sys.executable, "-c", NO_CLONE3, KEEPER],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (9, "")


HANDLERS = r"""
import os, select, signal, subprocess, sys
from holdfast.process import _native
if sys.argv[1] == "clone":
    _native.forbid_clone3()
assert _native.has_clone3() == (sys.argv[1] != "clone")
# The body is made while the signal is open, so each child opens it before its exec; we block it, so a
# byte in this pipe can only come from a handler that ran in a child, on our memory.
null = os.open("/dev/null", os.O_RDWR)
fds = [null] * 200
body = _native.spawn_body(
    ["true"], None, "/nonexistent", None, 0, 0, 0, 0, 0, 0, [], [], range(10, 210), 0, 0, 15, 1, 0)
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
r, w = os.pipe()
os.set_blocking(w, False)
signal.set_wakeup_fd(w)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
storm = subprocess.Popen([sys.executable, "-c",
    "import os, signal, sys; signal.signal(signal.SIGUSR1, signal.SIG_IGN); print(flush=True)\n"
    "while True: os.killpg(os.getpgrp(), signal.SIGUSR1)"], stdout=subprocess.PIPE)
storm.stdout.readline()
killed = failed = 0
for _ in range(200):
    try:
        pid, pidfd = _native.spawn_direct(body, fds, int)
    except OSError as error:
        assert error.errno == 2, error
        failed += 1
        continue
    # No error came back: the signal's default action ended it before its exec could fail.
    select.select([pidfd], [], [], 30)
    code, status, usage = _native.wait_status(pidfd)
    assert (code, status) == (2, signal.SIGUSR1), (code, status)
    os.close(pidfd)
    killed += 1
storm.kill()
storm.wait()
os.set_blocking(r, False)
try:
    print("RAN IN A CHILD", os.read(r, 100))
except BlockingIOError:
    # With one processor the storm does not blow while a child is on its way to exec.
    print("clean", killed > 0 or os.cpu_count() == 1, killed + failed, handled)
"""


@pytest.mark.parametrize("way", ["clone3", "clone"])
def test_a_handler_of_the_owner_never_runs_in_a_child(way):
    if way == "clone3" and platform.machine() != "x86_64":
        pytest.skip("clone3 is used on x86_64 only")
    done = subprocess.run(
        [sys.executable, "-c", HANDLERS, way], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert done.stdout == "clean True 200 []\n", done.stderr


TINY = r"""
import os, resource, sys
import holdfast
keep = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (keep, keep))
before = sorted(os.listdir("/proc/self/fd"))
for command, private in ((["sh", "-c", "(setsid sleep 99 &) ; trap '' TERM; sleep 98"], True), (["sleep", "9"], False)):
    try:
        p = holdfast.spawn(command, private=private, grace=0.1, stdout=holdfast.DEVNULL)
    except OSError as error:
        print("error", error.errno, end=" ")
        continue
    try:
        report = p.stop()
        print("report", report is None or report.empty, end=" ")
    finally:
        p.close()
print(sorted(os.listdir("/proc/self/fd")) == before)
"""


@pytest.mark.parametrize("limit", [*range(5, 20)])
def test_with_hardly_any_descriptors_it_works_or_says_so(limit):
    """Whatever the limit: a start fails with an error, or the whole tree can be stopped."""
    marker = f"HF_TEST_{os.getpid()}_{os.urandom(8).hex()}"
    done = subprocess.run(
        [sys.executable, "-c", TINY, str(limit)], capture_output=True, text=True, timeout=60,
        env={**os.environ, marker: "1"},
    )  # fmt: skip
    left = marked(marker + "=1")
    for pid in left:
        os.kill(pid, signal.SIGKILL)  # ours by the marker; the test fails below
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[-1] == "True", done.stdout
    if words[0] == "error":
        assert int(words[1]) in (errno.EMFILE, errno.EINVAL, errno.EBADF), done.stdout
    else:
        assert words[:2] == ["report", "True"]
        assert left == []


BARE = r"""
import os
import holdfast
assert holdfast.run(["sh", "-c", "echo x; exit 3"], capture_output=True).stdout == b"x\n"
script = "trap '' TERM; setsid -f sh -c 'echo; exec sleep 99'; echo; sleep 98; sleep 97"
process = holdfast.spawn(["sh", "-c", script], stdout=holdfast.PIPE, new_session=True)
assert [process.stdout.read(1) for _ in range(2)] == [b"\n", b"\n"]
report = process.stop(grace=0.1)
print(report.empty, report.survivor_count, process.poll().signal, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts in namespaces of its own")
@pytest.mark.parametrize("missing", ["/dev", "/proc"])
def test_without_dev_or_proc(missing):
    """No /dev: everything as ever.  No /proc: main is ended, and a member that nobody can find is not denied."""
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", SH, "-c",
         'mount -t proc proc /proc && mount -t tmpfs none "$0" && exec "$@"', missing, sys.executable, "-c", BARE],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    expected = "True 0 9\n" if missing == "/dev" else "False 1 9\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_socketpair_is_what_we_think():
    """The protocol needs whole packets, and an end that is seen with packets still unread."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        a.send(b"one")
        a.send(b"two")
        a.close()
        assert [b.recv(100), b.recv(100), b.recv(100)] == [b"one", b"two", b""]


def test_listen_pid_needs_a_place_in_the_environment():
    no_room = {"stage": 14, "error": errno.EINVAL, "name": "FAILED"}
    for env in ((), ("LISTEN_PID=1",), ("LISTEN_PIDS=0000000000", "XLISTEN_PID=0000000000")):
        with RawKeeper() as k:
            assert k.spawn("/bin/true", env=env, options=2048) == no_room, env
    with RawKeeper() as k:
        shell = 'exec test "$$" = "$LISTEN_PID"'
        env = ("A=b", "LISTEN_PID=0000000000")
        assert k.spawn("/bin/sh", "-c", shell, env=env, options=2048)["name"] == "SPAWNED"
        assert k.wait_for("EXITED")[1]["status"] == 0
