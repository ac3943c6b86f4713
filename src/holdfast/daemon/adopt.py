"""Start-up: the only one there is.  What the run directory tells is looked up, connected, taken over.

For each service that has left something, the keeper of its last incarnation
  - answers on its socket: the tree is alive, or its end is still to be told;
  - has left a report: it ended while nobody was there;
  - is there and does not take us (frozen, has another owner yet, or we are out of descriptors): it is asked
    again and again, and until it answers its tree counts as alive;
  - is not there and has left nothing: it was lost, and what may be left of its tree is ended; or, without even
    a socket, it never came to be, and is started.
Whoever holds a keeper's socket and is none (a stranger) is left alone: that service waits until he has gone.

All keepers are heard at once.  What takes longer for one (it is frozen, its tree has to be ended) becomes a task
of its own, and the engine begins without it.  A first start is the case of an empty directory.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from holdfast.engine import events as ev
from holdfast.engine.effects import Record
from holdfast.engine.events import KEEPER_LOST, Exit
from holdfast.process import _native
from holdfast.process import events as told
from holdfast.process.held import HeldTree

from .copy import Copy
from .lost import KEEPER_NAME
from .mains import reported_exit
from .processes import is_stopped, name_of
from .supervisor import Supervisor

ANSWER_LIMIT = 3.0  # seconds for all keepers together; one that is silent for longer is frozen
LOOK_PAUSE = 0.1  # seconds until silent keepers are looked at: one that is stopped is not waited for
SILENT_LOOKS = 5  # so many looks in a row in which nobody has answered: who has not will not, for now
RETRY_PAUSE = 1.0  # seconds between two tries to reach a keeper that does not take us
HUNG_UP = "somebody who hangs up: a keeper with another owner, or no keeper"
SIGKILL = 9
POLLIN = 1


class _Found:
    """A service's last incarnation as start-up finds it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.copy: Copy | None = None
        self.said: list[told.Event] = []
        self.unreachable = ""  # why its keeper does not take us
        self.retired: list[Copy] = []  # earlier incarnations that were on their way out, beside it
        self.strays: list[int] = []  # earlier incarnations without a keeper, of which something is left
        self.ended: Exit | None = None  # from its report
        self.lost = False  # nobody is there, and nothing was left to say how it ended
        self.never_came = False  # the same, and not even a socket: the supervisor was killed before it made a keeper

    def heard(self, kind: type | tuple[type, ...]) -> bool:
        return any(isinstance(event, kind) for event in self.said)

    def is_alive(self) -> bool:
        """Something of it is there, or has to be treated as if it were."""
        return self.copy is not None or bool(self.unreachable) or self.lost

    def turned_away(self) -> bool:
        """Whoever is there hung up without a keeper's word: it has ended, or it has another owner, or is no keeper.
        We have let go of it."""
        if self.copy is None or not self.heard(told.KeeperGone) or self.heard((told.Spawned, told.Failed)):
            return False
        self.let_go()
        return True

    def let_go(self) -> None:
        assert self.copy is not None
        self.copy.close()
        self.copy = None
        self.said.clear()


async def adopt(supervisor: Supervisor) -> None:
    """Take over what there is, then let the engine begin."""
    supervisor.store.begin()
    supervisor.reach = lambda name, number: _reach_again(supervisor, name, number)
    found: list[_Found] = []
    held = 0
    for name in supervisor.store.names():
        if each := _find(supervisor, name, held):
            found.append(each)
            held += (each.copy is not None) + len(each.retired)
    # All together, and before anything is started: none of them must run beside its successor.
    await asyncio.gather(*(_sweep(supervisor, each.record.name, number) for each in found for number in each.strays))
    supervisor.found = len(found)
    await _hear(supervisor, [each for each in found if each.copy])
    # From here on nothing waits: what keepers say from now on comes after what they have said until now.
    for each in found:
        _judge(supervisor, each)
        _take_over(supervisor, each)
    supervisor.begin()
    for each in found:
        _go_on(supervisor, each)


