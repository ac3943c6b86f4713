"""A world for the engine without processes: what it asked for happens, in virtual time, as a script says.

`World` holds the truth (which trees there are) and checks at every step what must never be broken; `Sim` adds a clock
and scripted lives.  Both only use what a daemon uses, and the table for the check that every transition is in it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from holdfast.config.model import Service, StartBudget
from holdfast.engine.effects import WHATS, Effect, Finish, Forget, Record, Save, Serve, Spawn, Stop, Tell
from holdfast.engine.engine import Engine
from holdfast.engine.events import (
    BecameReady,
    Emptied,
    Event,
    Exit,
    Exited,
    KeeperLost,
    PlanChanged,
    RestartAsked,
    ShutdownAsked,
    Spawned,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Woken,
)
from holdfast.engine.graph import Graph
from holdfast.engine.table import IGNORED, TABLE, Phase, State

ALL_LOOKED_AT = 100  # a world of more services is looked at in part after each step

SUCCESS = Exit(0, None)
TERMINATED = Exit(None, 15)
KILLED = Exit(None, 9)


def service(name: str, **options: object) -> Service:
    return Service(name=name, command=("/bin/true",), **options)


def services(*all_of_them: Service) -> dict[str, Service]:
    return {each.name: each for each in all_of_them}


def targets(*names: str) -> tuple[tuple[str, int | None], ...]:
    return tuple((name, None) for name in names)


class CheckedEngine(Engine):
    """An engine that fails a test when it leaves its table."""

    def apply(self, unit, given, news):
        before = unit.phase
        row = TABLE.get((before, given))
        super().apply(unit, given, news)
        if row is None:
            assert (before, given) in IGNORED
            assert unit.phase is before
        else:
            assert unit.phase in row.to, (before, given, unit.phase)


@dataclass
class Tree:
    """One incarnation, as far as the engine was told."""

    incarnation: int
    spec: Service  # it was started with
    spawned: bool = False
    taken: bool = False  # over by a supervisor that has not heard of its start: it may have failed
    said_ready: bool = False
    exit: Exit | None = None
    lost: bool = False
    stopped: bool = False  # a Stop was given
    stuck: bool = False
    step: str = "main"


@dataclass
class World:
    """The truth, and the checks.  `handle` gives the engine an event and performs what follows."""

    specs: Mapping[str, Service]
    budget: StartBudget = field(default_factory=StartBudget)
    seed: int = 1
    now: float = 0.0

    def __post_init__(self) -> None:
        self.graph = Graph(self.specs)
        self.trees: dict[str, Tree] = {}  # that which serves
        self.beside: dict[tuple[str, int], Tree] = {}  # its successor, and those that are on their way out
        self.last: dict[str, int] = {}  # the highest number that each ever had
        self.completed: dict[str, Exit] = {}  # oneshots that have run to their end, and how that was
        self.prepared: set[str] = set()  # their pre_start has succeeded, and main was not started yet
        self.uncleaned: set[str] = set()  # their post_stop has still to run
        self.records: dict[str, Record] = {}
        self.tells: list[tuple[float, Tell]] = []
        self.spawns: list[tuple[float, str, int]] = []
        self.stops: list[tuple[float, str]] = []
        self.emptied: list[tuple[float, str]] = []
        self.restarts: list[float] = []  # when a service was started again by policy
        self.restarts_of: dict[str, int] = {}
        self.finished: list[int] = []
        self.forgotten: list[str] = []
        # All that was given to engines, and what they gave.
        self.log: list[tuple] = [("new", self.specs, self.now, self.budget)]
        self.engine = CheckedEngine(self.specs, self.budget, seed=self.seed, now=self.now)
        self.states = dict.fromkeys(self.specs, State.STOPPED)

    # ---- the engine

    def begin(self) -> list[Effect]:
        effects = self.engine.begin(self.now)
        self.log.append(("begin", self.now, effects))
        self._perform(effects)
        return effects

    def handle(self, event: Event) -> list[Effect]:
        self._learn(event)
        effects = self.engine.handle(event, self.now)
        self.log.append(("handle", event, self.now, effects))
        self._perform(effects)
        return effects

    def start(self, *names: str) -> list[Effect]:
        return self.handle(StartAsked(targets(*names)))

    def stop(self, *names: str) -> list[Effect]:
        return self.handle(StopAsked(targets(*names)))

    def restart(self, *names: str) -> list[Effect]:
        return self.handle(RestartAsked(targets(*names)))

    def shutdown(self) -> list[Effect]:
        return self.handle(ShutdownAsked())

    def update(self, specs: Mapping[str, Service], budget: StartBudget | None = None) -> list[Effect]:
        """Another file was accepted.  Those that are not in it any more stop in their old places."""
        leaving = {name: tree.spec for name, tree in self.trees.items() if name not in specs}
        old = {**specs, **leaving}
        for name, spec in leaving.items():
            edges = self.graph.requires.get(name, ()), self.graph.after.get(name, ())
            requires, after = (tuple(other for other in others if other in old) for others in edges)
            old[name] = msgspec.structs.replace(spec, requires=requires, after=after)
        if budget not in (None, self.budget):
            self.restarts.clear()  # those before it had another one
        self.specs, self.graph, self.budget = specs, Graph(old), budget or self.budget
        for name in specs:
            self.states.setdefault(name, State.STOPPED)
        return self.handle(PlanChanged(specs, self.budget))

    def view(self, name: str):
        return self.engine.view(name)

    def state(self, name: str) -> str:
        return str(self.engine.view(name).state)

    def supervisor_dies(
        self, *, specs: Mapping[str, Service] | None = None, ended: Mapping[str, Exit | None] | None = None
    ) -> list[Effect]:
        """The engine is lost; a new one gets the records and what is found.  `ended`: trees that are empty by then,
        with the status that the keeper left, or None.  A start that was under way has come about unless it is there."""
        self.specs = specs or self.specs
        self.graph = Graph(self.specs)
        self.restarts.clear()  # each engine has a budget of its own
        self.finished.clear()
        self.last = {name: number for name, number in self.last.items() if name in self.records}
        self.engine = CheckedEngine(self.specs, self.budget, seed=self.seed, now=self.now)
        self.log.append(("new", dict(self.specs), self.now, self.budget))
        for name, exit in (ended or {}).items():
            self._gone(name, self.trees.pop(name), exit)
        for name, number in sorted(self.beside):  # the newest that lives is the service's
            before = self.trees.get(name)
            if number == self.records[name].next and name not in (ended or {}):
                assert before is not None
                self.beside[name, before.incarnation] = before
                self.trees[name] = self.beside.pop((name, number))
        for tree in self.beside.values():
            tree.spawned, tree.stopped, tree.lost = True, False, False
        for name, tree in self.trees.items():
            tree.taken |= not tree.spawned
            tree.spawned, tree.stopped, tree.lost = True, False, False
            tree.said_ready = self.records[name].ready_at is not None
        for name, record in self.records.items():
            tree = self.trees.get(name)
            if tree is not None and tree.incarnation != record.incarnation:
                definition = record.next_definition if tree.incarnation == record.next else record.definition
                record = replace(
                    record, incarnation=tree.incarnation, live=True, stopping=False, ready_at=None,
                    definition=definition,
                )  # fmt: skip
                tree.said_ready = False
            found = {
                "retired": tuple(number for each, number in self.beside if each == name),
                "alive": tree is not None,
                "ready": record.ready_at is not None,
                "exit": (ended or {}).get(name) if tree is None else tree.exit,
            }
            self.log.append(("adopt", name, record, found, self.now))
            self.engine.adopt(name, record, **found, now=self.now)
        self.states = {view.name: view.state for view in self.engine.views()}
        self.completed = {name: exit for name, exit in self.completed.items() if name in self.specs}
        self.uncleaned &= set(self.specs)
        return self.begin()

    def replayed(self) -> list[tuple]:
        """The log of engines with the same seed that are given the same."""
        result = []
        for what, *given in self.log:
            if what == "new":
                engine = Engine(given[0], given[2], seed=self.seed, now=given[1])
            elif what == "adopt":
                engine.adopt(given[0], given[1], **given[2], now=given[3])
            elif what == "begin":
                given[-1] = engine.begin(given[0])
            else:
                given[-1] = engine.handle(given[0], given[1])
            result.append((what, *given))
        return result

    # ---- the truth

    def _learn(self, event: Event) -> None:
        name, number = getattr(event, "name", ""), getattr(event, "incarnation", None)
        tree = self.tree(name, number)
        if tree is None:
            return
        serves = self.trees.get(name) is tree
        match event:
            case Spawned():
                tree.spawned = True
            case SpawnFailed():
                if not serves:
                    del self.beside[name, number]
                    return
                del self.trees[name]
                if tree.step == "main" and self.specs.get(name) and self.specs[name].pre_start and not self.finished:
                    self.uncleaned |= {name} if self.specs[name].post_stop else set()
            case BecameReady():
                tree.said_ready = True
            case Exited(exit=exit):
                tree.exit = exit
            case KeeperLost():
                tree.lost = tree.lost or tree.exit is None  # with a status, it ended as that says
            case Emptied(survivors=survivors):
                tree.stuck = survivors > 0
                if not survivors and not serves:
                    del self.beside[name, number]
                elif not survivors:
                    del self.trees[name]
                    self._gone(name, tree, None if tree.lost else tree.exit)

    def tree(self, name: str, number: int | None) -> Tree | None:
        tree = self.trees.get(name)
        return tree if tree and tree.incarnation == number else self.beside.get((name, number))

    def _gone(self, name: str, tree: Tree, exit: Exit | None) -> None:
        if tree.step == "main":
            self.uncleaned.discard(name)
        if tree.step != "post_stop" and name in self.specs and self.specs[name].post_stop and not self.finished:
            self.uncleaned.add(name)  # finished: what KILL could not end is nobody's any more
        record = self.records[name]
        if tree.step == "pre_start" and exit == SUCCESS and record.wanted and not record.stopping:
            self.prepared.add(name)
        if tree.step != "main":
            return
        self.emptied.append((self.now, name))
        if tree.spec.type == "oneshot" and exit is not None:
            self.completed[name] = exit

    def is_ready(self, name: str) -> bool:
        tree, spec = self.trees.get(name), self.specs[name]
        if tree is None:
            exit = self.completed.get(name)
            return exit is not None and exit.succeeded(spec.success_exit_codes) and self.state(name) == "exited"
        if tree.step != "main":
            return False
        if not tree.spawned or tree.exit is not None or tree.lost or tree.stopped or tree.stuck:
            return False
        if tree.spec.type == "oneshot":
            return False
        return tree.spec.awaits is None or tree.said_ready

    # ---- the checks

    def _perform(self, effects: list[Effect]) -> None:
        saved: dict[str, Record] = {}
        told = set()
        for effect in effects:
            match effect:
                case Save(record=record):
                    saved[record.name] = self.records[record.name] = record
                case Spawn(name=name, incarnation=incarnation, step=step):
                    self._check_spawn(name, incarnation, step, saved)
                case Stop(name=name, incarnation=incarnation):
                    self._check_stop(name, incarnation)
                case Serve(name=name, incarnation=incarnation):
                    before = self.trees.pop(name, None)
                    if before is not None:
                        self.beside[name, before.incarnation] = before
                    self.trees[name] = self.beside.pop((name, incarnation))
                case Tell():
                    assert effect.what in WHATS
                    told.add(effect.name)
                    if effect.what in ("waiting", "stopped") and effect.name in self.prepared:
                        self.prepared.remove(effect.name)  # not at once: pre_start is to run again
                        self.uncleaned.discard(effect.name)
                    self.tells.append((self.now, effect))
                case Forget(name=name):
                    assert name not in self.specs
                    assert name not in self.trees
                    assert name not in {each for each, _ in self.beside}
                    self.forgotten.append(name)
                    if name in self.graph.requires:
                        self.graph.remove(name)
                    self.records.pop(name, None)  # it may never have had one
                    self.states.pop(name, None)
                case Finish(status=status):
                    self.finished.append(status)
                    assert not self.uncleaned - set(self.trees)
                    assert len(self.finished) == 1
                    assert all(tree.stuck for tree in (*self.trees.values(), *self.beside.values()))
        self.uncleaned -= self.prepared  # what it requires has gone meanwhile: pre_start is to run again
        self.prepared.clear()
        self.check_views(told)

    def _check_spawn(self, name: str, incarnation: int, step: str, saved: Mapping[str, Record]) -> None:
        assert incarnation > self.last.get(name, 0), f"{name}: a number was used again"
        record, tree = saved[name], Tree(incarnation, self.specs[name], step=step)
        assert not self.finished
        self.last[name] = incarnation
        if name in self.trees:
            assert self.specs[name].restart_order == "start-first", f"{name}: a second tree"
            assert name not in {each for each, _ in self.beside}, f"{name}: a third tree"
            assert (record.next, record.live, step) == (incarnation, True, "main"), f"{name}: not on record"
            assert self.is_ready(name)
            self._check_start(name)
            self.beside[name, incarnation] = tree
            self.spawns.append((self.now, name, incarnation))
            return
        assert (record.incarnation, record.live, record.step) == (incarnation, True, step), f"{name}: not on record"
        self.trees[name] = tree
        if step == "post_stop":  # whatever becomes of the others
            assert self.specs[name].post_stop
            self.uncleaned.discard(name)
            return
        assert name not in {each for each, _ in self.beside}, f"{name}: a second tree"
        assert (step == "pre_start") == bool(self.specs[name].pre_start and name not in self.prepared)
        self.prepared.discard(name)
        assert name not in self.uncleaned or step == "main", f"{name}: its post_stop was left out"
        self._check_start(name)
        self.completed.pop(name, None)
        self.spawns.append((self.now, name, incarnation))
        if record.restarts > self.restarts_of.get(name, 0):
            self.restarts.append(self.now)
        self.restarts_of[name] = record.restarts

    def _check_start(self, name: str) -> None:
        for other in self.graph.requires[name]:
            assert self.is_ready(other), f"{name} is started, but {other} is not ready"
            assert self.view(other).ready
        assert not self.engine.closing

    def _check_stop(self, name: str, incarnation: int) -> None:
        tree = self.tree(name, incarnation)
        assert tree is not None
        assert tree.spawned, f"{name}: stopped before its start was answered"
        assert not tree.stopped, f"{name}: stopped twice"
        tree.stopped = True
        self.stops.append((self.now, name))
        if self.trees.get(name) is not tree:
            assert incarnation in self.records[name].retired or self.engine.closing, f"{name}: it is not on record"
            return
        reason = self.view(name).reason
        timed_out = "in time" in reason or reason.startswith("unhealthy")
        assert self.records[name].stopping or timed_out or self.engine.closing, f"{name}: the intent is not on record"
        if name in self.graph.required_by and not timed_out:
            for other in self.graph.above([name]):
                assert other == name or other not in self.trees or self.trees[other].stuck, (
                    f"{name} is stopped, but the tree of {other} is not empty"
                )

    def check_views(self, told: set[str]) -> None:
        """All of them; where there are many, those of which something was told."""
        few = len(self.states) <= ALL_LOOKED_AT
        views = self.engine.views() if few else [self.engine.view(name) for name in told if name in self.states]
        for view in views:
            name, tree = view.name, self.trees.get(view.name)
            assert view.live == (tree is not None), view
            if name in self.specs and view.state is not State.STOPPING:
                assert view.ready == self.is_ready(name), view
            if view.ready:
                assert view.state in (State.RUNNING, State.EXITED)
            assert (view.state is State.RUNNING) <= view.ready
            if view.wake_at is not None:
                assert view.state in (State.BACKOFF, State.STARTING) or view.step == "post_stop" or view.replacing
            assert not view.waiting_for or view.state in (State.STARTING, State.STOPPED, State.STOPPING)
            assert tree is None or tree.incarnation == view.incarnation
            assert (tree is not None and tree.stuck) <= (view.state is State.FATAL)
            assert bool(view.reason) or view.state in (State.RUNNING, State.STARTING, State.STOPPED), view
            if view.state is not self.states.get(name, view.state):
                assert name in told, f"{name}: {self.states[name]} -> {view.state}, and nobody was told"
            self.states[name] = view.state
            stuck = {number for (each, number), tree in self.beside.items() if each == name and tree.stuck}
            beside = {number for each, number in self.beside if each == name} - stuck
            phase = self.engine.units[name].phase
            assert set(view.retired) == (beside - {self.last[name]} if phase is Phase.REPLACING else beside), view
            record = self.records.get(name)
            if record is not None:  # what a supervisor after us must know
                assert record.incarnation == view.incarnation
                assert record.live == view.live
                if name in self.specs and not self.engine.closing:
                    assert record.wanted == view.wanted
        wake = self.engine.next_wake()
        times = [view.wake_at for view in views if view.wake_at is not None]
        if times:
            assert wake is not None
            assert wake <= min(times)

    def check_budget(self) -> None:
        """No window, however long, saw more restarts than the budget allows."""
        for first, last in itertools.combinations(range(len(self.restarts)), 2):
            window = self.restarts[last] - self.restarts[first]
            assert last - first + 1 <= self.budget.at_once + self.budget.per_second * window + 1e-6


@dataclass(frozen=True)
class Life:
    """One incarnation's script.  Times in seconds after the step before."""

    fails: SpawnFailed | None = None  # its name and number are filled in
    spawn: float = 0.0
    ready: float | None = 0.0  # notify: when it says so; None: never
    lives: float | None = None  # until it ends by itself; None: it does not
    exit: Exit = SUCCESS
    stop: float = 0.0  # from Stop to its end
    rest: float = 0.0  # from its end until its tree is empty
    survivors: int = 0


