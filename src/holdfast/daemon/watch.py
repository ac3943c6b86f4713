"""Directories that somebody waits for a change in: one inotify descriptor for all of them.

One for all because a user may have 128 such descriptors but many thousand watches.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.process import _native

_HEAD = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_IGNORED = 0x8000  # the watch is gone: its directory was removed
READ_BYTES = 64 * 1024


class Change(asyncio.Event):
    """Set at each change.  `gone`: the directory was removed, this was the last."""

    gone = False


class Watcher:
    """Wakes those who wait for a change in a directory.  For one loop's thread; `close` in the end."""

    def __init__(self) -> None:
        self._fd = -1
        self._waiting: dict[int, set[Change]] = {}

    @contextmanager
    def watching(self, directory: str) -> Iterator[Change]:
        """An event that is set at each change (a write, a new name) from now on; the waiter clears it.

        OSError when the directory cannot be watched.
        """
        if self._fd < 0:
            self._fd = _native.watch_open()
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        watch = _native.watch_add(self._fd, directory)
        changed = Change()
        self._waiting.setdefault(watch, set()).add(changed)
        try:
            yield changed
        finally:
            others = self._waiting.get(watch)
            if others is not None:
                others.discard(changed)
                if not others:
                    del self._waiting[watch]
                    try:
                        _native.watch_remove(self._fd, watch)
                    except OSError:
                        pass  # the directory is gone, and with it the watch; the event has not been read yet

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            # -1: events were lost, so anything may have changed.
            for each in [watch] if watch >= 0 else list(self._waiting):
                for changed in self._waiting.get(each, ()):
                    changed.gone |= bool(mask & _IGNORED)
                    changed.set()
            if mask & _IGNORED:
                self._waiting.pop(watch, None)

    def close(self) -> None:
        """Nobody is woken any more."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._waiting.clear()
