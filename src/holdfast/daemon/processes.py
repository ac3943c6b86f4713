"""Who descends from whom, and what they use: one pass over /proc for all trees at once.

psutil makes an object a process and reads several files for each; a status of a hundred services would
take longer than everything else together.  Numbers here are for showing and for finding; nothing is signalled by
them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STOPPED = ("T", "t")
BLIND = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # says nothing of who was to be looked at


class Seen(NamedTuple):
    """A process as /proc/PID/stat shows it (proc_pid_stat(5)); `start` in clock ticks after boot."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    ticks: int
    start: int
    pages: int


class Table:
    """The process table as it was at one moment: of all processes, or of `pids`."""

    def __init__(self, pids: Iterable[int] | None = None) -> None:
        if pids is None:
            pids = all_pids()
        self.seen = {pid: seen for pid in pids if (seen := look(pid))}
        self._children: dict[int, list[int]] = {}
        for pid, seen in self.seen.items():
            self._children.setdefault(seen.parent, []).append(pid)

    def stopped(self, pid: int) -> bool:
        """By SIGSTOP, its terminal, or a debugger: nothing of it runs until somebody lets it go on."""
        return pid in self.seen and self.seen[pid].state in STOPPED

    def children(self, pid: int) -> list[int]:
        return self._children.get(pid, [])

    def below(self, pid: int) -> list[int]:
        """Every descendant of a process, without itself; parents before their children."""
        found = list(self.children(pid))
        for child in found:
            found += self.children(child)
        return found

    def usage(self, pids: list[int]) -> tuple[float, int]:
        """CPU seconds and bytes of resident memory, summed; what has been reaped is not in it."""
        ticks = sum(self.seen[pid].ticks for pid in pids)
        pages = sum(self.seen[pid].pages for pid in pids)
        return ticks / TICKS, pages * PAGE


def all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def look(pid: int) -> Seen | None:
    """What this number is now; None: nobody.  OSError: no descriptor is left to look with."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in BLIND:
            raise
        return None
    try:
        text = os.read(fd, 1024)
    except OSError:
        return None
    finally:
        os.close(fd)
    name, _, rest = text[text.index(b"(") + 1 :].rpartition(b") ")
    f = rest.split(b" ", 22)
    return Seen(
        pid, name.decode(errors="replace"), f[0].decode(), int(f[1]), int(f[2]), int(f[3]), int(f[11]) + int(f[12]),
        int(f[19]), int(f[21]),
    )  # fmt: skip


def is_stopped(pid: int) -> bool:
    """As `Table.stopped`, of one process now, as far as it can be seen."""
    seen = _glance(pid)
    return seen is not None and seen.state in STOPPED


def name_of(pid: int) -> str:
    """As in /proc/PID/comm; "" when it is gone, or cannot be seen."""
    seen = _glance(pid)
    return seen.name if seen else ""


def is_below(pid: int, above: int, limit: int = 256) -> bool:
    """Whether `above` is seen among the first `limit` ancestors."""
    try:
        return above in ancestors(pid, limit)
    except OSError:
        return False


def _glance(pid: int) -> Seen | None:
    try:
        return look(pid)
    except OSError:
        return None


def environment(pid: int) -> list[bytes]:
    """As the program was given it, if it has not written over it.  Empty: gone, or not for us to see.
    OSError: as `look`."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError as error:
        if error.errno in BLIND:
            raise
        return []


def ancestors(pid: int, limit: int = 256) -> list[int]:
    """The chain of parents, nearest first.  A number may change hands while we read: hold a pidfd and ask again.
    OSError: as `look`."""
    chain: list[int] = []
    while pid > 1 and len(chain) < limit:
        seen = look(pid)
        if seen is None:
            break
        pid = seen.parent
        chain.append(pid)
    return chain