class Sim(World):
    """A world with a clock.  `script(name, incarnation)` gives each life."""

    def __init__(
        self,
        specs: Mapping[str, Service],
        script: Callable[[str, int], Life] | None = None,
        budget: StartBudget | None = None,
        seed: int = 1,
        now: float = 0.0,
    ) -> None:
        super().__init__(specs, budget or StartBudget(), seed, now)
        self.script = script or (lambda name, incarnation: Life())
        self._events: list[tuple[float, int, Event]] = []
        self._count = itertools.count()

    def at(self, time: float, event: Event) -> None:
        heapq.heappush(self._events, (time, next(self._count), event))

    def _perform(self, effects: list[Effect]) -> None:
        super()._perform(effects)
        for effect in effects:
            if isinstance(effect, Spawn):
                self._spawned(effect.name, effect.incarnation)
            elif isinstance(effect, Stop):
                life = self.script(effect.name, effect.incarnation)
                self._end(life, effect.name, effect.incarnation, self.now + life.stop, TERMINATED)

    def _spawned(self, name: str, incarnation: int) -> None:
        life = self.script(name, incarnation)
        time = self.now + life.spawn
        if life.fails is not None:
            self.at(time, replace(life.fails, name=name, incarnation=incarnation))
            return
        self.at(time, Spawned(name, incarnation))
        if self.specs[name].awaits and life.ready is not None:
            self.at(time + life.ready, BecameReady(name, incarnation))
        if life.lives is not None:
            self._end(life, name, incarnation, time + life.lives, life.exit)

    def _end(self, life: Life, name: str, incarnation: int, time: float, exit: Exit) -> None:
        self.at(time, Exited(name, incarnation, exit))
        self.at(time + life.rest, Emptied(name, incarnation, life.survivors))

    def _over(self, event: Event) -> bool:
        """Whether it happened otherwise: a process ends once."""
        tree = self.tree(getattr(event, "name", ""), getattr(event, "incarnation", None))
        if tree is None:
            return isinstance(event, (Exited, Emptied, BecameReady))
        return isinstance(event, Exited) and tree.exit is not None

    def run(self, until: float = float("inf"), steps: int = 100_000) -> float:
        """Let time pass until nothing more happens, or to `until`.  The time then."""
        for _ in range(steps):
            wake = self.engine.next_wake()
            next_event = self._events[0][0] if self._events else float("inf")
            time = min(next_event, float("inf") if wake is None else wake)
            if time > until or time == float("inf"):
                self.now = max(self.now, until) if until != float("inf") else self.now
                return self.now
            self.now = max(self.now, time)
            if self._events and next_event <= time:
                event = heapq.heappop(self._events)[2]
                if not self._over(event):
                    self.handle(event)
            else:
                self.handle(Woken())
        raise AssertionError("it does not come to rest")

    def told(self, name: str) -> list[str]:
        return [tell.what for _, tell in self.tells if tell.name == name]

    def spawned_at(self, name: str) -> list[float]:
        return [time for time, each, _ in self.spawns if each == name]

    def emptied_at(self, name: str) -> list[float]:
        return [time for time, each in self.emptied if each == name]


def phase_of(world: World, name: str) -> Phase:
    return world.engine.units[name].phase
