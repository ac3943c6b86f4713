"""`holdfast up`: the run directory, its lock and sockets, the way into the anchor, and `--detach`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import uuid

import pytest
from helpers_anchor import LIMIT, STAND_IN, Journal, kill, kill_marked
from helpers_lib import NOBODY, program, root_only
from helpers_wire import marked, wait_until

from holdfast.config.load import load
from holdfast.config.model import decode

CONFIG = """
[supervisor]
run_dir = "run"
log_dir = "log"
state_dir = "state"
[service.one]
command = ["sleep", "99"]
[service.two]
command = "sleep 99"
"""
DRIVER = """
import sys
from holdfast.daemon import launch
launch.supervisor_command = lambda run_dir: [sys.executable, "-I", "-S", "-c", *sys.argv[1:4]]
from holdfast.cli.main import main
sys.exit(main(["holdfast", "up", *sys.argv[4:]]))
"""


class Site(Journal):
    """A directory with a configuration; `up` runs there with stand-ins for the supervisor."""

    def __init__(self, directory, config: str = CONFIG) -> None:
        super().__init__(directory)
        self.directory = str(directory)
        self.run_dir = os.path.join(self.directory, "run")
        self.log = os.path.join(self.directory, "log", "holdfast.log")
        with open(os.path.join(self.directory, "holdfast.toml"), "w") as file:
            file.write(config)
        self.mark = uuid.uuid4().hex
        self.processes: list[subprocess.Popen] = []

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        kill_marked(f"HF_TEST_MARK={self.mark}")
        for process in self.processes:
            process.communicate(timeout=LIMIT)
        os.close(self.journal)

    def start(self, *options: str, lives: str = "ready", env=None, **more) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        command = [sys.executable, "-c", DRIVER, STAND_IN, self.fifo, lives, *options]
        process = subprocess.Popen(
            command, cwd=self.directory, env={**environment, "HF_TEST_MARK": self.mark, **(env or {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def run(self, *options: str, **more) -> subprocess.CompletedProcess:
        process = self.start(*options, **more)
        out, errors = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def ask(self, step: str, run_dir: str | None = None) -> str:
        with socket.socket(socket.AF_UNIX) as sock, open_directory(run_dir or self.run_dir) as fd:
            sock.settimeout(LIMIT)
            sock.connect(f"/proc/self/fd/{fd}/control")
            sock.send(step.encode())
            return sock.recv(65536).decode()

    def lock(self) -> dict:
        with open(os.path.join(self.run_dir, "lock")) as file:
            return json.load(file)


@contextlib.contextmanager
def open_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def site(tmp_path):
    with Site(tmp_path) as it:
        yield it


def mode(*parts: str) -> int:
    return stat.S_IMODE(os.lstat(os.path.join(*parts)).st_mode)


# ---- the run directory


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_up_makes_the_place_and_becomes_the_anchor(site, umask):
    process = site.start(umask=umask)
    assert site.next("hello").words == f"hello {process.pid}"
    site.next("ready")
    assert mode(site.run_dir) == (0o711 if os.geteuid() == 0 else 0o700)
    modes = {name: mode(site.run_dir, name) for name in os.listdir(site.run_dir)}
    assert modes == {"lock": 0o600, "control": 0o600, "notify": 0o666, "attach": 0o600, "accepted.json": 0o600}
    config = os.path.join(site.directory, "holdfast.toml")
    assert site.lock() == {"anchor": process.pid, "config": config}
    with open(os.path.join(site.run_dir, "accepted.json"), "rb") as file:
        assert decode(file.read()) == load(config)
    assert "fds=[0, 1, 2, 3, 4, 5, 6, 8]" in site.ask("show")
    with open(f"/proc/{process.pid}/comm") as file:
        assert file.read() == "holdfast-anchor\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, open_directory(site.run_dir) as fd:
        sock.connect(f"/proc/self/fd/{fd}/notify")


def test_the_exit_code_is_the_supervisors(site):
    done = site.run(lives="say it is broken+exit 3")
    assert (done.returncode, done.stderr) == (3, "it is broken\n")
    assert site.run(lives="ready+farewell 9+exit 0").returncode == 9


def test_a_second_supervisor_is_refused_and_told_who_holds(site):
    process = site.start()
    site.started()
    before = os.stat(os.path.join(site.run_dir, "control")).st_ino
    done = site.run()
    assert done.returncode == 1
    config = re.escape(os.path.join(site.directory, "holdfast.toml"))
    holder = rf"pid {process.pid} since \d{{4}}-[\d-]+ [\d:]+, with {config}"
    assert re.fullmatch(rf"holdfast up: another supervisor holds {site.run_dir}: {holder}\n", done.stderr)
    # Nothing of the first one's was touched.
    assert os.stat(os.path.join(site.run_dir, "control")).st_ino == before
    assert site.lock()["anchor"] == process.pid
    assert site.ask("show") and site.silent()


def test_the_lock_decides_and_not_the_number_in_it(site):
    os.makedirs(site.run_dir, 0o700)
    with open(os.path.join(site.run_dir, "lock"), "w+") as file:
        os.chmod(file.fileno(), 0o600)
        file.write(json.dumps({"anchor": os.getpid(), "config": "/some/file"}))
        file.flush()
        process = site.start()
        site.started()
        assert site.lock()["anchor"] == process.pid
        kill_marked(f"HF_TEST_MARK={site.mark}")
        process.wait(LIMIT)
        file.truncate(0)
        fcntl.flock(file, fcntl.LOCK_EX)
        done = site.run()
        assert done.returncode == 1 and done.stderr.endswith("it has not said who it is yet\n")


def test_after_the_anchor_was_killed_the_next_one_takes_over_at_once(site):
    first = site.start()
    site.started()
    site.ask("linger")
    first.kill()  # and no waiting for its supervisor, which is about to follow it
    second = site.start()
    assert site.next("hello").words == f"hello {second.pid}"
    site.next("ready")
    assert site.ask("show")
    first.wait(LIMIT)


def test_the_lock_is_held_while_no_supervisor_lives(site):
    process = site.start(lives="ready,gate+ready")
    kill(site.started().pid)
    site.next("hello")
    assert f"pid {process.pid} since" in site.run().stderr
    site.open_gate()
    site.next("ready")


def test_stale_sockets_are_replaced_and_nothing_else_is(site):
    os.makedirs(site.run_dir, 0o700)
    control = os.path.join(site.run_dir, "control")
    with socket.socket(socket.AF_UNIX) as sock, open_directory(site.run_dir) as fd:
        sock.bind(f"/proc/self/fd/{fd}/control")
        site.start()
        site.started()
        assert site.ask("show")
    kill_marked(f"HF_TEST_MARK={site.mark}")
    wait_until(lambda: not marked(f"HF_TEST_MARK={site.mark}"))
    os.unlink(control)
    for in_the_way in (lambda: open(control, "w").close(), lambda: os.symlink("/dev/null", control)):
        in_the_way()
        done = site.run()
        assert done.returncode == 1 and f"{control} is in the way" in done.stderr
        os.unlink(control)


def test_a_path_that_is_too_long_for_a_socket(site):
    run_dir = os.path.join(site.directory, *["deep" * 10] * 4, "run")
    assert len(run_dir) > 150
    site.start("--run-dir", run_dir)
    site.started()
    assert site.ask("show", run_dir)
    assert sorted(os.listdir(run_dir)) == ["accepted.json", "attach", "control", "lock", "notify"]


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o702, 0o1777])
def test_a_run_directory_that_others_can_write_is_refused(site, bits):
    os.mkdir(site.run_dir)
    os.chmod(site.run_dir, bits)
    done = site.run()
    assert done.returncode == 1
    assert f"{site.run_dir} is writable by others (mode {bits:04o})" in done.stderr
    assert os.listdir(site.run_dir) == [] and mode(site.run_dir) == bits


def test_a_run_directory_that_is_a_link_or_a_file_is_refused(site):
    os.mkdir(site.directory + "/real")
    os.symlink("real", site.run_dir)
    assert f"{site.run_dir} is a symbolic link" in site.run().stderr
    assert os.listdir(site.directory + "/real") == []
    os.unlink(site.run_dir)
    with open(site.run_dir, "w"):
        pass
    done = site.run()
    assert done.returncode == 1 and f"cannot use the directory {site.run_dir}: " in done.stderr
    os.unlink(site.run_dir)
    os.mkdir(site.run_dir, 0o700)
    os.symlink("/dev/null", os.path.join(site.run_dir, "lock"))
    done = site.run()
    assert done.returncode == 1 and f"cannot lock {site.run_dir}: " in done.stderr


@root_only
def test_another_users_run_directory_is_refused(site):
    os.mkdir(site.run_dir, 0o700)
    os.chown(site.run_dir, NOBODY, NOBODY)
    done = site.run()
    assert done.returncode == 1
    assert re.search(rf"{site.run_dir} belongs to user \w+, and we are user root\n", done.stderr)


CONNECT = """
import socket, sys
for kind, name in ((socket.SOCK_STREAM, "control"), (socket.SOCK_DGRAM, "notify"), (socket.SOCK_SEQPACKET, "attach")):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        try:
            sock.connect(sys.argv[1] + "/" + name)
            print(name, "connected")
        except OSError as error:
            print(name, error.strerror)
