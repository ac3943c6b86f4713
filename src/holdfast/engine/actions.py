"""What each action of the table does to a service.

An action looks at this service alone; what others mean for it comes as an input (engine.py).  It changes the fields,
enters a phase, and gives effects to the `World`.  No clock, no input or output.
"""

from __future__ import annotations

from dataclasses import replace

from ..config.diff import definition
from . import restart
from .beside import dismiss_next, give_next_up, hand_over, replace_, replace_anew, serve_on, succeed
from .effects import Spawn, Step, Stop
from .events import (
    COULD_NOT_START,
    KEEPER_LOST,
    NOT_DONE,
    PRE_START,
    READY_TIMEOUT,
    UNHEALTHY,
    UNKNOWN,
    BecameUnhealthy,
    Emptied,
    Exit,
    Exited,
    NotReadyYet,
    SpawnFailed,
    TimeExtended,
)
from .service import NOT_CONFIGURED, Unit
from .table import LEAVING, Phase
from .world import NOT_READY, News, World, because, enter_ready, tell

__all__ = ["dismiss_next", "hand_over", "replace_", "replace_anew", "serve_on", "succeed"]  # for the table

POST_STOP_TRIES = 3  # to start it, where that fails for a reason that may pass


def come(unit: Unit, world: World, news: News) -> None:
    unit.clear()
    unit.wanted, unit.restart = True, False
    unit.next_why = str(news)
    unit.become(Phase.WAITING, world.now)


def want(unit: Unit, world: World, news: News) -> None:
    if not (unit.wanted and unit.asked):
        tell(unit, world, "wanted", f"{news}: starts again when its tree is empty")
        unit.next_why = str(news)
    unit.clear()
    unit.wanted = unit.asked = True


def unwant(unit: Unit, world: World, news: News) -> None:
    if unit.wanted:
        tell(unit, world, "wanted", f"{news}: stays stopped")
    unit.wanted = False


def give_up(unit: Unit, world: World, news: News) -> None:
    unit.wanted = False
    _rest(unit, world, NOT_CONFIGURED if unit.foreign else "stopped by hand")


def renew(unit: Unit, world: World, news: News) -> None:
    unit.clear()
    unit.wanted = True
    yield_(unit, world, news)


def resign(unit: Unit, world: World, news: News) -> None:
    unit.wanted = False
    yield_(unit, world, news)


def yield_(unit: Unit, world: World, news: News) -> None:
    give_next_up(unit, world, str(news))
    unit.asked = True
    unit.next_why = str(news)  # if it is to come back: what brings it down brings it up again
    unit.become(Phase.CANCELLED if unit.phase is Phase.SPAWNING else Phase.HOLDING, world.now, str(news))
    if unit.phase is Phase.CANCELLED:
        tell(unit, world, "stopping", f"{news}, as soon as its start is answered")


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
    unit.main_next = False
    unit.become(Phase.BLOCKED, world.now)
    tell(unit, world, "stopped", str(news))


def queue(unit: Unit, world: World, news: News) -> None:
    unit.become(Phase.QUEUED, world.now, "start budget")
    tell(unit, world, "backoff", "waits for the start budget")


def spawn(unit: Unit, world: World, news: News) -> None:
    if unit.next_spec is not None:
        unit.spec, unit.next_spec = unit.next_spec, None
    unit.definition, unit.oneshot = definition(unit.spec), unit.spec.type == "oneshot"
    if unit.main_next:
        _spawn(unit, world, "main", Phase.SPAWNING)
        return
    unit.restarts += unit.restart
    unit.asked = unit.queued = False
    unit.start_failed = ""
    unit.why = unit.next_why
    if unit.restart:
        unit.why = f"restart {unit.restarts}" + (f": {unit.last_exit.words}" if unit.last_exit else "")
    unit.restart = False
    _spawn(unit, world, "pre_start" if unit.spec.pre_start else "main", Phase.SPAWNING)


def run(unit: Unit, world: World, news: News) -> None:
    tell(unit, world, "spawned", "")
    if unit.step == "pre_start":
        unit.become(Phase.UNREADY, world.now)
        unit.wake_at = world.now + unit.spec.ready_timeout
        return
    awaits = unit.spec.awaits
    if unit.early or (awaits is None and unit.spec.type != "oneshot"):
        enter_ready(unit, world)
        return
    unit.become(Phase.UNREADY, world.now, "runs to its end" if awaits is None else NOT_READY)
    if awaits is not None:
        unit.wake_at = world.now + awaits.timeout


