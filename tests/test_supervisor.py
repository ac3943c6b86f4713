"""`holdfast up` as an operator meets it: real services, broken in every way, seen from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import socket

import pytest
from helpers_supervisor import PLACES, Running, keeper_of, kill, log_of, python
from helpers_trees import build_tree_program, wait_for

from holdfast.client import Client


def test_three_kinds_come_up_and_everything_is_gone_after_term(tmp_path):
    notifier = python(tmp_path, "notifier", "tell('READY=1\\nSTATUS=at your service')\nsignal.pause()")
    services = f"""
[service.prepare]
type = "oneshot"
command = ["sh", "-c", "echo prepared"]
[service.plain]
command = ["sleep", "1000"]
requires = ["prepare"]
[service.notifier]
type = "notify"
command = {notifier}
after = ["plain"]
"""
    with Running(tmp_path, services) as up:
        assert up.until("prepare", state="exited", ready=True)["last_exit"]["code"] == 0
        plain = up.until("plain", state="running", ready=True)
        notifier_status = up.until("notifier", state="running", ready=True)
        assert notifier_status["status_text"] == "at your service"
        assert plain["pid"] in up.of_service("plain")
        assert plain["incarnation"] == 1
        assert plain["restarts"] == 0
        assert plain["tree"]["processes"] == 1
        # It is 0 while the program is at its exec.
        wait_for(lambda: up.client().service("plain")["tree"]["memory_bytes"] > 0)
        assert "keeper" in plain["held_by"]
        assert "prepared\n" in log_of(up, "prepare")
        assert up.stop() == 0
    text = up.output.read_text()
    places = [text.index(f"{name}@1 ready") for name in ("plain", "notifier")]
    assert text.index("prepare@1 completed") < places[0]


def test_a_killed_service_is_started_again_and_only_once(tmp_path):
    with Running(tmp_path, '[service.web]\ncommand = ["sleep", "1000"]\n') as up:
        first = up.until("web", ready=True)
        kill(first["pid"])
        second = up.until("web", lambda s: s["incarnation"] == 2 and s["ready"])
        assert second["pid"] != first["pid"]
        assert second["restarts"] == 1
        assert second["last_exit"] == {"code": None, "signal": "SIGKILL", "cause": "killed by SIGKILL"}
        wait_for(lambda: up.of_service("web") == [second["pid"]])  # a process in its exec shows no environment


def test_exit_codes_and_policies(tmp_path):
    services = """
[service.good]
command = ["true"]
[service.bad]
command = ["false"]
start_limit = 3
backoff = { first = "0s", then = "10ms", factor = 1 }
[service.once]
command = ["sh", "-c", "exit 7"]
restart = "never"
[service.missing]
command = ["/no/such/program"]
"""
    with Running(tmp_path, services) as up:
        assert up.until("good", state="exited")["last_exit"]["code"] == 0
        bad = up.until("bad", state="fatal")
        assert bad["restarts"] == 2
        assert up.until("once", state="exited")["last_exit"]["code"] == 7
        missing = up.until("missing", state="fatal")
        assert "No such file" in missing["reason"] + missing["last_exit"]["cause"]
        assert up.holdfast("status", check=3).stdout.count("\n") >= 6
        result = up.holdfast("start", "missing", check=1)
        assert "missing" in result.stdout


def test_commands(tmp_path):
    services = """
