"""Process.events() and on_event(): what happened to a tree, told to threads, asyncio, trio and callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import resource
import select
import signal
import sys
import threading

import pytest
import trio
import trio.testing
from helpers_lib import descriptors, program
from helpers_trees import hold_keeper
from helpers_wait import LIMIT

import holdfast
import holdfast.events
from holdfast import PIPE
from holdfast.events import (
    Adopted,
    Continued,
    Empty,
    EventsLost,
    Exited,
    MemberExited,
    Moved,
    Spawned,
    Stopped,
)
from holdfast.process.told import EVENTS_MAX, Told

EVENTS = (Spawned, Adopted, Moved, MemberExited, Exited, Stopped, Continued, Empty, EventsLost)

# Forks twice: what is left has no parent but the keeper, names itself, waits for the end of the main's stdin and ends
# with 7.  Main has said both numbers by then and ends with 3.
DAEMON = """
exec 3<&0
( (read line <&3; exit 7) 3<&3 & echo $! )
echo $$
read go
exit 3
"""


def daemon(spawner=holdfast.spawn, noticed=True, **options):
    """The handle, the main's number and the other's, who is adopted by then."""
    process = spawner(["sh", "-c", DAEMON], stdin=PIPE, stdout=PIPE, **options)
    other, main = (int(process.stdout.readline()) for _ in range(2))
    assert main == process.pid
    if noticed:
        process.members()
    return process, main, other


def finish(process):
    """One line for each of the two that read."""
    process.stdin.write(b"go\ngo\n")
    process.stdin.flush()


def kinds(found):
    return [type(event).__name__ for event in found]


def check_story(found, process, main, other):
    """What every follower of a daemon() has to have seen, whatever came first of the two ends."""
    assert found[0] == Spawned(main, 0, process.started_at)
    assert kinds(found[-1:]) == ["Empty"]
    assert sorted(kinds(found)) == ["Adopted", "Empty", "Exited", "MemberExited", "Spawned"]
    by_kind = {type(event): event for event in found}
    assert by_kind[Adopted].pid == by_kind[MemberExited].pid == other
    assert found.index(by_kind[Adopted]) < found.index(by_kind[MemberExited])
    assert by_kind[Exited].status == process.status and process.status.code == 3
    status = by_kind[MemberExited].status
    assert (status.code, status.signal) == (7, None) and status.usage.max_rss_bytes > 0
    assert process.started_at <= status.ended_at and status.elapsed < LIMIT
    assert by_kind[Empty].usage.max_rss_bytes >= status.usage.max_rss_bytes


# ---- iterators


def test_a_double_fork_is_followed_to_its_end():
    process, main, other = daemon()
    with process:
        found = []
        for event in process.events():
            found.append(event)
            if isinstance(event, Spawned):
                finish(process)
        check_story(found, process, main, other)
        assert list(process.events()) == found, "asked for late, it begins with the start"


def test_each_of_several_sees_all():
    process, main, other = daemon()
    with process:
        first, second = process.events(), process.events()
        assert first.wait() == second.wait() == Spawned(main, 0, process.started_at)
        finish(process)
        one = list(first)
        assert list(second) == one
        check_story([Spawned(main, 0, process.started_at), *one], process, main, other)


def test_waiting_has_a_limit_and_loses_nothing():
    process, main, other = daemon()
    with process:
        events = process.events()
        found = [events.wait(5), events.wait(5)]
        with pytest.raises(holdfast.TimeoutExpired):
            events.wait(0)
        with pytest.raises(holdfast.TimeoutExpired):
            events.wait(0.02)
        finish(process)
        while (event := events.wait(LIMIT)) is not None:
            found.append(event)
        check_story(found, process, main, other)
        assert events.wait() is None and list(events) == []
        with pytest.raises(ValueError):
            events.fileno()


def test_stopped_and_continued():
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        events = process.events()
        assert isinstance(events.wait(), Spawned)
        process.send_signal("STOP")
        assert events.wait(LIMIT) == Stopped(process.pid, signal.SIGSTOP)
        process.send_signal("CONT")
        assert events.wait(LIMIT) == Continued(process.pid, signal.SIGCONT)
        process.stop()
        assert kinds(events) == ["Exited", "Empty"]


def test_any_loop_can_wait_on_its_descriptor():
    process, main, other = daemon()
    with process:
        events = process.events()
        found = [events.wait(0)]
        finish(process)
        poll = select.poll()
        poll.register(events.fileno(), select.POLLIN)
        while not isinstance(found[-1], Empty):
            assert poll.poll(LIMIT * 1000)
            try:
                while (event := events.wait(0)) is not None:
                    found.append(event)
            except holdfast.TimeoutExpired:
                pass
        check_story(found, process, main, other)
        events.close()


def test_the_descriptor_rests_while_nothing_happens():
    """The main process's own descriptor is readable for ever once it has ended: nobody may spin on it."""
    process, _, _ = daemon()
    with process:
        events = process.events()
        process.stdin.write(b"go\n")  # one of the two ends
        process.stdin.flush()
        while not isinstance(events.wait(LIMIT), (Exited, MemberExited)):
            pass
        with pytest.raises(holdfast.TimeoutExpired):
            events.wait(0.02)
        assert not select.select([events.fileno()], [], [], 0.05)[0]
        events.close()


