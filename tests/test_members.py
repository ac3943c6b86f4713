"""Process.members(): who is in a tree, and what such a look tells of a later adoption."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import uuid

import pytest
from helpers_lib import marked
from helpers_trees import hold_keeper, stat_fields
from helpers_wait import LIMIT, eventually

import holdfast
from holdfast import PIPE
from holdfast.events import Adopted
from holdfast.process.members import previous_parent


def end(pid):
    """Kill one that was found in the list, by a handle, and wait until it is reaped or an orphan's zombie."""
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert select.select([fd], [], [], LIMIT)[0]
    os.close(fd)


def chain(depth=3):
    """main <- 1 <- 2 ... each the child of the one before; the numbers in this order."""
    process = holdfast.spawn([sys.executable, "-c", f"""
import os, sys
print(os.getpid(), flush=True)
for _ in range({depth}):
    if os.fork():
        break
    print(os.getpid(), flush=True)
sys.stdin.readline()
"""], stdin=PIPE, stdout=PIPE)  # fmt: skip
    return process, [int(process.stdout.readline()) for _ in range(depth + 1)]


def test_what_is_known_of_each():
    mark = uuid.uuid4().hex
    script = "setsid sleep 60 & echo $!; (sleep 60 & echo $!); echo; read x"
    before = time.time()
    with holdfast.spawn(["sh", "-c", script], stdin=PIPE, stdout=PIPE, process_group=0,
                        env={**os.environ, "HF_EVENTS": mark}) as process:  # fmt: skip
        child, orphan = (int(process.stdout.readline()) for _ in range(2))
        assert process.stdout.readline() == b"\n"  # the one in between has ended
        assert eventually(lambda: stat_fields(child)[3] == str(child))
        members = process.members()
        by_pid = {member.pid: member for member in members}
        assert set(by_pid) == {process.pid, child, orphan} == set(marked(mark))
        assert members[0] == by_pid[process.pid], "the eldest comes first"
        assert [member.pid for member in members if member.main] == [process.pid]
        main, session = by_pid[process.pid], os.getsid(0)
        assert (main.name, main.group, main.session) == ("sh", process.pid, session)
        assert (by_pid[child].parent, by_pid[child].group, by_pid[child].session) == (process.pid, child, child)
        left = by_pid[orphan]
        assert (left.parent, left.group, left.session) == (main.parent, process.pid, session)
        assert all(before - 1 < member.started_at < time.time() + 1 for member in members)
        assert main.started_at == pytest.approx(process.started_at, abs=0.1)
        assert eventually(lambda: {member.name for member in process.members()} == {"sh", "sleep"})
        assert process.events().wait() and [e.pid for e in known(process) if isinstance(e, Adopted)] == [orphan]
        process.stop()
        assert process.members() == ()
    assert process.members() == ()
    assert not marked(mark)


def known(process):
    """The events until now."""
    found = []
    process._tree.advance()
    events = process.events()
    try:
        while True:
            found.append(events.wait(0))
    except holdfast.TimeoutExpired:
        events.close()
        return found


def test_more_than_a_report_names():
    script = "i=0; while [ $i -lt 300 ]; do sleep 60 & i=$((i + 1)); done; echo; read x"
    with holdfast.spawn(["sh", "-c", script], stdin=PIPE, stdout=PIPE, stop_scope="tree", grace=0) as process:
        process.stdout.readline()
        members = process.members()
        assert len({member.pid for member in members}) == len(members) == 301
        assert all(member.parent == process.pid for member in members if not member.main)


def test_a_frozen_keeper_is_thawed(monkeypatch):
    monkeypatch.setattr("holdfast.process.kept.KILL_LIMIT", 0.1)
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        keeper = hold_keeper(process)
        signal.pidfd_send_signal(keeper, signal.SIGSTOP)
        os.close(keeper)
        assert [member.pid for member in process.members()] == [process.pid]


def test_a_lost_keeper():
    process = holdfast.spawn(["cat"], stdin=PIPE)
    keeper = hold_keeper(process)
    signal.pidfd_send_signal(keeper, signal.SIGKILL)
    os.close(keeper)
    with pytest.raises(holdfast.KeeperLost):
        process.members()
    with pytest.raises(holdfast.KeeperLost):
        process.close()


def test_direct_child():
    with holdfast.spawn(["cat"], stdin=PIPE, private=False) as process:
        (member,) = process.members()
        assert (member.pid, member.main, member.parent) == (process.pid, True, os.getpid())
        process.stop()
        assert process.members() == ()


def test_runner():
    with holdfast.Runner() as runner:
        for _ in range(2):
            with runner.spawn(["cat"], stdin=PIPE) as process:
                assert [member.pid for member in process.members()] == [process.pid]


def test_reports_do_not_pretend_to_know():
    with holdfast.spawn(["sleep", "60"]) as process:
        (member,) = process.stop().members
    assert (member.parent, member.group, member.session, member.started_at) == (None, None, None, None)


# ---- previous parents


def test_previous_parent_where_a_look_makes_it_certain():
    process, (main, first, second, third) = chain()
    with process:
        assert [member.parent for member in process.members()][1:] == [main, first, second]
        end(second)
        process.members()
        assert known(process)[1:] == [Adopted(third, second)]
        end(first)
        end(main)
        process.wait()


def test_previous_parent_without_a_look():
    process, (_, _, second, third) = chain()
    with process:
        end(second)
        process.members()
        assert known(process)[1:] == [Adopted(third, None)]


def test_previous_parent_when_two_are_gone():
    """The first of them may have gathered orphans itself: then it was the last parent."""
    process, (_, first, second, third) = chain()
    with process:
        process.members()
        end(second)  # its parent does not reap it
        end(first)
        process.members()
        (adopted,) = [event for event in known(process) if isinstance(event, Adopted) and event.pid == third]
        assert adopted.previous_parent is None


def test_previous_parent_of_nobody_that_was_seen():
    us = os.getpid()
    stat = ("x", "S", 1, 1, 1, 1)
    assert previous_parent({}, us) is None
    assert previous_parent({us: stat}, us) is None, "another has our number"


def test_numbers_in_a_circle():
    """Two looks at numbers that change hands may show each as the other's parent: no certainty, and no endless loop."""
    from holdfast.process.members import read_stat

    us, parent = os.getpid(), os.getppid()
    mine, other = read_stat(us), read_stat(parent)
    assert previous_parent({us: mine, parent: (*other[:2], us, *other[3:])}, us) is None
