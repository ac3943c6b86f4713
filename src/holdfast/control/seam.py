"""What the control layer needs of a supervisor, and no more.  All of it is called in the loop's thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol, TypeVar

from holdfast.daemon.logs import LogReader
from holdfast.daemon.status import (
    Ancestry,
    EventRecord,
    HistoryRecord,
    Left,
    LineageRecord,
    Outcome,
    ServiceStatus,
    SupervisorStatus,
    UpdateStatus,
    UpgradeStatus,
)

Verb = Literal["start", "stop", "restart"]
R = TypeVar("R", covariant=True)


class Peer(NamedTuple):
    """Who asks: the process at the other end of the socket, as it was when it connected.  The pid is for printing."""

    pid: int
    uid: int

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}"


class Remote(NamedTuple):
    """Who asks over TCP: known by the token, and from where."""

    address: str

    def __str__(self) -> str:
        return f"{self.address}, over TCP"


Asker = Peer | Remote


class Records(Protocol[R]):
    """What has happened, numbered."""

    @property
    def last(self) -> int:
        """The number of the newest event."""
        ...

    def after(self, seq: int) -> Sequence[R]:
        """Those with larger numbers that are still remembered, oldest first."""
        ...

    async def wait(self, seq: int) -> None:
        """Return when there is an event with a larger number.  May be cancelled."""
        ...


Events = Records[EventRecord]


class Supervised(Protocol):
    """The supervisor as clients see it.  UnknownService, StillAdopting (daemon/names.py), ValueError: nothing was done.
    """

    @property
    def events(self) -> Events: ...

    def overview(self) -> SupervisorStatus: ...

    def services(self, patterns: Iterable[str]) -> Sequence[ServiceStatus]:
        """The status of those that one of the patterns matches, all without patterns.  UnknownService."""
        ...

    def service(self, name: str) -> ServiceStatus:
        """UnknownService."""
        ...

    def log_reader(self, name: str) -> LogReader:
        """UnknownService."""
        ...

    def tree(self, name: str) -> Ancestry:
        """UnknownService."""
        ...

    def lineage(self, name: str) -> AbstractContextManager[tuple[Records[LineageRecord], str]]:
        """What becomes of its processes, and who tells; for as long as this is open.  UnknownService."""
        ...

    async def history(self, patterns: Iterable[str], limit: int) -> Sequence[HistoryRecord]:
        """The last `limit` rows of those that match, oldest first.  OSError: it cannot be read."""
        ...

    async def command(
        self, verb: Verb, names: Sequence[str], *, wait: bool, timeout: float | None, peer: Asker
    ) -> Sequence[Outcome]:
        """The outcome for each.  When it is cancelled only the waiting ends."""
        ...

    def send_signal(self, names: Sequence[str], signal: int | str, scope: str, *, peer: Asker) -> Sequence[Outcome]: ...

    async def reload(self, names: Sequence[str], *, peer: Asker) -> Sequence[Outcome]:
        """Run their reload commands.  When it is cancelled only the waiting ends."""
        ...

    def shut_down(self, *, peer: Asker) -> None:
        """Begin to stop everything; returns at once."""
        ...

    def leave(self, *, peer: Asker) -> Left:
        """Begin to end, and leave the services running.  Refused (daemon/upgrade.py)."""
        ...

    async def update(
        self, *, dry_run: bool, rollback: bool, wait: bool, timeout: float | None, peer: Asker
    ) -> UpdateStatus:
        """What the file changes, and what came of it.  Refused, BadFile (daemon/update.py).  When it is cancelled after
        the file was accepted, only the waiting ends."""
        ...

    async def upgrade(self, *, peer: Asker) -> UpgradeStatus:
        """Begin to make way for the next version.  Refused."""
        ...
