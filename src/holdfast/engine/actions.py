"""What each action of the table does to a service.

An action looks at this service alone; what others mean for it comes as an input (engine.py).  It changes the fields,
enters a phase, and gives effects to the `World`.  No clock, no input or output.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Protocol

from . import beside, restart
from .beside import Beside
from .effects import Effect, Serve, Spawn, Stop, Tell
from .events import (
    COULD_NOT_START,
    KEEPER_LOST,
    READY_TIMEOUT,
    UNKNOWN,
    Emptied,
    Exit,
    Exited,
    Observed,
    Seconds,
    SpawnFailed,
    TimeExtended,
)
from .service import Unit
from .table import Phase

News = Observed | str  # what comes with an input: the event, or for the others a few words of why


class World(Protocol):
    """What an action may use of the engine."""

    now: Seconds
    rng: random.Random
    closing: bool  # the supervisor ends: nothing starts any more

    def emit(self, effect: Effect) -> None: ...
    def save(self, unit: Unit) -> None: ...


def come(unit: Unit, world: World, news: News) -> None:
    unit.clear()
    unit.wanted, unit.restart = True, False
    unit.next_why = str(news)
    unit.become(Phase.WAITING, world.now)


def want(unit: Unit, world: World, news: News) -> None:
    if not (unit.wanted and unit.asked):
        _tell(unit, world, "wanted", f"{news}: starts again when its tree is empty")
        unit.next_why = str(news)
    unit.clear()
    unit.wanted = unit.asked = True


def unwant(unit: Unit, world: World, news: News) -> None:
    if unit.wanted:
        _tell(unit, world, "wanted", f"{news}: stays stopped")
    unit.wanted = False


def give_up(unit: Unit, world: World, news: News) -> None:
    unit.wanted = False
    _rest(unit, world, "stopped by hand")


def renew(unit: Unit, world: World, news: News) -> None:
    unit.clear()
    unit.wanted = True
    yield_(unit, world, news)


def resign(unit: Unit, world: World, news: News) -> None:
    unit.wanted = False
    yield_(unit, world, news)


def yield_(unit: Unit, world: World, news: News) -> None:
    _give_next_up(unit, world, str(news))
    unit.asked = True
    unit.next_why = str(news)  # if it is to come back: what brings it down brings it up again
    unit.become(Phase.CANCELLED if unit.phase is Phase.SPAWNING else Phase.HOLDING, world.now, str(news))
    if unit.phase is Phase.CANCELLED:
        _tell(unit, world, "stopping", f"{news}, as soon as its start is answered")


def rest(unit: Unit, world: World, news: News) -> None:
    _rest(unit, world, str(news))


def wait(unit: Unit, world: World, news: News) -> None:
    if unit.phase is Phase.BLOCKED:
        unit.next_why = "what it requires is up"
    unit.become(Phase.WAITING, world.now)


def redo(unit: Unit, world: World, news: News) -> None:
    """What was done with the help of a service that is stopped now may be undone: a oneshot runs again with it."""
    if unit.completed:
        unit.next_why = str(news)
        wait(unit, world, news)


def block(unit: Unit, world: World, news: News) -> None:
    unit.become(Phase.BLOCKED, world.now)
    _tell(unit, world, "stopped", str(news))


def queue(unit: Unit, world: World, news: News) -> None:
    unit.become(Phase.QUEUED, world.now, "start budget")
    _tell(unit, world, "backoff", "waits for the start budget")


def spawn(unit: Unit, world: World, news: News) -> None:
    unit.last += 1
    unit.incarnation = unit.last
    unit.restarts += unit.restart
    unit.asked = unit.early = False
    unit.ready_at = unit.exit = None
    unit.cause = ""
    unit.why = unit.next_why
    if unit.restart:
        unit.why = f"restart {unit.restarts}" + (f": {unit.last_exit.words}" if unit.last_exit else "")
    unit.restart = False
    unit.become(Phase.SPAWNING, world.now)
    world.save(unit)
    world.emit(Spawn(unit.spec.name, unit.incarnation, unit.why))
    _tell(unit, world, "starting", unit.why)


def run(unit: Unit, world: World, news: News) -> None:
    _tell(unit, world, "spawned", "")
    if unit.spec.type == "simple" or unit.early:
        _be_ready(unit, world)
        return
    unit.become(Phase.UNREADY, world.now, "runs to its end" if unit.spec.type == "oneshot" else "not ready yet")
    if unit.spec.type == "notify":
        unit.wake_at = world.now + unit.spec.ready_timeout


def hold(unit: Unit, world: World, news: News) -> None:
    _tell(unit, world, "spawned", "")
    unit.become(Phase.HOLDING, world.now, unit.reason)


def stop(unit: Unit, world: World, news: News) -> None:
    unit.become(Phase.ENDING, world.now, unit.reason)
    _stop(unit, world)


def time_out(unit: Unit, world: World, news: News) -> None:
    unit.cause = READY_TIMEOUT
    unit.become(Phase.ENDING, world.now, "was not ready in time")
    _stop(unit, world)


def fail(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, SpawnFailed)
    unit.last_exit = Exit(None, None, cause=f"{COULD_NOT_START}: {news.reason}")
    unit.last_exit_of = unit.incarnation
    _tell(unit, world, "exited", unit.last_exit.words)
    if unit.asked or not unit.wanted or world.closing:
        _after_request(unit, world)
        return
    unit.failures += 1
    if news.temporary:  # whatever the policy says: it was not started yet
        _again(unit, world)
    else:
        _give_up_for_good(unit, world, Phase.FATAL, "fatal", unit.last_exit.words)


def note_ready(unit: Unit, world: World, news: News) -> None:
    unit.early = unit.spec.type == "notify"


def be_ready(unit: Unit, world: World, news: News) -> None:
    if unit.spec.type == "notify":
        _be_ready(unit, world)


def extend(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, TimeExtended)
    if unit.wake_at is not None:
        unit.wake_at = max(unit.wake_at, news.until)


def end(unit: Unit, world: World, news: News) -> None:
    note_exit(unit, world, news)
    unit.become(Phase.ENDING, world.now, unit.last_exit.words if unit.last_exit else "")


def note_exit(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, Exited)
    if unit.exit is None:
        _ended(unit, world, replace(news.exit, cause=unit.cause or news.exit.cause))
    elif unit.exit.code is None and unit.exit.signal is None:  # learnt after its keeper was lost
        unit.exit = unit.last_exit = replace(news.exit, cause=unit.exit.cause)
    else:
        return
    _tell(unit, world, "exited", unit.last_exit.words if unit.last_exit else "")


def lose(unit: Unit, world: World, news: News) -> None:
    note_loss(unit, world, news)
    unit.become(Phase.ENDING, world.now, KEEPER_LOST)


def note_loss(unit: Unit, world: World, news: News) -> None:
    if unit.exit is None:
        _ended(unit, world, Exit(None, None, cause=KEEPER_LOST))
    _tell(unit, world, "lost", KEEPER_LOST)


def settle(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, Emptied)
    if news.survivors:
        text = f"{news.survivors} of the processes of incarnation {unit.incarnation} outlived KILL"
        unit.become(Phase.STUCK, world.now, text)
        _tell(unit, world, "survived", text)
        return
    if unit.exit is None:
        _ended(unit, world, Exit(None, None, cause=unit.cause or UNKNOWN))
    _tell(unit, world, "emptied", "")
    assert unit.last_exit is not None
    if unit.asked or not unit.wanted or world.closing:
        _after_request(unit, world)
    elif restart.restarts(unit.spec, unit.last_exit):
        _again(unit, world)
    elif unit.completed:
        _give_up_for_good(unit, world, Phase.EXITED, "completed", unit.last_exit.words)
    else:
        text = f"{unit.last_exit.words}; restart = {unit.spec.restart}"
        _give_up_for_good(unit, world, Phase.EXITED, "ended", text)


# ---- with two trees


def replace_(unit: Unit, world: World, news: News) -> None:
    """Start its successor beside it; or, while there are two trees already, as soon as one of them has gone."""
    unit.clear()
    if unit.retired:
        unit.once_more = str(news)
        return
    unit.once_more = ""
    unit.last += 1
    unit.next = Beside(unit.last, why=str(news))
    unit.become(Phase.REPLACING, world.now, f"its successor, {unit.last}, is being started: {news}")
    world.save(unit)
    world.emit(Spawn(unit.spec.name, unit.last, str(news)))
    world.emit(Tell(unit.spec.name, unit.last, "starting", str(news)))


def hand_over(unit: Unit, world: World, news: News) -> None:
    before = Beside(unit.incarnation, spawned=True)
    _step_in(unit, world)
    _be_ready(unit, world)
    beside.retire(unit, world, before, f"{unit.incarnation} has taken over: {unit.why}")


def serve_on(unit: Unit, world: World, news: News) -> None:
    unit.become(Phase.RUNNING, world.now, f"its successor failed: {news}; this one serves on")
    _tell(unit, world, "kept", unit.reason)


def dismiss_next(unit: Unit, world: World, news: News) -> None:
    _give_next_up(unit, world, "was not ready in time")
    serve_on(unit, world, "was not ready in time")


def succeed(unit: Unit, world: World, news: News) -> None:
    """It has ended before its successor was ready: that one is the service's all the same."""
    assert unit.next is not None
    if isinstance(news, Exited):
        unit.last_exit = news.exit
    elif isinstance(news, SpawnFailed):
        unit.last_exit = Exit(None, None, cause=f"{COULD_NOT_START}: {news.reason}")
    else:
        unit.last_exit = Exit(None, None, cause=KEEPER_LOST)
    unit.last_exit_of = unit.incarnation
    _tell(unit, world, "exited", unit.last_exit.words)
    before, wake_at, spawned = Beside(unit.incarnation, spawned=True, ending=True), unit.wake_at, unit.next.spawned
    _step_in(unit, world)
    unit.become(Phase.UNREADY if spawned else Phase.SPAWNING, world.now, "not ready yet" if spawned else "")
    unit.wake_at = wake_at
    if not isinstance(news, SpawnFailed):
        beside.retire(unit, world, before, "")
    world.save(unit)


