"""The owner's side of one keeper: its socket, who may read it, and what its reports mean.

In: records (docs/wire.md).  Out: a `KeptTree` whose fields say what is known.  Any number of threads
may wait; one of them reads at a time and the others are woken when anything has changed.
"""

from __future__ import annotations

import os
import weakref
from threading import Condition, RLock
from time import monotonic

from . import _native
from .descriptor import Descriptor
from .errors import STAGES, KeeperLost, SpawnError
from .options import LOSS, SCOPE, milliseconds
from .status import SCOPES, ExitStatus, Member, StopReport, Usage, from_siginfo, from_wait_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .options import OnOwnerLoss, Plan
    from .status import Seconds

# Tags of the wire (csrc/common/wire.h).
SIGNAL, STOP, ON_OWNER_LOSS = 4, 5, 7
EXITED, ADOPTED, EMPTY, STOP_REPORT, LAUNCHED, FAILED = 67, 68, 71, 72, 75, 66
REUSED, TEMPLATE = 1, 2

KILL_LIMIT: Seconds = 5.0  # the keeper gives up this long after the first KILL
FROZEN_LIMIT: Seconds = 1.0  # how long a keeper may be silent about what it must have seen
POLLIN, POLLOUT = 1, 4
SIGCONT, SIGKILL = 18, 9

KEEPER = os.path.join(os.path.dirname(_native.__file__), "holdfast-keeper")
_KEEPER = os.fsencode(KEEPER)

_open: weakref.WeakSet[Keeper] = weakref.WeakSet()
# Pidfds of retired keepers that came back to us because we are a subreaper or PID 1.
_retired: list[int] = []


