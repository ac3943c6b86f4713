"""The C core under compilers' warnings, sanitizers, valgrind and a fuzzer.

The scenarios are those of the other files: they run again with a keeper that was built for it.
valgrind sees the whole keeper, with the two calls it does not know replaced (tests/c/without_pidfd.c);
it does not see the extension, which runs under the address sanitizer inside a real Python.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import sysconfig

import helpers_wire
import pytest
import test_forking_keeper as daemons
import test_held_keeper as held
import test_keeper_protocol as protocol
import test_log_trouble as trouble
import test_log_writer as log
import test_terminal_keeper as terminal
import test_wire as wire
from conftest import require
from helpers_forking import gates
from helpers_held import Place
from helpers_wire import ROOT

import holdfast
from holdfast.process import keeper

CSRC = os.path.join(ROOT, "csrc")
COMMON = sorted(glob.glob(os.path.join(CSRC, "common", "*.c")))
KEEPER = sorted(glob.glob(os.path.join(CSRC, "keeper", "*.c"))) + COMMON
EXTENSION = sorted(glob.glob(os.path.join(CSRC, "spawn", "*.c"))) + COMMON
INCLUDE = ["-std=gnu11", "-I", os.path.join(CSRC, "common")]
PYTHON = ["-fPIC", "-shared", "-DPy_LIMITED_API=0x030b0000", "-isystem", sysconfig.get_paths()["include"]]
SANITIZE = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(compiler: str, *arguments: str) -> None:
    require(compiler)
    done = subprocess.run([compiler, *INCLUDE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- what compilers say

STRICT = ["-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wvla", "-Werror"]
# musl's CMSG macros mix signs; the analyzer of gcc loses count of what search_and_exec has written.
KNOWN = {"musl-gcc": ["-Wno-sign-conversion", "-Wno-sign-compare"], "analyzer": [
    "-Wno-analyzer-use-of-uninitialized-value"]}  # fmt: skip


@pytest.mark.parametrize("compiler", ["gcc", "musl-gcc", "clang"])
def test_the_keeper_compiles_without_a_warning(compiler, tmp_path):
    build(compiler, *STRICT, *KNOWN.get(compiler, []), *KEEPER, "-o", str(tmp_path / "keeper"))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_extension_compiles_without_a_warning(compiler, tmp_path):
    build(compiler, *STRICT, *PYTHON, *EXTENSION, "-o", str(tmp_path / "native.so"))


@pytest.mark.parametrize("what", ["keeper", "extension"])
def test_the_analyzer_finds_nothing(what, tmp_path):
    sources = KEEPER if what == "keeper" else [*PYTHON, *EXTENSION]
    build("gcc", *STRICT, "-fanalyzer", *KNOWN["analyzer"], *sources, "-o", str(tmp_path / "out"))


def test_the_keeper_allocates_nothing(tmp_path):
    require("nm")
    build("gcc", "-O2", *KEEPER, "-o", str(tmp_path / "keeper"))
    symbols = subprocess.run(["nm", "-u", tmp_path / "keeper"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].split("@")[0] for line in symbols.splitlines()}
    assert "recvmsg" in names  # we do see its calls
    assert not names & {"malloc", "calloc", "realloc", "free", "strdup", "opendir", "fopen", "printf", "snprintf"}


# ---- scenarios for a keeper of any build


def stand_alone(command: list[str], tmp_path, *, failures: bool = True) -> None:
    """`run` mode: exit codes, time limit, a tree that resists, strangers, reports."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run([*command, "run", "signal=15", *arguments], capture_output=True, timeout=100, **options)

    assert run("grace_ms=1000", "--", "sh", "-c", "exit 7").returncode == 7
    assert run("grace_ms=1000", "--", "sh", "-c", "kill -9 $$").returncode == 137
    if failures:
        assert run("grace_ms=1000", "--", "/nonexistent").returncode == 127
        assert run("grace_ms=1000", "--", "/").returncode == 126
    report = tmp_path / "report.json"
    marker = f"HF_TEST_{os.getpid()}_{os.urandom(8).hex()}"
    script = "(setsid sleep 99 &); for i in 1 2 3 4 5; do (setsid sh -c 'sleep 98 & sleep 97' &); done; trap '' TERM; "
    done = run(
        "timeout_ms=700", "grace_ms=200", "report=1", "verbose=1", f"json={report}", "--",
        "sh", "-c", script + "sleep 99; sleep 99; : " + "\"\\\x01\xe9" * 6000,
        env={**os.environ, marker: "1"},
    )  # fmt: skip
    assert done.returncode == 124, done.stderr
    assert helpers_wire.marked(marker + "=1") == []
    told = json.loads(report.read_text())
    assert told["exit_code"] == 124 and told["stop"]["survivors"] == 0 and len(told["stop"]["members"]) >= 10
    assert told["command"][2].count("\\") == 6000
    # A stranger: a child that was there before is neither waited for nor signalled.
    done = subprocess.run(
        ["sh", "-c", 'exec 3<&0; cat <&3 & exec 3<&-; exec "$@" <&-', "-", *command, "run", "signal=15",
         "grace_ms=100", "--", "sh", "-c", "(sleep 99 &); exit 3"],
        input=b"said after", capture_output=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, b"said after")