[service.db]
command = ["sleep", "1000"]
[service.web-1]
command = ["sleep", "1000"]
requires = ["db"]
[service.web-2]
command = ["sh", "-c", "trap 'echo got HUP' HUP; echo ready; while :; do sleep 0.05; done"]
"""
    with Running(tmp_path, services) as up:
        for name in ("db", "web-1", "web-2"):
            up.until(name, ready=True)
        up.holdfast("stop", "web-*")
        assert [s["state"] for s in json.loads(up.holdfast("status", "--json", check=3).stdout)] == [
            "running", "stopped", "stopped",
        ]  # fmt: skip
        assert up.of_service("web-1") == []
        up.holdfast("start", "web-1")
        assert up.client().service("web-1")["incarnation"] == 2
        done = json.loads(up.holdfast("restart", "web-1@1", "--json").stdout)
        assert done[0]["outcome"] == "gone"
        assert up.client().service("web-1")["incarnation"] == 2
        up.holdfast("restart", "db")
        assert up.until("web-1", ready=True)["incarnation"] == 3
        assert up.client().service("db")["incarnation"] == 2
        up.holdfast("start", "web-2")
        wait_for(lambda: "ready" in log_of(up, "web-2"))
        up.holdfast("signal", "HUP", "web-2")
        wait_for(lambda: "got HUP" in log_of(up, "web-2"))
        for args in (["stop", "wbe-1"], ["start", "nothing*"], ["signal", "NOSUCH", "db"], ["stop", "db@x"]):
            wrong = up.holdfast(*args, check=1)
            assert wrong.stderr.startswith("holdfast: ")
        assert "web-1" in up.holdfast("stop", "wbe-1", check=1).stderr  # what was meant
        assert up.holdfast("status", "nobody", check=4).stderr
        up.holdfast("down")
        assert up.process is not None
        assert up.process.wait(10) == 0
        up.process = None
        assert up.holdfast("status", check=69).stderr


TREES = {
    "ignores-term": ("plain", "i", 3),
    "lives-through-term": ("plain", "l", 3),
    "ends-by-term": ("plain", "x", 3),
    "daemons": ("daemons", "i", 8),
    "sessions": ("sessions", "i", 50),
    "stopped": ("stopped", "i", 3),
    "threads": ("threads", "i", 8),
    "chain": ("chain", "i", 100),
    "relays": ("relays", "i", 32),
}


def test_stop_returns_when_the_tree_is_empty_whatever_it_is_made_of(tmp_path):
    program = build_tree_program(str(tmp_path))
    services = "".join(
        f'[service.{name}]\ncommand = ["{program}", "1", "{shape}", "{mode}", "{count}"]\ngrace = "100ms"\n'
        for name, (shape, mode, count) in TREES.items()
    )
    with Running(tmp_path, services) as up:
        for name in TREES:
            up.until(name, ready=True)
            wait_for(lambda name=name: re.search(r"^M \d+$", log_of(up, name), re.M), what=name)
            assert up.of_service(name)
            with up.client() as client:
                result = client.stop(name, timeout=30)
            assert result[0]["outcome"] == "done"
            assert up.of_service(name) == [], name


def test_what_main_leaves_behind_is_stopped_before_the_next_start(tmp_path):
    program = build_tree_program(str(tmp_path))
    services = f'[service.web]\ncommand = ["{program}", "1", "daemons", "i", "8"]\ngrace = "200ms"\n'
    with Running(tmp_path, services) as up:
        first = up.until("web", ready=True)
        wait_for(lambda: re.search(r"^M \d+$", log_of(up, "web"), re.M))
        before = set(up.of_service("web"))
        assert len(before) == 9
        kill(first["pid"])
        up.until("web", lambda s: s["incarnation"] == 2 and s["ready"])
        assert not before & set(up.of_service("web"))


def test_kill_9_of_the_supervisor(tmp_path):
    counter = python(tmp_path, "counter", "n = 0\nwhile True:\n    print(n); n += 1; time.sleep(0.002)")
    services = f"""
[service.counter]
command = {counter}
[service.short]
command = ["sh", "-c", "read x < {tmp_path}/gate; exit 5"]
restart = "never"
[service.by-hand]
command = ["sleep", "1000"]
"""
    os.mkfifo(tmp_path / "gate")
    with Running(tmp_path, services) as up:
        before = {name: up.until(name, ready=True) for name in ("counter", "short", "by-hand")}
        up.holdfast("stop", "by-hand")
        supervisor = up.client().supervisor()
        assert supervisor["anchor_pid"] == up.process.pid
        kill(supervisor["pid"], signal.SIGSTOP)  # so that "short" ends while nobody is there
        with open(tmp_path / "gate", "w") as gate:
            gate.write("go\n")
        wait_for(lambda: before["short"]["pid"] not in up.of_service("short"))
        kill(supervisor["pid"])
        wait_for(lambda: Client(str(up.run_dir)).supervisor()["pid"] != supervisor["pid"])
        now = up.client().supervisor()
        assert now["restarts"] == 1
        assert up.until("counter", ready=True)["pid"] == before["counter"]["pid"]
        assert up.of_service("counter") == [before["counter"]["pid"]]
        short = up.until("short", state="exited")
        assert short["last_exit"]["code"] == 5
        assert short["incarnation"] == 1
        assert up.client().service("by-hand")["state"] == "stopped"  # as it was asked to be
        assert up.of_service("by-hand") == []
        last = int(log_of(up, "counter").split("\n")[-2])
        wait_for(lambda: int(log_of(up, "counter").split("\n")[-2]) > last)
        assert up.stop() == 0
    numbers = [int(line) for line in log_of(up, "counter").splitlines() if line.isdecimal()]
    assert numbers == list(range(len(numbers)))


def test_kill_9_of_the_anchor_and_a_new_up(tmp_path):
    services = """
