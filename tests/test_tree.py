"""`holdfast tree`, and the lineage of supervised services: by the connector, and where that is not to be had."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter

import pytest
from conftest import require
from helpers_lineage import build_program, listeners, needs_connector, nobody_listens, orphans
from helpers_supervisor import HOLDFAST, Running, keeper_of, kill
from helpers_wait import LIMIT, wait_for

from holdfast.client import Client, ClientError

PROCESSES = 10_000


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build_program(tmp_path_factory.mktemp("lineage"))


def last_number(text: str) -> str:
    """The line that a service has written last, if it is a number."""
    line = text.splitlines()[-1] if text.endswith("\n") else ""
    return line if line.isdecimal() else ""


class Follower:
    """Reads the lineage of a service in a thread, from `source` on."""

    def __init__(self, up: Running, name: str) -> None:
        self.records: list[dict] = []
        self.client = up.client()
        self.stream = self.client.lineage(name)
        self.source = next(self.stream)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(ClientError):
            self.records.extend(self.stream)

    def of(self, event: str) -> list[dict]:
        return [each for each in list(self.records) if each["event"] == event]

    def __enter__(self):
        return self

    def __exit__(self, *_exc) -> None:
        self.client.close()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


def tree_of(up: Running, name: str = "web") -> dict:
    return up.client().tree(name)


def processes(up: Running, name: str = "web") -> list[dict]:
    (tree,) = tree_of(up, name)["trees"]
    return tree["processes"]


def fifo(path):
    os.mkfifo(path)
    return path


def release(path) -> None:
    """Let go who reads a line from it."""
    with open(path, "w") as file:
        file.write("go\n")


def test_ten_thousand_short_processes(tmp_path, program):
    """Complete, or it says how much was lost; every adoption with the right previous parent."""
    needs_connector()
    known, go = tmp_path / "known", fifo(tmp_path / "go")
    services = f"""
[service.churn]
command = "read line < {go}; exec {program} churn {PROCESSES // 2} {known}"
shell = true
restart = "never"
lineage = true
"""
    with Running(tmp_path, services) as up, Follower(up, "churn") as follower:
        assert follower.source["text"] == "the kernel's proc connector"
        main = up.until("churn", state="running")["pid"]
        release(go)
        wait_for(lambda: [each for each in follower.of("exited") if each["pid"] == main], 60)
        # Those that were the last may be told a moment later.
        wait_for(lambda: len(follower.of("exited")) > PROCESSES or follower.of("lost") or follower.of("gap"))
        real = orphans(known)
        assert len(real) == PROCESSES // 2
        adopted = {each["pid"]: each["by"] for each in follower.of("adopted")}
        assert {pid: by for pid, by in adopted.items() if by is not None}.items() <= real.items()
        if not follower.of("lost") and not follower.of("gap"):
            # One is missing where an orphan was reaped while the end of its parent was being told.
            assert len(adopted) >= len(real) - 2
            counts = Counter(each["event"] for each in follower.records)
            assert counts["forked"] == PROCESSES
            assert counts["session"] == PROCESSES // 2
            assert counts["executed"] == PROCESSES // 2 + 1
            assert counts["exited"] == PROCESSES + 1
        assert tree_of(up, "churn")["lost"] == lost_by(follower)


def lost_by(follower: Follower) -> int:
    return sum(int(each["text"].split()[0]) for each in follower.of("lost"))


def test_what_a_stopped_supervisor_misses_is_counted_and_looked_up(tmp_path, program):
    needs_connector()
    go, log = fifo(tmp_path / "go"), tmp_path / "log" / "web" / "current"
    services = f"""
