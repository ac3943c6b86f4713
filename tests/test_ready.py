"""`ready`: each kind with a real program, one that is slow, that never is, a supervisor that is killed meanwhile."""

from __future__ import annotations

import json

import pytest
from helpers_probes import Web, again, fifo, frozen_anchor, notifier, release
from helpers_supervisor import Running, log_of
from helpers_wait import wait_for


def test_a_name_that_nobody_knows_is_told_in_words(tmp_path):
    services = '[service.web]\ncommand = ["sleep", "1000"]\nready = { tcp = "nobody.invalid:80" }\n'
    with Running(tmp_path, services) as up:
        reason = up.until("web", lambda status: "not ready yet (" in status["reason"])["reason"]
        assert "[" not in reason, reason


def test_tcp_http_and_command(tmp_path):
    web, mood = Web(tmp_path), tmp_path / "well"
    services = f"""
[service.tcp]
command = {web.command}
ready = {{ tcp = "{web.port}", interval = "20ms" }}
[service.http]
command = ["sleep", "1000"]
ready = {{ http = "{web.url}", interval = "20ms" }}
after = ["tcp"]
[service.command]
command = ["sleep", "1000"]
ready = {{ command = ["test", "-e", "{mood}"], interval = "20ms" }}
[service.last]
command = ["sleep", "1000"]
requires = ["command"]
"""
    with Running(tmp_path, services) as up:
        for name in ("tcp", "http"):
            up.until(name, state="running", ready=True)
        waits = up.until("command", lambda s: "exited with code 1" in s["reason"])
        assert (waits["state"], waits["ready"]) == ("starting", False)
        assert waits["reason"] == "not ready yet (exited with code 1)"
        assert up.client().service("last")["state"] == "starting"
        mood.touch()
        up.until("last", state="running")
        assert up.client().service("command")["ready"]


def test_not_ready_in_time_says_what_the_last_answer_was(tmp_path):
    web = Web(tmp_path, "503 Busy")
    services = f"""
[service.web]
command = {web.command}
ready = {{ http = "{web.url}", interval = "20ms", timeout = "500ms" }}
start_limit = 1
[service.nobody]
command = ["sleep", "1000"]
ready = {{ tcp = "127.0.0.1:1", interval = "20ms", timeout = "300ms" }}
restart = "never"
"""
    with Running(tmp_path, services) as up:
        web_status = up.until("web", state="fatal")
        assert web_status["last_exit"]["cause"] == "ready_timeout (503 Busy): killed by SIGTERM"
        nobody = up.until("nobody", state="exited")
        assert nobody["last_exit"]["cause"] == "ready_timeout (Connection refused): killed by SIGTERM"
        assert "was not ready in time (Connection refused)" in up.output.read_text()


def test_a_unix_socket(tmp_path):
    path = tmp_path / "x.sock"
    program = f"from socket import *; s = socket(AF_UNIX); s.bind({str(path)!r}); s.listen(); s.accept()[0].recv(1)"
    services = f"""
[service.x]
command = {json.dumps(["python3", "-c", program])}
ready = {{ tcp = "unix:x.sock", interval = "20ms" }}
restart = "never"
"""
    with Running(tmp_path, services) as up:
        assert up.until("x", state="exited")["last_exit"]["code"] == 0
        wait_for(lambda: "x@1 ready" in up.output.read_text())


@pytest.mark.parametrize("killed", [False, True], ids=["", "supervisor killed"])
def test_a_newline_on_a_descriptor(tmp_path, killed):
    """Nothing but a newline counts; it may come while no supervisor is there, and the descriptor be closed then."""
    go = fifo(tmp_path / "go")
    text = f"printf up >&3; echo half; cat {go}; echo >&3; exec 3>&-; echo said; exec sleep 1000"
    services = f"""
[service.x]
command = {json.dumps(["sh", "-c", text])}
ready = {{ fd = 3 }}
"""
    with Running(tmp_path, services) as up:
        wait_for(lambda: "half" in log_of(up, "x"))
        assert up.client().service("x")["reason"] == "not ready yet"
        pid = up.client().service("x")["pid"]
        if killed:
            with frozen_anchor(up):
                release(go)
                wait_for(lambda: "said" in log_of(up, "x"))
        else:
            release(go)
        assert up.until("x", ready=True)["pid"] == pid
        again(up)
        assert up.until("x", ready=True)["pid"] == pid
        up.holdfast("restart", "x", "--no-wait")  # the next one has to say it anew
        assert up.until("x", lambda s: s["incarnation"] == 2 and s["state"] == "starting")
        release(go)
        up.until("x", ready=True, incarnation=2)
    assert not list((up.run_dir / "services").glob("*/*.ready"))


