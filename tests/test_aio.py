"""holdfast.aio under asyncio, uvloop and trio: the handle, its streams, run_process, and that nothing is left."""

from __future__ import annotations

import array
import asyncio
import inspect
import math
import os
import pathlib
import re
import signal
import threading

import anyio
import anyio.abc
import pytest
from anyio.streams.text import TextReceiveStream
from helpers_aio import LOOPS, nothing_left, run, until_blocked
from helpers_lib import descriptors, program
from helpers_trees import marked
from helpers_wait import LIMIT, wait_for

import holdfast
from holdfast import aio
from holdfast.events import Empty, Exited, Spawned
from holdfast.process.run import CompletedProcess

ROOT = pathlib.Path(__file__).resolve().parent.parent
each_loop = pytest.mark.parametrize("loop", LOOPS)
STUBBORN = ["sh", "-c", 'trap "" TERM; (setsid sh -c "echo ready; sleep 99" &); while :; do sleep 99; done']


# ---- the handle


@each_loop
def test_a_process_with_pipes(loop):
    async def main():
        async with await aio.open_process(["cat"]) as process:
            assert isinstance(process, anyio.abc.Process)
            assert process.returncode is None and process.status is None and process.pid > 0
            await process.stdin.send(b"hello ")
            assert await process.stdout.receive() == b"hello "
            await process.stdin.send(b"world")
            await process.stdin.aclose()
            assert b"".join([data async for data in process.stdout]) == b"world"
            assert b"".join([data async for data in process.stderr]) == b""
            assert await process.wait() == 0
            assert process.returncode == 0 and process.status.ok and process.status.usage.max_rss_bytes > 0
            assert "exit code 0" in repr(process)
        assert await process.wait() == 0  # known, also when it is closed
        return threading.active_count()

    assert run(loop, main) == 1


def test_it_has_the_shape_that_anyio_gives_a_process():
    for name in dir(anyio.abc.Process):
        if not name.startswith("_"):
            theirs, ours = getattr(anyio.abc.Process, name), getattr(aio.Process, name)
            assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(ours), name
            assert isinstance(theirs, property) == isinstance(ours, property), name
    for name, value in vars(aio.Process).items():
        assert name.startswith("_") or (getattr(value, "fget", value) or value).__doc__, name
    assert set(aio.__all__) == {"Process", "open_process", "run_process"}
    for name in aio.__all__:
        assert getattr(aio, name).__doc__


@each_loop
def test_options_are_those_of_spawn(loop):
    async def main():
        with nothing_left() as env:
            command = ["sh", "-c", "pwd; umask; exec sleep 99"]
            async with await aio.open_process(command, cwd="/usr", umask=0o27, env=env, stdin=holdfast.DEVNULL) as each:
                assert each.stdin is None and each.args == command
                text = TextReceiveStream(each.stdout)
                said = ""
                while said.count("\n") < 2:
                    said += await text.receive()
                assert said.split() == ["/usr", "0027"]

    run(loop, main)


@each_loop
def test_how_it_ends(loop):
    async def main():
        acts = (aio.Process.terminate, -15), (aio.Process.kill, -9), (lambda each: each.send_signal("HUP"), -1)
        for act, expected in acts:
            async with await aio.open_process(["sleep", "99"]) as process:
                act(process)
                assert await process.wait() == expected
                act(process)  # nothing happens
        async with await aio.open_process(["sh", "-c", "sleep 99 & echo; wait"]) as process:
            await process.stdout.receive()
            process.signal_tree(signal.SIGKILL)
            assert await process.wait() == -9
            await process.wait_empty()

    run(loop, main)


@each_loop
def test_any_number_of_tasks_waits_for_one_process(loop):
    """One of them listens, and when that one is cancelled another does."""

    async def main():
        seen = []
        ended = []

        async def follow():
            seen.extend([event async for event in process.events()])

        async def wait(what):
            ended.append(await what())

        command = ["sh", "-c", "read x; exit 3"]
        async with await aio.open_process(command) as process, anyio.create_task_group() as tasks:
            for _ in range(3):
                with anyio.move_on_after(0) as scope:
                    await process.wait()
                assert scope.cancelled_caught
            first = anyio.CancelScope()

            async def impatient():
                with first:
                    await process.wait()

            tasks.start_soon(impatient)
            await until_blocked(loop)
            tasks.start_soon(follow)
            tasks.start_soon(wait, process.wait_empty)
            for _ in range(5):
                tasks.start_soon(wait, process.wait)
            await until_blocked(loop)
            first.cancel()
            await until_blocked(loop)
            assert not ended
            await process.stdin.send(b"go\n")
        assert sorted(ended, key=str) == [3] * 5 + [None]
        assert [type(event) for event in seen] == [Spawned, Exited, Empty]

    run(loop, main)