SCENARIOS = [
    protocol.test_malformed_spawn_requests_start_nothing,
    protocol.test_other_malformed_requests_change_nothing,
    protocol.test_requests_without_a_tree_change_nothing,
    protocol.test_a_packet_that_is_too_long,
    protocol.test_a_second_spawn_while_the_tree_lives_is_busy,
    protocol.test_one_answered_request_a_packet,
    protocol.test_a_second_stop_with_no_grace_and_the_owners_loss_in_the_middle,
    wire.test_golden_spawn_and_spawn_map,
    wire.test_both_readers_agree_on_what_a_real_keeper_says,
]
NOT_UNDER_VALGRIND = [  # too slow there, or with a start that fails
    protocol.test_requests_that_wait_in_the_socket_of_a_lost_owner,
    protocol.test_a_full_table_of_the_keeper_is_an_error_and_not_a_loss,
    protocol.test_a_frozen_owner_blocks_nothing_and_loses_only_counted_events,
    protocol.test_a_stop_is_done_and_reported_to_an_owner_that_reads_late,
]


HELD = [
    held.test_held_requests_that_are_wrong,
    held.test_what_is_not_acknowledged_is_told_again,
    held.test_adopted_members_are_told_to_every_owner,
    held.test_who_does_not_say_hello_is_kept_out_and_delays_nobody_for_long,
    held.test_the_end_of_main_stops_the_rest_without_an_owner,
    held.test_a_report_that_cannot_be_written_waits_for_an_owner,
    held.test_a_start_that_fails_later_is_told_and_acknowledged_as_empty,
]


def kept(monkeypatch, program: str, wrap: list[str], tests) -> None:
    monkeypatch.setattr(helpers_wire, "KEEPER", program)
    monkeypatch.setattr(helpers_wire, "WRAP", wrap)
    for test in tests:
        test()
    for loss, policy in (("socket", "LOSS_STOP"), ("process", "LOSS_KILL")):
        protocol.test_the_loss_of_the_owner_ends_the_tree(loss, policy)
    for test in (wire.test_golden_signal, wire.test_golden_stop, wire.test_golden_query):
        test(wire.grown)


# ---- address and undefined behaviour


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> str:
    where = tmp_path_factory.mktemp("sanitized")
    options = f'-DREPORTS="{where}/report"'
    source = os.path.join(ROOT, "tests", "c", "sanitizer_options.c")
    build("gcc", *SANITIZE, options, source, *KEEPER, "-o", str(where / "holdfast-keeper"))
    return str(where / "holdfast-keeper")


def assert_no_reports(program: str) -> None:
    for path in glob.glob(os.path.join(os.path.dirname(program), "report*")):
        with open(path) as file:
            pytest.fail(file.read()[:5000])


def test_the_sanitizers_do_report(tmp_path):
    """The build finds what it is made to find: else the tests below would mean nothing."""
    source = tmp_path / "bad.c"
    source.write_text(
        '#include <string.h>\n#include "sys.h"\n'
        "int main(int c, char **v) { char a[8]; volatile int n = 30 + c; (void)v;\n"
        "  if (c == 1) return 1 << n << n; memset(a, 0, n); return a[0]; }\n"
    )
    options = f'-DREPORTS="{tmp_path}/report"'
    extra = os.path.join(ROOT, "tests", "c", "sanitizer_options.c")
    build("gcc", *SANITIZE, options, str(source), extra, "-o", str(tmp_path / "bad"))
    # Linked together, gcc's two libraries have a report path each; of the second the code is enough.
    assert subprocess.run([tmp_path / "bad"], capture_output=True).returncode == 99
    assert subprocess.run([tmp_path / "bad", "x"], capture_output=True).returncode == 99
    assert glob.glob(str(tmp_path / "report*"))