@pytest.mark.parametrize("killed", [False, True], ids=["", "supervisor killed"])
@pytest.mark.parametrize("log", ["", "log = { merge = false, timestamps = true }\n"], ids=["", "stderr, timestamps"])
def test_a_line_of_the_log(tmp_path, killed, log):
    """Of this incarnation, and not of the keeper's own lines."""
    go = fifo(tmp_path / "go")
    text = f"echo x started; cat {go}; echo 'started listening on 80' >&2; echo done; exec sleep 1000"
    services = f"""
[service.x]
command = {json.dumps(["sh", "-c", text])}
ready = {{ log = '^started' }}
{log}"""
    with Running(tmp_path, services) as up:
        wait_for(lambda: "x started" in log_of(up, "x"))
        assert not up.client().service("x")["ready"]
        if killed:
            with frozen_anchor(up):
                release(go)
                wait_for(lambda: "done" in log_of(up, "x"))
        else:
            release(go)
        pid = up.until("x", ready=True)["pid"]
        up.holdfast("restart", "x", "--no-wait")
        again_status = up.until("x", lambda s: s["incarnation"] == 2 and s["pid"])
        assert not again_status["ready"]
        release(go)
        assert up.until("x", ready=True, incarnation=2)["pid"] != pid


def test_an_unfinished_line_of_the_one_before_is_not_its_own(tmp_path):
    text = "test -e again || { touch again; printf 'listens on 80'; exit 1; }; exec sleep 1000"
    services = f"""
[service.x]
command = {json.dumps(["sh", "-c", text])}
ready = {{ log = 'listens', timeout = "500ms" }}
backoff = {{ first = "0s" }}
start_limit = 2
"""
    with Running(tmp_path, services) as up:
        assert up.until("x", state="fatal")["last_exit"]["cause"].startswith("ready_timeout")
        assert "x@2 ready" not in up.output.read_text()


def test_notify_with_another_time(tmp_path):
    silent = notifier(tmp_path, "silent", "signal.pause()")
    says = notifier(tmp_path, "says", "tell('READY=1')\nsignal.pause()")
    services = f"""
[service.silent]
type = "notify"
command = {silent}
ready = {{ timeout = "300ms" }}
restart = "never"
[service.says]
command = {says}
ready = {{ notify = true }}
[service.asked]
command = {says}
ready = {{ tcp = "127.0.0.1:1", timeout = "300ms" }}
watchdog = "1m"
restart = "never"
"""
    with Running(tmp_path, services) as up:
        assert up.until("silent", state="exited")["last_exit"]["cause"] == "ready_timeout: killed by SIGTERM"
        up.until("says", ready=True)
        # It may say what it likes: it was not that which tells.
        assert up.until("asked", state="exited")["last_exit"]["cause"].startswith("ready_timeout (Connection refused)")


def test_a_liar_that_is_ready_and_dies_is_seen_as_one(tmp_path):
    liar = notifier(tmp_path, "liar", "tell('READY=1')\nsys.exit(1)")
    services = f"""
[service.liar]
type = "notify"
command = {liar}
start_limit = 3
backoff = {{ first = "0s", then = "10ms", factor = 1 }}
"""
    with Running(tmp_path, services) as up:
        status = up.until("liar", state="fatal")
        assert status["restarts"] == 2
        assert "3 starts in a row did not live" in status["reason"]


@pytest.mark.parametrize("kind", ["http", "command"])
def test_a_supervisor_that_is_killed_while_it_asks(tmp_path, kind):
    """Its successor asks on, and what it had begun is gone."""
    web = Web(tmp_path, "silence")
    asked = f'http = "{web.url}"' if kind == "http" else "command = ['sh', '-c', 'test -e go || sleep 1000']"
    services = f"""
[service.web]
command = {web.command}
ready = {{ {asked}, interval = "20ms" }}
"""
    with Running(tmp_path, services) as up:
        pid = up.until("web", lambda s: s["pid"])["pid"]
        wait_for(lambda: "listens" in log_of(up, "web"))
        if kind == "command":
            wait_for(lambda: any("sleep" in command for command in up.marked().values()))
        with frozen_anchor(up):
            web.set("200 OK")
            (tmp_path / "go").touch()
        assert up.until("web", ready=True)["pid"] == pid
        wait_for(lambda: not any("sleep" in command for command in up.marked().values()))
