"""One incarnation of one service: its held tree, and what is known of it beyond the engine's concern."""

from __future__ import annotations

import asyncio
import os

from holdfast.process import _native
from holdfast.process.held import HeldTree

from .processes import ancestors, stat

SIGKILL = 9
POLLIN = 1
LOST_LIMIT = 5.0  # seconds; how long the killing of a lost keeper's tree is repeated
PASS_PAUSE = 0.02


class Copy:
    """A service's process tree while it is held.  For the loop's thread."""

    def __init__(self, name: str, incarnation: int, tree: HeldTree, log_path: str) -> None:
        self.name = name
        self.incarnation = incarnation
        self.tree = tree
        self.log_path = log_path
        self.written = self.lost = self.dropped = self.log_error = 0
        self.main_pid = 0  # MAINPID= of sd_notify; 0: the process that was started
        self.status_text = ""  # STATUS= of sd_notify
        self.closed = False

    @property
    def pid(self) -> int | None:
        """The main process's number, for showing."""
        return self.main_pid or self.tree.pid or None

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.tree.close()


async def end_lost_tree(copy: Copy, anchor_pid: int | None) -> int:
    """Kill what a lost keeper has left, until nothing of it is found; the number of survivors.

    What is held: the main process, its group, what its keeper had adopted.  What is found: processes with the
    service's marker in their environment that have fallen to our anchor, or are in main's session:
    the marker alone is a hint, for programs overwrite it and others may carry it.  Each is held by a
    pidfd before it is looked at and signalled through that.  Bounded by LOST_LIMIT.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOST_LIMIT
    main = copy.tree.pid
    copy.tree.kill_held()
    while True:
        left = _kill_pass(copy, main, anchor_pid)
        held = [fd for fd in (copy.tree.pidfd, *copy.tree.members.values()) if fd >= 0]
        left += sum(not _native.poll(fd, POLLIN, 0) for fd in held)
        if not left or loop.time() > deadline:
            return left
        await asyncio.sleep(PASS_PAUSE)


def _kill_pass(copy: Copy, main: int, anchor_pid: int | None) -> int:
    """One look over /proc; how many were there."""
    marks = {b"HOLDFAST_SERVICE=" + os.fsencode(copy.name), b"HOLDFAST_INCARNATION=%d" % copy.incarnation}
    found = 0
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        pid = int(entry)
        try:
            pidfd = _native.pidfd_open(pid)
        except OSError:
            continue
        try:
            if _is_of(pid, main, marks, anchor_pid):
                found += 1
                _native.pidfd_signal(pidfd, SIGKILL)
        except OSError:
            pass
        finally:
            os.close(pidfd)
    return found


def _is_of(pid: int, main: int, marks: set[bytes], anchor_pid: int | None) -> bool:
    fields = stat(pid)
    if fields is None or fields[0] in (b"Z", b"X") or pid == os.getpid():
        return False
    session = int(fields[3])
    if not (main and session == main) and not (anchor_pid and anchor_pid in ancestors(pid)):
        return False
    if anchor_pid and pid == anchor_pid:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = set(file.read().split(b"\0"))
    except OSError:
        return False
    return marks <= environ
