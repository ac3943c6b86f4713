"""The supervisor's own log: one line an event, on standard error.

On a terminal: local time, colours by meaning, names in a column, how long a start took.  Elsewhere, as
in `log_dir/holdfast.log`: UTC and nothing that a tool would have to take out again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from .status import EventRecord

GOOD = {"ready", "adopted", "completed"}
BAD = {"fatal", "error", "log_loss", "lost", "survived", "refused", "notify_refused", "stray"}
MIND = {"backoff", "exited", "stopping", "stopped", "ended", "waiting"}
RESET, DIM, RED, GREEN, YELLOW = "\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
ROTATE_SIZE = 16 * 1024 * 1024  # of holdfast.log; one older file is kept


class Journal:
    """Writes events to a descriptor; what cannot be written is lost silently, for there is nobody to tell."""

    def __init__(self, fd: int, environ: Mapping[str, str], width: int = 0) -> None:
        self._fd = fd
        self._terminal = os.isatty(fd)
        self._colour = self._terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self._width = min(width, 32)
        self._starting: dict[str, float] = {}

    def event(self, record: EventRecord) -> None:
        text = record.text
        if record.event == "spawned":
            self._starting.setdefault(record.service, record.time)
        elif record.event in ("ready", "completed"):
            began = self._starting.pop(record.service, None)
            if began is not None:
                text += f" after {_duration(record.time - began)}"
        elif record.event in ("exited", "fatal", "stopped"):
            self._starting.pop(record.service, None)
        self._write(record, text)

    def _write(self, record: EventRecord, text: str) -> None:
        who = record.service
        if who and record.incarnation:
            who += f"@{record.incarnation}"
        event = record.event.replace("_", " ")
        if not self._terminal:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.time))
            line = f"{stamp}.{int(record.time % 1 * 1000):03d}Z {who or 'holdfast'} {event}: {text}"
        else:
            stamp = time.strftime("%H:%M:%S", time.localtime(record.time))
            colour = GREEN if record.event in GOOD else RED if record.event in BAD else ""
            colour = colour or (YELLOW if record.event in MIND else "")
            mark, dim, end = (colour, DIM, RESET) if self._colour else ("", "", "")
            end_mark = end if mark else ""
            line = f"{dim}{stamp}{end} {who or 'holdfast':<{self._width + 5}} {mark}{event:<10}{end_mark} {text}"
        self.line(line)

    def line(self, text: str) -> None:
        try:
            os.write(self._fd, text.rstrip().encode("utf-8", "replace") + b"\n")
        except OSError:
            pass  # the terminal is gone, or the disk is full

    def rotate(self, path: str) -> None:
        """When the detached supervisor's log has grown past ROTATE_SIZE: rename it, go on in a new one."""
        try:
            if os.fstat(self._fd).st_size < ROTATE_SIZE:
                return
            os.replace(path, path + ".1")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            os.dup2(fd, self._fd)
            os.close(fd)
        except OSError:
            pass


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
