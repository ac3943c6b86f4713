"""Whether services are ready, and whether they are well: who is asked or listened to, and when the engine is told.

In: what the engine tells of each incarnation (spawned, ready, its end), and what services say (sd_notify).  Out: events
for the engine.  From its start to being ready an incarnation has one task, from then on one for its health and one for
its watchdog; no question overlaps another of its kind, and all questions together are bounded.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import TYPE_CHECKING

from holdfast.config.model import Health, Probe, Ready, Service
from holdfast.engine import effects as fx
from holdfast.engine import events as ev
from holdfast.engine.service import ServiceView
from holdfast.engine.table import State
from holdfast.process.options import Plan

from . import hear
from .ask import Answer, ask, shown
from .status import HealthStatus
from .store import write_by_rename
from .watch import Watcher

if TYPE_CHECKING:
    from .supervisor import Supervisor

ASKED_AT_ONCE = 32  # questions to all services together; further ones wait, and their limits begin later
ATTEMPT_LIMIT = 5.0  # seconds for one try whether a service is ready, or `interval` where that is longer
JITTER = 0.1  # part of an interval by which it is made longer or shorter
LATE = 1.0  # seconds; a supervisor that looks so late was held up itself: what it has not heard says nothing
ENDS = ("stopping", "exited", "lost", "emptied")
Key = tuple[str, int]


class Watch:
    """One service's health, or its watchdog, while it is ready: what is known, and whether that is too bad."""

    def __init__(self, what: str, key: Key, period: float, failures: int, now: float) -> None:
        self.what = what
        self.key = key
        self.period = period
        self.limit = failures
        self.failures = 0  # in a row
        self.failed = self.checks = 0
        self.well: bool | None = None
        self.text = ""
        self.checked_at: float | None = None
        self.since = now  # when it was heard, or missed, last

    def status(self, now: float) -> HealthStatus:
        state = "unknown" if self.well is None else "ok" if self.well else "failing"
        ago = None if self.checked_at is None else round(now - self.checked_at, 3)
        return HealthStatus(state, self.failures, self.text, ago, self.checks, self.failed)


