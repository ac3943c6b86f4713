"""Who is in a tree: the keeper's list, with what /proc says of each; and what such a look tells of a later adoption.

Everything in here is for people: numbers and parents are read, nothing is signalled by them.
"""

from __future__ import annotations

import os
import time

from .status import Member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    Stat: TypeAlias = tuple[str, str, int, int, int, int]  # name, state, parent, group, session, start
    Look: TypeAlias = dict[int, Stat]

_MAIN = 1


def read_stat(pid: int) -> Stat | None:
    """What proc_pid_stat(5) says; start is in clock ticks since boot.  None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, rest = file.read().rpartition(b")")  # the name may hold anything, also ")"
    except OSError:
        return None
    fields = rest.split()
    if len(fields) < 20:
        return None  # gone between open and read
    name = os.fsdecode(head.partition(b"(")[2])
    return name, chr(fields[0][0]), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19])


def look(keeper: int, listed: Iterable[int], unlisted: bool) -> Look:
    """What /proc says of those that the keeper has listed, and are members still: by number, the eldest first.

    A number that has become a stranger's meanwhile has a parent that is none of them.  `unlisted`: the list had no
    room for more; the rest is found from those that are on it.
    """
    found: Look = {}
    for pid in listed:
        stat = read_stat(pid)
        if stat is not None:
            found[pid] = stat
    if unlisted:
        _add_children(found, keeper)
    while strangers := [pid for pid, stat in found.items() if stat[2] != keeper and stat[2] not in found]:
        for pid in strangers:
            stat = read_stat(pid)  # its parent may have gone since: then it has another
            if stat is not None and (stat[2] == keeper or stat[2] in found):
                found[pid] = stat
            else:
                del found[pid]
    return dict(sorted(found.items(), key=lambda item: (item[1][5], item[0])))


def _add_children(found: Look, keeper: int) -> None:
    looked_at: set[int] = set()
    while parents := {keeper, *found} - looked_at:
        looked_at |= parents
        for child in (child for parent in parents for child in _children(parent)):
            stat = None if child in found else read_stat(child)
            if stat is not None:
                found[child] = stat


def _children(pid: int) -> list[int]:
    try:
        result = []
        for task in os.listdir(f"/proc/{pid}/task"):  # each thread has its own
            with open(f"/proc/{pid}/task/{task}/children") as file:
                result += [int(child) for child in file.read().split()]
        return result
    except OSError:
        return []


def members(found: Look, listed: list[tuple[int, int, str]], main: int) -> tuple[Member, ...]:
    """The look as values."""
    flags = {pid: each for pid, each, _ in listed}
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    tick = os.sysconf("SC_CLK_TCK")
    return tuple(
        Member(pid, flags.get(pid, _MAIN if pid == main else 0), name, parent, group, session, booted + start / tick)
        for pid, (name, _, parent, group, session, start) in found.items()
    )


def main_alone(pid: int) -> tuple[Member, ...]:
    """A process that is held, of whose descendants nothing is known."""
    stat = read_stat(pid) if proc_is_ours() else None
    return () if stat is None else members({pid: stat}, [], pid)


def previous_parent(found: Look, pid: int) -> int | None:
    """Who was the parent of a member that has just been adopted, if an earlier look makes that certain, else None.

    It had a parent P then.  P is gone, and the orphan went to one above P.  Had that been another than the keeper,
    one that gathers orphans itself, it would have to be gone, too: so if all that were above P live still, it was P.
    """
    stat, now = found.get(pid), read_stat(pid)
    if stat is None or now is None or stat[5] != now[5] or stat[2] not in found:
        return None
    above = found[stat[2]][2]
    for _ in found:
        if above not in found:
            return stat[2]
        if not _lives(above, found[above]):
            return None
        above = found[above][2]
    return None  # a circle: numbers changed hands while we looked


def _lives(pid: int, stat: Stat) -> bool:
    """It is still the process that was seen, by its start, and no zombie."""
    now = read_stat(pid)
    return now is not None and now[5] == stat[5] and now[1] not in "ZX"


def proc_is_ours() -> bool:
    """/proc speaks of our pid namespace."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False
