"""What the engine decides: order, stops, restarts of others, shutdown, adoption, and when a command is done."""

from __future__ import annotations

import random
import time

import msgspec
import pytest
from sim import KILLED, SUCCESS, TERMINATED, Life, Sim, phase_of, service, services, targets

from holdfast.config.model import Ready, StartBudget
from holdfast.engine.effects import Finish, Forget, Record, Save, Spawn, Stop
from holdfast.engine.engine import Engine
from holdfast.engine.events import (
    LEFT_NOTHING,
    BecameReady,
    BecameUnhealthy,
    Emptied,
    Exit,
    Exited,
    KeeperLost,
    NotReadyYet,
    RestartAsked,
    Spawned,
    SpawnFailed,
    StartAsked,
    StopAsked,
    TimeExtended,
)
from holdfast.engine.outcome import outcome
from holdfast.engine.table import Phase, State

FAILED = Exit(1, None)


def kinds(effects, *types):
    """The effects but Save and Tell, or of the given types."""
    return [each for each in effects if isinstance(each, types or (Spawn, Stop, Finish, Forget))]


def up(*specs, script=None, **options):
    """A world in which everything that can be has come up."""
    sim = Sim(services(*specs), script, **options)
    sim.begin()
    sim.run(until=sim.now + 50)
    return sim


DB, WEB = service("db"), service("web", requires=("db",))


# ---- start and stop


def test_a_simple_service_is_ready_when_it_runs():
    sim = Sim(services(service("x")))
    effects = sim.begin()
    assert [type(each).__name__ for each in effects] == ["Save", "Spawn", "Tell"]
    assert sim.state("x") == "starting"
    sim.run()
    assert (sim.state("x"), sim.view("x").ready) == ("running", True)
    assert sim.told("x") == ["starting", "spawned", "ready"]


def test_a_notify_service_is_ready_when_it_says_so():
    sim = Sim(services(service("x", type="notify")), lambda *_: Life(ready=5.0))
    sim.begin()
    sim.run(until=4)
    assert (sim.state("x"), sim.view("x").wake_at) == ("starting", 90.0)
    sim.run()
    assert (sim.state("x"), sim.view("x").ready, sim.view("x").wake_at) == ("running", True, None)


def test_ready_may_overtake_spawned():
    sim = Sim(services(service("x", type="notify")))
    sim.begin()
    sim.handle(BecameReady("x", 1))
    assert sim.state("x") == "starting"
    sim.handle(Spawned("x", 1))
    assert sim.view("x").ready


def test_a_oneshot_is_ready_when_it_has_succeeded():
    specs = [service("job", type="oneshot", success_exit_codes=(3,)), service("x", requires=("job",))]
    sim = Sim(services(*specs), lambda name, n: Life(lives=7.0, exit=Exit(3, None)) if name == "job" else Life())
    sim.begin()
    sim.run(until=6)
    assert (sim.state("job"), sim.view("job").ready, sim.state("x")) == ("starting", False, "starting")
    sim.run()
    assert (sim.state("job"), sim.view("job").ready, sim.state("x")) == ("exited", True, "running")
    assert sim.spawned_at("x") == [7.0]
    sim.start("x", "job")  # named: runs again; web goes on meanwhile
    assert sim.state("job") == "starting"
    sim.run()
    assert sim.spawned_at("job") == [0.0, 7.0]
    assert sim.spawned_at("x") == [7.0]


def test_a_start_takes_what_is_required_along():
    sim = up(DB, WEB)
    sim.stop("db")
    sim.run()
    assert (sim.view("db").wanted, sim.view("web").wanted) == (False, True)
    sim.start("web")
    sim.run()
    assert sim.view("web").ready
    assert sim.view("db").wanted


def test_a_start_takes_back_the_stop_of_what_is_required():
    sim = up(DB, WEB, script=lambda *_: Life(stop=1.0))
    sim.stop("db")
    sim.start("web")
    assert (sim.state("db"), sim.view("db").wanted) == ("stopping", True)
    sim.run()
    assert (sim.view("db").ready, sim.view("web").ready) == (True, True)


def test_a_completed_oneshot_is_not_run_again_for_who_requires_it():
    sim = up(service("job", type="oneshot"), service("x", requires=("job",)),
             script=lambda name, n: Life(lives=0.0) if name == "job" else Life())  # fmt: skip
    sim.restart("x")
    sim.run()
    assert (len(sim.spawned_at("job")), len(sim.spawned_at("x"))) == (1, 2)


def test_after_orders_only():
    """x comes after y when both start, and starts without it otherwise; y's failure is not its business."""
    script = {"y": Life(spawn=2.0, lives=0.0, exit=FAILED)}
    specs = [service("x", after=("y",)), service("y", restart="never")]
    sim = Sim(services(*specs), lambda name, n: script.get(name, Life()))
    sim.begin()
    sim.run()
    assert sim.spawned_at("x") == [2.0]
    assert (sim.state("x"), sim.state("y")) == ("running", "exited")
    sim.restart("x")
    sim.run()
    assert sim.state("y") == "exited"
    assert sim.view("x").incarnation == 2


def test_after_holds_for_restart_and_stop():
    sim = up(service("y"), service("x", after=("y",)), script=lambda name, n: Life(spawn=1.0, stop=3.0))
    sim.restart("x", "y")
    begun = sim.now
    sim.run()
    assert [(at - begun, name) for at, name in sim.stops] == [(0.0, "x"), (3.0, "y")]
    assert [(at - begun, name) for at, name, _ in sim.spawns[2:]] == [(6.0, "y"), (7.0, "x")]