def test_stand_alone_under_sanitizers(sanitized, tmp_path):
    stand_alone([sanitized], tmp_path)
    assert_no_reports(sanitized)


def test_kept_under_sanitizers(sanitized, monkeypatch, tmp_path):
    kept(monkeypatch, sanitized, [], SCENARIOS + NOT_UNDER_VALGRIND)
    protocol.test_a_mapped_plan_must_be_sealed_and_as_long_as_it_says(tmp_path)
    wire.test_golden_launch(wire.grown)
    assert_no_reports(sanitized)


def test_held_under_sanitizers(sanitized, monkeypatch, tmp_path):
    monkeypatch.setattr(helpers_wire, "KEEPER", sanitized)
    monkeypatch.setattr(keeper, "KEEPER", sanitized)
    for number, test in enumerate(HELD):
        (tmp_path / str(number)).mkdir()
        place = Place(str(tmp_path / str(number)))
        try:
            test(place)
        finally:
            place.close()
    assert_no_reports(sanitized)


def test_daemons_under_sanitizers(sanitized, monkeypatch, tmp_path):
    monkeypatch.setattr(helpers_wire, "KEEPER", sanitized)
    for number, test in enumerate((
        daemons.test_it_is_followed_as_long_as_it_ends_well_and_leaves_somebody,
        daemons.test_a_stop_reaches_the_daemon_and_its_group,
        daemons.test_the_owner_names_main,
        daemons.test_an_owner_that_does_not_read_is_told_the_last_move_and_no_less,
        daemons.test_a_keeper_that_is_used_again_knows_nothing_of_the_last_daemon,
        lambda gate: daemons.test_the_name_is_looked_for_until_it_is_there(gate, "later"),
        lambda gate: daemons.test_a_daemon_that_ends_before_its_keeper_has_looked(gate, ["die", 9], 2, 9),
    )):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        with gates(tmp_path / str(number)) as gate:
            test(gate)
    assert_no_reports(sanitized)


