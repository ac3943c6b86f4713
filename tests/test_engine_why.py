"""Why the engine starts and stops: who asked, what it was for, what ended before; over restarts of the supervisor."""

from __future__ import annotations

from sim import Life, Sim, service, services, targets

from holdfast.config.model import Backoff
from holdfast.engine.effects import Spawn, Stop
from holdfast.engine.events import Exit, RestartAsked, ShutdownAsked, SpawnFailed, StartAsked, StopAsked

ME = "pid 7, uid 0"


def up(*specs, script=None):
    sim = Sim(services(*specs), script)
    sim.begin()
    settle(sim)
    return sim


def settle(sim):
    sim.run(until=sim.now + 20)


def whys(sim, name):
    """Of every start, as Spawn has it."""
    effects = [effect for what, *rest in sim.log if what in ("begin", "handle") for effect in rest[-1]]
    return [effect.why for effect in effects if isinstance(effect, Spawn) and effect.name == name]


def stops(effects):
    return {effect.name: effect.why for effect in effects if isinstance(effect, Stop)}


def test_a_first_start_comes_with_the_supervisor():
    sim = up(service("x"))
    assert whys(sim, "x") == ["with the supervisor"]
    assert sim.view("x").why == sim.records["x"].why == "with the supervisor"


def test_who_asked_is_in_the_words():
    sim = up(service("x"))
    assert stops(sim.handle(StopAsked(targets("x"), ME))) == {"x": f"asked to stop ({ME})"}
    settle(sim)
    sim.handle(StartAsked(targets("x"), ME))
    settle(sim)
    assert stops(sim.handle(RestartAsked(targets("x"), ME))) == {"x": f"asked to restart ({ME})"}
    settle(sim)
    assert whys(sim, "x")[1:] == [f"asked to start ({ME})", f"asked to restart ({ME})"]
    assert stops(sim.handle(ShutdownAsked("SIGTERM"))) == {"x": "the supervisor ends (SIGTERM)"}


def test_a_restart_names_what_ended_before():
    sim = up(
        service("x", backoff=Backoff(jitter=0.0)),
        script=lambda _, n: Life(lives=5.0, exit=Exit(3, None)) if n == 1 else Life(),
    )
    assert whys(sim, "x") == ["with the supervisor", "restart 1: exited with code 3"]
    assert [tell.text for _, tell in sim.tells if tell.what == "starting"] == whys(sim, "x")


def test_a_restart_after_a_start_that_failed():
    failed = SpawnFailed("", 0, "no memory", temporary=True)
    sim = up(service("x"), script=lambda _, n: Life(fails=failed) if n == 1 else Life())
    assert whys(sim, "x") == ["with the supervisor", "restart 1: could not start: no memory"]


def test_what_is_required_is_started_and_stopped_along():
    sim = up(service("db"), service("web", requires=("db",)))
    effects = sim.handle(StopAsked(targets("db"), ME))
    assert stops(effects) == {"web": f"what it requires is stopped ({ME})"}
    settle(sim)
    sim.handle(StartAsked(targets("web"), ME))
    settle(sim)
    assert whys(sim, "db")[1:] == [f"what requires it was asked to start ({ME})"]
    assert whys(sim, "web")[1:] == [f"asked to start ({ME})"]
    sim.handle(RestartAsked(targets("db"), ME))
    settle(sim)
    assert whys(sim, "web")[2:] == [f"what it requires is restarted ({ME})"]


def test_one_that_was_held_back_comes_when_what_it_requires_is_up():
    sim = up(service("db"), service("web", requires=("db",)))
    sim.stop("db")
    settle(sim)
    sim.start("db")
    settle(sim)
    assert whys(sim, "web") == ["with the supervisor", "what it requires is up"]


def test_a_oneshot_that_is_done_again_says_so():
    sim = up(service("db"), service("job", type="oneshot", requires=("db",)), script=lambda name, _: Life(
        lives=0.1 if name == "job" else None
    ))  # fmt: skip
    sim.restart("db")
    settle(sim)
    assert whys(sim, "job") == ["with the supervisor", "what it requires is restarted"]


def test_a_start_asked_for_while_it_ends_is_the_reason_of_the_next():
    sim = up(service("x"), script=lambda *_: Life(stop=3.0))
    sim.stop("x")
    sim.handle(StartAsked(targets("x"), ME))
    settle(sim)
    assert whys(sim, "x") == ["with the supervisor", f"asked to start ({ME})"]


def test_it_outlives_the_supervisor():
    sim = up(service("x"), script=lambda *_: Life(stop=3.0))
    sim.supervisor_dies()
    assert sim.view("x").why == "with the supervisor"
    sim.handle(RestartAsked(targets("x"), ME))
    effects = sim.supervisor_dies()  # with the stop under way
    assert stops(effects) == {"x": f"asked to restart ({ME})"}
    settle(sim)
    assert whys(sim, "x")[1:] == [f"asked to restart ({ME})"]


def test_words_make_no_difference_to_what_is_done():
    assert Spawn("x", 1, "one") == Spawn("x", 1, "another")
    assert Stop("x", 1, "one") == Stop("x", 1)
