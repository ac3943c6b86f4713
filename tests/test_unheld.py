"""`holdfast doctor`: trees of supervisors that live no more, and what it does with them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest
from helpers_supervisor import HOLDFAST, Running, keeper_of, kill
from helpers_wait import wait_for
from test_lost import end_anchor_and_supervisor, ended, hold, said, service, written

from holdfast import spawn
from holdfast.daemon.members import encode, identify
from holdfast.daemon.unheld import MARKS, find


def doctor(up: Running, *options: str, check: int = 0) -> dict:
    """Of this run directory alone: nobody else's trees are this test's business."""
    return json.loads(up.holdfast("doctor", "--json", "--run-dir", str(up.run_dir), *options, check=check).stdout)


def running(up: Running) -> list[int]:
    """Main process and keeper, when they are written down."""
    pid = up.until("web", ready=True)["pid"]
    wait_for(lambda: len(written(up)) >= 2)
    return [pid, keeper_of(pid)]


def test_what_a_supervisor_holds_is_not_shown_and_not_touched(tmp_path):
    with Running(tmp_path, service(tmp_path, "main")) as up:
        running(up)
        assert doctor(up, "--stop")["trees"] == []
        assert up.client().service("web")["incarnation"] == 1
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        assert doctor(up, "--stop")["trees"] == []
        kill(supervisor, signal.SIGCONT)
        assert up.client().service("web")["incarnation"] == 1


def test_a_file_that_cannot_be_read_names_no_run_directory(tmp_path):
    done = subprocess.run(
        [HOLDFAST, "doctor", "-c", str(tmp_path / "no.toml")], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert "no.toml: cannot be read: No such file or directory" in done.stderr


def test_what_waits_for_the_next_up_is_shown_and_not_touched(tmp_path):
    with Running(tmp_path, service(tmp_path, "child")) as up:
        pid, keeper = running(up)
        up.stop(signal.SIGQUIT)
        (tree,) = doctor(up, "--stop")["trees"]
        assert (tree["service"], tree["incarnation"], tree["state"], tree["keeper"]) == ("web", 1, "waiting", keeper)
        assert pid in [each["pid"] for each in tree["processes"]]
        up.up()
        up.wait_for_socket()
        assert up.client().service("web")["pid"] == pid


def test_what_has_lost_its_keeper_is_stopped(tmp_path):
    with Running(tmp_path, service(tmp_path, "setsid")) as up:
        pid, keeper = running(up)
        wait_for(lambda: len(said(up)) == 2)
        fds = hold([pid])
        end_anchor_and_supervisor(up, keeper)
        up.process = None
        shown = up.holdfast("doctor", "--run-dir", str(up.run_dir)).stdout
        assert "web@1" in shown and "has no keeper any more" in shown and "doctor --stop" in shown
        assert not ended(fds)
        document = doctor(up, "--stop")
        assert document["left"] == 0
        assert [(tree["state"], len(tree["processes"])) for tree in document["trees"]] == [("lost", 2)]
        assert ended(fds)
        assert doctor(up)["trees"] == []
        os.close(fds[0])


def test_what_nobody_could_ever_take_over_is_stopped(tmp_path):
    """The run directory is gone: the marks are all there is, and the keeper is known by being the parent."""
    with Running(tmp_path, '[service.web]\ncommand = ["sh", "-c", "setsid sleep 1000 & wait"]\n') as up:
        fds = hold(running(up))
        up.stop(signal.SIGQUIT)
        shutil.rmtree(up.run_dir)
        (tree,) = doctor(up)["trees"]
        assert tree["state"] == "unreachable"
        assert doctor(up, "--stop")["left"] == 0
        assert ended(fds)
        for fd in fds:
            os.close(fd)
        assert up.of_service("web") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees, and kills, what is another user's")
def test_another_users_directory_does_not_choose_whom_root_kills(tmp_path):
    marks = dict(zip(MARKS, (str(tmp_path), "web", "1"), strict=True))
    theirs = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "1000"]
    with spawn(["sleep", "1000"]) as mine, spawn(theirs, env={**os.environ, **marks}) as marked:
        wait_for(lambda: os.stat(f"/proc/{marked.pid}").st_uid == 65534)
        who = [identify("main", each.pid, each.fileno()) for each in (mine, marked)]
        service = tmp_path / "services" / "web"
        service.mkdir(parents=True)
        (service / "1.members").write_bytes(encode(who))
        shutil.copy("/proc/sys/kernel/random/boot_id", tmp_path / "boot")
        os.chown(tmp_path, 65534, 65534)
        (tree,) = find(str(tmp_path), alone=True)
        assert [pid for pid, _ in tree.processes] == [marked.pid]
        assert [each.pid for each in tree.known] == [marked.pid]  # and not its keeper, which is ours
        os.chown(tmp_path, 0, 0)  # what root itself has written is believed
        (tree,) = find(str(tmp_path), alone=True)
        assert {pid for pid, _ in tree.processes} == {mine.pid, marked.pid}
