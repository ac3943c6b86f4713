"""What the rungs without pidfds share: a direct child that is held by its number.

The number is the child's until somebody waits for it.  We do under a lock, and under the same lock we signal, so it is
never another's as long as nobody else's wait takes our children (which the pidfd rung, and a keeper, need not fear).
"""

from __future__ import annotations

import os
import posix  # its waits: those of `os` may be wrapped, to keep the program's own away from our children
import sys
from _thread import RLock
from time import monotonic, sleep

from ..descriptor import Descriptor
from ..errors import SpawnError
from ..status import ExitStatus, from_wait_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

    from ..options import Plan
    from . import Spawn

SIGKILL = 9
KILL_LIMIT = 5.0
SHORT, LONG = 50e-6, 49.95e-3  # seconds: the two sleeps
ONE = (1).to_bytes(8, sys.byteorder)
_RSS_UNIT = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes


def pauses(deadline: float | None) -> Iterator[float]:
    """The sleeps between two looks: a short one, then long ones, none beyond the deadline, where they end.

    While the child is young a long one is a quarter of its age: most end early, and nobody is to be told of an end
    after 20 ms no sooner than after 50."""
    began = monotonic()
    pause = SHORT
    while True:
        now = monotonic()
        if deadline is not None:
            if now >= deadline:
                return
            pause = min(pause, deadline - now)
        yield pause
        pause = min(LONG, max(SHORT, (monotonic() - began) / 4))


class Bell:
    """A descriptor that is readable from its first ring on.  Any thread."""

    __slots__ = ("_write", "descriptor")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.descriptor = self._write = Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        else:
            read, write = os.pipe()
            self.descriptor, self._write = Descriptor(read), Descriptor(write)

    @property
    def number(self) -> int:
        """Of the end that is written to."""
        return self._write.fileno()

    def ring(self) -> None:
        try:
            with self._write as fd:
                os.write(fd, ONE)
        except ValueError:
            pass  # closed meanwhile

    def close(self) -> None:
        self.descriptor.close()
        self._write.close()


class NumberedNotifier:
    """One direct child, by number.  What a rung adds: `wait`, `descriptor`, and what it watches from `begin` on."""

    def __init__(self, pid: int) -> None:
        self._lock = RLock()  # a signal handler in the thread that holds it may ask too
        self._found: list[tuple[int, int, Any]] = []
        self._status: ExitStatus | None = None
        self._taken = False
        self._starting = True
        self.pid = pid  # from here on nothing is called, so no handler can run before we own it

    @classmethod
    def start(cls, plan: Plan, spawn: Spawn) -> tuple[int, Self]:
        pid, notifier = spawn(plan.body, plan.fds, cls, False, True)
        try:
            notifier.begin()
        except BaseException as error:
            notifier.close()  # now, and not when the caller lets go of the error
            if isinstance(error, OSError) and error.errno:  # no descriptor is left to watch it with
                raise SpawnError(error.errno, error.strerror or "", "notifier") from None
            raise
        return pid, notifier

    def begin(self) -> None:
        """It has been started, and is owned."""

    def keep(self) -> None:
        self._starting = False

    def ended(self) -> bool:
        """Whether the child has ended, without reaping it.  One that another wait has taken has."""
        with self._lock:
            if self._reaped or self._taken:
                return True
            if not hasattr(posix, "waitid"):  # macOS before Python 3.13
                return self._reap()
            try:
                return posix.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                self._taken = not self._reaped  # by a signal handler that has asked meanwhile, and was before us
                return True

    @property
    def _reaped(self) -> bool:
        return bool(self._found and self._found[0][0])

    def _reap(self) -> bool:
        # In C from the wait into the list: between the two a handler that raises would make us lose it.
        if sys.is_finalizing():  # wait4 imports what it makes the usage of, which cannot be now
            self._found[:] = [(*posix.waitpid(self.pid, os.WNOHANG), None)]
        else:
            self._found[:] = map(posix.wait4, [self.pid], [os.WNOHANG])
        return self._reaped

    def status(self, started_at: float, started: float) -> ExitStatus | None:
        with self._lock:
            if self._status is None:
                try:
                    if self._taken:
                        raise ChildProcessError
                    if not self._reaped and not self._reap():
                        return None
                except ChildProcessError:
                    if not self._reaped:  # see `ended`
                        self._taken = True
                        raise ChildProcessError(
                            "the exit status was taken by another wait in this process, or SIGCHLD is ignored; "
                            "without pidfds nobody can tell it again"
                        ) from None
                _, status, usage = self._found[0]
                self._status = from_wait_status(status, started_at, monotonic() - started, usage and _usage(usage))
            return self._status

    def signal(self, signo: int, group: bool) -> None:
        with self._lock:
            self.ended()  # looks whether another wait has taken it
            if self._reaped or self._taken:
                return  # the number may be anybody's
            try:
                (os.killpg if group else os.kill)(self.pid, signo)
            except ProcessLookupError:
                pass

    def wait(self, timeout: float | None) -> bool:
        """The two-step loop, which a rung that knows better replaces."""
        if self.ended():
            return True
        for pause in pauses(None if timeout is None else monotonic() + timeout):
            sleep(pause)
            if self.ended():
                return True
        return False

    def close(self) -> None:
        """While nobody has the child yet, this ends it."""
        if self._starting:
            try:
                self._undo()
            except BaseException:  # a signal handler's: once more, for nobody else will
                self._undo()
                raise
            self._starting = False

    def _undo(self) -> None:
        self.signal(SIGKILL, False)
        NumberedNotifier.wait(self, KILL_LIMIT)
        try:
            self.status(0.0, 0.0)
        except ChildProcessError:
            pass

    def __del__(self) -> None:
        if getattr(self, "pid", 0):
            self.close()


def _usage(usage: Any) -> tuple[int, ...]:
    """As the wire has it."""
    return (
        round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6), usage.ru_maxrss // _RSS_UNIT, usage.ru_minflt,
        usage.ru_majflt, usage.ru_inblock, usage.ru_oublock, usage.ru_nvcsw, usage.ru_nivcsw,
    )  # fmt: skip
