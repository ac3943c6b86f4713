"""`holdfast update`: exactly what changed is touched; a bad file changes nothing; a kill leaves one of two plans."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import threading

import pytest
from helpers_supervisor import PLACES, Running, kill, log_of, python
from helpers_wait import all_ended, wait_for

from holdfast.client import ClientError

POINTS = str(pathlib.Path(__file__).parent / "chaos" / "points")
SLEEP = '["sleep", "3600"]'


def service(name: str, *lines: str, command: str = SLEEP) -> str:
    return "\n".join([f"[service.{name}]", f"command = {command}", *lines]) + "\n"


def write(up: Running, services: str) -> None:
    up.file.write_text(PLACES + services)


def running(up: Running) -> dict[str, tuple[int, int]]:
    return {each["name"]: (each["incarnation"], each["pid"]) for each in up.client().services()}


def outcomes(answer: dict) -> dict[str, tuple[str, str, str]]:
    return {each["service"]: (each["change"], each["effect"], each["outcome"]) for each in answer["changes"]}


def events(up: Running, kind: str) -> list[dict]:
    with up.client() as client, client.events(after=0) as stream:
        last = client.supervisor()["last_event"]
        found = []
        for event in stream:
            if event["event"] == kind:
                found.append(event)
            if event["seq"] >= last:
                return found
    return found


def test_of_300_services_exactly_those_that_changed_are_touched(tmp_path):
    """20 changed, 10 added, 10 removed; and 5 whose changes need no new process."""
    names = [f"s{n:03d}" for n in range(300)]
    gone, restarted, applied = set(names[:200:20]), set(names[5:205:10]), set(names[290:295])
    added = {f"new{n}" for n in range(10)}
    with Running(tmp_path, "".join(service(name) for name in names)) as up:
        wait_for(lambda: all(each["ready"] for each in up.client().services()), 60)
        before = running(up)
        assert len(gone) == len(added) == 10 and len(restarted) == 20 and not gone & restarted
        lines = {**dict.fromkeys(restarted, 'env = { NEW = "1" }'), **dict.fromkeys(applied, 'grace = "3s"')}
        write(up, "".join(service(name, lines.get(name, "")) for name in [*names, *sorted(added)] if name not in gone))
        dry = up.client().update(dry_run=True)
        assert running(up) == before
        answer = up.client().update()
        assert answer["unchanged"] == dry["unchanged"] == 300 - 10 - 20 - 5
        assert outcomes(answer) == {
            **dict.fromkeys(gone, ("removed", "stops", "done")),
            **dict.fromkeys(added, ("added", "starts", "done")),
            **dict.fromkeys(restarted, ("changed", "restarts", "done")),
            **dict.fromkeys(applied, ("changed", "applies", "done")),
        }
        assert {name: (*each[:2], "") for name, each in outcomes(answer).items()} == outcomes(dry)
        after = running(up)
        assert set(after) == set(before) - gone | added
        for name, (incarnation, pid) in after.items():
            if name in added:
                assert incarnation == 1
            elif name in restarted:
                assert incarnation == 2 and pid != before[name][1]
            else:
                assert (incarnation, pid) == before[name]
        for name in gone:
            assert not os.path.exists(up.run_dir / "services" / name)
        assert all_ended([before[name][1] for name in gone | restarted])
        # Nothing of it is only in one head: a supervisor that comes after this one finds nothing to do.
        kill(up.client().supervisor()["pid"])
        wait_for(lambda: up.client().supervisor()["restarts"] == 1, 30)
        up.wait_for_socket()
        assert running(up) == after


def test_what_the_table_shows(tmp_path):
    with Running(tmp_path, service("web", 'env = { TOKEN = "a" }') + service("old")) as up:
        up.until("web", ready=True)
        write(up, service("web", 'env = { TOKEN = "b" }', 'grace = "3s"', command='["sleep", "7200"]') + service("new"))
        said = up.holdfast("update", "--dry-run").stdout
        assert said.splitlines() == [
            "removed old (stops)",
            'changed web: command "sleep 3600" -> "sleep 7200", env.TOKEN changed, grace 10s -> 3s (restarts)',
            "added new (starts)",
            "0 services unchanged: nothing was done",
        ]
        said = up.holdfast("update").stdout
        assert [line.split()[-1] for line in said.splitlines()[1:3]] == ["done", "done"], said
        assert up.holdfast("update").stdout == f"nothing has changed in {up.file}: 2 services unchanged\n"


BAD = {
    "[service.web\n": "is not TOML",
    '[service.web]\ncomand = "x"\n': 'did you mean "command"',
    service("web") + '[service.db]\nrequires = ["nobody"]\ncommand = "true"\n': "there is no service",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_leaves_everything_as_it_was_and_says_why(tmp_path, text):
    with Running(tmp_path, service("web") + service("db")) as up:
        up.until("db", ready=True)
        before, accepted = running(up), (up.run_dir / "accepted.json").read_bytes()
        write(up, text)
        done = up.holdfast("update", check=78)
        assert BAD[text] in done.stderr and "nothing was changed" in done.stderr
        up.process.send_signal(signal.SIGHUP)
        wait_for(lambda: sum(BAD[text] in event["text"] for event in events(up, "refused")) == 2)
        assert running(up) == before and (up.run_dir / "accepted.json").read_bytes() == accepted


def test_directories_cannot_change(tmp_path):
    with Running(tmp_path, service("web")) as up:
        up.file.write_text(PLACES.replace('"log"', '"elsewhere"') + service("web"))
        done = up.holdfast("update", check=1)
        assert "supervisor.log_dir" in done.stderr and "cannot change while it runs" in done.stderr


def test_a_run_directory_from_the_command_line_is_no_change(tmp_path):
    up = Running(tmp_path, service("web"), places='[supervisor]\nlog_dir = "log"\nstate_dir = "state"\nrun_dir = "x"\n')
    up.up("--run-dir", str(tmp_path / "run"))
    try:
        up.wait_for_socket()
        assert up.client().update()["changes"] == []
    finally:
        up.__exit__()


def test_hup_updates(tmp_path):
    with Running(tmp_path, service("web") + service("db")) as up:
        up.until("db", ready=True)
        before = running(up)
        write(up, service("web", "nice = 1") + service("db"))
        up.process.send_signal(signal.SIGHUP)
        up.until("web", incarnation=2, ready=True)
        assert running(up)["db"] == before["db"]
        assert [event["text"] for event in events(up, "updated")] == ["changed web: nice unset -> 1 (restarts)"]


def test_removed_ones_stop_as_they_were_to_and_in_order(tmp_path):
    """By the definition that is gone from the file: the signal, and after what requires them."""
    told = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: (print('usr1'), sys.exit(0)))\ntell('READY=1')\n"
    command = python(tmp_path, "db", told + "signal.pause()\n")
    db = service("db", 'type = "notify"', 'stop_signal = "USR1"', command=command)
    with Running(tmp_path, db + service("web", 'requires = ["db"]') + service("other")) as up:
        up.until("web", ready=True)
        write(up, service("other"))
        assert set(outcomes(up.client().update()).values()) == {("removed", "stops", "done")}
        assert "usr1\n" in log_of(up, "db")
        assert [event["service"] for event in events(up, "emptied")] == ["web", "db"]


def test_one_that_is_stopped_by_hand_stays_so(tmp_path):
    with Running(tmp_path, service("web")) as up:
        up.holdfast("stop", "web")
        write(up, service("web", "nice = 1"))
        assert outcomes(up.client().update())["web"] == ("changed", "restarts", "unchanged")
        assert up.client().service("web")["state"] == "stopped"
        up.holdfast("start", "web")
        with open(f"/proc/{up.client().service('web')['pid']}/stat") as file:
            assert file.read().rpartition(")")[2].split()[16] == "1"


def test_a_command_that_was_wrong_is_tried_again(tmp_path):
    with Running(tmp_path, service("web", command='["/nowhere/x"]')) as up:
        up.until("web", state="fatal")
        write(up, service("web"))
        assert outcomes(up.client().update())["web"] == ("changed", "restarts", "done")


def test_what_does_not_come_up_is_put_back(tmp_path):
    """A changed one has its old definition again, a new one is gone again; what has come up stays."""
    with Running(tmp_path, service("web") + service("db") + service("cache")) as up:
        up.until("cache", ready=True)
        before = running(up)
        write(
            up,
            service("web", command='["sh", "-c", "exit 3"]') + service("db", "nice = 1") + service("cache")
            + service("new", command='["/nowhere/x"]'),
        )  # fmt: skip
        done = up.holdfast("update", "--rollback", "--json", check=1)
        answer = json.loads(done.stdout)
        assert outcomes(answer) == {
            "web": ("changed", "restarts", "rolled_back"),
            "db": ("changed", "restarts", "done"),
            "new": ("added", "starts", "rolled_back"),
        }
        assert "exited with code 3" in {each["service"]: each["message"] for each in answer["changes"]}["web"]
        assert {event["service"] for event in events(up, "rolled_back")} == {"web", "new"}
        after = running(up)
        assert set(after) == {"web", "db", "cache"} and after["cache"] == before["cache"]
        assert up.client().service("web")["ready"]
        accepted = json.loads((up.run_dir / "accepted.json").read_text())["services"]
        assert list(accepted) == ["web", "db", "cache"] and accepted["web"]["command"] == ["sleep", "3600"]
        assert accepted["db"]["nice"] == 1


def test_the_whole_is_put_back_where_a_part_would_not_hold_together(tmp_path):
    with Running(tmp_path, service("db") + service("web", 'requires = ["db"]')) as up:
        up.until("web", ready=True)
        before = (up.run_dir / "accepted.json").read_bytes()
        group = '[group.all]\nservices = ["*"]\n'
        write(up, service("web", command='["sh", "-c", "exit 3"]') + service("other") + group)  # not db
        answer = up.client().update(rollback=True)
        assert {each[2] for each in outcomes(answer).values()} == {"rolled_back"}
        assert (up.run_dir / "accepted.json").read_bytes() == before
        assert set(running(up)) == {"db", "web"}
        up.until("web", ready=True)
        assert up.client().service("db")["incarnation"] == 2  # its numbers go on


def test_nobody_has_to_wait(tmp_path):
    never = service("web", 'type = "notify"', command=python(tmp_path, "never", "signal.pause()\n"))
    with Running(tmp_path, service("web")) as up:
        up.until("web", ready=True)
        write(up, never)
        assert outcomes(up.client().update(wait=False))["web"][2] == "asked"
        write(up, never.replace("[service.web]", "[service.web]\nnice = 1"))
        assert outcomes(up.client().update(timeout=0.1))["web"][2] == "timed_out"
        write(up, service("web"))
        assert outcomes(up.client().update())["web"][2] == "done"


def test_one_that_comes_back_goes_on_with_its_numbers(tmp_path):
    with Running(tmp_path, service("web") + service("db")) as up:
        up.until("db", ready=True)
        write(up, service("db"))
        up.client().update()
        write(up, service("web") + service("db"))
        assert outcomes(up.client().update(rollback=True))["web"] == ("added", "starts", "done")
        assert running(up)["web"][0] == 2


def test_a_second_update_is_refused_while_one_is_proved(tmp_path):
    slow = service("web", 'type = "notify"', command=python(tmp_path, "never", "signal.pause()\n"))
    with Running(tmp_path, service("web") + service("db")) as up:
        up.until("db", ready=True)
        write(up, slow + service("db"))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(up.client().update(rollback=True, timeout=60)))
        asking.start()
        up.until("web", incarnation=2, state="starting")
        with pytest.raises(ClientError, match="another update is under way") as refused:
            up.client().update()
        assert refused.value.code == "refused"
        kill(up.until("web", lambda status: status["pid"] is not None)["pid"])
        asking.join()
        assert outcomes(answers[0])["web"][2] == "rolled_back"
        up.until("web", ready=True)


STEPS = ('pre_start = ["sh", "-c", "echo pre"]', 'post_stop = ["sh", "-c", "echo post"]')


@pytest.mark.parametrize("rollback", [False, True])
def test_steps_of_a_start_and_of_an_end_are_no_failures(tmp_path, rollback):
    """Each step has a number of its own, and what is put back has all of them, too."""
    with Running(tmp_path, service("web", *STEPS) + service("db")) as up:
        up.until("web", ready=True)
        write(up, service("web", *STEPS, "nice = 1") + service("db"))
        answer = up.client().update(rollback=rollback)
        assert outcomes(answer)["web"] == ("changed", "restarts", "done"), answer
        assert (status := up.client().service("web"))["ready"] and status["incarnation"] == 5, status
        write(up, service("web", *STEPS, command='["sh", "-c", "exit 3"]') + service("db", "nice = 1"))
        answer = up.client().update(rollback=rollback)
        verdict = "rolled_back" if rollback else "failed"
        assert {name: each[2] for name, each in outcomes(answer).items()} == {"web": verdict, "db": "done"}
        assert answer["changes"][0]["message"] == "exited with code 3"
        if rollback:
            assert up.client().service("web")["ready"]
            assert [event["service"] for event in events(up, "rolled_back")] == ["web"]


def test_a_pre_start_that_fails_puts_back(tmp_path):
    with Running(tmp_path, service("web", *STEPS)) as up:
        up.until("web", ready=True)
        write(up, service("web", 'pre_start = ["sh", "-c", "exit 4"]', STEPS[1], "nice = 1"))
        answer = up.client().update(rollback=True)
        assert answer["changes"][0]["outcome"] == "rolled_back"
        assert answer["changes"][0]["message"] == "pre_start: exited with code 4"
        assert up.client().service("web")["ready"]


@pytest.mark.parametrize("rollback", [False, True])
def test_a_schedule_is_not_started_and_has_not_failed(tmp_path, rollback):
    yearly = ('type = "oneshot"', 'schedule = "0 3 1 1 *"')
    with Running(tmp_path, service("job", *yearly)) as up:
        write(up, service("job", *yearly, command='["true"]') + service("new", *yearly))
        answer = up.client().update(rollback=rollback)
        assert {name: each[2] for name, each in outcomes(answer).items()} == {"job": "done", "new": "done"}
        up.holdfast("start", "job")  # by the new definition, or it would not end
        assert up.client().service("new")["incarnation"] == 0


def test_who_serves_until_its_successor_does_is_not_judged_by_a_health_it_was_not_started_for(tmp_path):
    """Nothing can be heard of one without NOTIFY_SOCKET; and its successor takes its time."""
    ready = service("web", 'restart_order = "start-first"', f'ready = {{ command = ["test", "-e", "{tmp_path}/go"] }}')
    (tmp_path / "go").touch()
    with Running(tmp_path, ready) as up:
        up.until("web", ready=True)
        (tmp_path / "go").unlink()
        write(up, ready + 'health = { notify = true, interval = "100ms", failures = 1000 }\n')
        assert outcomes(up.client().update(timeout=1.0))["web"] == ("changed", "restarts", "timed_out")
        assert events(up, "health_failed") == []
        (tmp_path / "go").touch()
        up.until("web", ready=True, incarnation=2)


def test_who_loses_its_schedule_starts(tmp_path):
    yearly = ('type = "oneshot"', 'schedule = "0 3 1 1 *"')
    with Running(tmp_path, service("job", *yearly, command='["sh", "-c", "exit 3"]') + service("web")) as up:
        write(up, service("job", yearly[0], 'restart = "never"', command='["sh", "-c", "exit 3"]') + service("web"))
        answer = up.client().update()
        assert outcomes(answer) == {"job": ("changed", "starts", "failed")}
        assert answer["changes"][0]["message"] == "exited with code 3"


def test_a_replica_that_is_put_back_is_in_no_group(tmp_path):
    text = service("web", "replicas = 2", command='["sh", "-c", "test {index} = 3 && exit 4; exec sleep 3600"]')
    with Running(tmp_path, text) as up:
        up.until("web-2", ready=True)
        write(up, text.replace("2", "3"))
        answer = up.client().update(rollback=True)
        assert outcomes(answer)["web-3"] == ("added", "starts", "rolled_back")
        refused = up.holdfast("restart", "web:3", check=1)
        assert "web:3" in refused.stderr, refused
        assert [each["name"] for each in up.client().services("web:*")] == ["web-1", "web-2"]


def test_what_is_put_back_is_a_plan_that_a_file_could_have(tmp_path):
    """The old `job` has a schedule again, and nobody may require that."""
    yearly = ('type = "oneshot"', 'schedule = "0 3 1 1 *"')
    with Running(tmp_path, service("job", *yearly) + service("web")) as up:
        write(up, service("job", command='["sh", "-c", "exit 3"]') + service("web", 'requires = ["job"]'))
        answer = up.client().update(rollback=True)
        assert {name: each[2] for name, each in outcomes(answer).items()} == {
            "job": "rolled_back", "web": "rolled_back",
        }  # fmt: skip
        up.until("web", ready=True)
        assert up.client().service("job")["incarnation"] >= 1


# ---- kills

OLD = service("a") + service("b", 'requires = ["a"]') + service("gone") + service("same")
NEW = service("a", "nice = 1") + service("b", 'requires = ["a"]') + service("same") + service("new")
STARTS = 4  # records that the start-up writes


@pytest.mark.parametrize(
    ("point", "plan"),
    [
        ("open accepted.json.new 0", "old"),
        ("os.rename accepted.json.new 0", "old"),
        (f"open record.new {STARTS}", "new"),
        (f"open record.new {STARTS + 1}", "new"),
        (f"open record.new {STARTS + 2}", "new"),
        ("socket.bind new/1.sock 0", "new"),
        ("shutil.rmtree services/gone 0", "new"),
    ],
)
def test_a_supervisor_that_is_killed_in_the_middle_ends_in_one_plan(tmp_path, point, plan):
    (tmp_path / "point").write_text(point + "\n")
    with Running(tmp_path, OLD, PYTHONPATH=POINTS, CHAOS_POINT=str(tmp_path / "point")) as up:
        for name in ("a", "b", "gone", "same"):
            up.until(name, ready=True)
        before = running(up)
        write(up, NEW)
        with pytest.raises(ClientError):
            up.client().update()
        wait_for(lambda: up.client().supervisor()["restarts"] == 1)
        up.wait_for_socket()
        if plan == "old":
            wait_for(lambda: running(up) == before)
        else:
            names = {"a", "b", "same", "new"}
            wait_for(lambda: all(each["ready"] for each in up.client().services()) and set(running(up)) == names)
            after = running(up)
            assert after["same"] == before["same"]
            assert after["a"][0] > before["a"][0] and after["b"][0] > before["b"][0]
            with open(f"/proc/{after['a'][1]}/stat") as file:
                assert file.read().rpartition(")")[2].split()[16] == "1"
            assert all_ended([before["gone"][1]])


def test_a_file_that_has_changed_while_the_anchor_was_dead_is_heeded(tmp_path):
    with Running(tmp_path, service("web") + service("db")) as up:
        up.until("db", ready=True)
        before, supervisor = running(up), up.client().supervisor()["pid"]
        kill(up.process.pid)
        up.process.wait()
        assert all_ended([supervisor])
        write(up, service("web", command='["sleep", "7200"]') + service("db"))
        up.up("--detach")
        assert up.process.wait() == 0
        assert "\n  web was started with another definition: it is restarted\n" in up.output.read_text()
        up.until("web", incarnation=2, ready=True)
        assert running(up)["db"] == before["db"]
        assert [event["service"] for event in events(up, "outdated")] == ["web"]
        up.holdfast("down")
