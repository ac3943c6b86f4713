"""What a service says without being asked: a newline on a descriptor, a line of its output.

Both are files, so nothing is lost while no supervisor is there: the descriptor is one of a file of the incarnation in
the run directory, and where its output began stands in another.  Comes out: one word after another, by inotify.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator

from holdfast.config.model import Probe, Service
from holdfast.process.options import Plan

from .logs import BadCursor, LogReader
from .store import write_by_rename
from .watch import Watcher

HEARD = ("fd", "log")  # kinds
LINE_MAX = 8192  # characters of a line that are looked at
MARKER = "--- holdfast: "
READ_BYTES = 65536  # of the file are read at once; when so many are in it, it is emptied
PAUSE = 0.01  # seconds, then


def prepare(probe: Probe, path: str, log_path: str, plan: Plan) -> None:
    """Before a start: what the incarnation says from now on will be found by `path`.  OSError."""
    if probe.fd is not None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        plan.child_files.append(fd)
        plan.fds[plan.fds.index(probe.fd, 3)] = fd  # pass_fds has kept the place
    elif probe.log is not None:
        write_by_rename(path, LogReader(log_path).end().encode())


async def words(probe: Probe, path: str, log_path: str, spec: Service, watcher: Watcher) -> AsyncIterator[str]:
    """What it says, from the start of the incarnation on, for ever.  OSError.  May be cancelled."""
    if probe.fd is not None:
        async for word in _newlines(path, watcher):
            yield word
    else:
        async for word in _lines(re.compile(probe.log or ""), path, log_path, spec.log.timestamps, watcher):
            yield word


async def _newlines(path: str, watcher: Watcher) -> AsyncIterator[str]:
    with open(path, "r+b", buffering=0) as file, watcher.watching(os.path.dirname(path)) as changed:
        at = 0
        while not changed.gone:
            changed.clear()
            data = os.pread(file.fileno(), READ_BYTES, at)
            at += len(data)
            if at >= READ_BYTES:
                file.truncate(0)  # who writes on begins at 0 again: it does not grow while somebody listens
                at = 0
            if b"\n" in data:
                yield "a newline"
            if not data:
                await changed.wait()
            elif at == 0:
                await asyncio.sleep(PAUSE)  # it talks without end


async def _lines(
    pattern: re.Pattern[str], path: str, log_path: str, timestamps: bool, watcher: Watcher
) -> AsyncIterator[str]:
    reader = LogReader(log_path)
    try:
        with open(path) as file:
            cursor = file.read()
        reader.read(cursor)
    except (FileNotFoundError, BadCursor):
        cursor = reader.end()
    async for page in reader.follow(cursor, watcher):
        for entry in page.entries:
            text = (entry.text.partition(" ")[2] if timestamps else entry.text)[:LINE_MAX]
            if not text.startswith(MARKER) and pattern.search(text):
                yield text
