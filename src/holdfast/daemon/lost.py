"""What is left when keepers were lost: found, killed, and waited for; for all that are lost at a time in one look.

A process belongs to a lost tree
  - by identity: a descriptor of it is held, or it was written down (members.py) and is found alive by that;
  - by its cgroup, which nothing of it leaves, where it has one (resources.py);
  - by descent: from one that belongs;
  - by session or group: those of its main process;
  - by its marks in the environment: a hint, for programs overwrite them.
Never one that a keeper holds who is not of a lost tree himself, nor ourselves and what is above or below us.

Under the anchor there is a stronger rule.  What loses its keeper falls to it, and nothing else does: so the anchor is
asked who is there, and an orphan that fits no lost tree may be of each.  It is ended, too, and until it has, none of
them is started again.  As PID 1 the anchor gets everybody's orphans: then such a one is waited for, and left alone.

Each is held by a pidfd, and so is its parent, before the look that decides; signals go through it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from holdfast.process import _native
from holdfast.process.held import HeldTree
from holdfast.process.keeper import try_signal

from .anchor import Anchor, Members
from .cgroup_files import Cgroups
from .members import MAIN, Identity
from .processes import Seen, Table, all_pids, ancestors, environment, look

SIGKILL = 9
POLLIN = 1
LOST_LIMIT = 5.0  # seconds; how long the killing is repeated before what is left counts as survivors
PASS_PAUSE = 0.02  # seconds between two looks; doubled up to:
SURVIVORS_PAUSE = 1.0
QUIET_LOOKS = 2  # in a row that find nothing: a daemon that forks away is in none of one that meets it as it does
ASK_LIMIT = 1.0  # seconds; an anchor that is silent for longer is frozen: then /proc alone is looked at
KEEPER_NAME = "holdfast-keeper"
INIT = 1
NO_CGROUPS = Cgroups()


class Lost:
    """One incarnation that has lost its keeper, until nothing of it is left.  For the loop's thread."""

    def __init__(
        self, marks: Mapping[str, str], members: Collection[Identity] = (), tree: HeldTree | None = None,
        *, below_anchor: bool = False, cgroups: Cgroups = NO_CGROUPS,
    ) -> None:  # fmt: skip
        self.marks = frozenset(os.fsencode(f"{key}={value}") for key, value in marks.items())
        self.tree = tree
        self.below_anchor = below_anchor  # its keeper was a child of our anchor: everything of it is now below that
        self.left = 0  # how many there were at the last look
        self.quiet = 0  # looks in a row that have found nothing
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unopened = list(members)
        self.held: dict[int, int] = {}  # pidfds of those that are known by identity
        self.cgroups = cgroups
        self.mains = {who.pid for who in members if who.role == MAIN}
        self.since = min((who.start for who in members), default=0)  # nothing of it is older
        if tree is not None and tree.pid:
            self.mains.add(tree.pid)

    def open(self, others: Collection[int]) -> None:
        """Hold those who are known and alive, and none of the `others`, whatever is written.  OSError: no descriptor is
        left; what is open stays so."""
        self.mains.difference_update(others)
        while self.unopened:
            fd = self.unopened[-1].open() if self.unopened[-1].pid not in others else -1
            if fd >= 0 and self.held.setdefault(self.unopened[-1].pid, fd) != fd:
                os.close(fd)
            self.unopened.pop()
        for pid in self.cgroups.pids():
            if pid in others or pid in self.held:
                continue
            try:
                fd = _native.pidfd_open(pid)
            except ProcessLookupError:
                continue
            self.held[pid] = fd
            if pid not in self.cgroups.pids():  # the number was another's before it was held
                os.close(self.held.pop(pid))

    def known(self) -> dict[int, int]:
        """Descriptors of those alive who belong by identity, by their numbers, which are nobody else's meanwhile."""
        known = dict(self.held)
        if self.tree is not None:
            known |= self.tree.members
            for pid, fd in ((self.tree.pid, self.tree.pidfd), (self.tree.keeper_pid, self.tree.keeper_pidfd)):
                if pid and fd >= 0:
                    known[pid] = fd
        return {pid: fd for pid, fd in known.items() if not _native.poll(fd, POLLIN, 0)}

    def close(self) -> None:
        while self.held:
            os.close(self.held.popitem()[1])