def hold(unit: Unit, world: World, news: News) -> None:
    tell(unit, world, "spawned", "")
    unit.become(Phase.HOLDING, world.now, unit.reason)


def stop(unit: Unit, world: World, news: News) -> None:
    unit.become(Phase.ENDING, world.now, unit.reason)
    _stop(unit, world)


def time_out(unit: Unit, world: World, news: News) -> None:
    if unit.step == "main":
        unit.cause, reason = because(READY_TIMEOUT, unit.doubts), because("was not ready in time", unit.doubts)
    else:
        unit.cause, reason = f"{unit.step} {NOT_DONE}", f"{unit.step} was {NOT_DONE}"
    unit.become(Phase.ENDING, world.now, reason)
    _stop(unit, world)


def doubt(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, NotReadyYet)
    unit.doubts = news.why
    unit.reason = because(NOT_READY, unit.doubts)


def condemn(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, BecameUnhealthy)
    unit.cause = unit.cause or because(UNHEALTHY, news.why)
    unit.become(Phase.ENDING, world.now, unit.cause)
    _stop(unit, world)


def fail(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, SpawnFailed)
    if unit.step == "post_stop":  # told as started by a supervisor that was killed before it was
        skip_cleaning(unit, world, news)
        return
    about = "" if unit.step == "main" else f"{unit.step}: "
    unit.last_exit = Exit(None, None, cause=f"{COULD_NOT_START}: {about}{news.reason}")
    unit.last_exit_of = unit.incarnation
    tell(unit, world, "exited", unit.last_exit.words)
    if not (unit.asked or not unit.wanted or world.closing):
        unit.failures += 1
    unit.exit, unit.start_failed = unit.last_exit, "for now" if news.temporary else "for good"
    if unit.spec.pre_start and unit.step == "main":
        _end_step(unit, world)  # its pre_start has done something that post_stop may undo
    else:
        _decide(unit, world)


def clean(unit: Unit, world: World, news: News) -> None:
    tell(unit, world, "spawned", "")
    unit.wake_at = world.now + unit.spec.ready_timeout


def skip_cleaning(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, SpawnFailed)
    tell(unit, world, "exited", f"post_stop {COULD_NOT_START}: {news.reason}")
    if news.temporary and unit.incarnation - unit.last_exit_of < POST_STOP_TRIES:
        _end_step(unit, world)
    else:
        _decide(unit, world)


def overlap(unit: Unit, world: World, news: News) -> None:
    """A time of its schedule has come while the run before is not over."""
    how = unit.spec.schedule.overlap
    if not unit.wanted or how == "skip":
        tell(unit, world, "skipped", f"{news}: the run before is not over")
    elif how == "restart" and unit.phase not in LEAVING:
        renew(unit, world, news)
    elif not unit.asked:
        unit.queued, unit.next_why = True, str(news)
        tell(unit, world, "wanted", f"{news}: runs again when this run is over")


def note_ready(unit: Unit, world: World, news: News) -> None:
    unit.early = unit.spec.awaits is not None and unit.step == "main"


def be_ready(unit: Unit, world: World, news: News) -> None:
    if unit.spec.awaits is not None and unit.step == "main":
        enter_ready(unit, world)


def extend(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, TimeExtended)
    if unit.wake_at is not None and unit.step == "main":
        unit.wake_at = max(unit.wake_at, news.until)


def end(unit: Unit, world: World, news: News) -> None:
    note_exit(unit, world, news)
    unit.become(Phase.ENDING, world.now, unit.exit.words if unit.exit else "")


def note_exit(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, Exited)
    if unit.exit is None:
        _ended(unit, world, replace(news.exit, cause=unit.cause or news.exit.cause))
    elif unit.exit.code is None and unit.exit.signal is None:  # learnt after its keeper was lost
        unit.exit = replace(news.exit, cause=unit.exit.cause)
        if unit.last_exit_of == unit.incarnation:
            unit.last_exit = unit.exit
    else:
        return
    assert unit.exit is not None
    about = "" if unit.step == "main" or unit.exit.cause.startswith(unit.step) else f"{unit.step}: "
    tell(unit, world, "exited", about + unit.exit.words)


def lose(unit: Unit, world: World, news: News) -> None:
    note_loss(unit, world, news)
    unit.become(Phase.ENDING, world.now, KEEPER_LOST)


