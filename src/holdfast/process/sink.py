"""What a process writes while it is stopped and nobody listens any more: it is read, and thrown away.

If its pipes were closed first, SIGPIPE would end it while it cleans up; if they were left full, it could not end.
"""

from __future__ import annotations

import os
import select
from time import monotonic

from .ear import Ear
from .handle import unbuffered
from .pump import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .handle import Process
    from .status import StopReport


class Sink:
    """A pump that keeps nothing.  One thread or task; another may still use the files, or close them."""

    def __init__(self, process: Process, poll: select.epoll) -> None:
        self._poll = poll
        self._files = {}
        for file in (process.stdout, process.stderr):
            raw = unbuffered(file)  # a thread that waits for bytes has the buffer's lock
            if raw is None:
                continue
            try:
                fd = raw.fileno()
                os.set_blocking(fd, False)  # that thread may be faster
                poll.register(fd, select.EPOLLIN)
            except (OSError, ValueError):
                continue  # closed by another thread
            self._files[fd] = raw

    def move(self, ready: Sequence[tuple[int, int]]) -> bool:
        """Read what is there; True when others than the pipes are ready, too."""
        others = False
        for fd, _ in ready:
            if fd not in self._files:
                others = True
                continue
            try:
                over = self._files[fd].read(CHUNK) == b""
            except (OSError, ValueError):
                over = True  # closed by another thread
            if over:
                del self._files[fd]
                try:
                    self._poll.unregister(fd)
                except OSError:
                    pass  # it went with the file
        return others


def stop_unheard(process: Process) -> StopReport:
    """`stop`, for one who reads no more."""
    tree = process._tree
    try:
        ear = Ear(tree)
    except OSError:  # no descriptors left
        return process.stop()
    try:
        sink = Sink(process, ear.epoll)
        stop_id, signo, scope, grace = process._begin_stop()
        deadline = monotonic() + grace + tree.stop_margin
        while True:
            ear.hush()
            tree.advance()
            left = deadline - monotonic()
            if tree.stopped(stop_id) or left <= 0:
                break
            ear.watch(main=not tree.overdue)
            sink.move(ear.epoll.poll(left))
    finally:
        ear.close()
    report = tree.finish_stop(stop_id, signo, scope, grace, waited=True)
    process._gave_up = not report.empty
    return report