def test_logs_under_sanitizers(sanitized, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(helpers_wire, "KEEPER", sanitized)
    for test in (
        log.test_streams_apart,
        log.test_the_plans_descriptors_for_output_are_replaced_and_others_are_not,
        log.test_rotation_counts_on_and_keeps_so_many,
        log.test_a_line_longer_than_any_buffer,
        log.test_a_line_without_end_is_split_at_twice_the_limit,
        log.test_a_prompt_is_seen_and_its_answer_ends_the_line,
        trouble.test_both_streams_share_the_cap,
        trouble.test_a_loss_at_the_end_is_said_when_there_is_room_again,
        trouble.test_the_directory_is_removed,
    ):
        test(tmp_path_factory.mktemp("log"))
    log.test_files_are_what_the_rule_says(tmp_path_factory)
    trouble.test_a_file_size_limit(tmp_path_factory.mktemp("log"), True)
    assert_no_reports(sanitized)


def test_terminals_under_sanitizers(sanitized, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(helpers_wire, "KEEPER", sanitized)
    for test in (
        terminal.test_the_process_has_a_terminal_and_its_session_is_that_ones,
        terminal.test_everything_is_in_the_log_before_the_end_is_told,
        terminal.test_a_client_sees_the_last_lines_and_then_what_comes,
        terminal.test_a_client_that_does_not_read_misses_what_it_is_told_and_nobody_waits,
        terminal.test_several_clients_and_one_too_many,
        terminal.test_what_is_typed_goes_into_the_pipe_and_waits_for_the_service,
        terminal.test_a_service_that_closes_its_stdin,
        terminal.test_the_end_is_told_to_those_who_are_there_and_refused_to_others,
        terminal.test_clients_that_talk_nonsense_are_hung_up_on,
        terminal.test_attach_without_a_socket_of_the_right_kind_is_skipped,
    ):
        directory = tmp_path_factory.mktemp("terminal") / "log"
        directory.mkdir()
        test(directory)
    assert_no_reports(sanitized)


EXTENSION_SCRIPT = r"""
import errno, os, random, sys, threading
sys.path.insert(0, sys.argv[1])
import holdfast
from holdfast.process import _native
assert _native.__file__.startswith(sys.argv[1]), _native.__file__
env = {"PATH": os.environ["PATH"]}  # without the preloaded sanitizer
for way in range(2):
    for private in (True, False):
        done = holdfast.run(["sh", "-c", "cat; echo $0 >&2; exit 3", "x" * 5000], env=env, input=b"in", private=private,
                            capture_output=True)
        assert (done.returncode, done.stdout, len(done.stderr)) == (3, b"in", 5001)
        for command, more in ((["/nonexistent"], {}), (["true"], {"cwd": "/nonexistent"}), (["/"], {})):
            try:
                holdfast.run(command, env=env, private=private, **more)
            except holdfast.SpawnError as error:
                assert error.errno in (errno.ENOENT, errno.EACCES)
            else:
                raise AssertionError(command)
        assert holdfast.run(["sh", "-c", "exit ${#X}"], env=env | {"X": "y" * 200}, private=private).returncode == 200
        holdfast.run(["true"], env=env | {f"X{i}": "y" * 1000 for i in range(200)}, private=private)
    with holdfast.Runner() as runner:
        for code in range(6):
            assert runner.run(["sh", "-c", f"exit {code}"], env=env).returncode == code
    try:
        holdfast.run(["sh", "-c", "(setsid sleep 99 &); trap '' TERM; sleep 98"], env=env, timeout=0.3, grace=0.1)
    except holdfast.TimeoutExpired as error:
        assert error.report.empty
    def work():
        for code in range(5):
            assert holdfast.run(["sh", "-c", f"exit {code}"], env=env).returncode == code
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    _native.forbid_clone3()
    assert not _native.has_clone3()
good = ["x"], {"A": "b"}, "x", None, 0, 0, 0, 0, 0, 0, [], [], [], 0, 0, 15, 1, 0
class Odd:
    def __init__(self, items): self._items = items
    def items(self): return self._items
    def __fspath__(self): return 3
for at, bad in [(0, [None]), (0, ["a\0b"]), (0, []), (0, 3), (0, [Odd(1)]), (1, {"A=": "b"}), (1, {"": "b"}),
                (1, {1: 2}), (1, Odd([()])), (1, Odd([("a",)])), (1, Odd(None)), (1, Odd([["a", "b"]])), (2, None),
                (3, 5), (10, [-1]),
                (10, [2**70]), (10, range(2000)), (11, [()]), (11, [(1, 2)]), (11, [(1, 2, 3)] * 40),
                (12, [-1]), (12, range(300)), (12, [2**40])]:
    arguments = list(good)
    arguments[at] = bad
    try:
        _native.spawn_body(*arguments)
    except (TypeError, ValueError, OverflowError):
        pass
    else:
        raise AssertionError((at, bad))
for body in (b"", b"\0" * 7, b"\0" * 96, b"\xff" * 96, _native.spawn_body(*good)[:-8]):
    try:
        _native.spawn_direct(body, [], int)
    except ValueError:
        pass
    else:
        raise AssertionError(body)
golden = []
for name in sorted(os.listdir(sys.argv[2])):
    with open(os.path.join(sys.argv[2], name)) as file:
        golden.append(bytes.fromhex(file.read()))
random.seed(1)
read = 0
for _ in range(20000):
    packet = bytearray(b"".join(random.choices(golden, k=random.randrange(1, 4))))
    size = len(packet) if random.random() < 0.8 else random.randrange(len(packet) + 1)
    for _ in range(random.randrange(4)):
        packet[random.randrange(len(packet))] = random.randrange(256)
    try:
        read += len(_native.wire_decode(bytes(packet[:size])))
    except ValueError:
        pass
assert read > 1000
print("through")
"""


def test_the_extension_under_sanitizers(sanitized, tmp_path):
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    package = os.path.dirname(holdfast.__file__)
    copy = tmp_path / "site" / "holdfast"
    shutil.copytree(package, copy)
    (extension,) = glob.glob(str(copy / "process" / "_native*.so"))
    build("gcc", *SANITIZE, *PYTHON, *EXTENSION, "-o", extension)
    shutil.copy(sanitized, copy / "process" / "holdfast-keeper")
    done = subprocess.run(
        [sys.executable, "-c", EXTENSION_SCRIPT, str(tmp_path / "site"), os.path.join(ROOT, "tests", "wire", "v1")],
        capture_output=True, text=True, timeout=100,
        env={
            **os.environ, "LD_PRELOAD": library, "PYTHONMALLOC": "malloc", "PYTHONSAFEPATH": "1",
            "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "through\n"), done.stderr[:5000]
    assert_no_reports(sanitized)


EARLY_SCRIPT = """
import os, sys
from holdfast.process import _native
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one processor, first come first served: the keeper
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # speaks before its launcher does
plan = _native.spawn_body(["x"], {}, "x", None, 0, 0, 0, 0, 0, 0, [], [], [], 0, 0, 15, 1, 0)
def look():
    return set(os.listdir("/proc/self/fd"))
keeper, early, *_ = _native.launch(os.fsencode(sys.argv[1]), 0, plan, [], lambda *a: a, int)
assert [records[0][0] for records, fds in early] == [68], early  # ADOPTED came early: this is the case meant
os.close(early[0][1][0])
before = look()
def refuse(fd):
    raise KeyboardInterrupt
for _ in range(3):
    try:
        _native.launch(os.fsencode(sys.argv[1]), 0, plan, [], lambda *a: a, refuse)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError
assert look() == before, (look(), before)
print("through")
"""


def test_a_launch_that_is_given_up_closes_the_descriptors_of_early_reports(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may choose who runs first")
    source = os.path.join(ROOT, "tests", "c", "early_keeper.c")
    build("gcc", "-O1", source, os.path.join(CSRC, "common", "wire.c"), "-o", str(tmp_path / "early"))
    command = [sys.executable, "-c", EARLY_SCRIPT, str(tmp_path / "early")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "through\n"), done.stderr


# ---- valgrind


@pytest.fixture(scope="module")
def under_valgrind(tmp_path_factory) -> tuple[str, list[str]]:
    require("valgrind")
    where = tmp_path_factory.mktemp("valgrind")
    wraps = [f"-Wl,--wrap=hf_pidfd_{name}" for name in ("open", "signal")]
    source = os.path.join(ROOT, "tests", "c", "without_pidfd.c")
    build("gcc", "-g", "-O1", *wraps, source, *KEEPER, "-o", str(where / "holdfast-keeper"))
    options = ["-q", "--error-exitcode=99", f"--log-file={where}/report.%p", "--track-origins=yes"]
    return str(where / "holdfast-keeper"), [str(shutil.which("valgrind")), *options]


def test_stand_alone_under_valgrind(under_valgrind, tmp_path):
    program, wrap = under_valgrind
    stand_alone([*wrap, program], tmp_path, failures=False)
    assert_silent(program)


def test_kept_under_valgrind(under_valgrind, monkeypatch):
    program, wrap = under_valgrind
    kept(monkeypatch, program, wrap, SCENARIOS)
    assert_silent(program)


def assert_silent(program: str) -> None:
    said = ""
    for path in glob.glob(os.path.join(os.path.dirname(program), "report*")):
        with open(path) as file:
            said += file.read()
    assert not said, said[:5000]


# ---- fuzz


FUZZ = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]


def fuzz(tmp_path, seconds: int, sources: list[str], *seeds: str) -> None:
    """A bounded run over the seeds and what grows from them; new findings become seeds."""
    require("clang")
    runtime = subprocess.run(["clang", "-print-runtime-dir"], capture_output=True, text=True).stdout.strip()
    if not glob.glob(os.path.join(runtime, "libclang_rt.fuzzer*")):
        require("libclang_rt.fuzzer")
    build("clang", *FUZZ, *sources, "-o", str(tmp_path / "fuzz"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = subprocess.run(
        [tmp_path / "fuzz", "-runs=300000", f"-max_total_time={seconds}", "-max_len=4096",
         f"-artifact_prefix={tmp_path}/", corpus, *seeds],
        capture_output=True, text=True, timeout=100, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert "INITED" in done.stderr


def test_the_wire_is_fuzzed(tmp_path):
    seeds = os.path.join(ROOT, "tests", "fuzz", "seeds")
    assert len(os.listdir(seeds)) > 20
    sources = [os.path.join(ROOT, "tests", "fuzz", "wire_fuzz.c"), os.path.join(CSRC, "common", "wire.c")]
    fuzz(tmp_path, 10, sources, seeds)


def test_the_keeper_is_fuzzed(tmp_path):
    """All of it but the processes: sequences of packets, owners, output and ends."""

    def packet(data: bytes, n_fds: int = 0) -> bytes:
        return bytes([n_fds]) + len(data).to_bytes(2, "little") + data

    record, body = helpers_wire.SPEC.record, helpers_wire.SPEC.spawn_body
    hello = packet(record("HELLO", {"version": 1, "flags": 0}))
    held = packet(record("HELD", {"flags": 1, "report": b"1.report"}), 2)
    log = {"flags": 1, "rotate_count": 2, "rotate_size": 90, "cap": 400, "label": b"web@1"}
    logs = [packet(record("LOG", {**log, "flags": flags, "rotate_size": size}), 1)
            for flags, size in ((0, 90), (1, 90), (2, 0), (3, 1), (4, 90), (11, 0))]  # fmt: skip
    spawn = packet(record("SPAWN", body=body(["/bin/true"], on_owner_loss=2, options=1)))
    fails = packet(record("SPAWN", body=body(["false"])))
    forks = packet(record("SPAWN", body=body(["/bin/true"], on_owner_loss=2, options=1 | 8192)))
    main, well = packet(record("MAIN", {"pid": (1 << 30) + 2})), b"\x04"
    stop = packet(record("STOP", {"id": 5, "signo": 15, "scope": 1, "grace_ms": 1000}))
    query, ack = packet(record("QUERY", {"id": 9})), packet(record("ACK", {"what": 7}))
    leave, come, silent, exited, empty, orphans = b"\x0f", b"\x17", b"\x07", b"\x0c", b"\x05", b"\x16"
    line, part = bytes([3 | 30 << 3]) + b"a line and the next one's start\n"[-30:], bytes([3 | 5 << 3]) + b"start"
    attach = packet(record("ATTACH"), 1)

    def client(data: bytes) -> bytes:
        return bytes([3 | len(data) // 2 + 16 << 3]) + data

    typed, window = client(record("INPUT", body=b"typed")[:14]), client(record("WINDOW", {"rows": 1, "columns": 2}))
    deaf, quiet, gone = client(b"four"), client(b""), client(b"go")
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for i, steps in enumerate([
        *([hello, held, each, spawn, line * 20, part, query, orphans, leave, come, exited, b"\x06", empty, ack]
          for each in logs),
        *([hello, held, each, spawn, line, part, attach, typed, window, line, deaf, line * 9, attach, quiet, exited,
           empty] for each in logs),
        [hello, held, logs[4], spawn, attach, attach, attach, gone, attach, attach, typed * 9, line * 9, leave, exited],
        [hello, held, logs[1], spawn, line * 3, part, exited, empty, leave],
        [hello, held, spawn, stop, leave, exited, empty, come, ack],
        [hello, logs[3], spawn, line * 20, stop, exited, empty],
        [hello, held, logs[0], fails, leave], [hello, held, leave, come],
        [hello, held, spawn, leave, silent, leave, come, b"\x06"],
        [hello, held, forks, orphans, well, main, query, leave, come, main, well, exited, b"\x06", empty, leave],
        [hello, forks, well, exited], [hello, held, forks, orphans, leave, well, well, come, stop, exited],
        [held, held, spawn, spawn, ack], [hello, logs[0], logs[1], leave],
    ]):  # fmt: skip
        (seeds / str(i)).write_bytes(b"".join(steps))
    parts = ["keeper/stop.c", "keeper/log_files.c", "keeper/log_stamp.c", "common/wire.c", "common/sys.c"]
    sources = [os.path.join(ROOT, "tests", "fuzz", "keeper_fuzz.c"), *(os.path.join(CSRC, part) for part in parts)]
    fuzz(tmp_path, 6, sources, str(seeds))