def note_loss(unit: Unit, world: World, news: News) -> None:
    if unit.exit is None:
        _ended(unit, world, Exit(None, None, cause=KEEPER_LOST))
    tell(unit, world, "lost", KEEPER_LOST)


def settle(unit: Unit, world: World, news: News) -> None:
    assert isinstance(news, Emptied)
    if news.survivors:
        text = f"{news.survivors} of the processes of incarnation {unit.incarnation} outlived KILL"
        unit.become(Phase.STUCK, world.now, text)
        tell(unit, world, "survived", text)
        return
    if unit.exit is None:
        _ended(unit, world, Exit(None, None, cause=unit.cause or UNKNOWN))
    tell(unit, world, "emptied", "")
    if unit.prepared and not (unit.asked or not unit.wanted or world.closing):
        unit.main_next = True
        unit.become(Phase.WAITING, world.now)  # and on at once, unless what it requires has gone meanwhile
        return
    if unit.prepared and unit.exit:
        unit.last_exit, unit.last_exit_of = replace(unit.exit, cause=PRE_START), unit.incarnation
    if unit.step == "post_stop":
        _decide(unit, world)
    else:
        _end_step(unit, world)


# ---- parts of them


def _spawn(unit: Unit, world: World, step: Step, phase: Phase, reason: str = "") -> None:
    unit.last += 1
    unit.incarnation = unit.last
    unit.step = step
    unit.early = unit.main_next = False
    unit.ready_at = unit.exit = None
    unit.cause = unit.doubts = ""
    unit.become(phase, world.now, reason)
    world.save(unit)
    world.emit(Spawn(unit.spec.name, unit.incarnation, unit.why, step))
    tell(unit, world, "starting", unit.why if step == "main" else f"{step}: {unit.why}")


def _end_step(unit: Unit, world: World) -> None:
    """Nothing is left of pre_start or main, or nothing came of post_stop: it is tried again."""
    if unit.foreign or world.finished or not unit.spec.post_stop:  # the file may be another one by now
        _decide(unit, world)
        return
    if unit.exit is not None:  # None: it is tried again
        unit.why = unit.exit.words
    _spawn(unit, world, "post_stop", Phase.CLEANING, unit.reason)


def _decide(unit: Unit, world: World) -> None:
    """Nothing of it is left: what becomes of it follows from how main has ended, or what came before it."""
    assert unit.last_exit is not None
    if unit.asked or not unit.wanted or world.closing:
        _after_request(unit, world)
    elif unit.queued:
        unit.clear()
        unit.become(Phase.WAITING, world.now)
    elif unit.start_failed == "for good":
        _give_up_for_good(unit, world, Phase.FATAL, "fatal", unit.last_exit.words)
    elif unit.start_failed or restart.restarts(unit.spec, unit.last_exit):
        _again(unit, world)
    elif unit.completed:
        _give_up_for_good(unit, world, Phase.EXITED, "completed", unit.last_exit.words)
    else:
        text = f"{unit.last_exit.words}; restart = {unit.spec.restart}"
        _give_up_for_good(unit, world, Phase.EXITED, "ended", text)


def _rest(unit: Unit, world: World, reason: str) -> None:
    unit.become(Phase.STOPPED, world.now, reason)
    tell(unit, world, "stopped", reason)


def _stop(unit: Unit, world: World) -> None:
    world.save(unit)
    world.emit(Stop(unit.spec.name, unit.incarnation, unit.reason))
    tell(unit, world, "stopping", unit.reason)


def _ended(unit: Unit, world: World, ended: Exit) -> None:
    """The main process has ended: count the life, if nobody asked for its end.  It counts from when it was ready:
    an hour that was spent in becoming so is no success."""
    if unit.step == "pre_start" and not ended.cause and ended.code != 0:
        ended = replace(ended, cause=PRE_START)
    unit.exit = ended
    if unit.step == "post_stop" or unit.prepared:
        return
    unit.last_exit, unit.last_exit_of = ended, unit.incarnation
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
        _rest(unit, world, NOT_CONFIGURED if unit.foreign else "stopped by hand")
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
    tell(unit, world, "backoff", f"{words}; starts again in {wait:.3g}s")


def _give_up_for_good(unit: Unit, world: World, phase: Phase, what: str, text: str) -> None:
    unit.become(Phase.SCHEDULED if unit.spec.schedule.given else phase, world.now, text)
    tell(unit, world, what, text)
