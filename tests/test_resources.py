"""`resources` of services on a real kernel: what is limited, counted, killed, and that nothing is left of it.

Every program that would take what it can waits for a word until the test has read its limit back, and has a bound that
does not depend on it: RLIMIT_AS, and so many generations of forks.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import require
from helpers_resources import V1, V2, directory, left, needs_v1, pids
from helpers_supervisor import HOLDFAST, LIMIT, NOTIFIER, PLACES, Running, keeper_of, kill, python
from helpers_wait import all_ended, wait_for

import holdfast

MIB = 1024 * 1024
STRANGER = 61234  # a user of whom there is nobody else here
BELT = 'rlimits = { as = "1GiB" }\n'
GATE = 'open("gate").readline()\n'
FULL = "held = [bytearray(b'x' * 1_000_000) for _ in range(400)]\n"
HOG = f"{GATE}{FULL}signal.pause()\n"
# It doubles, 256 are the most; who is refused tries on, and sleeps: the machine has others to serve.
BOMB = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("gate").readline()
generation = 0
while generation < 8:
    try:
        os.fork()
        generation += 1
    except OSError:
        time.sleep(0.05)
signal.pause()
"""
# One that is killed, and one that lives on.
PARENT = f"""
open("gate").readline()
if os.fork() == 0:
    {FULL}
signal.pause()
"""
SLEEPER = '[service.web]\ncommand = ["sleep", "1000"]\n'


@pytest.fixture
def gate(tmp_path):
    """A call lets one who reads it go on."""
    os.mkfifo(tmp_path / "gate")
    fd = os.open(tmp_path / "gate", os.O_RDWR | os.O_CLOEXEC)
    yield lambda: os.write(fd, b"\n")
    os.close(fd)


def hog(tmp_path, text: str = HOG, *lines: str) -> str:
    command = python(tmp_path, "hog", text)
    limits = 'resources = { memory_max = "64MiB" }'
    return "\n".join(("[service.hog]", f"command = {command}", 'restart = "never"', BELT, limits, *lines, ""))


def cgroups_of(up: Running, name: str) -> list[pathlib.Path]:
    return [path for each in left(up.run_dir) if (path := pathlib.Path(each) / name).exists()]


def remove_all(path: pathlib.Path) -> None:
    """A directory of a test, and those above it that are of its run directory."""
    while not path.name.startswith("holdfast-"):
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        path = path.parent
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def limited(up: Running, name: str = "hog@1") -> None:
    """The limit is in force: only then may what it limits be let go."""
    own = directory("memory", up.run_dir, name)
    assert (own / "memory.limit_in_bytes").read_text().strip() == str(64 * MIB)
    assert pids(own)


def written(up: Running, controller: str, name: str, file: str) -> str:
    return (directory(controller, up.run_dir, name) / file).read_text().strip()


# ---- limits


@needs_v1
def test_a_memory_hog_is_killed_inside_its_own_limit(tmp_path, gate):
    with Running(tmp_path, hog(tmp_path)) as up:
        pid = up.until("hog", state="running")["pid"]
        limited(up)
        assert pid in pids(directory("memory", up.run_dir, "hog@1"))  # where python3 is a script, with others at first
        gate()
        cause = "out of memory (memory_max 64MiB): killed by SIGKILL"
        status = up.until("hog", state="exited")
        assert status["last_exit"] == {"code": None, "signal": "SIGKILL", "cause": cause}
        assert cause in up.holdfast("status", check=3).stdout
        wait_for(lambda: up.client().history("hog")[0]["resources"])
        (record,) = up.client().history("hog")
        assert record["cause"] == cause
        assert record["resources"]["oom_kills"] == 1
        assert 32 * MIB < record["resources"]["memory_peak_bytes"] <= 64 * MIB
        up.stop()
        assert not left(up.run_dir)


@needs_v1
def test_a_fork_bomb_stays_inside_pids_max_and_is_stopped(tmp_path, gate):
    service = f'[service.bomb]\ncommand = {python(tmp_path, "bomb", BOMB)}\ngrace = "100ms"\n'
    with Running(tmp_path, service + 'resources = { pids_max = 30, cpu_max = "50%" }\n') as up:
        pid = up.until("bomb", state="running")["pid"]
        own = directory("pids", up.run_dir, "bomb@1")
        assert written(up, "pids", "bomb@1", "pids.max") == "30"
        assert pid in pids(own)
        gate()
        wait_for(lambda: (own / "pids.current").read_text().strip() == "30", what="the bomb does not grow")
        assert len(up.of_service("bomb")) <= 30
        assert up.client().service("bomb")["resources"]["tasks"] == 30
        up.holdfast("stop", "bomb")
        assert up.of_service("bomb") == []
        assert not own.exists()