class LostTrees:
    """Ends what lost keepers have left.  For the loop's thread; `keepers` gives the numbers of those that we hold."""

    def __init__(self, keepers: Callable[[], set[int]]) -> None:
        self.anchor = Anchor()
        self._keepers = keepers
        self._cases: dict[tuple[str, int], Lost] = {}
        self._work: asyncio.Task[None] | None = None

    async def end(self, name: str, incarnation: int, case: Lost) -> int:
        """Kill what is left of it, at most for LOST_LIMIT; how many survive.  May be cancelled."""
        case = self._cases.setdefault((name, incarnation), case)
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._end_all())
        await asyncio.wait([case.gone], timeout=LOST_LIMIT)
        return 0 if case.gone.done() else max(1, case.left)

    async def gone(self, name: str, incarnation: int) -> None:
        """Return when nothing is left of what `end` was called for.  May be cancelled."""
        case = self._cases.get((name, incarnation))
        if case is not None:
            await asyncio.wait([case.gone])

    def close(self) -> None:
        """Leave what is left."""
        if self._work is not None:
            self._work.cancel()
        for case in self._cases.values():
            case.close()
        self._cases.clear()

    async def _end_all(self) -> None:
        pause = PASS_PAUSE
        while self._cases:
            cases = dict(self._cases)  # those that are lost before the look: of others it says nothing
            orphans = await self._ask()
            try:
                look_at(list(cases.values()), orphans, self.anchor.pid, self._keepers())
            except OSError:  # no descriptor is left: nobody can say who is there
                for case in cases.values():
                    case.left = max(1, case.left)
            for key, case in cases.items():
                case.quiet = 0 if case.left else case.quiet + 1
                if case.quiet == QUIET_LOOKS:
                    del self._cases[key]
                    case.close()
                    case.gone.set_result(None)
            soon = cases.keys() != self._cases.keys() or any(case.quiet for case in cases.values())
            pause = PASS_PAUSE if soon else min(2 * pause, SURVIVORS_PAUSE)
            if self._cases:
                await asyncio.sleep(pause)

    async def _ask(self) -> set[int] | None:
        """Who is below the anchor, but for what was there before it; None: there is none that answers."""
        if self.anchor.pid is None:
            return None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Members] = loop.create_future()
        number = self.anchor.query()

        def on_answer() -> None:
            for members in self.anchor.answers():
                if members.id == number and not answer.done():
                    answer.set_result(members)

        loop.add_reader(self.anchor.fileno(), on_answer)
        try:
            members = await asyncio.wait_for(answer, ASK_LIMIT)
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(self.anchor.fileno())
        return None if members.unlisted else {member.pid for member in members.members}


def look_at(cases: Collection[Lost], orphans: Collection[int] | None, anchor: int | None, keepers: set[int]) -> None:
    """Look once, and kill: each case's `left` says how many there were of it, or may have been.

    `orphans`: who is below the anchor, None when it has not said; `keepers` hold what is not lost.  OSError: not
    everything could be looked at.
    """
    above = {INIT, *ancestors(os.getpid())}
    for case in cases:
        case.left = 0
        case.open(above | {os.getpid()})
    everywhere = orphans is None or not all(case.below_anchor for case in cases)
    table = Table(all_pids() if everywhere else orphans)
    owners = _Owners(cases, table, orphans or (), anchor, above, keepers)
    for head in owners.heads():
        _end(head, owners)
    for case in cases:
        if case.tree is not None:
            case.tree.kill_held()  # not before: with those above, what is below them could not be told any more
        case.left += sum(pid not in table.seen for pid in case.known())


class _Owner(NamedTuple):
    """Whose a process is: of these lost trees (of an orphan that fits none: any of them), or `held` by others."""

    cases: tuple[Lost, ...] = ()
    kill: bool = True
    held: bool = False


