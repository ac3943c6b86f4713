"""Start-up: the only one there is.  What the run directory tells is looked up, connected, taken over.

For each service that has left something, the keeper of its last incarnation
  - answers on its socket: the tree is alive, or its end is still to be told;
  - has left a report: it ended while nobody was there;
  - is there and does not take us (frozen, has another owner yet, or we are out of descriptors): it is asked
    again and again, and until it answers its tree counts as alive;
  - is not there and has left nothing: it was lost, and what may be left of its tree is ended; or, without even
    a socket, it never came to be, and is started.
A first start is the case of an empty directory.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from holdfast.engine import events as ev
from holdfast.engine.effects import Record
from holdfast.engine.events import Exit
from holdfast.process import events as told
from holdfast.process.held import HeldTree

from .copy import Copy
from .supervisor import Supervisor, exit_of

ANSWER_LIMIT = 3.0  # seconds for all keepers together; one that is silent for longer is frozen
RETRY_PAUSE = 1.0  # seconds between two tries to reach a keeper that does not take us
SIGKILL = 9


class _Found:
    """A service's last incarnation as start-up finds it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.copy: Copy | None = None
        self.said: list[told.Event] = []
        self.survivors = 0  # of a tree whose keeper was lost, after it was killed
        self.unreachable = False
        self.ended: Exit | None = None  # from its report
        self.never_came = False  # the supervisor was killed between its record and its keeper

    def heard(self, kind: type | tuple[type, ...]) -> bool:
        return any(isinstance(event, kind) for event in self.said)

    def is_alive(self) -> bool:
        """Something of it is there, or is to be treated as if it were."""
        return self.copy is not None or self.unreachable or self.survivors > 0 or self.never_came

    def turned_away(self) -> bool:
        """Its keeper hung up without a word: it has ended, or it has another owner.  We have let go of it."""
        if self.copy is None or not self.heard(told.KeeperGone) or self.heard((told.Spawned, told.Failed)):
            return False
        self.copy.close()
        self.copy = None
        self.said.clear()
        return True


async def adopt(supervisor: Supervisor) -> None:
    """Take over what there is, then let the engine begin."""
    supervisor.store.begin()
    found = [each for name in supervisor.store.names() if (each := _find(supervisor, name))]
    await _hear([each for each in found if each.copy])
    for each in found:
        await _look_after(supervisor, each)
    # From here on nothing waits: what keepers say from now on comes after what they have said until now.
    for each in found:
        _take_over(supervisor, each)
    supervisor.begin()
    for each in found:
        _go_on(supervisor, each)


def _find(supervisor: Supervisor, name: str) -> _Found | None:
    store = supervisor.store
    record, numbers = store.record(name), store.incarnations(name)
    if record is None:
        if not numbers:
            store.forget(name)
            return None
        record = Record(name, incarnation=numbers[0], live=True, reason="its record was lost")
    elif numbers and numbers[0] > record.incarnation:  # it could not be written: a full disk, say
        record = replace(record, incarnation=numbers[0], live=True, stopping=False, ready_at=None)
    for number in numbers:
        if number != record.incarnation:
            _end_stray(supervisor, name, number)
    found = _Found(record)
    try:
        found.copy = _connect(supervisor, name, record.incarnation)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        found.unreachable = True
        supervisor.events.add("frozen", f"its keeper does not take us: {error}", name, record.incarnation)
    return found


def _connect(supervisor: Supervisor, name: str, incarnation: int) -> Copy:
    tree = HeldTree.attach(supervisor.store.address(name, incarnation))
    return Copy(name, incarnation, tree, os.path.join(supervisor.config.supervisor.log_dir, name))


def _end_stray(supervisor: Supervisor, name: str, incarnation: int) -> None:
    """A tree that the records have moved on from: it must not run beside its successor."""
    try:
        copy = _connect(supervisor, name, incarnation)
    except (FileNotFoundError, ConnectionRefusedError):
        supervisor.store.forget_incarnation(name, incarnation)
        return
    except OSError as error:  # what it holds is still its own, and its socket stays to be found
        text = f"the keeper of an earlier incarnation does not take us: {error}"
        supervisor.events.add("frozen", text, name, incarnation)
        return
    supervisor.events.add("stray", "an earlier incarnation was still there: killed", name, incarnation)
    supervisor.strays.add(copy)
    copy.stop(SIGKILL, "tree", 0.0)

    def on_report() -> None:
        for event in copy.tree.events():
            if isinstance(event, told.Empty):
                copy.tree.acknowledge(exited=True, stopped=True, empty=True)
            if isinstance(event, (told.Empty, told.KeeperGone, told.Failed)) and not copy.closed:
                supervisor.let_go(copy)

    asyncio.get_running_loop().add_reader(copy.tree.fileno(), on_report)