def test_an_iterator_keeps_the_handle_alive():
    reader, writer = os.pipe()
    events = holdfast.spawn(["cat"], stdin=reader).events()
    os.close(reader)
    assert isinstance(next(events), Spawned)
    os.close(writer)
    assert [event.status.code for event in events if isinstance(event, Exited)] == [0]
    events._process.close()


def test_while_another_thread_reads():
    """Whoever is faster to read what the keeper says: the other is told."""
    for _ in range(20):
        process, main, other = daemon()
        with process:
            waiter = threading.Thread(target=process.wait_empty)
            waiter.start()
            found = []
            for event in process.events():
                found.append(event)
                if isinstance(event, Spawned):
                    finish(process)
            waiter.join()
            check_story(found, process, main, other)


def test_closed_by_another_thread():
    """At any moment of the wait: also between the last look and the first sleep."""
    for _ in range(50):
        with holdfast.spawn(["sleep", "60"]) as process:
            found, events = [], process.events()
            follower = threading.Thread(target=found.extend, args=[events])
            follower.start()
            process.close()
            follower.join(LIMIT)
        assert kinds(found) == ["Spawned", "Exited", "Empty"]


def test_read_by_another_between_the_look_and_the_wait(monkeypatch):
    """Whoever begins to wait looks once more, for what was read before there was a bell to ring."""
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        events = process.events()
        assert isinstance(events.wait(), Spawned)
        begin = events.fileno

        def read_meanwhile():
            if events._ear is None:
                process.close()
            return begin()

        monkeypatch.setattr(events, "fileno", read_meanwhile)
        assert isinstance(events.wait(LIMIT), Exited)
        assert kinds(events) == ["Empty"]


def test_the_oldest_are_lost_and_counted():
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        prompt, slow = process.events(), process.events()
        assert isinstance(prompt.wait(), Spawned) and isinstance(slow.wait(), Spawned)
        rounds = EVENTS_MAX // 2 + 10
        for _ in range(rounds):
            process.send_signal("STOP")
            assert isinstance(prompt.wait(LIMIT), Stopped)
            process.send_signal("CONT")
            assert isinstance(prompt.wait(LIMIT), Continued)
        process.stdin.close()
        assert kinds(prompt) == ["Exited", "Empty"]
        found = list(slow)
    lost = 2 * rounds + 2 - EVENTS_MAX
    assert found[0] == EventsLost(lost)
    assert kinds(found[1:]) == [*(["Stopped", "Continued"] * rounds)[lost:], "Exited", "Empty"]
    assert list(process.events())[1:] == found, "who asks late has missed the same"


def test_what_the_keeper_had_no_room_for_is_counted():
    """Nobody reads while hundreds are adopted and end: what is told and what is counted is all of it."""
    script = "i=0; while [ $i -lt 400 ]; do (: & ) ; i=$((i + 1)); done; echo; read x"
    with holdfast.spawn(["sh", "-c", script], stdin=PIPE, stdout=PIPE) as process:
        process.stdout.readline()
        process.stdin.close()
        found = list(process.events())
        ended = [event.pid for event in found if isinstance(event, MemberExited)]
        lost = sum(event.count for event in found if isinstance(event, EventsLost))
    assert len(set(ended)) == len(ended)
    assert len(ended) <= 400 <= len(ended) + lost


