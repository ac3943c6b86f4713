"""`holdfast attach`, sat at by a person in a terminal, or fed by a program; and the way to the keeper that it takes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import termios

import pytest
from conftest import require
from helpers_client import HAS_INPUT, HAS_TERMINAL, Client
from helpers_control import as_nobody
from helpers_supervisor import HOLDFAST, LIMIT, Running, keeper_of, kill, log_of
from helpers_terminal import Terminal
from helpers_wait import wait_for

from holdfast.daemon import terminals

SERVICES = """
[service.shell]
command = ["sh", "-i"]
pty = true
stop_signal = "HUP"
env = { PS1 = "srv> ", ENV = "" }

[service.pipe]
command = "while read x; do echo said $x; done; exit 5"
shell = true
stdin = "pipe"
restart = "never"

[service.silent]
command = ["sh", "-c", "echo one; echo two; exec sleep 1000"]

[service.done]
type = "oneshot"
command = ["true"]
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with Running(tmp_path_factory.mktemp("attach"), SERVICES) as running:
        for name in ("shell", "pipe", "silent"):
            running.until(name, state="running")
        wait_for(lambda: b"srv> " in (running.directory / "log/shell/current").read_bytes())
        yield running


@pytest.fixture(autouse=True)
def a_new_service_for_each_test(request, up):
    yield
    for name in ("pipe", "shell"):
        if up.client().service(name)["state"] != "running":
            up.holdfast("start", name)


def sit(up: Running, name: str) -> Terminal:
    """A person who has typed `holdfast attach`."""
    terminal = Terminal([HOLDFAST, "attach", name], expect="", HOLDFAST_RUN_DIR=str(up.run_dir))
    try:
        terminal.expect(rf"\[holdfast: attached to {name}; .*Ctrl-\] leaves\]")
    except BaseException as error:
        terminal.__exit__(type(error))
        raise
    return terminal


def run(up: Running, name: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [HOLDFAST, "attach", name], input=typed, capture_output=True, timeout=LIMIT,
        env={**up.environment, "HOLDFAST_RUN_DIR": str(up.run_dir)},
    )  # fmt: skip


def connect(up: Running, request: bytes) -> Client:
    """A client without the command."""
    client = Client(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    try:
        client.sock.connect(str(up.run_dir / "attach"))
        with contextlib.suppress(BrokenPipeError):  # refused already
            client.sock.send(request)
    except BaseException:
        client.close()
        raise
    return client


def refusal(client: Client) -> str:
    client.sock.settimeout(LIMIT)
    try:
        packet = client.sock.recv(4096)
    except ConnectionResetError:  # it was refused before it was heard; told once
        packet = client.sock.recv(4096)
    code: str = json.loads(packet)["error"]["code"]
    return code


# ---- a person at a terminal


def test_leaving_and_coming_back(up):
    pid = up.client().service("shell")["pid"]
    with sit(up, "shell") as t:
        before = t.modes()
        t.expect("srv> ")  # of the log
        t.send("mark=42; echo up''stairs\r")
        t.expect("upstairs\r\n")
        t.send("\x1d")
        t.expect(r"\[holdfast: left shell, which goes on\]")
        assert t.process.wait(LIMIT) == 0
        assert before[3] & termios.ECHO == 0 and t.modes()[3] & termios.ICANON  # as we had made it
    with sit(up, "shell") as t:
        t.expect("upstairs\r\n")  # what was before is seen again
        t.send("echo =$mark=$$=\r")
        t.expect(f"=42={pid}=")
        t.send("\x1d")
        assert t.process.wait(LIMIT) == 0
    assert up.client().service("shell")["pid"] == pid


def test_keys_go_to_the_service_and_its_end_is_told(up):
    with sit(up, "shell") as t:
        t.send("trap 'echo got''ten' INT; cat; echo back''again\r")
        t.expect("cat;")
        t.send("typed\r")
        t.expect("typed\r\ntyped\r\n")  # echo, and cat
        t.send("\x03")  # no signal to us
        t.expect("gotten")
        t.send("exit 7\r")
        t.expect(r"\[holdfast: shell has exited with code 7\]")
        assert t.process.wait(LIMIT) == 7
    up.until("shell", lambda status: status["restarts"] > 0, state="running")
    with sit(up, "shell") as t:
        t.expect("exited with code 7\r\n--- holdfast: shell@")
        t.send("kill -9 $$\r")
        t.expect(r"\[holdfast: shell was killed by signal 9\]")
        assert t.process.wait(LIMIT) == 137


def test_the_size_of_the_window(up):
    with sit(up, "shell") as t:
        for rows, columns in ((31, 101), (32, 102)):
            termios.tcsetwinsize(t.master, (rows, columns))  # the kernel sends SIGWINCH
            t.send("stty size\r")
            t.expect(rf"{rows} {columns}\r\n")
        t.send("\x1d")
        assert t.process.wait(LIMIT) == 0


def test_a_supervisor_that_is_killed_is_not_noticed(up):
    with sit(up, "shell") as t:
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor)
        t.send("echo still''here\r")
        t.expect("stillhere\r\n")
        up.wait_for_socket()
        assert up.client().supervisor()["pid"] != supervisor
        t.send("echo and''now\r")
        t.expect("andnow\r\n")
        with sit(up, "shell") as other:  # the next one passes clients on, too
            other.expect("andnow")
            other.send("echo to''both\r")
            t.expect("toboth\r\n")
            other.send("\x1d")
            assert other.process.wait(LIMIT) == 0
        t.send("\x1d")
        assert t.process.wait(LIMIT) == 0
    assert "stillhere\nsrv> " in log_of(up, "shell")