def test_stop_during_the_start_is_not_forgotten():
    sim = Sim(services(service("x")))
    sim.begin()
    assert kinds(sim.stop("x")) == []
    assert (sim.state("x"), phase_of(sim, "x")) == ("stopping", Phase.CANCELLED)
    assert kinds(sim.handle(Spawned("x", 1))) == [Stop("x", 1)]
    sim.run()
    assert sim.state("x") == "stopped"
    assert not sim.trees


@pytest.mark.parametrize("temporary", [True, False])
def test_stop_during_a_start_that_fails(temporary):
    sim = Sim(services(service("x")))
    sim.begin()
    sim.stop("x")
    sim.handle(SpawnFailed("x", 1, "no memory", temporary))
    assert (sim.state("x"), sim.view("x").failures) == ("stopped", 0)


def test_start_during_the_stop_starts_after_it():
    sim = up(service("x"), script=lambda *_: Life(stop=1.0, rest=2.0))
    begun = sim.now
    sim.stop("x")
    sim.run(until=begun + 0.5)
    sim.start("x")
    assert sim.state("x") == "stopping"
    sim.run()
    assert sim.view("x").ready
    assert sim.spawned_at("x") == [0.0, begun + 3.0]


def test_the_last_command_counts():
    sim = up(service("x"), script=lambda *_: Life(stop=1.0))
    for _ in range(3):
        sim.stop("x")
        sim.start("x")
    sim.restart("x")
    sim.stop("x")
    sim.run()
    assert (sim.state("x"), sim.view("x").incarnation) == ("stopped", 1)


def test_a_stop_that_is_repeated_changes_nothing():
    sim = up(service("x"), script=lambda *_: Life(stop=1.0))
    assert kinds(sim.stop("x")) == [Stop("x", 1)]
    assert sim.stop("x") == []
    sim.run()
    assert sim.stop("x") == []


def test_stop_in_backoff_and_while_waiting():
    specs = [service("bad"), service("web", requires=("slow",)), service("slow", type="notify")]
    sim = Sim(services(*specs), lambda name, n: Life(lives=0.0, exit=FAILED) if name == "bad" else Life(ready=None))
    sim.begin()
    sim.run(until=0.05)
    assert (sim.state("bad"), sim.state("web")) == ("backoff", "starting")
    assert sim.view("web").waiting_for == ("slow",)
    assert sim.view("web").reason == "waits for slow"
    assert kinds(sim.stop("bad", "web")) == []
    assert (sim.state("bad"), sim.state("web")) == ("stopped", "stopped")
    sim.run(until=10)
    assert len(sim.spawned_at("bad")) == 2


def test_a_command_for_an_incarnation_that_is_gone_does_nothing():
    sim = up(service("x"))
    sim.restart("x")
    sim.run()
    assert sim.engine.is_gone("x", 1)
    assert not sim.engine.is_gone("x", 2)
    assert not sim.engine.is_gone("x", None)
    for command in (StartAsked, StopAsked, RestartAsked):
        assert sim.handle(command((("x", 1),))) == []
    assert kinds(sim.handle(StopAsked((("x", 2),)))) == [Stop("x", 2)]
    sim.run()
    assert sim.handle(StartAsked((("x", 2),))) == []


def test_unknown_names_are_refused():
    sim = up(service("x"))
    assert [each.what for each in sim.start("nobody")] == ["refused"]


# ---- services that stand on each other


def test_stop_takes_those_above_first_and_start_brings_them_back():
    sim = up(DB, WEB, service("other"), script=lambda *_: Life(stop=1.0, rest=1.0))
    begun = sim.now
    sim.stop("db")
    assert sim.view("db").waiting_for == ("web",)
    assert sim.view("db").reason == "asked to stop; first to stop: web"
    sim.run()
    assert [(at - begun, name) for at, name in sim.stops] == [(0.0, "web"), (2.0, "db")]
    assert (sim.state("web"), sim.view("web").reason) == ("stopped", "requires db: down")
    assert sim.view("web").waiting_for == ("db",)
    assert sim.view("other").ready
    sim.start("db")
    sim.run()
    assert sim.view("web").ready


def test_one_that_was_stopped_by_hand_does_not_come_back_with_the_other():
    sim = up(DB, WEB)
    sim.stop("web")
    sim.stop("db")
    sim.start("db")
    sim.run()
    assert (sim.state("db"), sim.state("web")) == ("running", "stopped")


def test_restart_takes_those_above_along_in_order():
    specs = [DB, WEB, service("edge", requires=("web",)), service("other")]
    sim = up(*specs, script=lambda *_: Life(spawn=1.0, stop=1.0))
    begun = sim.now
    sim.restart("db")
    sim.run()
    assert [(at - begun, name) for at, name in sim.stops] == [(0.0, "edge"), (1.0, "web"), (2.0, "db")]
    assert [(at - begun, name) for at, name, _ in sim.spawns[4:]] == [(3.0, "db"), (4.0, "web"), (5.0, "edge")]
    assert sim.view("other").incarnation == 1
    assert [view.restarts for view in sim.engine.views()] == [0, 0, 0, 0]  # by policy, that is