@each_loop
def test_stop_reports(loop):
    async def main():
        with nothing_left() as env:
            async with await aio.open_process(STUBBORN, env=env) as process:
                await process.stdout.receive()
                assert process.report is None
                report = await process.stop(grace=0.05)
                assert report.empty and report.killed_count >= 2 and report.left_group
                assert process.returncode == -9 and process.report == report
                again = await process.stop()
                assert again.signalled_count == 0
            with pytest.raises(ValueError, match="grace"):
                await process.stop(grace=-1)

    run(loop, main)


@each_loop
def test_a_cancelled_stop_goes_on(loop):
    async def main():
        with nothing_left() as env:
            async with await aio.open_process(STUBBORN, env=env, grace=0.2) as process:
                await process.stdout.receive()
                with anyio.move_on_after(0.01) as scope:
                    await process.stop()
                assert scope.cancelled_caught
                assert await process.wait() == -9  # by the keeper, when the grace is over

    run(loop, main)


@each_loop
def test_release(loop, tmp_path):
    async def main():
        with nothing_left() as env:
            address = str(tmp_path / "held")
            async with await aio.open_process(["sleep", "99"], env=env, address=address) as process:
                process.release()
            wait_for(lambda: marked(env["HF_MARK"]))  # just after the exec its environment cannot be read yet
            with holdfast.attach(address) as again:
                assert again.pid == process.pid

    run(loop, main)


@each_loop
def test_who_waits_for_what_was_released(loop):
    async def main():
        with nothing_left() as env:
            process = await aio.open_process(["sleep", "0.3"], env=env)
            refused = 0

            async def wait():
                nonlocal refused
                with pytest.raises(anyio.ClosedResourceError):
                    await process.wait()
                refused += 1

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                await until_blocked(loop)
                process.release()
            await wait()
            assert refused == 4
            await process.aclose()

    run(loop, main)


@each_loop
def test_direct_children(loop):
    """Beside what the loop's own process support does: each has its own status."""

    async def main():
        with nothing_left() as env:
            async with await aio.open_process(["sh", "-c", "exit 5"], private=False) as process:
                if loop != "trio":  # whose own start threads, which stay for a while
                    other = await asyncio.create_subprocess_exec("sh", "-c", "exit 6")
                    assert await other.wait() == 6
                assert await process.wait() == 5
            async with await aio.open_process(["sleep", "99"], private=False, env=env) as process:
                pass
            assert process.returncode == -15
            done = await aio.run_process(["cat"], private=False, input=b"abc", timeout=math.inf)
            assert done.stdout == b"abc"

    run(loop, main)


@each_loop
def test_a_direct_child_that_needs_kill(loop):
    code = """
    import sys
    from helpers_aio import run
    from holdfast import aio

    async def main():
        stubborn = ["sh", "-c", 'trap "" TERM; echo; while :; do sleep 0.01; done']
        async with await aio.open_process(stubborn, private=False, process_group=0) as process:
            await process.stdout.receive()
            report = await process.stop(grace=0.05)
            assert report.killed_count == 1 and process.returncode == -9

    run(sys.argv[1], main)
    """
    program(code, loop)  # a thread waits for it after the KILL, and trio keeps that for a while