@needs_v1
def test_each_limit_is_written_where_the_kernel_reads_it_and_told(tmp_path):
    limits = 'resources = { memory_max = "64MiB", cpu_max = "150%", cpu_weight = 50, pids_max = 64 }\n'
    with Running(tmp_path, SLEEPER + limits) as up:
        up.until("web", state="running")
        assert written(up, "memory", "web@1", "memory.limit_in_bytes") == str(64 * MIB)
        assert written(up, "cpu", "web@1", "cpu.cfs_quota_us") == "150000"
        assert written(up, "cpu", "web@1", "cpu.cfs_period_us") == "100000"
        assert written(up, "cpu", "web@1", "cpu.shares") == "512"
        assert written(up, "pids", "web@1", "pids.max") == "64"
        told = up.client().service("web")["resources"]
        assert {name: limit["value"] for name, limit in told["limits"].items()} == {
            "memory_max": 64 * MIB, "cpu_max": 1.5, "cpu_weight": 50, "pids_max": 64
        }  # fmt: skip
        assert {limit["held"] for limit in told["limits"].values()} == {"cgroup v1"}
        assert 0 < told["memory_bytes"] <= told["memory_peak_bytes"] < 64 * MIB
        assert (told["tasks"], told["oom_kills"]) == (1, 0)


@needs_v1
def test_a_limit_that_changes_is_changed_while_it_runs(tmp_path):
    with Running(tmp_path, SLEEPER + 'resources = { pids_max = 20, cpu_max = "50%" }\n') as up:
        pid = up.until("web", state="running")["pid"]
        up.file.write_text(PLACES + SLEEPER + 'resources = { pids_max = 30, memory_max = "1GiB" }\n')
        shown = up.holdfast("update").stdout
        assert "pids_max 20 -> 30" in shown
        assert up.client().service("web")["pid"] == pid
        assert written(up, "pids", "web@1", "pids.max") == "30"
        assert written(up, "memory", "web@1", "memory.limit_in_bytes") == str(1024 * MIB)
        assert written(up, "cpu", "web@1", "cpu.cfs_quota_us") == "-1"
        up.file.write_text(PLACES + SLEEPER)
        assert "restarts" in up.holdfast("update").stdout
        assert up.until("web", state="running")["resources"] is None


@needs_v1
def test_a_change_that_the_kernel_refuses_is_not_told_as_held(tmp_path):
    """Version 1 takes no memory limit below what is used."""
    program = python(tmp_path, "web", 'held = bytearray(b"x" * 50_000_000)\nos.write(9, b"\\n")\nsignal.pause()\n')
    service = f'[service.web]\ncommand = {program}\nready = {{ fd = 9 }}\nresources = {{ memory_max = "%s" }}\n'
    with Running(tmp_path, service % "300000KB") as up:
        told = up.until("web", state="running")["resources"]["limits"]
        assert told == {"memory_max": {"value": 300_000_000, "held": "cgroup v1"}}  # which are not whole pages
        up.file.write_text(PLACES + service % "10MiB")
        up.holdfast("update")
        assert up.client().service("web")["resources"]["limits"] == {
            "memory_max": {"value": 10 * MIB, "held": "not held"}
        }
        assert "web@1 error: memory_max 10MiB cannot be set: Device or resource busy" in up.output.read_text()


# ---- kills for want of memory


@needs_v1
def test_a_member_that_is_killed_is_told_while_main_lives_on(tmp_path, gate):
    with Running(tmp_path, hog(tmp_path, PARENT)) as up:
        pid = up.until("hog", state="running")["pid"]
        limited(up)
        gate()
        text = "hog@1 oom kill: 1 of its processes killed: out of memory (memory_max 64MiB)"
        wait_for(lambda: text in up.output.read_text(), what=up.output.read_text)
        status = up.client().service("hog")
        assert (status["pid"], status["state"], status["resources"]["oom_kills"]) == (pid, "running", 1)
        since = time.monotonic()
        wait_for(lambda: time.monotonic() - since > 2.5)  # nobody takes the next end for that kill then
        kill(pid)
        assert up.until("hog", state="exited")["last_exit"]["cause"] == "killed by SIGKILL"