def test_restart_of_one_that_is_down_starts_it_and_leaves_the_others_alone():
    script = {("db", 1): Life(lives=5.0, exit=FAILED)}
    sim = up(service("db", restart="never"), WEB, script=lambda *key: script.get(key, Life()))
    assert (sim.state("db"), sim.state("web")) == ("exited", "running")
    sim.restart("db")
    sim.run()
    assert sim.view("db").ready
    assert sim.stops == []


def test_a_crash_stops_nobody_else_and_who_requires_it_waits_with_its_own_restart():
    lives = {
        ("db", 1): Life(lives=10.0, exit=KILLED),
        ("db", 2): Life(spawn=5.0),
        ("web", 1): Life(lives=12.0, exit=KILLED),
    }
    sim = up(DB, WEB, service("edge", requires=("web",)), script=lambda *key: lives.get(key, Life()))
    assert sim.stops == []
    assert sim.spawned_at("db") == [0.0, 10.0]
    assert sim.spawned_at("web") == [0.0, 15.0]  # its back-off was over at once, but db was not ready
    assert sim.spawned_at("edge") == [0.0]
    assert "waiting" in sim.told("web")


def test_who_requires_one_that_is_down_for_good_comes_to_rest():
    """Not "starting" for ever; and it comes up by itself when the other is mended."""
    lives = {("db", 1): Life(lives=0.0, exit=FAILED), ("db", 2): Life(lives=0.0)}
    specs = [service("db", type="oneshot", restart="never"), WEB, service("edge", requires=("web",))]
    sim = up(*specs, script=lambda *key: lives.get(key, Life()))
    assert [sim.state(name) for name in ("db", "web", "edge")] == ["exited", "stopped", "stopped"]
    assert sim.view("edge").reason == "requires web: down"
    assert not sim.spawned_at("web")
    sim.start("db")
    sim.run()
    assert [sim.state(name) for name in ("db", "web", "edge")] == ["exited", "running", "running"]


def test_a_oneshot_runs_again_with_what_it_required():
    job = service("job", type="oneshot", requires=("db",))
    lives = {"job": Life(lives=0.0)}
    sim = up(DB, job, service("web", requires=("job",)), script=lambda name, n: lives.get(name, Life()))
    assert sim.view("job").ready
    sim.restart("db")
    sim.run()
    assert [sim.view(name).incarnation for name in ("db", "job", "web")] == [2, 2, 2]
    sim.stop("db")
    sim.run()
    assert [sim.state(name) for name in ("db", "job", "web")] == ["stopped", "stopped", "stopped"]
    sim.start("web")
    sim.run()
    assert [sim.view(name).ready for name in ("db", "job", "web")] == [True, True, True]


def test_stop_reaches_through_one_that_is_down():
    """top requires middle requires base; middle has ended: base still waits for top."""
    lives = {"middle": Life(lives=5.0), "top": Life(stop=3.0)}
    specs = [service("base"), service("middle", requires=("base",)), service("top", requires=("middle",))]
    sim = up(*specs, script=lambda name, n: lives.get(name, Life()))
    assert (sim.state("middle"), sim.state("top")) == ("exited", "running")
    begun = sim.now
    sim.shutdown()
    sim.run()
    assert [(at - begun, name) for at, name in sim.stops] == [(0.0, "top"), (3.0, "base")]


# ---- shutdown


def test_shutdown_is_the_exact_reverse_and_what_is_independent_stops_at_once():
    stop = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}
    specs = [service("a"), service("b", requires=("a",)), service("c", after=("a",)), service("d")]
    sim = up(*specs, script=lambda name, n: Life(stop=stop[name]))
    begun = sim.now
    effects = sim.shutdown()
    assert kinds(effects) == [Stop("d", 1), Stop("c", 1), Stop("b", 1)]
    assert kinds(effects, Save) == []  # what is on record is what is wanted
    sim.run()
    assert [(at - begun, name) for at, name in sim.stops] == [(0, "d"), (0, "c"), (0, "b"), (4.0, "a")]
    assert sim.finished == [0]
    assert sim.now == begun + 8.0


def test_shutdown_stops_those_without_a_tree_at_once_and_refuses_starts():
    specs = [service("bad"), service("slow", type="notify"), service("web", requires=("slow",)), service("x")]
    lives = {"bad": Life(lives=0.0, exit=FAILED), "slow": Life(ready=None), "x": Life(stop=5.0)}
    sim = Sim(services(*specs), lambda name, n: lives.get(name, Life()))
    sim.begin()
    sim.run(until=0.05)
    sim.shutdown()
    assert [sim.state(name) for name in ("bad", "slow", "web", "x")] == ["stopped", "stopping", "stopped", "stopping"]
    assert [each.what for each in sim.start("bad", "x")] == ["refused", "refused"]
    assert [each.what for each in sim.restart("x")] == ["refused"]
    assert sim.shutdown() == []
    sim.run()
    assert sim.finished == [0]
    assert len(sim.spawned_at("bad")) == 2


def test_shutdown_of_nothing_finishes_at_once():
    sim = Sim({})
    sim.begin()
    assert kinds(sim.shutdown()) == [Finish(0)]
    assert sim.shutdown() == []


def test_shutdown_while_starts_are_under_way():
    sim = Sim(services(DB, WEB), lambda *_: Life(spawn=1.0))
    sim.begin()
    assert kinds(sim.shutdown()) == []
    sim.run()
    assert sim.finished == [0]
    assert sim.spawned_at("web") == []