[service.a]
command = ["sleep", "1000"]
[service.b]
command = ["sh", "-c", "sleep 1000 & wait"]
requires = ["a"]
"""
    with Running(tmp_path, services) as up:
        before = {name: up.until(name, ready=True) for name in ("a", "b")}
        supervisor = up.client().supervisor()["pid"]
        up.process.kill()
        up.process.wait()
        wait_for(lambda: supervisor not in up.marked())
        assert up.of_service("a") == [before["a"]["pid"]]
        up.up()
        up.wait_for_socket()
        for name in ("a", "b"):
            now = up.until(name, ready=True)
            assert now["pid"] == before[name]["pid"]
            assert now["incarnation"] == 1
            assert now["restarts"] == 0
        assert len(up.of_service("b")) == 2
        assert up.stop() == 0


def test_a_lost_keeper_means_one_new_copy(tmp_path):
    services = '[service.web]\ncommand = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]\n'
    with Running(tmp_path, services) as up:
        first = up.until("web", ready=True)
        wait_for(lambda: len(up.of_service("web")) == 3)
        before = set(up.of_service("web"))
        kill(keeper_of(first["pid"]))
        second = up.until("web", lambda s: s["incarnation"] == 2 and s["ready"])
        assert "keeper lost" in second["last_exit"]["cause"]
        assert not before & set(up.of_service("web"))


def test_quit_leaves_the_services_and_the_next_up_takes_them(tmp_path):
    with Running(tmp_path, '[service.web]\ncommand = ["sleep", "1000"]\n') as up:
        pid = up.until("web", ready=True)["pid"]
        assert up.stop(signal.SIGQUIT) == 0
        assert up.of_service("web") == [pid]
        up.up()
        up.wait_for_socket()
        assert up.until("web", ready=True)["pid"] == pid
        assert up.stop() == 0


def test_a_second_supervisor_is_refused_and_says_who_is_there(tmp_path):
    with Running(tmp_path, '[service.web]\ncommand = ["sleep", "1000"]\n') as up:
        pid = up.until("web", ready=True)["pid"]
        refused = up.holdfast("up", "-c", str(up.file), check=1)
        assert str(up.process.pid) in refused.stderr
        assert up.client().service("web")["pid"] == pid


def test_essential_ends_the_supervisor_with_its_status(tmp_path):
    services = f"""
[service.main]
command = ["sh", "-c", "read x < {tmp_path}/gate; exit 42"]
essential = true
restart = "never"
[service.side]
command = ["sleep", "1000"]
"""
    os.mkfifo(tmp_path / "gate")
    with Running(tmp_path, services) as up:
        up.until("side", ready=True)
        up.until("main", ready=True)
        with open(tmp_path / "gate", "w") as gate:
            gate.write("go\n")
        assert up.process.wait(30) == 42


def test_notifications_are_believed_only_from_the_service_itself(tmp_path):
    waiter = python(tmp_path, "waiter", "signal.pause()")
    with Running(tmp_path, f'[service.waiter]\ntype = "notify"\ncommand = {waiter}\n') as up:
        up.until("waiter", lambda s: s["pid"])
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(up.run_dir / "notify"))
            sock.send(b"READY=1")
        events = up.client().events(after=0)
        assert any(event["event"] == "notify_refused" for event in events)
        events.close()
        assert up.client().service("waiter")["state"] == "starting"
        assert not up.client().service("waiter")["ready"]


def test_a_child_of_the_service_may_notify_and_a_barrier_is_passed(tmp_path):
    child = """
import array
if os.fork() == 0:
    tell("READY=1")
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        sock.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))])
    os.close(writer)
    assert os.read(reader, 1) == b""
    print("passed the barrier")
    sys.exit(0)
signal.pause()
"""
    with Running(tmp_path, f'[service.web]\ntype = "notify"\ncommand = {python(tmp_path, "web", child)}\n') as up:
        up.until("web", state="running", ready=True)
        wait_for(lambda: "passed the barrier" in log_of(up, "web"))


def test_environment_identity_and_limits(tmp_path):
    show = python(
        tmp_path,
        "show",
        "import json, resource\n"
        "print(json.dumps({'env': dict(os.environ), 'cwd': os.getcwd(), 'umask': os.umask(0), 'sid': os.getsid(0),"
        " 'pid': os.getpid(), 'nice': os.nice(0), 'nofile': resource.getrlimit(resource.RLIMIT_NOFILE),"
        " 'core': resource.getrlimit(resource.RLIMIT_CORE), 'fds': sorted(os.listdir('/proc/self/fd'))}))\n",
    )
    services = f"""
