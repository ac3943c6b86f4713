"""The lineage of services: one listener to the kernel's proc connector for all whose lineage somebody wants.

Wanted is that of a service with `lineage = true`, and of one that a client follows.  While nobody wants any, there is
no listener and this costs nothing.  Where the connector is not to be had, adoptions are told by the keepers.

The kernel leaks a listener that leaves without a word (connector.py), and a supervisor may be killed: a copy of its
descriptor lies with the anchor, for the next supervisor.  For the loop's thread.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.engine.events import Exit
from holdfast.process import events as told
from holdfast.process.connector import Connector
from holdfast.process.lineage import ADOPTED, STARTED, Change, Family, Kin, Seen
from holdfast.process.status import ExitStatus, from_wait_status

from .anchor import Anchor
from .events import Ring
from .processes import TICKS, Table, look
from .status import LineageRecord

if TYPE_CHECKING:
    from .copy import Copy
    from .supervisor import Supervisor

RING = 4096  # records of a service that a client which comes late can still read
READ_MAX = 512  # messages that are read before others have their turn
LOOK_PAUSE = 0.5  # seconds between two looks at everything: a machine that loses messages is busy
LINGER = 0.5  # seconds in which the last messages about a tree have been sent
DEPOSIT = "lineage - connector"  # its key; the word first, as that of a socket
OFF = "its lineage is off"
ENDED = ("Z", "X")  # states in /proc


class Lineage:
    """That of all services of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.lost = 0  # messages, of all processes of the machine
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._anchor = Anchor()
        self._connector: Connector | None = None
        self._deposited = False
        self._why = ""  # there is no connector
        self._begun = False
        self._behind = False  # there may be more to read
        self._family = Family(_glance)
        self._trees: dict[int, Copy] = {}  # by their roots, the keepers
        self._rings: dict[str, Ring[LineageRecord]] = {}
        self._followed: Counter[str] = Counter()
        self._unseen: set[int] = set()  # roots whose trees have to be looked at
        self._looking: asyncio.TimerHandle | None = None
        self._looked = float("-inf")

    def __len__(self) -> int:
        """Descriptors that lie with the anchor."""
        return int(self._deposited)

    # ---- what is wanted

    def take_back(self, anchor: Anchor, found: dict[str, int]) -> None:
        """Of what the anchor had, take what is ours out of `found`."""
        self._anchor = anchor
        if DEPOSIT in found:
            self._connector, self._deposited = Connector.of(found.pop(DEPOSIT)), True

    def begin(self) -> None:
        """Start-up is over: all trees that there are, are held."""
        self._begun = True
        self.apply()
        if self._connector is not None:  # not before: what it has told meanwhile adds to what is seen now
            self._loop.add_reader(self._connector.fileno(), self._on_readable, self._connector)

    def apply(self) -> None:
        """Something else is wanted, perhaps."""
        if not self._begun:
            return
        names = {name for name in (*self._supervisor.config.services, *self._followed) if self._wants(name)}
        for name in self._rings.keys() - names:
            del self._rings[name]
        for root in [root for root, copy in self._trees.items() if copy.name not in names]:
            self._forget(root)
        if names and self._connector is None:
            self._open()
        elif not names and self._connector is not None:
            self._close(self._connector)
        for copy in self._supervisor.all_copies():
            if copy.name in names and copy.tree.keeper_pid not in self._trees:
                self._watch(copy, seen=False)
        self._look()

    def _wants(self, name: str) -> bool:
        spec = self._supervisor.config.services.get(name)
        return self._followed[name] > 0 or (spec is not None and spec.lineage)

    @contextmanager
    def following(self, name: str) -> Iterator[tuple[Ring[LineageRecord], str]]:
        """The records of a service, which are kept as long as this lasts; and who tells, in words."""
        self._followed[name] += 1
        self.apply()
        try:
            _, why = self.source(name)
            yield self.ring(name), f"its keeper: {why}" if why else "the kernel's proc connector"
        finally:
            self._followed[name] -= 1
            self._followed = +self._followed
            self.apply()

    # ---- trees

    def hold(self, copy: Copy) -> None:
        """A copy is held from now on."""
        if self._begun and self._wants(copy.name):
            self._watch(copy, seen=not copy.tree.attached)  # of one that is being started everything will be told

    def let_go(self, copy: Copy) -> None:
        """It is held no more.  Its end is told a moment after its keeper has told it."""
        if self._trees.get(copy.tree.keeper_pid) is copy:
            self._loop.call_later(LINGER, self._forget_when_read, copy)

    def _watch(self, copy: Copy, *, seen: bool) -> None:
        root = copy.tree.keeper_pid
        if root and self._connector is not None:
            self._trees[root] = copy
            self._family.watch(root)
            if not seen:
                self._unseen.add(root)
                self._look_soon()

    def _forget_when_read(self, copy: Copy) -> None:
        if self._trees.get(copy.tree.keeper_pid) is not copy:
            return
        if self._behind:
            self.let_go(copy)
        else:
            self._forget(copy.tree.keeper_pid)

    def _forget(self, root: int) -> None:
        self._trees.pop(root, None)
        self._unseen.discard(root)
        self._family.forget(root)

    def heard(self, copy: Copy, event: told.Event) -> None:
        """What a keeper tells, where the kernel does not."""
        if not self._begun or not self._wants(copy.name):
            return
        if self._connector is not None:
            if copy.tree.keeper_pid not in self._trees:  # it was silent, and says only now who it is
                self._watch(copy, seen=False)
            return
        if isinstance(event, told.Spawned):
            self._put(copy, time.time(), STARTED, event.pid, "", copy.tree.keeper_pid, text="by its keeper")
        elif isinstance(event, told.Adopted):
            seen, before = _glance(event.pid), event.previous_parent
            text = f"noticed by its keeper; {'nobody knows from whom' if before is None else f'from {before}'}"
            self._put(copy, time.time(), ADOPTED, event.pid, seen[1] if seen else "", before, text=text)
        elif isinstance(event, told.MemberExited):
            self._put(copy, time.time(), "exited", event.pid, "", text=_words(event.status))
        elif isinstance(event, told.Exited):
            self._put(copy, time.time(), "exited", copy.tree.pid, "", text=_words(event.status))

    # ---- for who looks

    def ring(self, name: str) -> Ring[LineageRecord]:
        if name not in self._rings:
            self._rings[name] = Ring(RING, _gap)
        return self._rings[name]

    def last(self, name: str) -> int:
        return self._rings[name].last if name in self._rings else 0

    def source(self, name: str) -> tuple[str, str]:
        """Who tells of this service's processes, `connector` or `keeper`, and why it is not the former."""
        if not self._wants(name):
            return "keeper", OFF
        return ("connector", "") if self._connector is not None else ("keeper", self._why)

    def kin(self, pid: int) -> Kin | None:
        """How a process came to be, if that is followed."""
        return self._family.kin.get(pid)

    # ---- the connector

    def _open(self) -> None:
        try:
            self._connector = Connector()
        except OSError as error:
            if self._why != (why := f"the proc connector is not to be had: {error.strerror}"):
                self._why = why
                text = f"{why}; keepers tell of adoptions alone"
                self._supervisor.events.add("lineage", text)
            return
        self._why = ""
        try:
            self._deposited = bool(self._anchor.deposits_max)
            self._supervisor.sockets.keep_room()
            self._anchor.deposit(DEPOSIT, self._connector.fileno())
        except OSError as error:
            self._deposited = False
            text = f"the anchor cannot take the proc connector, which would leak if we were killed: {error}"
            self._supervisor.events.add("error", text)
        self._loop.add_reader(self._connector.fileno(), self._on_readable, self._connector)

    def _close(self, connector: Connector) -> None:
        self._loop.remove_reader(connector.fileno())
        connector.close()
        if self._deposited:
            self._anchor.withdraw(DEPOSIT)
        self._connector, self._deposited = None, False

    def close(self) -> None:
        """The supervisor ends.  For its next version, which is about to come, the anchor keeps the listener."""
        self._begun = False
        if self._looking is not None:
            self._looking.cancel()
        connector = self._connector
        upgrade = self._supervisor.left.done() and self._supervisor.left.result() is not None
        if connector is not None and upgrade and self._deposited:
            self._loop.remove_reader(connector.fileno())
            connector.leave()
            self._connector = None
        elif connector is not None:
            self._close(connector)

    def _on_readable(self, connector: Connector) -> None:
        happenings, lost = connector.read(READ_MAX)
        self._behind = len(happenings) == READ_MAX
        for happening in happenings:
            changes = self._family.take_in(happening)
            if changes:
                self._tell(changes)
        if lost:
            self.lost += lost
            text = f"{lost} messages of the kernel, of all processes of the machine; who lives is looked up"
            for ring in self._rings.values():
                ring.put(_record(ring, time.time(), None, "lost", None, "", text=text))
            self._unseen |= self._trees.keys()
            self._look_soon()

    # ---- looks

    def _look_soon(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_at(self._looked + LOOK_PAUSE, self._look)

    def _look(self) -> None:
        """Find out who lives in the trees that have to be looked at."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if not self._unseen:
            return
        self._looked = self._loop.time()
        at_ns = time.monotonic_ns()
        try:
            table = Table()
            seen = {root: list(_seen(table, root)) for root in self._unseen}
        except OSError:  # no descriptor is left
            self._look_soon()
            return
        for root, found in seen.items():
            self._tell(self._family.look(root, started_pid(self._trees[root]), found, at_ns))
        self._unseen.clear()

    # ---- records

    def _tell(self, changes: Iterable[Change]) -> None:
        offset = time.time_ns() - time.monotonic_ns()
        for change in changes:
            root, event, at_ns, pid, name, number = change
            by = status = None
            if event == "exited":
                status = number
                text = "nobody knows how" if status is None else _words(from_wait_status(status, 0.0, 0.0))
            elif event in ("user", "group"):
                text = f"is {number} now"
            elif event == ADOPTED and number is None:
                text = "nobody knows from whom"
            elif number is not None:
                by, kin = number, self._family.kin.get(number)
                text = f"{'from' if event == ADOPTED else 'by'} {number}" + (f" ({kin.name})" if kin else "")
            else:
                text = ""
            self._put(self._trees[root], (at_ns + offset) / 1e9, event, pid, name, by, status, text)

    def _put(
        self, copy: Copy, at: float, event: str, pid: int, name: str, by: int | None = None, status: int | None = None,
        text: str = "",
    ) -> None:  # fmt: skip
        ring = self.ring(copy.name)
        ring.put(_record(ring, at, copy.incarnation, event, pid, name, by, status, text))


def started_pid(copy: Copy) -> int:
    """The process that its keeper has started, 0 before that, -1 where main has become another one."""
    return -1 if copy.tree.moves else copy.tree.pid


def _record(
    ring: Ring[LineageRecord], at: float, incarnation: int | None, event: str, pid: int | None, name: str,
    by: int | None = None, status: int | None = None, text: str = "",
) -> LineageRecord:  # fmt: skip
    return LineageRecord(ring.last + 1, at, incarnation, event, pid, name, by, status, text)


def _gap(first: LineageRecord) -> LineageRecord:
    """What a client is told that knows less than we remember; its number is one to go on from."""
    text = "what happened before this is forgotten here"
    return LineageRecord(first.seq - 1, first.time, None, "gap", None, "", None, None, text)


def _words(status: ExitStatus) -> str:
    return Exit(status.code, status.signal, status.core_dumped).words


def _glance(pid: int) -> tuple[int, str] | None:
    try:
        seen = look(pid)
    except OSError:
        return None
    # Who is just being reaped has no parent any more: /proc shows 0 (do_task_stat of fs/proc/array.c).
    return None if seen is None or seen.parent == 0 else (seen.parent, seen.name)


def _seen(table: Table, root: int) -> Iterator[Seen]:
    """Those who live below it, with their threads.  OSError: no descriptor is left."""
    awake_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()  # by so much start times are later
    for pid in table.below(root):
        try:
            tids = tuple(int(tid) for tid in os.listdir(f"/proc/{pid}/task"))
        except FileNotFoundError:
            continue
        each = table.seen[pid]
        if each.state in ENDED:  # its first thread has; the others may live
            tids = tuple(tid for tid in tids if tid != pid)
        if tids:
            yield Seen(pid, each.parent, each.name, each.start * 1_000_000_000 // TICKS - awake_ns, tids)
