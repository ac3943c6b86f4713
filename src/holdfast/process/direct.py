"""A direct child (`private=False`): no keeper, so visible to the program's own waits, and not contained.

The same face as `KeptTree`, with what can honestly be done: the main process, and its process group
where it leads one.
"""

from __future__ import annotations

from os import getpid
from time import monotonic, time

from . import _native, children
from .descriptor import Descriptor
from .keeper import SIGCONT, SIGKILL, spawn_error, try_signal
from .kept import KILL_LIMIT
from .notify.pidfd import PidfdNotifier
from .status import ExitStatus, Member, StopReport, Usage
from .told import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from .options import OnOwnerLoss, Plan
    from .status import Seconds

    # As _native.spawn_direct: the number, and what `own` has made of the pidfd.
    Spawn: TypeAlias = Callable[[bytes, Sequence[int], type["_Child"]], tuple[int, "_Child"]]

PIDFD_SIGNAL_PROCESS_GROUP = 4


class _Child(Descriptor):
    """A direct child's pidfd.  While nobody has the handle yet, dropping it ends the child."""

    __slots__ = ("starting",)

    def __init__(self, fd: int) -> None:
        self.starting = True
        super().__init__(fd)

    def __del__(self) -> None:
        if self.starting and not getattr(self, "_closed", True):
            try_signal(self._fd, SIGKILL, 0)
            _native.poll(self._fd, 1, int(KILL_LIMIT * 1e9))
            try:
                _native.wait_status(self._fd)
            except ChildProcessError:
                pass
        super().__del__()


def _spawn(body: bytes, fds: Sequence[int], own: Callable[[int], _Child]) -> tuple[int, _Child]:
    return _native.spawn_direct(body, fds, own, True)  # and the kernel reaps it, where it can


class DirectTree:
    """One direct child.  Any thread."""

    def __init__(self, plan: Plan, spawn: Spawn = _spawn) -> None:
        self.started_at, self._started = time(), monotonic()
        children.start(self, lambda: self._begin(plan, spawn))
        self.status: ExitStatus | None = None
        self.report: StopReport | None = None
        self._leads_group = plan.leads_group
        self._stop_began = 0.0
        self._owner = getpid()
        self.told = Told()

    def _begin(self, plan: Plan, spawn: Spawn) -> None:
        try:
            pid, self.descriptor = spawn(plan.body, plan.fds, _Child)
        except OSError as error:
            raise spawn_error(error, plan) from None
        self._notifier = PidfdNotifier(self.descriptor)
        self.pid = pid

    @property
    def started_ns(self) -> int:
        return int(self._started * 1e9)

    def started(self) -> None:
        """Its handle is made: from now on it is not undone."""
        self.descriptor.starting = False

    @property
    def foreign(self) -> bool:
        """We are a forked copy of the owner."""
        return getpid() != self._owner

    @property
    def empty(self) -> bool:
        return self.status is not None or self.foreign

    @property
    def usage(self) -> Usage | None:
        return self.status.usage if self.status else None

    @property
    def owned(self) -> bool:
        return True

    def wait_exit(self, timeout: Seconds | None) -> bool:
        if self.foreign:
            self.check()  # also while it runs: a copy must not wait for what it will never learn
        if self.status is None and self._notifier.wait(timeout):
            self.check()
        return self.status is not None

    wait_empty = wait_exit

    def hear(self) -> None:
        self.wait_exit(0.0)

    def members(self) -> tuple[Member, ...]:
        from .members import main_alone

        self.advance()
        return () if self.status is not None else main_alone(self.pid)

    def check(self) -> None:
        if self.foreign:
            raise ValueError("this process belongs to the program that we were forked from")
        if self.status is None:
            try:
                status = self._notifier.status(self.started_at, self._started)
            except ChildProcessError:
                children.forget(self)
                raise
            if status is not None:
                children.forget(self, reaped=status.usage is not None)
                self.told.note(status)  # before anybody can see that nothing more will come
                self.status = status
                self.told.call_back()

    def reap(self) -> bool:
        """Take the child's status for us, if it has ended: as a wait of the program asks that has met it (waits.py).

        True: nothing of it is left for any wait.  Tells nobody, for this may be in a signal handler.
        """
        try:
            status = self._notifier.status(self.started_at, self._started)
        except (ChildProcessError, ValueError):
            children.forget(self)  # another wait has taken it, or it is given up
            return True
        if status is None:
            return False
        children.forget(self, reaped=status.usage is not None)
        return True

    def signal(self, signo: int, scope: str) -> None:
        if self.foreign:
            self.check()
        if self.descriptor.closed:
            return  # given up: as with a keeper nothing happens
        if scope != "main" and self._leads_group:
            try:
                with self.descriptor as fd:
                    _native.pidfd_signal(fd, signo, PIDFD_SIGNAL_PROCESS_GROUP)
                return
            except ProcessLookupError:
                return
            except OSError:
                pass  # before 6.9 there is no safe handle of a group: main alone
        self._notifier.signal(signo)

    @property
    def lifeline(self) -> tuple[()]:
        return ()

    @property
    def voices(self) -> tuple[Descriptor]:
        return (self.descriptor,)

    def advance(self) -> None:
        if not self.foreign:
            self.check()

    @property
    def lost(self) -> bool:
        return False  # there is no keeper to lose

    overdue = lost

    @property
    def stop_margin(self) -> Seconds:
        return 0.0  # nobody but us sends the KILL

    def begin_stop(self, signo: int, scope: str, grace: Seconds) -> int:
        self._stop_began = monotonic()
        if grace > 0 and self.status is None:
            self.signal(signo, scope)
            self.signal(SIGCONT, scope)
        return 0

    def stopped(self, stop_id: int) -> bool:
        self.check()
        return self.status is not None

    def finish_stop(
        self, stop_id: int, signo: int, scope: str, grace: Seconds, waited: bool = False
    ) -> StopReport:
        killed = not self.wait_exit(max(0.0, self._stop_began + grace - monotonic()))
        self.signal(SIGKILL, "group" if self._leads_group else "main")
        ended = self.wait_exit(KILL_LIMIT)
        flags = 1 | (2 if grace > 0 else 0) | (8 if killed else 0) | (0 if ended else 16)
        self.report = StopReport(
            signo, scope, grace, monotonic() - self._stop_began, int(grace > 0), int(killed), int(not ended), 0,
            (Member(self.pid, flags, ""),),
        )  # fmt: skip
        return self.report

    def set_on_owner_loss(self, policy: OnOwnerLoss) -> None:
        """Nothing to tell anybody: nobody guards a direct child."""

    def acknowledge(self) -> None:
        """Nobody waits for that."""

    def drop(self) -> None:
        self.release_descriptors()

    def release_descriptors(self) -> None:
        children.forget(self)
        self._notifier.close()