def _reap_retired(patience: Seconds) -> None:
    """Reap those that have ended; the last one is given a moment.  No status depends on them."""
    for fd in _retired[:]:
        wait = patience if fd == _retired[-1] else 0.0
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
        "_unclaimed",
        "_users",
        "_waiting",
        "is_child",
        "launched",
        "lock",
        "retired",
        "reused",
        "tree",
    )  # fmt: skip

    def __init__(self, sock: int, pidfd: int, is_child: bool) -> None:
        self.tree: KeptTree | None = None
        self.retired = False  # it said "empty" (and ended, unless reused), or is gone
        self.reused = False
        self.launched: int | None = None  # a template's answer: the new keeper's pidfd, or -errno
        self.lock = RLock()
        self._unclaimed = 0  # a template's answers that nobody waits for any more
        self._inbox: list[tuple[list[Any] | None, list[int]]] = []  # received and not yet taken in
        self._sock = self._pidfd = -1
        self.is_child = is_child
        self._users = 0
        self._closed = True
        self._reading = False
        self._waiting = 0
        self._changed: Condition | None = None
        self._stop_id = 0
        _open.add(self)
        if sock >= 0:
            self._sock, self._pidfd, self._closed = sock, pidfd, False

    def __del__(self) -> None:
        if getattr(self, "_sock", -1) >= 0:
            _native.hang_up(self._sock)
            self._closed = True
            self._close_descriptors()

    # ---- starting

    @classmethod
    def launch(cls, flags: int, plan: Plan | None) -> Keeper:
        """Start a keeper, with its first request if there is a plan."""
        try:
            if plan:
                keeper = _native.launch(_KEEPER, flags, plan.body, plan.fds, cls)
            else:
                keeper = _native.launch(_KEEPER, flags, b"", (), cls)
        except OSError as error:
            raise spawn_error(error, plan) from None
        keeper.reused = bool(flags & REUSED)
        if _retired:
            _reap_retired(0.0)
        return keeper

    def launch_another(self) -> Keeper:
        """From a template: a new keeper that has the template's state and not ours.  One thread at a time."""
        stale, self.launched = self.launched, None
        if stale is not None and stale >= 0:  # the answer to one who was interrupted
            os.close(stale)
        keeper = Keeper(-1, -1, self.is_child)
        keeper.reused = True
        try:
            end = _native.launch_from(self._sock, Descriptor)
        except OSError as error:
            raise spawn_error(error, None) from None
        except BaseException:
            self._unclaimed += 1  # sent all the same
            raise
        try:
            self.wait_until(lambda: self.launched is not None, 10 * FROZEN_LIMIT)
        finally:
            if self.launched is None:
                self._unclaimed += 1  # answers come in order: the next is not for the next who asks
        if self.launched is None:
            raise SpawnError(11, "the runner's template does not answer", "launch")
        if self.launched < 0:
            raise SpawnError(-self.launched, os.strerror(-self.launched), "launch")
        keeper._sock, keeper._pidfd, keeper._closed, end._closed = end._fd, self.launched, False, True
        self.launched = None
        return keeper

    def start(self, tree: KeptTree, plan: Plan, sent: bool) -> KeptTree:
        """Start the plan's program (`sent`: the request went along with the launch).  SpawnError.

        For one thread alone; until it returns nobody else knows the tree.
        """
        with self.lock:
            if self._closed:
                raise RuntimeError("the runner is closed")
            self._users += 1
        self.retired = False
        try:
            try:
                tree.pid, tree.descriptor, tree.started_ns, started_at_ns = _native.start(
                    self._sock, self._pidfd, b"" if sent else plan.body, plan.fds, Descriptor
                )
            finally:
                self.__exit__()
        except OSError as error:
            if error.args[-1] == 2:
                self._undo_start(tree)
            if not self.reused or error.args[-1] <= 2:
                self.close()
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
        self.request(STOP, _stop_body(self.next_stop_id(), SIGKILL, "tree", 0))
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
            try:
                self.lock.acquire()
            finally:
                self._reading = False
                self._users -= 1
            if self._closed and self._users == 0:
                self._close_descriptors()
            if self._waiting and self._changed:
                self._changed.notify_all()

    def _apply(self, record: tuple[Any, ...], fds: list[int]) -> None:
        tree, tag = self.tree, record[0]
        if tag == EMPTY and tree:
            tree.empty = True
            tree.usage_fields = record[3]
            self.retired = True
            if not self.reused:
                self._let_go()
        elif tag in (LAUNCHED, FAILED):
            # Without a call: the count must not be taken twice.
            if self._unclaimed:
                self._unclaimed -= 1
            elif tag == LAUNCHED and fds:
                self.launched = fds[0]
                del fds[0]
            elif self.launched is None:
                self.launched = -record[2] if tag == FAILED else -24  # EMFILE: no room in our table
        elif tree:
            tree.apply(record, fds)

    # ---- ending

    def _let_go(self) -> None:
        """Nothing more will be said: give the descriptors back, and reap where the keeper is our child."""
        if self._closed:
            return
        self._closed = True
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
            os.close(pidfd)

    def thaw(self) -> None:
        """SIGCONT: a keeper stopped by SIGSTOP goes on."""
        self._signal(SIGCONT)

    def kill(self) -> None:
        self._signal(SIGKILL)

    def _signal(self, signo: int) -> None:
        with self.lock:
            if not self._closed:
                _try_signal(self._pidfd, signo, 0)

    def close(self) -> None:
        """End the connection.  A tree that is still there is now without owner."""
        with self.lock:
            self.retired = True
            if not self._closed:
                _native.hang_up(self._sock)
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


