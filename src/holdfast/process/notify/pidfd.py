"""The pidfd rung: Linux 5.4 (P_PIDFD), recovery of a stolen status since 6.15 (PIDFD_INFO_EXIT)."""

from __future__ import annotations

from _thread import RLock
from time import monotonic

from .. import _native
from ..status import ExitStatus, from_siginfo, from_wait_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..descriptor import Descriptor

POLLIN, POLLHUP = 1, 16


class PidfdNotifier:
    """Holds the pidfd that clone gave, so no other process can ever be meant.  Any thread."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self._lock = RLock()  # a signal handler in the thread that holds it may ask too
        self._status: ExitStatus | None = None

    def fileno(self) -> int:
        return self.descriptor.fileno()

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

    def signal(self, signo: int) -> None:
        with self.descriptor as fd:
            try:
                _native.pidfd_signal(fd, signo)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        self.descriptor.close()
