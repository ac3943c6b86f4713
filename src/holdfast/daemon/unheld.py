"""Trees of supervisors that live no more, as `holdfast doctor` finds them: by marks, and by what was written down.

Nothing of a run directory whose supervisor or anchor lives is looked at: that is its own business.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from holdfast.process import _native

from .lost import KEEPER_NAME, Lost, LostTrees
from .members import KEEPER, Identity, identify
from .processes import Table, ancestors, environment
from .store import BOOT_ID, Store

MARKS = ("HOLDFAST_SUPERVISOR", "HOLDFAST_SERVICE", "HOLDFAST_INCARNATION")
LOST, UNREACHABLE, WAITING = "lost", "unreachable", "waiting"


class Tree(NamedTuple):
    """One incarnation that nobody holds.  `state`: `lost` (its keeper is gone), `unreachable` (its keeper lives, but
    no socket leads there any more), `waiting` (for the next `up`, as it should)."""

    run_dir: str
    service: str
    incarnation: int
    state: str
    keeper: int | None
    processes: tuple[tuple[int, str], ...]  # pid and name
    known: tuple[Identity, ...]


def find(run_dir: str, *, alone: bool) -> list[Tree]:
    """All that we may see: of this run directory, and, unless that `alone` is meant, of those that marks name."""
    run_dir = os.path.realpath(run_dir)
    table = Table()
    marked: dict[tuple[str, str, int], set[int]] = {}
    supervised = {_supervises(pid) for pid in table.seen}
    for pid in table.seen:
        key = _marks(pid)
        if key is not None and (key[0] == run_dir or not alone):
            marked.setdefault(key, set()).add(pid)
    written: dict[tuple[str, str, int], list[Identity]] = {}
    for each in {run_dir, *(key[0] for key in marked)}:
        for service, number, who in _written(each):
            written.setdefault((each, service, number), []).append(who)
    myself = {os.getpid(), *ancestors(os.getpid())}
    found = []
    for key in sorted(marked.keys() | written.keys()):
        pids = (marked.get(key, set()) | {who.pid for who in written.get(key, ())}) & table.seen.keys()
        if key[0] not in supervised and pids and not pids & myself and not _is_locked(key[0]):
            found.append(_tree(key, pids, tuple(written.get(key, ())), table))
    return found


def _marks(pid: int) -> tuple[str, str, int] | None:
    """Run directory, service and incarnation that a process says it is of.  None: it does not; or it lives in another
    container, where the same path is another directory."""
    pairs = [entry.partition(b"=") for entry in environment(pid) if entry.startswith(b"HOLDFAST_")]
    marks = {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}
    run_dir, service, number = (marks.get(key, "") for key in MARKS)
    if not run_dir.startswith("/") or not _is_plain(service) or not number.isdecimal():
        return None
    try:
        same = all(os.path.samefile(f"/proc/self/ns/{kind}", f"/proc/{pid}/ns/{kind}") for kind in ("pid", "mnt"))
    except OSError:
        return None
    return (run_dir, service, int(number)) if same else None


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and name not in (".", "..")


def _supervises(pid: int) -> str:
    """The run directory of an anchor or a supervisor; "" for all others."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().split(b"\0")
    except OSError:
        return ""
    if b"holdfast.cli.supervise" not in command or b"--run-dir" not in command[:-1]:
        return ""
    return os.path.realpath(os.fsdecode(command[command.index(b"--run-dir") + 1]))


def _written(run_dir: str) -> Iterator[tuple[str, int, Identity]]:
    """Those who live of all that was written down in a run directory, in this boot.  Of another user's only who is that
    user's own: any directory can be named by a mark, and shall not choose whom root kills."""
    try:
        owner = os.stat(run_dir).st_uid
        with open(BOOT_ID, "rb") as now, open(os.path.join(run_dir, "boot"), "rb") as then:
            if now.read() != then.read():
                return
        store = Store(run_dir)
        for service in store.names():
            for number in store.incarnations(service):
                for who in store.members(service, number):
                    if who.alive() and owner in (0, os.stat(f"/proc/{who.pid}").st_uid):
                        yield service, number, who
    except OSError:
        return  # not there, or not ours to read


def _tree(key: tuple[str, str, int], pids: set[int], known: tuple[Identity, ...], table: Table) -> Tree:
    run_dir, service, number = key
    all_pids = {*pids, *(below for pid in pids for below in table.below(pid))}
    tops = {_top_keeper(pid, table) for pid in pids} - {0}
    unheld = {pid for pid in pids if not _has_keeper(pid, table)}
    keeper = min(tops, default=None)
    if unheld - tops:
        state = LOST
        known = tuple(who for who in known if not _has_keeper(who.pid, table))  # what is held waits for `up`
    elif os.path.exists(os.path.join(run_dir, "services", service, f"{number}.sock")):
        state = WAITING
    else:
        state = UNREACHABLE
        # A mark counts for its keeper only where nobody else can have written it: not that of a service's other user.
        own = [(pid, child) for pid in tops for child in pids if _user(pid) == _user(child) != b""]
        known += tuple(who for pid, child in own if (who := _prove(pid, child)))
    names = tuple((pid, table.seen[pid].name) for pid in sorted(all_pids - tops))
    return Tree(run_dir, service, number, state, keeper, names, known)


def _top_keeper(pid: int, table: Table) -> int:
    """The uppermost of the keepers directly above a process, or itself; 0: there is none."""
    top = 0
    while pid in table.seen:
        if table.seen[pid].name == KEEPER_NAME:
            top = pid
        elif top:
            break
        pid = table.seen[pid].parent
    return top


def _has_keeper(pid: int, table: Table) -> bool:
    return _top_keeper(pid, table) != 0


def _user(pid: int) -> bytes:
    """The real uid; "": it is gone.  The owner of /proc/PID does not tell: who is not dumpable seems to be root's."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next(line.split()[1] for line in file if line.startswith(b"Uid:"))
    except OSError:
        return b""


def _prove(keeper: int, child: int) -> Identity | None:
    """Who a keeper is, by its child: its number is that of the parent, while both are held."""
    held = []
    try:
        held = [_native.pidfd_open(keeper), _native.pidfd_open(child)]
        if identify("", child, held[1]) is not None and ancestors(child, 1) == [keeper]:
            return identify(KEEPER, keeper, held[0])
    except OSError:
        pass
    finally:
        for fd in held:
            os.close(fd)
    return None


@contextmanager
def _lock(run_dir: str) -> Iterator[bool]:
    """False: a supervisor holds the run directory.  Inside the block none can begin there."""
    try:
        fd = os.open(os.path.join(run_dir, "lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield True  # there is none to hold
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _is_locked(run_dir: str) -> bool:
    with _lock(run_dir) as free:
        return not free


def end(trees: Iterable[Tree]) -> dict[tuple[str, str, int], int]:
    """Kill those that are lost or unreachable; how many of each are left.  Bounded, as for a supervisor."""
    return asyncio.run(_end(list(trees)))


async def _end(trees: list[Tree]) -> dict[tuple[str, str, int], int]:
    left = {}
    for tree in trees:
        key = tree.run_dir, tree.service, tree.incarnation
        with _lock(tree.run_dir) as free:
            if tree.state == WAITING or not free:
                left[key] = len(tree.processes)
                continue
            marks = dict(zip(MARKS, map(str, key), strict=True))
            work = LostTrees(set)
            left[key] = await work.end(tree.service, tree.incarnation, Lost(marks, tree.known))
            work.close()
    return left