def test_what_shutdown_leaves_on_record():
    """The next `up` starts everything, but what was stopped by hand and is to stay so."""
    specs = [service("a"), service("b", restart="unless-stopped"), service("c"), service("bad", start_limit=1)]
    sim = up(*specs, script=lambda name, n: Life(lives=0.0, exit=FAILED) if name == "bad" else Life())
    sim.stop("b", "c")
    sim.run()
    assert sim.state("bad") == "fatal"
    sim.shutdown()
    sim.run()
    wanted = {name: record.wanted for name, record in sim.records.items()}
    assert wanted == {"a": True, "b": False, "c": True, "bad": True}
    assert {(record.state, record.live, record.failures) for record in sim.records.values()} == {
        (State.STOPPED, False, 0)
    }
    sim.supervisor_dies()
    sim.run(until=sim.now + 1)
    assert [sim.state(name) for name in ("a", "b", "c", "bad")] == ["running", "stopped", "running", "fatal"]
    assert sim.view("a").incarnation == 2


def test_a_supervisor_that_is_killed_during_shutdown_leaves_what_was_wanted():
    sim = up(DB, WEB, script=lambda *_: Life(stop=5.0))
    sim.shutdown()
    sim.run(until=sim.now + 6)
    assert sim.state("web") == "stopped"
    sim.supervisor_dies()
    sim.run()
    assert (sim.view("db").ready, sim.view("web").ready) == (True, True)
    assert len(sim.trees) == 2


# ---- survivors


def test_a_tree_that_kill_cannot_end_is_shown_and_nothing_is_started_beside_it():
    sim = up(DB, WEB, script=lambda name, n: Life(survivors=2 if (name, n) == ("web", 1) else 0))
    sim.restart("db")
    sim.run()
    view = sim.view("web")
    assert (view.state, view.live, view.reason) == ("fatal", True, "2 of the processes of incarnation 1 outlived KILL")
    assert sim.view("db").incarnation == 2  # it did not wait for ever
    sim.start("web")
    assert sim.state("web") == "fatal"
    sim.handle(Emptied("web", 1))
    sim.run()
    assert (sim.view("web").ready, sim.view("web").incarnation) == (True, 2)


def test_survivors_do_not_hold_up_a_shutdown():
    sim = up(DB, WEB, script=lambda name, n: Life(survivors=1 if name == "web" else 0))
    sim.shutdown()
    sim.run()
    assert sim.finished == [0]
    assert sim.state("web") == "fatal"
    assert sim.records["web"].live
    sim.handle(Emptied("web", 1))
    assert (sim.state("web"), sim.records["web"].live) == ("stopped", False)


# ---- essential


@pytest.mark.parametrize(
    ("options", "life", "status"),
    [
        ({"restart": "never"}, Life(lives=1.0, exit=Exit(3, None)), 3),
        ({"restart": "never"}, Life(lives=1.0, exit=KILLED), 137),
        ({}, Life(lives=1.0, exit=SUCCESS), 0),
        ({"type": "oneshot"}, Life(lives=1.0, exit=SUCCESS), 0),
        ({"restart": "always", "start_limit": 2}, Life(lives=0.5, exit=SUCCESS), 1),
        ({}, Life(fails=SpawnFailed("", 0, "no such file", False)), 125),
        ({"restart": "never"}, Life(lives=1.0, exit=FAILED, survivors=1), 1),
    ],
)
def test_the_supervisor_ends_with_an_essential_service(options, life, status):
    specs = [service("main", essential=True, **options), service("side", after=("main",))]
    sim = Sim(services(*specs), lambda name, n: life if name == "main" else Life(stop=1.0))
    sim.begin()
    sim.run()
    assert sim.finished == [status]


def test_an_essential_service_that_is_asked_to_stop_ends_nothing():
    sim = up(service("main", essential=True), service("side"))
    sim.stop("main")
    sim.run()
    assert (sim.state("main"), sim.state("side"), sim.finished) == ("stopped", "running", [])


def test_an_essential_service_that_outlives_an_asked_stop_ends_nothing():
    sim = up(service("main", essential=True), service("side"), script=lambda *_: Life(survivors=1))
    sim.stop("main")
    sim.run()
    assert (sim.state("main"), sim.state("side"), sim.finished) == ("fatal", "running", [])


# ---- failures of the start, readiness, lost keepers


def test_a_start_that_cannot_succeed_is_fatal_until_somebody_asks():
    mended = [False]
    fails = Life(fails=SpawnFailed("", 0, "exec: No such file or directory", False))
    sim = Sim(services(service("x", restart="always")), lambda *_: Life() if mended[0] else fails)
    sim.begin()
    sim.run()
    assert sim.state("x") == "fatal"
    assert sim.view("x").reason == "could not start: exec: No such file or directory"
    assert len(sim.spawns) == 1
    mended[0] = True
    sim.start("x")
    sim.run()
    assert sim.view("x").ready


@pytest.mark.parametrize("policy", ["never", "on-failure", "always"])
def test_a_start_that_may_succeed_later_is_tried_again_whatever_the_policy(policy):
    lives = {n: Life(fails=SpawnFailed("", 0, "fork: EAGAIN", True)) for n in (1, 2, 3)}
    sim = up(service("x", restart=policy), script=lambda name, n: lives.get(n, Life()))
    assert sim.view("x").ready
    assert (sim.view("x").failures, sim.view("x").incarnation) == (3, 4)