class Probes:
    """The probes of one supervisor's services.  For its loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[Key, list[asyncio.Task[None]]] = {}
        self._watches: dict[Key, list[Watch]] = {}
        self._early: set[Key] = set()  # of type `forking`: ready, but for the fork
        self._slots = asyncio.Semaphore(ASKED_AT_ONCE)
        self._watcher = Watcher()

    # ---- what the supervisor calls

    def prepare(self, spec: Service, incarnation: int, log_path: str, plan: Plan) -> None:
        """Before a start.  OSError."""
        for what, probe in (("ready", spec.awaits), ("health", spec.health)):
            if probe is not None:
                hear.prepare(probe, self._supervisor.store.heard(spec.name, incarnation, what), log_path, plan)

    def begin(self) -> None:
        """Start-up is over: those that an earlier supervisor has left are looked after."""
        for view in self._supervisor.engine.views():
            if (view.name, view.incarnation) not in self._tasks:
                self._look_after(view)

    def renew(self, name: str) -> None:
        """The configuration has another `ready` or `health` for it.  What runs meets it at once, from zero failures;
        but a descriptor (`fd`) it has only from its next start on."""
        self._look_after(self._supervisor.engine.view(name))

    def _look_after(self, view: ServiceView) -> None:
        if view.live and view.state in (State.STARTING, State.RUNNING):
            self._go_on((view.name, view.incarnation), ready=view.ready)

    def tell(self, effect: fx.Tell) -> None:
        """The engine tells of a life."""
        if effect.incarnation is None:
            return
        key = effect.name, effect.incarnation
        if effect.what in ("spawned", "ready"):
            self._go_on(key, ready=effect.what == "ready")
        elif effect.what in ENDS:
            self._end(key)

    def said(self, name: str, incarnation: int, fields: Mapping[str, str]) -> None:
        """A service has said something of itself."""
        spec = self._supervisor.config.services.get(name)
        awaits = spec.awaits if spec else None
        if fields.get("READY") == "1" and (awaits is None or awaits.notify):
            self._is_ready((name, incarnation))
        for watch in list(self._watches.get((name, incarnation), ())):
            by_word = watch.what == "watchdog" or bool(spec and spec.health and spec.health.notify)
            period = fields.get("WATCHDOG_USEC", "")
            if watch.what == "watchdog" and period.isdecimal() and 0 < len(period) < 16 and int(period):
                self._set_period(watch, int(period))
            if by_word and fields.get("WATCHDOG") == "1":
                self._hear(watch, "WATCHDOG=1")
            elif by_word and fields.get("WATCHDOG") == "trigger":
                self._judge(watch, Answer(False, "it says so itself"), at_once=True)

    def health(self, name: str, incarnation: int) -> HealthStatus | None:
        """What is known now; None: nobody looks.  Of several the worst."""
        watches = self._watches.get((name, incarnation))
        if not watches:
            return None
        worst = min(watches, key=lambda watch: (watch.well is not False, watch.well is not None))
        return worst.status(self._loop.time())

    def close(self) -> None:
        for key in list(self._tasks):
            self._end(key)
        self._watcher.close()

    # ---- lives

    def _go_on(self, key: Key, *, ready: bool) -> None:
        self._end(key)
        spec = self._supervisor.config.services.get(key[0])
        if spec is None:
            return
        unit = self._supervisor.engine.units[key[0]]
        if key[1] not in (unit.incarnation, unit.next and unit.next.incarnation) or unit.step != "main":
            return  # a `pre_start` or `post_stop` is nobody to ask; or it is over already
        if unit.phase.state not in (State.STARTING, State.RUNNING):
            return
        awaits, health = spec.awaits, spec.health
        if not ready:
            if awaits is not None and awaits.kind and not awaits.notify:
                work = self._hear_ready if awaits.kind in hear.HEARD else self._ask_ready
                self._run(key, work(key, spec, awaits))
            return
        if health is not None:
            watch = self._watch("health", key, health.interval, health.failures)
            if health.kind in hear.HEARD:
                self._run(key, self._hear_health(watch, spec, health))
            heard = health.notify or health.kind in hear.HEARD
            self._run(key, self._miss(watch) if heard else self._ask_health(watch, spec, health))
        if spec.watchdog is not None:
            self._run(key, self._miss(self._watch("watchdog", key, self._period(key) or spec.watchdog, 1)))

    def _watch(self, what: str, key: Key, period: float, failures: int) -> Watch:
        watch = Watch(what, key, period, failures, self._loop.time())
        self._watches.setdefault(key, []).append(watch)
        return watch

    def _run(self, key: Key, work: Coroutine[None, None, None]) -> None:
        self._tasks.setdefault(key, []).append(self._loop.create_task(self._guard(key, work)))

    async def _guard(self, key: Key, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # of ours: it is told, and the service is left as it is
            self._supervisor.events.add("error", f"its probe: {error!r}", *key)

    def _end(self, key: Key) -> None:
        for task in self._tasks.pop(key, ()):
            task.cancel()
        self._watches.pop(key, None)
        self._early.discard(key)

    # ---- ready

    async def _ask_ready(self, key: Key, spec: Service, ready: Ready) -> None:
        doubts = ""
        while True:
            answer = await self._ask(ready, max(ready.interval, ATTEMPT_LIMIT), key, spec)
            if answer.well:
                self._is_ready(key)
                return
            if answer.text != doubts:
                doubts = answer.text
                self._supervisor.post(ev.NotReadyYet(*key, doubts))
            await asyncio.sleep(_jittered(ready.interval))

    async def _hear_ready(self, key: Key, spec: Service, ready: Ready) -> None:
        async for _ in self._words(ready, "ready", key, spec):
            self._is_ready(key)
            return

    def _is_ready(self, key: Key) -> None:
        """Who was asked says so, or it does itself.  One that forks is not ready before what was started has ended
        well: until then nobody knows its main process, and somebody else may have answered in its place."""
        spec, copy = self._supervisor.config.services.get(key[0]), self._supervisor.copy_of(*key)
        if spec is not None and spec.type == "forking" and not (copy and copy.tree.moves):
            self._early.add(key)
            try:  # our successor has to know: READY=1 is said once
                write_by_rename(self._supervisor.store.heard(*key, "early"), b"")
            except OSError as error:
                self._supervisor.events.add("error", f"that it has answered is not on disk: {error}", *key)
            self._supervisor.post(ev.NotReadyYet(*key, "it answers, but what was started has not ended yet"))
        else:
            self._supervisor.post(ev.BecameReady(*key))

    def forked(self, key: Key) -> None:
        """What was started has ended well, and has left its main process."""
        spec = self._supervisor.config.services.get(key[0])
        early = key in self._early or os.path.exists(self._supervisor.store.heard(*key, "early"))
        if early or (spec is not None and spec.awaits is not None and not spec.awaits.kind):
            self._early.discard(key)
            self._supervisor.post(ev.BecameReady(*key))

    # ---- health

    async def _ask_health(self, watch: Watch, spec: Service, health: Health) -> None:
        await asyncio.sleep(random.uniform(0, health.interval))  # those that became ready together part here
        while True:
            self._judge(watch, await self._ask(health, health.timeout, watch.key, spec))
            await asyncio.sleep(_jittered(health.interval))

    async def _hear_health(self, watch: Watch, spec: Service, health: Health) -> None:
        async for word in self._words(health, "health", watch.key, spec):
            self._hear(watch, word)

    async def _miss(self, watch: Watch) -> None:
        """Notice that it has said nothing for a whole period."""
        while True:
            late = self._loop.time() - (watch.since + watch.period)
            if late < 0:
                await asyncio.sleep(-late)
                continue
            watch.since = self._loop.time()
            if late < LATE:
                self._judge(watch, Answer(False, f"nothing heard for {watch.period:g}s"))

    def _hear(self, watch: Watch, word: str) -> None:
        watch.since = self._loop.time()
        self._judge(watch, Answer(True, shown(word)))

    def _judge(self, watch: Watch, answer: Answer, *, at_once: bool = False) -> None:
        """Take an answer; tell what changes, and the engine when it is too bad."""
        was = watch.well
        watch.text, watch.checked_at = answer.text, self._loop.time()
        watch.checks += 1
        if answer.well is None:
            return
        watch.well = answer.well
        watch.failures = 0 if answer.well else watch.failures + 1
        watch.failed += not answer.well
        events = self._supervisor.events
        if was is not False and not answer.well:
            events.add("health_failed", f"{watch.what}: {answer.text}", *watch.key)
        elif was is False and answer.well:
            events.add("health_ok", f"{watch.what}: {answer.text}", *watch.key)
        if not answer.well and (at_once or watch.failures >= watch.limit):
            why = answer.text if watch.what == "health" else f"{watch.what}: {answer.text}"
            self._supervisor.post(ev.BecameUnhealthy(*watch.key, why))

    # ---- watchdog

    def _set_period(self, watch: Watch, microseconds: int) -> None:
        """It gives itself another time: our successor has to know, or would stop it for keeping to it."""
        if watch.period != microseconds / 1e6:
            try:
                write_by_rename(self._supervisor.store.heard(*watch.key, "watchdog"), b"%d" % microseconds)
            except OSError as error:
                self._supervisor.events.add("error", f"its watchdog's time is not on disk: {error}", *watch.key)
        watch.period, watch.since = microseconds / 1e6, self._loop.time()

    def _period(self, key: Key) -> float | None:
        """In seconds, if it has given itself one."""
        try:
            with open(self._supervisor.store.heard(*key, "watchdog"), "rb") as file:
                return int(file.read()) / 1e6
        except (OSError, ValueError):
            return None

    # ---- both

    async def _ask(self, probe: Probe, limit: float, key: Key, spec: Service) -> Answer:
        copy = self._supervisor.copy_of(*key)
        main_pid = copy.pid if copy else None
        async with self._slots:
            return await ask(probe, limit, spec, self._supervisor.around, main_pid or 0)

    def _words(self, probe: Probe, what: str, key: Key, spec: Service) -> AsyncIterator[str]:
        path = self._supervisor.store.heard(*key, what)
        return hear.words(probe, path, self._supervisor.log_path(key[0]), spec, self._watcher)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)
