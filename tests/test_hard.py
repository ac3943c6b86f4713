"""The supervisor where two things go wrong at once, or somebody means it harm."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct

import pytest
from conftest import require
from helpers_adopt import silent_keeper
from helpers_supervisor import LIMIT, PLACES, Running, keeper_of, kill, log_of
from helpers_trees import wait_for

from holdfast.process.held import HeldTree

SLEEPER = '[service.web]\ncommand = ["sleep", "1000"]\n'


def start_of_next(up: Running) -> int:
    """The supervisor that is started now, from the moment on when it hears signals."""
    found: list[int] = []

    def hears() -> bool:
        for pid, command in up.marked().items():
            if command[2:4] == ["-m", "holdfast.cli.supervise"]:  # not the anchor, which says that, too
                try:
                    with open(f"/proc/{pid}/status") as file:
                        fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
                except OSError:
                    continue
                if int(fields["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1 and not int(fields["SigBlk"], 16):
                    found[:] = [pid]
                    return True
        return False

    wait_for(hears)
    return found[0]


def kill_all_but_the_services(up: Running) -> None:
    assert up.process
    supervisor = os.pidfd_open(up.client().supervisor()["pid"])
    kill(up.process.pid)
    up.process.wait()
    assert select.select([supervisor], [], [], LIMIT)[0]
    os.close(supervisor)


def test_ctrl_c_while_it_takes_over_stops_what_it_takes_over(tmp_path):
    """A key of the terminal reaches the supervisor itself, and does not wait in the anchor."""
    with Running(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        kill_all_but_the_services(up)
        with silent_keeper(up):  # start-up waits for its answer for a while
            process = up.up()
            kill(start_of_next(up), signal.SIGINT)
            wait_for(lambda: up.of_service("web") == [])
        assert process.wait(30) == 0
        assert up.of_service("web") == []


def test_a_stop_that_its_keeper_could_not_hear_is_made_up_for(tmp_path):
    with Running(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        kill_all_but_the_services(up)
        other = HeldTree.attach(str(up.run_dir / "services" / "web" / "1.sock"))
        try:
            wait_for(lambda: other.events())
            up.up()
            up.wait_for_socket()
            assert up.client().stop("web", wait=False)[0]["service"]["state"] == "stopping"
        finally:
            other.close()
        assert up.until("web", state="stopped")["tree"] is None
        assert up.of_service("web") == []


def test_a_service_that_is_not_configured_any_more_is_stopped_on_request(tmp_path):
    """Its name is forgotten in the end, and still the one who waits gets an answer."""
    script = "trap '' TERM; echo ready; sleep 1000 & wait; wait"
    services = f'{SLEEPER}[service.old]\ncommand = {json.dumps(["sh", "-c", script])}\ngrace = "2s"\n'
    with Running(tmp_path, services) as up:
        up.until("old", ready=True)
        wait_for(lambda: "ready" in log_of(up, "old"))
        up.stop(signal.SIGQUIT)
        up.file.write_text(PLACES + SLEEPER)
        up.up()
        up.wait_for_socket()
        result = up.client().stop("old", "web", timeout=LIMIT)
        assert {r["name"]: r["outcome"] for r in result} == {"old": "done", "web": "done"}
        assert up.of_service("old") == []


def test_what_outlived_its_lost_keeper_is_awaited(tmp_path):
    """A supervisor that may not kill another user's process: nothing is started beside it, until it has ended."""
    if os.geteuid():
        pytest.skip("needs root")
    require("setpriv")
    tmp_path.chmod(0o755)
    may_not_kill = ("setpriv", "--bounding-set", "-kill")
    with Running(tmp_path, SLEEPER + 'user = "nobody"\n', through=may_not_kill) as up:
        first = up.until("web", ready=True)
        kill(keeper_of(first["pid"]))
        stuck = up.until("web", state="fatal")
        assert "outlived KILL" in stuck["reason"]
        assert up.of_service("web") == [first["pid"]]
        kill(first["pid"])
        second = up.until("web", ready=True)
        assert second["incarnation"] == 2
        up.holdfast("stop", "web", "--no-wait")
        kill(second["pid"])  # nobody else can
        up.until("web", state="stopped")


def notify_as_a_stranger(up: Running, text: bytes, fds: tuple[int, ...] = ()) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(str(up.run_dir / "notify"))
        socket.send_fds(sock, [text], fds)