@each_loop
def test_errors_before_anything_is_started(loop):
    async def main():
        with pytest.raises(FileNotFoundError) as error:
            await aio.open_process(["/no/such/program"])
        assert error.value.stage == "exec"
        with pytest.raises(TypeError, match="shell=True"):
            await aio.open_process("exit 7")
        assert (await aio.run_process("exit 7", shell=True, check=False)).returncode == 7
        for call in (aio.open_process, aio.run_process):
            with pytest.raises(ValueError, match="forking"):
                await call(["true"], forking=True)
        with pytest.raises(ValueError, match="stdin and input"):
            await aio.run_process(["cat"], input=b"", stdin=holdfast.PIPE)
        with pytest.raises(ValueError, match="timeout"):
            await aio.run_process(["true"], timeout=-1)
        with pytest.raises(TypeError):
            await aio.run_process(["true"], text=True)
        with nothing_left() as env, anyio.CancelScope() as scope:
            scope.cancel()
            await aio.open_process(["sleep", "99"], env=env)
        assert scope.cancelled_caught

    run(loop, main)


# ---- the streams


@each_loop
def test_what_streams_answer(loop):
    async def main():
        command = ["sh", "-c", "printf 12345; exec 1>&-; read x; exec <&-; echo >&2; sleep 99"]
        async with await aio.open_process(command) as p:
            assert [await p.stdout.receive(2) for _ in range(3)] == [b"12", b"34", b"5"]
            for _ in range(2):
                with pytest.raises(anyio.EndOfStream):
                    await p.stdout.receive()
            with pytest.raises(ValueError, match="max_bytes"):
                await p.stdout.receive(0)
            with anyio.move_on_after(0.02) as scope:
                await p.stderr.receive()
            assert scope.cancelled_caught
            await p.stdin.send(b"")
            await p.stdin.send(b"\n")
            assert await p.stderr.receive() == b"\n"  # it has closed its stdin
            with pytest.raises(anyio.BrokenResourceError):
                await p.stdin.send(b"x")
            await p.stdout.aclose()
            await p.stdout.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await p.stdout.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await p.stdin.send(b"")

    run(loop, main)


@each_loop
def test_all_bytes_of_an_array_are_sent(loop):
    async def main():
        numbers = array.array("q", range(100_000))  # more than there is room for at once
        async with await aio.open_process(["wc", "-c"]) as process:
            await process.stdin.send(array.array("q"))
            await process.stdin.send(numbers)
            await process.stdin.aclose()
            assert int(await process.stdout.receive()) == 800_000

    run(loop, main)


@each_loop
def test_closed_or_used_by_another_task(loop):
    async def main():
        errors = []

        async def receive():
            with pytest.raises(anyio.ClosedResourceError) as error:
                await process.stdout.receive()
            errors.append(error.value)

        async def send():
            with pytest.raises(anyio.ClosedResourceError) as error:
                await process.stdin.send(bytes(1 << 20))
            errors.append(error.value)

        async with await aio.open_process(["sleep", "99"]) as process, anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(send)
            await until_blocked(loop)
            with pytest.raises(anyio.BusyResourceError):
                await process.stdout.receive()
            with pytest.raises(anyio.BusyResourceError):
                await process.stdin.send(b"x")
            await process.aclose()
        assert len(errors) == 2

    run(loop, main)


@each_loop
def test_a_cancelled_receive_has_taken_nothing(loop):
    async def main():
        command = ["sh", "-c", "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done"]
        async with await aio.open_process(command) as process:
            data, scopes = b"", 0
            while True:
                with anyio.CancelScope() as scope:
                    scopes += 1
                    if scopes % 2:
                        scope.cancel()
                    try:
                        data += await process.stdout.receive(7)
                    except anyio.EndOfStream:
                        break
            assert data.split() == [b"%d" % n for n in range(2000)]

    run(loop, main)


# ---- run_process


@each_loop
def test_run_process(loop):
    async def main():
        done = await aio.run_process(["sh", "-c", "cat; echo oops >&2"], input=b"x" * 300_000)
        assert isinstance(done, CompletedProcess)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"x" * 300_000, b"oops\n")
        assert done.status.ok and done.report is None
        with pytest.raises(holdfast.CalledProcessError) as error:
            await aio.run_process(["sh", "-c", "echo out; exit 3"])
        assert (error.value.returncode, error.value.stdout) == (3, b"out\n")
        done = await aio.run_process(["sh", "-c", "kill -9 $$"], check=False, stdout=None, stderr=holdfast.DEVNULL)
        assert (done.returncode, done.stdout, done.stderr) == (-9, None, None)
        done = await aio.run_process(["sh", "-c", "echo a; echo b >&2"], stderr=holdfast.STDOUT)
        assert (done.stdout, done.stderr) == (b"a\nb\n", None)
        done = await aio.run_process(["true"], input=bytes(1 << 20))  # nobody reads it
        assert done.returncode == 0

    run(loop, main)


