"""What another plan means for services: an update while they run, or a definition that has changed meanwhile.

Functions over the engine, which calls them between two events.  No clock, no input or output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..config.model import Service
from .effects import Tell
from .graph import Graph
from .service import NOT_CONFIGURED, WAITING, Unit
from .table import Input, Phase

if TYPE_CHECKING:
    from .engine import Engine


def change(engine: Engine, specs: Mapping[str, Service], by: str) -> None:
    """Those that are gone from it stop, in order, and are forgotten; those that are new start; what runs with another
    definition is replaced.  Nobody else is touched, but those that stand on them."""
    units, changed, added, removed = engine.units, {}, {}, {}
    for name, spec in specs.items():
        unit = units.get(name)
        if unit is None:
            unit = units[name] = added[name] = Unit(spec, engine.now)
            unit.next_why = asked("new in the configuration", by)
            unit.incarnation = unit.last = engine.forgotten.get(name, 0)
        elif unit.foreign:  # it was about to be forgotten
            unit.foreign, unit.wanted = False, True
            unit.take(spec)
            changed[name] = unit
        elif unit.take(spec) and unit.wanted:
            changed[name] = unit
    for name, unit in units.items():
        if name not in specs:
            removed[name] = unit
            unit.leave_plan(units)
    engine.graph = Graph({**specs, **{name: unit.spec for name, unit in removed.items()}})
    _count_anew(engine)
    # Who is on its way out may have got others to stand on it.
    leaving = {name: unit for name, unit in units.items() if unit.phase in (Phase.CANCELLED, Phase.HOLDING)}
    going = {**leaving, **removed, **changed}
    why = asked("its definition has changed", by)
    stopping = engine.replace(_told(engine, changed, why), going, why)
    engine.clear_above({**leaving, **removed, **stopping}, asked("what it requires was changed", by))
    for name in reversed(engine.graph.order):
        if name in removed:
            engine.apply(removed[name], Input.STOP, asked(NOT_CONFIGURED, by))
    _restart(engine, stopping, why)
    for name in engine.graph.order:
        if name in added and not added[name].spec.schedule.given:
            engine.apply(added[name], Input.START, added[name].next_why)


def renew(engine: Engine, outdated: Mapping[str, Unit]) -> None:
    """Their definition is another one than that which they were started with.  They stop first, whatever their
    `restart_order`: whether they are ready, by what they were started with, nobody knows."""
    why = "its definition has changed"
    stopping = _told(engine, outdated, why)
    engine.clear_above(stopping, "what it requires was changed")
    _restart(engine, stopping, why)


def asked(what: str, by: str) -> str:
    return f"{what} ({by})" if by else what


def _told(engine: Engine, outdated: Mapping[str, Unit], why: str) -> dict[str, Unit]:
    """The same, in start order."""
    found = {name: outdated[name] for name in engine.graph.order if name in outdated}
    for name, unit in found.items():
        engine.emit(Tell(name, unit.incarnation or None, "outdated", why))
    return found


def _restart(engine: Engine, named: Mapping[str, Unit], why: str) -> None:
    for unit in named.values():
        engine.apply(unit, Input.RESTART, why)


def _count_anew(engine: Engine) -> None:
    """The graph is another one: who is occupied, and who waits for whom."""
    for name in reversed(engine.graph.order):
        unit = engine.units[name]
        above = engine.graph.required_by[name]
        unit.occupied = unit.holds + sum(engine.units[other].occupied > 0 for other in above)
        unit.entered |= unit.phase in WAITING
        engine.changed.append(unit)
