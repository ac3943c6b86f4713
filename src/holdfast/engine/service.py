"""One service: what is known of it, and what each action of the table does to it.

An action looks at this service alone; what others mean for it comes as an input (engine.py).  It changes the fields,
enters a phase, and gives effects to the `World`.  No clock, no input or output.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Protocol

from ..config.model import Service
from . import restart
from .effects import Effect, Record, Spawn, Stop, Tell
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
from .table import LEAVING, LIVE, Phase, State

News = Observed | str  # what comes with an input: the event, or for the others a few words of why


WITH_SUPERVISOR = "with the supervisor"

# Phases that wait for others, and how that is said.
WAITING = {
    Phase.WAITING: "waits for {which}",
    Phase.BLOCKED: "requires {which}: down",
    Phase.HOLDING: "{reason}; first to stop: {which}",
}


class World(Protocol):
    """What an action may use of the engine."""

    now: Seconds
    rng: random.Random
    closing: bool  # the supervisor ends: nothing starts any more

    def emit(self, effect: Effect) -> None: ...
    def save(self, unit: Unit) -> None: ...


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


class Unit:
    """One service's state."""

    __slots__ = (
        "asked", "cause", "early", "entered", "exit", "failures", "foreign", "holds", "incarnation", "last_exit",
        "last_exit_of", "next_why", "occupied", "phase", "ready_at", "reason", "restart", "restarts", "saved", "since",
        "spec", "streak", "timed", "waits", "wake_at", "wanted", "why",
    )  # fmt: skip

    def __init__(self, spec: Service, now: Seconds) -> None:
        self.spec = spec
        self.phase = Phase.STOPPED
        self.wanted = True
        self.since = now
        self.reason = ""
        self.wake_at: Seconds | None = None
        self.incarnation = self.failures = self.streak = self.restarts = 0
        self.last_exit: Exit | None = None
        self.last_exit_of = 0
        self.restart = False  # the next start is a restart by policy: it is counted, and takes from the budget
        self.next_why = WITH_SUPERVISOR  # the reason of the next start, if it is no restart
        # Of the present incarnation.
        self.asked = False  # its end is: it is no failure, and policy has no say
        self.early = False  # it said READY=1 before Spawned came
        self.ready_at: Seconds | None = None
        self.exit: Exit | None = None
        self.cause = ""  # of the exit to come
        self.why = ""  # it was started
        # Kept by the engine.
        self.foreign = False  # not in the configuration: to be stopped and forgotten
        self.entered = False  # the phase is new: who it waits for is still to be found
        self.waits: set[str] = set()
        self.holds = False  # has a tree that others wait for
        self.occupied = 0  # 1 if so, and 1 for each requirer that is occupied itself
        self.timed: Seconds | None = None  # its latest timer
        self.saved = self.durable(closing=False)

    # ---- what it is

    @property
    def live(self) -> bool:
        return self.phase in LIVE

    @property
    def ready(self) -> bool:
        return self.phase is Phase.RUNNING or (self.phase is Phase.EXITED and self.completed)

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
        return phase in (Phase.STOPPED, Phase.BLOCKED, Phase.FATAL, Phase.STUCK) or (
            phase is Phase.EXITED and not self.completed
        )

    @property
    def coming(self) -> bool:
        """About to become ready or to fail: what comes after it waits."""
        phase = self.phase
        if phase in LEAVING:
            return self.wanted and (self.asked or self.completed)
        return phase in (Phase.WAITING, Phase.SPAWNING, Phase.UNREADY)

    def view(self) -> ServiceView:
        waits = tuple(sorted(self.waits)) if self.phase in WAITING else ()
        reason = self.reason
        if waits:
            which = ", ".join(waits[:4]) + (f" and {len(waits) - 4} more" if len(waits) > 4 else "")
            reason = WAITING[self.phase].format(which=which, reason=reason)
        return ServiceView(
            self.spec.name, self.phase.state, self.ready, self.wanted, self.live, self.incarnation, self.failures,
            self.restarts, self.last_exit, self.succeeded, waits, self.since, self.wake_at, reason, self.why,
        )  # fmt: skip

    # ---- what is on disk

    def durable(self, closing: bool) -> object:
        """Changes when the record has to be written.  While a tree lives, its keeper is the record of what becomes of
        it; so a restart is one Save."""
        if self.live:
            ready_at = self.ready_at if self.spec.type == "notify" else None
            return self.incarnation, self.wanted, self.asked, ready_at, self.phase is Phase.STUCK
        if closing:
            return self.wanted or self.spec.restart != "unless-stopped", self.incarnation, self.restarts, self.last_exit
        pending = self.wanted and self.phase in (Phase.STOPPED, Phase.WAITING, Phase.BLOCKED)
        state = None if pending else self.phase.state  # `begin` starts it from any of these
        return state, self.wanted, self.incarnation, self.failures, self.streak, self.last_exit, self.wake_at

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
        )

    def restore(self, record: Record, *, alive: bool, ready: bool, now: Seconds) -> None:
        """What a supervisor before us had on record.  Ended or not, what was live is live here; the end comes as an
        event."""
        self.wanted = record.wanted and not self.foreign
        self.incarnation, self.reason = record.incarnation, record.reason
        self.failures, self.streak, self.restarts = record.failures, record.streak, record.restarts
        self.last_exit, self.last_exit_of = record.last_exit, record.last_exit_of
        self.since = min(record.since, now)
        self.why, self.next_why = record.why, record.reason if record.stopping else record.why or WITH_SUPERVISOR
        if alive or record.live:
            self.asked = record.stopping
            if alive and record.state is State.FATAL:
                self.phase = Phase.STUCK
            elif self.spec.type == "simple" or (self.spec.type == "notify" and ready):
                self.phase = Phase.RUNNING
                self.ready_at = min(record.since if record.ready_at is None else record.ready_at, now)
            else:
                self.phase = Phase.UNREADY
                self.wake_at = now + self.spec.ready_timeout if self.spec.type == "notify" else None
        elif not self.wanted:
            pass  # stopped
        elif record.state is State.STARTING:
            self._become(Phase.WAITING, now)
        elif record.state is State.BACKOFF:
            self.phase, self.restart = Phase.BACKOFF, True
            self.wake_at = min(record.wake_at or now, now + 2 * self.spec.backoff.max)
        elif record.state in (State.EXITED, State.FATAL):
            self.phase = Phase[record.state.name]

    # ---- the actions of the table

    def come(self, world: World, news: News) -> None:
        self._clear()
        self.wanted, self.restart = True, False
        self.next_why = str(news)
        self._become(Phase.WAITING, world.now)

    def want(self, world: World, news: News) -> None:
        if not (self.wanted and self.asked):
            self._tell(world, "wanted", f"{news}: starts again when its tree is empty")
            self.next_why = str(news)
        self._clear()
        self.wanted = self.asked = True

    def unwant(self, world: World, news: News) -> None:
        if self.wanted:
            self._tell(world, "wanted", f"{news}: stays stopped")
        self.wanted = False

    def give_up(self, world: World, news: News) -> None:
        self.wanted = False
        self._rest(world, "stopped by hand")

    def renew(self, world: World, news: News) -> None:
        self._clear()
        self.wanted = True
        self.yield_(world, news)

    def resign(self, world: World, news: News) -> None:
        self.wanted = False
        self.yield_(world, news)

    def yield_(self, world: World, news: News) -> None:
        self.asked = True
        self.next_why = str(news)  # if it is to come back: what brings it down brings it up again
        self._become(Phase.CANCELLED if self.phase is Phase.SPAWNING else Phase.HOLDING, world.now, str(news))
        if self.phase is Phase.CANCELLED:
            self._tell(world, "stopping", f"{news}, as soon as its start is answered")

    def rest(self, world: World, news: News) -> None:
        self._rest(world, str(news))

    def wait(self, world: World, news: News) -> None:
        if self.phase is Phase.BLOCKED:
            self.next_why = "what it requires is up"
        self._become(Phase.WAITING, world.now)

    def redo(self, world: World, news: News) -> None:
        """What was done with the help of a service that is stopped now may be undone: a oneshot runs again with it."""
        if self.completed:
            self.next_why = str(news)
            self.wait(world, news)

    def block(self, world: World, news: News) -> None:
        self._become(Phase.BLOCKED, world.now)
        self._tell(world, "stopped", str(news))

    def queue(self, world: World, news: News) -> None:
        self._become(Phase.QUEUED, world.now, "start budget")
        self._tell(world, "backoff", "waits for the start budget")

    def spawn(self, world: World, news: News) -> None:
        self.incarnation += 1
        self.restarts += self.restart
        self.asked = self.early = False
        self.ready_at = self.exit = None
        self.cause = ""
        self.why = self.next_why
        if self.restart:
            self.why = f"restart {self.restarts}" + (f": {self.last_exit.words}" if self.last_exit else "")
        self.restart = False
        self._become(Phase.SPAWNING, world.now)
        world.save(self)
        world.emit(Spawn(self.spec.name, self.incarnation, self.why))
        self._tell(world, "starting", self.why)

    def run(self, world: World, news: News) -> None:
        self._tell(world, "spawned", "")
        if self.spec.type == "simple" or self.early:
            self._be_ready(world)
            return
        self._become(Phase.UNREADY, world.now, "runs to its end" if self.spec.type == "oneshot" else "not ready yet")
        if self.spec.type == "notify":
            self.wake_at = world.now + self.spec.ready_timeout

    def hold(self, world: World, news: News) -> None:
        self._tell(world, "spawned", "")
        self._become(Phase.HOLDING, world.now, self.reason)

    def stop(self, world: World, news: News) -> None:
        self._become(Phase.ENDING, world.now, self.reason)
        self._stop(world)

    def time_out(self, world: World, news: News) -> None:
        self.cause = READY_TIMEOUT
        self._become(Phase.ENDING, world.now, "was not ready in time")
        self._stop(world)

    def fail(self, world: World, news: News) -> None:
        assert isinstance(news, SpawnFailed)
        self.last_exit = Exit(None, None, cause=f"{COULD_NOT_START}: {news.reason}")
        self.last_exit_of = self.incarnation
        self._tell(world, "exited", self.last_exit.words)
        if self.asked or not self.wanted or world.closing:
            self._after_request(world)
            return
        self.failures += 1
        if news.temporary:  # whatever the policy says: it was not started yet
            self._again(world)
        else:
            self._give_up_for_good(world, Phase.FATAL, "fatal", self.last_exit.words)

    def note_ready(self, world: World, news: News) -> None:
        self.early = self.spec.type == "notify"

    def be_ready(self, world: World, news: News) -> None:
        if self.spec.type == "notify":
            self._be_ready(world)

    def extend(self, world: World, news: News) -> None:
        assert isinstance(news, TimeExtended)
        if self.wake_at is not None:
            self.wake_at = max(self.wake_at, news.until)

    def end(self, world: World, news: News) -> None:
        self.note_exit(world, news)
        self._become(Phase.ENDING, world.now, self.last_exit.words if self.last_exit else "")

    def note_exit(self, world: World, news: News) -> None:
        assert isinstance(news, Exited)
        if self.exit is None:
            self._ended(world, replace(news.exit, cause=self.cause or news.exit.cause))
        elif self.exit.code is None and self.exit.signal is None:  # learnt after its keeper was lost
            self.exit = self.last_exit = replace(news.exit, cause=self.exit.cause)
        else:
            return
        self._tell(world, "exited", self.last_exit.words if self.last_exit else "")

    def lose(self, world: World, news: News) -> None:
        self.note_loss(world, news)
        self._become(Phase.ENDING, world.now, KEEPER_LOST)

    def note_loss(self, world: World, news: News) -> None:
        if self.exit is None:
            self._ended(world, Exit(None, None, cause=KEEPER_LOST))
        self._tell(world, "lost", KEEPER_LOST)

    def settle(self, world: World, news: News) -> None:
        assert isinstance(news, Emptied)
        if news.survivors:
            text = f"{news.survivors} of the processes of incarnation {self.incarnation} outlived KILL"
            self._become(Phase.STUCK, world.now, text)
            self._tell(world, "survived", text)
            return
        if self.exit is None:
            self._ended(world, Exit(None, None, cause=self.cause or UNKNOWN))
        self._tell(world, "emptied", "")
        assert self.last_exit is not None
        if self.asked or not self.wanted or world.closing:
            self._after_request(world)
        elif restart.restarts(self.spec, self.last_exit):
            self._again(world)
        elif self.completed:
            self._give_up_for_good(world, Phase.EXITED, "completed", self.last_exit.words)
        else:
            text = f"{self.last_exit.words}; restart = {self.spec.restart}"
            self._give_up_for_good(world, Phase.EXITED, "ended", text)

    # ---- parts of them

    def _become(self, phase: Phase, now: Seconds, reason: str = "") -> None:
        if phase.state is not self.phase.state:
            self.since = now
        self.phase, self.reason, self.wake_at, self.entered = phase, reason, None, True

    def _tell(self, world: World, what: str, text: str) -> None:
        world.emit(Tell(self.spec.name, self.incarnation or None, what, text))

    def _clear(self) -> None:
        self.failures = self.streak = 0

    def _rest(self, world: World, reason: str) -> None:
        self._become(Phase.STOPPED, world.now, reason)
        self._tell(world, "stopped", reason)

    def _be_ready(self, world: World) -> None:
        self.ready_at = world.now
        self._become(Phase.RUNNING, world.now)
        self._tell(world, "ready", "")

    def _stop(self, world: World) -> None:
        world.save(self)
        world.emit(Stop(self.spec.name, self.incarnation, self.reason))
        self._tell(world, "stopping", self.reason)

    def _ended(self, world: World, ended: Exit) -> None:
        """The main process has ended: count the life, if nobody asked for its end.  It counts from when it was ready:
        an hour that was spent in becoming so is no success."""
        self.exit = self.last_exit = ended
        self.last_exit_of = self.incarnation
        if self.asked or not self.wanted:
            return
        if self.completed or (
            self.ready_at is not None and world.now - self.ready_at >= self.spec.backoff.reset_after
        ):
            self._clear()
        else:
            self.failures += 1

    def _after_request(self, world: World) -> None:
        if world.closing:
            self._rest(world, "stopped with the supervisor")
        elif not self.wanted:
            self._rest(world, "not in the configuration any more" if self.foreign else "stopped by hand")
        else:
            self._become(Phase.WAITING, world.now)

    def _again(self, world: World) -> None:
        assert self.last_exit is not None
        words, backoff = self.last_exit.words, self.spec.backoff
        if 0 < self.spec.start_limit <= self.failures:
            text = f"{self.failures} starts in a row did not live {backoff.reset_after:g}s; last: {words}"
            self._give_up_for_good(world, Phase.FATAL, "fatal", text)
            return
        wait = restart.delay(backoff, self.streak, world.rng)
        self.streak += 1
        self.restart = True
        if wait <= 0:
            self._become(Phase.WAITING, world.now)
            return
        self._become(Phase.BACKOFF, world.now, words)
        self.wake_at = world.now + wait
        self._tell(world, "backoff", f"{words}; starts again in {wait:.3g}s")

    def _give_up_for_good(self, world: World, phase: Phase, what: str, text: str) -> None:
        self._become(phase, world.now, text)
        self._tell(world, what, text)
