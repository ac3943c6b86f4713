"""`health` and `watchdog` with real programs: what is well, lies, flaps, or never answers, and who learns of it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket

import pytest
from helpers_probes import Web, again, fifo, frozen_anchor, notifier, release
from helpers_supervisor import Running, kill, log_of
from helpers_wait import eventually, wait_for

from holdfast.config.model import Health, Service
from holdfast.daemon.ask import ask
from holdfast.daemon.plan import Surroundings

QUICK = 'interval = "30ms", timeout = "5s", failures = 3'


def test_one_that_stops_answering_is_restarted_and_says_why(tmp_path):
    web = Web(tmp_path)
    services = f"""
[service.web]
command = {web.command}
ready = {{ tcp = "{web.port}", interval = "20ms" }}
health = {{ http = "{web.url}", {QUICK} }}
"""
    with Running(tmp_path, services) as up:
        first = up.until("web", lambda s: s["health"] and s["health"]["state"] == "ok")
        assert first["health"]["text"] == "200 OK"
        assert first["health"]["failures"] == first["health"]["failed"] == 0
        assert first["health"]["checks"] > 0
        assert first["health"]["checked_seconds_ago"] < 30
        web.set("503 Busy")
        second = up.until("web", lambda s: s["incarnation"] == 2)
        assert second["last_exit"]["cause"] == "unhealthy (503 Busy): killed by SIGTERM"
        assert second["restarts"] == 1
        web.set("200 OK")
        up.until("web", lambda s: s["health"] and s["health"]["state"] == "ok")
        wait_for(lambda: "web@1 stopping: unhealthy (503 Busy)" in up.output.read_text())  # written a moment later
        assert up.output.read_text().count("web@1 health failed: health: 503 Busy") == 1  # when it changes


def test_tcp_and_command_and_a_policy_that_does_not_restart(tmp_path):
    web, bad = Web(tmp_path), tmp_path / "bad"
    text = f"test ! -e {bad} || {{ echo it is bad; exit 3; }}"
    services = f"""
[service.tcp]
command = {web.command}
ready = {{ tcp = "{web.port}", interval = "20ms" }}
health = {{ tcp = "127.0.0.1:{web.port}", {QUICK} }}
[service.command]
command = ["sleep", "1000"]
health = {{ command = {json.dumps(["sh", "-c", text])}, {QUICK} }}
restart = "never"
"""
    with Running(tmp_path, services) as up:
        for name in ("tcp", "command"):
            up.until(name, lambda s: s["health"] and s["health"]["state"] == "ok")
        bad.touch()
        status = up.until("command", state="exited")
        assert status["last_exit"]["cause"] == "unhealthy (exited with code 3: it is bad): killed by SIGTERM"
        assert status["health"] is None
        assert up.client().service("tcp")["health"]["failed"] == 0


def test_one_that_flaps_runs_on_and_is_shown_as_such(tmp_path):
    web = Web(tmp_path)
    services = f"""
[service.web]
command = {web.command}
ready = {{ tcp = "{web.port}", interval = "20ms" }}
health = {{ http = "{web.url}", interval = "30ms", failures = 1000 }}
"""
    with Running(tmp_path, services) as up:
        for _ in range(3):
            web.set("500 Oh")
            up.until("web", lambda s: s["health"] and s["health"]["state"] == "failing" and s["health"]["failures"] > 1)
            web.set("204 No Content")
            last = up.until("web", lambda s: s["health"] and s["health"]["state"] == "ok")
        assert last["health"]["failed"] >= 6
        assert last["health"]["failures"] == 0
        assert last["health"]["text"] == "204 No Content"
        assert (last["incarnation"], last["state"]) == (1, "running")
        wait_for(lambda: up.output.read_text().count("web@1 health ok") == 3)  # it is written a moment later
        assert up.output.read_text().count("web@1 health failed") == 3
        assert " checks failed" in up.holdfast("status").stdout
        web.set("500 Oh")
        up.until("web", lambda s: s["health"]["state"] == "failing")
        assert "unhealthy: 500 Oh (" in up.holdfast("status").stdout


@pytest.mark.parametrize(
    ("mood", "answers"),
    [
        ("silence", ["no answer within 0.2s"]),
        ("close", ["closed without an answer", "Connection reset by peer"]),
        ("\x1b[2J", ["no HTTP answer: 'HTTP/1.1 \\x1b[2J'"]),
    ],
    ids=["never", "closes", "speaks otherwise"],
)
def test_one_that_accepts_and_does_not_answer(tmp_path, mood, answers):
    """The liar that a look at its port believes."""
    web = Web(tmp_path)
    services = f"""