def test_a_descriptor_that_will_not_be_closed_holds_nobody_up(tmp_path):
    with Running(tmp_path, SLEEPER) as up, socket.create_server(("127.0.0.1", 0)) as server:
        up.until("web", ready=True)
        with socket.create_connection(server.getsockname()) as lingers, server.accept()[0]:
            lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 300))
            lingers.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:  # what is not acknowledged keeps its last close from returning
                    lingers.send(bytes(65536))
            supervisor = up.client().supervisor()["pid"]
            kill(supervisor, signal.SIGSTOP)
            notify_as_a_stranger(up, b"BARRIER=1", (lingers.fileno(),))
            os.close(lingers.detach())  # what lies in the message is the last one now
            kill(supervisor, signal.SIGCONT)
            with up.client() as client:
                client.timeout = LIMIT
                assert client.supervisor()["state"] == "running"


def test_what_another_supervisors_keeper_has_lost_is_none_of_ours(tmp_path):
    """The same name, the same number, and nobody above it any more."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with Running(tmp_path / "one", SLEEPER) as one, Running(tmp_path / "other", SLEEPER) as other:
        theirs = other.until("web", ready=True)["pid"]
        kill_all_but_the_services(other)
        kill(keeper_of(theirs))
        kill(keeper_of(one.until("web", ready=True)["pid"]))
        one.until("web", incarnation=2, ready=True)
        assert other.of_service("web") == [theirs]
        other.up()
        other.wait_for_socket()
        other.until("web", incarnation=2, ready=True)
        assert theirs not in other.of_service("web")


def test_out_of_descriptors_it_can_still_be_asked_and_says_little(tmp_path):
    require("prlimit")
    services = "".join(f'[service.s{i}]\ncommand = ["sleep", "1000"]\nstart_limit = 2\n' for i in range(40))
    with Running(tmp_path, services, through=("prlimit", "--nofile=128:128")) as up:
        failed = up.until("s39", state="fatal")
        assert "Too many open files" in failed["reason"]
        first = up.until("s0", ready=True)
        with contextlib.ExitStack() as clients:
            for _ in range(128):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(up.run_dir / "control"))
            kill(first["pid"])
            wait_for(lambda: up.of_service("s0") not in ([], [first["pid"]]))
        up.wait_for_socket()  # it may be turning away the last of them still
        assert up.until("s0", ready=True)["incarnation"] == 2
        up.holdfast("stop", "s?")
        assert up.client().start("s39")[0]["outcome"] == "done"
        assert up.output.read_text().count("accept() out of") < 20


def test_a_start_that_was_on_record_and_never_came_to_be_is_made_again(tmp_path):
    """The supervisor was killed between the two: no policy may say that this was a life."""
    with Running(tmp_path, SLEEPER + 'restart = "never"\n') as up:
        up.until("web", ready=True)
        record = up.run_dir / "services" / "web" / "record"
        as_it_was_started = record.read_bytes()
        up.holdfast("stop", "web")
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        record.write_bytes(as_it_was_started)
        kill(supervisor)
        wait_for(lambda: up.client().supervisor()["pid"] != supervisor)
        up.until("web", ready=True, incarnation=2)  # until nothing was found of it, the first is what the record says
        assert len(up.of_service("web")) == 1


def test_a_signal_that_one_keeper_cannot_hear_reaches_the_others(tmp_path):
    other = '[service.other]\ncommand = ["sh", "-c", "trap \'echo heard\' USR1; while :; do sleep 0.1; done"]\n'
    with Running(tmp_path, SLEEPER + "requires = [\"other\"]\n" + other) as up:
        keeper = keeper_of(up.until("web", ready=True)["pid"])
        kill(keeper, signal.SIGSTOP)
        try:
            with up.client() as client:
                for _ in range(5000):  # until its socket is full
                    result = client.signal("web", signal="URG", scope="group")[0]
                    if result["outcome"] != "done":
                        break
                assert (result["outcome"], result["message"]) == ("refused", "its keeper does not answer")
                result = client.signal("web", "other", signal="USR1", scope="group")
            assert {r["name"]: r["outcome"] for r in result} == {"web": "refused", "other": "done"}
        finally:
            kill(keeper, signal.SIGCONT)
        wait_for(lambda: "heard" in log_of(up, "other"))
