"""What a supervisor finds when it starts: every way in which the last one, and keepers, may have been left."""

from __future__ import annotations

import json
import os
import signal

import pytest
from helpers_supervisor import Running, keeper_of, kill, log_of
from helpers_trees import wait_for

from holdfast.process.held import HeldTree

SLEEPER = '[service.web]\ncommand = ["sleep", "1000"]\n'


def answers_as_another(up: Running, pid: int) -> bool:
    now = up.client().supervisor()
    return now["pid"] != pid and now["state"] == "running"


def restart_supervisor(up: Running, *, first: tuple[int, ...] = ()) -> None:
    """kill -9 of the supervisor while it is stopped, with `first` killed before it can notice."""
    pid = up.client().supervisor()["pid"]
    kill(pid, signal.SIGSTOP)
    for each in first:
        kill(each)
    kill(pid)
    wait_for(lambda: answers_as_another(up, pid), limit=30)


def test_an_exit_is_not_forgotten_while_the_rest_of_the_tree_ends(tmp_path):
    for name in ("gate", "rest"):
        os.mkfifo(tmp_path / name)
    script = f"trap '' TERM; sh -c 'echo ignoring; read x < {tmp_path}/rest' & read x < {tmp_path}/gate; exit 5"
    command = json.dumps(["sh", "-c", script])
    services = f'[service.web]\ncommand = {command}\nrestart = "never"\ngrace = "60s"\n'
    with Running(tmp_path, services) as up:
        first = up.until("web", ready=True)
        wait_for(lambda: "ignoring" in log_of(up, "web"))
        with open(tmp_path / "gate", "w") as gate:
            gate.write("go\n")
        up.until("web", state="stopping")
        restart_supervisor(up)
        assert up.client().service("web")["state"] == "stopping"
        with open(tmp_path / "rest", "w") as gate:
            gate.write("go\n")
        ended = up.until("web", state="exited")
        assert ended["last_exit"]["code"] == 5
        assert ended["incarnation"] == first["incarnation"]


def test_supervisor_and_keeper_lost_together(tmp_path):
    services = '[service.web]\ncommand = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]\n'
    with Running(tmp_path, services) as up:
        first = up.until("web", ready=True)
        wait_for(lambda: len(up.of_service("web")) == 3)
        before = set(up.of_service("web"))
        restart_supervisor(up, first=(keeper_of(first["pid"]),))
        second = up.until("web", lambda s: s["incarnation"] == 2 and s["ready"])
        assert not before & set(up.of_service("web"))
        assert second["restarts"] == 1


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_a_damaged_record_makes_no_second_copy(tmp_path, damage):
    with Running(tmp_path, SLEEPER) as up:
        first = up.until("web", ready=True)
        up.holdfast("restart", "web")
        second = up.until("web", lambda s: s["pid"] != first["pid"] and s["ready"])
        record = up.run_dir / "services" / "web" / "record"
        if damage == "missing":
            record.unlink()
        else:
            record.write_bytes(b"" if damage == "empty" else b'{"name": 5')
        restart_supervisor(up)
        now = up.until("web", ready=True)
        assert (now["pid"], now["incarnation"]) == (second["pid"], 2)
        assert up.of_service("web") == [second["pid"]]
        up.holdfast("restart", "web")
        assert up.until("web", ready=True)["incarnation"] == 3


def test_a_frozen_keeper_does_not_hold_a_stop_up_for_ever(tmp_path):
    with Running(tmp_path, SLEEPER + 'grace = "100ms"\n') as up:
        pid = up.until("web", ready=True)["pid"]
        kill(keeper_of(pid), signal.SIGSTOP)
        up.holdfast("stop", "web")
        assert up.client().service("web")["state"] == "stopped"
        assert up.of_service("web") == []


def test_a_frozen_keeper_at_start_up_makes_no_second_copy(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        keeper = keeper_of(pid)
        kill(keeper, signal.SIGSTOP)
        restart_supervisor(up)
        assert up.of_service("web") == [pid]
        assert up.client().service("web")["state"] == "running"
        kill(keeper, signal.SIGCONT)
        assert up.until("web", pid=pid)["incarnation"] == 1
        assert up.of_service("web") == [pid]


def test_a_keeper_that_still_has_another_owner_makes_no_second_copy(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        keeper = keeper_of(pid)
        kill(up.process.pid)
        up.process.wait()
        other = HeldTree.attach(str(up.run_dir / "services" / "web" / "1.sock"))
        try:
            wait_for(lambda: other.events())
            up.up()
            up.wait_for_socket()
            assert up.of_service("web") == [pid]
            assert up.client().service("web")["state"] == "running"
        finally:
            other.close()
        assert up.until("web", pid=pid)["incarnation"] == 1
        assert up.of_service("web") == [pid]
        assert keeper_of(pid) == keeper
        up.holdfast("stop", "web")
        assert up.of_service("web") == []


def test_a_notify_service_stays_ready_over_its_supervisor(tmp_path):
    program = tmp_path / "notifier.py"
    program.write_text(
        "import os, signal, socket\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "sock.connect(os.environ['NOTIFY_SOCKET'])\n"
        "sock.send(b'READY=1')\n"
        "signal.pause()\n"
    )
    with Running(tmp_path, f'[service.web]\ntype = "notify"\ncommand = ["python3", "{program}"]\n') as up:
        before = up.until("web", ready=True)
        restart_supervisor(up)
        now = up.client().service("web")
        assert (now["pid"], now["state"], now["ready"]) == (before["pid"], "running", True)
