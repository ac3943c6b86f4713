"""A direct child (`private=False`, or where no keeper can be): visible to the program's own waits, and not contained.

The same face as `KeptTree`, with what can honestly be done: the main process, and its process group
where it leads one.  What learns of its end, and signals it, is a rung of the ladder (notify/).
"""

from __future__ import annotations

from errno import ENOSYS, EPERM
from os import getpid
from time import monotonic, time

from . import _native, children
from .errors import SpawnError
from .keeper import SIGCONT, SIGKILL, spawn_error
from .kept import KILL_LIMIT
from .notify import choice, start
from .status import ExitStatus, Member, StopReport, Usage
from .told import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .descriptor import Descriptor
    from .notify import Spawn
    from .options import OnOwnerLoss, Plan
    from .status import Seconds


class DirectTree:
    """One direct child.  Any thread."""

    private = False

    def __init__(self, plan: Plan, spawn: Spawn = _native.spawn_direct) -> None:
        self._released = False
        self.status: ExitStatus | None = None
        self.report: StopReport | None = None
        self._leads_group = plan.leads_group
        self._stop_began, self._stop_ends = 0.0, float("inf")
        self._owner = getpid()
        self.told = Told()
        self.started_at, self._started = time(), monotonic()
        try:
            children.start(self, lambda: self._begin(plan, spawn))
        except BaseException:
            if hasattr(self, "_notifier"):  # a signal handler has raised: it would live as long as the exception
                self.drop()
            raise

    def _begin(self, plan: Plan, spawn: Spawn) -> None:
        self._guarded = plan.on_owner_loss == "kill"
        if self._guarded and not (_native.has_autoreap() and choice() == "pidfd"):
            why = "without a keeper, on_owner_loss='kill' needs Linux 7.1, and the notifier pidfd"
            raise SpawnError(ENOSYS, why, "clone")
        try:
            self.pid, self._notifier = start(plan, spawn)
        except OSError as error:
            error = spawn_error(error, plan)
            if self._guarded and error.errno == EPERM and getattr(error, "stage", "") == "clone":
                why = "without a keeper, on_owner_loss='kill' needs no_new_privs=True, or CAP_SYS_ADMIN"
                error = SpawnError(EPERM, why, "clone")
            raise error from None

    @property
    def started_ns(self) -> int:
        return int(self._started * 1e9)

    def started(self) -> None:
        """Its handle is made: from now on it is not undone."""
        self._notifier.keep()

    @property
    def descriptor(self) -> Descriptor:
        return self._notifier.descriptor

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
        if self._released:
            return  # given up: as with a keeper nothing happens
        self._notifier.signal(signo, scope != "main" and self._leads_group)

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
        self._stop_ends = min(self._stop_ends, self._stop_began + grace)  # one that is under way is not lengthened
        if grace > 0 and self.status is None:
            self.signal(signo, scope)
            self.signal(SIGCONT, scope)
        return 0

    def stopped(self, stop_id: int) -> bool:
        """It has ended, or its grace is over: `finish_stop` does the rest."""
        self.check()
        return self.status is not None or monotonic() >= self._stop_ends

    def finish_stop(
        self, stop_id: int, signo: int, scope: str, grace: Seconds, waited: bool = False
    ) -> StopReport:
        # Not reaped yet: as long as it is held by its number, its group has that number too.
        left = max(0.0, self._stop_ends - monotonic())
        killed = self.status is None and not self._notifier.wait(left)
        self.signal(SIGKILL, "group" if self._leads_group else "main")
        ended = self.wait_exit(KILL_LIMIT)
        flags = 1 | (2 if grace > 0 else 0) | (8 if killed else 0) | (0 if ended else 16)
        self.report = StopReport(
            signo, scope, grace, monotonic() - self._stop_began, int(grace > 0), int(killed), int(not ended), 0,
            (Member(self.pid, flags, ""),),
        )  # fmt: skip
        return self.report

    def set_on_owner_loss(self, policy: OnOwnerLoss) -> None:
        """Nothing to tell anybody: nobody guards a direct child, or the kernel does.  ValueError."""
        if self._guarded and policy != "kill":
            raise ValueError("the kernel kills it when its descriptor closes: it cannot be left to itself")

    def acknowledge(self) -> None:
        """Nobody waits for that."""

    def drop(self) -> None:
        self.release_descriptors()

    def release_descriptors(self) -> None:
        self._released = True
        try:
            self._notifier.close()  # if its start is undone it ends here, and is still ours
        finally:
            children.forget(self)
