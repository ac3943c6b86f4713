"""What `spawn(address=)` and `attach` do: handles of held trees.

Between a handle and its keeper nothing is different from other kept trees, but for the two ends of the story: the
keeper is found by its address, and what became of the tree stays there (with the keeper, or in its report) until an
owner closes the handle.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from io import FileIO
from time import monotonic, monotonic_ns, sleep

from . import _native
from .address import (
    ACK,
    ACK_EMPTY,
    ACK_EXITED,
    ACK_STOP_REPORT,
    REPORT_NAME_MAX,
    connect,
    launch,
    pidfd_of_peer,
    remove,
    remove_report,
)
from .descriptor import Descriptor
from .errors import KeeperLost
from .handle import Process
from .keeper import FROZEN_LIMIT, POLLIN, SIGKILL, STOP, Keeper, is_child, spawn_error, stop_body
from .kept import KeptTree
from .options import GRACE, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

    from .options import StrPath
    from .status import Seconds, StopReport

# Tags of the wire (csrc/common/wire.h).
KEEPER_HELLO, SPAWNED, FAILED, LAUNCHED = 64, 65, 66, 75
LAUNCH, RECEIVE = 1, 2  # stages

ANSWER_LIMIT = 3.0  # seconds until a keeper that was connected to has answered; others may be heard before us
START_LIMIT = 0.5  # seconds that a socket may have its name and nobody listens, before its keeper counts as lost
START_PAUSE = 0.01  # between two looks at it
REPORT = ".report"  # after the address: what the keeper leaves when it ends with nobody to tell
TAKEN = "the address is taken: attach, and remove it only when nothing of it can be left"


class _HeldKeeper(Keeper):
    """A keeper that waits for ACK after "empty", and whose pidfd comes with its words.

    Or its report: what it would have said, read from the file that it left, which is then in the place of the socket.
    """

    __slots__ = ("connected", "end", "failure", "introduced", "is_report", "listener")

    def __init__(
        self, end: socket | FileIO, connected: bool = False, is_report: bool = False, listener: int = 0
    ) -> None:
        # Owned by the object from its beginning: a bare number that a signal handler's exception makes us lose would
        # stay our connection, and nobody could have the tree, we ourselves included, until we die.
        self.end = end
        self.connected = connected  # by its address; False: launched by us
        self.listener = listener  # whom the kernel has named to us
        self.introduced = connected  # nothing is to come any more of who it is
        self.is_report = is_report
        self.failure: tuple[int, int] | None = None  # stage and errno of a start that came to nothing
        super().__init__(end.fileno(), -1, False)
        self.reused = True  # it is not through when its tree is empty
        self.retired = is_report  # it will say no more than is in there
        self.starting = not (connected or is_report)

    def _apply(self, record: tuple[Any, ...], fds: list[int]) -> None:
        tag = record[0]
        if tag == LAUNCHED:
            self.introduced = True
            if fds:
                self._pidfd = fds[-1]  # by plain assignments (see Keeper)
                del fds[-1]
                self.is_child = is_child(self._pidfd)
            else:
                self.failure = RECEIVE, errno.EMFILE  # no room in our table
        elif tag == KEEPER_HELLO and self.connected:
            self._pidfd = pidfd_of_peer(self._sock, record[2], self.listener)
        elif tag == FAILED:
            self.failure = record[1], record[2]
        super()._apply(record, fds)

    def hear(self, tree: _HeldTree, timeout: Seconds | None) -> bool:
        """Until it has said what it holds, or that it holds nothing, or is gone; False: it is silent."""
        # Its pidfd may come last, behind "empty", and is waited for in any case: where it is our child we reap it.
        return self.wait_until(lambda: self.closed or (self.introduced and (tree.pid or self.failure)), timeout)

    def __del__(self) -> None:
        try:
            is_open = self.end.fileno() >= 0
        except (AttributeError, ValueError):  # not begun; a closed file
            is_open = False
        if not is_open:  # in a cycle it may be collected before us, and its number be another's by now
            self._sock = -1
        super().__del__()

    def _hang_up(self) -> None:
        if self.is_report:
            fcntl.flock(self.end, fcntl.LOCK_UN)  # a program forked off by us may hold a copy, and with it the lock
        else:
            super()._hang_up()

    def _close_descriptors(self) -> None:
        self._sock = -1
        self.end.close()
        super()._close_descriptors()

    def acknowledge(self) -> None:
        """The owner knows.  With an empty tree that is the keeper's end, and it leaves no report."""
        self.request(ACK, (ACK_EXITED | ACK_EMPTY | ACK_STOP_REPORT).to_bytes(4, "little") + bytes(4))


