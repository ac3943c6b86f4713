"""A process tree whose keeper outlives its owner: started here, or found again by the keeper's socket.

In: the records of one keeper (docs/wire.md); out: events, in their order.  Nothing in here waits for anything,
but for the exec of the keeper itself, and one thread alone may use a `HeldTree`: there are no locks.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

from . import _native, keeper
from .address import (
    ACK,
    ACK_EMPTY,
    ACK_EXITED,
    ACK_STOP_REPORT,
    LogPlan,
    LowNumbers,
    connect,
    launch,
    pidfd_of_peer,
    request,
    request_with,
)
from .events import (
    ADOPTED,
    EXITED,
    KEEPER_HELLO,
    LAUNCHED,
    MOVED,
    SPAWNED,
    Account,
    Adopted,
    Continued,
    Empty,
    EventsLost,
    Exited,
    Failed,
    KeeperGone,
    LogState,
    MemberExited,
    Members,
    Moved,
    Spawned,
    Stopped,
    StopReported,
    read_report,
)  # fmt: skip
from .keeper import ON_OWNER_LOSS, SIGCONT, SIGKILL, STOP, stop_body, try_signal
from .options import LOSS, SCOPE
from .status import from_wait_status

if TYPE_CHECKING:
    import socket
    from typing import Any

    from .events import Event
    from .options import Plan
    from .status import ExitStatus, Seconds

__all__ = [
    "Adopted", "Continued", "Empty", "EventsLost", "Exited", "Failed", "HeldTree", "KeeperGone", "LogPlan", "LogState",
    "LowNumbers", "MemberExited", "Members", "Moved", "Spawned", "StopReported", "Stopped", "read_report",
]  # fmt: skip

# Tags of the wire (csrc/common/wire.h).
SIGNAL, QUERY, ATTACH, MAIN = 4, 6, 13, 14

_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


class HeldTree(Account):
    """One process tree and its owner's end of the keeper's socket.  For one thread alone; nothing blocks.

    `pid` is 0 until `Spawned`; `pidfd` and `keeper_pidfd` are ours, open until `close`, and -1 while unknown;
    `members` are pidfds of what the keeper has adopted, by pid.  A keeper that is frozen, with its socket full,
    makes the requests raise BlockingIOError: `thaw` it, or `kill_keeper` and wait for `KeeperGone`.  Requests
    to a keeper that is gone do nothing.
    """

    def __init__(self, sock: socket.socket, keeper_pid: int, keeper_pidfd: int) -> None:
        super().__init__()
        self._sock = sock
        self._inbox: list[tuple[list[Any] | None, list[int]]] = []
        self._gone = False
        self.attached = False  # True: another owner has started it
        self._greeted = True  # False: the keeper has not said yet that it is the one whose pidfd we have
        self.keeper_pid = keeper_pid
        self.keeper_pidfd = keeper_pidfd
        self.pidfd = -1
        self.members: dict[int, int] = {}
        # Milliseconds since boot: no earlier owner of this keeper has used it, and never 0.
        self._id = time.monotonic_ns() // 1_000_000 % (1 << 31) + 1

    @classmethod
    def start(
        cls, plan: Plan, *, address: str, report: str, stop_rest: bool = True, log: LogPlan | None = None,
        low: LowNumbers | None = None,
    ) -> HeldTree:  # fmt: skip
        """Start a keeper with its process; returns without waiting for the exec (`Spawned` or `Failed` tells).

        `address` is the path of the socket, `report` that of the report file.  `stop_rest`: the end of the main
        process stops the rest of the tree, with the plan's stop signal and grace.  SpawnError, OSError,
        ValueError: nothing was started and nothing is left; the plan's descriptors are closed in every case.
        """
        try:
            sock, pid = launch(plan, address, report, stop_rest, log, low)
        except BaseException:
            plan.discard()
            raise
        plan.close_child_files()
        return cls(sock, pid, -1)

    @classmethod
    def attach(cls, address: str) -> HeldTree:
        """The tree of the keeper that listens at `address`: its events tell what it is.

        FileNotFoundError, ConnectionRefusedError: no keeper is there.  BlockingIOError: too many wait for it
        already; it is frozen.
        """
        sock, pid = connect(address)
        tree = cls(sock, pid, pidfd_of_peer(sock.fileno(), pid, pid))
        tree.attached, tree._greeted = True, False
        return tree

    def __del__(self) -> None:
        if hasattr(self, "members"):
            self.close()

    # ---- hearing

    def fileno(self) -> int:
        """Readable when `events` has something; for a loop's add_reader.  -1 after `close`."""
        return self._sock.fileno()

    def events(self) -> list[Event]:
        """Everything that the keeper has said, in its order.  After `KeeperGone` always empty."""
        found: list[Event] = []
        self._receive()
        while self._inbox:
            records, fds = self._inbox.pop(0)
            for record in records or ():
                self._take_descriptor(record, fds)
                event = self.take_in(record)
                if event is not None:
                    found.append(event)
            for fd in fds:
                os.close(fd)
            if records is None:
                found.append(KeeperGone())
        return found

    def _receive(self) -> None:
        while not self._gone:
            try:
                # Also looks at the keeper's pidfd: a copy of its end of the socket must not hide its death.
                keeper_pidfd = self.keeper_pidfd if self._greeted else -1
                if not _native.receive(self._sock.fileno(), keeper_pidfd, -1, 0, self._inbox):
                    return
            except (OSError, ValueError):  # no keeper of ours speaks like this
                self._inbox.append((None, []))
            self._gone = self._inbox[-1][0] is None

    def _take_descriptor(self, record: tuple[Any, ...], fds: list[int]) -> None:
        tag = record[0]
        if tag == KEEPER_HELLO and not self._greeted:
            self._greeted = True
            if record[2] != self.keeper_pid:
                if self.keeper_pidfd >= 0:
                    os.close(self.keeper_pidfd)
                self.keeper_pidfd = pidfd_of_peer(self._sock.fileno(), record[2], self.keeper_pid)
        if tag == EXITED and not record[2]:
            self._let_go_of(record[1])
        if tag == MOVED:  # without a descriptor there was no room for it: better none than the old one's
            self._let_go_of(record[2])
            if self.pidfd >= 0:
                os.close(self.pidfd)
            self.pidfd = fds.pop() if fds else -1
        if not fds:
            return
        if tag == LAUNCHED and self.keeper_pidfd < 0:
            self.keeper_pidfd = fds.pop()
        elif tag == SPAWNED and self.pidfd < 0:
            self.pidfd = fds.pop()
        elif tag == ADOPTED:
            self._let_go_of(record[1])  # the report of its end was lost, and the number came back
            self.members[record[1]] = fds.pop()

    def _let_go_of(self, pid: int) -> None:
        if pid in self.members:
            os.close(self.members.pop(pid))

    # ---- asking

    def stop(self, signo: int, scope: str, grace: Seconds) -> int:
        """The signal once, the grace in seconds, SIGKILL until the tree is empty.  The id of its `StopReported`."""
        self._id += 1
        self._ask(STOP, stop_body(self._id, signo, scope, grace))
        return self._id

    def signal(self, signo: int, scope: str) -> None:
        """Send a signal to `main`, its `group` or the whole `tree`.  PermissionError, for main."""
        if scope != "main" or self.pidfd < 0:
            self._ask(SIGNAL, struct.pack("<iI", signo, SCOPE[scope]))
        elif self.status is None:
            try:
                _native.pidfd_signal(self.pidfd, signo)
            except ProcessLookupError:
                if self.moves:  # it may have moved again, of which we have not heard
                    self._ask(SIGNAL, struct.pack("<iI", signo, SCOPE[scope]))

    def query(self) -> int:
        """Ask who is in the tree.  The id of the `Members` that answers."""
        self._id += 1
        self._ask(QUERY, struct.pack("<II", self._id, 0))
        return self._id

    def make_main(self, pid: int) -> None:
        """Of a `forking` plan: this one is the main process.  `Moved` follows if it is a living child of the keeper."""
        self._ask(MAIN, struct.pack("<iI", pid, 0))

    def acknowledge(self, *, exited: bool = False, empty: bool = False, stopped: bool = False) -> None:
        """We have it on record: `Exited`, `Empty` (or `Failed`), `StopReported`.  A new owner is not told again.

        When the tree is empty, acknowledging that is the end of the keeper.
        """
        what = ACK_EXITED * exited | ACK_EMPTY * empty | ACK_STOP_REPORT * stopped
        self._ask(ACK, struct.pack("<II", what, 0))

    def set_on_owner_loss(self, what: str) -> None:
        """What happens to the tree when we are gone: `stop`, `kill`, `keep`, instead of what its plan says."""
        self._ask(ON_OWNER_LOSS, struct.pack("<II", LOSS[what], 0))

    def pass_client(self, client: int) -> None:
        """Give the keeper a descriptor, a client's connection (docs/wire.md, Clients); the caller closes its own."""
        if not self._gone:
            request_with(self._sock, ATTACH, client)

    def _ask(self, tag: int, body: bytes) -> None:
        if not self._gone:
            request(self._sock, tag, body)

    # ---- the worst case

    @property
    def proved(self) -> bool:
        """`keeper_pidfd` is the keeper's: it has said so, or who owns it knows that (and sets this)."""
        return self._greeted

    @proved.setter
    def proved(self, value: bool) -> None:
        self._greeted = value

    def thaw(self) -> None:
        """SIGCONT to the keeper: one that somebody has stopped goes on."""
        self._signal_keeper(SIGCONT)

    def kill_keeper(self) -> None:
        """SIGKILL to the keeper.  `KeeperGone` follows, and the tree lives on without it.

        One that was attached to and has not said a word yet is left alone, unless it is `proved`.
        """
        if self._greeted:
            self._signal_keeper(SIGKILL)

    def _signal_keeper(self, signo: int) -> None:
        if self.keeper_pidfd < 0:  # it lies in the socket since the start
            self._receive()
            for records, fds in self._inbox:
                for record in records or ():
                    if record[0] == LAUNCHED:
                        self._take_descriptor(record, fds)
        if self.keeper_pidfd >= 0:
            try_signal(self.keeper_pidfd, signo, 0)

    def kill_held(self) -> None:
        """After the loss of the keeper: SIGKILL to main, to its group as far as it led one, and to adopted members.

        Their other descendants are unknown to us.
        """
        if self.pidfd >= 0:
            try_signal(self.pidfd, SIGKILL, _GROUP)
            try_signal(self.pidfd, SIGKILL, 0)
        for fd in self.members.values():
            try_signal(fd, SIGKILL, 0)

    def recover_status(self) -> ExitStatus | None:
        """After the loss of the keeper, when `pidfd` shows the end: main's status as far as the kernel still knows.

        None: it still runs, is not reaped, or the kernel (before 6.15) does not tell.  Without usage.
        """
        if self.status is None and self.pidfd >= 0:
            info = _native.exit_info(self.pidfd)
            if info is not None:
                self.status = from_wait_status(info, self.started_at, time.monotonic() - self._started_ns / 1e9)
        return self.status

    def close(self) -> None:
        """Leave.  The tree goes on, or meets what its plan says of the loss of its owner."""
        self._gone = True
        self._sock.close()
        while self._inbox:
            for fd in self._inbox.pop()[1]:
                os.close(fd)
        while self.members:
            os.close(self.members.popitem()[1])
        fds = self.pidfd, self.keeper_pidfd
        self.pidfd = self.keeper_pidfd = -1
        if fds[0] >= 0:
            os.close(fds[0])
        if fds[1] >= 0:
            keeper.retire(fds[1])

