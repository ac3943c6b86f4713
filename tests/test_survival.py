"""The supervisor outlives what it reads and what it lacks: hostile files, no descriptors, no disk."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal

import pytest
from helpers_supervisor import Running, keeper_of, kill
from helpers_wait import wait_for
from test_lost import ended, hold, one_copy_follows, said, service, written

from holdfast.client import ClientError
from holdfast.daemon.chronicle import _stop
from holdfast.daemon.members import encode, identify
from holdfast.process.status import Member, StopReport


def members_of(up: Running, name: str, number: int):
    return up.run_dir / "services" / name / f"{number}.members"


def line_of(pid: int) -> str:
    fd = os.pidfd_open(pid)
    try:
        who = identify("main", pid, fd)
    finally:
        os.close(fd)
    assert who
    return encode([who]).decode()


# What is written, if the supervisor, its anchor and the first process are these.
HOSTILE = {
    "zero": lambda *_: "main 0 1 1\n",
    "negative": lambda *_: "main -1 1 1\n",
    "more-than-an-int": lambda *_: f"main {2**31} 1 1\n",
    "more-than-python-reads": lambda *_: f"main {'9' * 5000} 1 1\nadopted 2 1 {'9' * 5000}\n",
    "supervisor": lambda supervisor, _: line_of(supervisor),
    "anchor": lambda _, anchor: line_of(anchor),
    "first": lambda *_: line_of(1),
    "no-text": lambda *_: "main \0\udcff 1 1\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_is_written_of_the_members_the_rest_is_found_and_the_supervisor_lives(tmp_path, what):
    with Running(tmp_path, service(tmp_path, "main")) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: len(written(up)) == 2 and len(said(up)) == 1)
        anchor, supervisor = up.process.pid, up.client().supervisor()["pid"]
        text = members_of(up, "web", 1).read_text() + HOSTILE[what](supervisor, anchor)
        members_of(up, "web", 1).write_text(text, errors="surrogateescape")
        fds = hold([pid])
        kill(keeper_of(pid))
        one_copy_follows(up, fds, 1)
        assert up.client().supervisor()["pid"] == supervisor
        # And the same for who comes after it, in a file that nobody misses, too.
        wait_for(lambda: len(written(up, 2)) == 2)
        text += members_of(up, "web", 2).read_text()
        keeper = keeper_of(up.client().service("web")["pid"])
        kill(supervisor, signal.SIGSTOP)
        for number in (1, 2):
            members_of(up, "web", number).write_text(text, errors="surrogateescape")
        kill(keeper)
        kill(supervisor)
        wait_for(lambda: not os.path.exists(f"/proc/{supervisor}"))
        up.wait_for_socket()
        up.until("web", incarnation=3, ready=True)
        assert up.client().supervisor()["restarts"] == 1
        assert up.process.pid == anchor


def free_descriptors(pid: int, count: int) -> tuple[int, int]:
    """Leave a process so many descriptors to open; the limit that it had."""
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    limit = 0
    while limit - sum(fd < limit for fd in taken) < count or limit in taken:
        limit += 1
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    return before


@pytest.mark.parametrize("count", range(3))
def test_who_has_no_descriptor_to_look_with_does_not_take_a_tree_for_gone(tmp_path, count):
    with Running(tmp_path, service(tmp_path, "deep")) as up:
        pid = up.until("web", ready=True)["pid"]
        wait_for(lambda: len(said(up)) == 3 and len(written(up)) >= 2)
        supervisor = up.client().supervisor()["pid"]
        fds = hold(said(up))
        before = free_descriptors(supervisor, count)
        try:
            keeper = keeper_of(pid)
            kill(keeper)
            wait_for(lambda: not os.path.exists(f"/proc/{keeper}"))
            with pytest.raises(AssertionError):
                wait_for(lambda: len(said(up)) > 3, 0.5)
            # Whatever it could see: no second copy.
            assert not ended(fds) or len(said(up)) == 3
        finally:
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
        one_copy_follows(up, fds, 3)
        assert up.client().supervisor()["pid"] == supervisor


def patiently(ask):
    """What a supervisor answers that has few descriptors for clients."""
    answers = []

    def answered() -> bool:
        with contextlib.suppress(ClientError):
            answers.append(ask())
        return bool(answers)

    wait_for(answered)
    return answers[0]


def test_a_supervisor_that_may_open_less_than_the_one_before_takes_over_what_it_can_and_serves(tmp_path):
    names = [f"s{number:02}" for number in range(16)]
    with Running(tmp_path, "".join(f'[service.{name}]\ncommand = ["sleep", "1000"]\n' for name in names)) as up:
        pids = {name: up.until(name, ready=True)["pid"] for name in names}
        assert up.stop(signal.SIGQUIT) == 0
        up.through = ("prlimit", "--nofile=75:75")
        up.up()
        up.wait_for_socket()
        assert patiently(up.client().supervisor)["restarts"] == 0
        found = {status["name"]: status for status in patiently(up.client().services)}
        held = [name for name in names if found[name]["pid"]]
        assert held and all(found[name]["pid"] == pids[name] for name in held)
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids.values())
        # Who makes room lets another in.
        late = [name for name in names if name not in held]
        assert late and all("Too many open files" in found[name]["held_by"] for name in late)
        patiently(lambda: up.client().stop(held[0]))
        wait_for(lambda: any(patiently(lambda name=name: up.client().service(name))["pid"] for name in late))
        assert up.stop() == 0
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids.values())


def test_a_survivor_whose_name_is_no_text_keeps_no_stop_report_from_history():
    report = StopReport(15, "tree", 1.0, survivor_count=1, members=(Member(5, 16, os.fsdecode(b"\xffx")),))
    assert json.loads(_stop(report))["survivors"] == ["?x (5)"]
