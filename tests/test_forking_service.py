"""Services of `type = "forking"` under a whole supervisor.  Who forks, when, is said by the tests, through pipes."""

from __future__ import annotations

import json
import os
import signal

import pytest
from helpers_forking import ONCE, TWICE, command, gates, name_of
from helpers_supervisor import NOTIFIER, Running, keeper_of, kill
from helpers_wait import wait_for

from holdfast.config.errors import ConfigError
from holdfast.config.load import load


@pytest.fixture
def gate(tmp_path):
    with gates(tmp_path) as make:
        yield make


def service(name: str, *actions: list, more: str = "") -> str:
    return f'[service.{name}]\ntype = "forking"\ncommand = {command(*actions)}\n{more}\n'


def child(name: str, *actions: list) -> list:
    return ["start", *actions, ["name", name], ["up"], ["pause"]]


def events(up: Running, name: str, *kinds: str) -> list[str]:
    """The texts of its events of these kinds, in their order."""
    found = map(json.loads, up.holdfast("events", "--json").stdout.splitlines())
    return [event["text"] for event in found if event["service"] == name and event["event"] in kinds]


def main_of(up: Running, name: str, called: str, **fields) -> dict:
    """Its status once it is ready and its main process has this name."""
    return up.until(name, lambda s: s["pid"] and name_of(s["pid"]) == called, state="running", ready=True, **fields)


def test_ready_by_the_fork_restarted_when_main_is_killed_and_nothing_left(tmp_path, gate):
    services = service("d", ["gate", gate("fork")], child("d", ["setsid"], child("worker")), ["exit", 0])
    services += '[service.after]\ncommand = ["sleep", "1000"]\nrequires = ["d"]\n'
    with Running(tmp_path, services) as up:
        waits = up.until("d", lambda s: s["pid"], state="starting")
        assert (waits["ready"], waits["main"]) == (False, None)
        assert up.client().service("after")["state"] == "starting"
        gate.open("fork")
        up.until("after", state="running")
        first = main_of(up, "d", "d")
        assert first["main"] == {"rule": "only", "moved": 1, "refused": ""}
        assert first["tree"]["processes"] == 2
        assert f"main {waits['pid']} -> {first['pid']} (only one is left)" in events(up, "d", "moved")
        kill(first["pid"])
        gate.open("fork")
        second = main_of(up, "d", "d", restarts=1)
        assert second["last_exit"]["cause"] == "killed by SIGKILL"
        assert len(up.of_service("d")) == 2  # nothing of the first
        up.holdfast("stop", "d")
        assert not up.of_service("d")


def test_one_that_forks_again_is_followed_without_a_restart(tmp_path, gate):
    second = ["start", ["name", "second"], ["up"], ["pause"]]
    first = ["start", ["name", "first"], second, ["up"], ["gate", gate("again")], ["exit", 0]]
    with Running(tmp_path, service("d", first, ["exit", 0]) + service("twice", *TWICE)) as up:
        before = main_of(up, "d", "first")
        gate.open("again")
        after = main_of(up, "d", "second")
        assert (after["incarnation"], after["restarts"]) == (before["incarnation"], 0)
        assert after["main"]["moved"] == 2
        assert after["uptime_seconds"] > before["uptime_seconds"]
        twice = main_of(up, "twice", "twice")
        (history,) = json.loads(up.holdfast("history", "twice", "--json").stdout)
        assert history["pid"] == twice["pid"]


@pytest.mark.parametrize(
    ("actions", "cause"),
    [
        ([["exit", 0]], "left no process: exited with code 0"),
        ([["exit", 3]], "exited with code 3"),
        ([child("a"), ["die", 9]], "killed by SIGKILL"),
        ([["pause"]], "ready_timeout: killed by SIGTERM"),
    ],
)
def test_what_leaves_no_daemon_has_failed_and_is_started_again(tmp_path, actions, cause):
    more = 'ready = { timeout = "300ms" }\nstart_limit = 2\nbackoff = { then = "10ms" }\n'
    if actions == [["exit", 0]]:
        more += 'restart = "on-abnormal"\n'
    with Running(tmp_path, service("d", *actions, more=more)) as up:
        status = up.until("d", state="fatal")
        assert status["last_exit"]["cause"] == cause
        assert status["restarts"] == 1
        assert not up.of_service("d")


