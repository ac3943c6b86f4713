"""One thread that looks after the children of a rung that has nothing better, while somebody has their descriptors."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from _thread import RLock, start_new_thread
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Watched(Protocol):
        def look(self) -> bool:
            """Ring if the child has ended; whether it has."""


class Hub:
    """Calls `look` of each of its children after every `pause(seconds since the last one came)`.

    Its thread is there while it has children, and ends within one pause after the last.  In a forked child of the
    program it is empty: those are the parent's.
    """

    def __init__(self, pause: Callable[[float], None]) -> None:
        self._pause = pause
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._children: dict[Watched, None] = {}
        self._lock = RLock()  # a signal handler in the thread that holds it may ask too
        self._running = False
        self._last = 0.0

    def add(self, child: Watched) -> None:
        with self._lock:
            self._children[child] = None
            self._last = monotonic()
            if not self._running:
                self._running = True
                try:
                    start_new_thread(self._run, ())
                except BaseException:
                    self._running = False
                    raise

    def discard(self, child: Watched) -> None:
        self._children.pop(child, None)

    def _run(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # they are for the program's threads
        while True:
            self._pause(monotonic() - self._last)
            for child in list(self._children):
                if child.look():
                    self.discard(child)
            with self._lock:
                if not self._children:
                    self._running = False
                    return