[service.web]
command = {web.command}
ready = {{ http = "{web.url}", interval = "20ms" }}
health = {{ http = "{web.url}", interval = "30ms", timeout = "200ms", failures = 2 }}
restart = "never"
"""
    with Running(tmp_path, services) as up:
        up.until("web", ready=True)
        web.set(mood)
        status = up.until("web", state="exited")
        assert status["last_exit"]["cause"] in [f"unhealthy ({answer}): killed by SIGTERM" for answer in answers]


HEARTBEAT = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
tell("READY=1")
while not signal.sigtimedwait([signal.SIGUSR1], 0.02):
    {beat}
signal.pause()
"""


@pytest.mark.parametrize(
    ("kind", "beat"),
    [("notify = true", "tell('WATCHDOG=1')"), ("fd = 7", "os.write(7, b'\\n')"), ("log = 'beat'", "print('beat')")],
    ids=["notify", "fd", "log"],
)
def test_those_that_are_heard_must_be_heard_in_each_interval(tmp_path, kind, beat):
    services = f"""
[service.x]
command = {notifier(tmp_path, "x", HEARTBEAT.format(beat=beat))}
type = "notify"
health = {{ {kind}, interval = "300ms", failures = 2 }}
restart = "never"
stop_signal = "KILL"
"""
    with Running(tmp_path, services) as up:
        up.until("x", lambda s: s["health"] and s["health"]["checks"] >= 20)
        again(up)  # and its successor hears on
        status = up.until("x", lambda s: s["health"] and s["health"]["checks"] >= 20)
        assert status["state"] == "running"
        kill(status["pid"], 10)  # USR1
        assert "unhealthy (nothing heard for 0.3s)" in up.until("x", state="exited")["last_exit"]["cause"]


def test_watchdog(tmp_path):
    beats = HEARTBEAT.format(beat="tell('WATCHDOG=1')") + "\n"
    environment = "import sys\nprint(os.environ['WATCHDOG_USEC'], os.environ.get('WATCHDOG_PID'), flush=True)\n"
    trigger = "tell('READY=1'); tell('WATCHDOG=trigger')\nsignal.pause()"
    longer = "tell('READY=1'); tell('WATCHDOG_USEC=1000000000')\nsignal.pause()"
    services = f"""
[service.beats]
command = {notifier(tmp_path, "beats", environment + beats)}
type = "notify"
watchdog = "500ms"
[service.never]
command = ["sleep", "1000"]
watchdog = "200ms"
restart = "never"
[service.trigger]
command = {notifier(tmp_path, "trigger", trigger)}
type = "notify"
watchdog = "1h"
restart = "never"
[service.longer]
command = {notifier(tmp_path, "longer", longer)}
type = "notify"
watchdog = "500ms"
[service.starting]
command = ["sleep", "1000"]
type = "notify"
watchdog = "50ms"
"""
    with Running(tmp_path, services) as up:
        cause = "unhealthy (watchdog: nothing heard for 0.2s): killed by SIGTERM"
        assert up.until("never", state="exited")["last_exit"]["cause"] == cause
        assert "it says so itself" in up.until("trigger", state="exited")["last_exit"]["cause"]
        up.until("beats", lambda s: s["health"] and s["health"]["checks"] >= 60)
        assert log_of(up, "beats").splitlines()[1] == "500000 None"
        assert up.client().service("longer")["state"] == "running"
        assert up.client().service("starting")["state"] == "starting"  # it begins when it is ready
        pid = up.client().service("beats")["pid"]
        again(up)
        up.until("beats", lambda s: s["health"] and s["health"]["checks"] >= 10)
        kill(pid, 10)
        restarted = up.until("beats", lambda s: s["incarnation"] == 2)
        assert "watchdog: nothing heard for 0.5s" in restarted["last_exit"]["cause"]
        # So long after the kill: who had given itself another time has it still, also when its health is another.
        assert up.client().service("longer")["incarnation"] == 1
        up.file.write_text(up.file.read_text().replace("[service.longer]", "[service.longer]\nhealth.log = 'never'"))
        up.client().update()
        pid = up.client().service("beats")["pid"]
        kill(pid, 10)
        up.until("beats", lambda s: s["incarnation"] == 3)
        assert up.client().service("longer")["incarnation"] == 1


