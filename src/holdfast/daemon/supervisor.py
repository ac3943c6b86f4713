"""The supervisor: events go into the engine, its effects come out into the world, one after another.

Everything happens in the loop's thread.  An effect may be an event at once (a start that cannot be
made); such events queue up and are handled in turn, so the engine is never entered twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine

from holdfast.config.diff import applied
from holdfast.config.model import Config, Service
from holdfast.engine import effects as fx
from holdfast.engine import events as ev
from holdfast.engine.effects import Record
from holdfast.engine.engine import Engine
from holdfast.process import events as told

from .chronicle import Chronicle
from .copy import FROZEN_LIMIT, Copy
from .events import EventLog
from .lineage import Lineage
from .lost import Lost, LostTrees
from .mains import Mains, exit_of
from .members import MemberFiles
from .plan import Surroundings, marks
from .probes import Probes
from .processes import is_below
from .resources import Resources
from .scheduler import Scheduler
from .sockets import Sockets
from .starts import Starts, is_temporary, why_not
from .store import Store
from .stored import Stored
from .systemd import Manager
from .terminals import Terminals
from .update import Updates
from .upgrade import Upgrade, keep_running
from .voices import Voices


class Supervisor:
    """All services of one run directory.  For one asyncio loop; `begin` is its start, `finished` its end."""

    def __init__(
        self,
        config: Config,
        around: Surroundings,
        *,
        version: str,
        anchor_pid: int | None = None,
        restarts: int = 0,
    ) -> None:
        self.config = config
        self.around = around
        self.version = version
        self.anchor_pid = anchor_pid
        self.restarts = restarts  # how often the anchor has started us again
        self.state = "adopting"
        self.found = self.adopted = 0  # services that an earlier supervisor has left; those whose fate is known
        self.taking = 0  # keepers that are being asked, one by one, and are not in `copies` yet
        self.unreached: dict[str, str] = {}  # who holds a service that start-up knows of and cannot take over
        self.started = time.monotonic()
        self.events = EventLog()
        self.store = Store(config.supervisor.run_dir)
        self.copies: dict[str, Copy] = {}  # those that serve
        self.beside: dict[tuple[str, int], Copy] = {}  # their successors, and those that are on their way out
        self.by_keeper: dict[int, Copy] = {}  # both, by their keepers' numbers
        self.retired: dict[str, Service] = {}  # taken out of the configuration while we run: how they are to stop
        self.strays: set[Copy] = set()  # of earlier incarnations, being stopped
        self.reach: Callable[[str, int], Coroutine[None, None, None]]  # start-up's way to a keeper that is silent
        self.lost = LostTrees(self._keepers)
        self.members = MemberFiles(self.store, self.events)
        self._loop = asyncio.get_running_loop()
        self.engine = Engine(
            config.services, config.supervisor.start_budget, seed=random.getrandbits(32), now=self._loop.time()
        )
        self.finished: asyncio.Future[int] = self._loop.create_future()
        # We go, and the services run on: to the next version of us, or with nobody.
        self.left: asyncio.Future[Upgrade | None] = self._loop.create_future()
        self._queue: deque[ev.Event] = deque()
        self._stepping = False
        self._end_asked: str | None = None  # during start-up, and by whom
        self._unheard: set[tuple[str, int]] = set()  # stops of incarnations that no keeper is held of
        self._timer: asyncio.TimerHandle | None = None
        self._changed: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.chronicle = Chronicle(self)
        self.voices = Voices(self)
        self.probes = Probes(self)
        self.mains = Mains(self)
        self.scheduler = Scheduler(self)
        self.updates = Updates(self)
        self.manager = Manager(self, around.own)
        self.terminals = Terminals(self)
        self.sockets = Sockets(self)
        self.starts = Starts(self)
        self.resources = Resources(self)
        self.stored = Stored(self)
        self.lineage = Lineage(self)

    # ---- the one way in

    def post(self, event: ev.Event) -> None:
        """Let the engine handle an event, and do what it says."""
        self._queue.append(event)
        if not self._stepping:
            self._step()

    def begin(self) -> None:
        """Start-up knows what there is: start what is missing, end what shall not be."""
        self.state = "running"
        self.lineage.begin()
        if self._end_asked is not None:
            self.shut_down(self._end_asked)
        self._stepping = True
        try:
            for effect in self.engine.begin(self._loop.time()):
                self._perform(effect)
        finally:
            self._stepping = False
        self.sockets.begin()
        self.chronicle.begin()
        self.probes.begin()
        self._step()
        self.scheduler.begin()
        self.manager.ready()

    def _step(self) -> None:
        self._stepping = True
        try:
            while self._queue:
                for effect in self.engine.handle(self._queue.popleft(), self._loop.time()):
                    self._perform(effect)
        finally:
            self._stepping = False
        self._set_timer()
        changed, self._changed = self._changed, []
        for waiter in changed:
            if not waiter.done():
                waiter.set_result(None)

    def _set_timer(self) -> None:
        wake = self.engine.next_wake()
        if self._timer is not None:
            if self._timer.when() == wake:
                return
            self._timer.cancel()
            self._timer = None
        if wake is not None:
            self._timer = self._loop.call_at(wake, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.post(ev.Woken())

    def take(self, config: Config, by: str) -> None:
        """Follow another configuration, which is the accepted one by now."""
        gone = {name: spec for name, spec in self.config.services.items() if name not in config.services}
        self.retired = {name: spec for name, spec in {**self.retired, **gone}.items() if name not in config.services}
        before, self.config = self.config.services, config
        for copy in self.all_copies():
            spec, old = config.services.get(copy.name), before.get(copy.name)
            if spec and old and spec.on_owner_loss != old.on_owner_loss:
                copy.set_on_owner_loss(spec.on_owner_loss)
            if spec and old and spec.pid_file != old.pid_file:
                self.mains.renew(copy)
        self.sockets.apply()  # before anything starts: an address may be another service's now
        self.post(ev.PlanChanged(config.services, config.supervisor.start_budget, by))
        for name, spec in config.services.items():
            if name in before and before[name].health != spec.health == applied(before[name], spec).health:
                self.probes.renew(name)
            if name in before and before[name].resources != spec.resources == applied(before[name], spec).resources:
                self.resources.apply(name)
        self.scheduler.begin()
        self.lineage.apply()

    async def changed(self) -> None:
        """Return after the next step: somebody waits for a state."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._changed.append(waiter)
        await waiter

    # ---- effects

    def _perform(self, effect: fx.Effect) -> None:
        """Do it.  An error here is ours to tell, and no reason to leave the effects behind it undone."""
        try:
            self._do(effect)
        except Exception as error:
            self.events.add("error", f"{type(effect).__name__}: {error!r}", getattr(effect, "name", ""))

    def _do(self, effect: fx.Effect) -> None:
        self.chronicle.perform(effect)
        if isinstance(effect, fx.Save):
            self._save(effect.record)
        elif isinstance(effect, fx.Spawn):
            failed = self.starts.start(effect)
            if failed is not None:
                self._queue.append(failed)
        elif isinstance(effect, fx.Stop):
            self._stop(effect.name, effect.incarnation)
        elif isinstance(effect, fx.Serve):
            self._serve(effect.name, effect.incarnation)
        elif isinstance(effect, fx.Tell):
            copy = self.copies.get(effect.name)
            text = f"pid {copy.pid}" if effect.what == "ready" and copy and copy.pid else effect.text
            self.events.add(effect.what, text, effect.name, effect.incarnation)
            self.probes.tell(effect)
            self.sockets.heed(effect.name)
        elif isinstance(effect, fx.Forget):
            self.store.forget(effect.name)
            self.retired.pop(effect.name, None)
        elif isinstance(effect, fx.Finish) and not self.finished.done():
            self.finished.set_result(effect.status)

    def _save(self, record: Record) -> None:
        try:
            self.store.save(record)
        except OSError as error:
            # The services go on; what is lost is what a supervisor after us would have known.
            self.events.add("error", f"cannot write the record: {error}", record.name, record.incarnation)

    def _serve(self, name: str, incarnation: int) -> None:
        if name in self.copies:
            before = self.copies.pop(name)
            self.beside[name, before.incarnation] = before
        if (name, incarnation) in self.beside:
            self.copies[name] = self.beside.pop((name, incarnation))

    def copy_of(self, name: str, incarnation: int) -> Copy | None:
        copy = self.copies.get(name)
        return copy if copy and copy.incarnation == incarnation else self.beside.get((name, incarnation))

    def all_copies(self) -> list[Copy]:
        return [*self.copies.values(), *self.beside.values()]

    def log_path(self, name: str) -> str:
        return os.path.join(self.config.supervisor.log_dir, name)

    def _stop(self, name: str, incarnation: int) -> None:
        copy = self.copy_of(name, incarnation)
        if copy is None:
            # Its end is already on the way; or its keeper could not be reached yet, and hears it then.
            self._unheard.add((name, incarnation))
            return
        spec = self.config.services.get(name) or self.retired.get(name)
        if spec is not None:
            copy.stop(spec.stop_signal, spec.stop_scope, spec.grace)
        else:
            copy.stop(signal.SIGTERM, "group", 10.0)  # not configured any more

    # ---- what the keepers say

    def hold(self, copy: Copy) -> None:
        """Listen to a copy's keeper from now on."""
        if self.engine.units[copy.name].incarnation == copy.incarnation:
            self.copies[copy.name] = copy
        else:
            self.beside[copy.name, copy.incarnation] = copy
        self.by_keeper[copy.tree.keeper_pid] = copy
        if copy.tree.attached:
            copy.below_anchor = self.is_below_anchor(copy)
        self.members.take_over(copy)
        self.resources.hold(copy)
        self.lineage.hold(copy)
        self._loop.add_reader(copy.tree.fileno(), self._on_report, copy)
        # Who had it before us may have changed it, or was started with another configuration.
        copy.set_on_owner_loss(self.on_owner_loss(copy.name))
        if (copy.name, copy.incarnation) in self._unheard:
            self._unheard.discard((copy.name, copy.incarnation))
            self._stop(copy.name, copy.incarnation)

    def is_below_anchor(self, copy: Copy) -> bool:
        return self.anchor_pid is not None and is_below(copy.tree.keeper_pid, self.anchor_pid, 1)

    def _on_report(self, copy: Copy) -> None:
        for event in copy.tree.events():
            self.on_event(copy, event)

    def on_event(self, copy: Copy, event: told.Event) -> None:
        name, incarnation = copy.name, copy.incarnation
        self.chronicle.heard(name, incarnation, event)
        self.lineage.heard(copy, event)
        if copy.silent and isinstance(event, (told.Spawned, told.Failed, told.KeeperGone)):
            copy.silent = False
            self.adopted += 1
            if isinstance(event, told.Spawned):
                self.events.add("adopted", "its keeper answers again", name, incarnation)
        if isinstance(event, told.Spawned):
            self.members.write(copy)
            self.post(ev.Spawned(name, incarnation))
        elif isinstance(event, told.Failed):
            self._acknowledge(copy)
            reason = why_not(self.config.services.get(name), self.engine.view(name).step, event)
            self.post(ev.SpawnFailed(name, incarnation, reason, is_temporary(event.errno)))
        elif isinstance(event, told.Moved):
            self.mains.moved(copy, event)
        elif isinstance(event, told.Exited):
            ended = self.resources.explained(name, incarnation, self.mains.end_of(copy, event.status))
            self.post(ev.Exited(name, incarnation, ended))
        elif isinstance(event, told.StopReported):
            copy.stopped()
            if not event.report.empty:
                self.post(ev.Emptied(name, incarnation, max(1, len(event.report.survivors))))
        elif isinstance(event, told.Empty):
            self.post(ev.Emptied(name, incarnation, 0))
            # Only now is the exit on record: until here the keeper would have told it to the next supervisor.
            self._acknowledge(copy)
        elif isinstance(event, told.Adopted):
            self.members.write_soon(copy)
            self.mains.look(copy)
        elif isinstance(event, told.LogState):
            self._on_log_state(copy, event)
        elif isinstance(event, told.KeeperGone) and not copy.closed:
            self._on_keeper_gone(copy)

    def _acknowledge(self, copy: Copy) -> None:
        """Let the keeper end."""
        try:
            copy.tree.acknowledge(exited=True, stopped=True, empty=True)
        except BlockingIOError:
            pass  # frozen, with its socket full: without us, it writes a report and ends
        self.let_go(copy)

    def _on_log_state(self, copy: Copy, event: told.LogState) -> None:
        if event.lost > copy.lost or event.dropped > copy.dropped:
            why = "past the cap" if event.dropped > copy.dropped else "it is written again"
            why = os.strerror(event.error) if event.error else why
            self.events.add(
                "log_loss", f"{event.lost} bytes lost and {event.dropped} dropped so far: {why}", copy.name,
                copy.incarnation,
            )  # fmt: skip
        copy.lost, copy.dropped, copy.log_error = event.lost, event.dropped, event.error

    def _on_keeper_gone(self, copy: Copy) -> None:
        self._loop.remove_reader(copy.tree.fileno())
        copy.stopped()
        if copy.keeper_ended():
            self.post(ev.KeeperLost(copy.name, copy.incarnation))
            self.run_task(self._end_lost_copy(copy))
        else:
            self.run_task(self._after_hang_up(copy))

    async def _after_hang_up(self, copy: Copy) -> None:
        """Its keeper is about to end; or it does not take us: then it holds what it holds, and is asked again."""
        deadline = self._loop.time() + FROZEN_LIMIT
        while copy.tree.proved and self._loop.time() < deadline:
            if copy.keeper_ended():
                self.post(ev.KeeperLost(copy.name, copy.incarnation))
                await self._end_lost_copy(copy)
                return
            await asyncio.sleep(0.01)
        self._drop(copy)
        copy.close()
        await self.reach(copy.name, copy.incarnation)

    async def _end_lost_copy(self, copy: Copy) -> None:
        survivors = await self.end_lost(copy.name, copy.incarnation, copy)
        if copy.tree.status is None:
            status = copy.tree.recover_status()
            if status is not None:
                ended = self.resources.explained(copy.name, copy.incarnation, exit_of(status))
                self.post(ev.Exited(copy.name, copy.incarnation, ended))
        self._drop(copy)
        await self.settle_lost(copy.name, copy.incarnation, survivors)
        copy.close()
        self.clean(copy.name, copy.incarnation)

    async def end_lost(self, name: str, incarnation: int, copy: Copy | None = None) -> int:
        """Kill what a lost keeper has left; how many survive."""
        members = self.store.members(name, incarnation)
        tree, below_anchor = (copy.tree, copy.below_anchor) if copy else (None, False)
        cgroups = self.resources.of(name, incarnation)
        case = Lost(marks(name, incarnation, self.around), members, tree, below_anchor=below_anchor, cgroups=cgroups)
        return await self.lost.end(name, incarnation, case)

    async def settle_lost(self, name: str, incarnation: int, survivors: int) -> None:
        """What `end_lost` has left is reported, and its end awaited: nothing is started beside it."""
        if survivors:
            self.post(ev.Emptied(name, incarnation, survivors))
            await self.lost.gone(name, incarnation)
        self.post(ev.Emptied(name, incarnation, 0))

    def _keepers(self) -> set[int]:
        return {copy.tree.keeper_pid for copy in (*self.all_copies(), *self.strays)}

    def run_task(self, work: Coroutine[None, None, None]) -> None:
        """Run work beside everything else; it is cancelled at the end."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def let_go(self, copy: Copy) -> None:
        """Nothing more will be said of it."""
        if not copy.closed:
            self._loop.remove_reader(copy.tree.fileno())
        copy.close()
        self._drop(copy)
        self.strays.discard(copy)
        self.clean(copy.name, copy.incarnation)

    def _drop(self, copy: Copy) -> None:
        self.lineage.let_go(copy)
        if self.copies.get(copy.name) is copy:
            del self.copies[copy.name]
        elif self.beside.get((copy.name, copy.incarnation)) is copy:
            del self.beside[copy.name, copy.incarnation]
        if self.by_keeper.get(copy.tree.keeper_pid) is copy:
            del self.by_keeper[copy.tree.keeper_pid]

    def clean(self, name: str, incarnation: int) -> None:
        """Remove the files of an incarnation of which nothing is left."""
        try:
            self.resources.remove(name, incarnation)
            self.store.forget_incarnation(name, incarnation)
        except OSError as error:
            self.events.add("error", f"cannot remove its files: {error}", name, incarnation)

    # ---- the end

    def shut_down(self, by: str = "") -> None:
        """Stop everything, in order; `finished` tells when that is done.  `by`: who asked, for people."""
        if self.state == "adopting":
            self._end_asked = by  # the engine does not know yet what there is to stop
            return
        self.state = "stopping"
        self.post(ev.ShutdownAsked(by))

    def remind_anchor(self, signo: int = signal.SIGTERM) -> None:
        """Let the anchor know that the end was asked for, as if it had come by signal: it tells our successor, should
        we be killed on the way.  It is our parent, so its number is its own."""
        if self.anchor_pid is not None and self.anchor_pid == os.getppid():
            os.kill(self.anchor_pid, signo)

    def on_owner_loss(self, name: str) -> str:
        """What is configured for it; a service that is in no configuration any more is not ours to end by dying."""
        spec = self.config.services.get(name)
        return spec.on_owner_loss if spec else "keep"

    def leave(self) -> None:
        """Give the trees up without stopping them: their on_owner_loss rules."""
        if self.left.done():
            keep_running(self)
        for copy in [*self.all_copies(), *self.strays]:
            if not copy.closed:
                self._loop.remove_reader(copy.tree.fileno())
            copy.close()
        self.starts.close()
        self.sockets.close()
        self.stored.close()
        self.voices.close()
        self.probes.close()
        self.mains.close()
        self.scheduler.close()
        self.terminals.close()
        self.resources.close()
        self.lineage.close()
        for task in self._tasks:
            task.cancel()
        self.lost.close()
        self.chronicle.close()
        self.manager.close(for_good=not self.left.done() or self.left.result() is None)