@needs_v1
def test_a_kill_while_nobody_looked_is_known_to_the_next_supervisor(tmp_path, gate):
    with Running(tmp_path, hog(tmp_path)) as up:
        pid = up.until("hog", state="running")["pid"]
        limited(up)
        keeper = keeper_of(pid)
        kill(up.client().supervisor()["anchor_pid"])  # and with it the supervisor
        assert up.process.wait(LIMIT) == -9
        gate()
        assert all_ended([pid, keeper])
        up.up()
        up.wait_for_socket()
        assert up.until("hog", state="exited")["last_exit"]["cause"].startswith("out of memory (memory_max 64MiB)")
        wait_for(lambda: up.client().history("hog")[0]["resources"])
        assert up.client().history("hog")[0]["resources"]["oom_kills"] == 1
        up.stop()
        assert not left(up.run_dir)


# ---- whoever dies


@needs_v1
def test_a_supervisor_that_is_killed_leaves_the_limits_to_the_next(tmp_path):
    with Running(tmp_path, SLEEPER + "resources = { pids_max = 20 }\n") as up:
        pid = up.until("web", state="running")["pid"]
        kill(up.client().supervisor()["pid"])
        wait_for(lambda: "again, by its anchor" in up.output.read_text())
        up.wait_for_socket()
        status = up.until("web", state="running")
        assert (status["pid"], status["resources"]["tasks"]) == (pid, 1)
        assert written(up, "pids", "web@1", "pids.max") == "20"
        up.holdfast("restart", "web")
        assert not directory("pids", up.run_dir, "web@1").exists()
        assert written(up, "pids", "web@2", "pids.max") == "20"
        up.stop()
        assert not left(up.run_dir)


@needs_v1
@pytest.mark.parametrize("deeper", [False, True])
def test_what_a_lost_keeper_leaves_is_found_by_its_cgroup(tmp_path, deeper):
    """One without marks, in a session of its own, whose parent has gone before anybody could see it.  `deeper`: in a
    cgroup that the service has made in its own."""
    (tmp_path / "web.sh").write_text("(env -i setsid sleep 1001 &)\necho up > up\nexec sleep 1000\n")
    service = '[service.web]\ncommand = ["sh", "web.sh"]\nrestart = "never"\nresources = { pids_max = 20 }\n'
    with Running(tmp_path, service) as up:
        pid = up.until("web", state="running")["pid"]
        wait_for((tmp_path / "up").exists)
        own = directory("pids", up.run_dir, "web@1")
        inside = wait_for(lambda: len(pids(own)) == 2 and pids(own))
        keeper = keeper_of(pid)
        held = [os.pidfd_open(each) for each in inside]
        try:
            for each in cgroups_of(up, "web@1") if deeper else ():
                (each / "below").mkdir()
                for member in inside:
                    (each / "below" / "cgroup.procs").write_text(str(member))
            assert pids(own / "below" if deeper else own) == inside
            kill(up.client().supervisor()["anchor_pid"])
            assert up.process.wait(LIMIT) == -9
            kill(keeper)  # nobody is left who would adopt them
            assert all_ended([keeper])
            up.up()
            up.wait_for_socket()
            assert all_ended(inside)
        finally:
            for fd in held:  # of a failed test, nobody else would find the one without marks
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
        up.until("web", state="exited")
        wait_for(lambda: not own.exists())


@needs_v1
def test_both_of_a_start_first_have_their_own(tmp_path, gate):
    program = python(tmp_path, "web", 'os.environ["HOLDFAST_INCARNATION"] == "1" or open("gate").readline()\n'
                     'os.write(9, b"\\n")\nsignal.pause()\n')  # fmt: skip
    service = f'[service.web]\ncommand = {program}\nready = {{ fd = 9 }}\nrestart_order = "start-first"\n'
    with Running(tmp_path, service + "resources = { pids_max = 20 }\n") as up:
        first = up.until("web", state="running")["pid"]
        up.holdfast("restart", "web", "--no-wait")
        after = directory("pids", up.run_dir, "web@2")
        inside = wait_for(lambda: after.exists() and pids(after))
        assert first in pids(directory("pids", up.run_dir, "web@1"))
        assert first not in inside
        gate()
        assert up.until("web", incarnation=2, state="running")["pid"] in inside
        wait_for(lambda: not directory("pids", up.run_dir, "web@1").exists())


