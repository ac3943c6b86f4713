"""The anchor: starts a supervisor, starts it again, passes signals on, reaps what falls to it, ends as it is told."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import resource
import select
import shlex
import signal
import socket
import subprocess
import sys

import helpers_wire
import pytest
from conftest import require
from helpers_anchor import LIMIT, ROOT, STAND_IN, AnchorProcess, Journal, kill, state
from helpers_lib import root_only
from helpers_terminal import Terminal
from helpers_wire import marked, raw_record, read_spec, wait_until

from holdfast.daemon import anchor as client

SPEC = read_spec(anchor=True)
RECORDS = ("READY", "FAREWELL", "ANCHOR_QUERY", "DEPOSIT", "WITHDRAW", "TAKE", "DEPOSITED", "ANCHOR_HELLO")
# Version 1, written once: whatever speaks it must go on reading them.
GOLDEN = {
    "READY": ({}, "2000000008000000 0000000000000000"),
    "FAREWELL": ({"status": -7}, "2100000008000000 f9ffffff00000000"),
    "ANCHOR_QUERY": ({"id": 5}, "2200000008000000 0500000000000000"),
    "DEPOSIT": ({"key": b"a b"}, "23000000f0000000 612062" + "00" * 237),
    "WITHDRAW": ({"key": b"a b"}, "24000000f0000000 612062" + "00" * 237),
    "TAKE": ({"index": 7}, "2500000008000000 0700000000000000"),
    "DEPOSITED": ({"index": 7, "key": b"a b"}, "61000000f8000000 0700000000000000 612062" + "00" * 237),
    "ANCHOR_HELLO": (
        {"version": 1, "pid": 4242, "restarts": 3, "deposits": 0, "started_at_ns": 1_750_000_000 * 10**9 + 1},
        "6000000018000000 01000000921000000300000000000000 0100ef64ba3f4918",
    ),
}


# ---- the wire


def test_the_tables_are_the_structures_of_the_code(tmp_path):
    require("gcc")
    kinds = {"u32": "uint32_t", "i32": "int32_t", "u64": "uint64_t", "char[240]": "char[240]"}
    lines = ['#include "anchor_wire.h"', "#include <stddef.h>", "#define SAME(a, b) _Static_assert((a) == (b), #a)"]
    for name in RECORDS:
        record, struct = SPEC.records[name], f"struct {SPEC.records[name].struct_name}"
        lines += [f"SAME(HF_{name}, {record.tag});", f"SAME(sizeof({struct}), {SPEC.size(name)});"]
        for at, kind, key in record.fields:
            lines.append(f"SAME(offsetof({struct}, {key}), {at});")
            same = f"__builtin_types_compatible_p(__typeof__((({struct} *)0)->{key}), {kinds[kind]})"
            lines.append(f"SAME({same}, 1);")
    file = tmp_path / "tables.c"
    file.write_text("\n".join(lines) + "\n")
    command = ["gcc", "-std=gnu11", "-fsyntax-only", "-I", os.path.join(ROOT, "csrc", "common"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(os.path.join(ROOT, "csrc", "common", "anchor_wire.h")) as header:
        tags = re.findall(r"\bHF_([A-Z_]+) = (\d+)", header.read())
    assert {name: int(tag) for name, tag in tags} == {name: SPEC.records[name].tag for name in RECORDS}


def test_golden_bytes_are_version_1():
    for name, (values, data) in GOLDEN.items():
        assert SPEC.record(name, values).hex() == data.replace(" ", ""), name


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def golden(name: str) -> bytes:
    return bytes.fromhex(GOLDEN[name][1])


def test_the_supervisors_side_speaks_golden_bytes():
    ours, theirs = pair()
    with ours:
        ours.send(golden("ANCHOR_HELLO"))
        anchor = client.Anchor.at(theirs.detach())
        assert (anchor.pid, anchor.restarts, anchor.started_at) == (4242, 3, 1_750_000_000.000000001)
        anchor.ready()
        assert ours.recv(100) == golden("READY")
        anchor.farewell(-7)
        assert ours.recv(100) == golden("FAREWELL")
        for _ in range(5):
            number = anchor.query()
        assert [ours.recv(100) for _ in range(5)][-1] == golden("ANCHOR_QUERY")
        assert anchor.answers() == []
        # A full list is followed by another; what a later version adds is skipped.
        members = [{"pid": 100 + i, "flags": i == 0, "name": b"m%d" % i} for i in range(260)]
        first = SPEC.record("MEMBERS", {"id": 5, "n_members": 256, "unlisted": 0, "members": members[:256]})
        second = SPEC.record("MEMBERS", {"id": 5, "n_members": 4, "unlisted": 2, "members": members[256:]})
        ours.send(first)
        assert anchor.answers() == []
        ours.send(raw_record(63, b"unknown") + second)
        (answer,) = anchor.answers()
        assert (answer.id, len(answer.members), answer.unlisted) == (number, 260, 2)
        assert [m.pid for m in answer.members] == list(range(100, 360))
        assert answer.members[0].main and not answer.members[1].main and answer.members[259].name == "m259"
        anchor.close()
        assert ours.recv(100) == b""


def test_a_supervisor_without_an_anchor_tells_nobody():
    anchor = client.Anchor.at(1023)
    assert anchor.pid is None and anchor.fileno() == -1
    anchor.ready()
    anchor.tell_caller()
    assert anchor.query() == 1 and anchor.answers() == []
    anchor.farewell(3)
    anchor.close()


def test_a_socket_that_is_not_an_anchors_is_left_alone():
    ours, theirs = pair()
    with ours, theirs:
        assert client.Anchor.at(theirs.fileno()).pid is None  # nothing in it
        ours.send(b"something else")
        ours.send(golden("FAREWELL"))
        assert client.Anchor.at(theirs.fileno()).pid is None
        assert theirs.recv(100) == b"something else"
        assert client.Anchor.at(theirs.fileno()).pid is None
        assert theirs.recv(100) == golden("FAREWELL")
    r, w = os.pipe()
    assert client.Anchor.at(r).pid is None
    os.close(r)
    os.close(w)
    stream, other = socket.socketpair()
    with stream, other:
        stream.send(golden("ANCHOR_HELLO"))
        assert client.Anchor.at(other.fileno()).pid is None
        assert len(other.recv(100)) == 32


# ---- life, death and restart


def test_a_killed_supervisor_is_started_again_and_its_clients_are_served(tmp_path):
    with AnchorProcess(tmp_path, "ready,gate+ready") as a:
        first = a.started()
        assert a.ask("show").startswith(f"{first.pid} 0 ")
        kill(first.pid)
        again = a.next("hello")
        with a.connect() as sock:  # in the gap: the listening socket is the anchor's
            sock.send(b"show")
            a.open_gate()
            assert a.next("ready").pid == again.pid != first.pid
            assert sock.recv(1000).decode().startswith(f"{again.pid} 1 ")
        assert again.words == f"hello {a.pid}" and again.restarts == 1
        said = a.said()
        assert f"the supervisor, pid {first.pid}, has ended unexpectedly (signal KILL); " in said
        assert said.endswith("it is started again in 0.1 s\n")
        a.ask("farewell 0")
        a.ask("exit 0")
        assert a.wait() == 0


@pytest.mark.parametrize(
    ("lives", "code"),
    [("exit 3", 3), ("exit 0", 0), ("hang_up+exit 4", 4), ("farewell 5+exit 1", 5)],
)
def test_an_exit_before_the_first_ready_is_final(tmp_path, lives, code):
    with AnchorProcess(tmp_path, lives) as a:
        assert a.wait() == code
        a.next("hello")
        assert a.silent()


def test_one_that_is_killed_before_the_first_ready_is_started_again(tmp_path):
    """It may have taken services over, or started some."""
    with AnchorProcess(tmp_path, "die,ready+farewell 7+exit 0") as a:
        a.next("hello")
        assert "(signal KILL)" in a.said()
        assert a.wait() == 7


@pytest.mark.parametrize(("command", "code"), [(["/nonexistent"], 127), (["/"], 126), (["true"], 0)])
def test_a_supervisor_that_cannot_be_run(tmp_path, command, code):
    with AnchorProcess(tmp_path, command=command) as a:
        assert a.wait() == code
        if code:
            assert f"cannot start the supervisor {command[0]}: " in a.said()


@pytest.mark.parametrize(
    "arguments", [["fds=5,"], ["fds="], ["fds=x"], ["fds=3"], ["fds=999"], ["fds=5"] * 2, ["what=1"], ["once=5,5x"]]
)
def test_bad_arguments_start_nothing(tmp_path, arguments):
    with AnchorProcess(tmp_path, arguments=arguments) as a:
        assert a.wait() == 125
        assert "bad arguments" in a.said()
        assert a.silent()


def test_as_many_descriptors_as_the_limit_says(tmp_path):
    (limit,) = re.findall(r"ANCHOR_FDS_MAX = (\d+)", open_text("csrc", "keeper", "anchor.c"))
    numbers = list(range(5, 5 + int(limit)))
    more = [(0, n) for n in [*numbers[1:], numbers[-1] + 1]]
    with AnchorProcess(tmp_path, arguments=["fds=" + ",".join(map(str, numbers))], more=more) as a:
        a.started()
        shown = a.ask("show").replace(",", "").replace("]", " ").split()
        assert {str(n) for n in numbers} <= set(shown)
    with AnchorProcess(tmp_path, arguments=["fds=" + ",".join(map(str, [*numbers, numbers[-1] + 1]))], more=more) as a:
        assert a.wait() == 125


def open_text(*parts: str) -> str:
    with open(os.path.join(ROOT, *parts)) as file:
        return file.read()


@pytest.mark.parametrize(("how", "code"), [("exit 1", 7), ("die", 7)])
def test_the_anchor_ends_with_the_status_of_the_farewell(tmp_path, how, code):
    """However it ends after it has said so."""
    with AnchorProcess(tmp_path, "ready+farewell 7") as a:
        a.started()
        assert a.ask("show")  # and not before it ends
        a.ask(how)
        assert a.wait() == code
        assert a.silent()


@pytest.mark.parametrize("how", ["exit 0", "exit 3", "hang_up+exit 0"])
def test_an_end_without_farewell_is_no_end(tmp_path, how):
    with AnchorProcess(tmp_path, f"ready+{how},ready") as a:
        a.started()
        again = a.started()
        assert again.restarts == 1
        assert f"(exit code {how[-1]})" in a.said()


def test_a_socket_that_was_closed_is_no_end(tmp_path):
    with AnchorProcess(tmp_path, "ready+hang_up") as a:
        first = a.started()
        assert_idle(a)  # a closed socket must not make it spin
        assert a.ask("show").startswith(f"{first.pid} 0 ")
        assert a.silent()


def test_pauses_double_while_lives_are_short(tmp_path):
    with AnchorProcess(tmp_path, "ready+die,ready+die,ready+die,ready") as a:
        lives = [a.started() for _ in range(4)]
    gaps = [(after.at_ns - before.at_ns) / 1e9 for before, after in itertools.pairwise(lives)]
    for gap, pause in zip(gaps, (0.1, 0.2, 0.4), strict=True):
        assert pause <= gap < LIMIT


def test_pauses_end_at_five_seconds_and_a_long_life_ends_them(tmp_path):
    """TERM cuts each pause short, so that the announcements alone need no time."""
    with AnchorProcess(tmp_path, "ready") as a:
        announced = []
        for lives in range(8):
            life = a.started()
            if lives:
                a.next("got TERM")
            kill(life.pid)
            announced += re.findall(r"again (.*)\n", a.said())
            a.signal(signal.SIGTERM)
        assert announced == [f"in {pause} s" for pause in ("0.1", "0.2", "0.4", "0.8", "1.6", "3.2", "5", "5")]
        life = a.started()
        a.next("got TERM")
        select.select([], [], [], 1.05)  # what is tested is a life of a second
        kill(life.pid)
        assert "it is started again now\n" in a.said()
        life = a.started()
        a.next("got TERM")
        kill(life.pid)
        assert "again in 0.1 s\n" in a.said()


# ---- signals


def test_signals_are_passed_on_once(tmp_path):
    with AnchorProcess(tmp_path) as a:
        first = a.started()
        for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2"):
            a.signal(getattr(signal, "SIG" + name))
            assert a.next("got").words == f"got {name}"
        for name in ("WINCH", "CONT", "ALRM", "PIPE", "CHLD", "URG", "RTMIN"):
            a.signal(getattr(signal, "SIG" + name))
        a.signal(signal.SIGUSR1)  # signals of one number less than others are seen first: it comes last, and alone
        assert a.next("got").words == "got USR1"
        assert a.ask("show").startswith(f"{first.pid} 0 ") and a.silent()


def test_signals_before_ready_wait_for_it(tmp_path):
    with AnchorProcess(tmp_path, "gate+ready") as a:
        a.next("hello")
        a.signal(signal.SIGTERM)
        a.signal(signal.SIGUSR2)
        wait_until(lambda: pending(a.pid) == 0, "the anchor takes its signals")
        a.open_gate()
        a.next("ready")
        assert {a.next("got").words, a.next("got").words} == {"got TERM", "got USR2"}
        assert a.ask("show") and a.silent()


def pending(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return int(re.findall(r"ShdPnd:\s*(\w+)", file.read())[0], 16)


def test_a_stop_in_a_pause_starts_a_supervisor_at_once(tmp_path):
    with AnchorProcess(tmp_path, "ready+die,ready+die,ready+die,ready+die,gate+ready") as a:
        for _ in range(4):
            a.started()
        said = ""
        while said.count("\n") < 4:
            said += a.said()
        assert "again in 0.8 s\n" in said
        a.signal(signal.SIGTERM)
        assert a.next("hello").restarts == 4
        a.open_gate()
        a.next("ready")
        a.next("got TERM")
        a.ask("farewell 0")
        a.ask("exit 0")
        assert a.wait() == 0 and a.silent()


def test_a_stop_outlives_the_supervisor_that_was_told(tmp_path):
    """Else the services would run on, and who asked would wait for ever.  HUP may be why it died: not repeated."""
    with AnchorProcess(tmp_path) as a:
        first = a.started()
        a.signal(signal.SIGTERM)
        a.signal(signal.SIGHUP)
        assert {a.next("got").words, a.next("got").words} == {"got TERM", "got HUP"}
        for _ in range(2):
            kill(first.pid)
            first = a.started()
            a.next("got TERM")
        assert a.ask("show") and a.silent()


# ---- the terminal


@contextlib.contextmanager
def in_terminal(tmp_path, lives: str):
    """A shell in a terminal, with an anchor as its foreground job; and what its stand-ins say."""
    journal = Journal(tmp_path)
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    words = [helpers_wire.KEEPER, "anchor", "--", sys.executable, "-I", "-S", str(stand_in), journal.fifo, lives]
    try:
        with Terminal(["bash", "--norc", "-i"]) as terminal:
            terminal.send(" ".join(map(shlex.quote, words)) + "\n")
            yield terminal, journal
    finally:
        os.close(journal.journal)


def test_keys_reach_the_supervisor_exactly_once(tmp_path):
    with in_terminal(tmp_path, "ready") as (t, journal):
        anchor = int(journal.next("hello").words.split()[1])
        supervisor = journal.next("ready").pid
        for key, name in (("\x03", "INT"), ("\x1c", "QUIT"), ("\x03", "INT")):
            t.send(key)
            journal.next(f"got {name}")
        kill(anchor, signal.SIGUSR1)  # comes last, and nothing came between
        journal.next("got USR1")
        t.send("\x1a")  # both stop, and the shell has its terminal back
        t.expect("Stopped")
        t.prompt()
        wait_until(lambda: (state(anchor), state(supervisor)) == ("T", "T"))
        t.send("fg\n")
        journal.next("got CONT")
        kill(anchor, signal.SIGTERM)
        journal.next("got TERM")
        assert journal.silent()
        kill(anchor)
        t.prompt()
        wait_until(lambda: not os.path.exists(f"/proc/{supervisor}"), "the supervisor goes with its anchor")


def test_a_key_during_a_restart_is_obeyed_exactly_once(tmp_path):
    with in_terminal(tmp_path, "ready,gate+ready,gate+ready") as (t, journal):
        anchor = int(journal.next("hello").words.split()[1])
        kill(journal.next("ready").pid)
        second = journal.next("hello").pid
        t.send("\x03")
        wait_until(lambda: pending(second), "the key has arrived")
        journal.open_gate()
        journal.next("ready")
        journal.next("got INT")
        kill(anchor, signal.SIGUSR1)
        journal.next("got USR1")
        assert journal.silent()
        kill(second)  # it had it before it was ready: its successor needs it, too
        journal.next("hello")
        journal.open_gate()
        journal.next("ready")
        journal.next("got INT")
        assert journal.silent()
        kill(anchor)
        t.prompt()


# ---- what it gives and what it keeps


def test_descriptors_of_a_supervisor_are_those_listed(tmp_path):
    """Others that the anchor was started with are closed; `once` is for the first supervisor only."""
    r, w = os.pipe()
    with AnchorProcess(tmp_path, arguments=["fds=4,5", "once=7"], more=[(w, 7), (w, 6), (w, 8), (w, 200)]) as a:
        os.close(w)
        a.started()
        first = a.ask("show")
        assert "fds=[0, 1, 2, 3, 4, 5, 7]" in first
        assert not select.select([r], [], [], 0)[0]
        kill(int(first.split()[0]))
        assert select.select([r], [], [], LIMIT)[0] and os.read(r, 1) == b""  # no copy of it is left anywhere
        a.started()
        assert "fds=[0, 1, 2, 3, 4, 5]" in a.ask("show")
    os.close(r)


def test_closed_standard_descriptors_are_open_in_the_supervisor(tmp_path):
    script = 'exec "$@" 0<&- 1<&- 2<&-'
    with AnchorProcess(tmp_path, wrap=["/bin/sh", "-c", script, "sh"]) as a:
        a.started()
        assert "fds=[0, 1, 2, 3, 4, 5]" in a.ask("show")


def test_the_supervisor_does_not_ignore_its_children(tmp_path):
    with AnchorProcess(tmp_path, wrap=["/bin/sh", "-c", 'trap "" CHLD; exec "$@"', "sh"]) as a:
        supervisor = a.started()
        a.ask("orphans 3")
        with open(f"/proc/{supervisor.pid}/status") as file:
            ignored = int(re.findall(r"SigIgn:\s*(\w+)", file.read())[0], 16)
        assert not ignored & 1 << (signal.SIGCHLD - 1)


def test_the_supervisor_has_the_limits_and_the_mask_that_the_anchor_was_given(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = 'ulimit -S -n 321 && exec "$@"'
    with AnchorProcess(tmp_path, wrap=["/bin/sh", "-c", script, "sh"]) as a:
        a.started()
        shown = a.ask("show")
        assert f"nofile=(321, {limits[1]})" in shown
        assert "blocked=['HUP', 'INT', 'QUIT', 'TERM', 'USR1', 'USR2']" in shown


def test_what_the_supervisors_side_takes_over_is_not_inherited(tmp_path):
    script = f"""