def _find(supervisor: Supervisor, name: str, held: int) -> _Found | None:
    """None: nothing is left of it.  `held`: so many copies were found before."""
    store = supervisor.store
    record, numbers = store.record(name), store.incarnations(name)
    told = record
    if record is not None and record.next in numbers and os.path.exists(store.report(name, record.next)):
        numbers.remove(record.next)  # the successor has ended: who served before serves on
        supervisor.clean(name, record.next)
    if record is None:
        if not numbers:
            store.forget(name)
            return None
        record = Record(name, incarnation=numbers[0], live=True, reason="its record was lost")
    elif numbers and numbers[0] > record.incarnation:  # it could not be written: a full disk, say
        definition = record.next_definition if numbers[0] == record.next else record.definition
        record = replace(
            record, incarnation=numbers[0], live=True, stopping=False, ready_at=None, definition=definition
        )  # fmt: skip
    found = _Found(record)
    for number in numbers:
        if number == record.incarnation:
            continue
        if copy := told and _connect_retired(supervisor, told, number, held + len(found.retired)):
            found.retired.append(copy)
        elif not _end_stray(supervisor, name, number, held):
            found.strays.append(number)
    try:
        found.copy = _connect(supervisor, name, record.incarnation, held)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        found.unreachable = f"a keeper that does not take us: {error.strerror}"
    return found


def _connect(supervisor: Supervisor, name: str, incarnation: int, held: int) -> Copy:
    """OSError, too, when there are descriptors for no more than the `held` copies."""
    address = supervisor.store.address(name, incarnation)
    if os.path.exists(address):
        supervisor.starts.keep_spare_descriptors(held + 1)
    tree = HeldTree.attach(address)
    return Copy(name, incarnation, tree, os.path.join(supervisor.config.supervisor.log_dir, name))


def _connect_retired(supervisor: Supervisor, record: Record, number: int, held: int) -> Copy | None:
    """One that has a successor, or was to have one: it is to end with its grace.  None: it is no such, or does not take
    us, and is a stray as any other."""
    spec = supervisor.config.services.get(record.name)
    started_first = spec is not None and spec.restart_order == "start-first"
    if not (started_first or record.next or number in record.retired):
        return None
    try:
        return _connect(supervisor, record.name, number, held)
    except OSError:
        return None


def _end_stray(supervisor: Supervisor, name: str, incarnation: int, held: int) -> bool:
    """A tree that the records have moved on from: it must not run beside its successor.  False: its keeper is gone or
    frozen, and one of those who were written down lives on."""
    try:
        copy = _connect(supervisor, name, incarnation, held)
    except (FileNotFoundError, ConnectionRefusedError):
        if os.path.exists(supervisor.store.report(name, incarnation)):
            supervisor.clean(name, incarnation)  # it ended in order
        elif _lives(supervisor, name, incarnation):
            return False
        else:
            supervisor.run_task(_sweep(supervisor, name, incarnation))
        return True
    except OSError as error:
        text = f"the keeper of an earlier incarnation does not take us: {error}"
        supervisor.events.add("frozen", text, name, incarnation)
        return not _lives(supervisor, name, incarnation)
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
    return True


def _lives(supervisor: Supervisor, name: str, incarnation: int) -> bool:
    return any(who.alive() for who in supervisor.store.members(name, incarnation))


async def _sweep(supervisor: Supervisor, name: str, incarnation: int) -> None:
    if await supervisor.end_lost(name, incarnation) == 0:  # what outlives KILL is to be found the next time, too
        supervisor.clean(name, incarnation)


