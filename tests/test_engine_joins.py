"""Steps, schedules and another plan at the same time, with a supervisor that dies in between or not."""

from __future__ import annotations

import pytest
from sim import KILLED, SUCCESS, TERMINATED, Life, Sim, phase_of, service, services, targets

from holdfast.config.model import Schedule, StartBudget
from holdfast.engine.effects import Spawn
from holdfast.engine.engine import Engine
from holdfast.engine.events import Emptied, Exited, RestartAsked, ScheduleDue, Spawned, SpawnFailed, Woken
from holdfast.engine.table import Phase

HOURLY = Schedule(every=3600.0)


def cleaning():
    """x has ended, and its post_stop is about to start."""
    sim = Sim(services(service("x", post_stop=("clean",)), service("other")))
    sim.begin()
    for name in ("x", "other"):
        sim.handle(Spawned(name, 1))
    sim.handle(Exited("x", 1, KILLED))
    sim.handle(Emptied("x", 1))
    assert phase_of(sim, "x") is Phase.CLEANING
    return sim


def another_plan(sim, killed, *specs):
    """Accepted; and the supervisor is killed before it has done anything of it, or not."""
    if killed:
        sim.supervisor_dies(specs=services(*specs))
    else:
        sim.update(services(*specs))


@pytest.mark.parametrize("killed", [False, True])
def test_the_post_stop_of_a_removed_service_is_not_tried_again(killed):
    """Nobody knows its command any more."""
    sim = cleaning()
    another_plan(sim, killed, service("other"))
    sim.handle(SpawnFailed("x", 2, "no process is left", True))
    assert (sim.forgotten, sim.engine.order) == (["x"], ["other"])


@pytest.mark.parametrize("killed", [False, True])
def test_a_post_stop_that_is_in_no_file_any_more_is_not_tried_again(killed):
    sim = cleaning()
    another_plan(sim, killed, service("x"), service("other"))
    sim.handle(SpawnFailed("x", 2, "no process is left", True))
    assert (sim.view("x").step, sim.view("x").state) == ("main", "starting")  # its restart


@pytest.mark.parametrize("killed", [False, True])
def test_a_removed_service_has_its_time_for_post_stop(killed):
    sim = cleaning()
    sim.handle(Spawned("x", 2))
    another_plan(sim, killed, service("other"))
    sim.now = 90.0
    sim.handle(Woken())
    assert sim.stops == [(90.0, "x")]
    sim.handle(Exited("x", 2, TERMINATED))
    sim.handle(Emptied("x", 2))
    assert sim.forgotten == ["x"]


@pytest.mark.parametrize("killed", [False, True])
def test_what_becomes_a_oneshot_with_a_schedule_does_not_stand_in_its_way(killed):
    """It would never have ended, and so no run would have been begun."""
    lives = {1: Life()}
    sim = Sim(services(service("x")), script=lambda name, number: lives.get(number, Life(lives=1.0)))
    sim.begin()
    sim.run()
    another_plan(sim, killed, service("x", type="oneshot", schedule=HOURLY))
    sim.run()
    assert (len(sim.stops), phase_of(sim, "x")) == (1, Phase.SCHEDULED)
    before = sim.view("x").incarnation
    sim.handle(ScheduleDue("x", 3600.0))
    assert sim.view("x").incarnation == before + 1


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_of_a_schedule_goes_on_with_what_it_was_started_with(killed):
    def job(**options):
        return service("x", type="oneshot", schedule=HOURLY, **options)

    sim = Sim(services(job()), script=lambda name, number: Life(lives=100.0))
    sim.begin()
    sim.handle(ScheduleDue("x", 3600.0))
    sim.run(until=10.0)
    another_plan(sim, killed, job(nice=3))
    sim.run()
    assert (sim.stops, sim.view("x").incarnation, sim.view("x").last_exit) == ([], 1, SUCCESS)
    sim.handle(ScheduleDue("x", 7200.0))
    assert sim.trees["x"].spec.nice == 3


@pytest.mark.parametrize("killed", [False, True])
def test_pre_start_runs_again_when_the_definition_has_changed(killed):
    sim = Sim(services(service("x", pre_start=("prepare",))), script=lambda name, number: Life())
    sim.begin()
    sim.handle(Spawned("x", 1))
    another_plan(sim, killed, service("x", pre_start=("prepare",), nice=3))
    sim.handle(Exited("x", 1, SUCCESS))
    effects = sim.handle(Emptied("x", 1))
    assert [effect.step for effect in effects if isinstance(effect, Spawn)] == ["pre_start"]


def test_what_becomes_essential_when_it_is_stuck_stops_nobody():
    """Its end was none for all the others."""
    sim = Sim(services(service("x"), service("other")))
    sim.begin()
    sim.run()
    sim.handle(Exited("x", 1, KILLED))
    sim.handle(Emptied("x", 1, survivors=1))
    sim.update(services(service("x", essential=True), service("other")))
    assert (sim.engine.closing, sim.state("other")) == (False, "running")


def test_to_ask_for_the_next_time_changes_nothing():
    """x and y are to be ready at the same time; x was so before, too, and was restarted."""

    def woken(asked):
        both = services(service("x", type="notify"), service("y", type="notify"))
        engine = Engine(both, StartBudget(), seed=1, now=0.0)
        engine.begin(0.0)
        restarted = RestartAsked(targets("x")), Exited("x", 1, SUCCESS), Emptied("x", 1)
        for event in (Spawned("x", 1), Spawned("y", 1), *restarted):
            engine.handle(event, 0.0)
            if asked:
                engine.next_wake()
        engine.handle(Spawned("x", 2), 0.0)
        return engine.handle(Woken(), 90.0)

    assert woken(asked=False) == woken(asked=True)
