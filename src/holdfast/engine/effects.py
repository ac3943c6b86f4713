"""What is to be done: the closed set of effects that the engine gives, in the imperative, and the record on disk.

They are performed in the order in which they are given.  A Save stands before the Spawn or Stop that it announces, so
a supervisor that dies between the two finds the intent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .events import Exit, Seconds
from .table import State

# A start may have three steps, one after another, each with a tree and an incarnation number of its own.
Step: TypeAlias = Literal["pre_start", "main", "post_stop"]
StartFailed: TypeAlias = Literal["", "for now", "for good"]


@dataclass(frozen=True, slots=True)
class Record:
    """What outlives the supervisor of one service: JSON types only (msgspec encodes and decodes it as it is).

    Times are of the clock of `now`, which must go on over restarts of the supervisor: CLOCK_MONOTONIC does within one
    boot; times in the future are taken as now.
    """

    name: str
    wanted: bool = True  # False: stopped by hand
    state: State = State.STOPPED
    incarnation: int = 0  # the last number given
    live: bool = False  # a tree of that number may exist
    stopping: bool = False  # that tree is to be stopped, whatever `wanted` says
    ready_at: Seconds | None = None  # of that incarnation
    failures: int = 0  # starts in a row that did not live `reset_after`
    streak: int = 0  # restarts in a row without such a life: place in the back-off
    restarts: int = 0  # by policy, ever
    last_exit: Exit | None = None
    last_exit_of: int = 0  # the incarnation that ended so; 0: none
    since: Seconds = 0.0
    wake_at: Seconds | None = None  # end of back-off
    reason: str = ""
    why: str = ""  # it was started, or is to be: Spawn's words
    cause: str = ""  # of the exit to come: unhealthy
    step: Step = "main"  # what that incarnation is
    start_failed: StartFailed = ""
    scheduled: float = 0.0  # the last time of its schedule that came (since 1970: no `Seconds`)
    queued: bool = False  # one came while it ran: it runs again
    definition: str = ""  # digest of what that incarnation was started with; "": nobody knows
    oneshot: bool = False  # that incarnation is to end by itself
    next: int = 0  # its successor, which is being started beside it; 0: none
    next_definition: str = ""  # digest of what that one was started with
    retired: tuple[int, ...] = ()  # trees before it that are on their way out
    last: int = 0  # the highest number given, where that is higher than these


@dataclass(frozen=True, slots=True)
class Save:
    """Write the record, whole, by rename, before what follows."""

    record: Record


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the command of a step; answer with Spawned or SpawnFailed.  `why`, in words: who asked, or what ended."""

    name: str
    incarnation: int
    why: str = field(default="", compare=False)
    step: Step = "main"


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop its tree: the spec's stop_signal, stop_scope and grace; answer with Exited and Emptied as they come.  `why`,
    in words: who asked, or what it stops with."""

    name: str
    incarnation: int
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Serve:
    """From now on this incarnation, which was started beside another, is the service's; the other is on its way out."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Tell:
    """For the event stream and the log.  `what` is one of WHATS; `incarnation` None where there is none yet."""

    name: str
    incarnation: int | None
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Forget:
    """It is not in the configuration and nothing of it runs any more: remove its record."""

    name: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing runs any more (but what KILL could not end): end with this status.  Given once."""

    status: int


Effect: TypeAlias = Save | Spawn | Stop | Serve | Tell | Forget | Finish

# What a Tell can say, in the order of a life.
WHATS = (
    "waiting",  # for others, before it starts or before it stops
    "starting",
    "spawned",
    "ready",
    "extended",
    "kept",  # it serves on, for its successor has failed
    "exited",
    "lost",
    "stopping",
    "emptied",
    "survived",  # something of it outlived KILL
    "backoff",
    "stopped",
    "completed",
    "ended",  # for good: not restarted
    "fatal",
    "outdated",  # it was started with another definition than the accepted one
    "wanted",  # asked to start, or not to, while its end is under way
    "refused",
    "skipped",  # a time of its schedule
    "shutdown",
    "forgotten",
)
