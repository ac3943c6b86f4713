"""`spawn(forking=True)`: the handle is the daemon's, also when that forks again; and the same of held trees."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal

import pytest
from helpers_forking import ONCE, TWICE, family, gates, name_of
from helpers_held import Place, first, place, until
from helpers_lib import descriptors, identity_of
from helpers_trees import hold_keeper, left_of
from helpers_wait import wait_for

import holdfast
from holdfast.process.held import read_report

assert place  # a fixture


@pytest.fixture
def gate(tmp_path):
    with gates(tmp_path) as make:
        yield make


@pytest.fixture
def mark():
    """Given to a family, it is found in the environment of every process of it; in the end there is none."""
    mark = f"forking-{os.getpid()}-{os.urandom(6).hex()}"
    yield mark
    assert not left_of(mark)


def daemon(mark: str, *actions: list, spawn=holdfast.spawn, **options) -> holdfast.Process:
    return spawn(family(*actions), env={**os.environ, "HF_MARK": mark}, forking=True, **options)


def child(name: str, *actions: list) -> list:
    return ["start", *actions, ["name", name], ["up"], ["pause"]]


@pytest.mark.parametrize(
    ("last", "code", "signal"), [(["exit", 3], 3, None), (["die", 9], None, 9), (["exit", 0], 0, None)]
)
def test_a_daemon_that_fails_before_the_one_between_has_ended(mark, gate, last, code, signal):
    """The end of the daemon is told, not that of the one between, which went well."""
    between = ["fork", ["setsid"], ["gate", gate("go")], ["fork", last], ["see"], ["exit", 0]]
    with daemon(mark, between, ["exit", 0]) as process:
        gate.open("go")
        status = process.wait(30)
        assert (status.code, status.signal) == (code, signal)


@pytest.mark.parametrize("way", ["spawn", "runner", "address"])
def test_the_handle_is_the_daemons(mark, tmp_path, way):
    with holdfast.Runner() as runner:
        options = {"address": tmp_path / "address"} if way == "address" else {}
        with daemon(mark, *TWICE, spawn=runner.spawn if way == "runner" else holdfast.spawn, **options) as process:
            number = process.fileno()
            wait_for(lambda: not process.poll() and name_of(process.pid) == "twice")
            assert process.fileno() == number
            assert not select.select([process], [], [], 0)[0]
            with pytest.raises(holdfast.TimeoutExpired):
                process.wait(0.05)
            process.send_signal("KILL")
            assert process.wait(30).signal == 9
            assert select.select([process], [], [], 0)[0]
            process.wait_empty(30)


def test_it_is_stopped_and_nothing_is_left(mark):
    with daemon(mark, child("a", ["setsid"], child("b")), child("c"), ["exit", 0]) as process:
        assert name_of(process.pid) == "a"
        report = process.stop()
        assert {(m.name, m.main, m.signalled) for m in report.members} == {
            ("a", True, True), ("b", False, True), ("c", False, True)
        }  # fmt: skip
        assert process.status is not None and process.status.signal == 15


def test_main_is_named(mark):
    with daemon(mark, child("a", ["setsid"]), child("b"), ["exit", 0], main="b") as process:
        assert name_of(process.pid) == "b"


def test_waiting_goes_on_with_the_next_main(mark, gate):
    second = ["start", ["name", "second"], ["up"], ["gate", gate("2")], ["exit", 7]]
    before = ["start", ["name", "first"], second, ["up"], ["gate", gate("1")], ["exit", 0]]
    with daemon(mark, before, ["exit", 0]) as it:
        assert name_of(it.pid) == "first"
        old, number = os.pidfd_open(it.pid), it.fileno()
        gate.open("1")
        assert select.select([old], [], [], 30)[0]
        os.close(old)
        with pytest.raises(holdfast.TimeoutExpired):
            it.wait(0.05)  # the end of the first one is none
        assert (name_of(it.pid), it.fileno()) == ("second", number)
        assert it.poll() is None
        it.send_signal("CONT")
        gate.open("2")
        assert it.wait(30).code == 7


def test_a_frozen_keeper_that_owes_a_move_is_thawed_and_not_given_up(mark, gate):
    second = ["start", ["name", "second"], ["up"], ["gate", gate("2")], ["exit", 7]]
    before = ["start", ["name", "first"], second, ["up"], ["gate", gate("1")], ["exit", 0]]
    with daemon(mark, before, ["exit", 0]) as it:
        keeper = hold_keeper(it)
        try:
            signal.pidfd_send_signal(keeper, signal.SIGSTOP)
            gate.open("1")
            assert select.select([it], [], [], 30)[0]  # no word of the keeper's
            assert it.poll() is None
            assert name_of(it.pid) == "second"
            gate.open("2")
            assert it.wait(30).code == 7
        finally:
            os.close(keeper)


@pytest.mark.parametrize("by", ["another thread", "nobody: no descriptor is left"])
def test_a_move_is_no_end_of_a_wait(mark, gate, monkeypatch, by):
    """Its descriptor was that of an end, when this one looked; meanwhile another has taken in what that means.  Or
    nobody could, for want of descriptors."""
    second = ["start", ["name", "second"], ["up"], ["gate", gate("2")], ["exit", 7]]
    before = ["start", ["name", "first"], second, ["up"], ["gate", gate("1")], ["exit", 0]]
    with daemon(mark, before, ["exit", 0]) as it, contextlib.ExitStack() as full:
        wait_until, first = it._tree.keeper.wait_until, it.pid

        def late(done, timeout, ended_fd=-1):
            """The keeper is slow, and the other thread is faster than this one."""
            if it._tree.moves > 1:
                gate.open("2")
                return wait_until(done, timeout, ended_fd)
            gate.open("1")
            assert select.select([it], [], [], 30)[0]
            wait_for(lambda: not os.path.exists(f"/proc/{first}"))
            if "nobody" in by:
                while True:
                    try:
                        full.callback(os.close, os.dup(0))
                    except OSError:
                        break
                return wait_until(done, timeout, ended_fd)
            assert wait_until(lambda: it._tree.moves > 1, 30)
            return False

        if "nobody" in by:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            full.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        monkeypatch.setattr(type(it._tree.keeper), "wait_until", lambda _, *args: late(*args))
        with contextlib.suppress(holdfast.TimeoutExpired):
            it.wait(30)
        monkeypatch.undo()
        full.close()
        assert it.status is not None and it.status.code == 7


def test_a_signal_meets_the_main_process_of_now(mark, gate):
    """The owner has not looked since main has moved."""
    said = gate("said")
    second = ["start", ["name", "second"], ["on", 10, ["exit", 5]], ["up"], ["pause"]]
    before = ["start", ["name", "first"], second, ["up"], ["gate", said], ["exit", 0]]
    with daemon(mark, before, ["exit", 0]) as it:
        pid = it.pid
        gate.open("said")
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        it.send_signal("USR1")
        assert it.wait(30).code == 5


def test_a_lost_keeper_leaves_no_daemon(mark):
    it = daemon(mark, *ONCE)
    keeper = hold_keeper(it)
    signal.pidfd_send_signal(keeper, signal.SIGKILL)
    os.close(keeper)
    with pytest.raises(holdfast.KeeperLost) as lost:
        it.wait(30)
    assert not lost.value.survivors
    with pytest.raises(holdfast.KeeperLost):
        it.close()


def test_it_outlives_its_owner_and_is_attached_to(mark, tmp_path, gate):
    address = tmp_path / "address"
    before = ["start", ["name", "first"], child("second"), ["up"], ["gate", gate("1")], ["exit", 0]]
    it = daemon(mark, before, ["exit", 0], address=address, on_owner_loss="keep")
    pid = it.pid
    it.release()
    gate.open("1")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    with holdfast.attach(address) as it:
        assert name_of(it.pid) == "second"
        it.kill()
        assert it.wait(30).signal == 9


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        ([["exit", 0]], "left no process"),
        ([["exit", 3]], "exit code 3"),
        ([child("a"), ["exit", 3]], "exit code 3"),
        ([["die", 11]], "signal 11"),
    ],
)
@pytest.mark.parametrize("way", ["spawn", "runner", "address"])
def test_what_leaves_no_daemon_is_an_error(mark, tmp_path, way, actions, text):
    address = {"address": tmp_path / "address"} if way == "address" else {}
    with holdfast.Runner() as runner, pytest.raises(holdfast.SpawnError, match=text) as error:
        daemon(mark, *actions, spawn=runner.spawn if way == "runner" else holdfast.spawn, **address)
    assert (error.value.stage, error.value.errno) == ("fork", errno.ECHILD)
    assert not left_of(mark) and not os.listdir(tmp_path)


def test_what_takes_too_long_is_an_error(mark):
    with pytest.raises(holdfast.SpawnError, match=r"in 0.2 s") as error:
        daemon(mark, child("a"), ["pause"], ready_timeout=0.2)
    assert (error.value.stage, error.value.errno) == ("fork", errno.ETIMEDOUT)
    assert not left_of(mark)


def test_a_failed_start_by_a_runner_gives_all_descriptors_back(mark):
    """They end at once, and not each of their ends has room."""
    with holdfast.Runner() as runner:
        before = descriptors()
        with pytest.raises(holdfast.SpawnError, match="code 3"):
            daemon(mark, *[["fork", ["pause"]] for _ in range(64)], ["exit", 3], spawn=runner.spawn)
        assert descriptors() == before


def test_misuse():
    for options in (
        {"private": False}, {"ready_timeout": -1}, {"main": ""}, {"main": "a" * 16}, {"main": "a\0b"},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            holdfast.spawn(["true"], forking=True, **options)
    with pytest.raises(TypeError):
        holdfast.spawn(["true"], forking=True, main=5)
    with pytest.raises(ValueError, match="forking=True"):
        holdfast.spawn(["true"], main="a")
    with pytest.raises(ValueError, match="no end"):
        holdfast.run(["true"], forking=True)
    with holdfast.Runner() as runner, pytest.raises(ValueError, match="no end"):
        runner.run(["true"], forking=True)


# ---- held trees


def start(place: Place, *actions: list, **options):
    return place.start('exec "$@"', *family(*actions), forking=True, **options)


def hear(tree, name: str):
    """The next event of this kind."""
    return first(until(tree, name), name)


def end_of(tree) -> holdfast.ExitStatus:
    """How main has ended, when the tree has."""
    events = until(tree, "Exited", "Empty")
    tree.acknowledge(exited=True, empty=True, stopped=True)
    return first(events, "Exited").status


def test_what_moves_while_nobody_is_there_is_told_to_the_next_owner(place: Place, gate):
    tree = start(place, child("a", ["setsid"]), ["gate", gate("fork")], ["exit", 0])
    starter = hear(tree, "Spawned").pid
    ended = place.held_fd(starter)
    tree.close()
    gate.open("fork")
    assert select.select([ended], [], [], 30)[0]
    wait_for(lambda: not os.path.exists(f"/proc/{starter}"))  # its keeper has seen that
    tree = place.attach()
    events = until(tree, "Spawned", "Moved")
    spawned, moved = first(events, "Spawned"), first(events, "Moved")
    assert (name_of(spawned.pid), moved.pid, moved.old_pid) == ("a", spawned.pid, starter)
    assert spawned.identity == tree.identity == identity_of(tree.pidfd)  # though it had no owner to compare with
    assert (tree.pid, tree.rule, tree.moves) == (spawned.pid, "only", 1)
    assert tree.pidfd >= 0 and not select.select([tree.pidfd], [], [], 0)[0]
    tree.stop(15, "group", 10)
    assert end_of(tree).signal == 15


def test_the_report_file_says_who_was_main(place: Place, gate):
    tree = start(place, ["start", ["name", "a"], ["up"], ["gate", gate("end")], ["exit", 4]], ["exit", 0])
    events = until(tree, "Spawned", "Moved")
    spawned, moved = first(events, "Spawned"), first(events, "Moved")
    assert (moved.old_pid, moved.rule, moved.count) == (spawned.pid, "only", 1)
    assert tree.pid == moved.pid and not select.select([tree.pidfd], [], [], 0)[0]
    held = place.held_fd(tree.keeper_pid)
    tree.close()
    gate.open("end")
    assert select.select([held], [], [], 30)[0]
    said = {type(event).__name__: event for event in read_report(place.report)}
    assert said["Spawned"].pid == moved.pid and said["Moved"] == moved
    assert said["Exited"].status.code == 4


def test_the_owner_names_main(place: Place):
    tree = start(place, child("a"), child("b"), ["exit", 0])
    assert hear(tree, "Moved").rule == "together"
    tree.query()
    members = {member.name: member.pid for member in hear(tree, "Members").members}
    assert members["b"] in tree.members and members["a"] not in tree.members  # the one has its own descriptor
    tree.make_main(members["b"])
    moved = hear(tree, "Moved")
    assert (moved.pid, moved.rule, moved.count) == (members["b"], "asked", 2)
    tree.signal(9, "main")  # the other one is stopped then
    assert end_of(tree).signal == 9
