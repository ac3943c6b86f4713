"""The benchmark runs and says what it should; how fast anything is, is no test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from conftest import require

from holdfast.daemon.starts import DESCRIPTORS_OF_ONE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCHMARKS = os.path.join(ROOT, "benchmarks")


def bench(tmp_path, *args: str, program: str = "library.py") -> tuple[dict, str]:
    require("gcc")
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, os.path.join(BENCHMARKS, program), "--quick", "--json", str(file), *args],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_spawn_and_capture_sections(tmp_path):
    results, table = bench(tmp_path, "--section", "spawn", "--section", "capture")
    assert list(results["sections"]) == ["spawn", "capture"]
    rows = results["sections"]["spawn"]
    adapters = {"floor", "posix_spawn", "popen", "runner", "spawn", "direct", "asyncio"}
    assert {(r["adapter"], r["program"], r["pinned"]) for r in rows} == {
        (a, p, w) for a in adapters for p in ("one page", "/bin/true") for w in (True, False)
    }
    for r in rows + results["sections"]["capture"]:
        assert 0 < r["p10_us"] <= r["median_us"] <= r["max_us"]
        assert r["p99_us"] <= r["max_us"]
        assert r["ratio_popen"] > 0
    assert {r["ratio_popen"] for r in rows if r["adapter"] == "popen"} == {1.0}
    assert {r["ratio_floor"] for r in rows if r["adapter"] == "floor"} == {1.0}
    names = [t["name"] for t in results["targets"]]
    assert len(names) == len(set(names)) == 4
    for t in results["targets"]:
        assert t["met"] == (t["value"] <= t["limit"])
    assert "holdfast.Runner" in table
    assert "Targets" in table


def test_notice_idle_and_keeper_sections(tmp_path):
    results, _ = bench(tmp_path, "--section", "notice", "--section", "idle", "--section", "keeper")
    for r in results["sections"]["notice"]:
        # The child notes the time before it exits, on the same clock: a delay is never negative.
        assert 0 < r["p10_us"] <= r["max_us"]
    assert {(r["adapter"], r["window"]) for r in results["sections"]["idle"]} == {
        (a, w) for a in ("spawn", "runner", "direct", "popen") for w in ("first", "later")
    }
    (size,) = results["sections"]["keeper"]
    assert 0 < size["private_dirty_kib"] <= size["private_kib"] <= size["rss_kib"]
    assert "keeper_total_bytes" in size or any("memory cgroup" in note for note in results["notes"])


def test_restart_section_of_the_supervisor(tmp_path):
    results, table = bench(tmp_path, "--section", "restart", program="supervisor.py")
    rows = results["sections"]["restart"]
    assert {(r["what"], r["phase"]) for r in rows} == {
        (w, p) for w in ("floor", "holdfast") for p in ("settled", "hot")
    }
    for r in rows:
        # The next one's first act is to note the time, on the clock by which the kill was noted.
        assert 0 < r["p10_us"] <= r["median_us"] <= r["max_us"]
    assert {r["over_floor_us"] for r in rows if r["what"] == "floor"} == {0.0}
    assert [t["name"].split(", ")[1] for t in results["targets"]] == ["settled", "hot"]
    assert "From SIGKILL to the first instruction of the next, hot" in table


def test_adopt_section_of_the_supervisor(tmp_path):
    results, table = bench(tmp_path, "--section", "adopt", program="supervisor.py")
    assert [r["what"] for r in results["sections"]["adopt"]] == ["supervisor", "all"]
    for r in results["sections"]["adopt"]:
        assert 0 < r["adopted_ms"] <= r["max_adopted_ms"]
        assert r["answer_ms"] <= r["settled_ms"] and r["adopted_ms"] <= r["settled_ms"]
    assert [t["limit"] for t in results["targets"]] == [2.0, 2.0]
    assert "20 services adopted after SIGKILL" in table


def test_scale(tmp_path):
    results, table = bench(tmp_path, program="scale.py")
    rows = results["sections"]["scale"]
    small, large = (row for row in rows if row["what"] == "life")
    assert (small["n"], large["n"]) == (20, 40)
    for row in (small, large):
        assert 0 < row["up_ms"] <= row["running_ms"]
        assert row["processes"] == 2 * row["n"] + 2
    # What the supervisor counts on when it leaves some to clients; and the lowest of the limits is named first.
    walls = [row for row in rows if row["what"] == "wall"]
    assert {row["of"]: row["each"] for row in walls}["descriptors of the supervisor"] == DESCRIPTORS_OF_ONE
    assert [row["services"] for row in walls] == sorted(row["services"] for row in walls)
    (beyond,) = (row for row in rows if row["what"] == "beyond")
    assert beyond["running"] == 20
    assert "Too many open files" in beyond["reason"]
    assert "What ends first" in table


def test_ladder(tmp_path):
    results, table = bench(tmp_path, program="ladder.py")
    sections = results["sections"]
    rungs = [r["rung"] for r in sections["latency"]]
    assert rungs == [r["rung"] for r in sections["starts"]]
    assert rungs[0] == "subprocess" and {"pidfd", "selfpipe", "polling"} <= set(rungs)
    for r in sections["latency"]:
        # The child notes the time before it exits, on the same clock: a delay is never negative.
        assert 0 < r["median_us"] <= r["p99_us"] <= r["max_us"]
    assert all(r["per_s"] > 0 for r in sections["starts"])
    assert {(r["adapter"], r["what"]) for r in sections["communicate"]} == {
        (a, w) for a in ("subprocess", "holdfast", "Popen") for w in ("stdout", "stdin", "both")
    }
    for r in sections["communicate"]:
        assert 0 < r["least_mb_per_s"] <= r["mb_per_s"]
    names = [t["name"] for t in results["targets"]]
    assert len(names) == len(set(names)) == len(rungs) - 2 + 2 + 6
    for t in results["targets"]:
        assert t["met"] == (t["value"] >= t["limit"])
    assert "MiB written and read back" in table


def test_too_little_memory_is_a_note_and_not_a_failure(tmp_path):
    results, table = bench(tmp_path, "--section", "memory", "--memory", str(1 << 30))
    assert results["sections"]["memory"] == []
    assert results["targets"] == []
    assert "section memory skipped" in table


def test_the_document_shows_the_committed_figures(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import report

    with open(report.DOCUMENT, encoding="utf-8") as file:
        document = file.read()
    for path in report.RESULTS.values():
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
        assert not results["quick"]
        assert report.as_markdown(results) in document
