"""Reads what keepers write: a service's log from a place on, its last lines, and what is being added.

A stream is a row of files: `00000001`, `00000002`, ... and `current` (`stderr.00000001`, ... and `stderr`).  At its
rotation `current` gets the next number, so every byte has one address for ever: NUMBER:OFFSET.  Nothing is
kept open between two reads and nothing is remembered but that address: a reader costs nothing while it waits, and a
client may go on with it after days, at another supervisor.

A line is given when its end has been written.  A line that has none is given all the same, marked `partial`, when
nothing has been added for QUIET seconds (a prompt, the last words of a service that ended), when its file is
complete, or in pieces when it is longer than LINE_MAX.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated

import msgspec

from .status import means
from .watch import Watcher

STREAMS = ("stdout", "stderr")  # where both are written to one file, it is called stdout
LINE_MAX = 65536  # bytes; longer lines are given in pieces
PAGE_BYTES = 262144  # read from each stream for one page; more than LINE_MAX, so that a page always gets on
PAGE_LINES_MAX = 5000
TAIL_BYTES_MAX = 16777216  # that a search for the last lines looks through
QUIET = 1.0  # seconds
PACE = 0.01  # seconds between two pages of a follower: a busy log comes in pieces, not line by line
_BLOCK = 65536
_LAST = 10**15  # a number that no file reaches: means the live one
_TRIES = 8  # rotations that may happen while one file is being opened


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a log."""

    stream: Annotated[str, means("`stdout` or `stderr`")]
    text: Annotated[str, means("without its end")]
    partial: Annotated[bool, means("it goes on in the next entry of the same stream")] = False


class Page(msgspec.Struct, frozen=True):
    """A piece of a log."""

    entries: list[Entry]
    cursor: Annotated[str, means("where the next piece begins")]
    more: Annotated[bool, means("that is there already")]
    missing_files: Annotated[int, means("that were removed before they could be read; what was in them nobody knows")]


class ServicePage(Page, frozen=True):
    """A piece of the log of one of several services."""

    service: Annotated[str, means("whose")]


class BadCursor(ValueError):
    """A cursor that no page has had, or one of another choice of streams."""


