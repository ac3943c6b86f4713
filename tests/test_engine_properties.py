"""Hypothesis drives the engine: any commands, ends, failures, late answers and lost supervisors, in any order.

What must never be broken is checked by sim.World at every step.  At the end the world answers everything, and then
everything must come to rest.
"""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from sim import KILLED, TERMINATED, World, service, services, targets

from holdfast.config.diff import definition
from holdfast.config.model import Backoff, Ready, Schedule, StartBudget
from holdfast.engine.effects import Tell
from holdfast.engine.events import (
    BecameReady,
    BecameUnhealthy,
    Emptied,
    Exit,
    Exited,
    KeeperLost,
    NotReadyYet,
    RestartAsked,
    ScheduleDue,
    ShutdownAsked,
    Spawned,
    SpawnFailed,
    StartAsked,
    StopAsked,
    TimeExtended,
    Woken,
)
from holdfast.engine.graph import Graph
from holdfast.engine.table import State

NAMES = ["a", "b", "c", "d", "e", "f"]
POLICIES = ["always", "on-failure", "on-abnormal", "unless-stopped", "never"]
EXITS = [Exit(0, None), Exit(1, None), Exit(3, None), TERMINATED, KILLED]


@st.composite
def graphs(draw):
    """2 to 6 services that stand on earlier ones."""
    names = NAMES[: draw(st.integers(2, len(NAMES)))]
    result = []
    for place, name in enumerate(names):
        type = draw(st.sampled_from(["simple", "simple", "notify", "oneshot", "forking"]))
        earlier = st.sampled_from(names[:place]) if place else st.nothing()
        result.append(
            service(
                name,
                type=type,
                ready=draw(st.sampled_from([None, Ready(tcp="80")])) if type == "simple" else None,
                restart_order=draw(st.sampled_from(["stop-first", "start-first"])),
                restart=draw(st.sampled_from(POLICIES)),
                requires=tuple(draw(st.lists(earlier, max_size=2, unique=True))) if place else (),
                after=tuple(draw(st.lists(earlier, max_size=1))) if place else (),
                backoff=Backoff(first=draw(st.sampled_from([0.0, 0.5])), jitter=draw(st.sampled_from([0.0, 0.1]))),
                start_limit=draw(st.sampled_from([0, 1, 3])),
                success_exit_codes=draw(st.sampled_from([(0,), (0, 3)])),
                essential=draw(st.integers(0, 9)) == 0,
                pre_start=draw(st.sampled_from([(), (), ("prepare",)])),
                post_stop=draw(st.sampled_from([(), (), ("clean",)])),
            )
        )
    needed = {other for each in result for other in each.requires}
    for place, each in enumerate(map(valid, result)):
        result[place] = each
        if each.type == "oneshot" and not each.essential and each.name not in needed and draw(st.booleans()):
            overlap = draw(st.sampled_from(["skip", "queue", "restart"]))
            result[place] = replace(each, schedule=Schedule(every=60.0, overlap=overlap))
    return services(*draw(st.permutations(result)))


WHAT_CHANGES = ["", "", "", "gone", "restart", "apply", "type", "edges", "steps", "schedule"]


def valid(spec):
    """Without `start-first` where a file could not have it."""
    fits = spec.type != "oneshot" and not spec.pre_start and not spec.post_stop
    return spec if fits else replace(spec, restart_order="stop-first")


def changed(draw, specs):
    """Another file: some are gone, some new, some written otherwise.  Edges go to earlier letters, as before."""
    result = {}
    for place, name in enumerate(NAMES):
        spec, what = specs.get(name), draw(st.sampled_from(WHAT_CHANGES))
        if what == "gone" or (spec is None and what != "restart"):
            continue
        earlier = [each for each in NAMES[:place] if each in result]
        spec = spec or service(name)
        spec = replace(
            spec, requires=tuple(filter(result.__contains__, spec.requires)),
            after=tuple(filter(result.__contains__, spec.after)),
        )  # fmt: skip
        if what == "restart":
            order = draw(st.sampled_from(["stop-first", "start-first"]))
            spec = replace(spec, nice=draw(st.integers(0, 2)), restart_order=order)
        elif what == "type":
            spec = replace(spec, type=draw(st.sampled_from(["simple", "notify", "oneshot", "forking"])), ready=None)
        elif what == "apply":
            spec = replace(
                spec, restart=draw(st.sampled_from(POLICIES)), essential=draw(st.booleans()),
                success_exit_codes=draw(st.sampled_from([(0,), (0, 3)])), start_limit=draw(st.sampled_from([0, 1, 3])),
            )  # fmt: skip
        elif what == "edges" and earlier:
            requires = draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True))
            spec = replace(spec, requires=tuple(requires), after=())
        elif what == "steps":
            steps = st.sampled_from([(), ("prepare",)]), st.sampled_from([(), ("clean",)])
            spec = replace(spec, pre_start=draw(steps[0]), post_stop=draw(steps[1]), nice=draw(st.integers(0, 1)))
        elif what == "schedule":
            every = draw(st.sampled_from([50.0, 60.0]))
            spec = replace(spec, type="oneshot", ready=None, schedule=Schedule(every=every))
        result[name] = valid(spec)
    needed = {other for each in result.values() for other in each.requires}
    for name, spec in result.items():
        if spec.type != "oneshot" or spec.essential or name in needed:
            result[name] = replace(spec, schedule=Schedule())
    return services(*draw(st.permutations(list(result.values())))) or services(service("a"))


