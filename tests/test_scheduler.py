"""A supervisor with schedules: real runs by the real clock, what a successor knows, and what a file says wrongly."""

from __future__ import annotations

import json
import os
import signal
import time

from helpers_config import problems
from helpers_supervisor import Running, kill
from helpers_wait import wait_for


def job(command, **keys):
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'[service.job]\ntype = "oneshot"\ncommand = {json.dumps(command)}\n{lines}'


APPEND = ["sh", "-c", "date +%s >> runs"]


def runs(up):
    path = up.directory / "runs"
    return path.read_text().splitlines() if path.exists() else []


def written(up):
    """What the scheduler has on disk; a file that is not there yet says nothing."""
    (path,) = (up.directory / "state").glob("schedule-*.json")
    return path, json.loads(path.read_text())


def events(up, what):
    with up.client() as client, client.events(after=0) as stream:
        last, found = client.supervisor()["last_event"], []
        for event in stream:
            found.append(event)
            if event["seq"] >= last:
                break
    return [event for event in found if event["event"] == what]


def test_a_job_runs_at_its_times_and_waits_in_between(tmp_path):
    services = job(APPEND, schedule='{ every = "1s" }') + '[service.web]\ncommand = "sleep 1h"\nafter = ["job"]\n'
    with Running(tmp_path, services) as up:
        up.until("web", state="running")
        wait_for(lambda: len(runs(up)) >= 3, 30)
        seconds = [int(line) for line in runs(up)]
        assert len(set(seconds)) >= len(seconds) - 1  # one that was late may share a second with the next
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor)
        up.wait_for_socket()
        before = len(runs(up))
        wait_for(lambda: len(runs(up)) >= before + 2, 30)
        up.holdfast("stop", "job")
        stopped = up.until("job", state="stopped")
        assert stopped["next_run"] is None
        after = len(runs(up))
        handled = written(up)[1]["job"]
        wait_for(lambda: written(up)[1]["job"] >= handled + 2, 30)  # times pass, and nothing is run
        assert len(runs(up)) == after


def test_status_and_start_of_one_that_waits_for_long(tmp_path):
    with Running(tmp_path, job(APPEND, schedule='"0 0 29 2 *"')) as up:
        status = up.until("job", state="stopped")
        assert status["next_run"] > time.time()
        assert time.localtime(status["next_run"])[1:5] == (2, 29, 0, 0)
        shown = up.holdfast("status")  # exit code 0: nothing is amiss
        assert "scheduled" in shown.stdout
        assert "next run 20" in shown.stdout
        assert "done" in up.holdfast("start", "job").stdout  # now
        assert len(runs(up)) == 1
        assert up.until("job", state="stopped")["next_run"] == status["next_run"]
        assert "done" in up.holdfast("stop", "job").stdout
        up.holdfast("status", check=3)


def test_a_run_that_fails_is_told_and_the_next_time_stays(tmp_path):
    services = job(["sh", "-c", "exit 3"], schedule='"0 0 1 1 *"', restart='"never"')
    with Running(tmp_path, services) as up:
        up.holdfast("start", "job", check=1)
        failed = up.until("job", state="stopped")
        assert failed["last_exit"]["code"] == 3
        assert failed["next_run"]
        assert "exited with code 3" in up.holdfast("status").stdout


def test_downtime_is_caught_up_with_once_or_said(tmp_path):
    """The file is what a reboot leaves: it says when the last time was handled."""
    services = job(APPEND, schedule='{ cron = "0 * * * *", catch_up = true, timezone = "UTC" }')
    services += services.replace("service.job", "service.other").replace("catch_up = true", "catch_up = false")
    with Running(tmp_path, services) as up:
        wait_for(lambda: list((tmp_path / "state").glob("schedule-*.json")), 20)
        up.stop()
        path, handled = written(up)
        assert set(handled) == {"job", "other"}
        assert runs(up) == []  # what is new has missed nothing
        path.write_text(json.dumps({"job": time.time() - 5 * 3600, "other": time.time() - 5 * 3600}))
        up.up()
        up.wait_for_socket()
        wait_for(lambda: len(runs(up)) == 1, 20)
        up.until("job", state="stopped")
        skipped = {event["service"]: event["text"] for event in events(up, "skipped")}
        assert set(skipped) == {"job", "other"} or time.time() % 3600 < 150
        assert up.client().service("other")["last_exit"] is None or time.time() % 3600 < 150
        up.stop()
        path.write_text("{ this is no JSON")
        up.up()
        up.wait_for_socket()
        assert "what was run last is not known" in events(up, "error")[0]["text"]
        assert len(runs(up)) == 1


