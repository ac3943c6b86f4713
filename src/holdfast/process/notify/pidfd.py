"""The pidfd rung: Linux 5.4 (P_PIDFD), recovery of a stolen status since 6.15 (PIDFD_INFO_EXIT)."""

from __future__ import annotations

import posix  # its waits: those of `os` may be wrapped, to keep the program's own away from our children
from _thread import RLock
from time import monotonic

from .. import _native
from ..descriptor import Descriptor
from ..status import ExitStatus, from_siginfo, from_wait_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from ..options import Plan
    from . import Spawn

POLLIN = 1
P_PIDFD = 3  # os.P_PIDFD, if Python was built with it
EBADF, EINVAL = 9, 22
NO_DESCRIPTOR = 0x7FFFFFFF
SIGKILL = 9
KILL_LIMIT_NS = 5_000_000_000
PIDFD_SIGNAL_PROCESS_GROUP = 4


def unusable(forced: bool) -> str:
    """By calls with arguments that cannot be: a kernel that has the call complains of them.  Takes no descriptor."""
    for name, call, complaint in (
        ("pidfd_open", lambda: _native.pidfd_open(-1), EINVAL),
        ("pidfd_send_signal", lambda: _native.pidfd_signal(NO_DESCRIPTOR, 0), EBADF),
        ("waitid on a pidfd", lambda: _native.wait_status(NO_DESCRIPTOR), EBADF),
    ):
        try:
            call()
        except OSError as error:
            if error.errno != complaint:
                return f"{name}: {error.strerror}"
    return ""


class _Child(Descriptor):
    """A direct child's pidfd.  While nobody has the handle yet, closing or dropping it ends the child."""

    __slots__ = ("starting",)

    def __init__(self, fd: int) -> None:
        self.starting = True
        super().__init__(fd)

    def close(self) -> None:
        if self.starting and not self._closed:
            try:
                _native.pidfd_signal(self._fd, SIGKILL, 0)
            except OSError:
                pass  # it has ended, or has become another user's
            _native.poll(self._fd, POLLIN, KILL_LIMIT_NS)
            try:
                _native.wait_status(self._fd)
            except ChildProcessError:
                pass
        super().close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


class PidfdNotifier:
    """Holds the pidfd that clone gave, so no other process can ever be meant.  Any thread."""

    def __init__(self, descriptor: _Child, pid: int) -> None:
        self._child = descriptor
        self._pid = pid  # of its group, for kernels whose pidfds are no handle of that
        self._lock = RLock()  # a signal handler in the thread that holds it may ask too
        self._status: ExitStatus | None = None

    @classmethod
    def start(cls, plan: Plan, spawn: Spawn) -> tuple[int, Self]:
        pid, child = spawn(plan.body, plan.fds, _Child, True, False)
        try:
            return pid, cls(child, pid)
        except BaseException:  # a signal handler's, which would keep it alive as long as itself
            child.close()
            raise

    @property
    def descriptor(self) -> Descriptor:
        return self._child

    def keep(self) -> None:
        self._child.starting = False

    def wait(self, timeout: float | None) -> bool:
        with self.descriptor as fd:
            ns = -1 if timeout is None else max(0, round(timeout * 1e9))
            return bool(_native.poll(fd, POLLIN, ns))

    def status(self, started_at: float, started: float) -> ExitStatus | None:
        with self._lock, self.descriptor as fd:
            if self._status is None:
                self._status = self._reap(fd, started_at, started)
            return self._status

    def _reap(self, fd: int, started_at: float, started: float) -> ExitStatus | None:
        try:
            ended = _native.wait_status(fd)
        except ChildProcessError:
            if self._status is not None:
                return self._status  # a signal handler has asked meanwhile, and was before us
            # Somebody else's wait took it, or SIGCHLD is ignored and the kernel reaped by itself.
            # The exit information is there once POLLHUP is (after POLLIN alone it may be missing).
            # Alive and ECHILD: not ours any more (waited for by a tracer); then it just goes on.
            if not _native.poll(fd, POLLIN, 0):
                return None
            _native.poll(fd, 0, 1_000_000_000)
            info = _native.exit_info(fd)
            if info is None:
                raise ChildProcessError(
                    "the exit status was taken by another wait in this process, and this kernel "
                    "(before 6.15) cannot tell it again; private=True keeps it safe"
                ) from None
            return from_wait_status(info, started_at, monotonic() - started)
        if ended is None:
            return None
        code, status, usage = ended
        return from_siginfo(code, status, usage, started_at, monotonic() - started)

    def signal(self, signo: int, group: bool) -> None:
        with self.descriptor as fd:
            try:
                if group:
                    try:
                        _native.pidfd_signal(fd, signo, PIDFD_SIGNAL_PROCESS_GROUP)
                        return
                    except ProcessLookupError:
                        return
                    except OSError:
                        if self._signal_number(fd, signo):
                            return
                _native.pidfd_signal(fd, signo)
            except ProcessLookupError:
                pass

    def _signal_number(self, fd: int, signo: int) -> bool:
        """Before 6.9: to the group by its number, which is the leader's as long as that is not reaped, and no longer.

        We reap under the same lock.  False: it was reaped, or another wait has taken it.
        """
        with self._lock:
            try:
                posix.waitid(P_PIDFD, fd, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
            except ChildProcessError:
                return False
            posix.killpg(self._pid, signo)
            return True

    def close(self) -> None:
        self.descriptor.close()


NOTIFIER = PidfdNotifier