def _step_in(unit: Unit, world: World) -> None:
    """Its successor is the service's process."""
    assert unit.next is not None
    unit.incarnation, unit.why, unit.early = unit.next.incarnation, unit.next.why, unit.next.ready
    unit.next = unit.ready_at = unit.exit = None
    unit.asked, unit.cause = False, ""
    world.emit(Serve(unit.spec.name, unit.incarnation))


def _give_next_up(unit: Unit, world: World, why: str) -> None:
    if unit.next is not None:
        beside.retire(unit, world, unit.next, why)


# ---- parts of them


def _tell(unit: Unit, world: World, what: str, text: str) -> None:
    world.emit(Tell(unit.spec.name, unit.incarnation or None, what, text))


def _rest(unit: Unit, world: World, reason: str) -> None:
    unit.become(Phase.STOPPED, world.now, reason)
    _tell(unit, world, "stopped", reason)


def _be_ready(unit: Unit, world: World) -> None:
    unit.ready_at = world.now
    unit.become(Phase.RUNNING, world.now)
    _tell(unit, world, "ready", "")


def _stop(unit: Unit, world: World) -> None:
    world.save(unit)
    world.emit(Stop(unit.spec.name, unit.incarnation, unit.reason))
    _tell(unit, world, "stopping", unit.reason)


