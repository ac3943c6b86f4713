"""Start-up keeps nobody waiting for somebody else, and says what it does; who is stopped is named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess

import pytest
from conftest import require
from helpers_adopt import Impostor, ask_early, kill_anchor_and_supervisor, silent_keeper
from helpers_supervisor import HOLDFAST, LIMIT, Running, keeper_of, kill, log_of
from helpers_wait import all_ended, wait_for

from holdfast.config.holder import Holder, holder

SLEEPER = '[service.web]\ncommand = ["sleep", "1000"]\n'
WORKER = """
[service.worker]
command = ["sh", "-c", "echo life $$HOLDFAST_INCARNATION; read x < GATE; exit 5"]
restart = "always"
"""


def worker(tmp_path, more: str = "") -> str:
    os.mkfifo(tmp_path / "gate")
    return WORKER.replace("GATE", str(tmp_path / "gate")) + more


def let_it_exit(tmp_path) -> None:
    with open(tmp_path / "gate", "w") as gate:
        gate.write("go\n")


def happened(up: Running) -> list[tuple[str, str, str]]:
    """All that this supervisor remembers: service, event, text."""
    last = up.client().supervisor()["last_event"]
    found = []
    with up.client().events(after=0) as events:
        for event in events:
            found.append((event["service"], event["event"], event["text"]))
            if event["seq"] >= last:
                return found
    return found


def next_supervisor(up: Running, pid: int) -> dict:
    """The supervisor's status when another than `pid` has adopted."""

    def other() -> dict | None:
        status = up.client().supervisor()
        return status if status["pid"] != pid and status["state"] == "running" else None

    return wait_for(other, LIMIT)


# ---- the control socket, meanwhile


