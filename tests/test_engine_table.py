"""The table is whole, says what the actions do, and the page shows it."""

from __future__ import annotations

import copy
import itertools
import pathlib
import random
import re

import pytest
from sim import KILLED, SUCCESS, service

from holdfast.config.diff import definition
from holdfast.config.model import Backoff, Schedule
from holdfast.engine import actions, table
from holdfast.engine.beside import Beside
from holdfast.engine.effects import WHATS, Tell
from holdfast.engine.events import (
    BecameReady,
    BecameUnhealthy,
    Emptied,
    Exit,
    Exited,
    KeeperLost,
    NotReadyYet,
    Spawned,
    SpawnFailed,
    TimeExtended,
)
from holdfast.engine.service import Unit
from holdfast.engine.table import IGNORED, IGNORED_ROWS, ROWS, TABLE, Input, Phase

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/engine.md"


def test_every_pair_is_decided_once():
    """In the table or ignored for a reason, never both, never neither."""
    assert [pair for pair in itertools.product(Phase, Input) if (pair in TABLE) == (pair in IGNORED)] == []


def test_no_pair_stands_twice():
    for rows, result in ((ROWS, TABLE), (IGNORED_ROWS, IGNORED)):
        assert sum(len(row[1]) for row in rows) == len(result)
    assert all(IGNORED.values())


class Alone:
    """A world of one service."""

    def __init__(self, closing: bool) -> None:
        self.now = 100.0
        self.rng = random.Random(0)
        self.closing = closing
        self.finished = False
        self.effects = []

    def emit(self, effect):
        self.effects.append(effect)

    def save(self, unit):
        pass


NEWS = {
    Input.SPAWNED: [Spawned("x", 1)],
    Input.SPAWN_FAILED: [SpawnFailed("x", 1, "why", True), SpawnFailed("x", 1, "why", False)],
    Input.READY: [BecameReady("x", 1)],
    Input.NOT_YET: [NotReadyYet("x", 1, "why")],
    Input.UNHEALTHY: [BecameUnhealthy("x", 1, "why")],
    Input.EXTENDED: [TimeExtended("x", 1, 500.0)],
    Input.EXITED: [Exited("x", 1, SUCCESS), Exited("x", 1, KILLED)],
    Input.LOST: [KeeperLost("x", 1)],
    Input.EMPTIED: [Emptied("x", 1), Emptied("x", 1, 3)],
}


def lives(phase):
    """Every kind of service in that phase, as far as actions look at it."""
    kinds = itertools.product(
        (("main", False, False), ("main", True, True), ("pre_start", True, True), ("post_stop", True, True)),
        ("simple", "notify", "oneshot"), ("always", "never"), (0.0, 1.0), (0, 1), (True, False), (True, False),
        (None, SUCCESS, Exit(1, None)), (None, "skip", "queue", "restart"),
    )  # fmt: skip
    for (step, before, after), type, policy, first, limit, wanted, asked, ended, overlap in kinds:
        if (step == "post_stop") != (phase is Phase.CLEANING) and phase not in (Phase.ENDING, Phase.STUCK):
            continue
        if overlap and type != "oneshot":
            continue
        if phase is Phase.SCHEDULED and not overlap:
            continue
        if phase is Phase.REPLACING and (asked or not wanted or type == "oneshot" or step != "main" or before):
            continue
        if step == "pre_start" and phase is Phase.RUNNING:
            continue
        if phase in table.UP and asked:
            continue  # whoever is asked to stop has left these
        if phase in (Phase.SPAWNING, *table.UP) and not wanted:
            continue
        if phase is Phase.SPAWNING and asked:
            continue
        if phase in (Phase.CANCELLED, Phase.HOLDING) and not asked:
            continue
        spec = service("x", type=type, restart=policy, backoff=Backoff(first=first, jitter=0), start_limit=limit,
                       pre_start=("prepare",) * before, post_stop=("clean",) * after,
                       schedule=Schedule(cron="* * * * *", overlap=overlap) if overlap else Schedule())  # fmt: skip
        unit = Unit(spec, 0.0)
        unit.phase, unit.wanted, unit.asked, unit.incarnation = phase, wanted, asked, 1
        unit.step, unit.last_exit = step, ended
        if step == "post_stop" and ended is None:
            unit.last_exit = SUCCESS  # it comes after an end
        unit.failures = limit if step == "post_stop" else 0  # that was counted before
        if phase in (Phase.ENDING, Phase.STUCK):
            unit.exit = ended
        for beside in ("neither", "starting", "started", "retired"):
            if (phase is Phase.REPLACING) == (beside in ("starting", "started")):
                each = copy.copy(unit)
                told = definition(spec) if beside == "started" else "another"
                each.next = Beside(2, spawned=beside == "started", definition=told)
                each.next = each.next if phase is Phase.REPLACING else None
                each.retired = {0: Beside(0)} if beside == "retired" else {}
                yield each


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_an_action_leads_where_the_table_says(phase):
    """To nothing else, and to each of these: the diagram shows no way that cannot be gone."""
    for given in Input:
        if (phase, given) in TABLE:
            row = TABLE[phase, given]
            assert reached(phase, given, row.action) == set(row.to), given


def reached(phase, given, action):
    """Where the action leads from there, whatever the service and the news."""
    found = set()
    for news in NEWS.get(given, ["asked to"]):
        for closing in (True, False) if given in (Input.EMPTIED, Input.SPAWN_FAILED, Input.CLOSE) else (False,):
            if phase in (Phase.SPAWNING, *table.UP, Phase.REPLACING) and closing:
                continue  # a shutdown has them leave
            for unit in lives(phase):
                world = Alone(closing)
                getattr(actions, action)(unit, world, news)
                found.add(unit.phase)
                told = [effect.what for effect in world.effects if isinstance(effect, Tell)]
                assert set(told) <= set(WHATS)
                # Who comes to wait is told of by the engine, which knows for whom.
                assert told or unit.phase.state is phase.state or unit.phase in (Phase.WAITING, Phase.HOLDING)
    return found


def test_every_action_is_one_of_the_service():
    used = {row.action for row in TABLE.values()}
    takes = {name: getattr(value, "__annotations__", {}) for name, value in vars(actions).items()}
    assert {name for name, annotations in takes.items() if annotations.get("news") == "News"} == used


def test_the_sets_of_phases_are_those_of_the_states():
    assert set(table.DOWN) | set(table.COMING) | set(table.LIVE) == set(Phase)
    assert not set(table.DOWN) & set(table.LIVE)
    assert not set(table.COMING) & set(table.LIVE)


def test_every_state_can_be_left_and_reached():
    ways = {(phase.state, to.state) for (phase, _), row in TABLE.items() for to in row.to}
    ways = {(a, b) for a, b in ways if a is not b}
    assert {a for a, _ in ways} == {b for _, b in ways} == set(table.State)


@pytest.mark.parametrize(("name", "text"), [("diagram", table.diagram()), ("tables", table.tables())])
def test_the_page_shows_the_table(name, text):
    """docs/engine.md carries what table.py prints; tools/engine_reference.py writes it."""
    found = re.search(rf"<!-- {name}: made by tools/engine_reference.py -->\n(.*?)<!-- end -->", PAGE.read_text(), re.S)
    assert found
    assert text in found[1]