def test_a_record_that_is_told_again_is_one():
    """A signal handler's exception may come between an event and its removal from the inbox."""
    told, one, equal = Told(), tuple(range(3)), tuple(range(3))
    for record in (one, one, equal):
        told.note(record)
    assert list(told.entries.values()) == [one, equal] and told.end == 2


# ---- callbacks


def test_callback_is_called_by_who_waits():
    process, main, other = daemon()
    with process:
        found, threads = [], set()

        def on_event(event):
            found.append(event)
            threads.add(threading.current_thread())

        process.on_event(on_event)
        assert found[:1] == [Spawned(main, 0, process.started_at)]
        finish(process)
        process.wait_empty()
        check_story(found, process, main, other)
        assert threads == {threading.current_thread()}
        late = []
        process.on_event(late.append)
        assert late == found


def test_callback_may_use_the_handle():
    """It holds no lock: here it stops the tree, from within the call that has told of the adoption."""
    process, main, other = daemon(noticed=False)
    with process:
        found = []

        def on_event(event):
            found.append(event)
            if isinstance(event, Adopted):
                assert process.stop(grace=0).empty
                assert not isinstance(found[-1], Exited), "called within itself"

        process.on_event(on_event)
        assert {member.pid for member in process.members()} <= {main, other}
        process.wait()
    assert kinds(found)[:2] == ["Spawned", "Adopted"] and isinstance(found[-1], Empty)
    assert [event.status.signal for event in found if isinstance(event, Exited)] == [signal.SIGKILL]


def test_what_a_callback_raises_comes_out_of_the_wait():
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        found = []

        def on_event(event):
            found.append(event)
            if isinstance(event, Exited):
                raise LookupError("mine")

        process.on_event(on_event)
        process.stdin.close()
        with pytest.raises(LookupError):
            process.wait_empty()
        process.wait_empty()
    assert kinds(found) == ["Spawned", "Exited", "Empty"]


def test_callback_during_communicate():
    found = []
    with holdfast.spawn(["sh", "-c", "(sh -c 'exit 5' &); cat"], stdin=PIPE, stdout=PIPE) as process:
        process.on_event(found.append)
        assert process.communicate(b"text") == (b"text", b"")
    assert {"Spawned", "Exited", "Empty"} <= set(kinds(found))


def test_callbacks_are_called_by_one_thread_at_a_time():
    script = "i=0; while [ $i -lt 100 ]; do (: & ) ; i=$((i + 1)); done"
    with holdfast.spawn(["sh", "-c", script]) as process:
        found, inside = [], threading.Lock()

        def on_event(event):
            assert inside.acquire(blocking=False), "two at once"
            found.append(event)
            inside.release()

        process.on_event(on_event)
        threads = [threading.Thread(target=process.wait_empty) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == list(process.events())


# ---- loops


async def follow(process, found):
    async for event in process.events():
        found.append(event)


def test_asyncio():
    async def main_task():
        process, main, other = daemon()
        with process:
            one, two = [], []
            tasks = [asyncio.create_task(follow(process, found)) for found in (one, two)]
            before = threading.enumerate()
            while not (one and two):
                await asyncio.sleep(0)  # the loop runs on while they wait
            assert threading.enumerate() == before
            finish(process)
            await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)
            assert one == two
            check_story(one, process, main, other)

    asyncio.run(main_task(), debug=True)


def test_trio():
    async def main_task():
        process, main, other = daemon()
        with process, trio.fail_after(LIMIT):
            one, two = [], []
            async with trio.open_nursery() as nursery:
                for found in (one, two):
                    nursery.start_soon(follow, process, found)
                await trio.testing.wait_all_tasks_blocked()
                assert kinds(one) == kinds(two) == ["Spawned", "Adopted"]
                finish(process)
            assert one == two
            check_story(one, process, main, other)

    trio.run(main_task)


