"""What is known of one kept process and its descendants, from what the keeper has told."""

from __future__ import annotations

import os
from time import monotonic

from . import _native
from .descriptor import Descriptor
from .errors import KeeperLost
from .keeper import FROZEN_LIMIT, ON_OWNER_LOSS, POLLIN, SIGKILL, STOP, Keeper, launch, stop_body, try_signal
from .options import LOSS, SCOPE
from .status import SCOPES, ExitStatus, Member, StopReport, Usage, from_siginfo, from_wait_status
from .told import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .members import Look
    from .options import OnOwnerLoss, Plan
    from .status import Seconds

# Tags of the wire (csrc/common/wire.h).
SIGNAL, QUERY = 4, 6
EXITED, ADOPTED, STOPPED, CONTINUED, STOP_REPORT, MEMBERS, LOST, MOVED = 67, 68, 69, 70, 72, 73, 74, 77

KILL_LIMIT: Seconds = 5.0  # the keeper gives up this long after the first KILL


class KeptTree:
    """One process and its descendants, as far as the keeper has told.  Changed under the keeper's lock."""

    __slots__ = ("_adopted", "_answer", "_blind", "_leads_group", "_look", "_lost", "_on_owner_loss", "_report_id",
                 "descriptor", "empty", "foreign", "keeper", "moves", "pid", "report", "started_at", "started_ns",
                 "status", "told", "usage_fields")  # fmt: skip

    private = True

    def __init__(self, keeper: Keeper, plan: Plan) -> None:
        self.keeper = keeper
        self.pid = 0
        self.moves = 0  # how often main has become another process
        self._blind = False  # there was no room for the descriptor of the present one
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
        self._answer: tuple[int, int, list[tuple[int, int, str]]] = (0, 0, [])  # id of a query, unlisted, members
        self._look: Look = {}  # at the members when they were last asked for
        self._lost: KeeperLost | None = None
        self.told = Told()

    @classmethod
    def launch(cls, plan: Plan) -> KeptTree:
        """Start a keeper and its one process.  SpawnError; an exception from a signal handler undoes it."""
        keeper, early, pid, descriptor, started_ns, started_at_ns = launch(plan)
        try:
            tree = cls(keeper, plan)
            tree.pid, tree.descriptor, tree.started_ns = pid, descriptor, started_ns
            tree.started_at = started_at_ns / 1e9
            keeper.tree = tree
            if early:
                keeper.deliver(early)
            return tree
        except BaseException:
            keeper.close()
            raise

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
            self.told.note(record)
        elif tag == ADOPTED:
            self.told.note(record, (*record, self._previous_parent(record[1])))
            if fds:
                if record[1] in self._adopted:  # the report of its end was lost, and the number came back
                    os.close(self._adopted.pop(record[1]))
                self._adopted[record[1]] = fds[0]
                del fds[0]
        elif tag == MOVED:
            self.told.started_pid = self.told.started_pid or self.pid
            _, _, self.pid, _, _, self.moves = record
            self.told.note(record)
            if self.pid in self._adopted:
                os.close(self._adopted.pop(self.pid))
            self._leads_group = True  # if there is a group of its number, then it is the daemon's
            self._blind = not fds
            if fds and self.descriptor is not None:
                self.descriptor.become(fds[0])
        elif tag == STOP_REPORT:
            (_, self._report_id, signo, scope, grace_ms, duration_ns, signalled, _, killed, survivors, unlisted,
             members) = record  # fmt: skip
            self.report = StopReport(
                signo, SCOPES[scope], grace_ms / 1000, duration_ns / 1e9, signalled, killed, survivors, unlisted,
                tuple(Member(*m) for m in members),
            )  # fmt: skip
            self.told.ring()  # no event, but somebody may wait for it
        elif tag in (STOPPED, CONTINUED, LOST):
            self.told.note(record)
        elif tag == MEMBERS:
            self._answer = record[1:]

    # ---- waiting

    def started(self) -> None:
        """Its handle is made: from now on it is not undone."""
        self.keeper.starting = False

    @property
    def lifeline(self) -> tuple[Keeper, ...]:
        """To be polled by who waits for something else: readable when the keeper speaks or is lost."""
        self.advance()
        return () if self.keeper.closed else (self.keeper,)

    @property
    def voices(self) -> tuple[Keeper | Descriptor, ...]:
        """To be polled: when one is readable, `wait_exit` or `advance` may learn something."""
        if self.status is None and self.descriptor is not None and not (self.descriptor.closed or self._blind):
            return self.keeper, self.descriptor  # a frozen keeper does not tell of the end
        return (self.keeper,)

    def advance(self) -> None:
        """Take in what the keeper has said, without waiting."""
        self._wait_until(lambda: self.keeper.retired, 0.0)

    @property
    def lost(self) -> bool:
        """Nothing more will be said, and nobody knows that the tree is empty: `check` says why, which may take 4 s."""
        return self.keeper.retired and not self.empty and self.keeper.tree is self

    @property
    def overdue(self) -> bool:
        """The process has ended and its keeper has not said so yet.  It will in microseconds, unless it is frozen."""
        if self.status is not None or self._blind or self.descriptor is None:
            return False
        try:
            with self.descriptor as fd:
                return bool(_native.poll(fd, POLLIN, 0))
        except ValueError:
            return False  # closed by another thread

    def hear(self) -> None:
        """As `advance`, and an end under a frozen keeper is noticed (3 s).  KeeperLost."""
        if self.status is None:
            self.wait_exit(0.0)
        else:
            self.advance()

    def _wait_until(self, done: Callable[[], object], timeout: Seconds | None, ended_fd: int = -1) -> bool:
        """As the keeper's, and callbacks are called meanwhile: here, where no lock is held."""
        told = self.told
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            seen = told.end
            left = None if deadline is None else max(0.0, deadline - monotonic())
            over = self.keeper.wait_until(
                lambda: done() or (told.callbacks and told.end != seen), left, ended_fd  # noqa: B023
            )
            told.call_back()
            if done():
                return True
            if not over:
                return False

    def _settled(self) -> bool:
        return self.status is not None or self.keeper.retired or self.keeper.tree is not self

    def wait_exit(self, timeout: Seconds | None) -> bool:
        """True when the exit status is known; KeeperLost when it cannot come any more."""
        if self.status is None:
            self._wait(self._settled, timeout)
            if self.status is None:
                self.check()
        return self.status is not None

    def wait_forked(self, timeout: Seconds | None) -> bool:
        """Of a forking plan: True when main is what the one that was started has left; KeeperLost."""
        self._wait(lambda: self.moves or self._settled(), timeout)
        if not self.moves and self.status is None:
            self.check()
        return self.moves > 0

    def _wait(self, done: Callable[[], object], timeout: Seconds | None) -> None:
        """Until `done`, or until the time is over.

        A healthy keeper reports an end within microseconds, or that another process is main now.  The process's own
        descriptor is watched as well, for one that ends under a frozen keeper."""
        assert self.descriptor is not None
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            moves = self.moves
            try:
                fd = self.descriptor.__enter__()
            except ValueError:
                return  # closed by another thread, which knew the status; or we are a forked copy
            try:
                if self._wait_until(done, timeout, -1 if self._blind else fd):
                    return
                ended = not self._blind and _native.poll(fd, POLLIN, 0)
                # Only then: while another thread took in a move, `fd` was the old one's, or is the new one's already.
                if self.moves == moves:
                    if not ended:
                        return
                    self._insist(lambda: done() or self.moves != moves)  # noqa: B023 (over when this returns)
            finally:
                self.descriptor.__exit__()
            if done() or self.moves == moves:
                return
            timeout = None if deadline is None else max(0.0, deadline - monotonic())

    def _insist(self, done: Callable[[], object]) -> None:
        """The keeper owed us a word and time to say it: thaw it, give it time again, give it up."""
        self.keeper.thaw()
        if self._wait_until(done, FROZEN_LIMIT):
            return
        # It must not wake up later and act on an old state.
        self.keeper.kill()
        self.keeper.wait_until(lambda: self.keeper.retired, FROZEN_LIMIT)
        self.keeper.close()
        self.keeper.hung_up = False  # lost, not left

    def wait_empty(self, timeout: Seconds | None) -> bool:
        """True when nothing of the tree is left."""
        deadline = None if timeout is None else monotonic() + timeout
        if not self.wait_exit(timeout):  # which notices an end under a frozen keeper, too
            return False
        left = None if deadline is None else max(0.0, deadline - monotonic())
        self._wait_until(lambda: self.empty or self.keeper.retired, left)
        self.check()
        return self.empty

    def check(self) -> None:
        """Raise KeeperLost when the keeper ended without the word "empty"."""
        if self.foreign:
            raise ValueError("this process belongs to the program that we were forked from")
        if self.lost:
            if self.keeper.hung_up:
                raise RuntimeError("left to its keeper: the handle was released, or its runner is closed")
            with self.keeper.lock:
                if self._lost is None:
                    self._lost = self._look_at_loss()
        if self._lost is not None:
            raise self._lost

    @property
    def owned(self) -> bool:
        """It is still ours to stop: its runner has not been closed."""
        return not self.keeper.hung_up

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
                if self.moves:  # it may have moved again, of which we have not heard
                    self._request(SIGNAL, signo.to_bytes(4, "little") + SCOPE[scope].to_bytes(4, "little"))
            except ValueError:
                self.check()  # closed by another thread: nothing happens; or we are a forked copy

    def begin_stop(self, signo: int, scope: str, grace: Seconds) -> int:
        """Ask for a stop without waiting; the id that its report will carry at least."""
        stop_id = self.keeper.next_stop_id()
        self._request(STOP, stop_body(stop_id, signo, scope, grace))
        return stop_id

    def stopped(self, stop_id: int) -> bool:
        return self._report_id >= stop_id or self.keeper.retired or self.keeper.tree is not self

    @property
    def stop_margin(self) -> Seconds:
        """After the grace, before a keeper that has not reported counts as frozen."""
        return KILL_LIMIT + FROZEN_LIMIT

    def finish_stop(
        self, stop_id: int, signo: int, scope: str, grace: Seconds, waited: bool = False
    ) -> StopReport:
        """Wait for the report of begin_stop.  Bounded: grace, then the KILL limit, then a frozen keeper's.

        `waited`: for as long as `grace` and `stop_margin` allow the caller has done so."""
        if not self._wait_until(lambda: self.stopped(stop_id), 0.0 if waited else grace + self.stop_margin):
            self._insist(lambda: self.stopped(stop_id))
        self.check()
        if self.report is not None and self._report_id >= stop_id:
            return self.report
        return StopReport(signo, scope, grace)  # it had been empty already

    def set_on_owner_loss(self, policy: OnOwnerLoss) -> None:
        self._on_owner_loss = policy
        self._request(ON_OWNER_LOSS, LOSS[policy].to_bytes(4, "little") + bytes(4))

    # ---- who is in it

    def members(self) -> tuple[Member, ...]:
        """Ask the keeper, and wait for its answer as long as for that to a stop."""
        from .members import look, members, proc_is_ours

        query_id = self.keeper.next_stop_id()
        self._request(QUERY, query_id.to_bytes(4, "little") + bytes(4))

        def answered() -> bool:
            return self._answer[0] >= query_id or self.keeper.retired or self.keeper.tree is not self

        if not self._wait_until(answered, self.stop_margin):
            self._insist(answered)
        self.check()
        _, unlisted, listed = self._answer
        if self.empty or self._answer[0] < query_id or not proc_is_ours():
            return ()
        self._look = look(self.keeper.pid, [pid for pid, *_ in listed], unlisted > 0)
        return members(self._look, listed, self.pid)

    def _previous_parent(self, pid: int) -> int | None:
        if not self._look:
            return None
        from .members import previous_parent

        return previous_parent(self._look, pid)

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
                    try_signal(main_fd, SIGKILL, 4)  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
                for _, fd in held:
                    try_signal(fd, SIGKILL, 0)
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

    def acknowledge(self) -> None:
        """Its owner closes the handle and knows how it ended, if it has: only a held keeper wants to hear that."""

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
        while self.told.bells:
            self.told.bells.popitem()[0].abandon()


def _name(pid: int) -> str:
    """For printing only; the process is held by a pidfd meanwhile."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