def test_not_ready_in_time_is_a_failed_start_however_long_it_lived():
    spec = service("x", type="notify", start_limit=2)
    sim = Sim(services(spec), lambda *_: Life(ready=None, stop=2.0))
    sim.begin()
    sim.run()
    assert sim.spawned_at("x") == [0.0, 92.0]
    assert [at for at, _ in sim.stops] == [90.0, 182.0]
    view = sim.view("x")
    assert (view.state, view.failures, view.last_exit.cause) == ("fatal", 2, "ready_timeout")
    assert view.last_exit.words == "ready_timeout: killed by SIGTERM"


def test_a_forking_service_is_ready_by_its_fork_and_one_that_leaves_nothing_has_failed():
    spec = service("x", type="forking", restart="on-abnormal", start_limit=3)
    sim = Sim(services(spec, service("web", requires=("x",))), lambda name, _: Life(ready=None if name == "x" else 0.0))
    sim.begin()
    sim.run(until=1)
    assert (sim.view("x").state, sim.view("web").state) == ("starting", "starting")
    sim.handle(BecameReady("x", 1))
    sim.handle(BecameReady("x", 1))  # main moves again
    sim.run(until=2)
    assert sim.view("x").ready and sim.view("web").state == "running"
    for number in (1, 2, 3, 4):  # the first has lived
        sim.handle(Exited("x", number, Exit(0, None, cause=LEFT_NOTHING)))
        sim.handle(Emptied("x", number))
        sim.run(until=sim.now + 5)
    view = sim.view("x")
    assert (view.state, view.last_exit.words) == ("fatal", "left no process: exited with code 0")
    assert view.last_exit.abnormal and not view.last_exit.succeeded((0,))


def test_why_it_is_not_ready_is_said_while_it_is_so_and_when_its_time_is_over():
    spec = service("x", ready=Ready(tcp="80", timeout=20.0), start_limit=1)
    sim = Sim(services(spec), lambda *_: Life(ready=None, stop=2.0))
    sim.begin()
    sim.run(until=1)
    assert (sim.view("x").state, sim.view("x").reason) == ("starting", "not ready yet")
    sim.handle(NotReadyYet("x", 1, "Connection refused"))
    assert sim.view("x").reason == "not ready yet (Connection refused)"
    assert sim.view("x").wake_at == 20.0
    sim.run(until=21)
    assert sim.view("x").reason == "was not ready in time (Connection refused)"
    sim.run()
    assert sim.view("x").last_exit.words == "ready_timeout (Connection refused): killed by SIGTERM"
    assert sim.view("x").last_exit.abnormal


def test_a_probe_of_any_kind_tells_that_it_is_ready():
    sim = Sim(services(service("db", ready=Ready(log="up")), WEB), lambda *_: Life(ready=5.0))
    sim.begin()
    sim.run()
    assert sim.spawned_at("web") == [5.0]


@pytest.mark.parametrize("exit", [TERMINATED, SUCCESS])
@pytest.mark.parametrize(("policy", "again"), [("on-failure", 2), ("on-abnormal", 2), ("always", 2), ("never", 1)])
def test_an_unhealthy_one_is_stopped_and_the_policy_decides(exit, policy, again):
    """However it ends when it is stopped: it was no decision of the program."""
    sim = Sim(services(service("x", restart=policy)), lambda *_: Life(stop=2.0))
    sim.begin()
    sim.run(until=100)
    sim.handle(BecameUnhealthy("x", 1, "Connection refused"))
    assert sim.view("x").reason == "unhealthy (Connection refused)"
    assert sim.stops == [(100.0, "x")]
    sim.handle(BecameUnhealthy("x", 1, "again"))  # it is on its way
    sim.handle(Exited("x", 1, exit))
    sim.handle(Emptied("x", 1))
    sim.run(until=200)
    assert sim.view("x").last_exit.cause == "unhealthy (Connection refused)"
    assert sim.view("x").incarnation == again
    assert sim.view("x").failures == 0  # it had lived


def test_health_does_not_matter_before_it_is_ready_nor_when_it_is_asked_to_stop():
    sim = Sim(services(service("x", type="notify")), lambda *_: Life(ready=None))
    sim.begin()
    sim.run(until=1)
    sim.handle(BecameUnhealthy("x", 1, "no"))
    assert sim.view("x").state == "starting"
    sim.handle(BecameReady("x", 1))
    sim.stop("x")
    sim.handle(BecameUnhealthy("x", 1, "no"))
    assert sim.view("x").reason == "asked to stop"


def test_a_supervisor_that_dies_on_the_way_leaves_why_it_was_to_end():
    """Whether the stop was heard or not: its end is no success, and it does end."""
    for ended in ({}, {"x": SUCCESS}):
        sim = Sim(services(service("x", restart="on-failure")), lambda *_: Life(stop=2.0))
        sim.begin()
        sim.run(until=10)
        sim.handle(BecameUnhealthy("x", 1, "no"))
        sim.supervisor_dies(ended=ended)
        sim.run(until=50)
        assert sim.view("x").incarnation == 2
        assert sim.view("x").last_exit.cause == "unhealthy (no)"
        assert sim.view("x").ready


def test_more_time_to_become_ready():
    sim = Sim(services(service("x", type="notify")), lambda *_: Life(ready=None))
    sim.begin()
    sim.run(until=80)
    sim.handle(TimeExtended("x", 1, 200.0))
    sim.handle(TimeExtended("x", 1, 150.0))  # never less
    sim.run(until=199)
    assert sim.stops == []
    sim.run(until=200)
    assert sim.stops == [(200.0, "x")]