NOBODY, SOMEBODY_ELSE = _Owner(), _Owner(held=True)


class _Owners:
    """Whose each process of a table is."""

    def __init__(
        self, cases: Collection[Lost], table: Table, orphans: Collection[int], anchor: int | None, above: set[int],
        keepers: set[int],
    ) -> None:  # fmt: skip
        self._cases = cases
        self._table = table
        self._anchor = anchor
        self._orphans = orphans
        self._not_lost = {os.getpid(), *keepers}
        self._above = above
        self._known = {pid: _Owner((case,)) for case in cases for pid in case.known()}
        self._by_session = {pid: _Owner((case,)) for case in cases for pid in case.mains}
        self._by_marks = {case.marks: _Owner((case,)) for case in cases}
        self._keys = {mark.partition(b"=")[0] for case in cases for mark in case.marks}
        self._memo: dict[int, _Owner] = {}

    def of(self, pid: int) -> _Owner:
        way = []
        while pid in self._table.seen and pid not in self._memo:
            self._memo[pid] = NOBODY  # numbers that have changed hands meanwhile may make a circle
            way.append(pid)
            pid = self._table.seen[pid].parent
        for each in reversed(way):
            self._memo[each] = self._judge(self._table.seen[each])
        return self._memo.get(way[0] if way else pid, NOBODY)

    def heads(self) -> list[Seen]:
        """Those of lost trees whose parent is not of the same one."""
        return [seen for seen in self._table.seen.values() if self.of(seen.pid).cases and self._is_head(seen)]

    def family(self, pid: int) -> list[Seen]:
        """The children that belong where their parent does."""
        children = (self._table.seen[child] for child in self._table.children(pid))
        return [child for child in children if not self._is_head(child) and self.of(child.pid).cases]

    def _is_head(self, seen: Seen) -> bool:
        return seen.pid in self._known or self.of(seen.pid) is not self.of(seen.parent)

    def _judge(self, seen: Seen) -> _Owner:
        """One whose parent was judged before."""
        if seen.pid in self._above:
            return NOBODY
        if seen.pid in self._known:
            return self._known[seen.pid]
        if seen.pid in self._not_lost:
            return SOMEBODY_ELSE
        parents = self._memo.get(seen.parent, NOBODY)
        if parents is not NOBODY:
            return parents
        # The number of an ended leader may have come back, but not among those below the anchor.
        orphan = seen.parent == self._anchor and seen.pid in self._orphans
        for leader in (seen.session, seen.group):
            if leader in self._by_session and (orphan or leader in self._known):
                return self._by_session[leader]
        marks = frozenset(entry for entry in environment(seen.pid) if entry.partition(b"=")[0] in self._keys)
        if marks in self._by_marks:
            return self._by_marks[marks]
        if seen.name == KEEPER_NAME:
            return SOMEBODY_ELSE
        if orphan:
            suspects = tuple(case for case in self._cases if case.since <= seen.start)
            return _Owner(suspects, kill=self._anchor != INIT)
        return NOBODY


def _end(head: Seen, owners: _Owners) -> None:
    """Kill a process and all below it, from above to below: none may start anew what was killed before."""
    owner = owners.of(head.pid)
    held: list[int] = []
    sure: list[int] = []
    found = 0
    todo = [(head, -1)]
    try:
        for seen, parent_fd in todo:
            try:
                fd = _native.pidfd_open(seen.pid)
            except ProcessLookupError:
                continue
            held.append(fd)
            now = look(seen.pid)
            if _native.poll(fd, POLLIN, 0) or now is None or now.start != seen.start:
                continue  # it has ended
            found += 1
            if now.parent != seen.parent or (parent_fd >= 0 and _native.poll(parent_fd, POLLIN, 0)):
                continue  # just orphaned: the next look says whose it is
            sure.append(fd)
            todo += [(child, fd) for child in owners.family(seen.pid)]
        if owner.kill:
            for fd in sure:
                try_signal(fd, SIGKILL, 0)
    finally:
        for fd in held:
            os.close(fd)
    for case in owner.cases:
        case.left += found
