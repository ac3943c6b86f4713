"""One service: what is known of it, for the engine, for others to see, and for the disk."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from ..config.diff import applied, definition
from ..config.model import Service
from .beside import Beside
from .effects import Record, StartFailed, Step
from .events import Exit, Seconds
from .table import LEAVING, LIVE, Phase, State

WITH_SUPERVISOR = "with the supervisor"
NOT_CONFIGURED = "not in the configuration any more"

# Phases that wait for others, and how that is said.
WAITING = {
    Phase.WAITING: "waits for {which}",
    Phase.BLOCKED: "requires {which}: down",
    Phase.HOLDING: "{reason}; first to stop: {which}",
}


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service as it is between two events.  Never changes; any thread may keep it."""

    name: str
    state: State
    ready: bool
    wanted: bool  # False: stopped by hand
    live: bool  # a tree of this incarnation may exist
    incarnation: int  # the last number given
    failures: int
    restarts: int
    last_exit: Exit | None
    succeeded: bool  # the last exit was a success
    waiting_for: tuple[str, ...]
    since: Seconds  # when it came to this state
    wake_at: Seconds | None  # end of back-off, or when it must be ready
    reason: str  # why it is in this state
    why: str  # why this incarnation was started
    step: Step  # what this incarnation is
    last_exit_of: int  # the incarnation that ended so
    scheduled: float  # the last time of its schedule that came
    due: bool  # it waits for the next one
    replacing: bool = False  # asked to restart, start-first, and not there yet
    next: int = 0  # its successor, which is being started; 0: none
    retired: tuple[int, ...] = ()  # trees of earlier incarnations that are still awaited


