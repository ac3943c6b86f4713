"""Kills for want of memory, heard while a service runs on: version 2 changes `memory.events`, which an inotify watch
of the directory tells; version 1 has an eventfd for it, which comes ahead of the kill."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from holdfast.process import _native

from .cgroup_files import Cgroups, write

LOOK_LATER = 0.1  # seconds, after which the kernel has counted what it has told of
HEAD = 16  # bytes of an inotify event ahead of its name
READ_BYTES = 65536

Key = tuple[str, int]


class OomWatch:
    """Calls `look` with service and incarnation when there may be something new.  For the loop's thread."""

    def __init__(self, look: Callable[[str, int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._look = look
        self._inotify = -1
        self._watches: dict[int, Key] = {}
        self._eventfds: dict[Key, int] = {}

    def add(self, key: Key, cgroups: Cgroups) -> None:
        """Where it cannot be heard of, it is seen at the next look: a status, or an exit."""
        found = cgroups.where("memory_max")
        if found is None or key in self._eventfds or key in self._watches.values():
            return
        try:
            (self._add_v2 if found[1] == 2 else self._add_v1)(key, found[0])
        except OSError:
            pass

    def _add_v2(self, key: Key, directory: str) -> None:
        if self._inotify < 0:
            self._inotify = _native.watch_open()
            self._loop.add_reader(self._inotify, self._on_change)
        self._watches[_native.watch_add(self._inotify, directory)] = key

    def _add_v1(self, key: Key, directory: str) -> None:
        control = os.open(os.path.join(directory, "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            write(directory, "cgroup.event_control", f"{event} {control}")
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)
        self._eventfds[key] = event
        self._loop.add_reader(event, self._on_event, key, event)

    def _on_change(self) -> None:
        data = os.read(self._inotify, READ_BYTES)
        at = 0
        keys = set()
        while at < len(data):
            keys.add(self._watches.get(int.from_bytes(data[at : at + 4], "little")))
            at += HEAD + int.from_bytes(data[at + 12 : at + 16], "little")
        for key in keys:
            if key is not None:
                self._look(*key)

    def _on_event(self, key: Key, event: int) -> None:
        os.eventfd_read(event)
        self._loop.call_later(LOOK_LATER, lambda: key in self._eventfds and self._look(*key))

    def drop(self, key: Key) -> None:
        for watch in [watch for watch, each in self._watches.items() if each == key]:
            del self._watches[watch]
            try:
                _native.watch_remove(self._inotify, watch)
            except OSError:
                pass
        event = self._eventfds.pop(key, None)
        if event is not None:
            self._loop.remove_reader(event)
            os.close(event)

    def close(self) -> None:
        for key in [*self._eventfds, *self._watches.values()]:
            self.drop(key)
        if self._inotify >= 0:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1
