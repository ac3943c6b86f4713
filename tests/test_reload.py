"""`holdfast reload`: the command beside the service, what it says, and what a service says of its reload itself."""

from __future__ import annotations

import json
import os
import threading

from helpers_supervisor import Running, kill, log_of, python
from helpers_wait import wait_for

SERVICES = """
[service.web]
command = ["sh", "-c", "trap 'echo reloaded' HUP; while :; do sleep 0.1; done"]
env = { COLOUR = "red" }
reload_command = ["sh", "-c", "kill -HUP $$MAINPID && echo asked $$MAINPID $$COLOUR"]
[service.bad]
command = "sleep 1h"
reload_command = ["sh", "-c", "echo first; echo no such file >&2; exit 3"]
[service.missing]
command = "sleep 1h"
reload_command = "/no/such/program"
[service.without]
command = "sleep 1h"
[service.slow]
command = "sleep 1h"
shell = true
reload_command = "read x < gate; echo $x"
"""


def results(done):
    return {each["name"]: (each["outcome"], each["message"]) for each in json.loads(done.stdout)}


def test_reload(tmp_path):
    os.mkfifo(tmp_path / "gate")
    with Running(tmp_path, SERVICES) as up:
        for name in ("web", "bad", "missing", "without", "slow"):
            up.until(name, state="running")
        before = up.until("web")
        done = results(up.holdfast("reload", "web", "--json"))
        assert done == {"web": ("done", f"reload_command exited with code 0: asked {before['pid']} red")}
        wait_for(lambda: "reloaded" in log_of(up, "web"), 20)
        assert up.until("web")["incarnation"] == before["incarnation"]
        said = results(up.holdfast("reload", "bad", "missing", "without", "--json", check=1))
        assert said["bad"] == ("failed", "reload_command exited with code 3: no such file")
        assert said["missing"][0] == "failed"
        assert "could not be run" in said["missing"][1]
        assert said["without"][0] == "refused"
        assert "reload_command" in said["without"][1]
        assert up.until("bad")["state"] == "running"  # whatever became of it
        # One at a time; the second is refused while the first runs.
        answers = []
        first = threading.Thread(target=lambda: answers.append(up.client().reload("slow")))
        first.start()
        try:
            up.until("slow", reloading=True)
            assert "running, reloading" in up.holdfast("status", "slow").stdout
            again = results(up.holdfast("reload", "slow", "--json", check=1))
            assert again["slow"] == ("refused", "a reload is under way")
        finally:
            with open(tmp_path / "gate", "w") as gate:
                gate.write("through\n")
            first.join()
        assert answers[0][0]["message"] == "reload_command exited with code 0: through"
        up.until("slow", reloading=False)
        up.holdfast("stop", "web")
        assert "it is not running: it is stopped" in up.holdfast("reload", "web", check=1).stdout


def test_a_service_that_says_that_it_reloads(tmp_path):
    os.mkfifo(tmp_path / "gate")
    program = """
import signal
def on_hup(*_):
    tell("RELOADING=1\\nMONOTONIC_USEC=1")
    open("begun", "w").close()
    open("gate").read()
    tell("READY=1")
signal.signal(signal.SIGHUP, on_hup)
tell("READY=1")
while True:
    signal.pause()
"""
    wait = "kill -HUP $MAINPID; while ! test -e begun; do sleep 0.05; done"
    services = f"""
[service.web]
type = "notify"
command = {python(tmp_path, "web", program)}
reload_command = ["sh", "-c", "{wait.replace("$", "$$")}"]
"""
    with Running(tmp_path, services) as up:
        up.until("web", state="running")
        answers = []
        asking = threading.Thread(target=lambda: answers.append(up.client().reload("web")))
        asking.start()
        try:
            wait_for(lambda: os.path.exists(tmp_path / "begun"), 20)
            up.until("web", reloading=True, state="running")
            assert not answers
        finally:
            with open(tmp_path / "gate", "w"):
                pass
            asking.join()
        assert answers[0][0]["outcome"] == "done"
        up.until("web", reloading=False)


def test_a_service_that_does_not_survive_its_reload(tmp_path):
    program = """
import os, signal
def on_hup(*_):
    tell("RELOADING=1\\nMONOTONIC_USEC=1")
    os._exit(3)
signal.signal(signal.SIGHUP, on_hup)
tell("READY=1")
while True:
    signal.pause()
"""
    services = f"""
[service.web]
type = "notify"
command = {python(tmp_path, "web", program)}
reload_command = ["sh", "-c", "kill -HUP $$MAINPID; while kill -0 $$MAINPID 2>/dev/null; do sleep 0.05; done"]
"""
    with Running(tmp_path, services) as up:
        up.until("web", state="running")
        said = results(up.holdfast("reload", "web", "--json", check=1))
        text = "reload_command exited with code 0; but the service has ended meanwhile"
        assert said == {"web": ("failed", text)}


def test_the_service_or_the_supervisor_ends_meanwhile(tmp_path):
    """Nobody waits for ever, and nothing of the command is left."""
    os.mkfifo(tmp_path / "gate")
    with Running(tmp_path, SERVICES) as up:
        up.until("slow", state="running")
        lost = []

        def ask():
            try:
                up.client().reload("slow")
            except Exception as error:
                lost.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        up.until("slow", reloading=True)
        kill(up.client().supervisor()["pid"])
        asking.join(30)
        assert lost
        up.wait_for_socket()
        wait_for(lambda: not any("read x < gate" in " ".join(command) for command in up.marked().values()), 20)
        assert up.until("slow", state="running")["reloading"] is False