# ---- what others do with the directories


@needs_v1
def test_what_a_service_has_made_in_its_own_goes_with_it(tmp_path):
    with Running(tmp_path, SLEEPER + "resources = { pids_max = 20 }\n") as up:
        up.until("web", state="running")
        below = directory("pids", up.run_dir, "web@1") / "below" / "that"
        below.mkdir(parents=True)
        try:
            up.holdfast("restart", "web")
            assert not directory("pids", up.run_dir, "web@1").exists()
            up.stop()
            assert not left(up.run_dir)
        finally:
            remove_all(below)


@needs_v1
def test_directories_that_somebody_has_removed_are_made_again(tmp_path):
    with Running(tmp_path, SLEEPER + "resources = { pids_max = 20 }\n") as up:
        up.until("web", state="running")
        up.holdfast("stop", "web")
        assert left(up.run_dir)
        for path in left(up.run_dir):
            os.rmdir(path)
        up.holdfast("start", "web")
        assert written(up, "pids", "web@2", "pids.max") == "20"


@needs_v1
def test_nothing_is_started_where_one_of_a_lost_run_directory_still_runs(tmp_path):
    with Running(tmp_path, SLEEPER + "resources = { pids_max = 20 }\n") as up:
        pid = up.until("web", state="running")["pid"]
        keeper = keeper_of(pid)
        held = [os.pidfd_open(each) for each in (keeper, pid)]
        below = directory("pids", up.run_dir, "web@1") / "below"
        try:
            kill(up.client().supervisor()["anchor_pid"])
            assert up.process.wait(LIMIT) == -9
            shutil.rmtree(up.run_dir)
            below.mkdir()
            up.up()
            up.wait_for_socket()
            reason = up.until("web", state="fatal")["reason"]
            assert reason.startswith("could not start: there is somebody in ")
            assert reason.endswith(f"/web@1 already: sleep {pid}")
            assert below.exists()
            up.stop()
        finally:
            for fd in held:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
            assert all_ended([keeper, pid])
            for path in left(up.run_dir):
                remove_all(pathlib.Path(path) / "web@1" / "below")


# ---- what cannot be had


@needs_v1
def test_a_limit_that_cannot_be_had_is_refused_before_anything_starts(tmp_path):
    """Version 1 has no such limit."""
    text = SLEEPER + '[service.db]\ncommand = ["true"]\nresources = { memory_high = "1MiB" }\n'
    up = Running(tmp_path, text)
    done = subprocess.run([HOLDFAST, "up", "-c", up.file], capture_output=True, text=True, timeout=LIMIT)
    why = "service db: memory_high 1MiB cannot be had: cgroup v1 has no such limit"
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
    assert not (tmp_path / "log" / "web").exists()
    checked = subprocess.run([HOLDFAST, "check", "-c", up.file], capture_output=True, text=True, timeout=LIMIT)
    assert checked.returncode == 0
    assert f"warning: {why}" in checked.stderr
    assert not left(up.run_dir)


