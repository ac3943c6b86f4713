"""Contained: whatever a tree does, stop, the end of `with`, run's time limit leave nothing of it.

Checked from outside: every process of a tree carries a marker in its environment, and after each test
nobody with that marker may be left (the `make_tree` fixture looks).
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest
from helpers_trees import (
    LIMIT,
    Tree,
    build_tree_program,
    copy_package,
    kill_marked,
    left_of,
    make_tree,
    marked,
    stat_fields,
    state,
    tree_program,  # noqa: F401  (a fixture)
    wait_for,
)

import holdfast

__all__ = ["make_tree"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# shape, mode, count, processes in all
SHAPES = {
    "ignore TERM": ("plain", "i", 3, 4),
    "live through TERM": ("plain", "l", 3, 4),
    "end by TERM": ("plain", "x", 3, 4),
    "setsid and double fork": ("daemons", "i", 8, 9),
    "50 sessions": ("sessions", "i", 50, 51),
    "stopped": ("stopped", "i", 3, 4),
    "children of threads": ("threads", "i", 8, 9),
    "100 levels": ("chain", "i", 100, 100),
    "relays": ("relays", "i", 32, None),
    "storm": ("storm", "i", 32, None),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def check(report, processes):
    """The report of a tree that has been stopped to the end."""
    assert report.empty and not report.survivors
    if processes is not None:
        assert len(report.members) == processes
        assert report.unlisted == 0
    assert sum(m.main for m in report.members) == 1
    assert {m.name for m in report.members} == {"tree"}


@shapes
def test_stop_leaves_nothing(make_tree, shape):
    tree = make_tree(*shape[:3])
    process = tree.spawn(new_session=shape[0] == "chain")
    report = process.stop(grace=0 if shape[0] == "storm" else 0.1)
    assert left_of(tree.mark) == []
    check(report, shape[3])
    if shape[0] in ("daemons", "sessions"):
        assert len(report.left_group) == shape[2]
    if shape[1] == "i":
        assert report.killed_count >= (shape[3] or 1)
        assert all(m.killed for m in report.members if shape[3])
    if shape[1] == "x":
        assert report.killed == () and report.killed_count == 0
        assert set(tree.lines("T")) == set(tree.lines("R"))
    assert process.wait(0).signal == (None if shape[1] == "x" else 9)
    process.close()


@shapes
def test_the_end_of_with_leaves_nothing(make_tree, shape):
    tree = make_tree(*shape[:3])
    with tree.spawn(grace=0.05):
        assert marked(tree.mark)
    assert left_of(tree.mark) == []


@pytest.mark.parametrize("through", ["run", "Runner.run"])
@shapes
def test_a_time_limit_leaves_nothing(make_tree, shape, through):
    tree = make_tree(*shape[:3])
    options = {"env": tree.env, "pass_fds": [tree.writer], "timeout": 0.25, "grace": 0.05, "capture_output": True}
    with pytest.raises(holdfast.TimeoutExpired) as caught:
        if through == "run":
            holdfast.run(tree.args, **options)
        else:
            with holdfast.Runner() as runner:
                runner.run(tree.args, **options)
    assert left_of(tree.mark) == []
    check(caught.value.report, None)


# ---- what a stop does, step by step


@pytest.mark.parametrize("own_group", [False, True], ids=["owner's group", "own group"])
@pytest.mark.parametrize("shape", ["plain", "sessions", "daemons"])
def test_everybody_is_told_once_before_the_kill(make_tree, shape, own_group):
    # The main process ends by TERM, so those outside of its group are told when it has.
    tree = make_tree(shape, "x", 6)
    with tree.spawn(process_group=0 if own_group else None) as process:
        report = process.stop(grace=LIMIT)
    tree.read_to_the_end()
    ready = set(tree.lines("R"))
    assert len(ready) == 7
    assert tree.counts("T") == dict.fromkeys(ready, 1)
    assert report.signalled_count == 7 and report.killed_count == 0
    assert report.duration < LIMIT  # the grace ended early


@pytest.mark.parametrize("own_group", [False, True], ids=["owner's group", "own group"])
def test_nobody_is_told_twice_when_main_ends_late(make_tree, own_group):
    tree = make_tree("plain", "l", 5)
    with tree.spawn(process_group=0 if own_group else None) as process:
        main = process.pid
        watcher = threading.Thread(target=lambda: (tree.wait_for("T", 6), process.kill()))
        watcher.start()
        report = process.stop(grace=0.5)  # main ends in the grace: the second pass
        watcher.join()
    tree.read_to_the_end()
    assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)
    assert {m.pid for m in report.killed} == set(tree.lines("R")) - {main}


@pytest.mark.parametrize("own_group", [False, True], ids=["owner's group", "own group"])
def test_children_of_those_that_end_by_the_signal_are_told_too(make_tree, own_group):
    # A middle process dies of TERM while its child is still to be found.
    for _ in range(5):
        tree = make_tree("middles", "l", 12)
        with tree.spawn(process_group=0 if own_group else None) as process:
            report = process.stop(grace=0.3)
        tree.read_to_the_end()
        assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)
        assert report.signalled_count == 25 and len(report.killed) == 13


def test_the_deepest_are_told_too(make_tree):
    tree = make_tree("chain", "x", 100)
    with tree.spawn() as process:
        report = process.stop(grace=LIMIT)
    tree.read_to_the_end()
    assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)
    assert len(tree.lines("R")) == 100 and report.killed_count == 0


def test_a_helper_born_in_the_grace_is_not_told(make_tree):
    # A program that cleans up with another program's help must not have that shot down at once.
    tree = make_tree("helper")
    with tree.spawn() as process:
        report = process.stop(grace=0.5)
    tree.read_to_the_end()
    (helper,) = tree.lines("R")
    assert tree.lines("T") == [process.pid]
    assert {m.pid for m in report.killed} == {process.pid, helper}
    assert [m.pid for m in report.signalled] == [process.pid]


def test_a_stopped_process_is_woken_to_hear_it(make_tree):
    tree = make_tree("stopped", "x", 3)
    with tree.spawn() as process:
        report = process.stop(grace=LIMIT)
    tree.read_to_the_end()
    assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)
    assert set(tree.lines("C")) <= set(tree.lines("R")) and len(tree.lines("T")) == 4
    assert report.killed_count == 0


def told(tree, number):
    """Who has been told when `number` have; the tree is still there, in its grace."""
    tree.wait_for("T", number)
    return set(tree.lines("T"))


@pytest.mark.parametrize("scope", ["main", "group", "tree"])
def test_scope(make_tree, scope):
    # Two in main's group, two daemons outside of it: the shapes are put together by a shell.
    inside = make_tree("plain", "l", 1)
    outside = Tree(inside.args[0], "daemons", "l", 2)
    try:
        script = '"$0" "$1" daemons l 2 & exec "$0" "$2" plain l 1'
        args = ["sh", "-c", script, inside.args[0], str(outside.writer), str(inside.writer)]
        with holdfast.spawn(
            args, env=inside.env, pass_fds=[inside.writer, outside.writer], process_group=0, stop_scope=scope
        ) as process:
            os.close(inside.writer), os.close(outside.writer)
            inside.writer = outside.writer = -1
            inside.wait_for("M"), outside.wait_for("M")
            report = process.stop(grace=0.4)
        inside.read_to_the_end()
        outside.read_to_the_end()
        (starter,) = outside.lines("M")
        group = {*inside.lines("R"), starter}
        everybody = group | set(outside.lines("R"))
        expected = {"main": {process.pid}, "group": group, "tree": everybody}[scope]
        assert {m.pid for m in report.signalled} == expected
        assert {*inside.lines("T"), *outside.lines("T")} == expected
        assert report.scope == scope
        assert {m.pid for m in report.killed} == everybody
        assert {m.pid for m in report.left_group} == everybody - group
    finally:
        outside.close()


def test_no_grace_is_a_kill_at_once(make_tree):
    tree = make_tree("plain", "x", 4)
    with tree.spawn() as process:
        report = process.stop(grace=0)
    tree.read_to_the_end()
    assert tree.lines("T") == [] and report.signalled == ()
    assert len(report.killed) == 5 and process.status.signal == 9


def test_another_signal(make_tree):
    tree = make_tree("plain", "l", 2)
    with tree.spawn(stop_signal="USR1") as process:
        report = process.stop(grace=LIMIT)
    assert report.signal == signal.SIGUSR1 and process.status.signal == signal.SIGUSR1
    assert report.killed == () and tree.lines("T") == []


def test_a_second_stop_shortens_the_first(make_tree):
    tree = make_tree("plain", "l", 2)
    reports = []
    with tree.spawn() as process:
        first = threading.Thread(target=lambda: reports.append(process.stop(grace=600)))
        first.start()
        tree.wait_for("T", 3)
        reports.append(process.stop(grace=0))
        first.join(LIMIT)
        assert not first.is_alive()
    tree.read_to_the_end()
    assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)
    assert reports[0] == reports[1] and len(reports[0].killed) == 3


def test_a_second_stop_never_lengthens_the_first(make_tree):
    tree = make_tree("plain", "l", 1)
    with tree.spawn() as process:
        first = threading.Thread(target=process.stop, args=(0.5,))
        first.start()
        tree.wait_for("T", 2)
        report = process.stop(grace=600)
        first.join(LIMIT)
    assert report.empty and len(report.killed) == 2


def test_stop_of_an_empty_tree():
    with holdfast.spawn(["true"]) as process:
        process.wait_empty(LIMIT)
        report = process.stop()
        assert report.empty and report.members == () and report.signalled_count == 0
        assert process.wait().code == 0
        assert process.stop() == report


def test_a_tree_whose_main_process_has_ended_lives_until_it_is_stopped(make_tree):
    tree = make_tree("orphans", "x", 4)
    with tree.spawn() as process:
        assert process.wait(LIMIT).code == 5
        with pytest.raises(holdfast.TimeoutExpired):
            process.wait_empty(0.05)
        assert len(marked(tree.mark)) == 4
        report = process.stop(grace=LIMIT)
    tree.read_to_the_end()
    assert set(tree.lines("T")) == set(tree.lines("R")) - {process.pid}
    assert len(report.signalled) == 4 and not any(m.main for m in report.members)


def test_run_stops_what_its_command_leaves_behind(make_tree):
    tree = make_tree("orphans", "i", 4)
    done = holdfast.run(tree.args, env=tree.env, pass_fds=[tree.writer], grace=0.1)
    assert left_of(tree.mark) == []
    assert done.returncode == 5
    assert len(done.report.killed) == 4


@pytest.mark.parametrize("mode", ["i", "x"])
def test_members_beyond_the_table_are_counted(make_tree, mode):
    tree = make_tree("plain", mode, 299)
    with tree.spawn() as process:
        report = process.stop(grace=0.2 if mode == "i" else LIMIT)
    assert len(report.members) == 256 and report.unlisted == 44
    assert report.signalled_count == 300
    assert report.killed_count == (300 if mode == "i" else 0)
    assert report.empty


# ---- strangers


def test_the_owner_and_its_other_children_are_not_signalled(make_tree):
    # The tree is in our own process group, and so is a direct child of ours.
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        for options in ({}, {"stop_scope": "tree"}, {"stop_scope": "main"}):
            again = make_tree("plain", "i", 2)
            with again.spawn(**options) as process:
                assert os.getpgid(process.pid) == os.getpgrp() == os.getpgid(stranger.pid)
                process.signal_tree("WINCH")
                process.stop(grace=0.1)
        assert stranger.poll() is None and caught == []
    finally:
        signal.signal(signal.SIGTERM, before)
        stranger.kill()
        stranger.wait()


def test_another_tree_is_not_touched(make_tree):
    mine, other = make_tree("plain", "l", 2), make_tree("plain", "l", 2)
    with other.spawn() as process:
        with mine.spawn() as first:
            first.stop(grace=0.05)
        assert len(marked(other.mark)) == 3 and process.poll() is None
        assert other.lines("T") == []
        process.stop(grace=0)


def test_a_member_that_holds_the_output_open_does_not_hang_run(make_tree):
    tree = make_tree("daemons", "i", 2)
    script = '"$0" "$1" daemons i 2 & echo out; exit 3'
    done = holdfast.run(
        ["sh", "-c", script, tree.args[0], str(tree.writer)],
        env=tree.env, pass_fds=[tree.writer], capture_output=True, grace=0.05,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert left_of(tree.mark) == []


@pytest.mark.parametrize("through", ["run", "time limit"])
def test_a_stranger_that_holds_the_output_open_does_not_hang_run(tmp_path, through):
    # A process that is no member gets the pipe by way of /proc: another tree's, or a server's.
    keep = tmp_path / "keep"
    os.mkfifo(keep)
    script = 'echo out; echo $$ > "$0"; read x < "$0.go"; ' + ("exit 4" if through == "run" else "exec sleep 99")
    os.mkfifo(str(keep) + ".go")
    held = []
    over = threading.Event()

    def hold():
        # Open for both ways: that does not wait for the other side, so this thread ends in any case.
        keep_fd, go_fd = os.open(keep, os.O_RDWR), os.open(f"{keep}.go", os.O_RDWR)
        if select.select([keep_fd], [], [], LIMIT)[0]:
            held.append(os.open(f"/proc/{int(os.read(keep_fd, 64))}/fd/1", os.O_WRONLY))
            os.write(go_fd, b"go\n")
            over.wait(LIMIT)
        os.close(keep_fd)
        os.close(go_fd)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        if through == "run":
            done = holdfast.run(["sh", "-c", script, str(keep)], capture_output=True, grace=0.1)
            assert (done.returncode, done.stdout) == (4, b"out\n")
        else:
            with pytest.raises(holdfast.TimeoutExpired) as caught:
                holdfast.run(["sh", "-c", script, str(keep)], capture_output=True, grace=0.1, timeout=2.5)
            assert caught.value.stdout == b"out\n" and caught.value.report.empty
    finally:
        over.set()
        holder.join(LIMIT)
        assert len(held) == 1
        os.close(held[0])


# ---- those that cannot be stopped: named, and not waited for


@pytest.fixture
def public_directory():
    """A directory that every user can read, for programs and a copy of the package."""
    path = tempfile.mkdtemp(prefix="holdfast-")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


def setuid_copy(directory, owner):
    """The tree program, setuid: whoever starts it, it runs as `owner`."""
    program = build_tree_program(directory)
    os.chown(program, owner, owner)
    os.chmod(program, 0o4755)
    return program


UNPRIVILEGED_OWNER = """
import json, os, sys, time, holdfast
holdfast.spawn(["true"]).close()  # everything is imported now; the new user might not be able to
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
program, writer, mark, grace = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
args = [program, writer, "plain", "i", "1"]
process = holdfast.spawn(  # the survivors shall not hold our own output open
    args, env={"HF_MARK": mark}, pass_fds=[int(writer)], grace=grace,
    stdin=holdfast.DEVNULL, stdout=holdfast.DEVNULL, stderr=holdfast.DEVNULL,
)
sys.stdin.readline()
began = time.monotonic()
report = process.stop()
stopped = time.monotonic()
process.close()
closed = time.monotonic()
print(json.dumps({
    "pid": process.pid, "empty": report.empty, "survivors": [[m.pid, m.name, m.denied] for m in report.survivors],
    "count": report.survivor_count, "killed": report.killed_count,
    "stop": stopped - began, "close": closed - stopped,
}))
"""


@needs_root
@pytest.mark.parametrize("owner", [0, 1], ids=["setuid root", "setuid another user"])
def test_a_setuid_member_is_named_and_not_waited_for(public_directory, owner):
    copy_package(public_directory)
    tree = Tree(setuid_copy(public_directory, owner), "plain", "i", 1)
    done = None
    try:
        done = subprocess.Popen(
            [sys.executable, "-c", UNPRIVILEGED_OWNER, tree.args[0], str(tree.writer), tree.mark, "0.1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[tree.writer], cwd="/",
            env={"PYTHONPATH": public_directory},
        )  # fmt: skip
        os.close(tree.writer)
        tree.writer = -1
        tree.wait_for("M")
        out, _ = done.communicate(b"\n", timeout=60)
        said = json.loads(out)
        assert sorted(p for p, _, _ in said["survivors"]) == sorted(tree.lines("R"))
        assert all(name == "tree" and denied for _, name, denied in said["survivors"])
        assert said["count"] == 2 and not said["empty"] and said["killed"] == 0
        assert said["stop"] < 5 + LIMIT and said["close"] < 4  # close does not wait another 5 s
    finally:
        if done is not None:
            done.kill()
            done.communicate()
        kill_marked(tree.mark)
        tree.close()
    assert left_of(tree.mark) == []


@needs_root
def test_a_frozen_member_is_named_and_not_waited_for(make_tree):
    freezer = "/sys/fs/cgroup/freezer"
    if not os.path.exists(f"{freezer}/cgroup.procs"):
        pytest.skip("no cgroup v1 freezer here")
    tree = make_tree("plain", "x", 2)
    group = f"{freezer}/holdfast-test-{tree.mark}"
    os.mkdir(group)
    process = tree.spawn()
    try:
        frozen = next(pid for pid in tree.lines("R") if pid != process.pid)
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(frozen))
        freeze(group, "FROZEN")
        report = process.stop(grace=0.2)
        assert [m.pid for m in report.survivors] == [frozen] and not report.empty
        assert report.survivors[0].name == "tree" and report.survivors[0].killed and not report.survivors[0].denied
        assert 5 <= report.duration < 5 + LIMIT
        before = time.monotonic()
        process.close()
        assert time.monotonic() - before < 4  # no second 5 s
    finally:
        freeze(group, "THAWED")
        process.close()
        wait_for(lambda: not read(f"{group}/cgroup.procs"), what="the cgroup to be empty")
        os.rmdir(group)


def read(path):
    with open(path) as file:
        return file.read().strip()


def freeze(group, wanted):
    with open(f"{group}/freezer.state", "w") as file:
        file.write(wanted)
    wait_for(lambda: read(f"{group}/freezer.state") == wanted, what=wanted)


def test_a_zombie_leader_with_living_threads_is_not_taken_for_dead(make_tree):
    # State Z in /proc, and alive: the first thread has ended, another runs on.
    script = """
import ctypes, os, threading
threading.Thread(target=lambda: (os.write(1, b"on"), threading.Event().wait())).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""
    with holdfast.spawn([sys.executable, "-c", script], stdout=holdfast.PIPE) as process:
        assert select.select([process.stdout], [], [], LIMIT)[0]
        wait_for(lambda: state(process.pid) == "Z", what="the first thread to end")
        assert process.poll() is None
        report = process.stop(grace=0)
        assert report.killed_count == 1 and [m.pid for m in report.killed] == [process.pid]
        assert stat_fields(process.pid) == [""]
