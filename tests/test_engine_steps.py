"""What the engine makes of pre_start and post_stop: their order among services, and what follows from their ends."""

from __future__ import annotations

import pytest
from sim import KILLED, SUCCESS, Life, Sim, phase_of, service, services

from holdfast.engine.effects import Spawn
from holdfast.engine.events import Emptied, Exit, Exited, Spawned, SpawnFailed
from holdfast.engine.outcome import outcome
from holdfast.engine.table import Phase

FAILED = Exit(1, None)


def both(name="x", **options):
    return service(name, pre_start=("prepare",), post_stop=("clean",), **options)


def steps(sim, name="x"):
    """Of each incarnation, in order."""
    effects = [effect for what, *given in sim.log if what in ("begin", "handle") for effect in given[-1]]
    return [effect.step for effect in effects if isinstance(effect, Spawn) and effect.name == name]


def running(spec, *others, **lives):
    """Started, with a script: lives by incarnation, `_1` the first; pre_start and post_stop end at once without one."""

    def script(name, number):
        tree = sim.trees.get(name)
        if name == "x" and f"_{number}" in lives:
            return lives[f"_{number}"]
        return Life(lives=1.0) if tree and tree.step != "main" else Life()

    sim = Sim(services(*others, spec), script)
    sim.begin()
    sim.run(until=50)
    return sim


def test_who_requires_it_waits_for_main_and_not_for_pre_start():
    sim = running(both(type="notify"), service("front", requires=("x",)), _2=Life(ready=5.0))
    assert steps(sim) == ["pre_start", "main"]
    assert sim.spawned_at("front") == [6.0]
    front, view = sim.view("front"), sim.view("x")
    sim.stop("x")
    assert outcome("stop", view, sim.view("x")) is None
    sim.run(until=50)
    assert sim.state("x") == "stopping" or sim.state("x") == "stopped"
    sim.run()
    assert (steps(sim)[-1], sim.state("x"), sim.state("front")) == ("post_stop", "stopped", "stopped")
    assert outcome("stop", view, sim.view("x")) == "done"
    assert sim.view("front").incarnation == front.incarnation


def test_stop_is_not_done_before_post_stop_is():
    sim = running(both(), _3=Life(lives=20.0))
    view = sim.view("x")
    sim.stop("x")
    sim.run(until=sim.now + 10)
    assert (sim.state("x"), sim.view("x").step) == ("stopping", "post_stop")
    assert outcome("stop", view, sim.view("x")) is None
    assert sim.view("x").reason == "post_stop runs; asked to stop"
    sim.run()
    assert outcome("stop", view, sim.view("x")) == "done"


@pytest.mark.parametrize("killed", [False, True], ids=["", "with a supervisor killed during post_stop"])
def test_the_reason_of_the_end_is_kept_over_post_stop(killed):
    sim = running(both(), _2=Life(lives=3.0, exit=KILLED), _3=Life(lives=5.0, exit=FAILED), _5=Life())
    if killed:
        sim = running(both(), _2=Life(lives=3.0, exit=KILLED), _3=Life())
        assert phase_of(sim, "x") is Phase.CLEANING
        sim.supervisor_dies()
        assert (phase_of(sim, "x"), sim.view("x").wake_at) == (Phase.CLEANING, sim.now + 90.0)
        sim.handle(Exited("x", 3, FAILED))
        sim.handle(Emptied("x", 3))
        sim.run(until=sim.now + 50)
    assert steps(sim) == ["pre_start", "main", "post_stop", "pre_start", "main"]
    assert sim.view("x").last_exit == KILLED
    assert (sim.view("x").restarts, sim.view("x").last_exit_of) == (1, 2)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(("temporary", "state"), [(True, "running"), (False, "fatal")])
def test_a_main_that_cannot_be_started_is_cleaned_up_after(temporary, state, killed):
    failed = SpawnFailed("", 0, "why", temporary)
    sim = running(both(restart="never"), _2=Life(fails=failed), _3=Life())
    assert (steps(sim), sim.view("x").step) == (["pre_start", "main", "post_stop"], "post_stop")
    if killed:
        sim.supervisor_dies()
    sim.handle(Exited("x", 3, SUCCESS))
    sim.handle(Emptied("x", 3))
    sim.run(until=sim.now + 50)
    assert sim.state("x") == state


def test_a_post_stop_that_cannot_be_started_is_tried_again_and_then_left_out():
    failed = SpawnFailed("", 0, "no process is left", True)
    sim = running(both(restart="never"), _2=Life(lives=1.0), _3=Life(fails=failed), _4=Life(fails=failed),
                  _5=Life(fails=failed))  # fmt: skip
    sim.run()
    assert steps(sim)[2:] == ["post_stop"] * 3
    assert (sim.state("x"), sim.view("x").last_exit) == ("exited", SUCCESS)
    assert sim.told("x").count("fatal") == 0


def test_each_step_has_so_much_time():
    sim = running(both(restart="never"), _1=Life(stop=2.0), _2=Life(lives=30.0, stop=1.0))
    assert (sim.view("x").step, sim.view("x").wake_at) == ("pre_start", 90.0)
    sim.run()
    assert steps(sim) == ["pre_start", "post_stop"]
    assert sim.view("x").last_exit.cause == "pre_start not done in time"
    assert sim.view("x").last_exit.abnormal
    late = running(both(), _2=Life(lives=1.0, exit=SUCCESS), _3=Life(stop=1.0))
    late.run()
    assert [name for _, name in late.stops] == ["x"]
    assert (late.state("x"), late.view("x").last_exit) == ("exited", SUCCESS)


def test_a_shutdown_waits_for_post_stop():
    sim = running(both(), _3=Life(lives=20.0))
    sim.shutdown()
    sim.run(until=sim.now + 10)
    assert (sim.finished, sim.view("x").step) == ([], "post_stop")
    assert sim.records["x"].step == "post_stop"  # for who comes if we are killed now
    sim.run()
    assert sim.finished == [0]


def test_what_pre_start_has_done_is_not_relied_on_when_what_it_requires_has_gone():
    """db ends for good between the end of pre_start and its tree's."""
    sim = Sim(services(service("db", restart="never"), both(requires=("db",))))
    sim.begin()
    sim.handle(Spawned("db", 1))
    sim.handle(Spawned("x", 1))
    sim.handle(Exited("x", 1, SUCCESS))
    sim.handle(Exited("db", 1, FAILED))
    sim.handle(Emptied("db", 1))
    sim.handle(Emptied("x", 1))
    assert (steps(sim), sim.state("x")) == (["pre_start"], "stopped")
    sim.start("db")
    sim.handle(Spawned("db", 2))
    assert steps(sim) == ["pre_start", "pre_start"]
