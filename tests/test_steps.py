"""pre_start and post_stop with real programs: their order, their failures, their ends, and a supervisor that is killed
in each of them."""

from __future__ import annotations

import os
import signal

import pytest
from helpers_supervisor import Running, kill, log_of
from helpers_wait import wait_for

# Says its name in the log, then waits for `gate` to be there: a step that lasts for as long as a test wants.
GATED = """
[service.web]
command = "sleep 1h"
pre_start = ["sh", "-c", "echo before; while ! test -e gate-pre; do sleep 0.05; done"]
post_stop = ["sh", "-c", "echo after; while ! test -e gate-post; do sleep 0.05; done; echo cleaned"]
"""


def order(*words):
    """A shell command that appends to the file `order`."""
    return f"""["sh", "-c", "echo {' '.join(words)} >> order"]"""


def said(up, name="order"):
    path = up.directory / name
    return path.read_text().splitlines() if path.exists() else []


def incarnations(up, name="web"):
    """(number, why) of all, as the history has them."""
    with up.client() as client:
        return [(row["incarnation"], row["why"], row["cause"]) for row in client.history(name)]


def test_the_steps_run_one_after_another_each_with_a_number_of_its_own(tmp_path):
    services = f"""
[service.web]
command = ["sh", "-c", "echo main >> order; exec sleep 1h"]
pre_start = {order("pre", "$$HOLDFAST_INCARNATION", "$$NOTIFY_SOCKET")}
post_stop = {order("post", "$$HOLDFAST_INCARNATION", "$$HOLDFAST_EXIT_SIGNAL", "$$HOLDFAST_EXIT_CODE")}
[service.front]
command = "sleep 1h"
requires = ["web"]
pre_start = {order("front")}
"""
    with Running(tmp_path, services) as up:
        up.until("front", state="running")
        assert up.until("web", state="running")["incarnation"] == 2
        wait_for(lambda: "main" in said(up), 20)
        up.holdfast("stop", "web")
        assert [line for line in said(up) if line != "front"] == ["pre 1", "main", "post 3 SIGTERM"]
        assert said(up).index("front") > 0
        up.holdfast("start", "front")
        assert up.until("web", state="running")["incarnation"] == 5
        rows = incarnations(up)
        assert [number for number, _, _ in rows] == [1, 2, 3, 4, 5]
        steps = [why.partition(":")[0] for _, why, _ in rows if why.startswith("p")]
        assert steps == ["pre_start", "post_stop", "pre_start"]
        assert rows[2][2] == "post_stop: exited with code 0"
        assert rows[1][2] == "killed by SIGTERM"
        assert "web@1 pre_start" in log_of(up, "web")
        wait_for(lambda: said(up).count("main") == 2, 20)
        kill(up.until("web", state="running")["pid"])  # a crash: cleaned up, and begun anew
        again = up.until("web", lambda status: status["incarnation"] == 8, state="running")
        assert again["last_exit"]["signal"] == "SIGKILL"
        assert again["restarts"] == 1
        ended = ["post 6 SIGKILL", "pre 7", "main"]
        wait_for(lambda: [line for line in said(up) if line != "front"][-3:] == ended, 20)