@each_loop
def test_what_it_leaves_is_stopped(loop):
    """Nobody who holds the pipe can make it hang, and nothing runs on."""

    async def main():
        with nothing_left() as env:
            done = await aio.run_process(["sh", "-c", "(setsid sleep 99 &) ; sleep 99 & echo hi"], env=env)
            assert done.stdout == b"hi\n" and done.report.empty and done.report.signalled_count == 2

    run(loop, main)


@each_loop
def test_time_out(loop):
    """Bytes move in the grace, too: a full pipe would keep it from ending."""

    async def main():
        with nothing_left() as env:
            script = "echo hi; trap 'head -c 1000000 /dev/zero; exit 4' TERM; sleep 99 & wait"
            with pytest.raises(holdfast.TimeoutExpired) as error:
                await aio.run_process(["sh", "-c", script], timeout=0.2, env=env, grace=LIMIT)
            assert len(error.value.stdout) == 1_000_003 and error.value.status.code == 4
            assert error.value.timeout == 0.2 and error.value.report.killed_count == 0
            with pytest.raises(holdfast.TimeoutExpired):
                await aio.run_process(STUBBORN, timeout=0, env=env, grace=0.05)
            with pytest.raises(TimeoutError), anyio.fail_after(0.1):
                await aio.run_process(["sleep", "99"], env=env)

    run(loop, main)


# ---- cancelling


@each_loop
@pytest.mark.parametrize("call", ["run_process", "wait", "receive", "body"])
def test_cancelled_it_leaves_nothing(loop, call, tmp_path):
    """By a scope, whose cancelling holds on: the stop has its grace all the same, and is over before we go on."""

    async def main():
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        # Without a fork: what is forked after the TERM gets it as well.
        slowly = "n=0; while [ $n -lt 30000 ]; do n=$((n+1)); done"
        script = (
            f"trap '{slowly}; echo stopped >{fifo}; exit 0' TERM; (setsid sleep 99 &); echo go >{fifo}; "
            "while :; do sleep 0.01; done"
        )
        try:
            with nothing_left() as env:
                async with anyio.create_task_group() as tasks:

                    async def task():
                        # The shell tells stderr of the TERM, and would end by it if that were closed.
                        command = ["sh", "-c", script]
                        options = {"env": env, "grace": LIMIT, "stderr": holdfast.DEVNULL}
                        if call == "run_process":
                            await aio.run_process(command, **options)
                        async with await aio.open_process(command, **options) as process:
                            if call == "wait":
                                await process.wait()
                            elif call == "receive":
                                await process.stdout.receive()
                            await anyio.sleep_forever()

                    tasks.start_soon(task)
                    await anyio.wait_readable(reader)
                    assert os.read(reader, 10) == b"go\n"
                    tasks.cancel_scope.cancel()
                assert os.read(reader, 10) == b"stopped\n"  # within its grace, and before we came here
        finally:
            os.close(reader)

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS[:2])
def test_tasks_of_asyncio_cancelled_again_and_again(loop):
    """A bare Task.cancel knows no shields: it takes effect when nothing is left."""

    async def main():
        with nothing_left() as env:

            async def task(call, stdout):
                options = {"env": env, "grace": 1.0, "stdout": stdout}
                if call == "run":
                    await aio.run_process(STUBBORN, **options)
                async with await aio.open_process(STUBBORN, **options) as process:
                    await process.wait()

            for call in ("run", "open"):
                reader, writer = os.pipe()
                running = asyncio.create_task(task(call, writer))
                await anyio.wait_readable(reader)
                os.close(reader)
                os.close(writer)
                for _ in range(20):
                    running.cancel()
                    await asyncio.sleep(0.002)
                assert not running.done()
                with pytest.raises(asyncio.CancelledError):
                    await running
                assert not marked(env["HF_MARK"])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await aio.run_process(["sleep", "99"], env=env)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(aio.run_process(["sleep", "99"], env=env), 0.05)
            with pytest.raises(ExceptionGroup, match="unhandled errors") as error:
                async with asyncio.TaskGroup() as group:
                    group.create_task(aio.run_process(["sleep", "99"], env=env))
                    group.create_task(aio.run_process(["false"], env=env))
            assert error.group_contains(holdfast.CalledProcessError) if hasattr(error, "group_contains") else True

    run(loop, main)