"""


@root_only
def test_another_user_reaches_notify_alone():
    directory = tempfile.mkdtemp()  # pytest's own are closed to others
    try:
        os.chmod(directory, 0o711)
        with Site(directory) as site:
            site.start()
            site.started()
            done = subprocess.run(
                ["/usr/bin/env", "python3", "-I", "-S", "-c", CONNECT, site.run_dir],
                user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True,
            )  # fmt: skip
            assert done.stdout == "control Permission denied\nnotify connected\nattach Permission denied\n", done.stderr
    finally:
        shutil.rmtree(directory)


# ---- options


def test_a_bad_configuration_is_said_whole(site):
    with open(os.path.join(site.directory, "holdfast.toml"), "a") as file:
        file.write('[service.three]\ncommand = 3\nrestart = "perhaps"\n')
    done = site.run()
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 2 and "command" in done.stderr and "restart" in done.stderr
    assert not os.path.exists(site.run_dir)
    os.unlink(os.path.join(site.directory, "holdfast.toml"))
    done = site.run(env={"XDG_CONFIG_HOME": site.directory, "CONFIGURATION_DIRECTORY": site.directory})
    assert done.returncode == 78 and "holdfast init" in done.stderr


def test_usage(site):
    assert site.run("--nonsense").returncode == 2
    assert site.run("one").returncode == 2
    done = site.run("--help")
    assert done.returncode == 0 and "--detach" in done.stdout


@pytest.mark.parametrize("option", [True, False])
def test_the_run_directory_can_be_given(site, option):
    other, third = os.path.join(site.directory, "other"), os.path.join(site.directory, "third")
    config = os.path.join(site.directory, "holdfast.toml")
    options = ["-c", config, "--run-dir", "../other"] if option else []  # what was typed beats what lies around
    below = os.path.join(site.directory, "below")
    os.mkdir(below)
    site.directory = below
    site.start(*options, env={"HOLDFAST_RUN_DIR": third if option else other})
    site.started()
    with open(os.path.join(other, "accepted.json"), "rb") as file:
        assert decode(file.read()).supervisor.run_dir == other
    assert not os.path.exists(site.run_dir) and not os.path.exists(third)


# ---- --detach


def test_detached(site):
    """It returns when the supervisor says that it is up, not earlier; what it leaves behind is free of us."""
    process = site.start("--detach", lives="gate+ready+up+say written later")
    anchor = int(site.next("hello").words.split()[1])
    assert not select.select([process.stdout, process.stderr], [], [], 0)[0]
    site.open_gate()
    out, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, errors) == (0, "")
    assert out == (
        f"holdfast is up with 2 services of {site.directory}/holdfast.toml\n"
        f"  anchor: pid {anchor}; run directory: {site.run_dir}; log: {site.log}\n"
    )
    supervisor = site.next("ready").pid
    assert site.lock()["anchor"] == anchor
    for pid in (anchor, supervisor):
        with open(f"/proc/{pid}/stat") as file:
            _, _, _, session, terminal = file.read().rpartition(")")[2].split()[:5]
        assert (int(session), int(terminal)) == (anchor, 0)
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]
        assert opened == ["/dev/null", site.log, site.log]
    assert "fds=[0, 1, 2, 3, 4, 5, 6, 7, 8]" in site.ask("show")
    wait_until(lambda: open_text(site.log) == "written later\n")
    assert mode(site.log) == 0o600 and mode(os.path.dirname(site.log)) == 0o700
    kill(supervisor)
    site.next("hello")
    site.open_gate()
    assert site.next("ready").restarts == 1  # (it fails at "up": its descriptor 7 was for the first alone)
    assert "has ended unexpectedly (signal KILL)" in open_text(site.log)


def open_text(path: str) -> str:
    with open(path) as file:
        return file.read()


@pytest.mark.parametrize(
    ("lives", "code"), [("say sorry+exit 4", 4), ("say sorry+ready+farewell 6+exit 0", 6)]
)
def test_detached_and_failed(site, lives, code):
    """What it says is shown here, and only what it says now; its exit code is ours."""
    os.mkdir(os.path.dirname(site.log))
    with open(site.log, "w") as file:
        file.write("of an earlier one\n")
    done = site.run("--detach", lives=lives)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"sorry\nholdfast up: the supervisor did not come up; what it said is also in {site.log}\n"
    assert not marked(f"HF_TEST_MARK={site.mark}")


def test_detached_and_still_trying(site):
    """The supervisor dies between READY and up: its anchor goes on, and the caller is not kept waiting."""
    done = site.run("--detach", lives="ready+die,ready")
    assert done.returncode == 1 and "did not come up" in done.stderr
    site.started()
    assert site.started().restarts == 1
    assert site.ask("show")


def test_detached_refusals(site):
    site.start()
    site.started()
    done = site.run("--detach")
    assert done.returncode == 1 and "another supervisor holds" in done.stderr
    shutil.rmtree(os.path.dirname(site.log))
    os.symlink("run", os.path.dirname(site.log))
    done = site.run("--detach")
    assert done.returncode == 1 and "is a symbolic link" in done.stderr


# ---- descriptors


def test_the_descriptor_limit_is_raised_and_what_it_was_is_known():
    out = program(
        """
        import resource
        from holdfast.daemon.launch import raise_descriptor_limit
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (123, hard))
        assert raise_descriptor_limit() == (123, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert raise_descriptor_limit() is None
        print("done")
        """
    )
    assert out == "done\n"
