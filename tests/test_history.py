"""`holdfast history`: what each incarnation came to, with real supervisors that are killed on the way."""

from __future__ import annotations

import json
import os
import signal
import stat

import pytest
from helpers_supervisor import LIMIT, Running, keeper_of, kill, python
from helpers_wait import wait_for

from holdfast.client import ClientError

SLEEP = '[service.web]\ncommand = ["sleep", "1000"]\n'
ME = f"pid {os.getpid()}, uid {os.getuid()}"


def history(up, *args):
    return json.loads(up.holdfast("history", "--json", *args).stdout)


def row_of(up, who):
    """`web@2`: the last row of that number."""
    name, _, number = who.partition("@")
    return [row for row in history(up, name) if row["incarnation"] == int(number)][-1]


def own(up):
    return [row for row in history(up) if not row["service"]]


def eventually_row(up, who, condition):
    wait_for(lambda: condition(row_of(up, who)), LIMIT, lambda: json.dumps(history(up), indent=1))
    return row_of(up, who)


def test_a_life_is_one_row_with_who_asked_and_what_it_used(tmp_path):
    busy = python(tmp_path, "busy", "while time.process_time() < 0.2: pass\ntell('READY=1')\nsignal.pause()\n")
    with Running(tmp_path, f'[service.web]\ntype = "notify"\ncommand = {busy}\n') as up:
        first = up.until("web", state="running")
        up.client().restart("web")
        row = row_of(up, "web@1")
        assert (row["pid"], row["why"]) == (first["pid"], "with the supervisor")
        assert row["asked"] == f"asked to restart ({ME})"
        assert (row["cause"], row["code"], row["signal"]) == ("killed by SIGTERM", None, "SIGTERM")
        assert row["started_at"] <= row["ready_at"] <= row["ended_at"] <= row["empty_at"]
        for usage in (row["usage"], row["tree_usage"]):
            assert 0.2 <= usage["user_seconds"] + usage["system_seconds"] < 10
            assert usage["max_rss_bytes"] > 1_000_000
        assert (row["stop"]["signal"], row["stop"]["signalled"], row["stop"]["killed"]) == ("SIGTERM", 1, 0)
        now = row_of(up, "web@2")
        assert (now["cause"], now["ended_at"], now["why"]) == (None, None, f"asked to restart ({ME})")
        shown = up.holdfast("history", "web").stdout.splitlines()
        assert [line.split()[0] for line in shown] == ["SERVICE", "web@1", "web@2"]
        assert f"killed by SIGTERM; asked to restart ({ME})" in shown[1]
        assert " runs " in shown[2]


def test_a_restart_by_policy_says_after_what_and_a_failed_start_has_a_row(tmp_path):
    services = """
[service.crash]
command = ["sh", "-c", "exit 3"]
start_limit = 2
[service.none]
command = ["/nowhere/at-all"]
"""
    with Running(tmp_path, services) as up:
        up.until("crash", state="fatal")
        up.until("none", state="fatal")
        assert [(row["cause"], row["code"], row["why"]) for row in history(up, "crash")] == [
            ("exited with code 3", 3, "with the supervisor"),
            ("exited with code 3", 3, "restart 1: exited with code 3"),
        ]
        (row,) = history(up, "none")
        assert row["cause"] == "could not start: exec /nowhere/at-all: No such file or directory"
        assert (row["pid"], row["code"], row["usage"]) == (None, None, None)
        assert row["ended_at"]


def test_a_killed_supervisor_leaves_the_row_open_and_its_successor_goes_on_with_it(tmp_path):
    with Running(tmp_path, SLEEP) as up:
        web = up.until("web", state="running")
        assert len(own(up)) == 1  # whoever reads waits for the file: it has the first life, which the next moment ends
        for number in (1, 2):
            killed = up.client().supervisor()["pid"]
            kill(killed)
            wait_for(lambda: up.client().supervisor()["restarts"] == number, LIMIT)  # noqa: B023
            (row,) = history(up, "web")
            assert (row["pid"], row["cause"], row["adopted"]) == (web["pid"], None, number)
            assert row["why"] == "with the supervisor"
        lives = own(up)
        assert [(row["cause"], row["incarnation"]) for row in lives] == [
            ("killed, or crashed", 1), ("killed, or crashed", 2), (None, 3),
        ]  # fmt: skip
        assert lives[2]["pid"] == up.client().supervisor()["pid"]
        assert "again, by its anchor" in lives[2]["why"]
        up.stop()
        row = row_of(up, "web@1")  # the file alone answers now
        assert (row["asked"], row["cause"]) == ("the supervisor ends (SIGTERM)", "killed by SIGTERM")
        assert own(up)[2]["cause"] == "everything is stopped"
        assert json.loads(up.holdfast("history", "--json", "holdfast").stdout) == own(up)
        up.holdfast("history", "--limit", "9" * 20, check=2)


