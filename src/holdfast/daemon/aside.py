"""A short command beside a service: as the service's own program in all that it inherits, and bounded in every respect.

It has a keeper of its own, so what it leaves is stopped with it, and all of it is killed should the supervisor die.
What the library waits for (an exec, the end of a stop) is waited for in a thread; its end and its output, in the loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from holdfast.config.model import Service
from holdfast.process.errors import KeeperLost
from holdfast.process.handle import Process
from holdfast.process.options import PIPE, STDOUT
from holdfast.process.spawn import spawn
from holdfast.process.status import ExitStatus

from .plan import Surroundings, around_service

TAIL_BYTES = 2048  # of the output are kept, the last ones
READ_BYTES = 65536  # read at once
READ_PAUSE = 0.01  # seconds between two reads: a command that writes without end has no more than so much of us
READS_AFTER = 16  # of what is in the pipe when all have ended
STOP_GRACE = 1.0  # seconds between TERM and KILL, for one that is late and for what a command leaves


class AsideResult(NamedTuple):
    """How a command went.  `tail` is the end of its output; or, with neither a status nor `timed_out`, why it could not
    be started or is not known."""

    status: ExitStatus | None
    timed_out: bool
    tail: str


async def run_aside(
    spec: Service,
    command: Sequence[str] | str,
    *,
    env: Mapping[str, str],
    timeout: float,
    around: Surroundings,
) -> AsideResult:
    """Run a command as the service runs: its user, groups, directory, environment (and `env`), umask, limits.

    `command` is a list of words, or a text for /bin/sh -c.  `timeout` is in seconds; at the limit its tree is stopped.
    Returns when nothing of it is left: STOP_GRACE and the time of a KILL after the limit, at most.  When this is
    cancelled the tree is killed.  Raises nothing.  For the loop's thread, which it does not block.
    """
    loop = asyncio.get_running_loop()
    starting = loop.run_in_executor(None, _start, spec, command, env, around)
    process = None
    timed_out = False
    output = _Output()
    try:
        try:
            async with asyncio.timeout(timeout):
                process = await asyncio.shield(starting)
                output.take(process)
                await _ended(process)
        except TimeoutError:
            timed_out = True
        except Exception as error:  # whatever it is: it could not be started
            return AsideResult(None, False, str(error))
        if process is None:
            return AsideResult(None, True, "")
        status, why = await loop.run_in_executor(None, _end, process)
        output.drain()
        return AsideResult(None if timed_out else status, timed_out, output.text() or why)
    finally:
        output.close()
        if process is None:
            starting.add_done_callback(_give_up)  # its exec takes longer than we wait
        elif not process._closed:
            _drop(process)


def _start(spec: Service, command: Sequence[str] | str, env: Mapping[str, str], around: Surroundings) -> Process:
    options = around_service(spec, around)
    options["env"] |= {"HOLDFAST_SERVICE": spec.name, **env}
    return spawn(
        command, shell=isinstance(command, str), stdout=PIPE, stderr=STDOUT, on_owner_loss="kill", stop_scope="tree",
        grace=STOP_GRACE, **options,
    )  # fmt: skip


def _end(process: Process) -> tuple[ExitStatus | None, str]:
    """Stop what is left of it.  In a thread."""
    try:
        status = process.poll()
        process.close()
    except KeeperLost as error:
        return None, str(error)
    return status, ""


def _give_up(starting: asyncio.Future[Process]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        _drop(starting.result())


def _drop(process: Process) -> None:
    """Nobody waits for it any more: to its keeper we are lost, and it kills what there is."""
    process._closed = True
    process._close_files()
    process._tree.drop()


async def _ended(process: Process) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    fd = process.fileno()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)


class _Output:
    """Reads a command's output, and keeps the end of it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._file: IO[bytes] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._tail = b""

    def take(self, process: Process) -> None:
        self._file, process.stdout = process.stdout, None
        assert self._file is not None
        os.set_blocking(self._file.fileno(), False)
        self._listen()

    def _listen(self) -> None:
        assert self._file is not None
        self._pause = None
        self._loop.add_reader(self._file.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        self._mute()
        if self._read():
            self._pause = self._loop.call_later(READ_PAUSE, self._listen)

    def _read(self) -> bool:
        """False: nothing is there, or nothing will come any more."""
        assert self._file is not None
        try:
            data = os.read(self._file.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        return bool(data)

    def _mute(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._file is not None:
            self._loop.remove_reader(self._file.fileno())

    def drain(self) -> None:
        self._mute()
        for _ in range(READS_AFTER):
            if not self._read():
                break

    def text(self) -> str:
        """It will be shown on somebody's terminal: what is no text is marked, but for the ends of lines."""
        text = self._tail.decode("utf-8", "replace").strip()
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in text.replace("\t", " "))

    def close(self) -> None:
        self._mute()
        if self._file is not None:
            self._file.close()
            self._file = None
