"""How a process ended and how a tree was stopped: plain values, made once, never changed.

Hand-written classes, because `dataclasses` and `typing` cost more to import than all of holdfast.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Seconds: TypeAlias = float

# si_code of a child's end (sigaction(2)); the wait status of PIDFD_GET_INFO is taken apart by hand.
CLD_EXITED, CLD_KILLED, CLD_DUMPED = 1, 2, 3
SCOPES = ("main", "group", "tree")


class _Value:
    """Equality and a readable form over __slots__."""

    __slots__: tuple[str, ...] = ()
    _fields: tuple[str, ...] = ()

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({fields})"


class Usage(_Value):
    """Resources that a process used, with those of its own children that it waited for (getrusage(2))."""

    __slots__ = (
        "blocks_in",
        "blocks_out",
        "involuntary_switches",
        "major_faults",
        "max_rss_bytes",
        "minor_faults",
        "system_seconds",
        "user_seconds",
        "voluntary_switches",
    )
    _fields = (
        "user_seconds",
        "system_seconds",
        "max_rss_bytes",
        "minor_faults",
        "major_faults",
        "blocks_in",
        "blocks_out",
        "voluntary_switches",
        "involuntary_switches",
    )

    user_seconds: Seconds
    system_seconds: Seconds
    max_rss_bytes: int
    minor_faults: int
    major_faults: int
    blocks_in: int
    blocks_out: int
    voluntary_switches: int
    involuntary_switches: int

    def __init__(self, fields: tuple[int, ...]) -> None:
        self.user_seconds = fields[0] / 1e6
        self.system_seconds = fields[1] / 1e6
        self.max_rss_bytes = fields[2] * 1024
        (
            self.minor_faults,
            self.major_faults,
            self.blocks_in,
            self.blocks_out,
            self.voluntary_switches,
            self.involuntary_switches,
        ) = fields[3:]


class ExitStatus(_Value):
    """How a process ended: by itself with `code`, or by `signal`; the other one is None.

    `core_dumped`: the signal left a core.  `usage`: resources of the process, or None where only the
    exit code could be recovered, and for a direct child that the kernel reaps by itself.  `started_at`
    and `ended_at` are wall-clock times (seconds since the epoch), `elapsed` is measured on the monotonic clock.
    """

    __slots__ = ("_usage", "code", "core_dumped", "elapsed", "signal", "started_at")
    _fields = ("code", "signal", "core_dumped", "usage", "started_at", "ended_at", "elapsed")

    code: int | None
    signal: int | None
    core_dumped: bool
    started_at: float
    elapsed: Seconds

    def __init__(
        self,
        code: int | None,
        signal: int | None,
        core_dumped: bool,
        usage: tuple[int, ...] | None,
        started_at: float,
        elapsed: Seconds,
    ) -> None:
        self.code = code
        self.signal = signal
        self.core_dumped = core_dumped
        self._usage = usage
        self.started_at = started_at
        self.elapsed = elapsed

    @property
    def usage(self) -> Usage | None:
        """Resources of the process, with those of its own children that it waited for."""
        return None if self._usage is None else Usage(self._usage)

    @property
    def ended_at(self) -> float:
        """When it ended, in seconds since the epoch."""
        return self.started_at + self.elapsed

    @property
    def returncode(self) -> int:
        """As in subprocess: the code, or the signal's number with a minus sign."""
        if self.code is not None:
            return self.code
        return -(self.signal or 0)

    @property
    def ok(self) -> bool:
        """The process ended by itself with code 0."""
        return self.code == 0

    def __str__(self) -> str:
        if self.code is not None:
            return f"exit code {self.code}"
        return f"signal {self.signal}" + (" (core dumped)" if self.core_dumped else "")


def from_siginfo(
    code: int, status: int, usage: tuple[int, ...], started_at: float, elapsed: Seconds
) -> ExitStatus:
    """From waitid(2)'s si_code and si_status."""
    if code == CLD_EXITED:
        return ExitStatus(status, None, False, usage, started_at, elapsed)
    return ExitStatus(None, status, code == CLD_DUMPED, usage, started_at, elapsed)