def test_main_has_the_name(tmp_path):
    services = service("d", child("a", ["setsid"]), child("b"), ["exit", 0], more='main = "b"')
    services += service("e", child("a"), child("b"), ["exit", 0])
    with Running(tmp_path, services) as up:
        assert main_of(up, "d", "b")["main"]["rule"] == "name"
        first = main_of(up, "e", "a")
        assert first["main"]["rule"] == "together"
        assert "main: the oldest of several" in up.holdfast("status", "e").stdout
        assert "main:" not in up.holdfast("status", "d").stdout
        kill(first["pid"])  # the service lives while the tree does
        second = main_of(up, "e", "b")
        assert second["incarnation"] == first["incarnation"]
        kill(second["pid"])
        assert main_of(up, "e", "a", restarts=1)["incarnation"] > first["incarnation"]


def test_a_pid_file_names_main_if_that_is_one_of_its_own(tmp_path, gate):
    path = tmp_path / "new" / "d.pid"
    b = ["start", ["name", "b"], ["up"], ["gate", gate("write")], ["write", str(path)], ["pause"]]
    services = service("d", child("a"), b, ["exit", 0], more=f'pid_file = "{path}"')
    with Running(tmp_path, services) as up:
        first = main_of(up, "d", "a")
        path.parent.mkdir()
        gate.open("write")
        second = main_of(up, "d", "b")
        assert second["main"] == {"rule": "asked", "moved": 2, "refused": ""}
        assert second["incarnation"] == first["incarnation"]


def test_a_stale_pid_file_hurts_nobody(tmp_path):
    """It names a process of another service: that is not taken for main, not signalled, and status says so."""
    path = tmp_path / "d.pid"
    services = '[service.other]\ncommand = ["sleep", "1000"]\n'
    services += service("d", child("a"), ["exit", 0], more=f'pid_file = "{path}"')
    with Running(tmp_path, services) as up:
        other = up.until("other", state="running")["pid"]
        path.write_text(f"{other}\n")
        up.holdfast("restart", "d")
        status = up.until("d", lambda s: s["main"] and s["main"]["refused"], state="running", ready=True)
        text = f"{path} names {other}, which is not in this tree"
        assert status["main"]["refused"] == text
        assert name_of(status["pid"]) == "a"
        assert text in up.holdfast("status", "d").stdout and text in events(up, "d", "main_refused")
        up.holdfast("stop", "d")
        assert up.client().service("other")["pid"] == other


def test_main_says_so_itself(tmp_path):
    """MAINPID of sd_notify, from somebody of the tree."""
    program = tmp_path / "daemon.py"
    program.write_text(
        NOTIFIER + "import select\n"
        "first = os.fork()\n"
        "if first == 0: signal.pause()\n"
        "starter = os.pidfd_open(os.getpid())\n"
        "second = os.fork()\n"
        "if second == 0:\n"
        "    select.select([starter], [], [])\n"
        "    tell(f'MAINPID={os.getpid()}\\nREADY=1')\n"
        "    open(os.environ['WHO'], 'w').write(str(os.getpid()))\n"
        "    signal.pause()\n"
    )
    who = tmp_path / "who"
    services = (
        f'[service.d]\ntype = "forking"\ncommand = ["python3", "{program}"]\nready = {{ notify = true }}\n'
        f'env = {{ WHO = "{who}" }}\n'
    )
    with Running(tmp_path, services) as up:
        status = up.until("d", lambda s: s["main"] and s["main"]["rule"] == "asked", state="running", ready=True)
        wait_for(who.exists)
        assert status["pid"] == int(who.read_text())


