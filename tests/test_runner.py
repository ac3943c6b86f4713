"""`Runner`: keepers that are used again, and what ends that."""

import os
import select
import signal
import threading
import uuid

import pytest
from helpers_lib import descriptors, keepers, marked, program
from helpers_wait import eventually

import holdfast
from holdfast import PIPE
from holdfast.process.runner import IDLE_MAX


@pytest.fixture
def runner():
    with holdfast.Runner() as runner:
        yield runner
    assert eventually(lambda: not keepers())


def test_one_keeper_for_one_command_after_another(runner):
    assert eventually(lambda: len(keepers()) == 1)  # the template
    for i in range(50):
        done = runner.run(["sh", "-c", f"echo {i}; exit {i}"], capture_output=True, text=True)
        assert (done.stdout, done.returncode, done.report) == (f"{i}\n", i, None)
        assert eventually(lambda: len(keepers()) == 2)
    assert runner.run(["cat"], input=b"x", capture_output=True).stdout == b"x"


def test_a_spawned_process_is_a_process(runner):
    with runner.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert isinstance(process, holdfast.Process) and process.poll() is None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hello\n"
        report = process.stop(grace=5)
        assert report.empty and [m.name for m in report.signalled] == ["cat"]
    assert process.status.signal == signal.SIGTERM


def test_many_at_once_then_a_bounded_number_of_idle_keepers(runner):
    processes = [runner.spawn(["cat"], stdin=PIPE) for _ in range(IDLE_MAX + 8)]
    assert eventually(lambda: len(keepers()) == IDLE_MAX + 8 + 1)
    for process in processes:
        process.stdin.close()
        assert process.wait(30).ok
        process.close()
    assert eventually(lambda: len(keepers()) == IDLE_MAX + 1)
    fds = descriptors()
    processes = [runner.spawn(["cat"], stdin=PIPE) for _ in range(IDLE_MAX)]
    assert eventually(lambda: len(keepers()) == IDLE_MAX + 1)
    for process in processes:
        process.close()
    assert descriptors() == fds


def test_a_keeper_with_a_living_tree_is_not_used_again(runner):
    value = str(uuid.uuid4())
    env = {**os.environ, "HOLDFAST_TEST": value}
    with runner.spawn(["sh", "-c", "sleep 99 & exit 4"], env=env) as process:
        assert process.wait(30).code == 4  # the descendant lives, so the keeper is busy
        assert len(marked(value)) == 1
        assert runner.run(["true"]).status.ok
        assert eventually(lambda: len(keepers()) == 3)
    # Closing has stopped the rest; now the keeper is as good as the other.
    assert not marked(value)
    assert runner.run(["true"]).status.ok and eventually(lambda: len(keepers()) == 3)


def test_run_leaves_nothing_of_a_tree(runner):
    value = str(uuid.uuid4())
    env = {**os.environ, "HOLDFAST_TEST": value}
    done = runner.run(["sh", "-c", 'trap "" TERM; (setsid sleep 99 &); exit 3'], env=env, grace=0.2)
    assert done.returncode == 3 and done.report.empty and not marked(value)
    with pytest.raises(holdfast.TimeoutExpired) as caught:
        runner.run(["sh", "-c", 'trap "" TERM; sleep 99 & sleep 99'], env=env, timeout=0.2, grace=0.1)
    assert caught.value.report.empty and not marked(value)
    assert runner.run(["true"]).status.ok


def test_release_gives_the_keeper_away(runner):
    process = runner.spawn(["cat"], stdin=PIPE)
    reader = os.dup(process.stdin.fileno())
    fd = os.pidfd_open(process.pid)
    process.release()
    assert not select.select([fd], [], [], 0.05)[0]
    assert runner.run(["true"]).status.ok
    assert not select.select([fd], [], [], 0)[0]
    os.close(reader)  # the last end of its stdin
    assert select.select([fd], [], [], 30)[0]
    os.close(fd)


