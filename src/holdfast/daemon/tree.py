"""The tree of a service as it is now: /proc says who lives, the lineage how each came to be.  For the loop's thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from holdfast.process.lineage import ADOPTED, STARTED, UNKNOWN

from .lineage import started_pid
from .processes import PAGE, TICKS, Seen, Table
from .status import Ancestry, ServiceTree, TreeProcess

if TYPE_CHECKING:
    from .copy import Copy
    from .supervisor import Supervisor

STATES = {"R": "running", "S": "sleeping", "D": "waiting", "T": "stopped", "t": "traced", "Z": "ended", "X": "ended"}


def ancestry(supervisor: Supervisor, name: str) -> Ancestry:
    """Everything that lives of a service."""
    table = Table()
    first = [supervisor.copies[name]] if name in supervisor.copies else []
    copies = [*first, *(copy for (each, _), copy in sorted(supervisor.beside.items()) if each == name)]
    source, why = supervisor.lineage.source(name)
    trees = [
        ServiceTree(
            copy.incarnation,
            copy.tree.keeper_pid,
            [_process(supervisor, copy, table.seen[pid]) for pid in table.below(copy.tree.keeper_pid)],
        )
        for copy in copies
        if copy.tree.keeper_pid
    ]
    return Ancestry(name, source, why, supervisor.lineage.lost, supervisor.lineage.last(name), trees)


def _process(supervisor: Supervisor, copy: Copy, seen: Seen) -> TreeProcess:
    tree = copy.tree
    kin = supervisor.lineage.kin(seen.pid)
    now, monotonic_ns = time.time(), time.monotonic_ns()
    how, by, at, executed = UNKNOWN, None, None, None
    if kin is not None:
        how, by, executed = kin.how, kin.by, kin.executed
        at = None if kin.at_ns is None else now - (monotonic_ns - kin.at_ns) / 1e9
    elif seen.pid == started_pid(copy) and tree.status is None:
        how, by, at = STARTED, tree.keeper_pid, tree.started_at
    elif seen.parent == tree.keeper_pid:
        how = ADOPTED  # by its keeper: nobody else gives it children
    booted = now - time.clock_gettime(time.CLOCK_BOOTTIME)
    return TreeProcess(
        pid=seen.pid,
        name=seen.name,
        main=seen.pid == copy.pid,
        parent=seen.parent,
        session=seen.session,
        group=seen.group,
        state=STATES.get(seen.state, "sleeping"),
        started_at=round(booted + seen.start / TICKS, 3),
        cpu_seconds=round(seen.ticks / TICKS, 2),
        memory_bytes=seen.pages * PAGE,
        how=how,
        by=by,
        at=at,
        executed=executed,
    )
