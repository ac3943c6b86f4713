"""Which threads of this process have SIGCHLD blocked: who takes it decides who can be told by it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

SIGCHLD: int = _signal.SIGCHLD


def blocked() -> list[bool]:
    """One for each thread.  Without /proc: for the calling one."""
    result = []
    try:
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/status", "rb") as file:
                    mask = file.read().partition(b"\nSigBlk:")[2].partition(b"\n")[0]
            except OSError:
                continue  # it has ended meanwhile
            result.append(bool(int(mask, 16) >> SIGCHLD - 1 & 1))
    except (OSError, ValueError):
        result = []
    return result or [SIGCHLD in _signal.pthread_sigmask(_signal.SIG_BLOCK, [])]
