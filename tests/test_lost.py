"""Trees that have lost their keeper, whatever their programs did to hide: found, ended, started once anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys

import pytest
from helpers_supervisor import LIMIT, Running, keeper_of, kill, log_of
from helpers_wait import all_ended, wait_for

from holdfast.daemon.lost import Lost, LostTrees
from holdfast.process.held import HeldTree

# A program that has written over its own environment, as some do for a title in `ps`, and says who it is.
HIDES = """
import ctypes, os, signal, sys
def hide():
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    ctypes.memset(start, 0, end - start)
def wait_for_ever():
    os.write(1, b"%d\\n" % os.getpid())
    while True:
        signal.pause()
def double_fork(then):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            then()
        os._exit(0)
    os.wait()
hide()
"""

SHAPES = {
    "main": "wait_for_ever()",
    "child": "os.fork()\nwait_for_ever()",
    "daemon": "double_fork(wait_for_ever)\nwait_for_ever()",
    "setsid": "if os.fork() == 0:\n    os.setsid()\nwait_for_ever()",
    "deep": "if os.fork() == 0:\n    os.setsid()\n    double_fork(wait_for_ever)\nwait_for_ever()",
}


def service(tmp_path, shape: str, name: str = "web") -> str:
    """A service whose processes (their numbers go into its log) cannot be told by their environment."""
    path = tmp_path / f"{shape}.py"
    path.write_text(HIDES + SHAPES[shape])
    return f"[service.{name}]\ncommand = {json.dumps([sys.executable, '-S', str(path)])}\n"


def said(up: Running, name: str = "web") -> list[int]:
    return [int(word) for word in log_of(up, name).splitlines() if word.isdecimal()]


def written(up: Running, number: int = 1, name: str = "web") -> dict[int, str]:
    try:
        lines = (up.run_dir / "services" / name / f"{number}.members").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {int(line.split()[1]): line.split()[0] for line in lines}


def hold(pids) -> list[int]:
    return [os.pidfd_open(pid) for pid in pids]


def ended(fds) -> bool:
    return all(select.select([fd], [], [], 0)[0] for fd in fds)


def fill_queue(address) -> None:
    """Of a keeper that is frozen; who waits there has gone away by then, and counts all the same."""
    with contextlib.ExitStack() as queue, pytest.raises(BlockingIOError):
        for _ in range(100):
            waiting = queue.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            waiting.setblocking(False)
            waiting.connect(str(address))


def one_copy_follows(up: Running, fds: list[int], count: int) -> None:
    """Those of the first incarnation have ended before the second has begun, and there is one of that."""
    try:
        up.wait_for_socket()
        up.until("web", incarnation=2, ready=True)
        assert ended(fds), "the second copy runs beside the first"
        wait_for(lambda: len(said(up)) == 2 * count, what=lambda: log_of(up, "web"))
    finally:
        for fd in fds:
            os.close(fd)


def end_anchor_and_supervisor(up: Running, *first: int) -> None:
    supervisor = up.client().supervisor()["pid"]
    kill(supervisor, signal.SIGSTOP)  # nobody sees what goes first
    pids = [*first, up.process.pid, supervisor]
    fds = hold(pids)
    for fd in fds:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    up.process.wait()
    for fd in fds:
        assert select.select([fd], [], [], LIMIT)[0]
        os.close(fd)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_keeper_is_killed_under_a_living_anchor(tmp_path, shape):
    count = {"main": 1, "deep": 3}.get(shape, 2)
    with Running(tmp_path, service(tmp_path, shape)) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: len(said(up)) == count, what=lambda: log_of(up, "web"))
        fds = hold(said(up))
        kill(keeper_of(pid))
        one_copy_follows(up, fds, count)
        assert "keeper lost" in up.client().service("web")["last_exit"]["cause"]


@pytest.mark.parametrize("with_anchor", [False, True], ids=["supervisor", "anchor"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_keeper_is_killed_and_who_held_it(tmp_path, shape, with_anchor):
    count = {"main": 1, "deep": 3}.get(shape, 2)
    with Running(tmp_path, service(tmp_path, shape)) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: len(said(up)) == count, what=lambda: log_of(up, "web"))
        adopted = shape in ("daemon", "deep")
        wait_for(lambda: sorted(written(up).values()) == ["adopted"] * adopted + ["keeper", "main"])
        fds = hold(said(up))
        keeper = keeper_of(pid)
        if with_anchor:
            end_anchor_and_supervisor(up, keeper)
            up.up()
        else:
            supervisor = up.client().supervisor()["pid"]
            kill(supervisor, signal.SIGSTOP)
            kill(keeper)
            kill(supervisor)
            assert all_ended([keeper, supervisor])
        one_copy_follows(up, fds, count)


def test_the_main_process_has_ended_and_its_daemon_is_found_by_what_was_written(tmp_path):
    """No session, no marks, no parent that says whose it is."""
    (tmp_path / "orphan.py").write_text(HIDES + "double_fork(wait_for_ever)\nsignal.pause()")
    command = json.dumps([sys.executable, "-S", str(tmp_path / "orphan.py")])
    with Running(tmp_path, f"[service.web]\ncommand = {command}\ngrace = '60s'\n") as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: "adopted" in written(up).values())
        fds = hold([*said(up), pid])
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor, signal.SIGSTOP)
        keeper = keeper_of(pid)
        kill(keeper, signal.SIGSTOP)  # it does not see the end of main, and stops nothing
        kill(pid)
        kill(keeper)
        end_anchor_and_supervisor_frozen(up, supervisor)
        up.up()
        one_copy_follows(up, fds, 1)


def end_anchor_and_supervisor_frozen(up: Running, supervisor: int) -> None:
    fd = os.pidfd_open(supervisor)
    kill(up.process.pid)
    up.process.wait()
    assert select.select([fd], [], [], LIMIT)[0]
    os.close(fd)


def test_many_keepers_are_lost_at_once(tmp_path):
    """They share their looks: the end of 120 trees is not 120 looks at all processes of the machine."""
    names = [f"s{i}" for i in range(120)]
    services = "".join(f'[service.{name}]\ncommand = ["sh", "-c", "setsid sleep 1000 & wait"]\n' for name in names)
    with Running(tmp_path, "[supervisor.start_budget]\nat_once = 1000\nper_second = 1000\n" + services) as up:
        before = {}
        for name in names:
            before[name] = up.until(name, ready=True)["pid"]
        fds = hold(before.values())
        for pid in before.values():
            kill(keeper_of(pid))
        for name in names:
            assert up.until(name, incarnation=2, ready=True)["restarts"] == 1
        assert ended(fds)
        for fd in fds:
            os.close(fd)
        wait_for(lambda: len([c for c in up.marked().values() if c[:1] == ["sleep"]]) == 120, LIMIT)


def test_a_holdfast_inside_a_service_is_ended_with_its_own_services(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "holdfast.toml").write_text(
        '[supervisor]\nrun_dir = "run"\nlog_dir = "log"\nstate_dir = "state"\n'
        '[service.x]\ncommand = ["sleep", "1000"]\n[service.y]\ncommand = ["sleep", "1000"]\n'
    )
    holdfast = os.path.join(os.path.dirname(sys.executable), "holdfast")
    command = json.dumps([holdfast, "up", "-c", str(inner / "holdfast.toml")])
    with Running(tmp_path, f"[service.web]\ncommand = {command}\n[service.other]\ncommand = ['sleep', '999']\n") as up:
        pid = up.until("web", ready=True)["pid"]
        other = up.until("other", ready=True)["pid"]
        wait_for(lambda: len(up.of_service("x")) == len(up.of_service("y")) == 1, LIMIT)
        first = [pid, *up.of_service("x"), *up.of_service("y")]
        first += [keeper_of(each) for each in first[1:]]
        fds = hold(first)
        kill(keeper_of(pid))
        up.until("web", incarnation=2, ready=True)
        assert ended(fds)
        wait_for(lambda: len(up.of_service("x")) == len(up.of_service("y")) == 1, LIMIT)
        assert up.until("other", ready=True)["pid"] == other
        for fd in fds:
            os.close(fd)


def test_a_frozen_anchor_is_not_needed_to_find_it(tmp_path):
    with Running(tmp_path, service(tmp_path, "daemon")) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: "adopted" in written(up).values())
        fds = hold(said(up))
        kill(up.process.pid, signal.SIGSTOP)
        try:
            kill(keeper_of(pid))
            one_copy_follows(up, fds, 2)
        finally:
            kill(up.process.pid, signal.SIGCONT)


def test_a_socket_that_was_removed_makes_no_second_copy(tmp_path):
    """Nobody can reach its keeper any more: so it is ended before another one is started."""
    with Running(tmp_path, service(tmp_path, "main")) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: said(up) == [pid] and len(written(up)) == 2)
        fds = hold([pid, keeper_of(pid)])
        end_anchor_and_supervisor(up)
        (up.run_dir / "services" / "web" / "1.sock").unlink()
        up.up()
        one_copy_follows(up, fds, 1)


@pytest.mark.parametrize("state", ["gone", "frozen"])
def test_an_earlier_incarnation_whose_keeper_does_not_hear_us_is_ended_first(tmp_path, state):
    """The records have moved on (they were lost, say), its keeper is gone or deaf, and its program shows no marks."""
    with Running(tmp_path, service(tmp_path, "main")) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: said(up) == [pid] and len(written(up)) == 2)
        fds = hold([pid])
        keeper = keeper_of(pid)
        if state == "gone":
            end_anchor_and_supervisor(up, keeper)
        else:
            kill(keeper, signal.SIGSTOP)
            end_anchor_and_supervisor(up)
            fill_queue(up.run_dir / "services" / "web" / "1.sock")
        record = up.run_dir / "services" / "web" / "record"
        text = json.loads(record.read_text())
        record.write_text(json.dumps({**text, "incarnation": 5, "live": False}))
        up.up()
        up.wait_for_socket()
        up.until("web", incarnation=6, ready=True)
        assert ended(fds)
        os.close(fds[0])


def test_a_stop_does_not_wait_for_a_keeper_that_was_frozen_before_we_came(tmp_path):
    with Running(tmp_path, service(tmp_path, "main") + 'grace = "100ms"\n') as up:
        pid = up.until("web", ready=True)["pid"]
        keeper = keeper_of(pid)
        wait_for(lambda: len(written(up)) == 2)
        kill(keeper, signal.SIGSTOP)
        end_anchor_and_supervisor(up)
        up.up()
        up.wait_for_socket()
        up.until("web", state="running")
        fds = hold([pid])
        result = up.client().stop("web", wait=False)
        assert result[0]["service"]["state"] == "stopping"
        up.until("web", state="stopped")
        assert ended(fds)
        os.close(fds[0])


def test_a_keeper_that_hangs_up_and_lives_is_not_lost(tmp_path):
    """It was frozen while we connected, and has another owner when it goes on."""
    with Running(tmp_path, service(tmp_path, "main")) as up:
        pid = up.until("web", ready=True)["pid"]
        keeper = keeper_of(pid)
        end_anchor_and_supervisor(up)
        other = HeldTree.attach(str(up.run_dir / "services" / "web" / "1.sock"))
        try:
            wait_for(other.events)
            kill(keeper, signal.SIGSTOP)
            up.up()
            wait_for(lambda: "does not answer" in up.output.read_text(), LIMIT)
            kill(keeper, signal.SIGCONT)
            up.wait_for_socket()
            assert up.client().service("web")["state"] == "running"
        finally:
            other.close()
        wait_for(lambda: up.client().service("web")["pid"] == pid, LIMIT)
        assert up.client().service("web")["incarnation"] == 1
        assert keeper_of(pid) == keeper
        assert said(up) == [pid]


def test_what_is_written_of_a_tree_goes_with_it(tmp_path):
    with Running(tmp_path, service(tmp_path, "daemon")) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: "adopted" in written(up).values())
        who = written(up)
        assert who[pid] == "main"
        assert who[keeper_of(pid)] == "keeper"
        assert set(who) == {keeper_of(pid), *said(up)}
        supervisor = up.client().supervisor()["pid"]
        kill(supervisor)
        wait_for(lambda: all_ended([supervisor]) and up.client().service("web")["pid"] == pid)
        assert written(up) == who
        up.holdfast("stop", "web")
        assert not list((up.run_dir / "services" / "web").glob("*.members"))


def test_who_is_missed_by_one_look_is_found_by_the_next():
    """A daemon forks away between the anchor's answer and the look at those whom it names."""
    child = subprocess.Popen(["sleep", "600"], env={})
    answers = [set(), {child.pid}]  # what an anchor would say: we stand for it, and the child is an orphan of ours

    async def ask() -> set[int]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def end() -> int:
        trees = LostTrees(set)
        trees.anchor.pid = os.getpid()
        trees._ask = ask
        try:
            return await trees.end("web", 1, Lost({"HOLDFAST_SERVICE": "web"}, below_anchor=True))
        finally:
            trees.close()

    try:
        assert asyncio.run(end()) == 0
        assert child.poll() == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
