"""Answers that take their time: server-sent events, and commands that wait.  They end when the client goes or we do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec
from msgspec import structs
from starlette.types import Receive, Scope, Send

from holdfast.daemon.events import Numbered
from holdfast.daemon.logs import LogReader, ServicePage
from holdfast.daemon.status import LineageRecord
from holdfast.daemon.watch import Watcher

from .errors import Refusal, explain
from .seam import Records

STALL_LIMIT = 600  # seconds that the client of a stream may not read: a pager that waits for its user is no fault
EVENTS_AT_ONCE = 100
RETRY = 1000  # ms until a client that comes back by itself does so
T = TypeVar("T")

# One event in its own words, and the id that a client goes on from.
Source = AsyncGenerator[bytes, None]


def message(ident: object, data: object) -> bytes:
    return b"id: %s\n" % str(ident).encode() + message_alone(data)


def message_alone(data: object) -> bytes:
    """One that no client comes back to by its id."""
    return b"data: %s\n\n" % msgspec.json.encode(data)


async def events_after(events: Records[Numbered], seq: int) -> Source:
    """Every event with a larger number, as it happens."""
    while True:
        records = events.after(seq)[:EVENTS_AT_ONCE]
        if records:
            seq = records[-1].seq
            yield b"".join(message(record.seq, record) for record in records)
        else:
            await events.wait(seq)


async def lineage_after(
    following: AbstractContextManager[tuple[Records[LineageRecord], str]], after: int | None
) -> Source:
    """Who tells, then every record with a larger number (None: from now on), as it comes."""
    with following as (records, source):
        seq = records.last if after is None else after if after <= records.last else -1
        yield message(seq, LineageRecord(seq, time.time(), None, "source", None, "", None, None, source))
        async for text in events_after(records, seq):
            yield text


async def log_after(reader: LogReader, cursor: str | None, watcher: Watcher, streams: tuple[str, ...]) -> Source:
    """Every page of a log, as it grows."""
    pages = reader.follow(cursor, watcher, streams)
    try:
        async for page in pages:
            yield message(page.cursor, page)
    finally:
        await pages.aclose()  # type: ignore[attr-defined]


async def logs_after(
    readers: Mapping[str, tuple[LogReader, str | None]], watcher: Watcher, streams: tuple[str, ...]
) -> Source:
    """The same of several logs.  One that cannot be read ends all."""
    came: asyncio.Queue[bytes | Exception] = asyncio.Queue(1)  # who is not read waits with the page in hand

    async def follow(name: str, reader: LogReader, cursor: str | None) -> None:
        pages = reader.follow(cursor, watcher, streams)
        try:
            async for page in pages:
                await came.put(message_alone(ServicePage(**structs.asdict(page), service=name)))
        except Exception as error:
            await came.put(error)
        finally:
            await pages.aclose()  # type: ignore[attr-defined]

    tasks = [asyncio.ensure_future(follow(name, *each)) for name, each in readers.items()]
    try:
        while True:
            each = await came.get()
            if isinstance(each, Exception):
                raise each
            yield each
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Ending(asyncio.Event):
    """Set when the server ends; `refusal` is why, for those who wait for more."""

    upgrading = False

    @property
    def refusal(self) -> Refusal:
        if self.upgrading:
            return Refusal("upgrading", "the supervisor makes way for its next version", "ask that")
        return Refusal("stopping", "the supervisor ends")


async def attended(work: Coroutine[Any, Any, T], receive: Receive, stop: Ending) -> T | None:
    """The result of work; None when the client goes first.  When we do, the Refusal of `stop`; work is cancelled."""
    doing = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(receive))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, going, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if going.done():
            return None
        raise stop.refusal
    finally:
        for each in (doing, going, stopped):
            each.cancel()
        await asyncio.gather(doing, going, stopped, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response of server-sent events.  Its last one, `end`, says why it ends, unless the client went."""

    def __init__(self, source: Source, stop: Ending) -> None:
        self.source = source
        self.stop = stop
        self._opening = b"retry: %d\n" % RETRY

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # After a stream comes nothing: how it ends is seen by its last event.
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"connection", b"close")]
        scope["holdfast.connection"].begin_stream(STALL_LIMIT)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        last = b""
        try:
            if scope["method"] != "HEAD":
                await attended(self._pump(send), receive, self.stop)
        except Exception as error:
            last = explain(error).end
        finally:
            await self.source.aclose()
        # What a client that does not read has not taken is in the way; the last word goes behind it all the same.
        scope["holdfast.connection"].unblock()
        await send({"type": "http.response.body", "body": last and self._opened(last), "more_body": False})

    async def _pump(self, send: Send) -> None:
        async for text in self.source:
            await _in_time(send({"type": "http.response.body", "body": self._opened(text), "more_body": True}))

    def _opened(self, text: bytes) -> bytes:
        """The first event says, too, when to come back: in it, for one without data would be none."""
        text, self._opening = self._opening + text, b""
        return text


async def _in_time(sending: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(STALL_LIMIT):
            await sending
    except TimeoutError:
        raise Refusal("too_slow", f"nothing was read for {STALL_LIMIT} seconds", "read on from the last id") from None