def test_the_end_of_asyncio_run_stops_what_its_tasks_have():
    with nothing_left() as env:

        async def main():
            ready = asyncio.Event()

            async def task():
                async with await aio.open_process(STUBBORN, env=env, grace=0.05) as process:
                    await process.stdout.receive()
                    ready.set()
                    await process.wait()

            main.task = asyncio.create_task(task())
            await ready.wait()

        asyncio.run(main())
        assert not marked(env["HF_MARK"])
        assert main.task.cancelled()


@each_loop
def test_ctrl_c(loop):
    """A program that is interrupted at its terminal leaves nothing, and says nothing but that."""
    with nothing_left() as env:
        code = """
        import signal, sys, anyio, os
        from helpers_aio import run
        from holdfast import aio

        async def main():
            async with await aio.open_process(["sh", "-c", "(setsid sleep 99 &) ; echo; sleep 99"]) as process:
                await process.stdout.receive()
                signal.raise_signal(signal.SIGINT)
                await process.wait()

        try:
            run(sys.argv[1], main)
        except KeyboardInterrupt:
            print("interrupted")
        """
        assert program(code, loop, env=env) == "interrupted\n"


# ---- keepers that are frozen or killed


@each_loop
def test_a_frozen_keeper_does_not_hold_up_the_loop(loop):
    """The process ends and its keeper does not say so: the loop runs on, until the keeper is thawed."""
    code = """
    import os, signal, sys, anyio, threading
    from helpers_aio import run
    from helpers_trees import hold_keeper
    from holdfast import aio
    from holdfast.process.ear import Ear

    looks = 0
    hush = Ear.hush

    def counted(self):
        global looks
        looks += 1
        hush(self)

    Ear.hush = counted

    async def main():
        for how in sys.argv[2:]:
            async with await aio.open_process(["cat"], grace=0.05) as process:
                fd = hold_keeper(process)
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
                os.close(fd)
                if how == "close":
                    continue  # into aclose
                await process.stdin.aclose()
                ticks = 0

                async def tick():
                    nonlocal ticks
                    while True:
                        await anyio.sleep(0.01)
                        ticks += 1

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(tick)
                    waiting = [process.wait] * 3
                    async with anyio.create_task_group() as inner:
                        for each in waiting:
                            inner.start_soon(each)
                    tasks.cancel_scope.cancel()
                assert process.status.ok
                assert ticks > 20, ticks
                assert looks < 20, looks  # it did not spin on what is readable for ever
            assert process.returncode is not None

    run(sys.argv[1], main)
    print("done")
    """
    assert program(code, loop, "wait", *(["close"] if loop == "asyncio" else [])) == "done\n"


@each_loop
@pytest.mark.parametrize("fate", ["frozen", "killed"])
def test_events_under_such_a_keeper_do_not_hold_up_the_loop(loop, fate):
    """To learn what the killed one has left takes a while, here a second, as where others adopt it and reap late."""
    code = """
    import os, signal, sys, anyio
    import holdfast
    from helpers_aio import run
    from helpers_trees import hold_keeper
    from holdfast import aio
    from holdfast.events import Empty, Exited, Spawned
    from holdfast.process.kept import KeptTree

    async def main():
        seen, ticks = [], []

        async def tick():
            while True:
                await anyio.sleep(0.01)
                ticks.append(1)

        async with await aio.open_process(["cat"], grace=0.05, on_owner_loss="keep") as process:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tick)
                fd = hold_keeper(process)
                events = process.events()
                seen.append(await anext(events))
                with anyio.move_on_after(0.05):
                    await anext(events)
                if sys.argv[2] == "killed":
                    look = KeptTree._look_at_loss

                    def slow(tree):
                        import time
                        time.sleep(1)
                        return look(tree)

                    KeptTree._look_at_loss = slow
                signal.pidfd_send_signal(fd, signal.SIGSTOP if sys.argv[2] == "frozen" else signal.SIGKILL)
                os.close(fd)
                ticks.clear()
                try:
                    await process.stdin.aclose()
                    seen += [event async for event in events]
                except holdfast.KeeperLost:
                    assert sys.argv[2] == "killed"
                    process.release()
                tasks.cancel_scope.cancel()
        assert [type(event) for event in seen] == [Spawned, Exited, Empty][:3 if sys.argv[2] == "frozen" else 1], seen
        assert len(ticks) > 20

    run(sys.argv[1], main)
    """
    program(code, loop, fate)


