"""`holdfast up` attacked: what an unkind operator, a crash at the worst moment, or a full disk does to it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from helpers_supervisor import HOLDFAST, LIMIT, PLACES, Running, keeper_of, kill, log_of, python
from helpers_trees import wait_for

from holdfast.client import ClientError

SLEEPER = '[service.web]\ncommand = ["sleep", "1000"]\n'


def freeze(pid: int) -> None:
    kill(pid, signal.SIGSTOP)


def kill_together(*pids: int) -> None:
    """All are stopped first: none of them sees another's end."""
    for pid in pids:
        freeze(pid)
    for pid in pids:
        kill(pid)


def next_supervisor(up: Running, before: int) -> dict:
    """The supervisor that the anchor has started after that one."""
    found: dict = {}

    def there() -> bool:
        found.update(up.client().supervisor())
        return found["pid"] != before

    wait_for(there)
    return found


# ---- survival


def test_ready_that_was_said_while_nobody_was_there_is_heard(tmp_path):
    """The datagram waits in the anchor's socket; it must not be read before it is known whose it is."""
    os.mkfifo(tmp_path / "gate")
    notifier = python(
        tmp_path,
        "notifier",
        f"open({str(tmp_path / 'gate')!r}).read(); tell('READY=1'); print('told')\nsignal.pause()",
    )
    services = f'[service.web]\ntype = "notify"\ncommand = {notifier}\n'
    with Running(tmp_path, services) as up:
        pid = up.until("web", lambda s: s["pid"])["pid"]
        supervisor = up.client().supervisor()["pid"]
        freeze(supervisor)
        (tmp_path / "gate").write_text("go\n")
        wait_for(lambda: "told" in log_of(up, "web"))
        kill(supervisor)
        next_supervisor(up, supervisor)
        assert up.until("web", state="running", ready=True)["pid"] == pid


def test_supervisor_and_keeper_killed_together_means_one_copy(tmp_path):
    services = '[service.web]\ncommand = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]\n'
    with Running(tmp_path, services) as up:
        first = up.until("web", ready=True)
        wait_for(lambda: len(up.of_service("web")) == 3)
        before = set(up.of_service("web"))
        supervisor = up.client().supervisor()["pid"]
        kill_together(supervisor, keeper_of(first["pid"]))
        next_supervisor(up, supervisor)
        second = up.until("web", lambda s: s["incarnation"] == 2 and s["ready"])
        assert not before & set(up.of_service("web"))
        assert second["restarts"] == 1


def test_anchor_supervisor_and_keeper_killed_together_means_one_copy(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        first = up.until("web", ready=True)
        supervisor = up.client().supervisor()["pid"]
        kill_together(up.process.pid, supervisor, keeper_of(first["pid"]))
        up.process.wait()
        up.up()
        up.wait_for_socket()
        up.until("web", lambda s: s["incarnation"] == 2 and s["ready"])
        assert first["pid"] not in up.of_service("web")


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b'{"version": 99}', b"\xff\xfe", b'{"name": "other", "incarnation": 7}']
)
def test_a_record_that_cannot_be_read(tmp_path, garbage):
    with Running(tmp_path, SLEEPER) as up:
        first = up.until("web", ready=True)
        supervisor = up.client().supervisor()["pid"]
        freeze(supervisor)
        (up.run_dir / "services" / "web" / "record").write_bytes(garbage)
        kill(supervisor)
        next_supervisor(up, supervisor)
        assert up.until("web", ready=True)["pid"] == first["pid"]
        assert up.of_service("web") == [first["pid"]]


