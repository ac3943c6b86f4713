"""One question to a service: does somebody listen, does it answer over HTTP, does a command find it well.

Goes in: a probe and a limit.  Comes out: an Answer, within the limit.  No state; for the loop's thread, never blocks.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from typing import NamedTuple

from holdfast.config.model import Probe, Service
from holdfast.config.probe_forms import UNIX, endpoint, target
from holdfast.engine.events import Exit

from .aside import AsideResult, run_aside
from .plan import Surroundings

HEAD_BYTES = 8192  # of an HTTP answer's first line
BODY_BYTES = 65536  # of what follows it are read, so that small servers see no connection that breaks
BODY_LIMIT = 0.25  # seconds for that
TEXT_MAX = 200  # characters of an answer that are shown
# No answer of the service's: we are out of something ourselves.
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}


class Answer(NamedTuple):
    """`well` None: it could not be asked, which says nothing of it."""

    well: bool | None
    text: str


async def ask(probe: Probe, limit: float, spec: Service, around: Surroundings, main_pid: int) -> Answer:
    """Ask once; `limit` is in seconds.  May be cancelled.  Raises nothing else."""
    if probe.kind == "command":
        env = {"MAINPID": str(main_pid)} if main_pid else {}
        return _of_command(await run_aside(spec, probe.command or (), env=env, timeout=limit, around=around), limit)
    try:
        async with asyncio.timeout(limit):
            return await (_connect(probe.tcp or "") if probe.kind == "tcp" else _get(probe.http or ""))
    except TimeoutError:
        return Answer(False, f"no answer within {limit:g}s")
    except (OSError, EOFError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        ours = number and not isinstance(error, socket.gaierror)  # who has numbers of its own
        text = os.strerror(number or 0) if ours else str(getattr(error, "strerror", None) or error)
        return Answer(None if number in OURS else False, shown(text))


async def _connect(address: str) -> Answer:
    if address.startswith(UNIX):
        _, writer = await asyncio.open_unix_connection(address.removeprefix(UNIX))
    else:
        _, writer = await asyncio.open_connection(*endpoint(address))
    # With nobody there, a port of the range that is given out to callers may be given to us: connected to ourselves.
    own = not address.startswith(UNIX) and writer.get_extra_info("sockname") == writer.get_extra_info("peername")
    writer.close()
    return Answer(False, os.strerror(errno.ECONNREFUSED)) if own else Answer(True, "connected")


async def _get(url: str) -> Answer:
    host, port, named, path = target(url)
    reader, writer = await asyncio.open_connection(host, port, limit=HEAD_BYTES)
    try:
        lines = (f"GET {path} HTTP/1.1", f"Host: {named}", "User-Agent: holdfast", "Accept: */*", "Connection: close")
        writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii"))
        line = (await reader.readline()).decode("latin-1").strip()
        found = re.fullmatch(r"HTTP/1\.[0-9] ([1-5][0-9][0-9])( .*)?", line)
        if not found:
            return Answer(False, shown(f"no HTTP answer: {line!r}" if line else "closed without an answer"))
        try:
            async with asyncio.timeout(BODY_LIMIT):
                left = BODY_BYTES
                while left > 0 and (data := await reader.read(left)):
                    left -= len(data)
        except (TimeoutError, OSError):
            pass
        return Answer(200 <= int(found[1]) < 400, shown(line.partition(" ")[2]))
    finally:
        writer.close()


def _of_command(result: AsideResult, limit: float) -> Answer:
    last = result.tail.rpartition("\n")[2]
    if result.timed_out:
        return Answer(False, shown(f"not done within {limit:g}s" + (f": {last}" if last else "")))
    if result.status is None:
        return Answer(None, shown(f"could not be asked: {last}"))
    how = Exit(result.status.code, result.status.signal, result.status.core_dumped).words
    return Answer(result.status.code == 0, shown(f"{how}: {last}" if last else how))


def shown(text: str) -> str:
    """It will be shown on somebody's terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:TEXT_MAX])
