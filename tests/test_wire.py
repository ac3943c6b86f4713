"""docs/wire.md against the code, and the golden bytes of version 1 against both sides."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess

import pytest
import wire_golden as golden
from conftest import require
from helpers_wire import PATIENCE, ROOT, SPEC, RawKeeper, grown, raw_record, wait_until

from holdfast.process import _native, errors, events, held, keeper, kept, options

REPORTS = [name for name, record in SPEC.records.items() if record.tag >= 64]


# ---- the tables against the code


def test_tables_are_the_structures_of_the_code(tmp_path):
    """Every offset, size, tag and number of docs/wire.md, compiled against wire.h."""
    require("gcc")
    kinds = {"u32": "uint32_t", "i32": "int32_t", "u64": "uint64_t", "usage": "struct hf_usage"}
    lines = ['#include "wire.h"', "#include <stddef.h>", "#define SAME(a, b) _Static_assert((a) == (b), #a)"]
    for record in SPEC.records.values():
        if record.tag >= 0:
            lines.append(f"SAME(HF_{record.name}, {record.tag});")
        if not record.fields or not record.struct_name:
            continue
        struct = f"struct {record.struct_name}"
        lines.append(f"SAME(sizeof({struct}), {SPEC.size(record.name)});")
        for at, kind, name in record.fields:
            lines.append(f"SAME(offsetof({struct}, {name}), {at});")
            member = f"(({struct} *)0)->{name}"
            lines.append(f"SAME(__builtin_types_compatible_p(__typeof__({member}), {kinds.get(kind, kind)}), 1);")
    lines += [f"SAME(HF_{name}, {value});" for name, value in SPEC.numbers.items()]
    assert len(lines) > 250
    file = tmp_path / "tables.c"
    file.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["gcc", "-std=gnu11", "-fsyntax-only", "-I", os.path.join(ROOT, "csrc", "common"), str(file)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_no_tag_number_or_field_of_the_code_is_missing_in_the_tables():
    with open(os.path.join(ROOT, "csrc", "common", "wire.h")) as file:
        text = file.read()
    for line in text.split("enum hf_tag {")[1].split("}")[0].splitlines():
        for part in line.split("/*")[0].split(","):
            if "=" in part:
                name, value = part.split("=")
                assert SPEC.records[name.strip().removeprefix("HF_")].tag == int(value)
    for record in SPEC.records.values():
        if record.fields and record.struct_name:  # no gap and no overlap: then nothing was left out
            at = 0
            for offset, kind, _ in record.fields:
                assert offset == at, record.name
                at += SPEC._size(kind)


def test_python_constants_are_those_of_the_tables():
    n = SPEC.numbers
    for name in ("SIGNAL", "STOP", "ON_OWNER_LOSS", "EXITED", "ADOPTED", "EMPTY", "STOP_REPORT", "MOVED"):
        assert getattr(kept, name, getattr(keeper, name, None)) == SPEC.records[name].tag
    assert (n["KEEPER_REUSED"], n["KEEPER_TEMPLATE"]) == (keeper.REUSED, keeper.TEMPLATE)
    for name in ("NEW_SESSION", "SET_PGID", "SET_UMASK", "SET_UID", "SET_GID", "SET_GROUPS", "SET_NICE", "CLOSE_FDS",
                 "RESTORE_SIGNALS", "LISTEN_PID", "FORKING"):  # fmt: skip
        assert getattr(options, name) == n[name]
    assert {"LOSS_" + k.upper(): v for k, v in options.LOSS.items()} == {
        k: v for k, v in n.items() if k.startswith("LOSS_")
    }
    assert {"SCOPE_" + k.upper(): v for k, v in options.SCOPE.items()} == {
        k: v for k, v in n.items() if k.startswith("SCOPE_")
    }
    assert {v: k.removeprefix("RULE_").lower() for k, v in n.items() if k.startswith("RULE_")} == events.RULES
    assert (SPEC.records["MOVED"].tag, SPEC.records["MAIN"].tag) == (events.MOVED, held.MAIN)
    assert n["FDS_MAX"] == options.FDS_MAX
    assert set(errors.STAGES) == {v for k, v in n.items() if k.startswith("STAGE_")}


# ---- what the library writes, read by the tables


def test_tables_read_what_the_library_writes():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        body = _native.spawn_body(
            ["prog", b"a\xff", ""], {"K": "v", "EMPTY": ""}, "/bin/prog", "/some/where", 4 | 16, -3, 0o27, 11, 12, -5,
            [1, 2, 3], [(7, 10, 2**64 - 1)], [0, 9, 3], 6, 1, 15, 2, 12_345,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    mask = sum(1 << (s - 1) for s in {*before, signal.SIGUSR2})
    assert SPEC.read_spawn_body(body) == {
        "options": 20, "pgid": -3, "umask": 0o27, "uid": 11, "gid": 12, "nice": -5, "mask": mask, "on_owner_loss": 1,
        "stop_signal": 15, "stop_scope": 2, "closed_std": 6, "grace_ms": 12_345, "n_groups": 3, "n_rlimits": 1,
        "n_fds": 3, "n_argv": 3, "n_env": 2, "more": 0, "executable": "/bin/prog",
        "cwd": "/some/where", "groups": (1, 2, 3), "rlimits": [(7, 10, 2**64 - 1)], "fd_targets": (0, 9, 3),
        "argv": ["prog", "a\udcff", ""], "env": ["K=v", "EMPTY="],
    }  # fmt: skip


def test_the_inherited_environment_is_read_whole():
    head = SPEC.read_spawn_body(
        _native.spawn_body(["x"], None, "x", None, 0, 0, 0, 0, 0, 0, [], [], [], 0, 0, 15, 1, 0)
    )
    assert sorted(head["env"]) == sorted(f"{k}={v}" for k, v in os.environ.items())
    assert head["cwd"] is None


@pytest.mark.parametrize("items", [[("A",)], [["A", "b"]], [("A", "b", "c")], [3]])
def test_an_environment_that_is_no_mapping_is_an_error(items):
    class Odd:
        def items(self):
            return items

        def keys(self):
            return []

    with pytest.raises(TypeError):
        _native.spawn_body(["x"], Odd(), "x", None, 0, 0, 0, 0, 0, 0, [], [], [], 0, 0, 15, 1, 0)


# ---- what the tables write, obeyed by a real keeper


def test_a_keeper_obeys_a_request_made_from_the_tables(tmp_path):
    reader, writer = os.pipe()
    where = os.path.realpath(tmp_path)
    n = SPEC.numbers
    opts = n["SET_UMASK"] | n["SET_NICE"] | n["NEW_SESSION"] | n["RESTORE_SIGNALS"]
    head: dict = {"umask": 0o31, "nice": 3}
    if os.geteuid() == 0:
        opts |= n["SET_UID"] | n["SET_GID"] | n["SET_GROUPS"]
        head |= {"uid": 12345, "gid": 23456, "groups": (34567, 45678)}
    script = "umask; pwd; ulimit -c; ulimit -n; cat /proc/self/status /proc/self/stat; cat <&9; echo $A-$0"
    os.chmod(tmp_path, 0o755)
    for parent in list(tmp_path.parents)[:2]:
        os.chmod(parent, 0o755)
    with RawKeeper() as k, open(tmp_path / "nine", "w+") as nine:
        nine.write("through nine\n")
        nine.flush()
        nine.seek(0)
        started = k.spawn(
            "zero", "-c", script, "first", env=["A=b", "PATH=/nowhere:/bin:/usr/bin"], executable="sh", options=opts,
            cwd=where, fd_targets=(1, 9), fds=(writer, nine.fileno()), closed_std=1 | 4,
            rlimits=[(resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_NOFILE, 77, 99)], **head,
        )  # fmt: skip
        os.close(writer)
        assert started["name"] == "SPAWNED", started
        with open(reader) as file:
            out = file.read()
        lines = out.splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert lines[:4] == ["0031", where, "0", "77"]
        assert lines[-2:] == ["through nine", "b-first"]
        stat = next(line for line in lines if ") R " in line).rpartition(")")[2].split()
        assert int(stat[3]) == started["pid"]  # the session is its own
        assert int(stat[16]) == os.getpriority(os.PRIO_PROCESS, 0) + 3
        if os.geteuid() == 0:
            assert status["Uid"].split() == ["12345"] * 4
            assert status["Gid"].split() == ["23456"] * 4
            assert status["Groups"].split() == ["34567", "45678"]
        reports = dict(k.rest())
        assert reports["EXITED"]["code"] == 1 and reports["EXITED"]["status"] == 0
        assert reports["EXITED"]["ended_ns"] > started["started_ns"]
        assert k.code == 0


def test_the_mask_of_a_request_is_the_childs():
    reader, writer = os.pipe()
    mask = 1 << (signal.SIGUSR1 - 1) | 1 << 63
    with RawKeeper() as k:
        k.spawn("/bin/grep", "SigBlk", "/proc/self/status", mask=mask, fd_targets=(1,), fds=(writer,))
        os.close(writer)
        with open(reader) as file:
            assert int(file.read().split()[1], 16) == mask


def flat(name: str, values: dict) -> tuple:
    """The tuple that the library makes of a report."""
    result: list = [SPEC.records[name].tag]
    for _, kind, key in SPEC.records[name].fields:
        if key in ("zero", "n_members"):
            continue
        result.append(tuple(values[key].values()) if kind == "usage" else values[key])
    if "members" in values:
        result.append([(m["pid"], m["flags"], os.fsdecode(m["name"])) for m in values["members"]])
    return tuple(result)


def test_both_readers_agree_on_what_a_real_keeper_says():
    packets = []
    with RawKeeper() as k:
        k.spawn("/bin/sh", "-c", "sleep 99 & sh -c 'sleep 98 & kill -STOP $PPID'; exit 3", hello=1)
        k.wait_for("STOPPED")
        packets.append(k.last)
        k.say("QUERY", id=3)
        k.wait_for("MEMBERS")
        packets.append(k.last)
        k.say("SIGNAL", signo=signal.SIGCONT, scope=0)
        k.wait_for("EXITED")
        packets.append(k.last)
        k.say("STOP", id=9, signo=15, scope=2, grace_ms=5000)
        while k.wait_for("STOP_REPORT", "EMPTY")[0] != "EMPTY":
            packets.append(k.last)
        packets.append(k.last)
    names = set()
    for packet in packets:
        read = SPEC.decode(packet)
        names |= {name for name, _ in read}
        assert [flat(name, values) for name, values in read] == _native.wire_decode(packet)
    assert {"STOPPED", "MEMBERS", "EXITED", "STOP_REPORT", "EMPTY"} <= names


# ---- golden bytes


def test_golden_bytes_are_version_1():
    assert {name.lower() + ".hex" for name in golden.NAMES} == set(os.listdir(golden.DIRECTORY))
    assert set(golden.NAMES) == {record.name for record in SPEC.tags.values()}
    for name in golden.NAMES:
        assert golden.encode(name) == golden.read(name), name


@pytest.mark.parametrize("name", REPORTS)
def test_golden_reports_are_read_for_ever(name):
    packet, expected = golden.read(name), flat(name, golden.REPORTS[name])
    assert _native.wire_decode(packet) == [expected]
    assert _native.wire_decode(packet + packet) == [expected] * 2


@pytest.mark.parametrize("name", REPORTS)
def test_grown_and_unknown_records_are_skipped(name):
    packet, expected = golden.read(name), flat(name, golden.REPORTS[name])
    tag, body = SPEC.records[name].tag, packet[8:]
    grown = raw_record(tag, body + b"of a later version" * 3)
    unknown = raw_record(63, b"abc") + raw_record(65535)
    assert _native.wire_decode(unknown + grown + packet) == [(63,), (65535,), expected, expected]


@pytest.mark.parametrize("name", REPORTS)
def test_short_reports_are_malformed(name):
    packet = golden.read(name)
    for size in range(len(packet)):
        if size == 0:
            assert _native.wire_decode(b"") == []
            continue
        with pytest.raises(ValueError):  # the length lies
            _native.wire_decode(packet[:size])
    for size in range(len(packet) - 8):
        if SPEC.size(name) <= size and "members" not in golden.REPORTS[name]:
            continue
        with pytest.raises(ValueError):  # the body is shorter than version 1 has it
            _native.wire_decode(raw_record(SPEC.records[name].tag, packet[8 : 8 + size]))


def test_golden_spawn_and_spawn_map():
    with RawKeeper() as k:
        for request in ("SPAWN", "SPAWN_MAP"):
            (stdin, to_child), (from_child, stdout) = os.pipe(), os.pipe()
            fds = [stdin, stdout]
            if request == "SPAWN_MAP":
                fds.insert(0, sealed(golden.read("SPAWN")[8:]))
            k.send(golden.read("HELLO") + golden.read(request), fds)
            for fd in fds:
                os.close(fd)
            assert k.answer()["name"] == "SPAWNED"
            os.write(to_child, b"bytes\n")
            os.close(to_child)
            with open(from_child) as file:
                assert file.read() == "golden bytes\n0027\n"
            assert k.wait_for("EXITED")[1]["status"] == 7
            k.wait_for("EMPTY")


def sealed(data: bytes) -> int:
    import fcntl

    fd = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


def start_reader(k: RawKeeper, script: str) -> tuple[int, dict]:
    """A process that says "ready" and then does what its last command does; our end of its stdin."""
    (stdin, to_child), (from_child, stdout) = os.pipe(), os.pipe()
    started = k.spawn("/bin/sh", "-c", script, fd_targets=(0, 1), fds=(stdin, stdout))
    os.close(stdin)
    os.close(stdout)
    with open(from_child) as file:
        assert file.readline() == "ready\n"
    return to_child, started


@pytest.mark.parametrize("form", [golden.read, grown])
def test_golden_signal(form):
    with RawKeeper() as k:
        stdin, _ = start_reader(k, 'trap "exit 3" USR1; echo ready; read x')
        k.send(form("SIGNAL"))
        assert k.wait_for("EXITED")[1]["status"] == 3
        os.close(stdin)


@pytest.mark.parametrize("form", [golden.read, grown])
def test_golden_stop(form):
    with RawKeeper() as k:
        stdin, started = start_reader(k, "echo ready; read x")
        k.send(form("STOP"))
        report = k.wait_for("STOP_REPORT")[1]
        assert (report["id"], report["signo"], report["scope"], report["grace_ms"]) == (7, 15, 1, 5000)
        assert report["signalled"] == 1 and report["killed"] == 0
        assert [m["pid"] for m in report["members"]] == [started["pid"]]
        os.close(stdin)


@pytest.mark.parametrize("form", [golden.read, grown])
def test_golden_query(form):
    with RawKeeper() as k:
        stdin, started = start_reader(k, "echo ready; read x")
        k.send(form("QUERY"))
        members = k.wait_for("MEMBERS")[1]
        assert members["id"] == 5
        assert [(m["pid"], m["flags"], m["name"]) for m in members["members"]] == [(started["pid"], 1, "sh")]
        os.close(stdin)


@pytest.mark.parametrize("form", [golden.read, grown])
def test_golden_on_owner_loss(form):
    with RawKeeper() as k:
        stdin, _ = start_reader(k, "echo ready; read x")
        process = k.fds[0]
        k.send(form("ON_OWNER_LOSS"))
        k.sock.close()
        k.assert_idle()  # it has seen the end of the socket by now
        assert not select.select([process], [], [], 0)[0]
        os.close(stdin)
        assert select.select([process], [], [], PATIENCE)[0]
        assert k.wait() == 0


@pytest.mark.parametrize("form", [golden.read, grown])
def test_golden_launch(form):
    with RawKeeper() as k:
        k.send(SPEC.record("HELLO", {"version": 1, "flags": SPEC.numbers["KEEPER_TEMPLATE"]}))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            k.send(form("LAUNCH"), [theirs.fileno()])
            theirs.close()
            other = object.__new__(RawKeeper)  # not our child: spoken to, never waited for
            other.sock, other.seen, other.fds = ours, [], []
            launched = other.answer()
            assert launched["name"] == "LAUNCHED" and launched["pid"] != k.pid
            answer = other.spawn("/bin/sh", "-c", "exit 4")
            assert answer["name"] == "SPAWNED"
            assert other.passed == [("KEEPER_HELLO", {"version": 1, "pid": launched["pid"]})]
            assert other.wait_for("EXITED")[1]["status"] == 4
            other.wait_for("EMPTY")
            assert select.select([other.fds[0]], [], [], PATIENCE)[0]  # and it ends, its process has ended
        for fd in other.fds:
            os.close(fd)
        wait_until(lambda: not os.path.exists(f"/proc/{k.pid}/task/{k.pid}/children") or not _children(k.pid))


def _children(pid: int) -> str:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read()
