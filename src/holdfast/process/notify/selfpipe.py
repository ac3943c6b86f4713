"""The self-pipe rung: a handler of SIGCHLD writes to the descriptor of each child that has ended.

It is in C (csrc/spawn/sigchld.c), for it looks at the children wherever it interrupts the program.
Nobody has to read for others, so there is no thread, and what is readable says exactly one thing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from time import monotonic

from .. import _native
from .numbered import Bell, NumberedNotifier
from .threads import SIGCHLD, blocked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..descriptor import Descriptor

POLLIN = 1
SLICE = 1.0  # seconds: how long a wait relies on a handler that somebody may have replaced


def unusable(forced: bool) -> str:
    if not hasattr(_native, "sigchld_install"):
        return "not built for this system"
    if all(blocked()):
        return "SIGCHLD is blocked in every thread"
    return "SIGCHLD is ignored" if _signal.getsignal(SIGCHLD) == _signal.SIG_IGN else ""


class SelfpipeNotifier(NumberedNotifier):
    """Its bell is rung by the handler."""

    _bell: Bell | None = None

    def begin(self) -> None:
        self._owner = os.getpid()
        self._watches: list[int] = []
        self._bell = Bell()
        self._renew()
        # In C from the watch into the list: lost between the two, it would write to whoever has the number next.
        self._watches.extend(map(_native.sigchld_watch, [self.pid], [self._bell.number]))

    def _renew(self) -> None:
        """The program may have set a handler of its own since: ours comes before it again."""
        try:
            _native.sigchld_install()
        except OSError:
            pass  # it ignores SIGCHLD now: `wait` looks by itself once in a while

    @property
    def descriptor(self) -> Descriptor:
        assert self._bell is not None
        self._renew()
        return self._bell.descriptor

    def wait(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else monotonic() + timeout
        while not self.ended():
            left = SLICE if deadline is None else min(SLICE, deadline - monotonic())
            if left <= 0:
                return False
            with self.descriptor as fd:
                _native.poll(fd, POLLIN, int(left * 1e9) + 1)
        return True

    def close(self) -> None:
        super().close()
        if self._bell is None:
            return
        try:
            watch = self._watches.pop()
        except IndexError:
            pass
        else:
            if self._owner == os.getpid():  # in a forked copy of us the table began anew
                _native.sigchld_forget(watch)  # before its descriptor is anybody else's
        self._bell.close()


NOTIFIER = SelfpipeNotifier