def test_lines_for_a_pipe_are_made_by_our_own_terminal(up):
    with sit(up, "pipe") as t:
        t.send("one\n")
        t.expect("said one\n")
        t.send("not sent\x1d")  # leaves in the middle of a line; what was typed before the key goes out
        assert t.process.wait(LIMIT) == 0
    with sit(up, "pipe") as t:
        t.send("\n")
        t.expect("said not sent\n")
        t.send("\x04")  # the end of our input leaves
        assert t.process.wait(LIMIT) == 0
    assert up.client().service("pipe")["state"] == "running"


def test_a_terminal_that_goes_away(up):
    with sit(up, "shell") as t:
        t.hang_up()
        assert t.process.wait(LIMIT) in (0, 128 + signal.SIGHUP)  # whichever it sees first, the end or HUP


def test_a_signal_puts_the_modes_back(up):
    with sit(up, "shell") as t:
        t.expect("srv> ")
        assert not t.modes()[3] & termios.ICANON
        t.process.terminate()
        assert t.process.wait(LIMIT) == 128 + signal.SIGTERM
        assert t.modes()[3] & termios.ICANON


# ---- programs


def test_a_program_types(up):
    done = run(up, "pipe", b"from a program\n" * 1000)
    assert done.returncode == 0, done
    assert done.stderr.endswith(b"[holdfast: left pipe, which goes on]\n")
    wait_for(lambda: log_of(up, "pipe").count("said from a program\n") == 1000)


def test_output_alone_says_so(up):
    wait_for(lambda: "two\n" in log_of(up, "silent"))
    done = run(up, "silent", b"to nobody\n")
    assert done.returncode == 0
    assert done.stdout.endswith(b"one\ntwo\n")
    assert b'it takes no input: set pty = true, or stdin = "pipe"' in done.stderr


@pytest.mark.parametrize(
    ("name", "says"), [("shel", "did you mean shell?"), ("done", "done does not run"), ("*", "no service")]
)
def test_names_that_do_not_do(up, name, says):
    done = run(up, name)
    assert done.returncode == 1
    assert says in done.stderr.decode()