def test_a_lost_keeper_is_an_abnormal_end():
    sim = up(service("x", restart="on-abnormal"))
    sim.handle(KeeperLost("x", 1))
    assert (sim.state("x"), sim.view("x").last_exit.words) == ("stopping", "keeper lost")
    sim.handle(Exited("x", 1, Exit(0, None)))  # learnt all the same
    assert sim.view("x").last_exit == Exit(0, None, cause="keeper lost")
    sim.handle(Emptied("x", 1))
    sim.run()
    assert (sim.view("x").incarnation, sim.view("x").restarts) == (2, 1)


def test_the_end_of_a_stop_is_no_failure():
    sim = up(service("x"), script=lambda *_: Life(spawn=0.0))
    for _ in range(30):
        sim.restart("x")
        sim.run()
    assert (sim.view("x").failures, sim.view("x").incarnation, sim.state("x")) == (0, 31, "running")


def test_stop_during_a_crash_is_a_stop():
    sim = up(service("x", restart="always"))
    sim.handle(Exited("x", 1, KILLED))
    assert kinds(sim.stop("x")) == []
    sim.handle(Emptied("x", 1))
    assert sim.state("x") == "stopped"


def test_start_during_the_end_of_one_that_would_not_restart():
    sim = up(service("x", restart="never"))
    sim.handle(Exited("x", 1, FAILED))
    sim.start("x")
    sim.handle(Emptied("x", 1))
    sim.run()
    assert sim.view("x").ready


# ---- adoption


def test_what_runs_is_taken_as_it_is():
    sim = up(DB, WEB, service("late", type="notify"), script=lambda name, n: Life(ready=60.0))
    assert sim.state("late") == "starting"
    effects = sim.supervisor_dies()
    assert kinds(effects) == []
    assert [sim.state(name) for name in ("db", "web", "late")] == ["running", "running", "starting"]
    assert sim.view("late").wake_at == sim.now + 90.0  # time anew
    sim.run()
    assert sim.view("late").ready
    sim.supervisor_dies()
    assert sim.view("late").ready


def test_what_ended_meanwhile_is_treated_as_if_seen():
    specs = [service("crashed"), service("done"), service("job", type="oneshot"), service("lost")]
    sim = up(*specs, script=lambda name, n: Life(lives=None))
    ended = {"crashed": KILLED, "done": SUCCESS, "job": SUCCESS, "lost": None}
    sim.supervisor_dies(ended=ended)
    states = {name: (sim.state(name), sim.view(name).last_exit) for name in ended}
    assert states == {
        "crashed": ("starting", KILLED),
        "done": ("exited", SUCCESS),
        "job": ("exited", SUCCESS),
        "lost": ("starting", Exit(None, None, cause="unknown")),
    }
    assert sim.view("job").ready
    assert sim.view("crashed").restarts == 1
    sim.run()
    sim.supervisor_dies()
    assert [sim.state(name) for name in ended] == ["running", "exited", "exited", "running"]


def test_stopped_by_hand_stays_stopped_and_so_does_what_requires_it():
    sim = up(service("db", restart="always"), WEB)
    sim.stop("db")
    sim.run()
    assert kinds(sim.supervisor_dies()) == []
    assert (sim.state("db"), sim.state("web")) == ("stopped", "stopped")
    assert (sim.view("db").wanted, sim.view("web").wanted) == (False, True)


def test_a_stop_or_restart_that_was_under_way_goes_on():
    sim = up(service("a"), service("b"), service("c", requires=("b",)), script=lambda *_: Life(stop=5.0))
    sim.stop("a")
    sim.restart("b")
    assert kinds(sim.supervisor_dies()) == [Stop("a", 1), Stop("c", 1)]
    sim.run()
    assert [sim.state(name) for name in ("a", "b", "c")] == ["stopped", "running", "running"]
    assert [sim.view(name).incarnation for name in ("a", "b", "c")] == [1, 2, 2]


def test_backoff_goes_on():
    sim = Sim(services(service("x", start_limit=0)), lambda *_: Life(lives=0.0, exit=FAILED))
    sim.begin()
    sim.run(until=10)
    before = sim.view("x")
    assert before.state == "backoff"
    sim.now = 10.5
    sim.supervisor_dies()
    after = sim.view("x")
    assert (after.state, after.wake_at, after.failures, after.restarts) == (
        "backoff", before.wake_at, before.failures, before.restarts,
    )  # fmt: skip


def test_fatal_stays_fatal_and_the_end_of_an_essential_one_is_heeded():
    sim = up(service("x", start_limit=1), script=lambda *_: Life(lives=0.0, exit=FAILED))
    sim.supervisor_dies()
    assert sim.state("x") == "fatal"
    sim.supervisor_dies(specs=services(service("x", essential=True), service("y")))
    assert sim.finished == [1]
    assert sim.spawned_at("y") == []


def test_an_intent_that_came_to_nothing_is_started_again():
    sim = Sim(services(service("x")))
    sim.begin()
    sim.supervisor_dies(ended={"x": None})  # it died between Save and Spawn
    sim.run()
    assert (sim.view("x").ready, sim.view("x").incarnation) == (True, 2)


@pytest.mark.parametrize(("temporary", "state"), [(True, "starting"), (False, "fatal")])
def test_a_start_that_was_taken_for_done_may_have_failed(temporary, state):
    sim = Sim(services(service("x")))
    sim.begin()
    sim.supervisor_dies()
    assert sim.state("x") == "running"
    sim.handle(SpawnFailed("x", 1, "exec", temporary))
    assert (sim.state("x"), sim.view("x").last_exit.words) == (state, "could not start: exec")
    sim.stop("x")
    sim.supervisor_dies()
    if temporary:
        sim.handle(SpawnFailed("x", 2, "exec", True))
    assert sim.state("x") == "stopped"


