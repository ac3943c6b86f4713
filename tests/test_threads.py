"""Many threads, shared handles, forks in the middle: nothing hangs, nothing is mixed up (done-when 9)."""

import multiprocessing
import os
import random
import signal
import threading
import time
import uuid

import pytest
from helpers_lib import WAYS, keepers, marked, program, starter
from helpers_wait import eventually

import holdfast
from holdfast import DEVNULL, PIPE

THREADS, PROCESSES = 8, 2000


def in_threads(work, count=THREADS, limit=60):
    """Run work(number) in threads; the first exception is raised here, a hang is a failure."""
    errors = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    if errors:
        raise errors[0]


def one(start, random, env):
    """One process, used in one of many ways; its status must be the one that this way gives."""
    how = random.randrange(8)
    code = random.randrange(256)
    argv = ["sh", "-c", f"exit {code}"]
    if how == 0:
        with start(argv, env=env) as process:
            assert process.wait(60).code == code
    elif how == 1:
        with start([*argv[:2], f"echo {code}; exit {code}"], env=env, stdout=PIPE, stderr=PIPE, stdin=PIPE) as process:
            assert process.communicate(b"x", 60) == (b"%d\n" % code, b"")
            assert process.wait(60).code == code
    elif how == 2:
        with start(["cat"], env=env, stdin=PIPE) as process:
            process.send_signal(signal.SIGUSR1)
            assert process.wait(60).signal == signal.SIGUSR1
    elif how == 3:
        process = start(["cat"], env=env, stdin=PIPE)
        report = process.stop()
        assert report.empty and process.wait(60).signal == signal.SIGTERM
        process.close()
    elif how == 4:
        process = start(["cat"], env=env, stdin=PIPE)
        process.close()
        # closing stdin ends it, unless TERM is faster
        assert process.wait(60).returncode in (0, -signal.SIGTERM)
    elif how == 5:
        with start(argv, env=env) as process:
            while process.poll() is None:
                process.send_signal(signal.SIGCONT)
            assert process.poll().code == code
            process.kill()
    elif how == 6:
        with start(["cat"], env=env, stdin=PIPE) as process:
            with pytest.raises(holdfast.TimeoutExpired):
                process.wait(0)
            process.signal_tree("HUP")
            process.wait_empty(60)
            assert process.wait(0).signal in (signal.SIGHUP, None) and process.status is not None
    else:
        with pytest.raises(holdfast.SpawnError):
            start(["/no/such/program"], env=env, stdin=PIPE, stdout=DEVNULL)


