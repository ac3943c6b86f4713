"""Trees of a service beside the one that serves, where `restart_order` is `start-first`: its successor, while that is
started, and those that are on their way out.  The table (table.py) is about the one that serves; what is heard of the
others comes to it as an input at most.  No clock, no input or output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .effects import Stop, Tell
from .events import KEEPER_LOST, BecameReady, Emptied, Exited, KeeperLost, Observed, Spawned, SpawnFailed, TimeExtended
from .table import Input

if TYPE_CHECKING:
    from .actions import World
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

    def tell(what: str, text: str) -> None:
        world.emit(Tell(unit.spec.name, event.incarnation, what, text))

    each = unit.next if unit.next and unit.next.incarnation == event.incarnation else unit.retired[event.incarnation]
    is_next = each is unit.next
    match event:
        case Spawned() if not each.spawned:
            each.spawned = True
            tell("spawned", "")
            if not is_next:
                retire(unit, world, each, "is not wanted any more")
            elif unit.spec.type == "notify":
                unit.wake_at = world.now + unit.spec.ready_timeout
        case BecameReady():
            each.ready = True
        case TimeExtended() if is_next and unit.wake_at is not None:
            unit.wake_at = max(unit.wake_at, event.until)
        case SpawnFailed():
            _forget(unit, each)
            tell("exited", event.reason)
            return (Input.NEXT_FAILED, event.reason) if is_next else None
        case Exited() | KeeperLost():
            words = event.exit.words if isinstance(event, Exited) else KEEPER_LOST
            tell("exited" if isinstance(event, Exited) else "lost", words)
            each.ending = True
            if is_next:
                retire(unit, world, each, words)
                return Input.NEXT_FAILED, words
        case Emptied() if event.survivors:
            each.ending = each.stuck = True
            if is_next:
                retire(unit, world, each, "")
            tell("survived", f"{event.survivors} of its processes outlived KILL")
            return (Input.NEXT_FAILED, "ended") if is_next else None
        case Emptied():
            _forget(unit, each)
            tell("emptied", "")
            return (Input.NEXT_FAILED, "ended") if is_next else None
    if is_next and each.spawned and (unit.spec.type == "simple" or each.ready):
        return Input.NEXT_READY, ""
    return None


def _forget(unit: Unit, each: Beside) -> None:
    if unit.next is each:
        unit.next = None
    else:
        del unit.retired[each.incarnation]
