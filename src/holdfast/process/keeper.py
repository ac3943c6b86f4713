"""The owner's side of one keeper: its socket, and who may read it.

In: records (docs/wire.md), handed on to the keeper's `KeptTree`.  Any number of threads may wait; one
of them reads at a time and the others are woken when anything has changed.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import weakref
from threading import Condition, RLock
from time import monotonic

from . import _native
from .descriptor import Descriptor
from .errors import STAGES, SpawnError
from .options import LOSS, SCOPE, milliseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from .kept import KeptTree
    from .options import Plan
    from .status import Seconds

    Inbox: TypeAlias = list[tuple[list[Any] | None, list[int]]]  # packets: records (None: the end), descriptors

# Tags of the wire (csrc/common/wire.h).
STOP, ON_OWNER_LOSS, EMPTY = 5, 7, 71
REUSED, TEMPLATE = 1, 2

FROZEN_LIMIT: Seconds = 1.0  # how long a keeper may be silent about what it must have seen
POLLIN, POLLOUT = 1, 4
SIGCONT: int = _signal.SIGCONT  # its number is not the same everywhere
SIGKILL = 9

KEEPER = os.path.join(os.path.dirname(_native.__file__), "holdfast-keeper")
_KEEPER = os.fsencode(KEEPER)

_open: weakref.WeakSet[Keeper] = weakref.WeakSet()
# Pidfds of retired keepers that came back to us because we are a subreaper or PID 1.
_retired: list[int] = []


def _reap_retired(patience: Seconds) -> None:
    """Reap those that have ended; the last one is given a moment.  No status depends on them."""
    fds = _retired[:]
    for fd in fds:
        wait = patience if fd == fds[-1] else 0.0
        if _native.poll(fd, POLLIN, int(wait * 1e9)):
            try:
                _retired.remove(fd)
            except ValueError:
                continue  # another thread was faster
            try:
                _native.wait_status(fd)
            except ChildProcessError:
                pass  # a wait of the program was faster
            os.close(fd)


def reap_retired() -> None:
    """Reap those that have ended, without waiting."""
    if _retired:
        _reap_retired(0.0)


def retire(pidfd: int) -> None:
    """Close the pidfd of a keeper; where we are a subreaper or PID 1, only when it has ended and was reaped."""
    if is_child(pidfd):
        _retired.append(pidfd)
    else:
        os.close(pidfd)


def is_child(pidfd: int) -> bool:
    """It came back to us, for we are a subreaper or PID 1, and is to be reaped; if it has ended, that is done now."""
    try:
        return _native.wait_status(pidfd) is None
    except ChildProcessError:
        return False  # as a rule


def _abandon_all() -> None:
    """In a forked child: its copies of our sockets must not keep trees alive."""
    for keeper in list(_open):
        keeper.abandon()
    while _retired:
        os.close(_retired.pop())


os.register_at_fork(after_in_child=_abandon_all)


def spawn_error(error: OSError, plan: Plan | None) -> OSError:
    """The OSError of `_native` (errno, text, None, None, stage) as a SpawnError that names the file."""
    if len(error.args) != 5:
        return error
    number, text, _, _, stage = error.args
    name: object = None
    word = STAGES.get(stage, str(stage))
    if word == "exec" and plan:
        name = plan.executable
    elif word == "chdir" and plan:
        name = plan.cwd
    elif word == "launch" and not os.access(KEEPER, os.X_OK):
        name = KEEPER
        if os.path.exists(KEEPER):
            text += "; the keeper has lost its execute permission, mend it with chmod +x"
    return SpawnError(number, text, word, name)


def launch(plan: Plan) -> tuple[Keeper, Inbox, int, Descriptor, int, int]:
    """A new keeper with its one process: itself, its first reports, and what `KeptTree` needs.  SpawnError."""
    reap_retired()  # not afterwards: an exception in there would keep this frame, and with it the keeper, alive
    try:
        return _native.launch(_KEEPER, 0, plan.body, plan.fds, Keeper, Descriptor)
    except OSError as error:
        raise spawn_error(error, plan) from None


class Keeper:
    """One keeper process and our end of its socket; holds at most one tree at a time.

    The two descriptors are counted while in use (see Descriptor, which this is for two at once).

    A signal handler may raise anywhere in here (KeyboardInterrupt does).  So: what is received goes into
    `_inbox` before anything else can happen; an ownership changes hands by plain assignments alone,
    between which no handler runs; and a keeper that is dropped half-way hangs up.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_closed",
        "_inbox",
        "_pidfd",
        "_reading",
        "_sock",
        "_stop_id",
        "_users",
        "_waiting",
        "hung_up",
        "is_child",
        "lock",
        "retired",
        "reused",
        "starting",
        "tree",
    )  # fmt: skip

    def __init__(self, sock: int, pidfd: int, is_child: bool) -> None:
        self.tree: KeptTree | None = None
        self.retired = False  # it said "empty" (and ended, unless reused), or is gone
        self.reused = False
        self.hung_up = False  # we left it, with its tree
        self.lock = RLock()
        self._inbox: Inbox = []  # received and not yet taken in
        self.is_child = is_child
        self._users = 0
        self._reading = False
        self._waiting = 0
        self._changed: Condition | None = None
        self._stop_id = 0
        self.starting = True  # hung up on now, it shall leave nothing, whatever on_owner_loss says
        self._sock, self._pidfd, self._closed = -1, -1, True
        _open.add(self)
        self._sock, self._pidfd, self._closed = sock, pidfd, False

    def __del__(self) -> None:
        if getattr(self, "_sock", -1) >= 0:
            try:
                self._hang_up()
            finally:
                self._closed = True
                self._close_descriptors()

    def _hang_up(self) -> None:
        if self.starting:
            self.request(ON_OWNER_LOSS, LOSS["kill"].to_bytes(4, "little") + bytes(4))
        _native.hang_up(self._sock, self._pidfd if self.starting else -1)  # an undone start has left nothing

    # ---- starting

    @classmethod
    def launch_template(cls) -> Keeper:
        """A keeper that never gets a process and launches others.  SpawnError."""
        try:
            keeper, *_ = _native.launch(_KEEPER, REUSED | TEMPLATE, b"", (), cls, Descriptor)
        except OSError as error:
            raise spawn_error(error, None) from None
        keeper.reused, keeper.starting = True, False
        return keeper

    def launch_another(self) -> Keeper:
        """From a template: a new keeper that has the template's state and not ours.  SpawnError."""
        try:
            keeper = _native.launch_from(self._sock, Keeper)
        except OSError as error:
            raise spawn_error(error, None) from None
        keeper.reused, keeper.starting = True, False
        keeper.is_child = self.is_child  # its launcher, whose orphan it will be, may still be there
        return keeper

    def start(self, tree: KeptTree, plan: Plan) -> KeptTree:
        """Give a reused keeper that is empty its next process.  SpawnError.

        For one thread alone; until it returns nobody else knows the tree.
        """
        with self.lock:
            if self._closed:
                raise RuntimeError("the runner is closed")
            self._users += 1
        self.retired, self.starting = False, True
        try:
            try:
                tree.pid, tree.descriptor, tree.started_ns, started_at_ns = _native.start(
                    self._sock, self._pidfd, plan.body, plan.fds, Descriptor
                )
            finally:
                self.__exit__()
        except OSError as error:
            stage = error.args[4] if len(error.args) == 5 else 0  # 0: not the keeper's answer, a handler's
            if stage == 2:
                self._undo_start(tree)
            if stage <= 2:
                self.close()
            if stage == 0:
                raise
            raise spawn_error(error, plan) from None
        except BaseException:
            self.close()  # interrupted: the loss of its owner ends whatever was started
            raise
        if self._closed:
            tree.descriptor.close()
            raise RuntimeError("the runner was closed by another thread")
        tree.started_at = started_at_ns / 1e9
        self.tree = tree
        return tree

    def _undo_start(self, tree: KeptTree) -> None:
        """The program may run already, and its descriptor found no room in our table: it was not started."""
        self.tree = tree
        self.request(STOP, stop_body(self.next_stop_id(), SIGKILL, "tree", 0))
        self.wait_until(lambda: self.retired, FROZEN_LIMIT)
        self.tree = None

    # ---- talking

    def request(self, tag: int, body: bytes) -> bool:
        """Send one request; False when the keeper has ended (its last reports may still be unread)."""
        with self.lock:
            if self._closed:
                return False
            try:
                try:
                    _native.send(self._sock, tag, body)  # does not block
                except BlockingIOError:  # its socket is full: it is frozen
                    self.thaw()
                    _native.poll(self._sock, POLLOUT, int(FROZEN_LIMIT * 1e9))
                    _native.send(self._sock, tag, body)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                return False
        return True

    def next_stop_id(self) -> int:
        with self.lock:
            self._stop_id += 1
            return self._stop_id

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def pid(self) -> int:
        """Its number, to be compared with parents in /proc; -1 when it is gone."""
        with self.lock:
            if self._closed:
                return -1
            with open(f"/proc/self/fdinfo/{self._pidfd}") as file:
                return int(file.read().rpartition("\nPid:")[2].split()[0])

    def __enter__(self) -> int:
        """Borrow the socket: readable when the keeper has something to say; -1 when closed."""
        with self.lock:
            self._users += 1
            return -1 if self._closed else self._sock

    def __exit__(self, *exc: object) -> None:
        with self.lock:
            self._users -= 1
            if self._closed and self._users == 0:
                self._close_descriptors()

    def wait_until(self, done: Callable[[], object], timeout: Seconds | None, ended_fd: int = -1) -> bool:
        """Read reports until done() holds (True) or the time is over (False).

        False also when the process whose pidfd is `ended_fd` has ended and the keeper kept silent about it.
        done is called with the lock held and must be quick.
        """
        deadline = None if timeout is None else monotonic() + timeout
        with self.lock:
            self._take_in()
            while not done():
                left = None if deadline is None else deadline - monotonic()
                if self._reading:
                    if (left is not None and left <= 0) or not self._wait_for_reader(left):
                        return bool(done())
                elif self._closed or not self._read(left, ended_fd):
                    return bool(done())
                self._take_in()
        return True

    def deliver(self, packets: Inbox) -> None:
        """Reports that came together with the answer to the launch."""
        with self.lock:
            self._inbox += packets
            self._take_in()

    def _take_in(self) -> None:
        """Each record goes after it was applied: cut off half-way, that one alone is applied once more."""
        while self._inbox:
            records, fds = self._inbox[0]
            if records is None:
                self.retired = True
                self._let_go()
            else:
                while records:
                    self._apply(records[0], fds)
                    del records[0]
            while fds:
                os.close(fds.pop())
            del self._inbox[0]

    def _wait_for_reader(self, left: Seconds | None) -> bool:
        if self._changed is None:
            self._changed = Condition(self.lock)
        self._waiting += 1
        try:
            return self._changed.wait(left)
        finally:
            self._waiting -= 1

    def _read(self, left: Seconds | None, ended_fd: int) -> bool:
        """One packet, with the lock given up meanwhile: others may look at what is known, or send."""
        ns = -1 if left is None else max(0, int(left * 1e9))
        self._reading = True
        self._users += 1
        try:
            self.lock.release()
            return _native.receive(self._sock, self._pidfd, ended_fd, ns, self._inbox)
        finally:
            # A handler may raise in acquire, or right after it: go on with the lock held, once, all the same.  In
            # place, for it may also raise on the way into a function, before anything in that can catch it.
            interrupted: BaseException | None = None
            while True:
                try:
                    if not self.lock._is_owned():  # type: ignore[attr-defined]
                        self.lock.acquire()
                    break
                except BaseException as error:
                    interrupted = error
            try:
                if interrupted is not None:
                    raise interrupted
            finally:
                self._reading = False
                self._users -= 1
                try:
                    if self._closed and self._users == 0:
                        self._close_descriptors()
                finally:
                    if self._waiting and self._changed:
                        self._changed.notify_all()

    def _apply(self, record: tuple[Any, ...], fds: list[int]) -> None:
        tree, tag = self.tree, record[0]
        if tag == EMPTY and tree:
            tree.told.note(record)  # before anybody can see that nothing more will come
            tree.empty = True
            tree.usage_fields = record[3]
            self.retired = True
            if not self.reused:
                self._let_go()
        elif tree:
            tree.apply(record, fds)

    # ---- ending

    def _let_go(self) -> None:
        """Nothing more will be said: give the descriptors back, and reap where the keeper is our child."""
        if self._closed:
            return
        self._closed = True
        if self.tree:
            self.tree.told.ring()
        if self.is_child:
            _retired.append(os.dup(self._pidfd))
        if self._users == 0:
            self._close_descriptors()
        if self.is_child:  # only now: it may be our end of the socket that keeps it alive
            _reap_retired(FROZEN_LIMIT if self.tree is None or self.tree.empty else 0.0)

    def _close_descriptors(self) -> None:
        sock, pidfd = self._sock, self._pidfd
        self._sock = self._pidfd = -1  # first: they must not be closed twice
        if sock >= 0:
            os.close(sock)
        if pidfd >= 0:
            os.close(pidfd)

    def thaw(self) -> None:
        """SIGCONT: a keeper stopped by SIGSTOP goes on."""
        self._signal(SIGCONT)

    def kill(self) -> None:
        self._signal(SIGKILL)

    def _signal(self, signo: int) -> None:
        with self.lock:
            if not self._closed:
                try_signal(self._pidfd, signo, 0)

    def close(self) -> None:
        """End the connection.  A tree that is still there is now without owner."""
        if not self.retired:
            self.wait_until(lambda: self.retired, 0.0)  # what it has said already counts
        with self.lock:
            if not self.retired:
                self.hung_up = self.retired = True
            if not self._closed:
                self._hang_up()
            self._let_go()
            if self._changed:
                self._changed.notify_all()

    def abandon(self) -> None:
        """In a forked child only: no lock, whose holder did not come along."""
        self.lock = RLock()
        self._changed = None
        self._reading = False
        self.retired = True
        if self._sock >= 0:
            self._closed = True
            self._close_descriptors()
        if self.tree:
            self.tree.abandon()


def stop_body(stop_id: int, signo: int, scope: str, grace: Seconds) -> bytes:
    body = b"".join(n.to_bytes(4, "little") for n in (stop_id, signo, SCOPE[scope], 0))
    return body + milliseconds("grace", grace).to_bytes(8, "little")


def try_signal(pidfd: int, signo: int, flags: int) -> None:
    try:
        _native.pidfd_signal(pidfd, signo, flags)
    except OSError:
        pass  # gone, not ours to signal, or an older kernel: the look afterwards tells