@needs_v1
def test_a_limit_that_cannot_be_had_is_refused_in_an_update(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        up.until("web", state="running")
        up.file.write_text(PLACES + SLEEPER + 'resources = { memory_high = "1MiB" }\n')
        done = up.holdfast("update", check=1)
        assert "service web: memory_high 1MiB cannot be had" in done.stderr
        up.file.write_text(PLACES + SLEEPER + 'resources = { memory_high = "1MiB", optional = true }\n')
        up.holdfast("update")
        told = up.until("web", incarnation=2, state="running")["resources"]
        assert told["limits"] == {"memory_high": {"value": MIB, "held": "not held"}}
        assert "not held: memory_high" in up.holdfast("status").stdout


@needs_v1
def test_descriptors_that_tell_of_kills_are_counted_before_a_start(tmp_path):
    """They leave no fewer for those who ask."""
    require("prlimit")
    service = SLEEPER + 'replicas = 16\nresources = { memory_max = "1GiB" }\n'
    with Running(tmp_path, service, through=("prlimit", "--nofile=100:100", "--")) as up:
        full = [each for each in up.client().services() if "Too many open files" in (each["reason"] or "")]
        assert 0 < len(full) < 8


def test_a_service_without_resources_has_no_cgroup(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        pid = up.until("web", state="running")["pid"]
        with open(f"/proc/{pid}/cgroup") as of_service, open(f"/proc/{up.process.pid}/cgroup") as of_anchor:
            assert of_service.read() == of_anchor.read()
        assert up.client().service("web")["resources"] is None
        assert not left(up.run_dir)
        assert not list(up.run_dir.glob("services/web/*.cgroup"))
        kill(pid, signal.SIGTERM)


# ---- without rights


@contextlib.contextmanager
def unprivileged(services: str):
    """`holdfast up` of somebody who can make no cgroup: us, or a user of whom there are no other processes."""
    with tempfile.TemporaryDirectory(prefix="holdfast-test-") as name:
        where = pathlib.Path(name)
        (where / "home").mkdir()
        through: tuple[str, ...] = ()
        package = str(pathlib.Path(holdfast.__file__).parent.parent)
        if os.geteuid() == 0:
            require("setpriv")
            for path in (where, where / "home"):
                os.chown(path, STRANGER, STRANGER)
            through = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups")
            through += (_python_of_others(through, package),)
        elif V1 or V2:
            pytest.skip("we may make cgroups")
        yield Running(where, services, through=through, HOME=str(where / "home"), PYTHONPATH=package)


def _python_of_others(through: tuple[str, ...], package: str) -> str:
    """One that another user can run, and find holdfast with."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        # By way of env, which has no rights any more.
        command = [*through, "env", path, "-P", "-c", "import holdfast, holdfast.cli.up; holdfast.run(['true'])"]
        if subprocess.run(command, env={**os.environ, "PYTHONPATH": package}, capture_output=True).returncode == 0:
            return path
    return pytest.skip("no Python that another user can run")


def script(up: Running, name: str, text: str) -> None:
    """A program of the interpreter that everybody has, beside the file."""
    (up.directory / f"{name}.py").write_text(NOTIFIER + text)


def test_unprivileged_a_limit_is_refused():
    with unprivileged(SLEEPER + "resources = { pids_max = 20 }\n") as up:
        assert up.up().wait(LIMIT) == 1
        assert "service web: pids_max 20 cannot be had: " in up.output.read_text()
        assert not (up.directory / "log" / "web").exists()


def test_unprivileged_memory_is_limited_in_each_process():
    """What is guaranteed there: no process of it has more data than that; all of them together may."""
    service = '[service.hog]\ncommand = ["/usr/bin/env", "python3", "hog.py"]\nrestart = "never"\n' + BELT
    with unprivileged(service + 'resources = { memory_max = "64MiB", pids_max = 20, optional = true }\n') as up:
        script(up, "hog", "print(open('/proc/self/limits').read(), flush=True)\n" + FULL)
        with up:
            status = up.until("hog", state="exited")
            assert status["last_exit"]["code"] == 1  # it is refused, not killed
            log = (up.directory / "log" / "hog" / "current").read_text()
            assert "MemoryError" in log
            assert [line.split()[3:5] for line in log.splitlines() if line.startswith("Max data size")] == [
                [str(64 * MIB)] * 2
            ]


def test_unprivileged_a_fork_bomb_is_stopped():
    """What is guaranteed there: that all of it ends.  How much it may fork is the user's own limit (RLIMIT_NPROC)."""
    service = '[service.bomb]\ncommand = ["/usr/bin/env", "python3", "bomb.py"]\ngrace = "100ms"\n'
    if os.geteuid() == 0:
        service += "rlimits = { nproc = 60 }\n"  # of a user who has nothing else
    with unprivileged(service + "resources = { pids_max = 20, optional = true }\n") as up:
        script(up, "bomb", BOMB)
        os.mkfifo(up.directory / "gate")
        os.chmod(up.directory / "gate", 0o666)
        with up:
            gate = os.open(up.directory / "gate", os.O_RDWR | os.O_CLOEXEC)
            try:
                up.until("bomb", state="running")
                told = up.client().service("bomb")["resources"]
                assert told["limits"]["pids_max"]["held"] == "not held"
                os.write(gate, b"\n")
                wait_for(lambda: len(up.of_service("bomb")) > 20, what="the bomb does not grow")
                up.holdfast("stop", "bomb")
                assert up.of_service("bomb") == []
            finally:
                os.close(gate)