import os, signal, subprocess, sys
sys.path[:0] = {sys.path!r}
from holdfast.daemon.anchor import SIGNALS, Anchor
anchor = Anchor.find()
assert anchor.pid == os.getppid() and anchor.restarts == 0
assert 0 <= __import__("time").time() - anchor.started_at < 600
for fd in range(3, 8):
    assert os.path.exists(f"/proc/self/fd/{{fd}}") and not os.get_inheritable(fd), fd
here = "print(*sorted(os.listdir('/proc/self/fd')))"
child = [sys.executable, "-I", "-S", "-c", "import os; " + here]
assert subprocess.check_output(child, close_fds=False, text=True).split() == ["0", "1", "2", "3"]
assert SIGNALS <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
for each in SIGNALS:
    signal.signal(each, lambda *_: None)
anchor.ready()
assert not SIGNALS & signal.pthread_sigmask(signal.SIG_BLOCK, [])
anchor.tell_caller()
anchor.tell_caller()
assert not os.path.exists("/proc/self/fd/7")
number = anchor.query()
poll = __import__("select").poll()
poll.register(anchor.fileno(), 1)
assert poll.poll(30000)
(answer,) = anchor.answers()
assert (answer.id, answer.unlisted) == (number, 0)
assert [(m.pid, m.main) for m in answer.members] == [(os.getpid(), True)]
anchor.farewell(9)
"""
    r, w = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    command = [sys.executable, "-I", "-c", script]
    arguments = ["fds=4,5,6", "once=7"]
    with AnchorProcess(tmp_path, command=command, arguments=arguments, more=[(null, 6), (w, 7)]) as a:
        os.close(w)
        os.close(null)
        status = a.wait()
        assert status == 9, a.said()
    assert os.read(r, 100) == b"up\n" and os.read(r, 100) == b""
    os.close(r)


# ---- the tree below


def test_what_loses_its_parent_is_reaped(tmp_path):
    with AnchorProcess(tmp_path) as a:
        first = a.started()
        a.ask("orphans 20")
        wait_until(lambda: a.children() == [first.pid], "nothing but the supervisor is left")


def test_an_orphan_outlives_the_supervisor_and_the_next_one_is_told_of_it(tmp_path):
    with AnchorProcess(tmp_path) as a:
        first = a.started()
        a.ask("linger")
        kill(first.pid)
        second = a.started()
        orphan = [pid for pid in a.children() if pid != second.pid]
        assert len(orphan) == 1 and state(orphan[0]) == "S"
        kill(orphan[0])
        wait_until(lambda: a.children() == [second.pid], "the orphan is reaped")


QUERY = """
import os, select, sys
sys.path[:0] = {path!r}
from holdfast.daemon.anchor import Anchor
anchor = Anchor.find()
children = []
if sys.argv[1] == "deep":
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(w, b"x")
        select.select([], [], [])
    os.read(r, 1)