def test_asyncio_where_trio_is_loaded():
    """Who is asked is the one that runs, not the one that somebody has imported."""
    assert "trio" in sys.modules

    async def main_task():
        with holdfast.spawn(["true"]) as process:
            return [event async for event in process.events()]

    assert kinds(asyncio.run(main_task())) == ["Spawned", "Exited", "Empty"]
    assert kinds(trio.run(main_task)) == ["Spawned", "Exited", "Empty"]


def test_cancelled_it_has_lost_nothing():
    async def main_task():
        process, main, other = daemon()
        with process:
            events = process.events()
            found = [await anext(events), await anext(events)]
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(events), 0.02)
            finish(process)
            found += [event async for event in events]
            check_story(found, process, main, other)

    asyncio.run(main_task())


def test_a_thread_reads_what_a_task_waits_for():
    async def main_task():
        for _ in range(10):
            process, main, other = daemon()
            with process:
                found = []
                task = asyncio.create_task(follow(process, found))
                empty = asyncio.get_running_loop().run_in_executor(None, process.wait_empty)
                finish(process)
                await asyncio.wait_for(asyncio.gather(task, empty), LIMIT)
                check_story(found, process, main, other)

    asyncio.run(main_task())


def test_outside_of_any_loop_it_says_so():
    async def follow_one():
        with holdfast.spawn(["cat"], stdin=PIPE) as process:
            events = process.events()
            await anext(events)  # known already
            await anext(events)

    task = follow_one()
    with pytest.raises(RuntimeError, match="no running event loop"):
        task.send(None)


# ---- other trees, and bad ends


def test_runner_and_the_next_tenant():
    with holdfast.Runner() as runner:
        stories = []
        for _ in range(3):
            process, main, other = daemon(runner.spawn)
            with process:
                finish(process)
                stories.append(list(process.events()))
                check_story(stories[-1], process, main, other)
        assert len({story[0].pid for story in stories}) == 3


def test_direct_child_has_two_events():
    with holdfast.spawn(["sh", "-c", "read x; exit 4"], stdin=PIPE, private=False) as process:
        called = []
        process.on_event(called.append)
        events = process.events()
        assert events.wait() == called[0] == Spawned(process.pid, 0, process.started_at)
        with pytest.raises(holdfast.TimeoutExpired):
            events.wait(0.01)
        process.stdin.close()
        assert list(events) == [Exited(process.status)] == called[1:]
        assert process.status.code == 4


def test_a_forking_start_moves():
    script = "exec 3<&0; (read x <&3; exit 5) & echo $! $$; exit 0"
    with holdfast.spawn(["sh", "-c", script], stdin=PIPE, stdout=PIPE, forking=True) as process:
        main, started = map(int, process.stdout.readline().split())
        events = process.events()
        assert events.wait() == Spawned(started, 0, process.started_at)
        while not isinstance(moved := events.wait(LIMIT), Moved):
            pass
        assert (moved.old_pid, moved.pid, moved.rule, moved.count) == (started, main, "only", 1)
        assert [member.pid for member in process.members() if member.main] == [main] == [process.pid]
        process.stdin.close()
        assert list(events)[-2:-1] == [Exited(process.status)] and process.status.code == 5


def test_a_new_owner_hears_what_is_there(tmp_path):
    address = str(tmp_path / "daemon")
    first, main, other = daemon(address=address, on_owner_loss="keep")
    stdin = os.dup(first.stdin.fileno())
    first.release()
    with holdfast.attach(address) as process:
        os.write(stdin, b"go\ngo\n")
        os.close(stdin)
        found = list(process.events())
        check_story(found, process, main, other)


def test_keeper_lost_comes_after_what_it_had_told():
    for find in (list, lambda events: asyncio.run(collect(events))):
        process, _, other = daemon()
        keeper = hold_keeper(process)
        events = process.events()
        signal.pidfd_send_signal(keeper, signal.SIGKILL)
        os.close(keeper)
        assert isinstance(events.wait(), Spawned)
        assert events.wait() == Adopted(other)
        with pytest.raises(holdfast.KeeperLost):
            find(events)
        with pytest.raises(holdfast.KeeperLost):
            process.close()