async def _hear(found: list[_Found]) -> None:
    """Wait until every keeper has said what it holds, within ANSWER_LIMIT together."""
    loop = asyncio.get_running_loop()
    silent = set(found)
    all_heard = asyncio.Event()

    def on_report(each: _Found) -> None:
        assert each.copy is not None
        each.said += each.copy.tree.events()
        if each.heard((told.Spawned, told.Failed, told.KeeperGone)):
            loop.remove_reader(each.copy.tree.fileno())
            silent.discard(each)
            if not silent:
                all_heard.set()

    for each in found:
        assert each.copy is not None
        loop.add_reader(each.copy.tree.fileno(), on_report, each)
    try:
        async with asyncio.timeout(ANSWER_LIMIT):
            while silent:
                await all_heard.wait()
    except TimeoutError:
        for each in silent:  # frozen: it is there, and holds what it holds
            assert each.copy is not None
            loop.remove_reader(each.copy.tree.fileno())


async def _look_after(supervisor: Supervisor, found: _Found) -> None:
    """Find out what has become of one whose keeper does not tell, and end what is left of it."""
    name, incarnation = found.record.name, found.record.incarnation
    report = supervisor.store.report(name, incarnation)
    if found.turned_away():
        # Without a report, another connection has to tell which.
        found.unreachable = not os.path.exists(report)
    if found.copy is None and not found.unreachable and found.record.live:
        found.ended = _reported_exit(report)
        if found.ended is None:
            found.survivors = await supervisor.end_lost(name, incarnation)
            # The socket is made before the keeper, and removed after the end is on record.
            found.never_came = not found.survivors and not os.path.exists(supervisor.store.address(name, incarnation))


def _take_over(supervisor: Supervisor, found: _Found) -> None:
    """Tell the engine what was found of one service, and hear its keeper from now on."""
    record, copy = found.record, found.copy
    name, incarnation = record.name, record.incarnation
    alive = found.is_alive()
    now = asyncio.get_running_loop().time()
    ready = record.ready_at is not None
    supervisor.engine.adopt(name, record, alive=alive, ready=ready, exit=found.ended, now=now)
    if copy is not None:
        supervisor.hold(copy)
        if found.heard(told.Spawned):
            supervisor.events.add("adopted", f"runs on as pid {copy.pid}", name, incarnation)
        elif not found.said:
            supervisor.events.add("frozen", "its keeper does not answer; its tree counts as alive", name, incarnation)


def _reported_exit(path: str) -> Exit | None:
    """What the keeper wrote of the end of main; None: there is no report."""
    try:
        said = told.read_report(path)
    except (OSError, ValueError):
        return None
    exits = [exit_of(event.status) for event in said if isinstance(event, told.Exited)]
    return exits[-1] if exits else Exit(None, None, cause="could not start") if said else None


def _go_on(supervisor: Supervisor, found: _Found) -> None:
    """What ended meanwhile is an event like any other; who could not be reached is tried again."""
    name, incarnation = found.record.name, found.record.incarnation
    if not found.is_alive():  # its end is on record by now, and not before: who is killed in between reads it again
        supervisor.store.forget_incarnation(name, incarnation)
    if found.never_came:
        supervisor.post(ev.SpawnFailed(name, incarnation, "the supervisor was killed at that moment", temporary=True))
    if found.survivors:
        supervisor.post(ev.KeeperLost(name, incarnation))
        supervisor.run_task(supervisor.settle_lost(name, incarnation, found.survivors))
    if found.unreachable:
        supervisor.run_task(_reach(supervisor, found))
    _pass_on(supervisor, found)


def _pass_on(supervisor: Supervisor, found: _Found) -> None:
    for event in found.said:
        if found.copy is not None and not isinstance(event, told.Spawned):
            supervisor.on_event(found.copy, event)


async def _reach(supervisor: Supervisor, found: _Found) -> None:
    """Until the keeper takes us, or is gone."""
    name, incarnation = found.record.name, found.record.incarnation
    while True:
        try:
            found.copy = _connect(supervisor, name, incarnation)
        except (FileNotFoundError, ConnectionRefusedError):
            break
        except OSError:
            pass
        else:
            await _hear([found])
            if not found.turned_away():
                supervisor.hold(found.copy)
                supervisor.events.add("adopted", "its keeper answers again", name, incarnation)
                _pass_on(supervisor, found)
                return
        await asyncio.sleep(RETRY_PAUSE)
    supervisor.post(ev.KeeperLost(name, incarnation))
    ended = _reported_exit(supervisor.store.report(name, incarnation))
    if ended is not None:
        supervisor.post(ev.Exited(name, incarnation, ended))
    survivors = 0 if ended else await supervisor.end_lost(name, incarnation)
    await supervisor.settle_lost(name, incarnation, survivors)