async def _hear(supervisor: Supervisor, found: list[_Found]) -> None:
    """Wait until every keeper that answers has said what it holds, within ANSWER_LIMIT together.  The others are there,
    and hold what they hold: they may speak later."""
    loop = asyncio.get_running_loop()
    silent = set(found)
    all_heard = asyncio.Event()

    def on_report(each: _Found) -> None:
        assert each.copy is not None
        each.said += each.copy.tree.events()
        if each.heard((told.Spawned, told.Failed, told.KeeperGone)):
            supervisor.adopted += each.heard((told.Spawned, told.Failed))
            forget(each)

    def forget(each: _Found) -> None:
        assert each.copy is not None
        loop.remove_reader(each.copy.tree.fileno())
        silent.discard(each)
        if not silent:
            all_heard.set()

    for each in found:
        assert each.copy is not None
        loop.add_reader(each.copy.tree.fileno(), on_report, each)
    deadline = loop.time() + ANSWER_LIMIT
    looks = 0
    while silent:
        before = len(silent)
        try:
            async with asyncio.timeout(LOOK_PAUSE):
                await all_heard.wait()
        except TimeoutError:
            # Counted in looks: a time in which we could not listen ourselves (imports) is no silence of theirs.
            looks = looks + 1 if len(silent) == before else 0
            late = looks == SILENT_LOOKS or loop.time() > deadline
            for each in list(silent):
                if each.copy and (late or is_stopped(each.copy.tree.keeper_pid) or _stranger(each.copy)):
                    forget(each)


def _judge(supervisor: Supervisor, found: _Found) -> None:
    """What has become of one whose keeper does not tell: by its report, and by who is there instead."""
    record = found.record
    report = supervisor.store.report(record.name, record.incarnation)
    if found.copy is not None and not found.heard((told.Spawned, told.Failed)):
        stranger = _stranger(found.copy)
        if found.turned_away() or stranger:
            # Without a report, another connection has to tell what it was.
            found.unreachable = stranger or ("" if os.path.exists(report) else HUNG_UP)
        if stranger and found.copy:
            found.let_go()
    if found.copy is None and not found.unreachable and record.live:
        ended = reported_exit(report, supervisor.config.services.get(record.name), record.step)
        found.ended = ended and supervisor.resources.explained(record.name, record.incarnation, ended)
        supervisor.chronicle.take_report(record.name, record.incarnation, report)
        found.lost = found.ended is None
        # The socket is made before the keeper, and removed after the end is on record.
        came = os.path.exists(supervisor.store.address(record.name, record.incarnation))
        came = came or bool(supervisor.store.members(record.name, record.incarnation))
        found.never_came = found.lost and not came


def _stranger(copy: Copy) -> str:
    """Who is at the other end and is no keeper; "" when it is one, or when nobody can say."""
    pid, pidfd = copy.tree.keeper_pid, copy.tree.keeper_pidfd
    name = name_of(pid) if pidfd >= 0 else ""
    if name in ("", KEEPER_NAME) or _native.poll(pidfd, POLLIN, 0):  # ended: the number may be another's by now
        return ""
    return f"a stranger at its keeper's socket: pid {pid} ({name})"


def _take_over(supervisor: Supervisor, found: _Found) -> None:
    """Tell the engine what was found of one service, and hear its keeper from now on."""
    record, copy = found.record, found.copy
    name, incarnation = record.name, record.incarnation
    alive = found.is_alive()
    supervisor.adopted += not alive
    ended = found.ended
    if found.lost and not found.never_came:
        ended = Exit(None, None, cause=KEEPER_LOST)  # before the engine begins: nothing shall start because it runs
    now = asyncio.get_running_loop().time()
    ready = record.ready_at is not None
    supervisor.chronicle.found(record)
    retired = tuple(each.incarnation for each in found.retired)
    supervisor.engine.adopt(name, record, alive=alive, ready=ready, exit=ended, now=now, retired=retired)
    for each in found.retired:
        supervisor.hold(each)
    if found.unreachable:
        supervisor.unreached[name] = found.unreachable
        supervisor.events.add("frozen", f"held by {found.unreachable}; it counts as alive", name, incarnation)
    if copy is not None:
        copy.silent = not found.heard((told.Spawned, told.Failed))
        supervisor.hold(copy)
        if found.heard(told.Spawned):
            supervisor.events.add("adopted", f"runs on as pid {copy.pid}", name, incarnation)
        elif copy.silent:
            supervisor.events.add("frozen", "its keeper does not answer; its tree counts as alive", name, incarnation)