def test_health_that_needs_something_from_the_start_is_no_matter_of_who_was_started_without(tmp_path):
    beats = HEARTBEAT.format(beat="tell('WATCHDOG=1')").replace("tell('READY=1')", "pass")
    command = notifier(tmp_path, "x", "if 'NOTIFY_SOCKET' not in os.environ:\n    signal.pause()\n" + beats)
    services = f"[service.x]\ncommand = {command}\n"
    with Running(tmp_path, services) as up:
        up.until("x", state="running")
        up.file.write_text(up.file.read_text() + "health = { notify = true, interval = '1s', failures = 2 }\n")
        assert [each["effect"] for each in up.client().update()["changes"]] == ["restarts"]
        status = up.until("x", lambda s: s["health"] and s["health"]["checks"] >= 10)
        assert (status["incarnation"], status["health"]["failed"]) == (2, 0)


def test_a_supervisor_that_is_held_up_holds_nobody_for_silent(tmp_path):
    services = f"""
[service.x]
command = {notifier(tmp_path, "x", HEARTBEAT.format(beat="tell('WATCHDOG=1')"))}
type = "notify"
watchdog = "500ms"
"""
    with Running(tmp_path, services) as up:
        checks = up.until("x", lambda s: s["health"] and s["health"]["checks"] > 5)["health"]["checks"]
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        try:
            eventually(lambda: False, 2.0)  # time has to pass, for it is about time
        finally:
            kill(supervisor, signal.SIGCONT)
        status = up.until("x", lambda s: s["health"] and s["health"]["checks"] > checks + 20)
        assert (status["incarnation"], status["health"]["failed"]) == (1, 0)


def test_what_a_service_says_is_shown_as_text(tmp_path):
    text = "while :; do printf 'beat \\033[2J\\n'; sleep 0.05; done"
    services = f"""
[service.x]
command = {json.dumps(["sh", "-c", text])}
health = {{ log = '^beat', interval = "10s" }}
"""
    with Running(tmp_path, services) as up:
        assert up.until("x", lambda s: s["health"] and s["health"]["checks"])["health"]["text"] == "beat ?[2J"


def test_what_cannot_be_asked_is_no_fault_of_the_service(tmp_path):
    services = f"""
[service.x]
command = ["sleep", "1000"]
health = {{ command = ["/no/such/program"], {QUICK} }}
"""
    with Running(tmp_path, services) as up:
        status = up.until("x", lambda s: s["health"] and s["health"]["checks"] >= 5)
        assert status["health"]["state"] == "unknown"
        assert "could not be asked: " in status["health"]["text"]
        assert "No such file" in status["health"]["text"]
        assert (status["health"]["failures"], status["incarnation"]) == (0, 1)
        assert "health: could not be asked" in up.holdfast("status").stdout