async def collect(events):
    return [event async for event in events]


def test_keeper_that_is_frozen_when_the_process_ends():
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        keeper = hold_keeper(process)
        events = process.events()
        assert isinstance(events.wait(), Spawned)
        signal.pidfd_send_signal(keeper, signal.SIGSTOP)
        os.close(keeper)
        process.stdin.close()
        assert kinds(events) == ["Exited", "Empty"]  # it was thawed


def test_released():
    process, _, other = daemon()
    held = [os.pidfd_open(process.pid), os.pidfd_open(other)]
    stdin = os.dup(process.stdin.fileno())
    events = process.events()
    assert isinstance(events.wait(), Spawned) and events.wait() == Adopted(other)
    process.release()
    with pytest.raises(RuntimeError, match="released"):
        events.wait()
    os.write(stdin, b"go\ngo\n")
    os.close(stdin)
    for fd in held:
        assert select.select([fd], [], [], LIMIT)[0]
        os.close(fd)


def test_in_a_forked_child_it_is_inert():
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        events = process.events()
        assert isinstance(events.wait(), Spawned)
        with pytest.raises(holdfast.TimeoutExpired):
            events.wait(0.01)
        pid = os.fork()
        if pid == 0:
            code = 0
            for act in (events.wait, process.events().wait, process.members, lambda: process.on_event(print)):
                try:
                    act()
                    code = 1
                except ValueError:
                    pass
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        process.stdin.close()
        assert kinds(events) == ["Exited", "Empty"]


def test_descriptors_are_given_back():
    with holdfast.spawn(["cat"], stdin=PIPE) as process:
        before = descriptors()
        events = process.events()
        events.wait()
        assert descriptors() == before, "nobody has waited"
        events.fileno()
        assert len(descriptors()) == len(before) + 2
        events.close()
        assert descriptors() == before
        for _ in range(2):
            process.events().fileno()  # dropped
        assert descriptors() == before
        events = process.events()
        events.fileno()
        process.stdin.close()
        assert len(list(events)) == 3
    assert len(descriptors()) < len(before)


def test_without_a_descriptor_it_can_wait_later():
    with holdfast.spawn(["cat"], stdin=PIPE) as process, contextlib.ExitStack() as full:
        events = process.events()
        events.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        full.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        held = []
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.dup(0))
        full.callback(lambda: [os.close(fd) for fd in held])
        for free in (0, 1):
            if free:
                os.close(held.pop())
            with pytest.raises(OSError, match="Too many open files"):
                events.wait(0)
        full.close()
        with pytest.raises(holdfast.TimeoutExpired):
            events.wait(0)
        process.stdin.close()
        assert kinds(events) == ["Exited", "Empty"]


def test_after_the_end_there_is_nothing_to_wait_for():
    with holdfast.spawn(["true"]) as process:
        process.wait_empty(30)
        events = process.events()
        assert kinds(events) == ["Spawned", "Exited", "Empty"]
        with pytest.raises(ValueError, match="come to their end"):
            events.fileno()


# ---- the page, and the names


def test_what_the_page_shows_happens():
    page = pathlib.Path(__file__).parent.parent.joinpath("docs/events.md").read_text()
    tree, loop, members = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    said = program(tree)
    (orphan,) = re.findall(r"^(\d+) has lost its parent$", said, flags=re.M)
    assert f"\n{orphan} has ended: exit code 3 " in said and "it has ended: exit code 0\n" in said
    assert said.splitlines()[-1].startswith("nothing is left of it")
    assert re.findall(r"^(\w+)\(", program(loop), flags=re.M) == ["Spawned", "Exited", "Empty"]
    assert [line.split()[2] for line in program(members).splitlines()] in (["True"], ["True", "False"])
    assert set(re.findall(r"^\| .*?\|", page, flags=re.M)) >= {"| `Spawned` |", "| `EventsLost` |"}


def test_the_public_names_are_the_events_of_a_handle():
    told = {each.__name__ for each in EVENTS}
    assert set(holdfast.events.__all__) == told | {"Events"}
    for name in holdfast.events.__all__:
        assert getattr(holdfast.events, name).__doc__
