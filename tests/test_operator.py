"""What docs/supervisor.md tells operators, where no other file has shown it yet."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys

import pytest
from helpers_supervisor import HOLDFAST, Running
from helpers_trees import wait_for

from holdfast.daemon import journal
from holdfast.daemon.status import EventRecord

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
SLEEPER = '[service.NAME]\ncommand = ["sleep", "1000"]\n'


def kill(pid: int, signo: int = signal.SIGKILL) -> None:
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signo)
    os.close(fd)


# ---- on_owner_loss


def test_on_owner_loss(tmp_path):
    """The owner of a keeper is the supervisor: its death counts, whether an anchor lives or not."""
    polite = "trap 'echo got TERM; exit 0' TERM; sleep 1000 & wait"
    services = f"""
[service.kept]
command = ["sleep", "1000"]
[service.stopped]
command = ["sh", "-c", {json.dumps(polite)}]
on_owner_loss = "stop"
[service.killed]
command = ["sleep", "1000"]
on_owner_loss = "kill"
restart = "never"
"""
    with Running(tmp_path, services) as up:
        kept = up.until("kept", ready=True)["pid"]
        before = {name: set(up.of_service(name)) for name in ("stopped", "killed")}
        wait_for(lambda: len(up.of_service("stopped")) == 2)
        assert up.until("killed", ready=True)
        kill(up.client().supervisor()["pid"])
        stopped = up.until("stopped", state="exited")
        assert stopped["last_exit"]["code"] == 0
        killed = up.until("killed", state="exited")
        assert killed["last_exit"]["signal"] == "SIGKILL"
        assert up.until("kept", ready=True)["pid"] == kept
        assert not before["killed"] & set(up.of_service("killed"))
    assert "got TERM" in (tmp_path / "log" / "stopped" / "current").read_text()


# ---- --detach


def test_detached_returns_when_all_has_started_or_failed(tmp_path):
    """Not earlier: what takes its time to be ready, and what waits for it, is up.  A service that crashes again and
    again, and what waits for that, is not waited for."""
    os.mkfifo(tmp_path / "gate")
    slow = (
        "import os, signal, socket\n"
        f"open({str(tmp_path / 'gate')!r}).readline()\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(os.environ['NOTIFY_SOCKET'])\n"
        "s.send(b'READY=1')\n"
        "signal.pause()\n"
    )
    services = f"""
[service.slow]
type = "notify"
command = [{json.dumps(sys.executable)}, "-c", {json.dumps(slow)}]
[service.after-slow]
command = ["sleep", "1000"]
requires = ["slow"]
[service.crashes]
type = "oneshot"
command = "false"
start_limit = 0
backoff = {{ first = "1h", then = "1h", max = "1h" }}
[service.waits]
command = ["sleep", "1000"]
requires = ["crashes"]
"""
    up = Running(tmp_path, services)
    try:
        starting = up.up("--detach")
        with open(tmp_path / "gate", "r+b", buffering=0) as gate:
            up.wait_for_socket()
            up.until("crashes", state="backoff")
            assert starting.poll() is None
            gate.write(b"go\n")
            assert starting.wait(30) == 0, up.output.read_text()
        said = up.output.read_text()
        assert "is up with 2 of 4 services" in said
        assert "\n  not up: crashes is backoff: " in said
        assert "\n  not up: waits is starting: waits for crashes\n" in said
        states = {s["name"]: s["state"] for s in up.client().services()}
        assert states == {"slow": "running", "after-slow": "running", "crashes": "backoff", "waits": "starting"}
        up.holdfast("down")
    finally:
        up.process = None
        up.__exit__()


# ---- the supervisor's own log


def record(number: int, event: str, text: str = "") -> EventRecord:
    return EventRecord(seq=number, time=1e9 + number, service="web", incarnation=1, event=event, text=text)


def journalled(fd, events, path=None):
    """Written by a supervisor's journal, to the end."""

    async def write():
        ours = journal.Journal(fd, {"NO_COLOR": "1"}, path=path)
        for each in events:
            ours.event(each)
        ours.close()

    asyncio.run(write())


