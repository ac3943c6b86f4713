"""Feeding stdin and draining stdout and stderr while a process runs, in one poll loop, without threads."""

from __future__ import annotations

import io
import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .descriptor import Descriptor
    from .handle import Process
    from .keeper import Keeper
    from .status import Seconds

CHUNK = 65536  # a pipe's default capacity


class Pump:
    """Moves bytes for one process.  One thread; may be driven again after a time limit."""

    def __init__(self, process: Process, input: bytes | None, poll: select.poll | select.epoll | None = None) -> None:
        if input is not None and process.stdin is None:
            raise ValueError("input needs stdin=PIPE")
        self._process = process
        self._input = memoryview(input or b"").cast("B")
        self._read_so_far = {1: io.BytesIO(), 2: io.BytesIO()}  # grown in place; joining a list copies all once more
        self._readers: dict[int, int] = {}  # descriptor -> 1 or 2
        self._poll = poll or select.poll()  # an epoll, to be waited for by a loop, which then calls `move`
        for which, file in ((1, process.stdout), (2, process.stderr)):
            if file is not None and not file.closed:
                self._readers[file.fileno()] = which
                self._poll.register(file.fileno(), select.POLLIN)
        self._stdin = -1
        if process.stdin is not None and not process.stdin.closed:
            if self._input:
                self._stdin = process.stdin.fileno()
                os.set_blocking(self._stdin, False)
                self._poll.register(self._stdin, select.POLLOUT)
            else:
                self._close_stdin()

    def output(self, which: int) -> bytes:
        """What was read so far of 1 (stdout) or 2 (stderr)."""
        return self._read_so_far[which].getvalue()

    @property
    def _busy(self) -> bool:
        """Input counts too: who reads it may have closed its outputs, or never had any to give."""
        return bool(self._readers) or self._stdin >= 0

    def until_ended(self, timeout: Seconds | None) -> bool:
        """Until the input is written, both outputs are at their end and the process has ended; False at the limit."""
        deadline = None if timeout is None else monotonic() + timeout
        tree = self._process._tree
        while self._busy:
            lifeline = tree.lifeline
            tree.check()  # under a lost keeper an escaped grandchild may hold the pipes for ever
            if not self.until(lambda: not self._busy or bool(lifeline and not tree.lifeline), lifeline, deadline):  # noqa: B023
                return False
        left = None if deadline is None else max(0.0, deadline - monotonic())
        return self._process._tree.wait_exit(left)

    def until(
        self, done: Callable[[], object], voices: Sequence[Keeper | Descriptor], deadline: float | None
    ) -> bool:
        """Move bytes until done(); one of `voices` readable: we look again.  False at the deadline."""
        if not voices:
            return self._until(done, deadline)
        with voices[0] as fd:
            if fd < 0:
                return self.until(done, voices[1:], deadline)
            self._poll.register(fd, select.POLLIN)
            try:
                return self.until(done, voices[1:], deadline)
            finally:
                self._poll.unregister(fd)

    def _until(self, done: Callable[[], object], deadline: float | None) -> bool:
        while not done():
            left = None
            if deadline is not None:
                left = (deadline - monotonic()) * 1000
                if left <= 0:
                    return False
                left = min(left, 1e9) + 0.999  # poll counts whole milliseconds in an int: round up, never spin
            self.move(self._poll.poll(left))
        return True

    def move(self, ready: Sequence[tuple[int, int]]) -> bool:
        """Move bytes where there is room or something to read; True when others than the pipes are ready, too."""
        others = False
        for fd, event in ready:
            if fd == self._stdin:
                self._write(event)
            elif fd in self._readers:
                self._read(fd)
            else:
                others = True
        return others

    def drain(self) -> None:
        """Read what is there now and stop: somebody outside the tree may hold a pipe open for ever."""
        for fd in list(self._readers):
            os.set_blocking(fd, False)
            while fd in self._readers and self._read(fd):
                pass

    def _read(self, fd: int) -> bool:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._poll.unregister(fd)
            del self._readers[fd]
            return False
        self._read_so_far[self._readers[fd]].write(data)
        return True

    def _write(self, event: int) -> None:
        if event & (select.POLLERR | select.POLLHUP):
            self._close_stdin()
            return
        try:
            written = os.write(self._stdin, self._input[:CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._close_stdin()
            return
        self._input = self._input[written:]
        if not self._input:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._poll.unregister(self._stdin)
            self._stdin = -1
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
