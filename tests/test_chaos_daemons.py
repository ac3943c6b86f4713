"""The chaos profile with real daemons: each of its invariants can fail, and a number of kills confuse nothing."""

from __future__ import annotations

import json
import os

import pytest
from chaos.daemons import ALWAYS, AT_THE_END, DaemonFacts, Seen
from conftest import require
from helpers_daemons import PATH, STYLES
from test_chaos import LIMIT, SEED, chaos


def world() -> DaemonFacts:
    """Two of a kind; one was killed once, the other's keeper was lost."""
    return DaemonFacts(
        kinds={"nginx-0": "nginx", "nginx-1": "nginx"},
        seen={
            "nginx-0": Seen(11, 2, {11, 12, 13}, True, {11, 12, 13}, "", 11),
            "nginx-1": Seen(21, 2, {21, 22}, True, {21, 22}, "", 21),
        },
        keepers={10: "nginx-0", 20: "nginx-1"},
        told={
            ("nginx-0", 1): "killed by SIGKILL", ("nginx-0", 2): "runs",
            ("nginx-0", 3): "could not start: the supervisor was killed at that moment",
            ("nginx-1", 1): "keeper lost", ("nginx-1", 2): "runs",
        },
        files={"nginx-0": ["record"]},
    )  # fmt: skip


def caused() -> DaemonFacts:
    facts = world()
    facts.commands.update(("nginx-0", "nginx-1"))
    return facts


def test_nothing_is_wrong_with_a_world_that_is_right():
    for invariant in (*ALWAYS, *AT_THE_END):
        assert invariant(caused()) == [], invariant.__name__


def wrong_answer(facts: DaemonFacts) -> None:
    facts.seen["nginx-0"].mistaken = "nginx-0: no 'nginx-0' in 'nginx-1'"


def nobody_listens(facts: DaemonFacts) -> None:
    facts.seen["nginx-0"].listen.clear()


def another_listens(facts: DaemonFacts) -> None:
    facts.seen["nginx-0"].listen.add(21)


def other_pid(facts: DaemonFacts) -> None:
    facts.seen["nginx-0"].written = 12


def no_child_of_a_keeper(facts: DaemonFacts) -> None:
    facts.seen["nginx-0"].parent_is_keeper = False


def second_copy(facts: DaemonFacts) -> None:
    facts.keepers[30] = "nginx-0"


def no_keeper(facts: DaemonFacts) -> None:
    del facts.keepers[10]


def stray(facts: DaemonFacts) -> None:
    facts.strays.append("12: nginx: worker process")


def ends_by_itself(facts: DaemonFacts) -> None:
    facts.told["nginx-0", 2] = "exited with code 1"


def orphan(facts: DaemonFacts) -> None:
    facts.left.append("12: nginx: worker process")


def serves(facts: DaemonFacts) -> None:
    facts.served.append("nginx-0")


def old_socket(facts: DaemonFacts) -> None:
    facts.files["nginx-0"].append("1.sock")


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        (wrong_answer, "each_address_is_its_own"), (nobody_listens, "each_address_is_its_own"),
        (another_listens, "each_address_is_its_own"), (other_pid, "main_is_right"),
        (no_child_of_a_keeper, "main_is_right"), (second_copy, "one_tree_each"), (no_keeper, "one_tree_each"),
        (stray, "one_tree_each"), (ends_by_itself, "restarts_have_a_cause"), (serves, "nobody_serves"),
        (orphan, "nothing_is_left"), (old_socket, "run_directory_is_tidy"),
    ],
)  # fmt: skip
def test_each_invariant_can_fail(damage, noticed):
    facts = caused()
    damage(facts)
    said = {invariant.__name__: len(invariant(facts)) for invariant in (*ALWAYS, *AT_THE_END)}
    assert {name for name, count in said.items() if count} == {noticed}
    assert said[noticed] == 1


@pytest.mark.timeout(LIMIT + 30)
def test_a_run(tmp_path, monkeypatch):
    """Two of each that is installed."""
    monkeypatch.setenv("PATH", PATH)
    for style in STYLES:
        require(style)
    kills, services = 30, 2 * len(STYLES)
    file = tmp_path / "report.json"
    options = ["--profile", "daemons", "--seed", str(SEED), "--steps", str(2 * kills), "--kills", str(kills)]
    process = chaos(tmp_path, *options, "--services", str(services), "--json", str(file))
    said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said[1][-2000:] + said[0]
    report = json.loads(file.read_text())
    assert report["kills"] >= kills
    assert report["violations"] == []
    assert set(report["kills_by_kind"]) >= {"service", "worker", "keeper", "supervisor"}
    assert set(report["invariants_checked"]) == {invariant.__name__ for invariant in (*ALWAYS, *AT_THE_END)}
    assert os.listdir(tmp_path) == ["report.json"]
