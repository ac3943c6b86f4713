"""What actions have of the engine, and what several of them do."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from .effects import Effect, Tell
from .events import Observed, Seconds
from .table import Phase

if TYPE_CHECKING:
    from .service import Unit

NOT_READY = "not ready yet"
News = Observed | str  # what comes with an input: the event, or for the others a few words of why


class World(Protocol):
    """What an action may use of the engine."""

    now: Seconds
    rng: random.Random
    closing: bool  # the supervisor ends: nothing starts any more
    finished: bool  # Finish was given: nobody waits for a `post_stop` any more

    def emit(self, effect: Effect) -> None: ...
    def save(self, unit: Unit) -> None: ...


def because(what: str, why: str) -> str:
    return f"{what} ({why})" if why else what


def tell(unit: Unit, world: World, what: str, text: str) -> None:
    world.emit(Tell(unit.spec.name, unit.incarnation or None, what, text))


def enter_ready(unit: Unit, world: World) -> None:
    unit.ready_at = world.now
    unit.become(Phase.RUNNING, world.now)
    tell(unit, world, "ready", "")