def test_the_api_answers_from_the_start(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        kill_anchor_and_supervisor(up)
        with silent_keeper(up):
            up.up()
            answers = ask_early(
                up,
                "GET /v1/supervisor",
                "GET /v1/services",
                "GET /v1/services/web",
                "GET /v1/services/web/logs",
                'POST /v1/stop {"names": ["web"]}',
                'POST /v1/signal {"names": ["web"], "signal": "TERM"}',
            )
            overview = json.loads(answers[0][1])
            assert (overview["state"], overview["found"], overview["adopted"]) == ("adopting", 2, 1)
            for head, body in answers[1:]:
                assert head.startswith("http/1.1 503"), (head, body)
                assert "\r\nretry-after: 1" in head
                error = json.loads(body)["error"]
                assert error["code"] == "adopting" and "1 of 2" in error["message"]
            now = up.client().service("web")  # the client asks until it gets an answer
            assert (now["state"], now["pid"]) == ("running", pid)
        assert up.client().supervisor()["state"] == "running"


def test_a_hup_that_comes_too_early_is_heeded(tmp_path):
    """And nothing is said to a manager before all is taken over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "manager"))
        manager.settimeout(30)
        with Running(tmp_path, SLEEPER, NOTIFY_SOCKET=str(tmp_path / "manager")) as up:
            up.until("web", ready=True)
            kill_anchor_and_supervisor(up)
            while b"READY=1" not in manager.recv(65536):
                pass
            with silent_keeper(up):
                up.up()
                ask_early(up, "GET /v1/supervisor")
                up.file.write_text(up.file.read_text().replace("[service.web]", "[service.web]\nnice = 1"))
                kill(up.client().supervisor()["pid"], signal.SIGHUP)
                word = manager.recv(65536)
                while b"READY" not in word and b"RELOADING" not in word:
                    word = manager.recv(65536)
                assert b"READY=1" in word
                assert up.client().supervisor()["state"] == "running"
            assert up.until("web", ready=True, incarnation=2)


def test_a_command_that_comes_too_early_is_carried_out(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        kill_anchor_and_supervisor(up)
        with silent_keeper(up):
            up.up()
            (answer,) = ask_early(up, "GET /v1/supervisor")
            assert json.loads(answer[1])["state"] == "adopting"
            up.holdfast("restart", "web")
        now = up.until("web", ready=True)
        assert now["incarnation"] == 2
        assert up.of_service("web") == [now["pid"]] != [pid]


def test_shutdown_is_heard_while_it_adopts(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        kill_anchor_and_supervisor(up)
        with silent_keeper(up):
            process = up.up()
            answers = ask_early(up, "GET /v1/supervisor", "POST /v1/shutdown {}")
            assert json.loads(answers[0][1])["state"] == "adopting"
            assert answers[1][0].startswith("http/1.1 200")
            wait_for(lambda: not up.of_service("web"), LIMIT)
        assert process.wait(LIMIT) == 0


def test_killed_while_it_adopts_again_and_again(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        kill_anchor_and_supervisor(up)
        with silent_keeper(up):
            up.up()
            for _ in range(3):
                (answer,) = ask_early(up, "GET /v1/supervisor")
                status = json.loads(answer[1])
                assert status["state"] == "adopting"
                kill(status["pid"])
                assert all_ended([status["pid"]])
            assert up.until("web", ready=True)["pid"] == pid
        assert up.of_service("web") == [pid]


# ---- what is found


def test_each_is_what_it_is(tmp_path):
    """One start-up finds one that runs, one that has ended, one that was lost, one that is frozen."""
    services = worker(tmp_path, SLEEPER + SLEEPER.replace("web", "lost") + SLEEPER.replace("web", "frozen"))
    with Running(tmp_path, services.replace('restart = "always"', 'restart = "never"')) as up:
        before = {name: up.until(name, ready=True) for name in ("web", "worker", "lost", "frozen")}
        keepers = {name: keeper_of(status["pid"]) for name, status in before.items()}
        kill_anchor_and_supervisor(up)
        let_it_exit(tmp_path)
        kill(keepers["lost"])
        kill(before["lost"]["pid"])
        kill(keepers["frozen"], signal.SIGSTOP)
        assert all_ended([before["worker"]["pid"], keepers["worker"], before["lost"]["pid"]])
        up.up()
        up.wait_for_socket()
        assert up.client().service("web")["pid"] == before["web"]["pid"]
        ended = up.client().service("worker")
        assert (ended["state"], ended["last_exit"]["code"], ended["incarnation"]) == ("exited", 5, 1)
        lost = up.until("lost", incarnation=2, ready=True)
        assert lost["last_exit"]["cause"] == "keeper lost"
        frozen = up.client().service("frozen")
        assert (frozen["state"], frozen["frozen"]) == ("running", [{"what": "keeper", "pid": keepers["frozen"]}])
        overview = up.client().supervisor()
        assert (overview["found"], overview["adopted"]) == (4, 3)
        kill(keepers["frozen"], signal.SIGCONT)
        back = up.until("frozen", pid=before["frozen"]["pid"])
        assert (back["incarnation"], back["frozen"]) == (1, [])
        assert up.client().supervisor()["adopted"] == 4
        adopted = {service for service, event, _ in happened(up) if event == "adopted"}
        assert adopted == {"web", "frozen"}


def test_a_lost_tree_that_will_not_end_keeps_nobody_waiting(tmp_path):
    """Told by the order of events: the others are there before KILL is given up."""
    if os.geteuid():
        pytest.skip("needs root")
    require("setpriv")
    tmp_path.chmod(0o755)
    may_not_kill = ("setpriv", "--bounding-set", "-kill")
    services = worker(tmp_path, '[service.stuck]\ncommand = ["sleep", "1000"]\nuser = "nobody"\n')
    with Running(tmp_path, services, through=may_not_kill) as up:
        stuck = up.until("stuck", ready=True)["pid"]
        worker_pid = up.until("worker", ready=True)["pid"]
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        kill(keeper_of(stuck))
        let_it_exit(tmp_path)
        assert all_ended([worker_pid])
        kill(supervisor)
        next_supervisor(up, supervisor)
        assert up.until("worker", incarnation=2, ready=True)["last_exit"]["code"] == 5
        assert "outlived KILL" in up.until("stuck", state="fatal")["reason"]
        events = [(service, event) for service, event, _ in happened(up)]
        assert events.index(("worker", "ready")) < events.index(("stuck", "survived"))
        assert up.of_service("stuck") == [stuck]
        kill(stuck)
        up.until("stuck", incarnation=2, ready=True)
        up.holdfast("stop", "stuck", "--no-wait")
        kill(up.client().service("stuck")["pid"])  # nobody else can


def test_what_requires_a_lost_one_is_not_started_on_the_strength_of_it(tmp_path):
    os.mkfifo(tmp_path / "gate")
    needs = f"""
[service.app]
command = ["sh", "-c", "echo started; read x < {tmp_path}/gate; exit 1"]
requires = ["db"]
restart = "never"
[service.db]
command = ["sh", "-c", "echo db; sleep 1000"]
restart = "never"
"""
    with Running(tmp_path, needs) as up:
        up.until("app", ready=True)
        up.holdfast("stop", "app")
        db = up.until("db", ready=True)["pid"]
        # While its supervisor is away: db is lost, and somebody wants app.
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        record = up.run_dir / "services" / "app" / "record"
        wanted = json.loads(record.read_bytes()) | {"wanted": True, "state": "starting"}
        record.write_text(json.dumps(wanted))
        kill(keeper_of(db))
        kill(supervisor)
        next_supervisor(up, supervisor)
        assert up.until("db", state="exited")["last_exit"]["cause"] == "keeper lost"
        assert log_of(up, "app").splitlines().count("started") == 1
        assert not [event for event in happened(up) if event[:2] == ("app", "starting")]


@pytest.mark.parametrize("manner", ["silent", "hangs up", "garbage"])
def test_a_stranger_is_left_alone_and_nothing_is_started_in_that_place(tmp_path, manner):
    with Running(tmp_path, SLEEPER + SLEEPER.replace("web", "other")) as up:
        pid = up.until("web", ready=True)["pid"]
        other = up.until("other", ready=True)["pid"]
        keeper = keeper_of(pid)
        kill_anchor_and_supervisor(up)
        kill(keeper)
        kill(pid)
        assert all_ended([keeper, pid])
        address = up.run_dir / "services" / "web" / "1.sock"
        address.unlink()
        with Impostor(address, manner) as stranger:
            up.up()
            up.wait_for_socket()
            assert up.client().service("other")["pid"] == other
            now = up.client().service("web")
            assert (now["state"], now["pid"], now["incarnation"]) == ("running", None, 1)
            named = f"a stranger at its keeper's socket: pid {stranger.process.pid} ("
            # Whose end is closed before it was looked at cannot be proved to be anybody's.
            assert now["held_by"].startswith((named, "somebody who hangs up") if manner == "hangs up" else named)
            assert up.of_service("web") == []
            assert stranger.process.poll() is None
            assert now["held_by"][:20] in up.holdfast("status", check=None).stdout
        assert up.until("web", incarnation=2, ready=True)["held_by"].startswith("keeper ")
        assert up.client().supervisor()["adopted"] == 2


def test_a_frozen_keeper_whose_queue_is_full_is_taken_over_when_it_goes_on(tmp_path):
    """Each supervisor that was killed meanwhile has left a connection in the queue."""
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        keeper = keeper_of(pid)
        kill_anchor_and_supervisor(up)
        kill(keeper, signal.SIGSTOP)
        with contextlib.ExitStack() as queue, pytest.raises(BlockingIOError):
            for _ in range(100):
                waiting = queue.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                waiting.setblocking(False)
                waiting.connect(str(up.run_dir / "services" / "web" / "1.sock"))
        up.up()
        up.wait_for_socket()
        now = up.client().service("web")
        assert (now["state"], now["pid"]) == ("running", None)
        assert now["held_by"].startswith("a keeper that does not take us")
        assert up.client().signal("web", signal="USR1")[0]["message"].startswith("it is held by a keeper that")
        assert up.of_service("web") == [pid]
        kill(keeper, signal.SIGCONT)
        assert up.until("web", pid=pid)["held_by"] == f"keeper {keeper}, as subreaper"
        assert up.of_service("web") == [pid]


# ---- who is stopped


def test_status_shows_who_of_a_service_is_stopped(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        keeper = keeper_of(pid)
        for what, number in (("keeper", keeper), ("main", pid)):
            kill(number, signal.SIGSTOP)
            wait_for(lambda what=what, number=number: up.client().service("web")["frozen"] == [
                {"what": what, "pid": number}])  # fmt: skip
            assert f"stopped: {what}: kill -CONT {number}" in up.holdfast("status", "web").stdout
            kill(number, signal.SIGCONT)
            wait_for(lambda: up.client().service("web")["frozen"] == [])
        assert "kill -CONT" not in up.holdfast("status").stdout


def test_a_frozen_supervisor_is_named_and_loses_nothing(tmp_path):
    with Running(tmp_path, worker(tmp_path, SLEEPER)) as up:
        first = up.until("worker", ready=True)
        web = up.until("web", ready=True)["pid"]
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        try:
            said = up.holdfast("status", check=1).stderr
            assert f"the supervisor (pid {supervisor}) is stopped (let it go on: kill -CONT {supervisor})" in said
            assert "is stopped" in up.holdfast("stop", "web", check=1).stderr
            let_it_exit(tmp_path)
            assert all_ended([first["pid"]])
            refused = up.holdfast("up", "-c", str(up.file), check=1).stderr
            assert f"the supervisor (pid {supervisor}) is stopped" in refused
        finally:
            kill(supervisor, signal.SIGCONT)
        again = up.until("worker", incarnation=2, ready=True)
        assert (again["last_exit"]["code"], again["restarts"]) == (5, 1)
        # What was asked for before goes on: nobody has said that it shall not.
        assert up.until("web", state="stopped")["incarnation"] == 1
        assert up.of_service("web") == [] and all_ended([web])
        lives = [line for line in log_of(up, "worker").splitlines() if line.startswith("life")]
        assert lives == ["life 1", "life 2"]
        assert up.client().supervisor()["pid"] == supervisor


def test_a_frozen_anchor_is_named(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        status = up.client().supervisor()
        anchor, supervisor = status["anchor_pid"], status["pid"]
        kill(anchor, signal.SIGSTOP)
        wait_for(lambda: up.client().supervisor()["frozen"] == [{"what": "anchor", "pid": anchor}])
        assert f"stopped: anchor: kill -CONT {anchor}" in up.holdfast("status").stdout
        kill(supervisor)
        assert all_ended([supervisor])
        words = f"the anchor (pid {anchor}) is stopped, and no supervisor runs below it"
        assert words in up.holdfast("status", check=1).stderr
        refused = up.holdfast("up", "-c", str(up.file), check=1).stderr
        assert words in refused and f"kill -CONT {anchor}" in refused
        assert up.of_service("web") == [pid]
        kill(anchor, signal.SIGCONT)
        assert next_supervisor(up, supervisor)["restarts"] == 1
        assert up.client().service("web")["pid"] == pid


def test_a_frozen_anchor_that_is_killed_makes_room_for_the_next(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        supervisor = up.client().supervisor()["pid"]
        assert up.process
        kill(up.process.pid, signal.SIGSTOP)
        kill(supervisor)
        assert all_ended([supervisor])
        kill(up.process.pid)
        up.process.wait()
        up.up()
        up.wait_for_socket()
        assert up.client().service("web")["pid"] == pid
        assert up.of_service("web") == [pid]


def test_down_does_not_wait_for_a_frozen_anchor(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        assert up.process
        kill(up.process.pid, signal.SIGSTOP)
        try:
            said = up.holdfast("down", check=1).stderr
        finally:
            kill(up.process.pid, signal.SIGCONT)
        assert f"the anchor (pid {up.process.pid}) is stopped" in said
        assert f"kill -CONT {up.process.pid}" in said
        assert up.of_service("web") == []
        assert up.process.wait(LIMIT) == 0


def test_down_does_not_wait_for_a_supervisor_that_is_frozen_on_the_way(tmp_path):
    script = "trap '' TERM; echo ignoring; while :; do sleep 1000; done"
    service = f'[service.web]\ncommand = {json.dumps(["sh", "-c", script])}\ngrace = "1s"\n'
    with Running(tmp_path, service) as up:
        up.until("web", ready=True)
        wait_for(lambda: "ignoring" in log_of(up, "web"))
        supervisor = up.client().supervisor()["pid"]
        down = subprocess.Popen(
            [HOLDFAST, "down", "--run-dir", str(up.run_dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        up.until("web", state="stopping")
        kill(supervisor, signal.SIGSTOP)
        try:
            _, said = down.communicate(timeout=LIMIT)
        finally:
            kill(supervisor, signal.SIGCONT)
        assert down.returncode == 1
        assert f"the supervisor (pid {supervisor}) is stopped" in said
        assert up.process and up.process.wait(LIMIT) == 0
        assert up.of_service("web") == []


@pytest.mark.parametrize(
    ("found", "silent", "words", "remedy"),
    [
        (Holder(7, False, 8, False), False, "", ""),
        (Holder(7, False, 8, True), True, "the supervisor (pid 8) is stopped", "let it go on: kill -CONT 8"),
        (Holder(7, True, 8, False), False, "the anchor (pid 7) is stopped", "let it go on: kill -CONT 7"),
        (Holder(7, False, 0, False), False, "", ""),  # the next one is about to be started
        (
            Holder(7, True, 8, True), True, "the supervisor (pid 8) and the anchor (pid 7) are stopped",
            "let it go on: kill -CONT 8 7",
        ),
    ],
)  # fmt: skip
def test_who_is_stopped_in_words(found, silent, words, remedy):
    assert (found.silent, found.words, found.remedy) == (silent, words, remedy)


@pytest.mark.parametrize("lock", ["", "{", "[]", '{"anchor": "x"}', '{"anchor": 0}', '{"anchor": -1}', "ours"])
def test_a_number_in_a_lock_is_not_believed(tmp_path, lock):
    (tmp_path / "lock").write_text(json.dumps({"anchor": os.getpid()}) if lock == "ours" else lock)
    assert holder(str(tmp_path)) is None
