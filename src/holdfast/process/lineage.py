"""Who came from whom: what the proc connector tells, put together for everything below some processes (keepers).

In: happenings (connector.py), and looks at /proc where messages may be missing.  Out: changes, in order, of members
alone.  Pure, but for one question to `glance`, which is asked about a process that has just changed.

A message and a look may be about the same thing, for a message is read later than it was sent.  So both may come twice
and in any order: what was told of a number before it was looked at is about who had it before, unless the times say
that it is the same process.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from .connector import COMM, COREDUMP, EXEC, EXIT, FORK, GID, SID, UID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .connector import Happening

STARTED, FORKED, ADOPTED, UNKNOWN = "started", "forked", "adopted", "unknown"
SAME_NS = 500_000_000  # from the start time in /proc to the message of the fork: sooner no number comes back


class Seen(NamedTuple):
    """A living process, as /proc shows it.  `tids`: of its threads that live; `born_ns` on the
    monotonic clock."""

    pid: int
    parent: int
    name: str
    born_ns: int
    tids: tuple[int, ...]


class Change(NamedTuple):
    """Something that became of a member.  `event` is one of

    started (by the root itself), forked, found (by a look, and nobody knows how it came to be): `number` is its parent;
    adopted: `number` is the parent that it had before, None where nobody knows;
    executed, named: it is called `name` now;     session: it leads one of its own;
    user, group: `number` is the effective id;     dumped: core;
    exited: `number` is the wait status, None of one that is gone and whose messages were lost.
    """

    root: int
    event: str
    at_ns: int
    pid: int
    name: str
    number: int | None = None


class Kin:
    """A living member, and how it came to be: `how` is STARTED, FORKED, ADOPTED (`by` from whom, `at_ns` when, None
    where nobody knows) or UNKNOWN."""

    __slots__ = (
        "at_ns", "born_ns", "by", "executed", "how", "looked_ns", "name", "parent", "pid", "root", "since_ns", "tids",
    )  # fmt: skip

    def __init__(self, root: int, pid: int, parent: int, name: str, since_ns: int) -> None:
        self.root = root
        self.pid = pid
        self.parent = parent
        self.name = name
        self.how = UNKNOWN
        self.by: int | None = None
        self.at_ns: int | None = None
        self.executed = 0  # how often that was seen
        self.born_ns = since_ns
        self.since_ns = since_ns  # what happened before was not about this process
        self.looked_ns = 0  # what became of its threads before is known
        self.tids: set[int] | None = None  # None: its first thread is the only one

    def came(self, how: str, by: int | None, at_ns: int | None) -> None:
        self.how, self.by, self.at_ns = how, by, at_ns


class Family:
    """The members below each root.  `glance(pid)`: parent and name of a process now, None when it is gone."""

    def __init__(self, glance: Callable[[int], tuple[int, str] | None]) -> None:
        self.kin: dict[int, Kin] = {}
        self.roots: set[int] = set()
        self._children: dict[int, set[int]] = {}
        self._glance = glance

    def watch(self, root: int) -> None:
        """Follow what this process forks from now on; `look` knows what it has."""
        self.roots.add(root)

    def forget(self, root: int) -> None:
        self.roots.discard(root)
        for kin in [kin for kin in self.kin.values() if kin.root == root]:
            self._remove(kin)

    # ---- what is told

    def take_in(self, happening: Happening) -> Sequence[Change]:
        """What it changes; most are about somebody else."""
        what, at_ns, tid, pid, first, second, _, fourth = happening
        if what == FORK:
            child = self.kin.get(second)
            if first == second:
                return self._fork(pid, second, child, at_ns)
            if child is not None and at_ns >= max(child.since_ns, child.looked_ns):
                child.tids = {second, first} if child.tids is None else child.tids | {first}
            return ()
        kin = self.kin.get(pid)
        if kin is None or at_ns < kin.since_ns:
            return ()
        if what == EXIT:
            return self._exit(kin, tid, first, fourth, at_ns) if at_ns >= kin.looked_ns else ()
        if what == EXEC:
            kin.executed += 1
            if at_ns >= kin.looked_ns:
                kin.tids = None  # the others are ended by it, and who calls it takes the first one's number
            kin.name = self._name(kin)
            return (self._change(kin, "executed", at_ns),)
        if what == COMM:
            name = struct.pack("=4I", *happening[4:]).split(b"\0")[0].decode(errors="replace")
            if tid != pid or name == kin.name:  # of a thread; or told by /proc already
                return ()
            kin.name = name
            return (self._change(kin, "named", at_ns),)
        if what == SID:
            return (self._change(kin, "session", at_ns),)
        if what in (UID, GID):
            return (self._change(kin, "user" if what == UID else "group", at_ns, second),)
        if what == COREDUMP:
            return (self._change(kin, "dumped", at_ns),)
        return ()

    def _fork(self, parent: int, pid: int, before: Kin | None, at_ns: int) -> Sequence[Change]:
        above = self.kin.get(parent)
        if above is not None and at_ns < above.born_ns - SAME_NS:
            above = None  # who had this number before
        root = parent if parent in self.roots else above.root if above else None
        how = STARTED if parent in self.roots else FORKED
        if before is not None and at_ns < before.since_ns:
            return self._told_late(before, parent, root, how, at_ns)
        if root is None:
            return ()
        changes = []
        if before is not None:  # its end was not told, and the number has come back
            changes += self._end(before, None, at_ns)
        kin = Kin(root, pid, parent, above.name if above else self._glanced_name(pid), at_ns)
        kin.came(how, parent, at_ns)
        self._add(kin)
        return (*changes, self._change(kin, how, at_ns, parent))

    def _told_late(self, kin: Kin, parent: int, root: int | None, how: str, at_ns: int) -> Sequence[Change]:
        """A fork from before the look that found it."""
        if abs(kin.born_ns - at_ns) > SAME_NS:
            return ()  # of an earlier process of this number
        kin.since_ns = kin.born_ns = at_ns
        if root == kin.root:  # what became of it since comes now
            kin.came(how, parent, at_ns)
            self._move(kin, parent)
        elif kin.parent != parent:
            kin.came(ADOPTED, parent, None)
        changes = [self._change(kin, how, at_ns, parent)]
        if kin.how == ADOPTED:
            changes.append(self._change(kin, ADOPTED, at_ns, parent))
        return changes

    def _exit(self, kin: Kin, tid: int, status: int, parent: int, at_ns: int) -> Sequence[Change]:
        if kin.tids is None:
            if tid != kin.pid:
                return ()  # a thread that we did not hear of
        else:
            kin.tids.discard(tid)
            if kin.tids:
                return ()
        changes = []
        # Orphans are given away before the end of their parent is told; one may have ended in between.  No parent is
        # told of one that is reaped already.
        if parent and parent != kin.parent:
            changes.append(self._adopt(kin, parent, at_ns))
        return (*changes, *self._end(kin, status, at_ns))

    def _end(self, kin: Kin, status: int | None, at_ns: int) -> list[Change]:
        self._remove(kin)
        changes = [self._change(kin, "exited", at_ns, status)]
        for pid in sorted(self._children.get(kin.pid, ())):
            child = self.kin[pid]
            seen = self._glance(pid)
            parent = seen[0] if seen and seen[0] != kin.pid else kin.root  # gone: most likely there
            changes.append(self._adopt(child, parent, at_ns))
        return changes

    def _adopt(self, kin: Kin, parent: int, at_ns: int | None) -> Change:
        before = kin.parent
        kin.came(ADOPTED, before, at_ns)
        self._move(kin, parent)
        return self._change(kin, ADOPTED, at_ns or 0, before)

    # ---- what is seen

    def look(self, root: int, main: int, seen: Iterable[Seen], at_ns: int) -> list[Change]:
        """Below this root live these, at `at_ns` and a little later.  `main`: whom the root has started, 0: it may not
        have adopted anybody yet."""
        changes: list[Change] = []
        found = {each.pid: each for each in seen}
        for each in found.values():
            kin = self.kin.get(each.pid)
            if kin is not None and (kin.root != root or abs(kin.born_ns - each.born_ns) > SAME_NS):
                # The number has changed hands, and nobody told.
                changes.append(self._gone(kin, at_ns))
                kin = None
            if kin is None:
                kin = Kin(root, each.pid, each.parent, each.name, at_ns)
                kin.born_ns, kin.since_ns = each.born_ns, min(at_ns, each.born_ns + SAME_NS)
                if each.pid == main or (not main and each.parent == root):
                    kin.came(STARTED, root, each.born_ns)
                elif each.parent == root:
                    kin.came(ADOPTED, None, None)
                self._add(kin)
                changes.append(self._change(kin, "found", at_ns, each.parent))
            elif kin.parent != each.parent:
                changes.append(self._adopt(kin, each.parent, at_ns))
            kin.name, kin.looked_ns = each.name, at_ns
            kin.tids = None if each.tids == (each.pid,) else set(each.tids)
        gone = [kin for kin in self.kin.values() if kin.root == root and kin.pid not in found]
        return [*changes, *(self._gone(kin, at_ns) for kin in gone)]

    def _gone(self, kin: Kin, at_ns: int) -> Change:
        self._remove(kin)
        return self._change(kin, "exited", at_ns)

    # ---- parts of them

    def _change(self, kin: Kin, event: str, at_ns: int, number: int | None = None) -> Change:
        return Change(kin.root, event, at_ns, kin.pid, kin.name, number)

    def _name(self, kin: Kin) -> str:
        return self._glanced_name(kin.pid) or kin.name

    def _glanced_name(self, pid: int) -> str:
        seen = self._glance(pid)
        return seen[1] if seen else ""

    def _add(self, kin: Kin) -> None:
        self.kin[kin.pid] = kin
        self._children.setdefault(kin.parent, set()).add(kin.pid)

    def _remove(self, kin: Kin) -> None:
        del self.kin[kin.pid]
        self._orphan(kin)

    def _move(self, kin: Kin, parent: int) -> None:
        self._orphan(kin)
        kin.parent = parent
        self._children.setdefault(parent, set()).add(kin.pid)

    def _orphan(self, kin: Kin) -> None:
        children = self._children[kin.parent]
        children.discard(kin.pid)
        if not children:
            del self._children[kin.parent]