def test_a_pre_start_that_fails_is_a_failed_start(tmp_path):
    services = f"""
[service.never]
command = ["sh", "-c", "echo main >> order"]
pre_start = ["sh", "-c", "exit 3"]
success_exit_codes = [0, 3]
restart = "never"
post_stop = {order("cleaned", "$$HOLDFAST_EXIT_CODE")}
[service.missing]
command = "sleep 1h"
pre_start = ["/no/such/program"]
[service.later]
command = "sleep 1h"
pre_start = ["sh", "-c", "test -e there || {{ touch there; exit 1; }}"]
[service.often]
command = "sleep 1h"
pre_start = "false"
start_limit = 2
[service.unclean]
command = "true"
restart = "never"
post_stop = "/no/such/program"
[service.job]
type = "oneshot"
command = ["sh", "-c", "exit 4"]
success_exit_codes = [4]
pre_start = "true"
post_stop = "false"
"""
    with Running(tmp_path, services) as up:
        never = up.until("never", state="exited", ready=False)
        assert never["last_exit"]["cause"] == "pre_start: exited with code 3"
        assert said(up) == ["cleaned 3"]
        missing = up.until("missing", state="fatal")
        assert missing["reason"] == "could not start: pre_start: exec /no/such/program: No such file or directory"
        later = up.until("later", state="running")
        assert (later["incarnation"], later["restarts"]) == (3, 1)
        often = up.until("often", state="fatal")
        assert "2 starts in a row" in often["reason"]
        unclean = up.until("unclean", state="exited")
        assert unclean["last_exit"]["cause"] == "exited with code 0"
        job = up.until("job", ready=True)
        assert (job["state"], job["last_exit"]["code"], job["incarnation"]) == ("exited", 4, 3)
        assert incarnations(up, "unclean")[-1][2].startswith("post_stop could not start: exec /no/such/program")


def test_stop_during_the_steps(tmp_path):
    with Running(tmp_path, GATED) as up:
        up.until("web", state="starting", step="pre_start")
        wait_for(lambda: "before" in log_of(up, "web"), 20)
        stopping = up.holdfast("stop", "web", "--no-wait")
        assert "asked" in stopping.stdout
        status = up.until("web", state="stopping", step="post_stop")
        assert status["reason"].startswith("post_stop runs; asked to stop")
        wait_for(lambda: "after" in log_of(up, "web"), 20)
        up.holdfast("start", "web", "--no-wait")  # wanted again, when post_stop is done
        assert up.until("web", state="stopping")["incarnation"] == 2
        up.holdfast("stop", "web", "--no-wait")
        (tmp_path / "gate-post").touch()
        assert up.until("web", state="stopped")["incarnation"] == 2
        assert "cleaned" in log_of(up, "web")
        up.holdfast("start", "web", "--no-wait")
        up.until("web", step="pre_start", state="starting")
        (tmp_path / "gate-pre").touch()
        up.until("web", state="running", step="main", incarnation=4)
        assert up.stop() == 0  # a shutdown runs it, too
        assert log_of(up, "web").count("cleaned") == 2


@pytest.mark.parametrize("meanwhile", [False, True], ids=["goes on", "ends while nobody is there"])
def test_a_supervisor_killed_in_each_step(tmp_path, meanwhile):
    """Its successor takes the step over, whether it runs on or has ended meanwhile, and goes on with the next."""

    def kill_supervisor(gate):
        with up.client() as client:
            supervisor = client.supervisor()
        if meanwhile:
            kill(supervisor["anchor_pid"], signal.SIGSTOP)  # nobody comes until the step has ended
        step_pid = up.until("web")["pid"]
        kill(supervisor["pid"])
        if meanwhile:
            (tmp_path / gate).touch()
            wait_for(lambda: not os.path.exists(f"/proc/{step_pid}"), 20)
            kill(supervisor["anchor_pid"], signal.SIGCONT)
        up.wait_for_socket()
        (tmp_path / gate).touch()

    with Running(tmp_path, GATED) as up:
        wait_for(lambda: "before" in log_of(up, "web"), 20)
        kill_supervisor("gate-pre")
        up.until("web", state="running", incarnation=2)
        kill(up.until("web")["pid"])
        up.until("web", state="stopping", step="post_stop", incarnation=3)
        wait_for(lambda: "after" in log_of(up, "web"), 20)
        kill_supervisor("gate-post")
        status = up.until("web", state="running", incarnation=5)  # by policy: main's end is not forgotten
        assert (status["restarts"], status["last_exit"]["signal"]) == (1, "SIGKILL")
        assert log_of(up, "web").count("cleaned") == 1
        if not meanwhile:
            (tmp_path / "gate-post").unlink()
            up.holdfast("stop", "web", "--no-wait")
            up.until("web", step="post_stop")
            wait_for(lambda: log_of(up, "web").count("after") == 2, 20)
            kill_supervisor("gate-post")
            up.until("web", state="stopped", incarnation=6)
