"""What lives below the driver, and the one way in which it signals anything."""

from __future__ import annotations

import os
import select
import signal

KEEPER = "holdfast-keeper"


def stat(pid: int) -> tuple[str, list[str]] | None:
    """Name, and what follows it in /proc/PID/stat: state, parent, ..., start time at [19]."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            head, _, rest = file.read().rpartition(")")
    except OSError:
        return None
    return head.partition("(")[2], rest.split()


def start_time(pid: int) -> int | None:
    """None when it has ended, reaped or not."""
    found = stat(pid)
    return None if found is None or found[1][0] in "ZX" else int(found[1][19])


def parent(pid: int) -> int:
    found = stat(pid)
    return int(found[1][1]) if found else 0


def is_keeper(pid: int) -> bool:
    found = stat(pid)
    return found is not None and found[0] == KEEPER


def command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def descends(pid: int) -> bool:
    """Whether it is below us."""
    for _ in range(256):
        pid = parent(pid)
        if pid == os.getpid():
            return True
        if pid <= 1:
            return False
    return False


def send(pid: int, signo: int, start: int | None = None, *, wait: float = 0.0) -> bool:
    """Signal a process below us, through a pidfd that was opened before that was checked; False: it is gone.

    `start`: its start time, where it is known.  `wait`: seconds until it has ended, after a SIGKILL.
    """
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        return False
    try:
        if not descends(pid) or (start is not None and start_time(pid) != start):
            return False
        signal.pidfd_send_signal(fd, signo)
        if wait:
            select.select([fd], [], [], wait)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def reap(known: set[int]) -> None:
    """Take the ends of those that fell to us; `known` are waited for by others."""
    for pid in set(children(os.getpid())) - known:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


def all_below() -> list[int]:
    """Every living process below us."""
    found, todo = [], children(os.getpid())
    while todo:
        pid = todo.pop()
        todo += children(pid)
        if start_time(pid) is not None:
            found.append(pid)
    return found