def test_closing_stops_what_still_runs():
    value = str(uuid.uuid4())
    env = {**os.environ, "HOLDFAST_TEST": value}
    fds = descriptors()
    runner = holdfast.Runner()
    reader, writer = os.pipe()
    script = "trap 'echo stopped; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    process = runner.spawn(["sh", "-c", script], env=env, stdout=writer, process_group=0)
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.readline() == b"ready\n"
        assert runner.run(["true"]).status.ok
        runner.close()
        assert file.read() == b"stopped\n"  # TERM came, not KILL
    assert eventually(lambda: not marked(value)) and eventually(lambda: not keepers())
    with pytest.raises(RuntimeError, match="runner is closed"):
        process.wait(30)
    process.close()
    assert descriptors() == fds


def test_use_after_close():
    runner = holdfast.Runner()
    process = runner.spawn(["true"])
    assert process.wait(30).ok
    process.close()
    runner.close()
    runner.close()
    for start in (runner.spawn, runner.run):
        with pytest.raises(RuntimeError, match="closed"):
            start(["true"])
    assert process.wait().ok and process.poll().ok
    with holdfast.Runner() as runner:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(["true"], capture_output=True)


def test_a_dropped_runner_ends():
    fds = descriptors()
    runner = holdfast.Runner()
    assert runner.run(["true"]).status.ok and eventually(lambda: len(keepers()) == 2)
    del runner
    assert eventually(lambda: not keepers()) and descriptors() == fds


def test_an_idle_keeper_that_was_killed_is_no_lasting_harm(runner):
    """As an out-of-memory killer would: at most the start that meets it fails, and says so."""
    assert runner.run(["true"]).status.ok
    for keeper in runner._idle:
        keeper.kill()
        assert select.select([keeper._pidfd], [], [], 30)[0]
    try:
        runner.run(["true"])
    except holdfast.SpawnError as error:
        assert error.stage == "launch"
    for _ in range(3):
        assert runner.run(["true"]).status.ok


def test_runners_are_apart():
    with holdfast.Runner() as one, holdfast.Runner() as two:
        with one.spawn(["cat"], stdin=PIPE) as process:
            two.run(["true"])
            two.close()
            assert process.poll() is None
            process.stdin.close()
            assert process.wait(30).ok
        assert one.run(["true"]).status.ok


def test_a_runner_made_in_a_thread_outlives_it():
    made = []
    thread = threading.Thread(target=lambda: made.append(holdfast.Runner()))
    thread.start()
    thread.join()
    with made[0] as runner:
        assert runner.run(["sh", "-c", "exit 6"]).returncode == 6


def test_the_owner_killed():
    value = str(uuid.uuid4())
    program(
        """
        import os, sys, holdfast
        if os.fork():
            assert os.waitpid(-1, 0)[1] == 9
        else:
            env = {**os.environ, "HOLDFAST_TEST": sys.argv[1]}
            runner = holdfast.Runner()
            runner.run(["true"])
            processes = [runner.spawn(["sh", "-c", "(setsid sleep 99 &); sleep 99"], env=env) for _ in range(5)]
            os.kill(os.getpid(), 9)
        """,
        value,
    )
    assert eventually(lambda: not marked(value), 15)


def test_a_runner_is_refused_in_a_forked_copy_and_goes_on_in_the_original(runner):
    assert runner.run(["true"]).status.ok
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            runner.run(["true"])
        except RuntimeError as error:
            code = 0 if "forked from" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert runner.run(["true"]).status.ok


def test_where_the_owner_is_a_subreaper():
    """Keepers come back to it as children: they are reaped by descriptor, and no status depends on that."""
    program("""
        import ctypes, os, holdfast
        from helpers_lib import descriptors, keepers
        from helpers_wait import eventually
        assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
        before = descriptors()
        for _ in range(3):
            with holdfast.Runner() as runner:
                for i in range(20):
                    assert runner.run(["sh", "-c", f"exit {i}"]).returncode == i
        for i in range(20):
            assert holdfast.run(["sh", "-c", f"exit {i}"]).returncode == i
        assert eventually(lambda: not keepers())
        assert descriptors() == before
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            assert file.read() == ""
    """)


def test_an_idle_keeper_that_was_closed_is_passed_over():
    """An interruption at the wrong moment leaves one so; the runner itself is not closed."""
    with holdfast.Runner() as runner:
        runner.run(["true"])
        (idle,) = runner._idle
        idle.close()
        assert runner.run(["true"]).returncode == 0