class _HeldTree(KeptTree):
    """A kept tree that is found by its address."""

    __slots__ = ("address", "held")

    def __init__(self, keeper: _HeldKeeper, plan: Plan, address: str) -> None:
        super().__init__(keeper, plan)
        self.held = keeper
        self.address = address
        # No owner before us has used the ids that follow: milliseconds since boot, and never 0.
        keeper._stop_id = monotonic_ns() // 1_000_000 % (1 << 31) + 1
        keeper.tree = self

    def apply(self, record: tuple[Any, ...], fds: list[int]) -> None:
        if record[0] != SPAWNED:
            super().apply(record, fds)
            return
        _, self.pid, _, self.started_ns, started_at_ns = record
        self.started_at = started_at_ns / 1e9
        if fds:
            self.descriptor = Descriptor.taken_from(fds)
        elif self.held.is_report:
            self.descriptor = Descriptor(os.eventfd(1, os.EFD_CLOEXEC))  # readable, as of all that has ended
        else:
            self.held.failure = RECEIVE, errno.EMFILE

    def finish_stop(
        self, stop_id: int, signo: int, scope: str, grace: Seconds, waited: bool = False
    ) -> StopReport:
        report = super().finish_stop(stop_id, signo, scope, grace, waited)
        if report.empty:  # the word comes with the report or behind it, and `acknowledge` needs it
            self._wait_until(lambda: self.held.retired, FROZEN_LIMIT)
        return report

    def _look_at_loss(self) -> KeeperLost:
        if self.held.connected and self.descriptor and not self.descriptor.closed:
            # Whether it was started with "keep" is not known to us: if not, it is about to follow its keeper.
            _native.poll(self.descriptor.fileno(), POLLIN, int(FROZEN_LIMIT * 1e9))
        return super()._look_at_loss()

    def acknowledge(self) -> None:
        over = self.empty and self.status is not None
        lost = self._lost is not None and not self._lost.survivors
        if (over or lost) and not self.foreign:
            self.free()

    def free(self) -> None:
        """Give the address back.  Cut off half-way, the report that is there (or will be) tells the next owner."""
        remove(self.address)
        if self.held.is_report:
            remove_report(self.address + REPORT)
        else:
            self.held.acknowledge()

    def drop(self) -> None:
        if self.held.starting:  # it comes to nothing: neither the process shall be left, nor socket and report
            self.held.starting = False
            self.held.request(STOP, stop_body(self.held.next_stop_id(), SIGKILL, "tree", 0))
            self.held.wait_until(lambda: self.held.retired or self.held.failure, FROZEN_LIMIT)
            self.free()
        super().drop()


# ---- starting


def check_address(address: StrPath) -> str:
    """The address as an absolute path.  ValueError; OSError where nothing can be, or is already."""
    path = os.path.abspath(os.fsdecode(address))
    directory, name = os.path.split(path)
    most = REPORT_NAME_MAX - len(REPORT)
    if not 1 <= len(os.fsencode(name)) <= most or name.startswith("."):
        raise ValueError(f"the name of an address must have 1 to {most} bytes and begin with no dot: {name!r}")
    found = os.stat(directory + "/")
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        # Who may write there could put a socket of his own in its place.
        text = "the directory of an address must be ours and writable by nobody else"
        raise PermissionError(errno.EPERM, text, directory)
    for each in (path, path + REPORT):
        if os.path.lexists(each):
            raise FileExistsError(errno.EEXIST, TAKEN, each)
    return path


