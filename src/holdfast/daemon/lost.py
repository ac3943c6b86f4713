"""What is left when a keeper was lost: found by what is held and by the marker, killed, and waited for.

The marks in the environment are a hint alone: programs overwrite them, and hand them on to what is not ours any
more.  So a process counts only if no keeper but our own anchor is above it: what another keeper holds is never
ours; nor is what is above ourselves.  Each is held by a pidfd before it is looked
at, and signalled through it.  What cannot be looked at (no descriptor left) counts as there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from holdfast.process import _native
from holdfast.process.held import HeldTree

from .processes import ancestors, name_of, stat

SIGKILL = 9
POLLIN = 1
LOST_LIMIT = 5.0  # seconds; how long the killing is repeated
PASS_PAUSE = 0.02
SURVIVORS_PAUSE = 1.0  # seconds between two looks at those that outlived it
KEEPER_NAME = "holdfast-keeper"


async def end_lost(marks: Mapping[str, str], anchor_pid: int | None, tree: HeldTree | None = None) -> int:
    """Kill what a lost keeper has left (what carries all of `marks`, what is held of `tree`) until nothing is found;
    how many survive.

    Bounded by LOST_LIMIT.  May be cancelled.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOST_LIMIT
    while True:
        left = _kill(marks, anchor_pid, tree)
        if not left or loop.time() > deadline:
            return left
        await asyncio.sleep(PASS_PAUSE)


async def await_survivors(marks: Mapping[str, str], anchor_pid: int | None, tree: HeldTree | None = None) -> None:
    """Return when those that `end_lost` has counted are gone.  May be cancelled."""
    while _kill(marks, anchor_pid, tree):
        await asyncio.sleep(SURVIVORS_PAUSE)


def _kill(marks: Mapping[str, str], anchor_pid: int | None, tree: HeldTree | None) -> int:
    """Once; how many were there, or may have been."""
    left = 0
    try:
        if tree is not None:
            tree.kill_held()
            held = [fd for fd in (tree.pidfd, *tree.members.values()) if fd >= 0]
            left = sum(not _native.poll(fd, POLLIN, 0) for fd in held)
        return left + _kill_pass({os.fsencode(f"{key}={value}") for key, value in marks.items()}, anchor_pid)
    except OSError:
        return left + 1


def _kill_pass(marks: set[bytes], anchor_pid: int | None) -> int:
    """One look over /proc; how many were there.  OSError: it could not be looked at."""
    found = 0
    above = {os.getpid(), *ancestors(os.getpid())}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) in above:
            continue
        pid = int(entry)
        try:
            pidfd = _native.pidfd_open(pid)
        except (ProcessLookupError, ValueError):
            continue
        try:
            if _is_marked(pid, marks) and (mine := _is_nobody_elses(pid, anchor_pid)) is not False:
                found += 1
                if mine:
                    _native.pidfd_signal(pidfd, SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # ended, or not ours to kill: then it is counted
        finally:
            os.close(pidfd)
    return found


def _is_marked(pid: int, marks: set[bytes]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    fields = stat(pid)
    return marks <= set(environ.split(b"\0")) and fields is not None and fields[0] not in (b"Z", b"X")


def _is_nobody_elses(pid: int, anchor_pid: int | None) -> bool | None:
    """None: one of those above it went while we looked, so nobody knows what is above that."""
    chain = ancestors(pid)
    if any(above != anchor_pid and name_of(above) == KEEPER_NAME for above in chain):
        return False
    return True if chain and chain[-1] <= 1 else None