def test_what_is_not_in_the_configuration_any_more_is_stopped_and_forgotten():
    lives = {"idle": Life(lives=1.0)}
    sim = up(DB, WEB, service("idle", restart="never"), script=lambda name, n: lives.get(name, Life()))
    effects = kinds(sim.supervisor_dies(specs=services(DB)))
    assert effects == [Stop("web", 1), Forget("idle")]
    assert sim.view("web").state == "stopping"
    assert [each.what for each in sim.start("web")] == ["refused"]
    sim.run()
    assert sim.forgotten == ["idle", "web"]
    with pytest.raises(KeyError):
        sim.view("web")
    assert sim.engine.order == ["db"]


@pytest.mark.parametrize("state", State)
def test_a_record_of_what_is_not_in_the_configuration_any_more_starts_nothing(state):
    engine = Engine({}, StartBudget(), seed=1, now=0.0)
    engine.adopt("ghost", Record("ghost", state=state), alive=False, ready=False, exit=None, now=0.0)
    assert kinds(engine.begin(0.0)) == [Forget("ghost")]


def test_a_stuck_tree_stays_stuck():
    sim = up(service("x"), script=lambda *_: Life(survivors=1))
    sim.stop("x")
    sim.run()
    sim.supervisor_dies()
    assert (sim.state("x"), phase_of(sim, "x")) == ("fatal", Phase.STUCK)
    sim.handle(Emptied("x", 1))
    assert sim.state("x") == "stopped"


def test_records_are_json():
    sim = up(service("x"), script=lambda name, n: Life(lives=0.0, exit=KILLED) if n == 1 else Life())
    record = sim.records["x"]
    assert record.last_exit == KILLED
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
    assert msgspec.json.decode(b'{"name": "x", "later": 1}', type=Record) == Record("x")  # other versions


def test_a_restart_is_one_record():
    sim = up(service("x"))
    sim.handle(Exited("x", 1, KILLED))
    effects = sim.handle(Emptied("x", 1))
    assert [type(each) for each in effects if isinstance(each, (Save, Spawn))] == [Save, Spawn]
    assert kinds(effects, Save)[0].record.last_exit == KILLED


# ---- outcomes


def follow(sim, verb, name, *, steps):
    """The outcome right after the command and after each time that is run to."""
    before = sim.view(name)
    getattr(sim, verb)(name)
    seen = [outcome(verb, before, sim.view(name))]
    for step in steps:
        sim.run(until=sim.now + step)
        seen.append(outcome(verb, before, sim.view(name)))
    return seen


def test_outcomes_of_start():
    sim = up(service("x", type="notify"), script=lambda *_: Life(ready=2.0, stop=1.0))
    assert follow(sim, "start", "x", steps=[]) == ["unchanged"]
    assert follow(sim, "stop", "x", steps=[0.5, 1.0]) == [None, None, "done"]
    assert follow(sim, "stop", "x", steps=[]) == ["unchanged"]
    assert follow(sim, "start", "x", steps=[1.0, 1.5]) == [None, None, "done"]
    assert follow(sim, "restart", "x", steps=[0.5, 1.0, 2.0]) == [None, None, None, "done"]


def test_outcomes_of_a_oneshot():
    sim = up(service("job", type="oneshot"), script=lambda *_: Life(lives=1.0))
    assert follow(sim, "start", "job", steps=[0.5, 1.0]) == [None, None, "done"]
    assert follow(sim, "restart", "job", steps=[1.5]) == [None, "done"]


def test_outcomes_of_what_fails():
    job = service("y", type="oneshot", restart="never")
    sim = up(service("x", restart="never"), job, service("z", requires=("y",)),
             script=lambda *_: Life(lives=0.0, exit=FAILED))  # fmt: skip
    assert follow(sim, "start", "x", steps=[1.0]) == [None, "failed"]
    assert follow(sim, "start", "z", steps=[1.0]) == [None, "failed"]
    assert "y" in sim.view("z").reason
    sim = up(service("x"), script=lambda *_: Life(fails=SpawnFailed("", 0, "EACCES", False)))
    assert follow(sim, "restart", "x", steps=[1.0]) == [None, "failed"]
    sim = up(service("x"), script=lambda *_: Life(survivors=1))
    assert follow(sim, "stop", "x", steps=[1.0]) == [None, "failed"]


def test_a_refused_start_has_failed():
    lives = {"done": Life(lives=1.0)}
    sim = up(service("done"), service("x"), script=lambda name, n: lives.get(name, Life(stop=9.0)))
    sim.shutdown()
    assert follow(sim, "start", "done", steps=[]) == ["failed"]


def test_a_program_that_is_done_at_once_was_started():
    sim = up(service("x", restart="never"), script=lambda *_: Life(lives=0.0))
    assert follow(sim, "start", "x", steps=[1.0]) == [None, "done"]


def test_outcomes_of_stop_when_it_is_started_again():
    sim = up(service("x"), script=lambda *_: Life(stop=1.0))
    before = sim.view("x")
    sim.stop("x")
    sim.start("x")
    assert outcome("stop", before, sim.view("x")) is None
    sim.run()
    assert outcome("stop", before, sim.view("x")) == "done"


