"""Trees of a service beside the one that serves, where `restart_order` is `start-first`: its successor, while that is
started, and those that are on their way out.  The table (table.py) is about the one that serves; what is heard of the
others comes to it as an input at most.  No clock, no input or output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.diff import definition
from .effects import Serve, Spawn, Stop, Tell
from .events import (
    COULD_NOT_START,
    KEEPER_LOST,
    UNHEALTHY,
    BecameReady,
    BecameUnhealthy,
    Emptied,
    Exit,
    Exited,
    KeeperLost,
    NotReadyYet,
    Observed,
    Spawned,
    SpawnFailed,
    TimeExtended,
)
from .table import Input, Phase
from .world import NOT_READY, News, World, because, enter_ready, tell

if TYPE_CHECKING:
    from .service import Unit


@dataclass(slots=True)
class Beside:
    """One of them.  It is in `Unit.next`, or in `Unit.retired` until its tree is empty."""

    incarnation: int
    spawned: bool = False
    ready: bool = False  # it has said so
    ending: bool = False  # its main process has ended, or a Stop was given
    stuck: bool = False  # its tree could not be ended by KILL: nobody waits for it, and nothing is started beside it
    why: str = ""  # it was started
    doubts: str = ""  # why it is not ready yet, if that was said
    definition: str = ""  # digest of what it was started with


def given_back(numbers: tuple[int, ...]) -> Mapping[int, Beside]:
    """Those that a supervisor before us has left on their way out; each is still to be stopped."""
    return {number: Beside(number, spawned=True) for number in numbers}


def retire(unit: Unit, world: World, each: Beside, why: str) -> None:
    """It is to end, with the service's grace.  One whose start was not answered is stopped when it is."""
    unit.retired[each.incarnation] = each
    if unit.next is each:
        unit.next = None
    world.save(unit)
    if each.spawned and not each.ending:
        each.ending = True
        world.emit(Stop(unit.spec.name, each.incarnation, why))
        world.emit(Tell(unit.spec.name, each.incarnation, "stopping", why))


def observe(unit: Unit, world: World, event: Observed) -> tuple[Input, str] | None:
    """Take what is heard of one of them: what it means for the service, and why."""

    def say(what: str, text: str) -> None:
        world.emit(Tell(unit.spec.name, event.incarnation, what, text))

    each = unit.next if unit.next and unit.next.incarnation == event.incarnation else unit.retired[event.incarnation]
    is_next = each is unit.next
    awaits = unit.following.awaits
    match event:
        case Spawned() if not each.spawned:
            each.spawned = True
            say("spawned", "")
            if not is_next:
                retire(unit, world, each, "is not wanted any more")
            elif awaits is not None:
                unit.wake_at = world.now + awaits.timeout
        case BecameReady():
            each.ready = True
        case NotReadyYet():
            each.doubts = event.why
        case TimeExtended() if is_next and unit.wake_at is not None:
            unit.wake_at = max(unit.wake_at, event.until)
        case SpawnFailed():
            _forget(unit, each)
            say("exited", event.reason)
            return (Input.NEXT_FAILED, event.reason) if is_next else None
        case Exited() | KeeperLost():
            words = event.exit.words if isinstance(event, Exited) else KEEPER_LOST
            say("exited" if isinstance(event, Exited) else "lost", words)
            each.ending = True
            if is_next:
                retire(unit, world, each, words)
                return Input.NEXT_FAILED, words
        case Emptied() if event.survivors:
            each.ending = each.stuck = True
            if is_next:
                retire(unit, world, each, "")
            say("survived", f"{event.survivors} of its processes outlived KILL")
            return (Input.NEXT_FAILED, "ended") if is_next else None
        case Emptied():
            _forget(unit, each)
            say("emptied", "")
            return (Input.NEXT_FAILED, "ended") if is_next else None
    if is_next and each.spawned and (awaits is None or each.ready):
        return Input.NEXT_READY, ""
    return None


