"""The kqueue rung: EVFILT_PROC with NOTE_EXIT, on the BSDs and macOS.  Not yet run there (docs/platforms.md).

Each child has a queue of its own, whose descriptor is readable from the event on, for nobody takes that out.
"""

from __future__ import annotations

import os
import select
import weakref

from .. import _native
from ..descriptor import Descriptor
from .numbered import NumberedNotifier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

POLLIN = 1


def unusable(forced: bool) -> str:
    return "" if hasattr(select, "kqueue") else "not on this system"


class _Queue(Descriptor):
    """A queue.  The one descriptor that a forked child of the program does not get: its number is another's there."""

    __slots__ = ("__weakref__",)

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        _queues.add(self)


_queues: weakref.WeakSet[_Queue] = weakref.WeakSet()


def _forget() -> None:
    for queue in list(_queues):
        queue._closed = True


os.register_at_fork(after_in_child=_forget)


class KqueueNotifier(NumberedNotifier):
    _queue: _Queue | None = None

    def begin(self) -> None:
        select_: Any = select  # much of it is there on those systems alone
        queue = select_.kqueue()
        add, once = select_.KQ_EV_ADD, select_.KQ_EV_ONESHOT
        try:
            try:
                exits = select_.kevent(self.pid, select_.KQ_FILTER_PROC, add | once, select_.KQ_NOTE_EXIT)
                queue.control([exits], 0, 0)
            except ProcessLookupError:  # it has ended: macOS has no events of zombies, so a timer says so, in a ms
                queue.control([select_.kevent(1, select_.KQ_FILTER_TIMER, add | once, data=1)], 0, 0)
            self._queue = _Queue(os.dup(queue.fileno()))
        finally:
            queue.close()

    @property
    def descriptor(self) -> Descriptor:
        assert self._queue is not None
        return self._queue

    def wait(self, timeout: float | None) -> bool:
        if self.ended():
            return True
        with self.descriptor as fd:
            _native.poll(fd, POLLIN, -1 if timeout is None else max(0, round(timeout * 1e9)))
        # The event comes a moment before the child can be waited for.
        return super().wait(timeout and min(timeout, 1.0)) if _readable(self.descriptor) else False

    def close(self) -> None:
        super().close()
        if self._queue is not None:
            self._queue.close()


def _readable(descriptor: Descriptor) -> bool:
    with descriptor as fd:
        return bool(_native.poll(fd, POLLIN, 0))


NOTIFIER = KqueueNotifier