def _ended(unit: Unit, world: World, ended: Exit) -> None:
    """The main process has ended: count the life, if nobody asked for its end.  It counts from when it was ready:
    an hour that was spent in becoming so is no success."""
    unit.exit = unit.last_exit = ended
    unit.last_exit_of = unit.incarnation
    if unit.asked or not unit.wanted:
        return
    if unit.completed or (unit.ready_at is not None and world.now - unit.ready_at >= unit.spec.backoff.reset_after):
        unit.clear()
    else:
        unit.failures += 1


def _after_request(unit: Unit, world: World) -> None:
    if world.closing:
        _rest(unit, world, "stopped with the supervisor")
    elif not unit.wanted:
        _rest(unit, world, "not in the configuration any more" if unit.foreign else "stopped by hand")
    else:
        unit.become(Phase.WAITING, world.now)


def _again(unit: Unit, world: World) -> None:
    assert unit.last_exit is not None
    words, backoff = unit.last_exit.words, unit.spec.backoff
    if 0 < unit.spec.start_limit <= unit.failures:
        text = f"{unit.failures} starts in a row did not live {backoff.reset_after:g}s; last: {words}"
        _give_up_for_good(unit, world, Phase.FATAL, "fatal", text)
        return
    wait = restart.delay(backoff, unit.streak, world.rng)
    unit.streak += 1
    unit.restart = True
    if wait <= 0:
        unit.become(Phase.WAITING, world.now)
        return
    unit.become(Phase.BACKOFF, world.now, words)
    unit.wake_at = world.now + wait
    _tell(unit, world, "backoff", f"{words}; starts again in {wait:.3g}s")


def _give_up_for_good(unit: Unit, world: World, phase: Phase, what: str, text: str) -> None:
    unit.become(phase, world.now, text)
    _tell(unit, world, what, text)
