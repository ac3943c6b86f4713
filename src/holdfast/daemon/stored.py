"""The descriptor store: what services leave with us (FDSTORE=1), given back at their next start.

In: descriptors that `Voices` has taken from a service's own processes.  Out: the same, after the sockets, under their
names (FDNAME).  They are kept over restarts and, by the anchor, over our own death; one that is down for good or by
hand loses them.  What its other end has closed is dropped (unless FDPOLL=0).  For the loop's thread.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, NamedTuple

from .anchor import Anchor

if TYPE_CHECKING:
    from .supervisor import Supervisor

STORED = "stored"  # first word of the key of a deposit; the service, a number and the name follow
UNNAMED = "stored"  # as sd_notify(3) has it
NAME_MAX = 128
# Until our copy is closed, in seconds: the anchor's goes first, for the last close may take as long as a service likes.
CLOSE_LATER = 0.5


class _One(NamedTuple):
    name: str
    fd: int
    polled: bool


class Stored:
    """Those of all services of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._held: dict[str, dict[int, _One]] = {}  # service -> number -> what it has left, in that order
        self._last = 0
        self._refused: set[tuple[str, int]] = set()  # incarnations of which that was said
        self._anchor = Anchor()
        self._epoll: select.epoll | None = None

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def take_back(self, anchor: Anchor, found: dict[str, int]) -> None:
        """Of what the anchor had, take what is ours out of `found`."""
        self._anchor = anchor
        for key in sorted(found):
            word, name, rest = key.split(" ", 2)
            if word == STORED:
                number, _, label = rest.partition(" ")
                self._last = max(self._last, int(number))
                self._held.setdefault(name, {})[int(number)] = self._watch(label, found.pop(key), poll=True)

    def give(self, service: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Descriptors, which stay ours, and their names."""
        held = [each for _, each in sorted(self._held.get(service, {}).items())]
        return tuple(each.fd for each in held), tuple(each.name for each in held)

    def put(self, service: str, incarnation: int, fds: list[int], fields: dict[str, str]) -> None:
        """FDSTORE=1: keep these descriptors, which are ours from now on, one way or the other."""
        name = fields.get("FDNAME", "")
        if not 0 < len(name) <= NAME_MAX or not name.isascii() or not name.isprintable() or ":" in name:
            name = UNNAMED
        held = self._held.setdefault(service, {})
        spec = self._supervisor.config.services.get(service)
        most = spec.fd_store_max if spec else 0
        for fd in fds:
            if any(each.name == name and _same(each.fd, fd) for each in held.values()):
                self._close(fd)  # it is here
            elif len(held) >= most:
                self._close(fd)
                if (service, incarnation) not in self._refused:
                    self._refused.add((service, incarnation))
                    self._supervisor.events.add("refused", f"to store a descriptor: fd_store_max is {most}", service)
            else:
                self._last += 1
                held[self._last] = self._watch(name, fd, poll=fields.get("FDPOLL") != "0")
                self._deposit(service, self._last)

    def remove(self, service: str, name: str) -> None:
        """FDSTOREREMOVE=1: drop all of this name."""
        for number in [number for number, each in self._held.get(service, {}).items() if each.name == name]:
            self._drop(service, number)

    def clear(self, service: str) -> None:
        """Drop all of a service that is down, or is configured no more."""
        for number in list(self._held.get(service, {})):
            self._drop(service, number)
        self._held.pop(service, None)

    def services(self) -> AbstractSet[str]:
        """Names of those that have left something."""
        return self._held.keys()

    def close(self) -> None:
        """Let go of all; the anchor keeps its copies."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        for held in self._held.values():
            for each in held.values():
                self._supervisor.voices.dispose(each.fd)
        self._held.clear()

    # ---- parts of it

    def _deposit(self, service: str, number: int) -> None:
        try:
            self._supervisor.sockets.keep_room()
            self._anchor.deposit(self._key(service, number), self._held[service][number].fd)
        except OSError as error:
            text = f"what it has stored would be lost with this supervisor: {error}"
            self._supervisor.events.add("error", text, service)

    def _key(self, service: str, number: int) -> str:
        return f"{STORED} {service} {number:010} {self._held[service][number].name}"

    def _watch(self, name: str, fd: int, *, poll: bool) -> _One:
        if poll and self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._on_hang_up)
        try:
            if poll and self._epoll is not None:
                self._epoll.register(fd, 0)  # an error or the other end's close, which are always told
        except OSError:
            poll = False  # a file: there is nothing to watch
        return _One(name, fd, poll)

    def _on_hang_up(self) -> None:
        assert self._epoll is not None
        gone = {fd for fd, _ in self._epoll.poll(0)}
        for service, held in list(self._held.items()):
            for number in [number for number, each in held.items() if each.fd in gone]:
                self._drop(service, number)

    def _drop(self, service: str, number: int) -> None:
        self._anchor.withdraw(self._key(service, number))
        each = self._held[service].pop(number)
        if each.polled and self._epoll is not None:
            self._epoll.unregister(each.fd)  # a copy elsewhere would keep it there
        self._loop.call_later(CLOSE_LATER, self._close, each.fd)

    def _close(self, fd: int) -> None:
        self._supervisor.voices.dispose(fd)


def _same(one: int, other: int) -> bool:
    """Whether both are of one file, socket or pipe; what has no inode of its own (eventfd ...) is never the same."""
    a, b = os.fstat(one), os.fstat(other)
    return stat.S_IFMT(a.st_mode) != 0 and os.path.samestat(a, b)
