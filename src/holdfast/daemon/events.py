"""What has happened, numbered: for clients that follow, for the log, for the terminal."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from .status import EventRecord

RING = 8192  # events that a client which comes late can still read


class EventLog:
    """A ring of events with numbers that never come back.  For the loop's thread."""

    def __init__(self) -> None:
        self._ring: deque[EventRecord] = deque(maxlen=RING)
        # A supervisor that comes after this one shall count on: microseconds are more than its events.
        self._last = int(time.time() * 1000) * 1000
        self._grown = asyncio.Event()
        self._listeners: list[Callable[[EventRecord], None]] = []

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._last

    def listen(self, listener: Callable[[EventRecord], None]) -> None:
        """Call listener with each event from now on; it must not raise and must not wait."""
        self._listeners.append(listener)

    def resume(self, records: list[EventRecord]) -> None:
        """Go on where an earlier one has ended: with what it remembered, and its numbers.  Before the first event."""
        if records:
            self._ring.extend(records)
            self._last = records[-1].seq

    def add(self, event: str, text: str, service: str = "", incarnation: int | None = None) -> None:
        self._last += 1
        record = EventRecord(self._last, time.time(), service, incarnation, event, text)
        self._ring.append(record)
        for listener in self._listeners:
            listener(record)
        if not self._grown.is_set():
            self._grown.set()

    def after(self, seq: int) -> list[EventRecord]:
        """Those with larger numbers, oldest first.  Where some have been forgotten, `gap` stands in their place; 0 asks
        for all that are remembered, and is told of no gap."""
        if seq >= self._last or not self._ring:
            return []
        first = self._ring[0].seq
        if seq < first - 1:
            return [*([_gap(self._ring[0])] if seq else ()), *self._ring]
        return [self._ring[i] for i in range(seq + 1 - first, len(self._ring))]

    async def wait(self, seq: int) -> None:
        """Return when there is an event with a larger number.  May be cancelled."""
        while self._last <= seq:
            self._grown.clear()
            await self._grown.wait()


def _gap(first: EventRecord) -> EventRecord:
    """What a client is told that knows less than we remember; its number is one to go on from."""
    return EventRecord(first.seq - 1, first.time, "", None, "gap", "what happened before this is forgotten here")