class LogReader:
    """The log of one service.  Any thread; `follow` in a loop's."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def read(self, cursor: str | None, streams: Sequence[str] = STREAMS) -> Page:
        """What comes after `cursor`; None: from the oldest file on.  OSError; BadCursor."""
        places = _parse(cursor, streams) if cursor is not None else [(0, 0)] * len(streams)
        return self._page(places, streams)[0]

    def check(self, cursor: str, streams: Sequence[str] = STREAMS) -> None:
        """BadCursor, where it is none for these streams."""
        _parse(cursor, streams)

    def tail(self, lines: int, streams: Sequence[str] = STREAMS) -> str:
        """The cursor before the last `lines` of each stream; fewer where they lie more than TAIL_BYTES_MAX back."""
        return _text(_Files(self.directory, stream).tail(lines) for stream in streams)

    def end(self, streams: Sequence[str] = STREAMS) -> str:
        """The cursor behind all that is there now, an unfinished line included.  OSError."""
        return _text(_Files(self.directory, stream).end() for stream in streams)

    async def follow(
        self, cursor: str | None, watcher: Watcher, streams: Sequence[str] = STREAMS
    ) -> AsyncIterator[Page]:
        """What comes after `cursor`, and then what is added, for ever.  OSError; BadCursor.  May be cancelled."""
        places = _parse(cursor, streams) if cursor is not None else [(0, 0)] * len(streams)
        while True:
            # Before the first start there is no directory; and should it be removed, the watch goes with it.
            os.makedirs(self.directory, 0o750, exist_ok=True)
            with watcher.watching(self.directory) as changed:
                while not changed.gone:
                    changed.clear()  # before the read: what is written after it sets it again
                    page, places, held_back = self._page(places, streams)
                    if page.entries or page.missing_files:
                        yield page
                        await asyncio.sleep(0 if page.more else PACE)
                    if not page.more:
                        try:
                            await asyncio.wait_for(changed.wait(), QUIET if held_back else None)
                        except TimeoutError:
                            pass
            places = [(0, 0)] * len(streams)  # what comes now are other files

    def _page(
        self, places: Sequence[tuple[int, int]], streams: Sequence[str]
    ) -> tuple[Page, list[tuple[int, int]], bool]:
        """A page, where it ends, and whether there is the beginning of a line that is not given yet."""
        entries: list[Entry] = []
        ends: list[tuple[int, int]] = []
        more = held_back = False
        missing = 0
        for stream, place in zip(streams, places, strict=True):
            part = _Files(self.directory, stream).read(place)
            entries += part.entries
            ends.append(part.end)
            more |= part.more
            held_back |= part.held_back
            missing += part.missing
        return Page(entries, _text(ends), more, missing), ends, held_back


class _Part(msgspec.Struct):
    """What one stream gives to a page."""

    end: tuple[int, int]
    entries: list[Entry] = []
    more: bool = False
    held_back: bool = False
    missing: int = 0


class _Files:
    """The files of one stream."""

    def __init__(self, directory: str, stream: str) -> None:
        self.directory = directory
        self.stream = stream
        self.live_name, self.prefix = ("current", "") if stream == "stdout" else ("stderr", "stderr.")

    def numbers(self) -> list[int]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        size = len(self.prefix)
        return sorted(
            int(name[size:])
            for name in names
            if name.startswith(self.prefix) and name[size:].isdecimal() and len(name) >= size + 8
        )

    def open(self, number: int) -> tuple[int, int, bool, int]:
        """Open the file with that number, or the next one that is still there.

        Its number, a descriptor (-1: not written yet), whether it is complete, and how many were skipped.
        """
        for _ in range(_TRIES):
            numbers = self.numbers()
            live = numbers[-1] + 1 if numbers else 1
            found = next((each for each in numbers if each >= number), live)
            if found < live:
                # 0 is no file's number, but means the oldest: then nothing is missing.
                skipped = found - number if number else 0
                try:
                    fd = self._open(f"{self.prefix}{found:08d}")
                except FileNotFoundError:
                    continue  # expired meanwhile
                return found, fd, True, skipped
            try:
                fd = self._open(self.live_name)
            except FileNotFoundError:
                if self.numbers() == numbers:
                    return live, -1, False, 0
                continue  # rotated meanwhile: the new one comes at once
            # Numbers only grow: had it been rotated before we opened it, a new number would be there now.
            if self.numbers()[-1:] == numbers[-1:]:
                return live, fd, False, 0
            os.close(fd)
        return number, -1, False, 0  # rotated again and again: the next read will find it

    def _open(self, name: str) -> int:
        return os.open(os.path.join(self.directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, place: tuple[int, int]) -> _Part:
        number, offset = place
        found, fd, complete, skipped = self.open(number)
        if found != number:
            offset = 0
        part = _Part((found, offset), missing=skipped)
        if fd < 0:
            return part
        try:
            data = os.pread(fd, PAGE_BYTES, offset)
            status = os.fstat(fd)  # after the read, so that "quiet" is true of all that was read
        finally:
            os.close(fd)
        if offset > status.st_size:  # not the file that this cursor was made for: the log was removed
            return _Part((found, 0), more=True, missing=skipped)
        at_end = offset + len(data) >= status.st_size
        quiet = not 0 <= time.time() - status.st_mtime < QUIET  # a clock that was set back must not hide it
        used = self._split(part, data, give_rest=at_end and (complete or quiet))
        offset += used
        if complete and at_end and used == len(data):
            part.end, part.more = (found + 1, 0), True
        else:
            part.end = found, offset
            part.more = not at_end or part.more
            part.held_back = not part.more and used < len(data)
        return part

    def _split(self, part: _Part, data: bytes, give_rest: bool) -> int:
        """Make entries of data; how many bytes of it they are."""
        at = 0
        while at < len(data):
            if len(part.entries) == PAGE_LINES_MAX:
                part.more = True
                return at
            end = data.find(b"\n", at, at + LINE_MAX + 1)
            if end >= 0:
                part.entries.append(Entry(self.stream, _decode(data[at:end])))
                at = end + 1
            elif len(data) - at > LINE_MAX:
                cut = _cut(data, at, at + LINE_MAX)
                part.entries.append(Entry(self.stream, _decode(data[at:cut]), True))
                at = cut
            else:
                if give_rest:
                    part.entries.append(Entry(self.stream, _decode(data[at:]), True))
                    at = len(data)
                break
        return at

    def end(self) -> tuple[int, int]:
        number, fd, _, _ = self.open(_LAST)
        if fd < 0:
            return number, 0
        try:
            return number, os.fstat(fd).st_size
        finally:
            os.close(fd)

    def tail(self, lines: int) -> tuple[int, int]:
        """Where the last lines begin.  What is at the end without an end of line counts as one, too."""
        number, fd, _, _ = self.open(_LAST)
        budget = TAIL_BYTES_MAX
        while True:
            if fd >= 0:
                try:
                    lines, offset, budget = _back(fd, lines, budget)
                finally:
                    os.close(fd)
                if offset >= 0:
                    return number, offset
            older = [each for each in self.numbers() if each < number]
            if not older:
                return number, 0
            try:
                fd = self._open(f"{self.prefix}{older[-1]:08d}")
            except FileNotFoundError:
                return number, 0  # expired meanwhile
            number = older[-1]


def _back(fd: int, lines: int, budget: int) -> tuple[int, int, int]:
    """Where the last `lines` of a file begin, -1 if it has fewer; how many are wanted still, bytes still allowed."""
    size = at = os.fstat(fd).st_size
    if size == 0:
        return lines, 0 if lines == 0 else -1, budget
    # The last line's own end is none before which another begins.
    newlines = max(1, lines + (os.pread(fd, 1, size - 1) == b"\n"))
    while at > 0:
        start = max(0, at - _BLOCK)
        block = os.pread(fd, at - start, start)
        count = block.count(b"\n")
        if count >= newlines:
            end = len(block)
            for _ in range(newlines):
                end = block.rfind(b"\n", 0, end)
            return 0, start + end + 1, budget
        newlines -= count
        at = start
        budget -= len(block)
        if budget <= 0 and at > 0:
            end = block.find(b"\n")
            return 0, start + end + 1, 0
    # The beginning of the file begins a line.
    return newlines - 1, 0 if newlines == 1 or budget <= 0 else -1, budget


def _cut(data: bytes, start: int, end: int) -> int:
    """`end`, or a little before it, so that no UTF-8 character is cut in two."""
    for at in range(end, max(start + 1, end - 4), -1):
        if data[at] & 0xC0 != 0x80:
            return at
    return end


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _parse(cursor: str, streams: Sequence[str]) -> list[tuple[int, int]]:
    parts = cursor.split(",")
    if len(parts) != len(streams) or not all(re.fullmatch(r"[0-9]{1,15}:[0-9]{1,15}", part) for part in parts):
        raise BadCursor(f"not a cursor for {' and '.join(streams)}: {cursor[:80]!r}")
    return [(int(number), int(offset)) for number, _, offset in (part.partition(":") for part in parts)]


def _text(places: Iterable[tuple[int, int]]) -> str:
    return ",".join(f"{number}:{offset}" for number, offset in places)