@each_loop
def test_a_killed_keeper(loop):
    """KeeperLost out of whatever waits; the process goes with its keeper."""
    with nothing_left() as env:
        code = """
        import os, signal, sys, anyio
        import holdfast
        from helpers_aio import run
        from helpers_trees import hold_keeper
        from holdfast import aio

        async def main():
            told = []

            async def waits(call):
                try:
                    await call()
                except holdfast.KeeperLost:
                    told.append(call.__name__)

            try:
                async with await aio.open_process(["sleep", "99"]) as process:
                    async with anyio.create_task_group() as tasks:
                        for call in (process.wait, process.wait, process.wait_empty):
                            tasks.start_soon(waits, call)
                        await anyio.sleep(0.05)
                        fd = hold_keeper(process)
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                        os.close(fd)
                    await waits(process.stop)
            except holdfast.KeeperLost:
                told.append("aclose")
            await process.aclose()
            print(*sorted(told))

        run(sys.argv[1], main)
        """
        assert program(code, loop, env=env) == "aclose stop wait wait wait_empty\n"


# ---- the loop and its threads


@each_loop
def test_no_threads_and_no_signals(loop):
    """A program's own wait for any child, and its SIGCHLD handler, see nothing of it."""

    async def main():
        threads = set()
        with nothing_left() as env:

            async def one(number):
                done = await aio.run_process(["sh", "-c", f"exit {number}"], env=env, check=False)
                threads.add(threading.active_count())
                assert done.returncode == number

            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(one, number)
        assert threads == {1}

    seen = []
    before = signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    try:
        run(loop, main)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert not seen
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@each_loop
def test_another_who_reads_what_the_keeper_says(loop):
    """What was read beside a task that sleeps wakes it: a bell rings."""

    async def main():
        async with await aio.open_process(["sh", "-c", "exec 3<&0; (read x <&3) & exit 2"]) as process:
            assert await process.wait() == 2
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(process.wait_empty)
                await until_blocked(loop)
                await process.stdin.send(b"\n")
                process._process.wait_empty(LIMIT)  # without the loop: its descriptors are quiet afterwards

    run(loop, main)


def test_a_forked_copy_is_inert():
    code = """
    import asyncio, os
    from holdfast import aio

    loop = asyncio.new_event_loop()
    process = loop.run_until_complete(aio.open_process(["cat"]))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(process.wait())
        except ValueError as error:
            code = "forked from" not in str(error)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert process.returncode is None
    loop.run_until_complete(process.aclose())
    loop.close()
    """
    program(code)


def test_descriptors_of_a_handle():
    """Three, its pipes, and two more from the first wait on: as the page says."""

    async def main():
        async with await aio.open_process(["cat"], stderr=None) as first:  # whatever is opened once is open now
            before = len(descriptors())
            async with await aio.open_process(["cat"], stderr=None) as process:
                assert len(descriptors()) - before == 3 + 2
                with anyio.move_on_after(0.01):
                    await process.wait()
                with anyio.move_on_after(0.01):
                    await process.wait_empty()
                assert len(descriptors()) - before == 3 + 2 + 2
            assert len(descriptors()) == before
            assert first.returncode is None

    run("asyncio", main)


# ---- the page


def test_what_the_page_shows_happens(tmp_path):
    page = (ROOT / "docs/aio.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    said = [program(block, cwd=tmp_path).splitlines() for block in blocks]
    assert said[0][0].startswith("b'HELLO\\n' 0.") and said[0][1:] == [r"b'one line\n'", "0 exit code 0"]
    assert said[1] == [r"b'ready\n'", r"b'bye\n'"]
    parts = set(re.findall(r"`(test_\w+)`", page))
    listed = re.findall(r'^    "(test_\w+)": "', (ROOT / "tests/helpers_aio_standard.py").read_text(), flags=re.M)
    assert parts == set(listed)