def test_an_end_that_nobody_saw_is_written_by_the_next_supervisor(tmp_path):
    with Running(tmp_path, SLEEP) as up:
        web = up.until("web", state="running")
        keeper = os.pidfd_open(keeper_of(web["pid"]))
        up.stop(signal.SIGQUIT)
        assert row_of(up, "web@1")["cause"] is None
        said = up.holdfast("history", "web").stdout
        assert "-      no end known" in said and "runs" not in said  # nobody is there to know it
        kill(web["pid"], signal.SIGUSR1)
        wait_for(lambda: up.run_dir.joinpath("services/web/1.report").exists(), LIMIT)
        os.close(keeper)
        up.up()
        up.wait_for_socket()
        up.until("web", incarnation=2, state="running")
        row = row_of(up, "web@1")
        assert (row["cause"], row["signal"], row["adopted"]) == ("killed by SIGUSR1", "SIGUSR1", 0)
        assert row["usage"]["max_rss_bytes"] > 0
        assert row["tree_usage"]
        assert row["ended_at"] <= row_of(up, "web@2")["started_at"]
        assert row_of(up, "web@2")["why"] == "restart 1: killed by SIGUSR1"
        assert [life["cause"] for life in own(up)] == ["the services run on", None]


def test_a_lost_keeper_is_the_reason_of_the_next_start(tmp_path):
    with Running(tmp_path, SLEEP) as up:
        web = up.until("web", state="running")
        kill(keeper_of(web["pid"]))
        up.until("web", incarnation=2, state="running")
        row = row_of(up, "web@1")
        assert row["cause"].startswith("keeper lost")
        assert row["usage"] is None
        assert row["ended_at"]
        assert row["empty_at"]
        assert row_of(up, "web@2")["why"].startswith("restart 1: keeper lost")


def test_without_a_supervisor_the_file_says_the_same(tmp_path):
    with Running(tmp_path, SLEEP) as up:
        up.until("web", state="running")
        up.client().stop("web")
        with_it = history(up, "web")
        up.stop()
        assert history(up, "web") == with_it
        assert history(up, "--limit", "1")[0]["service"] == "web"
        up.run_dir.joinpath("accepted.json").unlink()  # as after a reboot: the configuration says where the file is
        done = up.holdfast("history", "--json", "-c", str(up.file), "w*")
        assert json.loads(done.stdout) == with_it
        assert "after the @ stands" in up.holdfast("history", "web@", check=1).stderr


def test_nothing_there_is_said(tmp_path):
    up = Running(tmp_path, SLEEP)
    done = up.holdfast("history", "-c", str(up.file))
    assert (done.stdout, done.stderr) == ("", f"holdfast: there is no history for {up.run_dir}\n")
    assert up.holdfast("history", "-c", str(up.file), "--json").stdout == "[]\n"
    assert not (tmp_path / "state").exists()


def test_names_and_limits(tmp_path):
    with Running(tmp_path, SLEEP + SLEEP.replace("web", "db")) as up, up.client() as client:
        up.until("web", state="running")
        up.until("db", state="running")
        assert [row["service"] for row in client.history("w*")] == ["web"]
        assert sorted(row["service"] for row in client.history("w*", "d?")) == ["db", "web"]
        assert client.history("w*@1") == client.history("web")
        assert client.history("web@2") == []
        with pytest.raises(ClientError, match="after the @ stands the number") as refused:
            client.history("web@x")
        assert refused.value.code == "bad_request"
        assert client.history("gone") == client.history(limit=0) == []
        assert len(client.history(limit=2)) == 2
        assert len(client.history()) == 3
        with pytest.raises(ClientError, match="limit must be a whole number"):
            client.history(limit=-1)
        (file,) = (tmp_path / "state").glob("history-*.db")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_two_run_directories_do_not_mix(tmp_path):
    with Running(tmp_path, SLEEP) as up:
        up.until("web", state="running")
        other = tmp_path / "other"
        other.mkdir()
        places = f'[supervisor]\nrun_dir = "run"\nlog_dir = "log"\nstate_dir = "{tmp_path}/state"\n'
        with Running(other, SLEEP.replace("web", "db"), places=places) as second:
            second.until("db", state="running")
            assert {row["service"] for row in history(second)} == {"", "db"}
            assert {row["service"] for row in history(up)} == {"", "web"}
