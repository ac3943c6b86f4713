"""Start-up: the only one there is.  What the run directory tells is looked up, connected, taken over.

For each service that has left something: the keeper of its last incarnation answers on its socket (the
tree is alive, or its end is still to be reported), or has left a report (it ended while nobody was
there), or neither (it was lost, or never came to be).  A first start is the case of an empty directory.
"""

from __future__ import annotations

import asyncio
import os

from holdfast.engine.effects import Record
from holdfast.engine.events import Exit
from holdfast.process import events as told
from holdfast.process.held import HeldTree

from .copy import Copy
from .supervisor import Supervisor, exit_of

ANSWER_LIMIT = 3.0  # seconds for all keepers together; one that is silent for longer is frozen
SIGKILL = 9


async def adopt(supervisor: Supervisor) -> None:
    """Take over what there is, then let the engine begin.  The control socket may be served meanwhile."""
    supervisor.store.begin()
    found: list[tuple[Copy, Record | None, list[told.Event]]] = []
    for name in supervisor.store.names():
        record = supervisor.store.record(name)
        copy = None
        for incarnation in supervisor.store.incarnations(name):
            tree = _connect(supervisor, name, incarnation)
            if tree is None:
                continue
            log_path = os.path.join(supervisor.config.supervisor.log_dir, name)
            here = Copy(name, incarnation, tree, log_path)
            if copy is None and (record is None or incarnation == record.incarnation):
                copy = here
                found.append((copy, record, []))
            else:
                _end_stray(supervisor, here)
        if copy is None and record is not None:
            _adopt_dead(supervisor, record)
    await _hear(found)
    for copy, record, said in found:
        _adopt_living(supervisor, copy, record, said)
    supervisor.state = "running"
    supervisor.run_effects(supervisor.engine.begin(asyncio.get_running_loop().time()))
    for copy, _, said in found:  # what ended meanwhile is an event like any other
        for event in said:
            if not isinstance(event, told.Spawned):
                supervisor.on_event(copy, event)


def _connect(supervisor: Supervisor, name: str, incarnation: int) -> HeldTree | None:
    try:
        return HeldTree.attach(supervisor.store.address(name, incarnation))
    except OSError:
        return None  # nobody there: a report tells, or nothing does


def _end_stray(supervisor: Supervisor, copy: Copy) -> None:
    """A tree that the records have moved on from: it must not run beside its successor."""
    supervisor.strays.add(copy)
    copy.tree.stop(SIGKILL, "tree", 0.0)
    loop = asyncio.get_running_loop()

    def on_report() -> None:
        for event in copy.tree.events():
            if isinstance(event, told.Empty):
                copy.tree.acknowledge(exited=True, empty=True)
            if isinstance(event, (told.Empty, told.KeeperGone, told.Failed)) and not copy.closed:
                supervisor.let_go(copy)
                return

    loop.add_reader(copy.tree.fileno(), on_report)
    supervisor.events.add("stray", "an earlier incarnation was still there: killed", copy.name, copy.incarnation)


def _adopt_dead(supervisor: Supervisor, record: Record) -> None:
    """No keeper: what it wrote before it ended, if anything."""
    ended: Exit | None = None
    path = supervisor.store.report(record.name, record.incarnation)
    if record.live and os.path.exists(path):
        for event in told.read_report(path):
            if isinstance(event, told.Exited):
                ended = exit_of(event.status)
    now = asyncio.get_running_loop().time()
    supervisor.engine.adopt(record.name, record, alive=False, ready=False, exit=ended, now=now)
    supervisor.store.forget_incarnation(record.name, record.incarnation)


async def _hear(found: list[tuple[Copy, Record | None, list[told.Event]]]) -> None:
    """Wait until every keeper has said what it holds, within ANSWER_LIMIT together."""
    loop = asyncio.get_running_loop()
    silent: set[Copy] = {copy for copy, _, _ in found}
    all_heard = asyncio.Event()

    def on_report(copy: Copy, said: list[told.Event]) -> None:
        said += copy.tree.events()
        if any(isinstance(event, (told.Spawned, told.Failed, told.KeeperGone)) for event in said):
            loop.remove_reader(copy.tree.fileno())
            silent.discard(copy)
            if not silent:
                all_heard.set()

    for copy, _, said in found:
        loop.add_reader(copy.tree.fileno(), on_report, copy, said)
    if silent:
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                await all_heard.wait()
        except TimeoutError:
            for copy in silent:  # frozen: it is there, and holds what it holds
                loop.remove_reader(copy.tree.fileno())


def _adopt_living(
    supervisor: Supervisor, copy: Copy, record: Record | None, said: list[told.Event]
) -> None:
    now = asyncio.get_running_loop().time()
    if record is None:
        record = Record(copy.name, incarnation=copy.incarnation, live=True, reason="its record was lost")
    if any(isinstance(event, told.KeeperGone) for event in said) and not any(
        isinstance(event, told.Spawned) for event in said
    ):
        # It ended between our connection and its first word: then it has written its report.
        copy.close()
        said.clear()
        _adopt_dead(supervisor, record)
        return
    supervisor.engine.adopt(copy.name, record, alive=True, ready=record.ready_at is not None, exit=None, now=now)
    supervisor.hold(copy)
    supervisor.events.add("adopted", f"runs on as pid {copy.pid}", copy.name, copy.incarnation)
