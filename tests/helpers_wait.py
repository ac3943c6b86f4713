"""The one place where a test looks again and again: for facts of /proc and of the kernel that no descriptor announces.

What has a descriptor is waited for on it: ends on pidfds (`all_ended`), words on pipes and sockets, files by inotify.
"""

from __future__ import annotations

import os
import select
import time

LIMIT = 15.0  # a guard against hangs on a loaded machine, never a measure
PAUSE = 0.005


def eventually(look, limit: float = 10.0):
    """What look() answers once that is true, or at the limit."""
    deadline = time.monotonic() + limit
    while not (value := look()) and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return value


def wait_for(look, limit: float = LIMIT, what: object = ""):
    """As `eventually`, and a failure when it does not come true; `what` says what (or makes the text)."""
    value = eventually(look, limit)
    assert value, f"not within {limit} s: {what() if callable(what) else what or look}"
    return value


def all_ended(pids, limit: float = LIMIT) -> bool:
    """Wait on the pidfds of processes; whether all have ended.  One that is gone already counts as ended."""
    deadline = time.monotonic() + limit
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
        finally:
            os.close(fd)
    return True