def test_the_own_log_is_rotated_for_all_who_write_into_it(tmp_path, monkeypatch):
    """The anchor has the file open, too, and gives it to the next supervisor: it must be the same file for ever."""
    monkeypatch.setattr(journal, "ROTATE_SIZE", 1000)
    path = tmp_path / "holdfast.log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        for number in range(15):  # a batch each: the size is looked at after a batch
            journalled(fd, [record(number, "ready", "x" * 60)], path=str(path))
        os.write(fd, b"the anchor's word\n")
        text = path.read_text()
        older = (tmp_path / "holdfast.log.1").read_text()
        assert text.endswith("\nthe anchor's word\n")
        assert older.count("\n") + text.count("\n") == 16
        assert len(older) >= 1000 > len(text) > 0
        for name in ("holdfast.log", "holdfast.log.1"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert sorted(os.listdir(tmp_path)) == ["holdfast.log", "holdfast.log.1"]
    finally:
        os.close(fd)


def test_a_terminal_gets_less_and_a_file_everything(tmp_path):
    events = [record(0, "starting"), record(1, "spawned"), record(2, "exited"), record(2, "completed", "code 0")]
    events.append(record(3, "emptied"))
    master, slave = pty.openpty()
    path = tmp_path / "log"
    try:
        with open(path, "wb") as file:
            for fd in (slave, file.fileno()):
                journalled(fd, events)
        shown = os.read(master, 4096).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert re.findall(r"web@1 +(.*?)\r\n", shown) == ["starting", "exited", "completed  code 0, 2.0 s after its start"]
    assert re.findall(r"Z web@1 (\w+)", path.read_text()) == [each.event for each in events]


# ---- words


def test_reasons_name_what_could_not_be_started(tmp_path):
    services = """
[service.program]
command = ["no-such-program", "x"]
[service.directory]
command = ["sleep", "1000"]
cwd = "no/such/directory"
"""
    with Running(tmp_path, services) as up:
        program = up.until("program", state="fatal")["reason"]
        directory = up.until("directory", state="fatal")["reason"]
        assert program == "could not start: exec no-such-program: No such file or directory"
        assert directory == f"could not start: chdir {tmp_path}/no/such/directory: No such file or directory"


def test_words_are_not_said_twice(tmp_path):
    services = SLEEPER.replace("NAME", "web") + '[service.done]\ncommand = "true"\n[service.bad]\ncommand = "nothing"\n'
    with Running(tmp_path, services) as up:
        up.until("web", ready=True)
        up.until("bad", state="fatal")
        up.until("done", state="exited")
        assert up.holdfast("stop", "web").stdout == "web  done  stopped by hand\n"
        assert up.holdfast("stop", "web").stdout == "web  unchanged  stopped by hand\n"
        assert up.holdfast("start", "web").stdout == "web  done  running\n"
        lines = up.holdfast("status", check=3).stdout.splitlines()
        rows = {line.split()[0]: line for line in lines[1:4]}
        assert re.search(r"  exited with code 0 +restart = on-failure$", rows["done"])
        assert rows["bad"].endswith("could not start: exec nothing: No such file or directory")
        assert rows["bad"].count("could not start") == 1
        assert re.search(r"^supervisor pid \d+, held by anchor \d+, restarts 0, up [\d.]+s, 3 services$", lines[-1])


def test_help_is_whole(tmp_path):
    """In the list of commands no sentence is cut off, and optional names are shown as optional."""
    listed = subprocess.run([HOLDFAST, "--help"], capture_output=True, text=True, check=True).stdout
    assert "..." not in listed.partition("Commands:")[2]
    usages = {"status": "[NAME]...", "history": "[NAME]...", "logs": "[NAME]...", "stop": "NAME..."}
    for command, usage in usages.items():
        text = subprocess.run([HOLDFAST, command, "--help"], capture_output=True, text=True, check=True).stdout
        assert text.splitlines()[0] == f"Usage: holdfast {command} [OPTIONS] {usage}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path, shell):
    """What the README says to put into a shell's start file is made, and names are those of the living supervisor."""
    source = subprocess.run(
        [HOLDFAST], env={**os.environ, "_HOLDFAST_COMPLETE": f"{shell}_source"}, capture_output=True, text=True
    )
    assert "_HOLDFAST_COMPLETE" in source.stdout or "holdfast" in source.stdout
    if shell != "bash":
        return
    with Running(tmp_path, SLEEPER.replace("NAME", "web-1") + SLEEPER.replace("NAME", "db")) as up:
        up.until("web-1", ready=True)
        for words, found in (
            ("holdfast status w", ["plain,web-1"]), ("holdfast history d", ["plain,db"]),
            ("holdfast restart web-1@", ["plain,web-1@1"]),
        ):  # fmt: skip
            done = subprocess.run(
                [HOLDFAST], capture_output=True, text=True, timeout=30,
                env={**up.environment, "HOLDFAST_RUN_DIR": str(up.run_dir), "_HOLDFAST_COMPLETE": "bash_complete",
                     "COMP_WORDS": words, "COMP_CWORD": "2"},
            )  # fmt: skip
            assert done.stdout.split() == found


def test_down_tells_of_every_service_and_its_limit_holds(tmp_path):
    """In the order in which they stop; with --timeout it returns, and the stop goes on."""
    stubborn = "trap '' TERM; while :; do sleep 1; done"
    services = SLEEPER.replace("NAME", "db") + SLEEPER.replace("NAME", "web") + 'requires = ["db"]\n'
    with Running(tmp_path, services) as up:
        up.until("web", ready=True)
        done = up.holdfast("down")
        assert done.stdout == (
            "web  stopped with the supervisor\ndb  stopped with the supervisor\nholdfast: everything is stopped\n"
        )
        assert up.process is not None and up.process.wait(30) == 0
        up.file.write_text(
            up.file.read_text() + f'[service.s]\ncommand = ["sh", "-c", {json.dumps(stubborn)}]\ngrace = "2s"\n'
        )
        up.up()
        up.wait_for_socket()
        wait_for(lambda: len(up.of_service("s")) == 2)
        late = up.holdfast("down", "--timeout", "500ms", check=1)
        assert "still stopping after 0.5s; it goes on" in late.stderr
        assert up.process.wait(30) == 0


def test_down_asks_the_next_supervisor_when_one_is_killed_on_the_way(tmp_path):
    stubborn = "trap 'touch asked' TERM; while :; do sleep 0.1; done"
    services = f'[service.s]\ncommand = ["sh", "-c", {json.dumps(stubborn)}]\nstop_scope = "main"\ngrace = "3s"\n'
    with Running(tmp_path, services) as up:
        up.until("s", ready=True)
        wait_for(lambda: len(up.of_service("s")) == 2)
        down = subprocess.Popen(
            [HOLDFAST, "down"], env={**up.environment, "HOLDFAST_RUN_DIR": str(up.run_dir)}, stdout=subprocess.PIPE
        )
        wait_for((tmp_path / "asked").exists)
        kill(up.client().supervisor()["pid"])
        out, _ = down.communicate(timeout=60)
        assert (down.returncode, out.splitlines()[-1]) == (0, b"holdfast: everything is stopped")
        assert up.process is not None and up.process.wait(30) == 0


# ---- docs/supervisor.md


def test_a_changed_file_is_taken_over_without_stopping_anything_else(tmp_path):
    """QUIT and up: what was removed is stopped, what is new is started, what was changed is restarted."""
    same, removed, new = (SLEEPER.replace("NAME", name) for name in ("same", "removed", "new"))
    changed = SLEEPER.replace("NAME", "changed")
    with Running(tmp_path, same + removed + changed) as up:
        before = {name: up.until(name, ready=True)["pid"] for name in ("same", "removed", "changed")}
        assert up.stop(signal.SIGQUIT) == 0
        assert up.of_service("removed") == [before["removed"]]
        places = up.file.read_text().partition("[service.")[0]
        up.file.write_text(places + same + new + changed.replace("1000", "2000"))
        up.up()
        up.wait_for_socket()
        up.until("new", ready=True)
        assert up.until("same", ready=True)["pid"] == before["same"]
        assert up.until("changed", incarnation=2, ready=True)["pid"] != before["changed"]
        wait_for(lambda: not up.of_service("removed"))
        wait_for(lambda: not (up.run_dir / "services" / "removed").exists())
        assert [s["name"] for s in up.client().services()] == ["same", "new", "changed"]
        assert up.marked()[up.client().service("changed")["pid"]][1] == "2000"


def test_every_event_is_on_the_page():
    """The words of the code and those of the table."""
    source = "".join(
        path.read_text()
        for folder in ("engine", "daemon", "cli")
        for path in sorted((DOCS.parent / "src" / "holdfast" / folder).glob("*.py"))
    )
    told = (
        r'(?:\btell\(\s*unit, world, |Tell\((?:"")?[^"()]*(?:\([^()]*\))?[^"()]*|events\.add\(\s*|Phase\.\w+, |'
        r'"", None, )'
        r'"(\w+)"'
    )
    words = set(re.findall(told, source))
    assert len(words) > 25
    page = (DOCS / "supervisor.md").read_text().partition("\n## Events\n")[2].partition("\n## ")[0]
    rows = [row.partition(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == words