def test_a_run_outlives_its_supervisor_and_is_not_repeated(tmp_path):
    os.mkfifo(tmp_path / "gate")
    command = ["sh", "-c", "date +%s >> runs; read x < gate"]
    with Running(tmp_path, job(command, schedule='{ every = "1s", overlap = "skip" }')) as up:
        running = up.until("job", state="starting", condition=lambda status: status["pid"])
        wait_for(lambda: len(runs(up)) == 1, 20)
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        kill(supervisor)
        up.wait_for_socket()
        wait_for(lambda: events(up, "skipped"), 20)
        assert up.until("job")["pid"] == running["pid"]
        assert len(runs(up)) == 1
        up.holdfast("stop", "job")


def test_other_times_count_from_when_they_were_given(tmp_path):
    """One that is given other times by an update has not missed them before; nor has one that had none for a while."""
    leap = '"0 3 29 2 *"'
    daily = '{ every = "24h", catch_up = true }'
    with Running(tmp_path, job(["sh", "-c", "date +%s >> runs"], schedule=leap)) as up:
        wait_for(lambda: list((tmp_path / "state").glob("schedule-*.json")), 20)
        up.stop()
        (path,) = (tmp_path / "state").glob("schedule-*.json")
        path.write_text(json.dumps({"job": time.time() - 5 * 86400}))
        up.up()
        up.wait_for_socket()
        text = up.file.read_text()
        up.file.write_text(text.replace(leap, daily))
        up.client().update()
        assert runs(up) == [] or time.time() % 86400 < 150
        assert events(up, "skipped") == []
        assert up.client().service("job")["next_run"]
        wait_for(lambda: written(up)[1]["job"] > time.time() - 86400, 20)


def test_mistakes(tmp_path):
    def wrong(schedule, **keys):
        (problem,) = problems(tmp_path, job("true", schedule=schedule, **keys))
        return f"{problem.key}: {problem.message} ({problem.hint})"

    assert wrong('"61 * * * *"') == 'schedule.cron: minute: "61" is none, or never comes (0 to 59)'
    assert "day-of-month" in wrong('"0 0 31 2 *"')
    assert "month" in wrong('"0 0 1 FOO *"')
    assert wrong('"@daily"').endswith('has 1 fields, and there are five ("0 0 * * *")')
    assert "shorter times than a minute: every" in wrong('"0 0 0 * * *"')
    assert "must be a string of five fields" in wrong("{ cron = 5 }")
    assert "has neither cron nor every" in wrong("{ jitter = '5s' }")
    assert "has both" in wrong("{ every = '5s', cron = '* * * * *' }")
    assert "at least 1s" in wrong("{ every = '5ms' }")
    assert 'did you mean "Europe/Berlin"?' in wrong("{ cron = '* * * * *', timezone = 'Europe/Berlim' }")
    assert 'did you mean "skip"?' in wrong("{ cron = '* * * * *', overlap = 'skp' }")
    assert 'did you mean "cron"?' in wrong("{ every = '5s', crom = '* * * * *' }")
    assert "must be a table" in wrong("5")
    assert "essential" in wrong('"* * * * *"', essential="true")
    simple = problems(tmp_path, '[service.a]\ncommand = "x"\nschedule = "* * * * *"\n')
    assert 'is for services of type "oneshot", and this is "simple"' in str(simple[0])
    required = job("true", schedule='"* * * * *"') + '[service.a]\ncommand = "x"\nrequires = ["job"]\n'
    assert "has a schedule, and is never there to stay" in str(problems(tmp_path, required)[0])