# ---- graphs


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([service("a", requires=("a",))], "a cycle: a -> a"),
        ([service("a", requires=("b",)), service("b", after=("c",)), service("c", requires=("a",))],
         "a cycle: a -> b -> c -> a"),
        ([service("a", after=("ghost",))], "a needs ghost, which is unknown"),
    ],
)  # fmt: skip
def test_cycles_and_unknown_names_are_errors(specs, message):
    with pytest.raises(ValueError, match=message):
        Sim(services(*specs))


def test_a_long_chain():
    """Longer than Python's stack is deep."""
    names = [f"s{n}" for n in range(3000)]
    specs = [service(name, requires=(names[n - 1],) if n else ()) for n, name in enumerate(names)]
    engine = Engine(services(*reversed(specs)), StartBudget(), seed=1, now=0.0)
    assert engine.order == names
    effects = engine.begin(0.0)
    for name in names:
        assert kinds(effects) == [Spawn(name, 1)]
        effects = engine.handle(Spawned(name, 1), 0.0)
    effects = engine.handle(StopAsked(targets("s0")), 0.0)
    for name in reversed(names):
        assert kinds(effects) == [Stop(name, 1)]
        engine.handle(Exited(name, 1, TERMINATED), 0.0)
        effects = engine.handle(Emptied(name, 1), 0.0)
    assert kinds(effects) == []


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs_of_100_services(seed):
    """Each starts exactly when the last that it needs is ready, and stops exactly when the last on it is empty."""
    rng = random.Random(seed)
    names = [f"s{n:03}" for n in range(100)]
    specs, lives = [], {}
    for place, name in enumerate(names):
        below = rng.sample(names[:place], min(place, rng.randrange(4)))
        split = rng.randrange(len(below) + 1)
        kind = rng.choice(["simple", "notify", "oneshot"])
        specs.append(service(name, type=kind, requires=tuple(below[:split]), after=tuple(below[split:])))
        lives[name] = Life(
            spawn=rng.random(), ready=rng.random(), lives=rng.random() if kind == "oneshot" else None,
            stop=rng.random(), rest=rng.random(),
        )  # fmt: skip
    rng.shuffle(specs)
    sim = Sim(services(*specs), lambda name, n: lives[name], now=1000.0)
    sim.begin()
    sim.run()
    assert all(view.ready for view in sim.engine.views())
    ready = {}
    for name in sim.engine.order:
        spec, life = sim.specs[name], lives[name]
        start = max((ready[other] for other in (*spec.requires, *spec.after)), default=1000.0)
        assert sim.spawned_at(name) == [pytest.approx(start)]
        ready[name] = start + life.spawn + {"simple": 0, "notify": life.ready, "oneshot": 0}[spec.type]
        if spec.type == "oneshot":
            ready[name] += life.lives + life.rest
    begun = sim.now
    sim.shutdown()
    sim.run()
    empty = {}
    for name in reversed(sim.engine.order):
        if sim.specs[name].type == "oneshot":
            continue
        above = [other for other in empty if name in (*sim.specs[other].requires, *sim.specs[other].after)]
        # Through a oneshot, which has no tree, whoever requires it stands on what it requires.
        above += [other for other in sim.graph.above([name]) if other in empty]
        stop = max((empty[other] for other in above), default=begun)
        assert [at for at, each in sim.stops if each == name] == [pytest.approx(stop)]
        empty[name] = stop + lives[name].stop + lives[name].rest
    assert sim.finished == [0]
    assert sim.now == pytest.approx(max(empty.values()))


def test_one_event_costs_as_much_as_its_neighbours():
    """Counted in lines of the engine, not in time: of 5,000 services that stand on one, the end of one concerns two."""
    import sys

    specs = services(service("base"), *(service(f"s{n}", requires=("base",)) for n in range(5000)))
    engine = Engine(specs, StartBudget(), seed=1, now=0.0)
    engine.begin(0.0)
    engine.handle(Spawned("base", 1), 0.0)
    for n in range(5000):
        engine.handle(Spawned(f"s{n}", 1), 0.0)
    lines = 0

    def count(frame, event, arg):
        nonlocal lines
        lines += event == "line"
        return count

    sys.settrace(count)
    try:
        engine.handle(Exited("s17", 1, KILLED), 1.0)
        engine.handle(Emptied("s17", 1), 1.0)
        engine.next_wake()
        engine.handle(StopAsked(targets("s4000")), 1.0)
    finally:
        sys.settrace(None)
    assert 50 < lines < 1500  # 5,000 at least, if all were looked at; each key of a service costs one or two
    assert engine.view("s17").incarnation == 2


def test_a_thousand_services_begin_quickly():
    """Milliseconds; the bound is a guard against walking all for each."""
    specs = services(service("base"), *(service(f"s{n}", requires=("base",)) for n in range(1000)))
    begun = time.monotonic()
    engine = Engine(specs, StartBudget(), seed=1, now=0.0)
    engine.begin(0.0)
    assert len(kinds(engine.handle(Spawned("base", 1), 0.0))) == 1000
    assert time.monotonic() - begun < 5.0


def test_late_answers_of_another_incarnation_change_nothing():
    sim = up(service("x"))
    sim.restart("x")
    sim.run()
    for event in (Spawned("x", 1), Exited("x", 1, TERMINATED), Emptied("x", 1), KeeperLost("x", 3), Emptied("y", 1)):
        assert sim.handle(event) == []