[service.web]
command = "read line < {go}; {program} names 60000; sleep 1000 & echo $!; wait"
shell = true
lineage = true
"""
    with Running(tmp_path, services) as up, Follower(up, "web") as follower:
        (main,) = processes(up)
        assert (main["how"], main["main"]) == ("started", True)
        pid = up.client().supervisor()["pid"]
        kill(pid, signal.SIGSTOP)
        try:
            release(go)
            sleeper = int(wait_for(lambda: log.exists() and last_number(log.read_text()), 60))
        finally:
            kill(pid, signal.SIGCONT)
        wait_for(lambda: sleeper in {each["pid"] for each in follower.of("found")})
        assert lost_by(follower) > 10_000 and tree_of(up)["lost"] >= lost_by(follower)
        how = {each["pid"]: each["how"] for each in processes(up)}
        assert how == {main["pid"]: "started", sleeper: "unknown"}
        (ended,) = [each for each in follower.of("exited") if each["text"] == "nobody knows how"]
        assert ended["name"] in ("odd", "even")
        kill(sleeper)
        wait_for(lambda: [each for each in follower.of("exited") if (each["pid"], each["status"]) == (sleeper, 9)])


def listening(up: Running) -> int:
    """Descriptors of the connector that supervisor and anchor have."""
    status = up.client().supervisor()
    return listeners((status["pid"], status["anchor_pid"]))


@contextlib.contextmanager
def nobody_listens_after():
    """Where nobody listens before, nobody does after: who leaves without a word is counted by the kernel for ever."""
    quiet = nobody_listens(0.5)
    yield
    assert not quiet or nobody_listens(30) or others_listen()


def others_listen() -> bool:
    """Whether there is a listener on this machine that is none of ours."""
    with open("/proc/net/netlink") as file:
        return any(line.split()[1] == "11" for line in file)


def test_it_is_switched_while_the_service_runs(tmp_path):
    needs_connector()
    services = '[service.web]\nshell = true\ncommand = "sleep 1000 & (sleep 1001 & true); wait"\n'
    with nobody_listens_after(), Running(tmp_path, services) as up:
        main = up.until("web", lambda s: s["tree"]["processes"] == 3)["pid"]
        seen = tree_of(up)
        assert (seen["source"], seen["why"], listening(up)) == ("keeper", "its lineage is off", 0)
        how = {each["pid"]: (each["how"], each["executed"]) for each in processes(up)}
        assert Counter(how.values()) == {("started", None): 1, ("unknown", None): 1, ("adopted", None): 1}
        up.file.write_text(up.file.read_text() + "lineage = true\n")
        assert "applies" in up.holdfast("update").stdout
        assert (tree_of(up)["source"], listening(up)) == ("connector", 2)
        assert up.client().service("web")["pid"] == main
        with Follower(up, "web") as follower:
            (deep,) = [each for each in processes(up) if each["parent"] == main]
            assert deep["how"] == "unknown"  # it was there before
            kill(deep["pid"])
            ended = wait_for(lambda: follower.of("exited"))[0]
            assert (ended["pid"], ended["status"], ended["text"]) == (deep["pid"], 9, "killed by SIGKILL")
        up.file.write_text(up.file.read_text().replace("lineage = true\n", ""))
        up.holdfast("update")
        assert (tree_of(up)["source"], listening(up)) == ("keeper", 0)
        with Follower(up, "web"):
            assert (tree_of(up)["source"], listening(up)) == ("connector", 2)
        wait_for(lambda: listening(up) == 0)


def test_the_listener_outlives_its_supervisor(tmp_path):
    needs_connector()
    services = '[service.web]\nshell = true\nlineage = true\ncommand = "sleep 1000 & wait"\n'
    with nobody_listens_after(), Running(tmp_path, services) as up:
        up.until("web", state="running")
        before = wait_for(lambda: len(processes(up)) == 2 and processes(up))
        assert {each["how"] for each in before} == {"started", "forked"}
        for end in (kill, lambda _pid: up.holdfast("upgrade")):
            own = up.client().supervisor()
            anchor = own["anchor_pid"]
            assert listeners([anchor]) == 1
            end(own["pid"])
            assert listeners([anchor]) == 1
            after = wait_for(lambda: ready(up) and processes(up))
            assert {each["pid"] for each in after} == {each["pid"] for each in before}
            assert (tree_of(up)["source"], listening(up)) == ("connector", 2)
        with Follower(up, "web") as follower:
            (child,) = [each["pid"] for each in after if not each["main"]]
            kill(child)
            wait_for(lambda: follower.of("exited"))


def test_what_the_next_supervisor_does_not_want_is_ended(tmp_path):
    needs_connector()
    with nobody_listens_after(), Running(tmp_path, '[service.web]\ncommand = ["sleep", "1000"]\n') as up:
        anchor = up.client().supervisor()["anchor_pid"]
        with Follower(up, "web"):
            assert listeners([anchor]) == 1
            kill(up.client().supervisor()["pid"])
        wait_for(lambda: ready(up) and up.client().supervisor()["restarts"])
        wait_for(lambda: listening(up) == 0)
        assert tree_of(up)["source"] == "keeper"


def test_the_main_process_of_a_daemon_was_adopted(tmp_path):
    needs_connector()
    services = '[service.web]\ntype = "forking"\nshell = true\nlineage = true\ncommand = "sleep 1000 &"\n'
    with Running(tmp_path, services) as up:
        up.until("web", state="running")
        (main,) = processes(up)
        with up.client() as client, client.lineage("web", after=0) as records:
            next(records)
            started = next(records)
        assert started["event"] == "started"
        assert (main["name"], main["main"], main["how"]) == ("sleep", True, "adopted")
        assert main["by"] == started["pid"] != main["pid"]


def ready(up: Running) -> bool:
    with contextlib.suppress(ClientError):
        return up.client().supervisor()["state"] == "running"
    return False


def test_as_it_is_shown(tmp_path):
    services = '[service.web]\nshell = true\ncommand = "sleep 1000 & (sleep 1001 & true); wait"\n'
    with Running(tmp_path, services) as up:
        main = up.until("web", lambda s: s["tree"]["processes"] == 3)["pid"]
        as_json = json.loads(up.holdfast("tree", "web", "--json").stdout)
        assert as_json["trees"][0]["keeper"] == keeper_of(main)
        lines = up.holdfast("tree", "web").stdout.splitlines()
        assert lines[0].split() == ["PROCESS", "STATE", "SESSION", "GROUP", "AGE", "CPU", "MEMORY", "CAME", "TO", "BE"]
        assert lines[1] == f"web@1 (keeper {keeper_of(main)})"
        assert lines[2].startswith(f"├─ {main} sh ") and "started at" in lines[2]
        assert lines[3].startswith("│  └─ ") and lines[3].split()[3] == "sleep"
        assert lines[4].startswith("└─ ") and lines[4].endswith("adopted")
        assert lines[4].split()[3:6] == ["sleeping", str(main), str(main)]
        assert lines[-1] == "How they came to be, as its keeper knows it: its lineage is off."
        plain = subprocess.run(
            [HOLDFAST, "tree", "web", "--run-dir", str(up.run_dir)], env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout.splitlines()  # fmt: skip
        assert plain[2].startswith(f"|- {main} sh ") and plain[4].startswith("`- ")
        up.holdfast("tree", "nobody", check=1)
        up.holdfast("stop", "web")
        assert "web: nothing of it runs" in up.holdfast("tree", "web").stdout


def test_followed_on_the_command_line(tmp_path):
    needs_connector()
    services = '[service.web]\nshell = true\ncommand = "sleep 1000 & wait; sleep 1001 & wait"\n'
    with Running(tmp_path, services) as up:
        up.until("web", lambda s: s["tree"]["processes"] == 2)
        command = [HOLDFAST, "tree", "-f", "web", "--run-dir", str(up.run_dir)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
            lines = iter(following.stdout.readline, "")
            head = [next(lines) for _ in range(6)]
            assert head[-1] == "How they came to be, as the kernel's proc connector tells it.\n"
            pid = int(head[3].split()[1])
            kill(pid)
            assert "exited    killed by SIGKILL" in next(lines)
            assert "forked    by" in next(lines)
            assert next(lines).split()[2:] == ["sleep", "executed"]
            following.send_signal(signal.SIGINT)
            assert following.wait(30) == 130


def test_where_there_is_no_connector(tmp_path):
    """In a pid namespace of its own: adoptions are told by the keeper, and that this is so."""
    if os.geteuid() != 0:
        pytest.skip("a pid namespace takes root")
    require("unshare")
    go = fifo(tmp_path / "go")
    services = f"""
