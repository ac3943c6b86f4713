"""Another plan for an engine that runs, and trees that were started with another definition."""

from __future__ import annotations

from dataclasses import replace

from sim import KILLED, Life, Sim, service, services

from holdfast.engine.events import Exit


def test_an_update_restarts_what_changed_and_what_requires_it_in_order():
    specs = services(service("db"), service("web", requires=("db",)), service("other"))
    sim = Sim(specs)
    sim.begin()
    sim.run()
    sim.update({**specs, "db": service("db", nice=3)})
    sim.run()
    assert [name for _, name in sim.stops] == ["web", "db"]
    assert [(name, number) for _, name, number in sim.spawns[3:]] == [("db", 2), ("web", 2)]


def test_an_update_stops_what_is_gone_in_its_old_order():
    specs = services(service("db"), service("web", requires=("db",)), service("other"))
    sim = Sim(specs)
    sim.begin()
    sim.run()
    sim.update(services(service("other")))
    sim.run()
    assert [name for _, name in sim.stops] == ["web", "db"] and sim.forgotten == ["web", "db"]
    assert sim.engine.order == ["other"]


def test_one_that_comes_to_stand_on_another_that_stops_comes_down_first():
    """It was not asked to: the other would have waited for it for ever."""
    specs = services(service("db"), service("web"), service("above", requires=("db",)))
    sim = Sim(specs, script=lambda name, number: Life(stop=1.0))
    sim.begin()
    sim.run()
    sim.stop("db")  # holds until `above` has stopped
    sim.update({**specs, "web": service("web", requires=("db",))})
    sim.run()
    assert [name for _, name in sim.stops][-1] == "db"
    assert sim.state("db") == "stopped" and sim.view("web").reason == "requires db: down"


def test_what_can_be_applied_is_applied_at_once():
    specs = services(service("web", restart="never"))
    sim = Sim(specs, script=lambda name, number: Life(lives=5.0 if number == 1 else None, exit=KILLED))
    sim.begin()
    sim.run(until=1.0)
    sim.update(services(service("web", restart="always")))
    assert sim.stops == []
    sim.run()
    assert sim.view("web").incarnation == 2


def test_a_service_that_becomes_essential_when_it_has_ended_is_started_and_stops_nobody():
    sim = Sim(services(service("job", restart="never"), service("web")), script=lambda name, number: Life(
        lives=1.0 if (name, number) == ("job", 1) else None, exit=Exit(1, None)))  # fmt: skip
    sim.begin()
    sim.run()
    assert sim.state("job") == "exited"
    sim.update(services(service("job", restart="never", essential=True), service("web")))
    sim.run()
    assert sim.state("job") == "running" and not sim.finished


def test_a_tree_of_another_definition_is_replaced_at_start_up():
    specs = services(service("db"), service("web", requires=("db",)), service("other"))
    sim = Sim(specs)
    sim.begin()
    sim.run()
    sim.supervisor_dies(specs={**specs, "db": service("db", nice=3)})
    sim.run()
    assert [(name, number) for _, name, number in sim.spawns[3:]] == [("db", 2), ("web", 2)]
    assert "outdated" in sim.told("db") and "outdated" not in sim.told("web")
    assert sim.view("db").why == "its definition has changed"


def test_a_record_without_a_digest_is_of_no_other_definition():
    sim = Sim(services(service("web")))
    sim.begin()
    sim.run()
    sim.records["web"] = replace(sim.records["web"], definition="")
    sim.supervisor_dies(specs=services(service("web", nice=3)))
    assert sim.stops == []