def _go_on(supervisor: Supervisor, found: _Found) -> None:
    """What ended meanwhile is an event like any other; what takes longer is nobody else's matter."""
    if not found.is_alive():  # its end is on record by now, and not before: who is killed in between reads it again
        supervisor.clean(found.record.name, found.record.incarnation)
    if found.lost:
        supervisor.run_task(_end_lost(supervisor, found))
    if found.unreachable:
        supervisor.run_task(_reach(supervisor, found))
    _pass_on(supervisor, found)


def _pass_on(supervisor: Supervisor, found: _Found) -> None:
    for event in found.said:
        if found.copy is not None and not isinstance(event, told.Spawned):
            supervisor.on_event(found.copy, event)


async def _end_lost(supervisor: Supervisor, found: _Found) -> None:
    """What is left of its tree is ended; then it is empty, or it never was."""
    name, incarnation = found.record.name, found.record.incarnation
    if not found.never_came:
        supervisor.post(ev.KeeperLost(name, incarnation))
    survivors = await supervisor.end_lost(name, incarnation)
    supervisor.adopted += 1
    if found.never_came and not survivors:
        text = "the supervisor was killed at that moment"
        supervisor.post(ev.SpawnFailed(name, incarnation, text, temporary=True))
        return
    if found.never_came:
        supervisor.post(ev.KeeperLost(name, incarnation))
    await supervisor.settle_lost(name, incarnation, survivors)
    supervisor.clean(name, incarnation)


async def _reach_again(supervisor: Supervisor, name: str, incarnation: int) -> None:
    """One that was held, or waited for, has hung up and lives on."""
    supervisor.unreached[name] = HUNG_UP
    supervisor.found += 1
    await _reach(supervisor, _Found(Record(name, incarnation=incarnation)))


async def _reach(supervisor: Supervisor, found: _Found) -> None:
    """Until the keeper takes us, or is gone."""
    name, incarnation = found.record.name, found.record.incarnation
    while not await _taken(supervisor, found):
        if not found.unreachable:
            break
        supervisor.unreached[name] = found.unreachable
        await asyncio.sleep(RETRY_PAUSE)
    del supervisor.unreached[name]
    if found.copy is not None:
        found.copy.silent = not found.heard((told.Spawned, told.Failed))
        supervisor.hold(found.copy)
        if not found.copy.silent:
            supervisor.events.add("adopted", "its keeper answers again", name, incarnation)
        _pass_on(supervisor, found)
        return
    report = supervisor.store.report(name, incarnation)
    supervisor.chronicle.take_report(name, incarnation, report)
    ended = reported_exit(report, supervisor.config.services.get(name), supervisor.engine.view(name).step)
    if ended is None:
        await _end_lost(supervisor, found)
        return
    supervisor.adopted += 1
    supervisor.post(ev.Exited(name, incarnation, supervisor.resources.explained(name, incarnation, ended)))
    supervisor.post(ev.Emptied(name, incarnation, 0))
    supervisor.clean(name, incarnation)


async def _taken(supervisor: Supervisor, found: _Found) -> bool:
    """Try once more.  False: `unreachable` says why not; "" there when nobody is there any more."""
    try:
        found.copy = _connect(
            supervisor, found.record.name, found.record.incarnation, len(supervisor.copies) + supervisor.taking
        )
    except (FileNotFoundError, ConnectionRefusedError):
        found.unreachable = ""
        return False
    except OSError as error:
        found.unreachable = f"a keeper that does not take us: {error.strerror}"
        return False
    supervisor.taking += 1
    try:
        await _hear(supervisor, [found])
    finally:
        supervisor.taking -= 1
    stranger = _stranger(found.copy) if not found.heard((told.Spawned, told.Failed)) else ""
    if found.turned_away() or stranger:
        found.unreachable = stranger or HUNG_UP
        if found.copy:
            found.let_go()
        return False
    return True