def test_a_record_is_lost_and_its_service_too(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        first = up.until("web", ready=True)
        supervisor = up.client().supervisor()["pid"]
        freeze(supervisor)
        kill(first["pid"])
        wait_for(lambda: (up.run_dir / "services" / "web" / "1.report").exists() or not up.of_service("web"))
        (up.run_dir / "services" / "web" / "record").unlink()
        kill(supervisor)
        next_supervisor(up, supervisor)
        assert up.until("web", ready=True)["pid"] != first["pid"]


def test_strange_things_in_the_run_directory(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        first = up.until("web", ready=True)
        supervisor = up.client().supervisor()["pid"]
        services = up.run_dir / "services"
        (services / "a-file").write_text("what?")
        (services / "empty").mkdir()
        (services / "gone").mkdir()
        (services / "gone" / "3.sock").write_text("")
        (services / "web" / "0.report").write_text("garbage")
        (services / "half").mkdir()
        (services / "half" / "record").write_text('{"name": "half", "incarnation": 2, "live": true}')
        (services / "half" / "2.report").write_text("garbage")
        kill(supervisor)
        next_supervisor(up, supervisor)
        assert up.until("web", ready=True)["pid"] == first["pid"]


@pytest.mark.parametrize("what", ["missing", "garbage"])
def test_the_accepted_config_is_lost(tmp_path, what):
    with Running(tmp_path, SLEEPER) as up:
        first = up.until("web", ready=True)
        supervisor = up.client().supervisor()["pid"]
        accepted = up.run_dir / "accepted.json"
        text = accepted.read_bytes()
        accepted.unlink()
        if what == "garbage":
            accepted.write_text("{")
        kill(supervisor)
        wait_for(lambda: "accepted.json" in up.output.read_text())
        assert up.of_service("web") == [first["pid"]]
        said = up.output.read_text()
        assert "Traceback" not in said
        accepted.write_bytes(text)
        up.wait_for_socket()
        assert up.until("web", ready=True)["pid"] == first["pid"]


def test_the_services_directory_is_removed_while_everything_runs(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        first = up.until("web", ready=True)
        shutil.rmtree(up.run_dir / "services")
        kill(first["pid"])
        assert up.until("web", lambda s: s["incarnation"] == 2 and s["ready"])


def test_down_is_not_forgotten_when_the_supervisor_dies_on_the_way(tmp_path):
    services = """
[service.stubborn]
command = ["sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 0.1; done"]
grace = "3s"
"""
    with Running(tmp_path, services) as up:
        up.until("stubborn", ready=True)
        wait_for(lambda: "trapped" in log_of(up, "stubborn"))
        supervisor = up.client().supervisor()["pid"]
        up.holdfast("down", "--no-wait")
        kill(supervisor)
        assert up.process.wait(LIMIT) == 0
        up.process = None


# ---- the terminal


def test_a_full_pipe_does_not_keep_the_anchor_from_its_work(tmp_path):
    up = Running(tmp_path, SLEEPER)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 65536)
    except BlockingIOError:
        os.set_blocking(writer, True)
    try:
        up.process = subprocess.Popen(
            [HOLDFAST, "up", "-c", str(up.file)], stdin=subprocess.DEVNULL, stdout=writer, stderr=writer,
            env=up.environment,
        )  # fmt: skip
        up.output.write_text("")
        up.wait_for_socket()
        first = up.until("web", ready=True)
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor)
        next_supervisor(up, supervisor)
        assert up.until("web", ready=True)["pid"] == first["pid"]
        assert up.stop() == 0
    finally:
        os.close(reader)
        os.close(writer)
        up.__exit__()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_that_are_closed(tmp_path, closed):
    up = Running(tmp_path, SLEEPER)
    with open(up.output, "w") as out:
        up.process = subprocess.Popen(
            ["sh", "-c", f'exec "$0" up -c "$1" {closed}', HOLDFAST, str(up.file)], env=up.environment,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        up.wait_for_socket()
        pid = up.until("web", ready=True)["pid"]
        for process in (up.process.pid, up.client().supervisor()["pid"]):
            assert {"0", "1", "2"} <= set(os.listdir(f"/proc/{process}/fd"))
        assert {"0", "1", "2"} == set(os.listdir(f"/proc/{pid}/fd"))
        assert up.stop() == 0
    finally:
        up.__exit__()


def test_logs_into_a_pipe_that_is_closed(tmp_path):
    services = '[service.talker]\ncommand = ["sh", "-c", "while :; do echo a line; sleep 0.02; done"]\n'
    with Running(tmp_path, services) as up:
        up.until("talker", ready=True)
        for command in (["logs", "-f", "talker"], ["events", "-f"], ["logs", "-n", "5000"]):
            process = subprocess.Popen(
                [HOLDFAST, *command], env={**up.environment, "HOLDFAST_RUN_DIR": str(up.run_dir)}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            if "-f" in command:
                assert process.stdout.readline()
            process.stdout.close()
            if command[0] == "events":
                up.client().restart("talker")
            errors = process.stderr.read()
            process.stderr.close()
            assert (process.wait(LIMIT), errors) == (0, ""), command


def test_a_notification_of_nonsense_hurts_nobody_else(tmp_path):
    bad = python(
        tmp_path,
        "bad",
        "tell('MAINPID=' + '9' * 5000); tell('EXTEND_TIMEOUT_USEC=' + '9' * 4000); tell('READY=1')\nsignal.pause()",
    )
    services = f'[service.bad]\ntype = "notify"\ncommand = {bad}\n'
    with Running(tmp_path, services) as up:
        up.until("bad", state="running", ready=True)
        events = up.client().events(after=0)
        last = up.client().supervisor()["last_event"]
        for event in events:
            assert event["event"] != "error", event
            if event["seq"] >= last:
                break
        events.close()

def test_a_flood_of_strange_notifications_drives_nothing_out(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(up.run_dir / "notify"))
            for _ in range(5000):
                sock.send(b"READY=1")
        last = up.client().supervisor()["last_event"]
        seconds = time.monotonic() - began
        told = []
        with up.client().events(after=0) as events:
            for event in events:
                told.append(event["event"])
                if event["seq"] >= last:
                    break
        assert 1 <= told.count("notify_refused") <= seconds + 1


def test_a_status_text_cannot_command_a_terminal(tmp_path):
    evil = python(tmp_path, "evil", "tell('READY=1\\nSTATUS=fine\\x1b]0;mine\\x07\\r')\nsignal.pause()")
    with Running(tmp_path, f'[service.evil]\ntype = "notify"\ncommand = {evil}\n') as up:
        assert up.until("evil", ready=True)["status_text"] == "fine?]0;mine??"


def test_what_was_taken_out_of_the_configuration_is_stopped_and_leaves_nothing(tmp_path):
    """While the anchor is dead, the file changes."""
    with Running(tmp_path, SLEEPER + '[service.old]\ncommand = ["sleep", "1000"]\n') as up:
        first = {name: up.until(name, ready=True)["pid"] for name in ("web", "old")}
        up.process.kill()
        up.process.wait()
        up.file.write_text(PLACES + SLEEPER)
        up.up()
        up.wait_for_socket()
        wait_for(lambda: not up.of_service("old"))
        assert up.until("web", ready=True)["pid"] == first["web"]
        wait_for(lambda: os.listdir(up.run_dir / "services") == ["web"])
        assert "stopped by hand" not in up.output.read_text()


def test_a_removed_run_directory_does_not_let_a_second_supervisor_in(tmp_path):
    """What would refuse it, the lock, was removed with the directory."""
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        shutil.rmtree(up.run_dir)
        refused = up.holdfast("up", "-c", str(up.file), check=1)
        assert f"kill {up.process.pid}" in refused.stderr
        assert up.of_service("web") == [pid]
        assert up.stop() == 0
        up.up()
        up.wait_for_socket()
        up.until("web", ready=True)


SINGLE = """
import fcntl, sys, random
name = os.environ["HOLDFAST_SERVICE"] + "@" + os.environ["HOLDFAST_INCARNATION"]
lock = os.open(sys.argv[1] + "/" + os.environ["HOLDFAST_SERVICE"] + ".lock", os.O_RDWR | os.O_CREAT)
os.set_inheritable(lock, True)  # whoever of the tree lives holds it
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    word = "started"
except BlockingIOError:
    word = "DOUBLE"
with open(sys.argv[1] + "/starts", "a") as file:
    file.write(f"{word} {name}\\n")
if os.fork() == 0:
    os.setsid()
    signal.pause()
time.sleep(random.random() / 2 if sys.argv[2] == "crash" else 1000)
"""


def test_never_two_of_a_service_whatever_dies_when(tmp_path):
    """Supervisor, keepers and anchor are killed while commands are on their way and services crash.  Each tree holds a
    lock of its service, so a second one is seen by itself, however short it lives."""
    script = python(tmp_path, "single", SINGLE)[:-1]
    options = 'grace = "200ms"\nstart_limit = 0\nbackoff = { first = "0s", then = "50ms", max = "100ms" }\n'
    services = "".join(
        f'[service.{name}]\ncommand = {script}, "{tmp_path}", "{mode}"]\n{options}{more}'
        for name, mode, more in (
            ("db", "stay", ""),
            ("web", "stay", 'requires = ["db"]\n'),
            ("worker", "crash", 'requires = ["db"]\n'),
            ("job", "crash", ""),
        )
    )
    budget = "start_budget = { at_once = 1000, per_second = 1000 }\n"
    names = ["db", "web", "worker", "job"]
    stop = threading.Event()
    asked = []

    def command(up: Running, number: int) -> None:
        chance = random.Random(number)
        while not stop.wait(chance.random() / 5):
            try:
                verb = getattr(up.client(), chance.choice(["start", "stop", "restart"]))
                asked.append(verb(chance.choice(names), wait=False))
            except ClientError:
                pass  # there is none at the moment

    chance = random.Random(3)
    with Running(tmp_path, services, places=PLACES + budget) as up:
        threads = [threading.Thread(target=command, args=(up, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for who in ("supervisor", "keeper", "both", "anchor", "supervisor", "both", "keeper", "anchor"):
                stop.wait(0.3 + chance.random() / 2)
                up.wait_for_socket()
                status = up.client().services()
                keepers = [int(s["held_by"].split()[1].rstrip(",")) for s in status if s["held_by"]]
                victims = [] if who == "keeper" else [up.client().supervisor()["pid"]]
                if who in ("keeper", "both"):
                    victims += keepers[:1]
                with contextlib.suppress(ProcessLookupError):
                    kill_together(*([up.process.pid] if who == "anchor" else victims))
                if who == "anchor":
                    up.process.wait()
                    up.up()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        up.wait_for_socket()
        up.client().start("db", "web", timeout=LIMIT)
        wait_for(lambda: len(up.of_service("db")) == len(up.of_service("web")) == 2)
        assert up.stop() == 0
    starts = (tmp_path / "starts").read_text().splitlines()
    assert len(asked) > 5
    assert len(starts) > 8
    assert not [line for line in starts if line.startswith("DOUBLE")]
    assert len(set(starts)) == len(starts), "a number was given twice"
