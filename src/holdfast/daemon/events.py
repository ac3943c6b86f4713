"""What has happened, numbered: for clients that follow, for the log, for the terminal."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic, Protocol, TypeVar

from .status import EventRecord

RING = 8192  # events that a client which comes late can still read


class Numbered(Protocol):
    @property
    def seq(self) -> int: ...


R = TypeVar("R", bound=Numbered)


class Ring(Generic[R]):
    """The last `size` records, with numbers that never come back.  `gap` makes the one that stands for those before
    `first` that are forgotten.  For the loop's thread."""

    def __init__(self, size: int, gap: Callable[[R], R]) -> None:
        self._ring: deque[R] = deque(maxlen=size)
        self._gap = gap
        # A supervisor that comes after this one shall count on: microseconds are more than its events.
        self._last = int(time.time() * 1000) * 1000
        self._grown = asyncio.Event()

    @property
    def last(self) -> int:
        """The number of the newest record."""
        return self._last

    def put(self, record: R) -> None:
        """Its number is the next one."""
        self._last = record.seq
        self._ring.append(record)
        if not self._grown.is_set():
            self._grown.set()

    def after(self, seq: int) -> list[R]:
        """Those with larger numbers, oldest first.  Where some have been forgotten, the gap stands in their place; 0
        asks for all that are remembered, and is told of no gap."""
        if seq >= self._last or not self._ring:
            return []
        first = self._ring[0].seq
        if seq < first - 1:
            return [*([self._gap(self._ring[0])] if seq else ()), *self._ring]
        return list(islice(self._ring, seq + 1 - first, None))

    async def wait(self, seq: int) -> None:
        """Return when there is a record with a larger number.  May be cancelled."""
        while self._last <= seq:
            self._grown.clear()
            await self._grown.wait()


class EventLog(Ring[EventRecord]):
    """What has happened in this supervisor."""

    def __init__(self) -> None:
        super().__init__(RING, _gap)
        self._listeners: list[Callable[[EventRecord], None]] = []

    def listen(self, listener: Callable[[EventRecord], None]) -> None:
        """Call listener with each event from now on; it must not raise and must not wait."""
        self._listeners.append(listener)

    def resume(self, records: list[EventRecord]) -> None:
        """Go on where an earlier one has ended: with what it remembered, and its numbers.  Before the first event."""
        if records:
            self._ring.extend(records)
            self._last = records[-1].seq

    def add(self, event: str, text: str, service: str = "", incarnation: int | None = None) -> None:
        record = EventRecord(self._last + 1, time.time(), service, incarnation, event, text)
        self.put(record)
        for listener in self._listeners:
            listener(record)


def _gap(first: EventRecord) -> EventRecord:
    """What a client is told that knows less than we remember; its number is one to go on from."""
    return EventRecord(first.seq - 1, first.time, "", None, "gap", "what happened before this is forgotten here")