# ---- actions of the table


def replace_(unit: Unit, world: World, news: News) -> None:
    """Start its successor beside it; or, while there are two trees already, as soon as one of them has gone."""
    unit.clear()
    if unit.retired:
        unit.once_more = str(news)
        return
    unit.once_more = ""
    unit.last += 1
    unit.next = Beside(unit.last, why=str(news), definition=definition(unit.following))
    unit.become(Phase.REPLACING, world.now, f"its successor, {unit.last}, is being started: {news}")
    world.save(unit)
    world.emit(Spawn(unit.spec.name, unit.last, str(news)))
    world.emit(Tell(unit.spec.name, unit.last, "starting", str(news)))


def replace_anew(unit: Unit, world: World, news: News) -> None:
    """Of the definition that holds now there is no successor yet; if it is not that of the present one."""
    assert unit.next is not None
    if unit.next.definition == definition(unit.following):
        return
    serve_on(unit, world, news)
    if unit.next_spec is not None:
        unit.once_more = str(news)


def hand_over(unit: Unit, world: World, news: News) -> None:
    before = Beside(unit.incarnation, spawned=True)
    _step_in(unit, world)
    enter_ready(unit, world)
    retire(unit, world, before, f"{unit.incarnation} has taken over: {unit.why}")


def serve_on(unit: Unit, world: World, news: News) -> None:
    give_next_up(unit, world, str(news))
    unit.become(Phase.RUNNING, world.now, f"its successor failed: {news}; this one serves on")
    tell(unit, world, "kept", unit.reason)


def dismiss_next(unit: Unit, world: World, news: News) -> None:
    assert unit.next is not None
    serve_on(unit, world, because("was not ready in time", unit.next.doubts))


def succeed(unit: Unit, world: World, news: News) -> None:
    """It has ended, or is not well, before its successor was ready: that one is the service's all the same."""
    assert unit.next is not None
    before = Beside(unit.incarnation, spawned=True, ending=True)
    if isinstance(news, BecameUnhealthy):
        before.ending = False
        unit.last_exit = Exit(None, None, cause=because(UNHEALTHY, news.why))
    elif isinstance(news, Exited):
        unit.last_exit = news.exit
    elif isinstance(news, SpawnFailed):
        unit.last_exit = Exit(None, None, cause=f"{COULD_NOT_START}: {news.reason}")
    else:
        unit.last_exit = Exit(None, None, cause=KEEPER_LOST)
    unit.last_exit_of = unit.incarnation
    if before.ending:
        tell(unit, world, "exited", unit.last_exit.words)
    wake_at, spawned = unit.wake_at, unit.next.spawned
    _step_in(unit, world)
    reason = because(NOT_READY, unit.doubts) if spawned else ""
    unit.become(Phase.UNREADY if spawned else Phase.SPAWNING, world.now, reason)
    unit.wake_at = wake_at
    if not isinstance(news, SpawnFailed):
        retire(unit, world, before, "" if before.ending else unit.last_exit.cause)
    world.save(unit)


def _step_in(unit: Unit, world: World) -> None:
    """Its successor is the service's process."""
    assert unit.next is not None
    if unit.next_spec is not None:
        unit.spec, unit.next_spec = unit.next_spec, None
    unit.definition = unit.next.definition
    unit.incarnation, unit.why, unit.early = unit.next.incarnation, unit.next.why, unit.next.ready
    unit.doubts = unit.next.doubts
    unit.next = unit.ready_at = unit.exit = None
    unit.asked, unit.cause = False, ""
    world.emit(Serve(unit.spec.name, unit.incarnation))


def give_next_up(unit: Unit, world: World, why: str) -> None:
    if unit.next is not None:
        retire(unit, world, unit.next, why)


def _forget(unit: Unit, each: Beside) -> None:
    if unit.next is each:
        unit.next = None
    else:
        del unit.retired[each.incarnation]
