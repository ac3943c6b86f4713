"""Our ends of a process's pipes, as anyio's byte streams."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.lowlevel import checkpoint

from ..process.pump import CHUNK

if TYPE_CHECKING:
    from io import FileIO


class _End:
    """One end of a pipe, not blocking.  The other end is the process's and does not notice."""

    def __init__(self, file: FileIO, action: str) -> None:
        self._file = file
        self._guard = anyio.ResourceGuard(action)
        self._closed = False
        os.set_blocking(file.fileno(), False)

    def _fileno(self) -> int:
        if self._closed:
            raise anyio.ClosedResourceError
        return self._file.fileno()

    def retire(self) -> None:
        """Who uses it, at this moment or later, gets ClosedResourceError; the pipe stays open.  Idempotent."""
        if not self._closed:
            self._closed = True
            anyio.notify_closing(self._file.fileno())

    def close(self) -> None:
        """`retire`, and close the pipe.  Idempotent."""
        self.retire()
        self._file.close()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()
        await checkpoint()


class Sender(_End, ByteSendStream):
    """To the stdin of a process."""

    def __init__(self, file: FileIO) -> None:
        super().__init__(file, "writing to")

    async def send(self, item: bytes) -> None:
        """Write all of it.  BrokenResourceError: nobody reads any more.  Cancelled, a part of it may be written."""
        with self._guard:
            await checkpoint()
            rest = memoryview(item).cast("B")  # whose items are bytes: those of an array are not
            while True:
                fd = self._fileno()
                if not rest:
                    return
                try:
                    rest = rest[os.write(fd, rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(fd)
                except BrokenPipeError:
                    raise anyio.BrokenResourceError from None


class Receiver(_End, ByteReceiveStream):
    """From the stdout or stderr of a process."""

    def __init__(self, file: FileIO) -> None:
        super().__init__(file, "reading from")

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """What is there, and at least one byte.  EndOfStream: nobody has the other end any more.  Cancelled, it has
        taken nothing."""
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._guard:
            await checkpoint()
            while True:
                fd = self._fileno()
                try:
                    data = os.read(fd, max_bytes)
                except BlockingIOError:
                    await anyio.wait_readable(fd)
                    continue
                if not data:
                    raise anyio.EndOfStream
                return data