else:
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if pid == 0:
            select.select([], [], [])
        children.append(pid)
for _ in range(2):
    number = anchor.query()
    answers = []
    while not answers:
        assert select.select([anchor.fileno()], [], [], 30)[0], "no answer"
        answers = anchor.answers()
    ((id_, members, unlisted),) = answers
    assert (id_, unlisted) == (number, 0)
    pids = [m.pid for m in members]
    assert len(set(pids)) == len(pids)
    if sys.argv[1] == "deep":
        assert [m.left_group for m in members] == [False, True, True] and pids[0] == os.getpid()
    else:
        assert set(pids) == {{os.getpid(), *children}}
    assert [m.pid for m in members if m.main] == [os.getpid()]
anchor.farewell(11)
"""


@pytest.mark.parametrize("many", ["0", "deep", "255", "256"])
def test_the_supervisor_can_ask_who_is_there(tmp_path, many):
    command = [sys.executable, "-I", "-c", QUERY.format(path=sys.path), many]
    with AnchorProcess(tmp_path, command=command) as a:
        assert a.wait() == 11, a.said()


def test_a_supervisor_that_does_not_read_its_answers_holds_nobody_up(tmp_path):
    """It asks until the socket is full, and then dies: the anchor has not waited."""
    script = r"""
import os, select, socket, struct
anchor = socket.socket(fileno=3)
anchor.setblocking(False)
anchor.send(struct.pack("<HHIQ", 32, 0, 8, 0))
for i in range(10000):
    if not select.select([], [anchor], [], 0.3)[1]:
        os._exit(5)
    try:
        anchor.send(struct.pack("<HHIII", 34, 0, 8, i, 0))
    except BlockingIOError:
        pass