def edges_differ(old, new):
    return any((old[n].requires, old[n].after) != (new[n].requires, new[n].after) for n in old if n in new)


class EngineMachine(RuleBasedStateMachine):
    world: World

    @initialize(specs=graphs(), seed=st.integers(0, 3), start=st.sampled_from([0.0, 1e6 + 0.1]))
    def begin(self, specs, seed, start):
        self.world = World(specs, StartBudget(at_once=1, per_second=0.5), seed=seed, now=start)
        self.world.begin()

    # ---- who is there

    def trees(self, condition=lambda tree: True):
        return sorted(name for name, tree in self.world.trees.items() if condition(tree))

    def pick(self, data, condition=lambda tree: True):
        """One of those trees, with its number; Nones if there is none."""
        names = self.trees(condition)
        if not names:
            return None, 0
        name = data.draw(st.sampled_from(names))
        return name, self.world.trees[name].incarnation

    # ---- commands

    @rule(data=st.data(), command=st.sampled_from([StartAsked, StopAsked, RestartAsked]))
    def ask(self, data, command):
        names = data.draw(st.lists(st.sampled_from(sorted(self.world.specs)), min_size=1, max_size=3, unique=True))
        self.world.handle(command(targets(*names)))

    @rule(data=st.data(), command=st.sampled_from([StopAsked, RestartAsked]), behind=st.integers(0, 1))
    def ask_for_an_incarnation(self, data, command, behind):
        name = data.draw(st.sampled_from(sorted(self.world.specs)))
        number = self.world.view(name).incarnation - behind
        gone = self.world.engine.is_gone(name, number)
        assert gone == (name not in self.world.trees or behind > 0)
        effects = self.world.handle(command(((name, number),)))
        assert not (gone and effects)

    @rule()
    @precondition(lambda self: len(self.world.log) > 20)
    def shut_down(self):
        self.world.handle(ShutdownAsked())

    # ---- time

    @rule(data=st.data(), again=st.booleans())
    def schedule_is_due(self, data, again):
        """A time that came already changes nothing."""
        name = data.draw(st.sampled_from(sorted(self.world.specs)))
        last = self.world.view(name).scheduled
        effects = self.world.handle(ScheduleDue(name, last if again else last + 60.0))
        assert not effects or (not again and self.world.specs[name].schedule.given)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0, 100.0]))
    def time_passes(self, seconds):
        end = self.world.now + seconds
        self.wake_until(end)
        self.world.now = end

    def wake_until(self, end):
        for _ in range(200):
            wake = self.world.engine.next_wake()
            if wake is None or wake > end:
                return
            self.world.now = max(self.world.now, wake)
            self.world.handle(Woken())
        raise AssertionError("it is woken without end")

    # ---- answers

    @rule(data=st.data(), early=st.booleans())
    def spawn_succeeds(self, data, early):
        name, number = self.pick(data, lambda tree: not tree.spawned and tree.exit is None and not tree.lost)
        if name is not None:
            if early:
                self.world.handle(BecameReady(name, number))
            self.world.handle(Spawned(name, number))

    @rule(data=st.data(), temporary=st.booleans())
    def spawn_fails(self, data, temporary):
        def may_fail(tree):
            return (tree.taken or not tree.spawned) and tree.exit is None and not tree.lost and not tree.stuck

        name, number = self.pick(data, may_fail)
        if name is not None:
            self.world.handle(SpawnFailed(name, number, "no such file", temporary))

    @rule(data=st.data())
    def becomes_ready(self, data):
        name, number = self.pick(data, lambda tree: tree.spawned)
        if name is not None:
            self.world.handle(BecameReady(name, number))

    @rule(data=st.data(), well=st.booleans())
    def is_asked_how_it_is(self, data, well):
        """Whatever it does: an answer may come late."""
        name, number = self.pick(data)
        if name:
            news = NotReadyYet if well else BecameUnhealthy
            self.world.handle(news(name, number, "why"))

    @rule(data=st.data(), exit=st.sampled_from(EXITS), empty=st.booleans())
    def main_ends(self, data, exit, empty):
        name, number = self.pick(data, lambda tree: tree.spawned and tree.exit is None)
        if name is not None:
            self.world.handle(Exited(name, number, exit))
            if empty:
                self.world.handle(Emptied(name, number))

    @rule(data=st.data(), survivors=st.sampled_from([0, 0, 2]))
    def tree_is_empty(self, data, survivors):
        name, number = self.pick(data, lambda tree: tree.exit is not None or tree.lost or tree.stuck)
        if name is not None:
            self.world.handle(Emptied(name, number, survivors))

    @rule(rounds=st.integers(1, 8))
    def what_is_awaited_comes(self, rounds):
        for _ in range(rounds):
            self.answer_everything()

    @rule(data=st.data())
    def storm(self, data):
        """Many end at once."""
        for name in self.trees(lambda tree: tree.spawned and tree.exit is None):
            exit = data.draw(st.sampled_from([KILLED, KILLED, Exit(0, None)]))
            if name in self.world.trees:
                self.world.handle(Exited(name, self.world.trees[name].incarnation, exit))
                self.world.handle(Emptied(name, self.world.trees[name].incarnation, 0))

    @rule(data=st.data())
    def end_was_missed(self, data):
        """Emptied without Exited: not what a daemon does, but nothing must hang by it."""
        name, number = self.pick(data)
        if name is not None:
            self.world.handle(Emptied(name, number))

    @rule(data=st.data())
    def keeper_is_lost(self, data):
        name, number = self.pick(data, lambda tree: not tree.stuck)
        if name is not None:
            self.world.handle(KeeperLost(name, number))

    # ---- trees beside the one that serves

    @rule(data=st.data())
    def start_first(self, data):
        """A restart of one that serves, so that there is a second tree soon."""
        names = [name for name, tree in sorted(self.world.trees.items()) if self.world.specs.get(name) and tree.spawned]
        names = [name for name in names if self.world.specs[name].restart_order == "start-first"]
        if names:
            self.world.handle(RestartAsked(targets(data.draw(st.sampled_from(names)))))

    @rule(data=st.data(), what=st.integers(0, 9), exit=st.sampled_from(EXITS))
    def something_of_one_beside(self, data, what, exit):
        if not self.world.beside:
            return
        name, number = data.draw(st.sampled_from(sorted(self.world.beside)))
        tree = self.world.beside[name, number]
        if tree.exit is not None or tree.lost:
            self.world.handle(Emptied(name, number, 2 if what == 0 else 0))
        elif what == 1:
            self.world.handle(KeeperLost(name, number))
        elif what == 2:
            self.world.handle(Emptied(name, number))  # its end was missed
        elif what == 3:
            self.world.handle(BecameReady(name, number))
        elif not tree.spawned:
            self.world.handle(SpawnFailed(name, number, "no", False) if what == 4 else Spawned(name, number))
        else:
            self.world.handle(Exited(name, number, exit) if what < 7 else BecameReady(name, number))

    @rule(data=st.data(), seconds=st.sampled_from([-1.0, 50.0, 200.0]))
    def more_time_is_asked_for(self, data, seconds):
        name, number = self.pick(data, lambda tree: tree.spawned)
        if name is not None:
            self.world.handle(TimeExtended(name, number, self.world.now + seconds))

    @rule(data=st.data(), what=st.integers(0, 7))
    def late_answer(self, data, what):
        """About an incarnation that is gone, or that never was: changes nothing."""
        name = data.draw(st.sampled_from(sorted(self.world.specs)))
        number = self.world.view(name).incarnation
        number -= name in self.world.trees
        if self.world.tree(name, number) is not None:
            return  # not gone: on its way out, beside its successor
        event = (
            Spawned(name, number),
            SpawnFailed(name, number, "late", False),
            BecameReady(name, number),
            BecameUnhealthy(name, number, "why"),
            NotReadyYet(name, number, "why"),
            Exited(name, number, KILLED),
            Emptied(name, number),
            KeeperLost(name, number),
        )[what]
        assert not self.world.handle(event)

    # ---- the supervisor itself

    @rule(data=st.data())
    def supervisor_dies(self, data):
        self.world.supervisor_dies(ended=self.ended_meanwhile(data))

    def ended_meanwhile(self, data):
        ended = {}
        for name, tree in sorted(self.world.trees.items()):
            if data.draw(st.integers(0, 3)) == 0:
                ended[name] = tree.exit or data.draw(st.sampled_from([*EXITS, None])) if tree.spawned else None
        return ended

    @rule(data=st.data())
    def supervisor_dies_and_the_file_has_changed(self, data):
        self.world.supervisor_dies(specs=changed(data.draw, self.world.specs), ended=self.ended_meanwhile(data))

    @rule(data=st.data(), budget=st.sampled_from([StartBudget(1, 0.5), StartBudget(1, 0.5), StartBudget(2, 1.0)]))
    def plan_changes(self, data, budget):
        world = self.world
        closing, before = world.engine.closing, {view.name: view for view in world.engine.views()}
        specs = world.specs if closing else changed(data.draw, world.specs)
        if closing:
            budget = world.budget
        old = world.specs
        effects = world.update(specs, budget)
        assert closing == any(effect == Tell("", None, "refused", "the supervisor ends") for effect in effects)
        touched = {name for name in old if name not in specs or definition(old[name]) != definition(specs[name])}
        touched |= {name for name in specs if name not in old}
        touched |= {name for name in specs if name in old and specs[name].essential and not old[name].essential}
        graphs = [world.graph, Graph(old)]
        reached = {each for graph in graphs for each in graph.above(touched & set(graph.order))}
        for name, view in before.items():
            held = view.state not in (State.RUNNING, State.EXITED, State.FATAL)  # it waited for something
            if name not in reached and not held and not world.engine.closing:
                now = world.view(name)
                assert (now.state, now.incarnation) == (view.state, view.incarnation) or edges_differ(old, specs), name

    # ---- what must hold

    @invariant()
    def restarts_stay_in_budget(self):
        if hasattr(self, "world"):
            self.world.check_budget()

    def answer_everything(self):
        """One round: whatever is awaited comes, for the best; whether there was anything."""
        world, some = self.world, False
        for name in self.trees():
            if name not in world.trees:
                continue
            tree, number = world.trees[name], world.trees[name].incarnation
            spec = world.specs.get(name)
            stopping = world.view(name).state in (State.STOPPING, State.FATAL)
            if not tree.spawned and tree.exit is None and not tree.lost:
                world.handle(Spawned(name, number))
            elif tree.exit is not None or tree.lost or tree.stuck:
                world.handle(Emptied(name, number))
            elif tree.stopped:
                world.handle(Exited(name, number, TERMINATED))
            elif tree.step == "post_stop" or (
                not stopping and (tree.step == "pre_start" or (spec is not None and spec.type == "oneshot"))
            ):
                world.handle(Exited(name, number, Exit(0, None)))
            elif not stopping and spec is not None and spec.awaits and not tree.said_ready:
                world.handle(BecameReady(name, number))
            else:
                continue
            some = True
        for name, number in sorted(world.beside):
            tree = world.tree(name, number)
            if tree is None or world.trees.get(name) is tree:
                continue  # meanwhile it is gone, or serves
            if tree.exit is not None or tree.lost or tree.stuck:
                world.handle(Emptied(name, number))
            elif not tree.spawned:
                world.handle(Spawned(name, number))
            elif tree.stopped:
                world.handle(Exited(name, number, TERMINATED))
            elif not tree.said_ready:
                world.handle(BecameReady(name, number))
            else:
                continue
            some = True
        return some

    def fine(self, name):
        view = self.world.view(name)
        return view.ready or (view.due and view.succeeded)

    def come_to_rest(self):
        for _ in itertools.count():
            assert _ < 2000, "it does not come to rest"
            wake = self.world.engine.next_wake()
            if not self.answer_everything():
                if wake is None:
                    return
                self.world.now = max(self.world.now, wake)
                self.world.handle(Woken())

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        names = sorted(world.specs)
        if not world.engine.closing:
            # Every start that is asked for leads to a state that stays; if the world is good, to ready.
            world.handle(StartAsked(targets(*names)))
            self.come_to_rest()
            for name in names:
                if not world.engine.closing:  # an essential oneshot has ended
                    assert self.fine(name), world.view(name)
        if not world.engine.closing:
            world.handle(StopAsked(targets(names[0])))
            self.come_to_rest()
            above = world.graph.above(names[:1])
            assert all(world.view(name).state is State.STOPPED for name in above)
            assert [world.view(name).wanted for name in above] == [name != names[0] for name in above]
            assert all(self.fine(name) for name in set(names) - set(above))
            world.handle(StartAsked(targets(names[0])))  # those that stand on it come back with it
            self.come_to_rest()
            assert world.engine.closing or all(self.fine(name) for name in names)
        # What runs is what the file says, and nothing else runs.
        for name, tree in () if world.engine.closing else world.trees.items():
            assert definition(tree.spec) == definition(world.specs[name]), name
            assert world.records[name].definition == definition(tree.spec)
        world.handle(ShutdownAsked())
        self.come_to_rest()
        assert not world.trees
        assert len(world.finished) == 1
        assert not world.handle(Woken())
        assert {effect.what for effect in world.handle(StartAsked(targets(*names)))} == {"refused"}
        world.check_budget()
        for record in world.records.values():
            assert not record.live
            assert record.wanted or world.specs[record.name].restart == "unless-stopped"
        assert world.replayed() == world.log


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=200, stateful_step_count=50, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