def from_wait_status(
    status: int, started_at: float, elapsed: Seconds, usage: tuple[int, ...] | None = None
) -> ExitStatus:
    """From a wait(2) status, as wait4(2) gives it, and PIDFD_GET_INFO, with which no usage comes."""
    signal = status & 0x7F
    if signal:
        return ExitStatus(None, signal, bool(status & 0x80), usage, started_at, elapsed)
    return ExitStatus(status >> 8 & 0xFF, None, False, usage, started_at, elapsed)


class Member(_Value):
    """One process of a tree: in the report of a stop, or from `Process.members`.

    The pid is for printing: the process may be gone.  `main` is that of the handle; `signalled` to `denied` say what
    a stop did.  `parent`, `group` and `session` (numbers as well) and `started_at` (seconds since the epoch, as fine as
    the kernel's clock ticks) are there from `Process.members`, and None in reports.
    """

    __slots__ = ("denied", "group", "killed", "left_group", "main", "name", "parent", "pid", "session", "signalled",
                 "started_at", "survived")  # fmt: skip
    _fields = ("pid", "name", "main", "signalled", "left_group", "killed", "survived", "denied", "parent", "group",
               "session", "started_at")  # fmt: skip

    pid: int
    name: str
    main: bool
    signalled: bool
    left_group: bool
    killed: bool
    survived: bool
    denied: bool
    parent: int | None
    group: int | None
    session: int | None
    started_at: float | None

    def __init__(
        self,
        pid: int,
        flags: int,
        name: str,
        parent: int | None = None,
        group: int | None = None,
        session: int | None = None,
        started_at: float | None = None,
    ) -> None:
        self.pid = pid
        self.name = name
        self.main = bool(flags & 1)
        self.signalled = bool(flags & 2)
        self.left_group = bool(flags & 4)
        self.killed = bool(flags & 8)
        self.survived = bool(flags & 16)
        self.denied = bool(flags & 32)
        self.parent = parent
        self.group = group
        self.session = session
        self.started_at = started_at


class StopReport(_Value):
    """What a stop did.

    `members` names the processes of the tree that the stop saw (256 at most; `unlisted` counts the
    rest); `signalled`, `left_group`, `killed` and `survivors` are those of them that got the stop
    signal, had left the main process's group, needed KILL, and are still there.  The counts with
    `_count` cover unlisted ones too.  `duration` runs from the request until the tree was empty or
    the stop gave up.
    """

    __slots__ = (
        "duration",
        "grace",
        "killed_count",
        "members",
        "scope",
        "signal",
        "signalled_count",
        "survivor_count",
        "unlisted",
    )
    _fields = (
        "signal",
        "scope",
        "grace",
        "duration",
        "signalled_count",
        "killed_count",
        "survivor_count",
        "unlisted",
        "members",
    )

    signal: int
    scope: str
    grace: Seconds
    duration: Seconds
    signalled_count: int
    killed_count: int
    survivor_count: int
    unlisted: int
    members: tuple[Member, ...]

    def __init__(
        self,
        signal: int,
        scope: str,
        grace: Seconds,
        duration: Seconds = 0.0,
        signalled_count: int = 0,
        killed_count: int = 0,
        survivor_count: int = 0,
        unlisted: int = 0,
        members: tuple[Member, ...] = (),
    ) -> None:
        self.signal = signal
        self.scope = scope
        self.grace = grace
        self.duration = duration
        self.signalled_count = signalled_count
        self.killed_count = killed_count
        self.survivor_count = survivor_count
        self.unlisted = unlisted
        self.members = members

    @property
    def signalled(self) -> tuple[Member, ...]:
        """Members that got the stop signal."""
        return tuple(m for m in self.members if m.signalled)

    @property
    def left_group(self) -> tuple[Member, ...]:
        """Members that had left the main process's group when the stop began."""
        return tuple(m for m in self.members if m.left_group)

    @property
    def killed(self) -> tuple[Member, ...]:
        """Members that needed KILL."""
        return tuple(m for m in self.members if m.killed)

    @property
    def survivors(self) -> tuple[Member, ...]:
        """Members that were still there when the stop gave up."""
        return tuple(m for m in self.members if m.survived)

    @property
    def empty(self) -> bool:
        """Nothing of the tree is left: proved, not assumed."""
        return self.survivor_count == 0
