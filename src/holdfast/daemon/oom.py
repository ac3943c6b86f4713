"""Kills for want of memory, heard while a service runs on: version 2 tells of changes of `memory.events`, version 1 has
an eventfd, which comes ahead of the kill."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

from .cgroup_files import Cgroups, write

LOOK_LATER = 0.1  # seconds, after which the kernel has counted what it has told of
READ_BYTES = 4096

Key = tuple[str, int]


class OomWatch:
    """Calls `look` with service and incarnation when there may be something new.  For the loop's thread."""

    def __init__(self, look: Callable[[str, int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._look = look
        self._epoll: select.epoll | None = None
        self._fds: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._fds)

    def add(self, key: Key, cgroups: Cgroups) -> None:
        """Where it cannot be heard of, it is seen at the next look: a status, or an exit."""
        found = cgroups.where("memory_max")
        if found is None or key in self._fds:
            return
        directory, version = found
        try:
            if version == 2:
                self.watch(key, os.open(os.path.join(directory, "memory.events"), os.O_RDONLY | os.O_CLOEXEC))
            else:
                self.watch(key, _eventfd(directory))
        except OSError:
            pass

    def watch(self, key: Key, fd: int) -> None:
        """An eventfd, or a file of a cgroup that tells of its changes, which is ours from now on.  OSError."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._on_event)
        self._fds[key] = fd
        _take(fd)  # a file tells of what comes after it was read
        self._epoll.register(fd, select.EPOLLIN if _is_eventfd(fd) else select.EPOLLPRI)

    def _on_event(self) -> None:
        assert self._epoll is not None
        ready = {fd for fd, _ in self._epoll.poll(0)}
        for key, fd in self._fds.items():
            if fd in ready:
                _take(fd)
                self._loop.call_later(LOOK_LATER, self._look_later, key)

    def _look_later(self, key: Key) -> None:
        if key in self._fds:
            self._look(*key)

    def drop(self, key: Key) -> None:
        fd = self._fds.pop(key, None)
        if fd is not None and self._epoll is not None:
            self._epoll.unregister(fd)
            os.close(fd)

    def close(self) -> None:
        for key in list(self._fds):
            self.drop(key)
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None


def _eventfd(directory: str) -> int:
    control = os.open(os.path.join(directory, "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        write(directory, "cgroup.event_control", f"{event} {control}")
    except OSError:
        os.close(event)
        raise
    finally:
        os.close(control)
    return event


def _is_eventfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith("[eventfd]")


def _take(fd: int) -> None:
    try:
        if not _is_eventfd(fd):
            os.lseek(fd, 0, os.SEEK_SET)
        os.read(fd, READ_BYTES)
    except OSError:  # nothing is in the eventfd; or the cgroup is gone
        pass
