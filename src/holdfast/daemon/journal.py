"""The supervisor's own log: one line an event, on standard error.

On a terminal: local time, colours by meaning, names in a column, how long a start took, and only what says
something to somebody who looks on.  Elsewhere, as in `log_dir/holdfast.log`: everything, in UTC, and nothing
that a tool would have to take out again.  A thread writes: a terminal under Ctrl-S, or a pipe that nobody
reads, must not stop the supervisor.
"""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import threading
import time
from collections.abc import Mapping

from .status import EventRecord

GOOD = {"ready", "adopted", "completed", "reloaded"}
BAD = {"fatal", "error", "log_loss", "lost", "survived", "refused", "notify_refused", "stray", "reload_failed"}
MIND = {
    "backoff", "exited", "history", "stopping", "stopped", "ended", "waiting", "skipped", "outdated", "rolled_back",
}  # fmt: skip
STEPS = {"spawned", "emptied"}  # between two lines that say the same to a person who looks on
RESET, DIM, RED, GREEN, YELLOW = "\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
ROTATE_SIZE = 16 * 1024 * 1024  # of holdfast.log; one older file is kept
LINES_MAX = 10_000  # that wait to be written; further ones are counted, and the count is written when there is room
BATCH_DELAY = 0.01  # seconds from an event until it is written
CLOSE_LIMIT = 1.0  # seconds for the last lines


class Journal:
    """Writes events to a descriptor, and `path`'s file is begun anew when it has grown (None: it is no file).

    For the loop's thread; what cannot be written is lost, for there is nobody to tell.
    """

    def __init__(self, fd: int, environ: Mapping[str, str], width: int = 0, path: str | None = None) -> None:
        self._fd = fd
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._waiting: list[EventRecord] = []  # for the next batch
        self._batches: queue.SimpleQueue[tuple[list[EventRecord], int] | None] = queue.SimpleQueue()
        self._given = self._taken = 0  # records, by us and by the writer's thread
        self._missing = 0
        self._terminal = os.isatty(fd)
        self._colour = self._terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self._width = min(width, 32)
        self._starting: dict[str, float] = {}
        self._writer = threading.Thread(target=self._write_batches, name="journal", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what waits, within CLOSE_LIMIT."""
        self._hand_over()
        self._batches.put(None)
        self._writer.join(CLOSE_LIMIT)

    def event(self, record: EventRecord) -> None:
        if not self._waiting:
            self._loop.call_later(BATCH_DELAY, self._hand_over)
        self._waiting.append(record)

    def _hand_over(self) -> None:
        batch, self._waiting = self._waiting, []
        room = max(0, LINES_MAX - (self._given - self._taken))
        missing, self._missing = self._missing, max(0, len(batch) - room)
        del batch[room:]
        if batch:
            self._given += len(batch)
            self._batches.put((batch, missing))
        else:
            self._missing += missing

    # ---- the writer's thread

    def _write_batches(self) -> None:
        while (given := self._batches.get()) is not None:
            batch, missing = given
            lines = [f"holdfast: {missing} lines were not written: nobody took them"] if missing else []
            lines += filter(None, map(self._line, batch))
            if lines:
                self._write("\n".join(lines).encode("utf-8", "replace") + b"\n")
            self._taken += len(batch)
            del given, batch, lines  # the next may be long in coming

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            if self._path and os.fstat(self._fd).st_size >= ROTATE_SIZE:
                self._rotate(self._path)
        except OSError:
            pass  # the terminal is gone, or the disk is full

    def _line(self, record: EventRecord) -> str:
        text = record.text
        if record.event == "starting":
            self._starting[record.service] = record.time
        elif record.event in ("ready", "completed"):
            began = self._starting.pop(record.service, None)
            if began is not None:
                text = f"{text}, {_duration(record.time - began)} after its start".removeprefix(", ")
        elif record.event in ("ended", "fatal", "stopped", "backoff"):
            self._starting.pop(record.service, None)
        if self._terminal and record.event in STEPS:
            return ""
        who = record.service
        if who and record.incarnation:
            who += f"@{record.incarnation}"
        event = record.event.replace("_", " ")
        if not self._terminal:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.time))
            line = f"{stamp}.{int(record.time % 1 * 1000):03d}Z {who or 'holdfast'} {event}: {text}".rstrip(": ")
        else:
            stamp = time.strftime("%H:%M:%S", time.localtime(record.time))
            colour = GREEN if record.event in GOOD else RED if record.event in BAD else ""
            colour = colour or (YELLOW if record.event in MIND else "")
            mark, dim, end = (colour, DIM, RESET) if self._colour else ("", "", "")
            end_mark = end if mark else ""
            line = f"{dim}{stamp}{end} {who or 'holdfast':<{self._width + 5}} {mark}{event:<10}{end_mark} {text}"
        return line.rstrip()

    def _rotate(self, path: str) -> None:
        """Copied and emptied, not renamed: the anchor writes into the same file, and so will the next supervisor."""
        new = path + ".1.new"
        try:
            with open(path, "rb") as source, open(new, "wb", opener=_privately) as copy:
                shutil.copyfileobj(source, copy)
        except OSError:
            os.unlink(new)  # no room for two: it grows on, and the next line tries again
            raise
        os.rename(new, path + ".1")
        os.ftruncate(self._fd, 0)


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
