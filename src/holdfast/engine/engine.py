"""All services together: events in, effects out.

A command or an observation becomes an input of one or more services (table.py); each of those that changed is then
looked at with its neighbours in the graph, until nothing more follows.  Who waits keeps the set of those it waits for,
so an event costs as much as the services it touches have neighbours, however many there are.  No clock, no input or
output, no chance but the seed's: the same events at the same times give the same effects.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Mapping

from ..config.model import Service, StartBudget
from . import actions, beside, replan
from .effects import Effect, Finish, Forget, Record, Save, Tell
from .events import (
    UNKNOWN,
    BecameReady,
    BecameUnhealthy,
    Emptied,
    Event,
    Exit,
    Exited,
    KeeperLost,
    NotReadyYet,
    Observed,
    PlanChanged,
    RestartAsked,
    ScheduleDue,
    Seconds,
    ShutdownAsked,
    Spawned,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Targets,
    TimeExtended,
    Woken,
)
from .graph import Graph
from .replan import asked
from .restart import Bucket
from .service import NOT_CONFIGURED, WITH_SUPERVISOR, ServiceView, Unit
from .table import LEAVING, LIVE, TABLE, Input, Phase
from .world import News

INPUTS: dict[type[Observed], Input] = {
    Spawned: Input.SPAWNED,
    SpawnFailed: Input.SPAWN_FAILED,
    BecameReady: Input.READY,
    NotReadyYet: Input.NOT_YET,
    BecameUnhealthy: Input.UNHEALTHY,
    Exited: Input.EXITED,
    Emptied: Input.EMPTIED,
    KeeperLost: Input.LOST,
    TimeExtended: Input.EXTENDED,
}


class Engine:
    """Decides.  `adopt` what is found, `begin` once, then `handle` each event; perform the effects in their order.

    `closing` is true from the moment when everything is to stop: starts are refused then.  One thread.  `now` is in
    seconds of any clock that does not go back, CLOCK_MONOTONIC for the daemon."""

    def __init__(self, specs: Mapping[str, Service], budget: StartBudget, *, seed: int, now: Seconds) -> None:
        """ValueError: a cycle, or an unknown name in `requires` or `after`."""
        self.now = now
        self.rng = random.Random(seed)
        self.closing = False
        self.graph = Graph(specs)
        self.units = {name: Unit(spec, now) for name, spec in specs.items()}
        self.bucket = Bucket(budget)
        self._queue: deque[Unit] = deque()  # who waits for the budget; those that do no more are skipped
        self._turn: Unit | None = None  # whose turn it is
        self._timers: list[tuple[Seconds, int, Unit]] = []  # those that are no more meant are skipped
        self._timer_count = 0
        self.forgotten: dict[str, int] = {}  # last numbers: who comes back goes on from there
        self.changed: deque[Unit] = deque()
        self._touched: dict[Unit, None] = {}
        self._effects: list[Effect] = []
        self._ended: list[tuple[Unit, Exit | None, bool]] = []  # what ended while no supervisor was there
        self._live = 0  # services with a tree that a shutdown waits for
        self._status = 0
        self.finished = False

    # ---- what there is to see

    @property
    def order(self) -> list[str]:
        """Names in start order; they stop in the reverse."""
        return list(self.graph.order)

    def next_wake(self) -> Seconds | None:
        """When Woken is due; ask again after each `handle`."""
        while self._timers and self._timers[0][2].timer != self._timers[0][1]:
            heapq.heappop(self._timers)
        times = [self._timers[0][0]] if self._timers else []
        if self._first_in_queue():
            times.append(self.bucket.next_at())
        return min(times, default=None)

    def view(self, name: str) -> ServiceView:
        """KeyError: there is no such service."""
        return self.units[name].view()

    def views(self) -> list[ServiceView]:
        """All services, in start order."""
        return [self.units[name].view() for name in self.graph.order]

    def is_gone(self, name: str, incarnation: int | None) -> bool:
        """Whether a command for this incarnation comes too late: it is not the one that lives."""
        unit = self.units[name]
        return incarnation is not None and not (unit.live and unit.incarnation == incarnation)

    # ---- start-up

    def adopt(
        self, name: str, record: Record, *, alive: bool, ready: bool, exit: Exit | None, now: Seconds,
        retired: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Before `begin`: what start-up found of one service.  `alive`: its tree is not empty; `ready`: it was, by what
        its spec awaits; `exit`: how its main process ended, if it has.  A name that is not in the configuration is
        stopped and forgotten.  `retired`: earlier incarnations of which there is something; they are stopped, too."""
        self.now = now
        unit = self.units.get(name)
        if unit is None:
            unit = self.units[name] = Unit(Service(name=name, command=(), restart="never"), now)
            unit.foreign = True
            self.graph.add(name)
        unit.restore(record, alive=alive, ready=ready, now=now)
        unit.retired.update(beside.given_back(retired))
        unit.saved = unit.durable(False) if tuple(unit.retired) == record.retired and not record.next else None
        self._account(unit)
        if unit.live and (exit is not None or not alive):
            self._ended.append((unit, exit, alive))

    def begin(self, now: Seconds) -> list[Effect]:
        """Once: start what is wanted, go on with what was under way, end what is not wanted any more."""
        self.now = now
        units = [self.units[name] for name in self.graph.order]
        for unit, exit, alive in self._ended:
            name, incarnation = unit.spec.name, unit.incarnation
            if exit is not None:
                self._observe(unit, Exited(name, incarnation, exit))
            if not alive:
                self._observe(unit, Emptied(name, incarnation))
        self._ended.clear()
        replan.renew(self, {unit.spec.name: unit for unit in units if unit.wanted and unit.outdated})
        for unit in units:
            for each in list(unit.retired.values()):
                beside.retire(unit, self, each, "was on its way out")
            if unit.saved is None:  # who serves is another one than the record says
                self.save(unit)
        for unit in units:
            self._heed_essential(unit)
        for unit in units:
            if unit.wanted and unit.phase is Phase.STOPPED and not self.closing:
                self.apply(unit, Input.START, WITH_SUPERVISOR)
        for unit in reversed(units):
            if unit.live and (unit.asked or not unit.wanted):
                why = unit.reason if unit.asked and unit.reason else "was to be stopped"  # who asked is on record
                why = NOT_CONFIGURED if unit.foreign else why
                self.apply(unit, Input.HALT, why)
            elif unit.cause:  # its stop may not have been heard
                self.apply(unit, Input.UNHEALTHY, BecameUnhealthy(unit.spec.name, unit.incarnation, ""))
        self.changed.extend(units)
        return self._flush()

    # ---- events

    def handle(self, event: Event, now: Seconds) -> list[Effect]:
        """Take one event; returns what is to be done, in this order.  What concerns nobody does nothing."""
        self.now = now
        match event:
            case StartAsked(targets, by):
                self._start(self._meant(targets, starts=True), by)
            case StopAsked(targets, by):
                self._stop(self._meant(targets), by)
            case RestartAsked(targets, by):
                self._restart(self._meant(targets, starts=True), by)
            case PlanChanged(specs, budget, by):
                if self.closing:
                    self.emit(Tell("", None, "refused", "the supervisor ends"))
                else:
                    self.bucket.budget = budget
                    replan.change(self, specs, by)
            case ShutdownAsked(by):
                self._close(0, by)
            case Woken():
                while self._timers and self._timers[0][0] <= now:
                    _, number, unit = heapq.heappop(self._timers)
                    if unit.timer == number:
                        self.apply(unit, Input.DUE, "")
            case ScheduleDue(name, at, text):
                due = self.units.get(name)
                if due is not None and due.spec.schedule.given and at != due.scheduled and not self.closing:
                    due.scheduled = at
                    self.apply(due, Input.ELAPSED, f"scheduled for {text}" if text else "its schedule")
            case _:
                known = self.units.get(event.name)
                if known is not None and known.live and known.incarnation == event.incarnation:
                    self._observe(known, event)
                elif known is not None and known.has_beside(event.incarnation):
                    self._observe_beside(known, event)
        return self._flush()

    def _observe(self, unit: Unit, event: Observed) -> None:
        if isinstance(event, Emptied) and unit.phase not in (Phase.ENDING, Phase.STUCK):
            missed = Exited(event.name, event.incarnation, Exit(None, None, cause=UNKNOWN))
            self.apply(unit, Input.EXITED, missed)
        if unit.incarnation == event.incarnation:
            self.apply(unit, INPUTS[type(event)], event)
        else:  # its successor has taken its place
            self._observe_beside(unit, event)

    def _observe_beside(self, unit: Unit, event: Observed) -> None:
        """Of the trees of a service, this is not the one that serves."""
        means = beside.observe(unit, self, event)
        self._account(unit)
        self._touched[unit] = None
        self.changed.append(unit)
        if means is not None:
            self.apply(unit, *means)
        if unit.retired:
            return
        if unit.phase is Phase.WAITING:
            unit.entered = True
        elif unit.once_more:
            why, name = unit.once_more, unit.spec.name
            if self._can_replace(unit):
                self.apply(unit, Input.REPLACE, why)
                return
            unit.once_more = ""
            for other in self.graph.above([name]):
                self.apply(self.units[other], Input.RESTART if other == name else Input.HALT, why)

    def _meant(self, targets: Targets, *, starts: bool = False) -> dict[str, Unit]:
        """Those that the command can reach; the others are refused, and one that is gone is passed over."""
        found = {}
        for name, incarnation in targets:
            unit = self.units.get(name)
            if unit is None or (starts and unit.foreign):
                self.emit(Tell(name, None, "refused", "not in the configuration"))
            elif self.is_gone(name, incarnation):
                continue
            elif starts and self.closing:
                self.emit(Tell(name, None, "refused", "the supervisor ends"))
            else:
                found[name] = unit
        return found

    def _start(self, named: Mapping[str, Unit], by: str) -> None:
        self._raise(named, Input.START, asked("asked to start", by))

    def _restart(self, named: Mapping[str, Unit], by: str) -> None:
        named = self.replace(named, named, asked("asked to restart", by))
        self.clear_above(named, asked("what it requires is restarted", by))
        self._raise(named, Input.RESTART, asked("asked to restart", by))

    def clear_above(self, named: Mapping[str, Unit], why: str) -> None:
        """What stands on a tree that goes comes down with it, and comes back.  Where there is no tree nothing does."""
        for name in self.graph.above(name for name, unit in named.items() if unit.holds):
            if name not in named:
                self.apply(self.units[name], Input.HALT, why)

    def replace(self, named: Mapping[str, Unit], going: Mapping[str, Unit], why: str) -> dict[str, Unit]:
        """Start successors beside those of which that can be done; returns the others, which stop first.  `going`: all
        that is to stop or to be replaced; who stands on one that stops does so, too."""
        able = {name for name, unit in named.items() if self._can_replace(unit)}
        able.difference_update(self.graph.above(set(going) - able))
        for name in [name for name in named if name in able]:
            self.apply(named[name], Input.REPLACE, why)
        return {name: unit for name, unit in named.items() if name not in able}

    def _can_replace(self, unit: Unit) -> bool:
        """Whether its successor can be started beside it, or is."""
        ready = all(self.units[name].ready for name in self.graph.requires[unit.spec.name])
        served = unit.phase in (Phase.RUNNING, Phase.REPLACING)
        return ready and served and unit.spec.restart_order == "start-first" and not (unit.asked or unit.foreign)

    def _raise(self, named: Mapping[str, Unit], given: Input, why: str) -> None:
        """The named ones, and of what they require that which would not come by itself."""
        for name in self.graph.below(named):
            unit = self.units[name]
            if name in named:
                self.apply(unit, given, why)
            elif unit.down:
                self.apply(unit, Input.START, f"what requires it was {why}")

    def _stop(self, named: Mapping[str, Unit], by: str) -> None:
        for name in self.graph.above(named):
            if name in named:
                self.apply(self.units[name], Input.STOP, asked("asked to stop", by))
            else:
                self.apply(self.units[name], Input.HALT, asked("what it requires is stopped", by))

    def _close(self, status: int, why: str) -> None:
        if self.closing:
            return
        self.closing = True
        self._status = status
        self.emit(Tell("", None, "shutdown", "everything stops"))
        for name in reversed(self.graph.order):
            self.apply(self.units[name], Input.CLOSE, asked("the supervisor ends", why))

    def _heed_essential(self, unit: Unit) -> None:
        if unit.spec.essential and unit.phase in (Phase.EXITED, Phase.FATAL, Phase.STUCK) and not unit.asked:
            self._close(_status_of(unit), f"{unit.spec.name} is essential and has ended")

    # ---- what follows

    def emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def save(self, unit: Unit) -> None:
        """Save the record, if it says something new.  A shutdown writes what has ended, not that it is to end: if we
        are killed on the way, the next supervisor finds what is wanted.  A post_stop is an incarnation to be found."""
        if self.closing and unit.live and unit.holds and unit.phase is not Phase.CLEANING:
            return
        durable = unit.durable(self.closing)
        if durable != unit.saved:
            unit.saved = durable
            self.emit(Save(unit.record(self.closing)))

    def apply(self, unit: Unit, given: Input, news: News) -> None:
        row = TABLE.get((unit.phase, given))
        if row is None:
            return
        getattr(actions, row.action)(unit, self, news)
        self._account(unit)
        self._touched[unit] = None
        self.changed.append(unit)

    def _account(self, unit: Unit) -> None:
        """Keep the timers and the counts of trees in step with the unit."""
        if unit.wake_at != unit.timed:
            unit.timed, unit.timer = unit.wake_at, 0
            if unit.wake_at is not None:
                unit.timer = self._timer_count = self._timer_count + 1
                heapq.heappush(self._timers, (unit.wake_at, unit.timer, unit))
        holds = (unit.phase in LIVE and unit.phase is not Phase.STUCK) or bool(unit.awaited)
        if holds == unit.holds:
            return
        unit.holds = holds
        step = 1 if holds else -1
        self._live += step
        todo = [unit]
        while todo:  # up to the first that is occupied all the same
            each = todo.pop()
            before, each.occupied = each.occupied, each.occupied + step
            if (before == 0) != (each.occupied == 0):
                self.changed.append(each)
                todo += [self.units[name] for name in self.graph.requires[each.spec.name]]

    def _flush(self) -> list[Effect]:
        while True:
            while self.changed:
                self._notice(self.changed.popleft())
            self._turn = None
            first = self._first_in_queue()
            if first is None or self.bucket.next_at() > self.now:
                break
            self._turn = self._queue.popleft()
            self.apply(first, Input.DUE, "")
        for unit in self._touched:
            if self.units.get(unit.spec.name) is unit:
                self.save(unit)
        self._touched.clear()
        if self.closing and not self._live and not self.finished:
            self.finished = True
            for name in self.graph.order:
                self.save(self.units[name])  # what was down already has another record now
            self.emit(Finish(self._status))
        effects, self._effects = self._effects, []
        return effects

    def _notice(self, unit: Unit) -> None:
        """A service has changed: find who it waits for, and what it means to its neighbours."""
        name = unit.spec.name
        self._heed_essential(unit)
        if unit.entered:
            unit.entered = False
            self._enter(unit)
        graph = self.graph
        if name not in graph.requires:
            return  # forgotten
        for other in graph.required_by[name]:
            self._tell_upward(self.units[other], unit, required=True)
        for other in graph.before[name]:
            self._tell_upward(self.units[other], unit, required=False)
        for other in (*graph.requires[name], *graph.after[name]):
            self._tell_downward(self.units[other], unit, required=other in graph.requires[name])
        if unit.foreign and not unit.live and not unit.retired:
            del self.units[name]
            self.forgotten[name] = unit.last
            graph.remove(name)
            self.emit(Tell(name, None, "forgotten", NOT_CONFIGURED))
            self.emit(Forget(name))

    def _enter(self, unit: Unit) -> None:
        """The phase is new: who does it wait for?"""
        name, graph, units = unit.spec.name, self.graph, self.units
        told = unit.waits  # nobody, but when it is the graph that is new
        if unit.phase is Phase.WAITING and unit.retired:
            reason = f"waits for the end of incarnation {min(unit.retired)}"
            if unit.reason != reason:
                unit.reason = reason
                self.emit(Tell(name, unit.incarnation, "waiting", reason))
        elif unit.phase is Phase.WAITING:
            down = [units[other] for other in graph.requires[name] if units[other].down]
            if down:
                self._withhold(unit, down)
                return
            unit.waits = {other for other in graph.requires[name] if not units[other].ready}
            unit.waits.update(other for other in graph.after[name] if units[other].coming)
            unit.main_next &= not unit.waits  # else pre_start runs again, with what it waits for
            if not unit.waits:
                self._go(unit)
        elif unit.phase is Phase.BLOCKED:
            unit.waits = {other for other in graph.requires[name] if units[other].down}
            if not unit.waits:
                self.apply(unit, Input.CLEARED, "")
        elif unit.phase is Phase.HOLDING:
            unit.waits = {other for other in graph.required_by[name] if units[other].occupied}
            unit.waits.update(other for other in graph.before[name] if units[other].phase in LEAVING)
            if not unit.waits:
                self.apply(unit, Input.CLEARED, "")
        elif unit.phase is Phase.QUEUED:
            self._queue.append(unit)
        if unit.waits and unit.waits != told and unit.phase in (Phase.WAITING, Phase.HOLDING):
            self.emit(Tell(name, unit.incarnation or None, "waiting", unit.view().reason))

    def _tell_upward(self, unit: Unit, other: Unit, *, required: bool) -> None:
        """`unit` starts after `other`, which has changed."""
        if unit.entered:
            return  # it will look for itself
        if unit.phase is Phase.WAITING:
            if required and other.down:
                self._withhold(unit, [other])
            elif not other.ready if required else other.coming:
                unit.waits.add(other.spec.name)
            elif self._waits_no_more(unit, other):
                self._go(unit)
        elif unit.phase is Phase.BLOCKED and required:
            if other.down:
                unit.waits.add(other.spec.name)
            elif self._waits_no_more(unit, other):
                self.apply(unit, Input.CLEARED, "")

    def _tell_downward(self, unit: Unit, other: Unit, *, required: bool) -> None:
        """`unit` stops after `other`, which has changed."""
        if unit.phase is not Phase.HOLDING or unit.entered:
            return
        if other.occupied if required else other.phase in LEAVING:
            unit.waits.add(other.spec.name)
        elif self._waits_no_more(unit, other):
            self.apply(unit, Input.CLEARED, "")

    def _waits_no_more(self, unit: Unit, other: Unit) -> bool:
        """Whether `other` was the last one that it waited for."""
        if other.spec.name not in unit.waits:
            return False
        unit.waits.remove(other.spec.name)
        return not unit.waits

    def _withhold(self, unit: Unit, down: Iterable[Unit]) -> None:
        self.apply(unit, Input.WITHHELD, f"requires {', '.join(each.spec.name for each in down)}: down")

    # ---- the start budget

    def _go(self, unit: Unit) -> None:
        """Nothing else is in its way; a restart takes from the budget, in turn."""
        if unit.retired:
            return  # all is looked at again when those have gone
        if unit.restart and not ((unit is self._turn or not self._first_in_queue()) and self.bucket.take(self.now)):
            self.apply(unit, Input.RATIONED, "")
        else:
            self.apply(unit, Input.CLEARED, "")

    def _first_in_queue(self) -> Unit | None:
        while self._queue and self._queue[0].phase is not Phase.QUEUED:
            self._queue.popleft()
        return self._queue[0] if self._queue else None


def _status_of(unit: Unit) -> int:
    """What the supervisor ends with when an essential service has ended so: never 0 for a failure."""
    ended = unit.last_exit
    if ended is None or (ended.code is None and ended.signal is None):
        return 125  # ours: it could not be started, or nobody knows
    status = 128 + ended.signal if ended.signal is not None else ended.code or 0
    return status or (1 if unit.phase is not Phase.EXITED else 0)
