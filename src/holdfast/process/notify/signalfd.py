"""The signalfd rung: SIGCHLD is read from a descriptor, so it has to be blocked in every thread of the program.

Whoever reads it looks at all children, for one record may stand for many ends, and rings for those that have ended.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
from time import monotonic

from .. import _native
from .hub import Hub
from .numbered import Bell, NumberedNotifier
from .threads import SIGCHLD, blocked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..descriptor import Descriptor

SLICE = 1.0  # seconds: how long a wait relies on whoever reads

_fd = -1
_children: dict[SignalfdNotifier, None] = {}


def unusable(forced: bool) -> str:
    """SIGCHLD is blocked here only by those who ask for this rung, in the main thread, before there are others: for
    it makes the program's own handler of SIGCHLD mute."""
    global _fd
    if not hasattr(_native, "sigchld_descriptor"):
        return "not built for this system"
    if _signal.getsignal(SIGCHLD) == _signal.SIG_IGN:
        return "SIGCHLD is ignored"
    threads = blocked()
    if not all(threads) and not (forced and len(threads) == 1):
        return "SIGCHLD is not blocked in every thread"
    if _fd < 0:
        try:
            _fd = _native.sigchld_descriptor(forced)
        except OSError as error:
            return f"signalfd: {error.strerror}"
    return ""


def _read() -> None:
    """Take what the signalfd has and look at all children; the first step comes first, or an end would be missed."""
    try:
        os.read(_fd, 4096)
    except BlockingIOError:
        return  # another thread has, and looks
    for child in list(_children):
        child.look()


def _pause(_: float) -> None:
    if _native.poll(_fd, select.POLLIN, int(SLICE * 1e9)):
        _read()


class SignalfdNotifier(NumberedNotifier):
    """Rung by who reads: those who wait, and a thread where somebody has asked for a descriptor."""

    _bell: Bell | None = None
    _served = False

    def begin(self) -> None:
        self._bell = Bell()
        _children[self] = None

    @property
    def descriptor(self) -> Descriptor:
        assert self._bell is not None
        with self._lock:
            if not self._served and not self.look() and not self._bell.descriptor.closed:
                _hub.add(self)
            self._served = True
        return self._bell.descriptor

    def look(self) -> bool:
        assert self._bell is not None
        if not self.ended():
            return self._bell.descriptor.closed
        if _children.pop(self, self) is None:  # once
            self._bell.ring()
        return True

    def wait(self, timeout: float | None) -> bool:
        assert self._bell is not None
        deadline = None if timeout is None else monotonic() + timeout
        while not self.ended():
            left = SLICE if deadline is None else min(SLICE, deadline - monotonic())
            if left <= 0:
                return False
            with self._bell.descriptor as fd:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                poll.register(_fd, select.POLLIN)
                if any(ready == _fd for ready, _ in poll.poll(left * 1000 + 0.999)):
                    _read()
        return True

    def close(self) -> None:
        super().close()
        _children.pop(self, None)
        if self._bell is not None:
            self._bell.close()


_hub = Hub(_pause)
os.register_at_fork(after_in_child=_children.clear)

NOTIFIER = SignalfdNotifier
