"""The chaos driver: each of its invariants can fail, it ends cleanly, and a hundred kills change nothing."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from chaos import invariants
from chaos.facts import Birth, Facts

HERE = pathlib.Path(__file__).parent
SEED = 20261121
LIMIT = 240  # a guard against hangs


def world() -> Facts:
    """Everything as it should be: `web` was killed once and lives, `job` has ended by itself, `old` lost its keeper."""
    return Facts(
        kinds={"web": "writer", "job": "crasher", "old": "writer"},
        births={"web": [Birth(1, 10, 5), Birth(2, 11, 6)], "job": [Birth(1, 20, 5)], "old": [Birth(1, 30, 5)]},
        ends={("job", 1): "exit 3"},
        told={("web", 1): "killed by SIGKILL", ("job", 1): "exited with code 3", ("old", 1): "keeper lost"},
        alive={"web": [Birth(2, 11, 6)]},
        status={"web": {"pid": 11, "incarnation": 2}},
        files={"web": ["record"], "job": ["record"]},
        killed={("web", 1): "main", ("old", 1): "keeper"},
    )


def test_nothing_is_wrong_with_a_world_that_is_right():
    facts = world()
    for invariant in (*invariants.ALWAYS, *invariants.AT_THE_END):
        assert invariant(facts) == [], invariant.__name__


def double(facts: Facts) -> None:
    facts.doubles.append("web@2 11")


def second_copy(facts: Facts) -> None:
    facts.alive["web"].append(Birth(1, 10, 5))


def same_incarnation(facts: Facts) -> None:
    facts.births["web"].append(Birth(2, 12, 7))
    facts.commands["web"] = 1


def unknown_end(facts: Facts) -> None:
    facts.births["web"].append(Birth(3, 12, 7))
    facts.alive["web"] = [Birth(3, 12, 7)]
    facts.status["web"] = {"pid": 12, "incarnation": 3}


def restarted_twice(facts: Facts) -> None:
    facts.births["old"].append(Birth(2, 31, 6))


def ends_by_itself(facts: Facts) -> None:
    facts.kinds["job"] = "writer"


def wrong_code(facts: Facts) -> None:
    facts.told["job", 1] = "exited with code 4"


def no_row(facts: Facts) -> None:
    del facts.told["web", 1]


def no_reason(facts: Facts) -> None:
    facts.told["old", 1] = "unknown"


def wrong_pid(facts: Facts) -> None:
    facts.status["web"] = {"pid": 10, "incarnation": 2}


def dead_one(facts: Facts) -> None:
    facts.alive["web"] = []


def orphan(facts: Facts) -> None:
    facts.left.append("77: sleep")


def old_socket(facts: Facts) -> None:
    facts.files["web"].append("1.sock")


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        (double, "never_two_copies"), (second_copy, "never_two_copies"), (same_incarnation, "never_two_copies"),
        (unknown_end, "ends_have_a_cause"), (restarted_twice, "ends_have_a_cause"),
        (ends_by_itself, "ends_have_a_cause"),
        (wrong_code, "exits_are_accounted"), (no_row, "exits_are_accounted"),
        (no_reason, "lost_keepers_are_told"), (wrong_pid, "status_is_true"), (dead_one, "status_is_true"),
        (orphan, "nothing_is_left"), (old_socket, "run_directory_is_tidy"),
    ],
)  # fmt: skip
def test_each_invariant_can_fail(damage, noticed):
    facts = world()
    damage(facts)
    assert len(getattr(invariants, noticed)(facts)) == 1


LOG = ["--- holdfast: web@1 started, pid 10", "web 1 1 ..", "web 1 2 ..", "web 1 3 ", "web 2 1 ...", "web 2 2 "]


@pytest.mark.parametrize(
    ("change", "keeper_lost", "violations"),
    [
        (lambda lines: None, False, 0),
        (lambda lines: lines.pop(2), False, 1),  # a hole
        (lambda lines: lines.pop(2), True, 1),  # that is no excuse for a hole
        (lambda lines: lines.pop(3), False, 1),  # the last line
        (lambda lines: lines.pop(3), True, 0),
        (lambda lines: lines.insert(3, lines[2]), False, 1),  # twice
        (lambda lines: lines.reverse(), False, 8),
        (lambda lines: lines.append("we"), False, 1),
        (lambda lines: lines.insert(4, "web 1"), True, 0),
        (lambda lines: lines.append("web 2 3"), False, 1),  # torn
        (lambda lines: lines.append("web 2 3 "), False, 0),  # killed before it was counted
        (lambda lines: lines.extend(["web 2 3 ", "web 2 4 "]), False, 1),
    ],
)
def test_lines_are_counted_over_all_files(tmp_path, change, keeper_lost, violations):
    lines = list(LOG)
    change(lines)
    (tmp_path / "00000001").write_text("".join(f"{line}\n" for line in lines[:3]))
    (tmp_path / "current").write_text("".join(f"{line}\n" for line in lines[3:]))
    facts = Facts(kinds={"web": "writer"}, counts={("web", 1): 3, ("web", 2): 2})
    facts.logs["web"] = [str(tmp_path / "00000001"), str(tmp_path / "current")]
    if keeper_lost:
        facts.killed["web", 1] = "keeper"
    found = invariants.logs_are_whole(facts)
    assert len(found) == violations, found


def test_a_full_disk_excuses_what_a_marker_counts(tmp_path):
    lines = [*LOG[:2], "--- holdfast: 12 bytes lost: No space left on device", *LOG[3:]]
    (tmp_path / "current").write_text("".join(f"{line}\n" for line in lines))
    facts = Facts(kinds={"web": "writer"}, counts={("web", 1): 3, ("web", 2): 2})
    facts.logs["web"] = [str(tmp_path / "current")]
    assert len(invariants.logs_are_whole(facts)) == 1
    facts.disk_full.add(("web", 1))
    assert invariants.logs_are_whole(facts) == []
    (tmp_path / "current").write_text("".join(f"{line}\n" for line in [*LOG[:2], *LOG[3:]]))
    assert len(invariants.logs_are_whole(facts)) == 1


def chaos(tmp_path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "chaos", *options], cwd=HERE, env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.timeout(LIMIT + 30)
@pytest.mark.parametrize(("profile", "kills"), [("supervisor", 100), ("keepers", 50)])
def test_a_run(tmp_path, profile, kills):
    file = tmp_path / "report.json"
    options = ["--profile", profile, "--seed", str(SEED), "--steps", str(2 * kills), "--kills", str(kills)]
    process = chaos(tmp_path, *options, "--services", "10", "--json", str(file))
    said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said[1][-2000:] + said[0]
    report = json.loads(file.read_text())
    assert report["kills"] >= kills
    assert report["violations"] == []
    assert set(report["invariants_checked"]) == {
        invariant.__name__ for invariant in (*invariants.ALWAYS, *invariants.AT_THE_END)
    }
    assert os.listdir(tmp_path) == ["report.json"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    process = chaos(tmp_path, "--steps", "1000", "--services", "5")
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("3/1000"):
                break
        os.killpg(process.pid, signal.SIGINT)  # ours, not reaped yet
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert '"interrupted": true' in out
    assert os.listdir(tmp_path) == []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                assert str(tmp_path).encode() not in file.read(), entry
        except OSError:
            pass


def test_the_document_has_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parent / "tools"))
    import reliability

    assert reliability.DOCUMENT.read_text() == reliability.document()
    for report in reliability.reports():
        assert report["violations"] == []
        assert f"**{report['kills']:,}**" in reliability.table()
