"""What is left when a keeper was lost: found by what is held and by the marker, killed, and waited for.

The marker in the environment is a hint alone: programs overwrite it, and another supervisor's service may
have the same name and number.  So a process counts only if no keeper but our own anchor is above it: what
another keeper holds is never ours.  Each is held by a pidfd before it is looked at, and signalled through it.
"""

from __future__ import annotations

import asyncio
import os

from holdfast.process import _native
from holdfast.process.held import HeldTree

from .processes import ancestors, name_of, stat

SIGKILL = 9
POLLIN = 1
LOST_LIMIT = 5.0  # seconds; how long the killing is repeated
PASS_PAUSE = 0.02
KEEPER_NAME = "holdfast-keeper"


async def end_lost(name: str, incarnation: int, anchor_pid: int | None, tree: HeldTree | None = None) -> int:
    """Kill what a lost keeper has left (of `tree`, as far as it is held) until nothing is found; how many survive.

    Bounded by LOST_LIMIT.  May be cancelled.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOST_LIMIT
    marks = {b"HOLDFAST_SERVICE=" + os.fsencode(name), b"HOLDFAST_INCARNATION=%d" % incarnation}
    if tree is not None:
        tree.kill_held()
    while True:
        left = _kill_pass(marks, anchor_pid)
        if tree is not None:
            held = [fd for fd in (tree.pidfd, *tree.members.values()) if fd >= 0]
            left += sum(not _native.poll(fd, POLLIN, 0) for fd in held)
        if not left or loop.time() > deadline:
            return left
        await asyncio.sleep(PASS_PAUSE)


def _kill_pass(marks: set[bytes], anchor_pid: int | None) -> int:
    """One look over /proc; how many were there."""
    found = 0
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        pid = int(entry)
        try:
            pidfd = _native.pidfd_open(pid)
        except OSError:
            continue
        try:
            if _is_marked(pid, marks) and _is_nobody_elses(pid, anchor_pid):
                found += 1
                _native.pidfd_signal(pidfd, SIGKILL)
        except OSError:
            pass  # ended, or not ours to kill: then it is counted
        finally:
            os.close(pidfd)
    return found


def _is_marked(pid: int, marks: set[bytes]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except OSError:
        return False
    fields = stat(pid)
    return marks <= set(environ.split(b"\0")) and fields is not None and fields[0] not in (b"Z", b"X")


def _is_nobody_elses(pid: int, anchor_pid: int | None) -> bool:
    return not any(above != anchor_pid and name_of(above) == KEEPER_NAME for above in ancestors(pid))