raise SystemExit("the socket is never full")
"""
    with AnchorProcess(tmp_path, command=[sys.executable, "-I", "-S", "-c", script]) as a:
        for _ in range(2):
            assert "(exit code 5)" in a.said()


def test_a_stranger_is_left_alone(tmp_path):
    """A child that the program had before it became the anchor belongs to nobody here."""
    command = [sys.executable, "-I", "-c", QUERY.format(path=sys.path), "0"]
    script = 'exec 9<&0; cat <&9 >/dev/null & exec "$@" 9<&-'
    r, w = os.pipe()
    with AnchorProcess(tmp_path, command=command, wrap=["/bin/sh", "-c", script, "sh"], more=[(r, 0)]) as a:
        os.close(r)
        assert a.wait() == 11, a.said()
        assert len(marked(a.marker)) == 1  # the cat, alive
        os.close(w)
        wait_until(lambda: not marked(a.marker))


def test_the_supervisor_goes_with_its_anchor_and_nobody_else(tmp_path):
    with AnchorProcess(tmp_path) as a:
        first = a.started()
        a.ask("linger")
        held = os.pidfd_open(first.pid)
        a.signal(signal.SIGKILL)
        assert select.select([held], [], [], LIMIT)[0]
        os.close(held)
        assert a.wait() == -signal.SIGKILL
        wait_until(lambda: len(marked(a.marker)) == 1, "what was not the supervisor lives on")


def test_a_frozen_supervisor_hangs_nothing(tmp_path):
    with AnchorProcess(tmp_path) as a:
        first = a.started()
        a.ask("orphans 3")
        kill(first.pid, signal.SIGSTOP)
        a.signal(signal.SIGTERM)
        wait_until(lambda: a.children() == [first.pid])
        assert_idle(a)
        kill(first.pid, signal.SIGCONT)
        assert {a.next("got").words, a.next("got").words} == {"got TERM", "got CONT"}
        kill(first.pid, signal.SIGSTOP)
        kill(first.pid)
        assert a.started().restarts == 1
        a.next("got TERM")


# ---- cost


def assert_idle(a: AnchorProcess) -> None:
    """It neither spins nor wakes up all the time."""
    keeper = object.__new__(helpers_wire.RawKeeper)
    keeper.pid = a.pid
    keeper.assert_idle()


def test_an_idle_anchor_costs_next_to_nothing(tmp_path):
    with AnchorProcess(tmp_path) as a:
        a.started()
        a.ask("orphans 3")
        assert_idle(a)
        with open(f"/proc/{a.pid}/smaps_rollup") as file:
            rollup = {key: int(value) for key, value in re.findall(r"(\w+): +(\d+) kB", file.read())}
        assert rollup["Anonymous"] <= 32
        with open(f"/proc/{a.pid}/comm") as file:
            assert file.read() == "holdfast-anchor\n"
        assert len(os.listdir(f"/proc/{a.pid}/fd")) == 3 + 2 + 3  # standard, listed; socket, pidfd, signals


# ---- PID 1


@root_only
def test_as_pid_1_of_a_container(tmp_path):
    """Strangers' orphans are reaped, signals from inside cannot end it, and a stop from outside is passed on."""
    require("unshare")
    wrap = ["/usr/bin/env", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with AnchorProcess(tmp_path, wrap=wrap) as a:
        assert a.next("hello").words == "hello 1"
        a.next("ready")
        a.ask("orphans 20")
        (outside,) = a.children()  # unshare's child, whose number inside is 1
        wait_until(lambda: len(children_of(outside)) == 1, "all are reaped")
        supervisor = children_of(outside)[0]
        kill(supervisor)
        assert a.started().restarts == 1
        kill(outside, signal.SIGTERM)
        a.next("got TERM")
        a.ask("farewell 6")
        a.ask("exit 0")
        assert a.wait() == 6


@root_only
def test_pid_1_cannot_be_killed_from_inside(tmp_path):
    require("unshare")
    wrap = ["/usr/bin/env", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = (
        "import os, signal, socket, struct; s = socket.socket(fileno=3);"
        "[os.kill(1, n) for n in range(1, 32) if n not in (1, 2, 3, 10, 12, 15)];"
        "s.send(struct.pack('<HHIiI', 33, 0, 8, 13, 0))"
    )
    with AnchorProcess(tmp_path, wrap=wrap, command=[sys.executable, "-I", "-S", "-c", script]) as a:
        assert a.wait() == 13


DEPOSITS = r"""
import os, socket, struct, sys
anchor = socket.socket(fileno=3)
restarts, most = struct.unpack_from("<8xIiII", anchor.recv(65536))[2:]
def say(tag, body, *fds):
    data = struct.pack("<HHI", tag, 0, len(body)) + body
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    anchor.sendmsg([data], rights)
def key(text):
    return text.encode().ljust(240, b"\0")
def take(index):
    say(37, struct.pack("<II", index, 0))
    data, fds, _, _ = socket.recv_fds(anchor, 65536, 4)
    tag, _, size, at, _, name = struct.unpack("<HHIII240s", data)
    assert (tag, size, at, len(fds)) == (97, 248, index, bool(name[0])), (tag, size, at, fds, name)
    return name.rstrip(b"\0").decode(), fds
def all_of_them():
    found = {}
    while (taken := take(len(found)))[0]:
        found[taken[0]] = os.readlink(f"/proc/self/fd/{taken[1][0]}")
        os.close(taken[1][0])
    return found
def opened(name):
    return os.open(name, os.O_RDONLY)
if restarts == 0:
    assert most == 512 and all_of_them() == {}
    say(35, key("one"), opened("/"))
    say(35, key("two"), opened("/dev"))
    say(35, key("one"), opened("/usr"))  # replaced
    say(35, key("three"), opened("/"))
    say(36, key("three"))
    say(36, key("never there"))
    say(35, key("nothing along"))
    say(35, key(""), opened("/"))
    say(35, b"x" * 240, opened("/"))
    say(35, b"short", opened("/"))
    say(35, key("two of them"), opened("/proc"), opened("/"))
    say(32, bytes(8), opened("/"))  # READY brings nothing
    say(63, bytes(8), opened("/"), opened("/"), opened("/"))
    assert all_of_them() == {"one": "/usr", "two": "/dev", "two of them": "/proc"}, all_of_them()
elif restarts == 1:
    assert all_of_them() == {"one": "/usr", "two": "/dev", "two of them": "/proc"}
    say(36, key("one"))
    for number in range(600):  # more than it keeps
        say(35, key(f"many {number}"), opened("/"))
    found = all_of_them()
    assert len(found) == 512 and "many 509" in found and "many 510" not in found and found["two"] == "/dev"
    assert take(2 ** 32 - 1) == ("", [])
    for name in found:
        say(36, key(name))
    say(35, key("last"), opened("/"))
else:
    assert all_of_them() == {"last": "/"}
    links = [os.readlink(f"/proc/{os.getppid()}/fd/{n}") for n in os.listdir(f"/proc/{os.getppid()}/fd")]
    assert links.count("/") == 1 and not {"/usr", "/dev", "/proc"} & set(links), links
    say(33, struct.pack("<iI", 17, 0))
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_deposits_are_kept_for_the_next_supervisor(tmp_path):
    """Whatever is sent: what is no deposit leaves nothing open."""
    with AnchorProcess(tmp_path, command=[sys.executable, "-I", "-S", "-c", DEPOSITS]) as a:
        assert a.wait() == 17, a.said()


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


# ---- under sanitizers


def test_scenarios_under_sanitizers(tmp_path, monkeypatch):
    require("gcc")
    sources = [file for part in ("keeper", "common") for file in glob.glob(os.path.join(ROOT, "csrc", part, "*.c"))]
    built = str(tmp_path / "holdfast-keeper")
    done = subprocess.run(
        ["gcc", "-std=gnu11", "-I", os.path.join(ROOT, "csrc", "common"), "-g", "-O1", "-fno-omit-frame-pointer",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f'-DREPORTS="{tmp_path}/report"',
         os.path.join(ROOT, "tests", "c", "sanitizer_options.c"), *sources, "-o", built],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(helpers_wire, "KEEPER", built)
    for i, (test, *arguments) in enumerate(
        [
            (test_a_killed_supervisor_is_started_again_and_its_clients_are_served,),
            (test_a_supervisor_that_cannot_be_run, ["/nonexistent"], 127),
            (test_bad_arguments_start_nothing, ["fds=5,"]),
            (test_as_many_descriptors_as_the_limit_says,),
            (test_signals_are_passed_on_once,),
            (test_a_stop_outlives_the_supervisor_that_was_told,),
            (test_a_stop_in_a_pause_starts_a_supervisor_at_once,),
            (test_descriptors_of_a_supervisor_are_those_listed,),
            (test_what_loses_its_parent_is_reaped,),
            (test_deposits_are_kept_for_the_next_supervisor,),
            (test_the_supervisor_can_ask_who_is_there, "256"),
            (test_a_supervisor_that_does_not_read_its_answers_holds_nobody_up,),
            (test_a_stranger_is_left_alone,),
            (test_a_frozen_supervisor_hangs_nothing,),
        ]
    ):
        where = tmp_path / str(i)
        where.mkdir()
        test(where, *arguments)
    for path in glob.glob(str(tmp_path / "report*")):
        with open(path) as file:
            pytest.fail(file.read()[:5000])