class KeptTree:
    """One process and its descendants, as far as the keeper has told.  Changed under the keeper's lock."""

    __slots__ = ("_adopted", "_leads_group", "_lost", "_on_owner_loss", "_report_id", "descriptor", "empty", "foreign",
                 "keeper", "pid", "report", "started_at", "started_ns", "status", "usage_fields")  # fmt: skip

    def __init__(self, keeper: Keeper, plan: Plan) -> None:
        self.keeper = keeper
        self.pid = 0
        self.descriptor: Descriptor | None = None
        self.status: ExitStatus | None = None
        self.empty = False
        self.usage_fields: tuple[int, ...] | None = None
        self.report: StopReport | None = None
        self.foreign = False  # we are a forked copy of the owner
        self.started_ns = 0
        self.started_at = 0.0
        self._report_id = 0
        self._on_owner_loss = plan.on_owner_loss
        self._leads_group = plan.leads_group
        self._adopted: dict[int, int] = {}
        self._lost: KeeperLost | None = None

    @property
    def usage(self) -> Usage | None:
        """The sum over every member that the keeper reaped, once the tree is empty."""
        return None if self.usage_fields is None else Usage(self.usage_fields)

    def apply(self, record: tuple[Any, ...], fds: list[int]) -> None:
        tag = record[0]
        if tag == EXITED:
            _, pid, is_main, code, status, ended_ns, usage = record
            if is_main:
                elapsed = (ended_ns - self.started_ns) / 1e9
                self.status = from_siginfo(code, status, usage, self.started_at, elapsed)
            elif pid in self._adopted:
                os.close(self._adopted.pop(pid))
        elif tag == ADOPTED:
            if fds:
                if record[1] in self._adopted:  # the report of its end was lost, and the number came back
                    os.close(self._adopted.pop(record[1]))
                self._adopted[record[1]] = fds[0]
                del fds[0]
        elif tag == STOP_REPORT:
            (_, self._report_id, signo, scope, grace_ms, duration_ns, signalled, _, killed, survivors, unlisted,
             members) = record  # fmt: skip
            self.report = StopReport(
                signo, SCOPES[scope], grace_ms / 1000, duration_ns / 1e9, signalled, killed, survivors, unlisted,
                tuple(Member(*m) for m in members),
            )  # fmt: skip

    # ---- waiting

    @property
    def voice(self) -> Keeper:
        """To be polled: readable when `advance` may learn something."""
        return self.keeper

    def advance(self) -> None:
        """Take in what the keeper has said, without waiting."""
        self.keeper.wait_until(lambda: self.keeper.retired, 0.0)

    def _settled(self) -> bool:
        return self.status is not None or self.keeper.retired or self.keeper.tree is not self

    def wait_exit(self, timeout: Seconds | None) -> bool:
        """True when the exit status is known; KeeperLost when it cannot come any more."""
        if self.status is None:
            assert self.descriptor is not None
            # A healthy keeper reports an end within microseconds.  The process's own descriptor is
            # watched as well, for a process that ends under a frozen keeper.
            try:
                fd = self.descriptor.__enter__()
            except ValueError:
                pass  # closed by another thread, which knew the status; or we are a forked copy
            else:
                try:
                    if not self.keeper.wait_until(self._settled, timeout, fd) and _native.poll(fd, POLLIN, 0):
                        self._insist(self._settled)
                finally:
                    self.descriptor.__exit__()
            if self.status is None:
                self.check()
        return self.status is not None

    def _insist(self, done: Callable[[], object]) -> None:
        """The keeper owed us a word and time to say it: thaw it, give it time again, give it up."""
        self.keeper.thaw()
        if self.keeper.wait_until(done, FROZEN_LIMIT):
            return
        # It must not wake up later and act on an old state.
        self.keeper.kill()
        self.keeper.wait_until(lambda: self.keeper.retired, FROZEN_LIMIT)
        self.keeper.close()

    def wait_empty(self, timeout: Seconds | None) -> bool:
        """True when nothing of the tree is left."""
        deadline = None if timeout is None else monotonic() + timeout
        if not self.wait_exit(timeout):  # which notices an end under a frozen keeper, too
            return False
        left = None if deadline is None else max(0.0, deadline - monotonic())
        self.keeper.wait_until(lambda: self.empty or self.keeper.retired, left)
        self.check()
        return self.empty

    def check(self) -> None:
        """Raise KeeperLost when the keeper ended without the word "empty"."""
        if self.foreign:
            raise ValueError("this process belongs to the program that we were forked from")
        if self.keeper.retired and not self.empty and self.keeper.tree is self:
            with self.keeper.lock:
                if self._lost is None:
                    self._lost = self._look_at_loss()
        if self._lost is not None:
            raise self._lost

    # ---- acting

    def _request(self, tag: int, body: bytes) -> None:
        """Tell the keeper, unless it has nothing of ours: by now it may hold a runner's next process."""
        if self.foreign:
            self.check()
        with self.keeper.lock:
            if self.keeper.tree is self and not self.empty:
                self.keeper.request(tag, body)

    def signal(self, signo: int, scope: str) -> None:
        if scope != "main":
            self._request(SIGNAL, signo.to_bytes(4, "little") + SCOPE[scope].to_bytes(4, "little"))
        elif self.status is None and self.descriptor is not None:
            try:
                with self.descriptor as fd:
                    _native.pidfd_signal(fd, signo)
            except ProcessLookupError:
                pass
            except ValueError:
                self.check()  # closed by another thread: nothing happens; or we are a forked copy

    def begin_stop(self, signo: int, scope: str, grace: Seconds) -> int:
        """Ask for a stop without waiting; the id that its report will carry at least."""
        stop_id = self.keeper.next_stop_id()
        self._request(STOP, _stop_body(stop_id, signo, scope, grace))
        return stop_id

    def stopped(self, stop_id: int) -> bool:
        return self._report_id >= stop_id or self.keeper.retired or self.keeper.tree is not self

    @property
    def stop_margin(self) -> Seconds:
        """After the grace, before a keeper that has not reported counts as frozen."""
        return KILL_LIMIT + FROZEN_LIMIT

    def finish_stop(self, stop_id: int, signo: int, scope: str, grace: Seconds) -> StopReport:
        """Wait for the report of begin_stop.  Bounded: grace, then the KILL limit, then a frozen keeper's."""
        if not self.keeper.wait_until(lambda: self.stopped(stop_id), grace + self.stop_margin):
            self._insist(lambda: self.stopped(stop_id))
        self.check()
        if self.report is not None and self._report_id >= stop_id:
            return self.report
        return StopReport(signo, scope, grace)  # it had been empty already

    def set_on_owner_loss(self, policy: OnOwnerLoss) -> None:
        self._on_owner_loss = policy
        self._request(ON_OWNER_LOSS, LOSS[policy].to_bytes(4, "little") + bytes(4))

    # ---- the worst case

    def _look_at_loss(self) -> KeeperLost:
        """Kill what we hold, and look at what is left."""
        held = [(pid, os.dup(fd)) for pid, fd in self._adopted.items()]
        try:
            main_fd = -1
            if self.descriptor is not None and not self.descriptor.closed:
                main_fd = self.descriptor.fileno()
                if self.status is None:
                    held.append((self.pid, os.dup(main_fd)))
            if self._on_owner_loss != "keep":
                if self._leads_group and main_fd >= 0:
                    _try_signal(main_fd, SIGKILL, 4)  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
                for _, fd in held:
                    _try_signal(fd, SIGKILL, 0)
            deadline = monotonic() + FROZEN_LIMIT
            alive = []
            for pid, fd in held:
                patience = 0 if self._on_owner_loss == "keep" else max(0, int((deadline - monotonic()) * 1e9))
                if not _native.poll(fd, POLLIN, patience):
                    alive.append(Member(pid, (1 if pid == self.pid else 0) | 16, _name(pid)))
            if self.keeper.is_child:  # then its orphans are ours, and nobody else will reap them
                for pid, fd in held:
                    self._reap_orphan(pid, fd)
            if self.status is None and main_fd >= 0 and _native.poll(main_fd, POLLIN, 0):
                # Whoever adopted it has to reap it first; some do so only every second or two.
                _native.poll(main_fd, 0, int(3 * FROZEN_LIMIT * 1e9))
                info = _native.exit_info(main_fd)
                if info is not None:
                    elapsed = monotonic() - self.started_ns / 1e9
                    self.status = from_wait_status(info, self.started_at, elapsed)
            return KeeperLost(self.pid, alive, self.status)
        finally:
            for _, fd in held:
                os.close(fd)

    def _reap_orphan(self, pid: int, fd: int) -> None:
        try:
            ended = _native.wait_status(fd)
        except ChildProcessError:
            return
        if ended and pid == self.pid:
            self.status = from_siginfo(*ended, self.started_at, monotonic() - self.started_ns / 1e9)

    # ---- the end

    def drop(self) -> None:
        """Close the connection and what we hold; a tree that is still there meets on_owner_loss."""
        if self.keeper.tree is self:
            self.keeper.close()
        self.release_descriptors()

    def release_descriptors(self) -> None:
        if self.descriptor is not None:
            self.descriptor.close()
        while self._adopted:
            os.close(self._adopted.popitem()[1])

    def abandon(self) -> None:
        self.foreign = True
        self.empty = True
        if self.descriptor is not None:
            self.descriptor.abandon()
        while self._adopted:
            os.close(self._adopted.popitem()[1])


def _stop_body(stop_id: int, signo: int, scope: str, grace: Seconds) -> bytes:
    body = b"".join(n.to_bytes(4, "little") for n in (stop_id, signo, SCOPE[scope], 0))
    return body + milliseconds("grace", grace).to_bytes(8, "little")


def _try_signal(pidfd: int, signo: int, flags: int) -> None:
    try:
        _native.pidfd_signal(pidfd, signo, flags)
    except OSError:
        pass  # gone, not ours to signal, or an older kernel: the look afterwards tells


def _name(pid: int) -> str:
    """For printing only; the process is held by a pidfd meanwhile."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