def launch_held(plan: Plan) -> _HeldTree:
    """Start a held keeper and its one process, and wait until it runs.  SpawnError, KeeperLost, OSError, ValueError."""
    assert plan.address is not None
    address = check_address(plan.address)
    try:
        sock, _ = launch(plan, address, address + REPORT, stop_rest=False, log=None)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # somebody was faster
            raise FileExistsError(errno.EEXIST, TAKEN, address) from None
        raise
    tree = _HeldTree(_HeldKeeper(sock), plan, address)
    try:
        tree.held.hear(tree, None)
        if plan.on_owner_loss == "keep" and not (tree.held.failure or tree.pid):
            # Killed, and without a word: its process may run by now, and has nothing that would take it along.
            tree.started()
            raise KeeperLost(0, (), None, address)
        if tree.held.failure or not tree.pid:
            raise _spawn_error(tree.held.failure or (LAUNCH, errno.EIO), plan)  # EIO: it ended without a word
        return tree
    except BaseException:
        tree.drop()
        raise


def _spawn_error(failure: tuple[int, int], plan: Plan | None) -> OSError:
    stage, number = failure
    return spawn_error(OSError(number, os.strerror(number), None, None, stage), plan)


# ---- coming back


def take_over(address: StrPath) -> Process:
    """See `attach`."""
    path = os.path.abspath(os.fsdecode(address))
    deadline = monotonic() + START_LIMIT
    while (tree := _from_keeper(path) or _from_report(path)) is None:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            text = "nothing was started there, or its end was taken"
            raise FileNotFoundError(errno.ENOENT, text, path) from None
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.ENOTSOCK, "not a socket", path)
        # Somebody may be about to start there: his socket has its name a moment before anybody listens on it.
        if monotonic() >= deadline:
            raise KeeperLost(0, (), None, path)
        sleep(START_PAUSE)
    try:
        if tree.held.failure is None:
            tree.advance()
            return Process(tree, _plan(path))
        if tree.pid:
            raise OSError(errno.EMFILE, "no room for the descriptor of its process", path)
        tree.free()
        raise _spawn_error(tree.held.failure, None)
    except BaseException:
        tree.drop()
        raise


def _plan(address: str) -> Plan:
    """What an owner has to know who has not started it.  What he does not know is left to the keeper."""
    plan = Plan()
    plan.args, plan.address, plan.leads_group, plan.on_owner_loss = address, address, False, "keep"
    plan.stop_signal, plan.stop_scope, plan.grace = 15, "group", GRACE
    return plan


def _from_keeper(address: str) -> _HeldTree | None:
    """From the keeper that listens there; None: none does."""
    for _ in range(2):
        try:
            sock, pid = connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except BlockingIOError:
            text = "its keeper does not answer: others wait for it already"
            raise BlockingIOError(errno.EAGAIN, text, address) from None
        tree = _HeldTree(_HeldKeeper(sock, connected=True, listener=pid), _plan(address), address)
        try:
            if not tree.held.hear(tree, ANSWER_LIMIT):
                raise BlockingIOError(errno.EAGAIN, _why_silent(pid), address)
            if tree.pid or tree.held.failure:
                return tree
        except BaseException:
            tree.drop()
            raise
        # It hung up without a word: it has ended, which the next look tells; or it has another owner.
        tree.drop()
    raise BlockingIOError(errno.EALREADY, "another owner has it", address)


def _why_silent(pid: int) -> str:
    """For people: the number may be another's by now."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            stopped = file.read().rpartition(")")[2].split()[0] in "tT"
    except OSError:
        stopped = False
    return f"its keeper (pid {pid}) is stopped: kill -CONT {pid}" if stopped else f"its keeper (pid {pid}) is silent"


def _from_report(address: str) -> _HeldTree | None:
    """From the report that its keeper left; None: there is none.  It is locked while somebody has it."""
    path = address + REPORT
    try:
        file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
    except FileNotFoundError:
        return None
    tree = _HeldTree(_HeldKeeper(file, is_report=True), _plan(address), address)
    try:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it was another user's ({found.st_uid})", path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EALREADY, "another owner has it", address) from None
        if os.fstat(file.fileno()).st_nlink:
            tree.held.deliver([(_native.wire_decode(file.readall()), [])])
            if not (tree.empty or tree.held.failure):
                raise ValueError(f"not a report of a keeper: {path!r}")
            return tree
    except BaseException:
        tree.drop()
        raise
    tree.drop()  # its last owner has just taken it
    return None