@pytest.mark.parametrize("killed", [False, True])
def test_what_it_says_before_its_fork_is_over_holds_then(tmp_path, gate, killed):
    """The daemon is ready, and says who it is, while the one that was started waits for it, as good daemons do."""
    program = tmp_path / "daemon.py"
    program.write_text(
        NOTIFIER + "if os.fork() == 0: signal.pause()\n"
        "if os.fork() == 0:\n"
        "    tell(f'MAINPID={os.getpid()}\\nREADY=1')\n"
        "    open(os.environ['WHO'], 'w').write(str(os.getpid()))\n"
        "    signal.pause()\n"
        f"open({str(gate('fork'))!r}).readline()\n"
    )
    who = tmp_path / "who"
    services = (
        f'[service.d]\ntype = "forking"\ncommand = ["python3", "{program}"]\nready = {{ notify = true }}\n'
        f'env = {{ WHO = "{who}" }}\n'
    )
    with Running(tmp_path, services) as up:
        up.until("d", lambda s: "it answers" in s["reason"], state="starting")
        if killed:
            kill(up.client().supervisor()["pid"])
            up.wait_for_socket()
        gate.open("fork")
        status = up.until("d", state="running", ready=True)
        assert status["incarnation"] == 1
        if not killed:
            status = up.until("d", lambda s: s["main"]["rule"] == "asked")
            assert status["pid"] == int(who.read_text())


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_supervisor_that_is_killed_loses_nothing(tmp_path, gate, when):
    """Killed before the fork, after it (which happens while nobody is there), and when all was known."""
    services = service("d", ["gate", gate("fork")], child("d", ["setsid"]), child("x"), ["exit", 0])
    with Running(tmp_path, services) as up:
        starter = up.until("d", lambda s: s["pid"], state="starting")
        if when == "after":
            gate.open("fork")
            before = main_of(up, "d", "d")
            wait_for(lambda: "moved: main" in up.output.read_text())  # lines are written a moment after
        supervisor = up.client().supervisor()["pid"]
        if when == "between":
            anchor = up.client().supervisor()["anchor_pid"]
            os.kill(anchor, signal.SIGSTOP)  # ours: it starts no other one meanwhile
            kill(supervisor)
            gate.open("fork")
            wait_for(lambda: not os.path.exists(f"/proc/{starter['pid']}"))
            os.kill(anchor, signal.SIGCONT)
        else:
            kill(supervisor)
        if when == "before":
            gate.open("fork")
        status = main_of(up, "d", "d")
        assert up.client().supervisor()["restarts"] == 1
        assert (status["incarnation"], status["restarts"]) == (starter["incarnation"], 0)
        assert status["main"]["rule"] == "session"
        if when == "after":
            assert (status["pid"], status["main"]) == (before["pid"], before["main"])
        kill(up.client().supervisor()["pid"])
        assert main_of(up, "d", "d")["pid"] == status["pid"]
        assert up.client().supervisor()["restarts"] == 2
        assert up.output.read_text().count("moved: main") == 1  # told once, whoever was there
        kill(status["pid"])
        gate.open("fork")
        assert main_of(up, "d", "d", restarts=1)["last_exit"]["cause"] == "killed by SIGKILL"


def test_how_it_ended_while_nobody_was_there_is_known(tmp_path, gate):
    services = service("d", ["gate", gate("fork")], child("d"), ["exit", 0])
    services += service("e", ["gate", gate("end")], ["exit", 0])
    with Running(tmp_path, services) as up:
        starter = up.until("e", lambda s: s["pid"], state="starting")["pid"]
        gate.open("fork")
        daemon = main_of(up, "d", "d")["pid"]
        supervisor = up.client().supervisor()
        os.kill(supervisor["anchor_pid"], signal.SIGSTOP)
        kill(supervisor["pid"])
        keepers = [keeper_of(starter), keeper_of(daemon)]
        fds = [os.pidfd_open(pid) for pid in keepers]
        gate.open("end")
        kill(daemon)
        for fd in fds:
            wait_for(lambda fd=fd: signal.pidfd_send_signal(fd, 0) is None and is_gone(fd))
            os.close(fd)
        os.kill(supervisor["anchor_pid"], signal.SIGCONT)
        assert up.until("d", restarts=1)["last_exit"]["cause"] == "killed by SIGKILL"
        assert up.until("e", restarts=1)["last_exit"]["cause"] == "left no process: exited with code 0"
        gate.open("fork")
        gate.open("end")


def is_gone(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 0)[0])