def test_a_supervisor_that_is_killed_goes_on_with_it(tmp_path):
    """One that became unhealthy while nobody was there, and one whose stop was under way."""
    web, hold = Web(tmp_path), fifo(tmp_path / "hold")
    slow = f"trap 'trap \"\" TERM; [ -e {tmp_path}/over ] || cat {hold}; exit 0' TERM; while :; do sleep 0.05; done"
    services = f"""
[service.web]
command = {web.command}
ready = {{ tcp = "{web.port}", interval = "20ms" }}
health = {{ http = "{web.url}", {QUICK} }}
[service.slow]
command = {json.dumps(["sh", "-c", slow])}
health = {{ command = ["test", "!", "-e", "{tmp_path}/bad"], {QUICK} }}
grace = "1m"
stop_scope = "main"
"""
    with Running(tmp_path, services) as up:
        for name in ("web", "slow"):
            up.until(name, lambda s: s["health"] and s["health"]["state"] == "ok")
        with frozen_anchor(up):
            web.set("500 Oh")
        up.until("web", lambda s: s["incarnation"] == 2)
        web.set("200 OK")
        (tmp_path / "bad").touch()
        up.until("slow", state="stopping")
        again(up)
        (tmp_path / "bad").unlink()
        assert up.client().service("slow")["state"] == "stopping"
        release(hold)
        status = up.until("slow", lambda s: s["incarnation"] == 2)
        (tmp_path / "over").touch()
        assert status["last_exit"]["cause"].startswith("unhealthy (exited with code 1)")  # with code 0, and no success


def test_a_stop_ends_the_question_that_is_under_way(tmp_path):
    services = """
[service.x]
command = ["sleep", "1000"]
health = { command = ["sleep", "2000"], interval = "30ms", timeout = "1h" }
"""

    def asking(up):
        return [pid for pid, words in up.marked().items() if "2000" in words]

    with Running(tmp_path, services) as up:
        up.until("x", ready=True)
        wait_for(lambda: asking(up))
        up.holdfast("stop", "x")
        wait_for(lambda: not asking(up))


def ask_once(limit=5.0, **keys):
    spec = Service(name="x", command=("true",), cwd="/")
    return asyncio.run(ask(Health(**keys), limit, spec, Surroundings({"PATH": "/usr/bin:/bin"}, "/nonexistent"), 0))


def test_answers_of_hostile_servers_are_bounded():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"

        async def serve(data: bytes, *, endless: bool = False):
            async def on_connection(reader, writer):
                try:
                    writer.write(data)
                    while endless:
                        writer.write(data)
                        await writer.drain()
                except OSError:
                    pass
                finally:
                    writer.close()

            async with await asyncio.start_server(on_connection, sock=server.dup()):
                spec = Service(name="x", command=("true",), cwd="/")
                return await ask(Health(http=url), 5.0, spec, Surroundings({}, "/nonexistent"), 0)

        def answer(data: bytes, **options):
            return asyncio.run(serve(data, **options))

        assert answer(b"HTTP/1.1 200 OK\r\n\r\n") == (True, "200 OK")
        assert answer(b"HTTP/1.0 301 Moved\r\n\r\n") == (True, "301 Moved")
        assert answer(b"HTTP/1.1 404 Not Found\r\n\r\n") == (False, "404 Not Found")
        assert not answer(b"SSH-2.0-x\r\n").well
        assert not answer(b"y" * 100_000).well
        assert not answer(b"y" * 100_000, endless=True).well
        assert answer(b"HTTP/1.1 200 \x1b[2J\xff\r\n\r\n") == (True, "200 ?[2J\xff")
        assert answer(b"HTTP/1.1 200 OK\r\n", endless=True).well
    assert ask_once(http=url) == (False, "Connection refused")
    for _ in range(20):  # a port of nobody is never taken for one of somebody
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        assert ask_once(tcp=str(port)) == (False, "Connection refused")
    assert ask_once(tcp="unix:/no/such") == (False, "No such file or directory")
    assert not ask_once(tcp="no-such-host.invalid:80").well
    assert ask_once(command=("sh", "-c", "echo $HOLDFAST_SERVICE; exit 1")).text == "exited with code 1: x"