[service.show]
command = {show}
type = "oneshot"
env = {{ GREETING = "hello", NOT = "${{UNSET_HERE:-default}}" }}
umask = "027"
nice = 3
rlimits = {{ core = "0KB" }}
cwd = "/"
"""
    with Running(tmp_path, services, NOTIFY_SOCKET="/nowhere", LISTEN_FDS="3") as up:
        up.until("show", state="exited")
        line = next(line for line in log_of(up, "show").splitlines() if line.startswith("{"))
        shown = json.loads(line)
        env = shown["env"]
        assert env["GREETING"] == "hello"
        assert env["NOT"] == "default"
        assert env["HOLDFAST_SERVICE"] == "show"
        assert env["HOLDFAST_INCARNATION"] == "1"
        assert env["HOLDFAST_SUPERVISOR"] == str(up.run_dir)
        assert "NOTIFY_SOCKET" not in env
        assert "LISTEN_FDS" not in env
        assert "HOLDFAST_RUN_DIR" not in env
        assert (shown["cwd"], shown["umask"], shown["nice"]) == ("/", 0o027, 3)
        assert shown["sid"] == shown["pid"]
        assert shown["core"] == [0, 0]
        import resource

        assert tuple(shown["nofile"]) == resource.getrlimit(resource.RLIMIT_NOFILE)
        assert shown["fds"] == ["0", "1", "2", "3"]  # 3: the listing itself


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user(tmp_path):
    tmp_path.chmod(0o755)
    services = """
[service.who]
type = "oneshot"
command = ["sh", "-c", "id -un; id -Gn; echo $$HOME $$USER"]
user = "nobody"
cwd = "/"
"""
    with Running(tmp_path, services) as up:
        up.until("who", state="exited", ready=True)
        text = log_of(up, "who")
        assert "nobody\nnogroup\n" in text
        assert "nobody" in text.splitlines()[3]


def test_detached(tmp_path):
    up = Running(tmp_path, '[service.web]\ncommand = ["sleep", "1000"]\n')
    try:
        started = up.up("--detach")
        assert started.wait(30) == 0, up.output.read_text()
        assert up.until("web", ready=True)["pid"] in up.of_service("web")
        assert "web@1 ready" in (tmp_path / "log" / "holdfast.log").read_text()
        up.holdfast("down")
    finally:
        up.process = None
        up.__exit__()


def test_a_long_run_directory(tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with Running(deep, PLACES and '[service.web]\ncommand = ["sleep", "1000"]\n') as up:
        first = up.until("web", ready=True)
        supervisor = up.client().supervisor()
        kill(supervisor["pid"])
        wait_for(lambda: up.client().supervisor()["pid"] != supervisor["pid"])
        assert up.until("web", ready=True)["pid"] == first["pid"]


def test_names_are_completed_from_what_runs(tmp_path):
    services = '[service.web-1]\ncommand = ["sleep", "1000"]\n[service.db]\ncommand = ["sleep", "1000"]\n'
    with Running(tmp_path, services) as up:
        up.until("web-1", ready=True)

        def completed(*words: str) -> list[str]:
            line = " ".join(["holdfast", *words])
            up.environment.update(_HOLDFAST_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words)))
            try:
                return [line.partition(",")[2] for line in up.holdfast(check=None).stdout.splitlines()]
            finally:
                for name in ("_HOLDFAST_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
                    del up.environment[name]

        assert completed("stop", "we") == ["web-1"]
        assert completed("restart", "web-1@") == ["web-1@1"]
        assert completed("sta") == ["status", "start"]
        assert set(completed("logs", "")) == {"web-1", "db"}


def test_two_hundred_services_that_exit_at_once_leave_the_others_alone(tmp_path):
    """They use up their start limit, within the start budget; meanwhile the others start, stop and answer."""
    looper = 'command = ["false"]\nstart_limit = 4\nafter = ["steady", "other"]\n'
    loopers = "".join(f"[service.loop-{i:03}]\n{looper}" for i in range(200))
    services = (
        PLACES + "start_budget = { at_once = 20, per_second = 100 }\n" + loopers
        + '[service.steady]\ncommand = ["sleep", "1000"]\n[service.other]\ncommand = ["sleep", "1000"]\n'
    )  # fmt: skip
    with Running(tmp_path, services, places="") as up:
        pid = up.until("steady", ready=True)["pid"]
        with up.client() as client:
            going_on = True
            while going_on:  # how often is a matter of the machine
                going_on = any(s["state"] != "fatal" for s in client.services("loop-*"))
                assert client.restart("other", timeout=30)[0]["outcome"] == "done"
        assert up.client().service("steady")["pid"] == pid
        assert {s["restarts"] for s in up.client().services("loop-*")} == {3}
        assert up.stop() == 0