[service.web]
command = "read line < {go}; (sleep 1001 & true); sleep 1000 & wait"
shell = true
lineage = true
"""
    through = (shutil.which("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child")
    with Running(tmp_path, services, through=through) as up, Follower(up, "web") as follower:
        assert follower.source["text"].startswith("its keeper: the proc connector is not to be had: no process events")
        seen = tree_of(up)
        assert seen["source"] == "keeper" and "initial pid" in seen["why"]
        release(go)
        wait_for(lambda: len(processes(up)) == 3)
        wait_for(lambda: follower.of("adopted"))
        (adopted,) = follower.of("adopted")
        assert adopted["by"] is None and adopted["name"] == "sleep"
        assert adopted["pid"] in {each["pid"] for each in processes(up) if each["how"] == "adopted"}
        assert "not to be had" in up.holdfast("tree", "web").stdout
        with Client(str(up.run_dir)) as client:
            texts = [each["text"] for each in first(client, 20) if each["event"] == "lineage"]
        assert len(texts) == 1 and "keepers tell of adoptions alone" in texts[0]
        up.holdfast("down")


def first(client: Client, most: int) -> list[dict]:
    last = client.supervisor()["last_event"]
    found = []
    with client.events(after=0) as events:
        for event in events:
            found.append(event)
            if event["seq"] >= last or len(found) == most:
                return found
    return found