class Unit:
    """One service's state."""

    __slots__ = (
        "asked", "cause", "definition", "doubts", "early", "entered", "exit", "failures", "foreign", "holds",
        "incarnation", "last", "last_exit", "last_exit_of", "main_next", "next", "next_spec", "next_why", "occupied",
        "once_more", "oneshot", "phase", "queued", "ready_at", "reason", "restart", "restarts", "retired", "saved",
        "scheduled", "since", "spec", "start_failed", "step", "streak", "timed", "timer", "waits", "wake_at", "wanted",
        "why",
    )  # fmt: skip

    def __init__(self, spec: Service, now: Seconds) -> None:
        self.spec = spec
        self.next_spec: Service | None = None  # what it is started with the next time, where that is another
        self.definition = ""  # digest of what the last incarnation was started with; "": nobody knows
        self.oneshot = False  # it was one
        self.phase = Phase.SCHEDULED if spec.schedule.given else Phase.STOPPED
        self.scheduled = 0.0
        self.queued = False
        self.wanted = True
        self.since = now
        self.reason = ""
        self.wake_at: Seconds | None = None
        self.last = 0  # the highest number given
        self.incarnation = self.failures = self.streak = self.restarts = 0
        self.last_exit: Exit | None = None
        self.last_exit_of = 0
        self.restart = False  # the next start is a restart by policy: it is counted, and takes from the budget
        self.next_why = WITH_SUPERVISOR  # the reason of the next start, if it is no restart
        # Of the present incarnation.
        self.step: Step = "main"
        self.main_next = False  # its pre_start has succeeded, right now
        self.start_failed: StartFailed = ""  # and whether the same may succeed later
        self.asked = False  # its end is: it is no failure, and policy has no say
        self.early = False  # it was ready before Spawned came
        self.ready_at: Seconds | None = None
        self.exit: Exit | None = None
        self.cause = ""  # of the exit to come
        self.doubts = ""  # why it is not ready yet, if that was said
        self.why = ""  # it was started
        # Beside it, where `restart_order` is start-first.
        self.next: Beside | None = None
        self.retired: dict[int, Beside] = {}
        self.once_more = ""  # why it is to be replaced as soon as none of those is left
        # Kept by the engine.
        self.foreign = False  # not in the configuration: to be stopped and forgotten
        self.entered = False  # the phase is new: who it waits for is still to be found
        self.waits: set[str] = set()
        self.holds = False  # has a tree that others wait for
        self.occupied = 0  # 1 if so, and 1 for each requirer that is occupied itself
        self.timed: Seconds | None = None  # its latest timer,
        self.timer = 0  # and the number of that; 0: none
        self.saved = self.durable(closing=False)

    # ---- what it is

    @property
    def live(self) -> bool:
        return self.phase in LIVE

    @property
    def ready(self) -> bool:
        return self.phase in (Phase.RUNNING, Phase.REPLACING) or (self.phase is Phase.EXITED and self.completed)

    @property
    def completed(self) -> bool:
        """A oneshot that has succeeded."""
        return self.spec.type == "oneshot" and self.succeeded

    @property
    def succeeded(self) -> bool:
        return self.last_exit is not None and self.last_exit.succeeded(self.spec.success_exit_codes)

    @property
    def down(self) -> bool:
        """Not ready, and not on its way there by itself: what requires it cannot start."""
        phase = self.phase
        if phase in LEAVING:
            return not self.wanted
        return phase in (Phase.STOPPED, Phase.BLOCKED, Phase.SCHEDULED, Phase.FATAL, Phase.STUCK) or (
            phase is Phase.EXITED and not self.completed
        )

    @property
    def coming(self) -> bool:
        """About to become ready or to fail: what comes after it waits."""
        phase = self.phase
        if phase in LEAVING:
            return self.wanted and (self.asked or self.completed or self.prepared)
        return phase in (Phase.WAITING, Phase.SPAWNING, Phase.UNREADY)

    @property
    def prepared(self) -> bool:
        """Its pre_start has succeeded: main comes next."""
        return self.step == "pre_start" and self.exit is not None and self.exit.succeeded((0,))

    def has_beside(self, incarnation: int) -> bool:
        return incarnation in self.retired or (self.next is not None and self.next.incarnation == incarnation)

    @property
    def awaited(self) -> tuple[int, ...]:
        """Trees on their way out; not those that KILL could not end."""
        return tuple(number for number, each in self.retired.items() if not each.stuck)

    def view(self) -> ServiceView:
        waits = tuple(sorted(self.waits)) if self.phase in WAITING else ()
        reason = self.reason
        if waits:
            which = ", ".join(waits[:4]) + (f" and {len(waits) - 4} more" if len(waits) > 4 else "")
            reason = WAITING[self.phase].format(which=which, reason=reason)
        if self.live and self.step != "main":
            reason = f"{self.step} runs; {reason}".removesuffix("; ")
        return ServiceView(
            self.spec.name, self.phase.state, self.ready, self.wanted, self.live, self.incarnation, self.failures,
            self.restarts, self.last_exit, self.succeeded, waits, self.since, self.wake_at, reason, self.why,
            self.step, self.last_exit_of, self.scheduled, self.phase is Phase.SCHEDULED,
            bool(self.next or self.once_more), self.next.incarnation if self.next else 0, self.awaited,
        )  # fmt: skip

    # ---- what is on disk

    def durable(self, closing: bool) -> object:
        """Changes when the record has to be written.  While a tree lives, its keeper is the record of what becomes of
        it; so a restart is one Save."""
        beside = self.last, self.next and self.next.incarnation, *self.retired
        if self.live:
            ready_at = self.ready_at if self.spec.awaits is not None else None
            stuck = self.phase is Phase.STUCK
            return self.incarnation, self.wanted, self.asked, ready_at, self.cause, stuck, self.queued, *beside
        if closing:
            wanted = self.wanted or self.spec.restart != "unless-stopped"
            return wanted, self.incarnation, self.restarts, self.last_exit, *beside
        pending = self.wanted and self.phase in (Phase.STOPPED, Phase.WAITING, Phase.BLOCKED, Phase.SCHEDULED)
        state = None if pending else self.phase.state  # `begin` starts it from any of these
        return state, self.wanted, self.incarnation, self.failures, self.streak, self.last_exit, self.wake_at, *beside

    def record(self, closing: bool) -> Record:
        """For disk.  When the supervisor ends in order the next one begins anew: all are wanted but those that were
        stopped by hand and are to stay so."""
        anew = closing and not self.live
        return Record(
            name=self.spec.name,
            wanted=self.wanted or (anew and self.spec.restart != "unless-stopped"),
            state=State.STOPPED if anew else self.phase.state,
            incarnation=self.incarnation,
            live=self.live,
            stopping=self.asked and self.live,
            ready_at=self.ready_at if self.live else None,
            failures=0 if anew else self.failures,
            streak=0 if anew else self.streak,
            restarts=self.restarts,
            last_exit=self.last_exit,
            last_exit_of=self.last_exit_of,
            since=self.since,
            wake_at=self.wake_at,
            reason=self.reason,
            why=self.why if self.live else self.next_why,
            cause=self.cause if self.live else "",
            step=self.step,
            start_failed=self.start_failed if self.live else "",
            scheduled=self.scheduled,
            queued=self.queued and self.live,
            definition=self.definition,
            oneshot=self.oneshot,
            next=self.next.incarnation if self.next else 0,
            next_definition=self.next.definition if self.next else "",
            retired=tuple(self.retired),
            last=self.last if self.last > self.incarnation else 0,
        )

    def restore(self, record: Record, *, alive: bool, ready: bool, now: Seconds) -> None:
        """What a supervisor before us had on record.  Ended or not, what was live is live here; the end comes as an
        event."""
        self.wanted = record.wanted and not self.foreign
        self.incarnation, self.reason = record.incarnation, record.reason
        self.last = max(record.incarnation, record.next, record.last, *record.retired)
        self.failures, self.streak, self.restarts = record.failures, record.streak, record.restarts
        self.last_exit, self.last_exit_of = record.last_exit, record.last_exit_of
        self.since = min(record.since, now)
        self.scheduled, self.queued = record.scheduled, record.queued and self.spec.schedule.given
        self.definition, self.oneshot = record.definition, record.oneshot
        self.why, self.next_why = record.why, record.reason if record.stopping else record.why or WITH_SUPERVISOR
        if alive or record.live:
            self.asked, self.step, self.start_failed = record.stopping, record.step, record.start_failed
            awaits = self.spec.awaits
            if alive and record.state is State.FATAL:
                self.phase = Phase.STUCK
            elif self.step != "main":
                self.phase = Phase.UNREADY if self.step == "pre_start" else Phase.CLEANING
                self.wake_at = now + self.spec.ready_timeout
            elif ready if awaits is not None else self.spec.type != "oneshot":
                self.phase = Phase.RUNNING
                self.ready_at = min(record.since if record.ready_at is None else record.ready_at, now)
                self.cause = record.cause
            else:
                self.phase = Phase.UNREADY
                self.wake_at = now + awaits.timeout if awaits is not None else None
        elif not self.wanted:
            self.phase = Phase.STOPPED
        elif self.phase is Phase.SCHEDULED and record.state in (State.EXITED, State.FATAL):
            pass  # of a time without a schedule
        elif record.state is State.STARTING:
            self.become(Phase.WAITING, now)
        elif record.state is State.BACKOFF:
            self.phase, self.restart = Phase.BACKOFF, True
            self.wake_at = min(record.wake_at or now, now + 2 * self.spec.backoff.max)
        elif record.state in (State.EXITED, State.FATAL):
            self.phase = Phase[record.state.name]

    # ---- its definition

    @property
    def outdated(self) -> bool:
        """Something stands that another definition has led to; what is yet to start follows the present one anyway."""
        if self.foreign or self.phase in (Phase.STOPPED, Phase.WAITING, Phase.BLOCKED, Phase.SCHEDULED):
            return False
        if self._is_run_of(self.spec):
            return False
        return self.definition not in ("", definition(self.spec))

    @property
    def following(self) -> Service:
        """What it is started with the next time."""
        return self.next_spec or self.spec

    def take(self, spec: Service) -> bool:
        """Follow another definition, as far as that goes at once; whether the rest calls for a new start.  So does
        one that is essential now and has ended: its end was none for all the others; and a successor of another
        definition."""
        ended = self.phase in (Phase.EXITED, Phase.FATAL, Phase.STUCK) and spec.essential and not self.spec.essential
        unscheduled = self.phase is Phase.SCHEDULED and not spec.schedule.given
        self.spec = applied(self.spec, spec)
        self.next_spec = None if self.spec == spec else spec
        changed = self.next_spec is not None and not self._is_run_of(spec)
        other = self.next is not None and self.next.definition != definition(self.following)
        return ended or unscheduled or changed or other

    def _is_run_of(self, spec: Service) -> bool:
        """A run of a schedule is not begun anew: the next one is another.  What is no oneshot would be in its way for
        ever."""
        return spec.schedule.given and (self.oneshot or not self.live)

    def leave_plan(self, known: Collection[str]) -> None:
        """It is in no configuration any more.  It stops in its old place, among those that are `known`."""
        self.foreign = True
        requires, after = (tuple(filter(known.__contains__, names)) for names in (self.spec.requires, self.spec.after))
        self.spec = msgspec.structs.replace(self.spec, requires=requires, after=after)

    # ---- changes that several actions make

    def clear(self) -> None:
        self.failures = self.streak = 0

    def become(self, phase: Phase, now: Seconds, reason: str = "") -> None:
        if phase.state is not self.phase.state:
            self.since = now
            self.once_more = ""
        self.phase, self.reason, self.wake_at, self.entered = phase, reason, None, True
        self.waits = set()