@pytest.mark.parametrize("way", ["spawn", "runner"])
def test_threads_do_everything_at_once(way):
    value = str(uuid.uuid4())
    env = {**os.environ, "HOLDFAST_TEST": value}
    with starter(way) as start:
        start(["true"]).close()

        def work(number):
            chance = random.Random(number)
            for _ in range(PROCESSES // THREADS):
                one(start, chance, env)

        in_threads(work)
    assert eventually(lambda: not marked(value)) and eventually(lambda: not keepers())


def test_threads_start_direct_children_at_once():
    with starter("direct") as start:

        def work(number):
            chance = random.Random(number)
            for _ in range(40):
                one(start, chance, None)

        in_threads(work)


@pytest.mark.parametrize("way", WAYS)
def test_threads_share_one_handle(way):
    """wait, poll, stop, signal and close of the same process at the same time, in every order."""
    with starter(way) as start:
        for i in range(40):
            process = start(["sh", "-c", "read line; exit 7"], stdin=PIPE, process_group=0)
            gate = threading.Barrier(THREADS)
            seen = []

            def work(number, process=process, gate=gate, seen=seen, i=i):
                gate.wait(60)
                number = (number + i) % THREADS
                if number < 3:
                    seen.append(process.wait(60))
                elif number == 3:
                    seen.append(process.wait(60) if process.poll() is None else process.poll())
                elif number == 4:
                    assert process.stop(grace=5).empty
                elif number == 5:
                    process.signal_tree("TERM")
                    process.terminate()
                elif number == 6:
                    assert process.stop().empty
                else:
                    process.close()

            in_threads(work)
            process.close()
            assert len(seen) == 4 and len(set(seen)) == 1
            assert seen[0].returncode in (-15, 7)  # close() ends the input too


def test_a_closed_handle_never_reaches_the_next_process():
    """The runner's keeper holds another tree by then; stop, signal_tree and release of the old handle are idle."""
    with holdfast.Runner() as runner:
        first = runner.spawn(["true"])
        first.wait(60)
        first.close()
        with runner.spawn(["cat"], stdin=PIPE, stdout=PIPE, process_group=0) as second:
            assert eventually(lambda: len(keepers()) == 2)  # the template, and one for both
            first.signal_tree("KILL")
            first.kill()
            first.terminate()
            assert first.stop(grace=0).empty
            first.close()
            first.wait_empty(0)
            assert first.wait(0).ok
            with pytest.raises(holdfast.TimeoutExpired):
                second.wait(0.05)
            assert second.communicate(b"alive", 60) == (b"alive", b"")


def test_stops_race_with_the_next_process_of_the_keeper():
    """One thread closes and starts anew, others stop the old handle: never the new process."""
    with holdfast.Runner() as runner:
        current = [runner.spawn(["true"])]
        done = threading.Event()

        def work(number):
            if number:
                while not done.is_set():
                    try:
                        current[0].stop(grace=0)
                    except AttributeError:
                        pass
                return
            try:
                for i in range(150):
                    old = current[0]
                    old.wait(60)
                    # from here on the others may only meet the old one
                    old.close()
                    with runner.spawn(["sh", "-c", f"exit {i}"]) as new:
                        assert new.wait(60).code == i
                    current[0] = runner.spawn(["true"])
            finally:
                done.set()

        in_threads(work, 4)
        current[0].close()


def test_one_runner_for_all_threads_while_another_thread_closes_it():
    for _ in range(5):
        runner = holdfast.Runner()
        refused = []

        def work(number, runner=runner, refused=refused):
            if number == 0:
                runner.run(["true"])
                runner.close()
                return
            while True:
                try:
                    runner.run(["true"])
                except (RuntimeError, holdfast.SpawnError) as error:  # KeeperLost is a RuntimeError
                    refused.append(error)
                    if "closed" in str(error):
                        return

        in_threads(work)
        assert len(refused) >= THREADS - 1
    assert eventually(lambda: not keepers())


def test_forks_while_threads_start_processes():
    """A forked copy holds every descriptor at that moment, also those of starts that are under way."""
    with holdfast.Runner() as runner:
        done = threading.Event()

        def work(number):
            if number == 0:
                try:
                    for _ in range(60):
                        pid = os.fork()
                        if pid == 0:
                            os._exit(0)
                        assert os.waitpid(pid, 0)[1] == 0
                finally:
                    done.set()
                return
            start = runner.spawn if number % 2 else holdfast.spawn
            while not done.is_set():
                with start(["sh", "-c", "exit 9"], stdin=PIPE, stdout=PIPE) as process:
                    assert process.communicate(timeout=60) == (b"", b"")
                    assert process.wait(60).code == 9

        in_threads(work, 5)


def test_a_forked_copy_keeps_no_tree_alive_and_its_handles_are_inert():
    value = str(uuid.uuid4())
    # The program forks a copy that lives on, then dies by SIGKILL: its trees must go although the copy
    # inherited every descriptor.  The copy checks that its handles do nothing.
    program(
        """
        import functools, os, signal, sys, threading, holdfast
        env = {**os.environ, "HOLDFAST_TEST": sys.argv[1]}
        runner = holdfast.Runner()
        kept = holdfast.spawn(["sleep", "99"], env=env)
        leased = runner.spawn(["sleep", "99"], env=env)
        direct = holdfast.spawn(["sleep", "99"], private=False)
        go, gone = os.pipe()
        if os.fork() == 0:
            os.close(gone)
            for process in (kept, leased, direct):
                for call in (process.poll, process.wait, process.kill, process.stop, process.wait_empty,
                             functools.partial(process.signal_tree, 9), functools.partial(process.wait, 0)):
                    try:
                        call()
                    except ValueError as error:
                        assert "forked from" in str(error) or "closed" in str(error), error
                    else:
                        os.write(2, b"a handle worked in the forked copy: %r" % str(call).encode())
                        os._exit(1)
            try:
                runner.spawn(["true"])
            except RuntimeError as error:
                assert "forked from" in str(error)
            else:
                os._exit(1)
            for thing in (kept, leased, direct, runner):
                try:
                    thing.close()
                except ValueError:
                    pass
            # new ones of its own work
            assert holdfast.run(["true"]).status.ok
            with holdfast.Runner() as own:
                assert own.run(["true"]).status.ok
            os.write(1, b"checked")
            os.read(go, 1)  # until the program is gone
            os._exit(0)
        os.close(go)
        pid, status = os.waitpid(-1, os.WNOHANG)
        assert pid == 0
        for process in (kept, leased, direct):
            assert process.poll() is None
        import time
        out = os.read(0, 1)
        assert all(process.poll() is None for process in (kept, leased, direct)), "the copy's close reached them"
        direct.kill(); direct.wait()
        os._exit(0)
        """,
        value, stdin=DEVNULL,
    )  # fmt: skip
    assert eventually(lambda: not marked(value), 15)


def test_a_forked_copy_does_not_wait_for_a_direct_child():
    """It could not reap it: while the child runs a copy says so, as it does when it has ended."""
    program(
        """
        import os, holdfast
        with holdfast.spawn(["cat"], stdin=holdfast.PIPE, private=False) as direct:
            if (copy := os.fork()) == 0:
                for call in (direct.poll, direct.wait):
                    try:
                        call()
                    except ValueError as error:
                        assert "forked from" in str(error)
                    else:
                        os._exit(1)
                os._exit(0)
            assert os.waitpid(copy, 0)[1] == 0
            assert direct.poll() is None
        """
    )


def _child_of_multiprocessing(queue, process):
    try:
        process.poll()
    except ValueError as error:
        queue.put(str(error))


def test_multiprocessing_by_fork():
    context = multiprocessing.get_context("fork")
    with holdfast.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        queue = context.SimpleQueue()
        child = context.Process(target=_child_of_multiprocessing, args=(queue, process))
        child.start()
        assert "forked from" in queue.get()
        child.join(60)
        child.close()
        queue.close()
        assert process.communicate(b"here", 60) == (b"here", b"")


def test_forks_while_locks_are_held():
    """A copy that is forked while another thread is inside the runner or a handle does not hang on its locks."""
    program("""
        import os, threading, time, holdfast
        runner = holdfast.Runner()
        stop = threading.Event()
        def churn():
            while not stop.is_set():
                runner.run(["true"])
        threads = [threading.Thread(target=churn) for _ in range(3)]
        [t.start() for t in threads]
        for _ in range(150):
            pid = os.fork()
            if pid == 0:
                try:
                    runner.spawn(["true"])
                except RuntimeError:
                    runner.close()
                    os._exit(0)
                os._exit(1)
            fd = os.pidfd_open(pid)
            import select
            assert select.select([fd], [], [], 30)[0], "a forked copy hangs"
            os.close(fd)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        [t.join() for t in threads]
        runner.close()
    """)
