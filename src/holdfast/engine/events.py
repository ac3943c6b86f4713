"""What happened: the closed set of events that the engine takes, in the past tense, and how a process ended.

An event of one incarnation carries its number: an answer that comes late, about an incarnation that is gone, changes
nothing.  Times are seconds of the clock that `now` is taken from.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ..config.model import Service, StartBudget

Seconds: TypeAlias = float
# Who is meant by a command: names, each with the incarnation it is meant for (None: whichever there is).
Targets: TypeAlias = tuple[tuple[str, int | None], ...]

READY_TIMEOUT = "ready_timeout"  # this and UNHEALTHY may be followed by " (why)"
UNHEALTHY = "unhealthy"
KEEPER_LOST = "keeper lost"
PRE_START = "pre_start"  # that failed: the cause of an end before main
NOT_DONE = "not done in time"
LEFT_NOTHING = "left no process"  # what was to fork a daemon
COULD_NOT_START = "could not start"  # followed by ": " and why
OUT_OF_MEMORY = "out of memory"  # followed by whose limit that was; with a signal: the kernel has killed it
UNKNOWN = "unknown"  # it ended while nobody looked


@dataclass(frozen=True, slots=True)
class Exit:
    """How the main process ended: a code or a signal, or neither where it never ran or nobody knows."""

    code: int | None
    signal: int | None
    core: bool = False
    cause: str = ""  # why, where code and signal do not say it

    @property
    def abnormal(self) -> bool:
        """By a signal, not ready in time, unhealthy, keeper lost, never started, or without the daemon that it was to
        leave: no decision of the program."""
        causes = (READY_TIMEOUT, UNHEALTHY, KEEPER_LOST, PRE_START, LEFT_NOTHING)
        return self.code is None or self.cause.startswith(causes)

    def succeeded(self, codes: tuple[int, ...]) -> bool:
        return not self.abnormal and self.code in codes

    @property
    def words(self) -> str:
        """For people: "exited with code 1", "killed by SIGSEGV (core dumped)", "ready_timeout: killed by SIGTERM"."""
        if self.signal is not None:
            try:
                name = signals.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            how = f"killed by {name}" + (" (core dumped)" if self.core else "")
        elif self.code is not None:
            how = f"exited with code {self.code}"
        else:
            return self.cause or UNKNOWN
        return f"{self.cause}: {how}" if self.cause else how


@dataclass(frozen=True, slots=True)
class StartAsked:
    """`by`, here and below, is who asked, in a few words for people; "": that is not known."""

    targets: Targets
    by: str = ""


@dataclass(frozen=True, slots=True)
class StopAsked:
    targets: Targets
    by: str = ""


@dataclass(frozen=True, slots=True)
class RestartAsked:
    targets: Targets
    by: str = ""


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """Another configuration was accepted: whole, and checked."""

    specs: Mapping[str, Service]
    budget: StartBudget
    by: str = ""


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    """Everything is to stop, in order; Finish follows."""

    by: str = ""


@dataclass(frozen=True, slots=True)
class Woken:
    """The time of `Engine.next_wake()` has come."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The program runs: exec has succeeded."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """No process came to be, and nothing is left of the attempt.  `temporary`: the same may succeed later (EAGAIN,
    ENOMEM, EMFILE ...)."""

    name: str
    incarnation: int
    reason: str
    temporary: bool


@dataclass(frozen=True, slots=True)
class BecameReady:
    """It is, by what its spec awaits.  May overtake Spawned."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NotReadyYet:
    """It was asked whether it is ready, and is not: why, in words.  Given when they change."""

    name: str
    incarnation: int
    why: str


@dataclass(frozen=True, slots=True)
class BecameUnhealthy:
    """It was ready, and is not well: so many failures in a row, or its watchdog has not heard from it."""

    name: str
    incarnation: int
    why: str


@dataclass(frozen=True, slots=True)
class Exited:
    """Its main process has ended; the keeper stops what is left of the tree."""

    name: str
    incarnation: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class Emptied:
    """Nothing of its tree is left; or, with `survivors`, that many could not be ended.  For the latter another Emptied
    with 0 follows if they do end."""

    name: str
    incarnation: int
    survivors: int = 0


@dataclass(frozen=True, slots=True)
class KeeperLost:
    """Its keeper is gone; what could be found is being killed, Emptied follows."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class TimeExtended:
    """It asked for more time to become ready (EXTEND_TIMEOUT_USEC)."""

    name: str
    incarnation: int
    until: Seconds


@dataclass(frozen=True, slots=True)
class ScheduleDue:
    """A time of its schedule has come: `at` tells it from all others, `text` shows it to people."""

    name: str
    at: Seconds
    text: str = ""


Observed: TypeAlias = (
    Spawned | SpawnFailed | BecameReady | NotReadyYet | BecameUnhealthy | Exited | Emptied | KeeperLost | TimeExtended
)
Command: TypeAlias = StartAsked | StopAsked | RestartAsked
Event: TypeAlias = Command | Observed | PlanChanged | ShutdownAsked | Woken | ScheduleDue