def test_a_lost_keeper_takes_its_daemon_along(tmp_path):
    with Running(tmp_path, service("d", child("d", ["setsid"], child("below", ["setsid"])), ["exit", 0])) as up:
        first = main_of(up, "d", "d")
        kill(keeper_of(first["pid"]))
        second = main_of(up, "d", "d", restarts=1)
        assert second["last_exit"]["cause"].startswith("keeper lost")
        assert len(up.of_service("d")) == 2 and first["pid"] not in up.of_service("d")


def test_a_stop_during_the_fork_leaves_nothing(tmp_path, gate):
    services = service("d", child("d", ["setsid"]), ["gate", gate("never")], ["exit", 0])
    with Running(tmp_path, services) as up:
        up.until("d", lambda s: s["tree"] and s["tree"]["processes"] == 2, state="starting")
        up.holdfast("stop", "d")
        status = up.client().service("d")
        assert (status["state"], status["last_exit"]["cause"]) == ("stopped", "killed by SIGTERM")
        assert not up.of_service("d")


def test_two_of_the_same_are_not_confused(tmp_path):
    services = service("d", *ONCE, more="replicas = 2")
    with Running(tmp_path, services) as up:
        first, second = main_of(up, "d-1", "once"), main_of(up, "d-2", "once")
        assert first["pid"] in up.of_service("d-1") and second["pid"] in up.of_service("d-2")
        up.holdfast("stop", "d-1")
        assert not up.of_service("d-1")
        assert up.client().service("d-2")["pid"] == second["pid"]


def test_what_goes_with_it(tmp_path, gate):
    """A successor beside it, a reload with its MAINPID, its input."""
    told = tmp_path / "told"
    services = service(
        "d", *ONCE,
        more=f"""restart_order = "start-first"\nstdin = "pipe"
reload_command = ["sh", "-c", 'echo $$MAINPID > {told}.new; mv {told}.new {told}']""",
    )  # fmt: skip
    with Running(tmp_path, services) as up:
        first = main_of(up, "d", "once")
        up.holdfast("reload", "d")
        assert int(told.read_text()) == first["pid"]
        up.holdfast("restart", "d")
        second = main_of(up, "d", "once")
        assert second["incarnation"] > first["incarnation"]
        up.until("d", lambda s: up.of_service("d") == [second["pid"]])
        assert "has taken over" in "".join(events(up, "d", "stopping"))


def test_pre_start_and_post_stop_are_no_daemons(tmp_path):
    more = 'pre_start = "true"\npost_stop = "true"'
    with Running(tmp_path, service("d", *ONCE, more=more)) as up:
        main_of(up, "d", "once")
        up.holdfast("stop", "d")
        assert up.client().service("d")["state"] == "stopped"
        assert not [text for text in events(up, "d", "exited") if "left no process" in text]


def test_pid_file_needs_no_restart_and_main_does(tmp_path):
    path = tmp_path / "d.pid"
    with Running(tmp_path, service("d", child("a"), child("b"), ["exit", 0])) as up:
        first = main_of(up, "d", "a")
        more = f'pid_file = "{path}"'
        text = up.file.read_text()
        up.file.write_text(text + more)
        assert "applies" in up.holdfast("update").stdout
        assert up.client().service("d")["pid"] == first["pid"]
        path.write_text("1\n")
        up.until("d", lambda s: s["main"]["refused"] == f"{path} names 1, which is not in this tree")
        up.file.write_text(text + 'main = "b"')
        assert "restarts" in up.holdfast("update").stdout
        assert main_of(up, "d", "b")["main"]["rule"] == "name"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('main = "a"', 'main: is for services of type "forking", and this is "simple"'),
        ('pid_file = "x"', 'pid_file: is for services of type "forking"'),
        ('type = "forking"\npty = true', 'pty: cannot go with type "forking"'),
        ('type = "forking"\nmain = ""', "main: is empty"),
        ('type = "forking"\nmain = "a-name-of-more-than-15"', '"a-name-of-more-"'),
        ('type = "forking"\nschedule = "* * * * *"', "schedule"),
    ],
)
def test_what_does_not_go_with_it_is_an_error(tmp_path, more, message):
    file = tmp_path / "holdfast.toml"
    file.write_text(f'[service.d]\ncommand = "x"\n{more}\n')
    with pytest.raises(ConfigError) as error:
        load(str(file))
    assert message in str(error.value)
