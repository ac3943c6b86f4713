"""A stand-in for select.kqueue, so that the code of its rung is run at all where there is none.

It knows a queue with one event, the end of a child, whose descriptor is a pidfd; as on macOS, one that has ended
is no process any more, and a timer has to tell.  What it proves is the rung's use of it, nothing about those systems.
"""

from __future__ import annotations

import os
import select
from typing import NamedTuple


class Kevent(NamedTuple):
    ident: int
    filter: int
    flags: int
    fflags: int = 0
    data: int = 0


class Kqueue:
    def __init__(self) -> None:
        self._fd = -1

    def control(self, changes, count, timeout):
        assert (count, timeout) == (0, 0)
        (change,) = changes
        assert change.flags == select.KQ_EV_ADD | select.KQ_EV_ONESHOT
        if change.filter == select.KQ_FILTER_TIMER:
            self._fd = os.eventfd(change.data, os.EFD_CLOEXEC)
            return
        assert (change.filter, change.fflags) == (select.KQ_FILTER_PROC, select.KQ_NOTE_EXIT)
        if os.waitid(os.P_PID, change.ident, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise ProcessLookupError
        self._fd = os.pidfd_open(change.ident)

    def fileno(self):
        return self._fd

    def close(self):
        if self._fd >= 0:
            os.close(self._fd)


select.kqueue, select.kevent = Kqueue, Kevent
select.KQ_FILTER_PROC, select.KQ_FILTER_TIMER = -5, -7
select.KQ_EV_ADD, select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT = 0x1, 0x10, 0x80000000
