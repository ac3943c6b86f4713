"""What a held keeper tells, as events: from its socket or from the report file that it left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _native
from .errors import STAGES
from .status import SCOPES, ExitStatus, Member, StopReport, Usage, from_siginfo

if TYPE_CHECKING:
    from typing import Any, TypeAlias

# Tags of the wire (csrc/common/wire.h).
KEEPER_HELLO, SPAWNED, FAILED, EXITED, ADOPTED, STOPPED, CONTINUED, EMPTY = 64, 65, 66, 67, 68, 69, 70, 71
STOP_REPORT, MEMBERS, LOST, LAUNCHED, LOG_STATE, MOVED = 72, 73, 74, 75, 76, 77

# Why a process is main: what was started; the one of that name, the only one, in a session of its own, the oldest of
# several that are main together; named by the owner.
RULES = {0: "started", 1: "name", 2: "only", 3: "session", 4: "together", 5: "asked"}


@dataclass(frozen=True, slots=True)
class Spawned:
    """The program runs (its exec has succeeded).  To a new owner it is told again."""

    pid: int
    identity: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing was started; `stage` is one of the words of `STAGES`.  The last word: acknowledge it as empty."""

    stage: str
    errno: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The main process has ended."""

    status: ExitStatus


@dataclass(frozen=True, slots=True)
class Moved:
    """Main is another process, one that the old one has left; or it is the same by another rule (`RULES`).

    `count`: how often it has been another one.  A new owner is told the last of these again."""

    old_pid: int
    pid: int
    rule: str
    count: int


@dataclass(frozen=True, slots=True)
class MemberExited:
    """A member that had no parent but the keeper has ended.  The others' ends are their parents' to know.

    Nobody has noted its start: `started_at` and `elapsed` of its status are counted from the start of the tree.
    """

    pid: int
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class Adopted:
    """A member lost its parent and is the keeper's child now.

    The kernel does not tell, so this is noticed with the next event, question or stop; of one that has ended by then
    there is `MemberExited` alone.  `previous_parent` is the number of the parent that it lost, where that is certain,
    else None.
    """

    pid: int
    previous_parent: int | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Main or an adopted member was stopped by a signal."""

    pid: int
    signo: int


@dataclass(frozen=True, slots=True)
class Continued:
    """It goes on."""

    pid: int
    signo: int


@dataclass(frozen=True, slots=True)
class StopReported:
    """A stop has come to its end.  id 0: nobody asked for it but the end of main, or of the owner."""

    id: int
    report: StopReport


@dataclass(frozen=True, slots=True)
class Members:
    """The answer to `query`: who is in the tree; `unlisted` are those that the list had no room for."""

    id: int
    members: tuple[Member, ...]
    unlisted: int


@dataclass(frozen=True, slots=True)
class LogState:
    """How the log fares, in bytes; `error` is the errno of the last failed write, 0: none."""

    written: int
    lost: int
    dropped: int
    error: int


@dataclass(frozen=True, slots=True)
class Empty:
    """No process of the tree is left.  `usage`: summed over all that the keeper reaped."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class EventsLost:
    """So many events of members had no room."""

    count: int


@dataclass(frozen=True, slots=True)
class KeeperGone:
    """Nothing more will come.

    Without any event before it: the keeper had ended already and its report file tells, or it has another
    owner.  Without `Empty` (or `Failed`) before it: the keeper was lost, and what it held may be alive.
    """


if TYPE_CHECKING:
    Event: TypeAlias = (
        Spawned | Failed | Exited | Moved | MemberExited | Adopted | Stopped | Continued | StopReported | Members
        | LogState | Empty | EventsLost | KeeperGone
    )  # fmt: skip
    # Those of them that say what has happened to the processes: what a handle's events are.
    TreeEvent: TypeAlias = (
        Spawned | Adopted | Moved | MemberExited | Exited | Stopped | Continued | Empty | EventsLost
    )  # fmt: skip


class Account:
    """What the records of one keeper say, taken in one after another."""

    def __init__(self) -> None:
        self.keeper_pid = 0
        self.pid = 0
        self.identity = 0
        self.started_at = 0.0
        self.status: ExitStatus | None = None
        self.empty = False
        self.rule = RULES[0]
        self.moves = 0  # how often main has become another process
        self._started_ns = 0

    def begin(self, started_ns: int, started_at: float) -> None:
        """For who knows of the start, and has no record of it: on the monotonic clock, and on the wall's."""
        self._started_ns, self.started_at = started_ns, started_at

    def take_in(self, record: tuple[Any, ...]) -> Event | None:
        """The event that a record is; None where it is none, or a later version's."""
        tag, *fields = record
        if tag == KEEPER_HELLO:
            _, self.keeper_pid = fields
        elif tag == SPAWNED:
            self.pid, self.identity, self._started_ns, started_at_ns = fields
            self.started_at = started_at_ns / 1e9
            return Spawned(self.pid, self.identity, self.started_at)
        elif tag == MOVED:
            old_pid, self.pid, self.identity, rule, self.moves = fields
            self.rule = RULES.get(rule, str(rule))
            return Moved(old_pid, self.pid, self.rule, self.moves)
        elif tag == FAILED:
            stage, error = fields
            return Failed(STAGES.get(stage, str(stage)), error)
        elif tag == EXITED:
            pid, is_main, code, status, ended_ns, usage = fields
            how = from_siginfo(code, status, usage, self.started_at, (ended_ns - self._started_ns) / 1e9)
            if not is_main:
                return MemberExited(pid, how)
            self.status = how
            return Exited(how)
        elif tag == ADOPTED:
            return Adopted(fields[0], *fields[2:])
        elif tag == STOPPED:
            return Stopped(*fields)
        elif tag == CONTINUED:
            return Continued(*fields)
        elif tag == EMPTY:
            self.empty = True
            return Empty(Usage(fields[2]))
        elif tag == STOP_REPORT:
            stop_id, signo, scope, grace_ms, duration_ns, signalled, _, killed, survivors, unlisted, members = fields
            return StopReported(stop_id, StopReport(
                signo, SCOPES[scope], grace_ms / 1000, duration_ns / 1e9, signalled, killed, survivors, unlisted,
                tuple(Member(*m) for m in members),
            ))  # fmt: skip
        elif tag == MEMBERS:
            query_id, unlisted, members = fields
            return Members(query_id, tuple(Member(*m) for m in members), unlisted)
        elif tag == LOST:
            return EventsLost(*fields)
        elif tag == LOG_STATE:
            return LogState(*fields)
        return None


def read_report(path: str) -> list[Event]:
    """What a keeper left in its report file when nobody was there: the same events that an owner gets.

    OSError where there is none; ValueError: it is no report.  It is never half-written.
    """
    with open(path, "rb") as file:
        records = _native.wire_decode(file.read())
    account = Account()
    events = [account.take_in(record) for record in records]
    if not records or records[0][0] != KEEPER_HELLO:
        raise ValueError(f"not a report of a keeper: {path!r}")
    return [event for event in events if event is not None]