def test_nobody_there(tmp_path):
    done = subprocess.run([HOLDFAST, "attach", "--run-dir", str(tmp_path), "web"], capture_output=True, text=True)
    assert done.returncode == 69


# ---- the socket


def test_a_client_of_its_own(up):
    with connect(up, b'{"name": "shell", "of a later version": 1}') as client:
        name, attached = client.next()
        assert (name, attached["flags"]) == ("ATTACHED", HAS_TERMINAL | HAS_INPUT)
        assert attached["pid"] == up.client().service("shell")["pid"]
        client.type(b"echo cli''ent\r")
        client.until(b"client\r\n")
        client.leave()
        client.rest()
    said = rf"shell@\d+ attached: a client \(pid {os.getpid()}, uid {os.getuid()}\)"
    wait_for(lambda: re.search(said, up.output.read_text()))


@pytest.mark.parametrize(
    ("request_", "code"),
    [(b"{", "bad_request"), (b"\xff", "bad_request"), (b'{"name": 3}', "bad_request"),
     (b'{"name": "x"}', "unknown_service"), (b'{"name": "done"}', "refused"),
     (b'{"name": "' + b"x" * 5000 + b'"}', "bad_request")],
)  # fmt: skip
def test_requests_that_are_refused(up, request_, code):
    with connect(up, request_) as client:
        assert refusal(client) == code
        assert client.sock.recv(10) == b""


def test_many_who_say_nothing(up):
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(terminals.CLIENTS_MAX)]
    try:
        for sock in waiting:
            sock.connect(str(up.run_dir / "attach"))
        with connect(up, b'{"name": "shell"}') as client:
            assert refusal(client) == "busy"
        waiting[0].close()
        wait_for(lambda: _is_attached(up))  # one has gone: there is a place
        waiting[1].settimeout(LIMIT)
        assert waiting[1].recv(10) == b""  # after REQUEST_LIMIT
    finally:
        for sock in waiting:
            sock.close()


def _is_attached(up: Running) -> bool:
    with connect(up, b'{"name": "shell"}') as client:
        client.sock.settimeout(LIMIT)
        try:
            return client.sock.recv(65536)[:1] != b"{"
        except ConnectionResetError:
            return False


def test_another_user_may_not(up):
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    path = str(up.run_dir / "attach")
    text = "import socket, sys\nsocket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])\n"
    done = as_nobody(["-c", text, path])
    assert "PermissionError" in done.stderr


# ---- what lies around it


def test_a_frozen_keeper_is_said(up):
    keeper = keeper_of(up.client().service("silent")["pid"])
    kill(keeper, signal.SIGSTOP)
    try:
        with connect(up, b'{"name": "silent"}') as client:
            up.holdfast("status")  # the supervisor has gone on
            kill(keeper, signal.SIGCONT)
            assert client.next()[0] == "ATTACHED"
    finally:
        kill(keeper, signal.SIGCONT)


def private_kib(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty:"))


def test_what_clients_need_of_the_keeper_is_given_back(up):
    require("musl-gcc")  # another C library has its own ideas
    keeper = keeper_of(up.client().service("shell")["pid"])
    with connect(up, b'{"name": "shell"}') as client:
        client.next()
        client.type(b"seq 10000\r")
        wait_for(lambda: "\n10000\nsrv> " in log_of(up, "shell"))
    seen: list[int] = []
    wait_for(lambda: seen.append(private_kib(keeper)) or seen[-1] <= 20, what=lambda: seen[-3:])


def test_after_an_upgrade(up):
    with connect(up, b'{"name": "shell"}') as client:
        assert client.next()[0] == "ATTACHED"
        up.holdfast("upgrade")
        client.type(b"echo through''out\r")
        client.until(b"throughout\r\n")
    wait_for(lambda: "in place of version" in up.output.read_text())
    up.wait_for_socket()
    with connect(up, b'{"name": "shell"}') as client:
        assert client.next()[0] == "ATTACHED"
