"""Who descends from whom, and what they use: one pass over /proc for all trees at once.

psutil makes an object a process and reads several files for each; a status of a hundred services would
take longer than everything else together.  Numbers here are for showing; nothing is signalled by them.
"""

from __future__ import annotations

import os

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STOPPED = (b"T", b"t")


class Table:
    """The process table as it was at one moment."""

    def __init__(self) -> None:
        self._children: dict[int, list[int]] = {}
        self._usage: dict[int, tuple[int, int]] = {}  # ticks, pages
        self._stopped: set[int] = set()
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                fields = stat(int(entry))
                if fields:
                    pid, parent = int(entry), int(fields[1])
                    self._children.setdefault(parent, []).append(pid)
                    self._usage[pid] = (int(fields[11]) + int(fields[12]), int(fields[21]))
                    if fields[0] in STOPPED:
                        self._stopped.add(pid)

    def stopped(self, pid: int) -> bool:
        """By SIGSTOP, its terminal, or a debugger: nothing of it runs until somebody lets it go on."""
        return pid in self._stopped

    def below(self, pid: int) -> list[int]:
        """Every descendant of a process, without itself."""
        found: list[int] = []
        queue = list(self._children.get(pid, ()))
        while queue:
            child = queue.pop()
            found.append(child)
            queue += self._children.get(child, ())
        return found

    def usage(self, pids: list[int]) -> tuple[float, int]:
        """CPU seconds and bytes of resident memory, summed; what has been reaped is not in it."""
        ticks = sum(self._usage[pid][0] for pid in pids)
        pages = sum(self._usage[pid][1] for pid in pids)
        return ticks / TICKS, pages * PAGE


def stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state on (proc_pid_stat(5): field 3); None: it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 1024)
    except OSError:
        return None
    finally:
        os.close(fd)
    return text[text.rindex(b")") + 2 :].split()


def is_stopped(pid: int) -> bool:
    """As `Table.stopped`, of one process now."""
    fields = stat(pid)
    return fields is not None and fields[0] in STOPPED


def name_of(pid: int) -> str:
    """As in /proc/PID/comm; "" when it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def ancestors(pid: int, limit: int = 256) -> list[int]:
    """The chain of parents, nearest first.  A number may change hands while we read: hold a pidfd and ask again."""
    chain: list[int] = []
    while pid > 1 and len(chain) < limit:
        fields = stat(pid)
        if fields is None:
            break
        pid = int(fields[1])
        chain.append(pid)
    return chain
