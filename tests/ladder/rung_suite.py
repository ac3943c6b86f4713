"""What every rung has to do, run once for each by test_notifiers.py: HOLDFAST_NOTIFIER says which."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import select
import signal
import threading
import time

import pytest
from helpers_wait import eventually

import holdfast
from holdfast import PIPE, SpawnError, TimeoutExpired
from holdfast.process import handle, notify

RUNG = os.environ["HOLDFAST_NOTIFIER"]
PATIENCE = 20


def spawn(script, **options):
    return holdfast.spawn(["sh", "-c", script], private=False, **options)


def readable(process, seconds):
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def has_ended(pid):
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return True  # the kernel reaps by itself: nothing is left to wait for


def test_it_is_the_one_that_was_asked_for():
    assert notify.choice() == RUNG
    with spawn("exit 0") as process:
        assert type(process._tree._notifier).__module__.endswith(f".{RUNG}")
        assert process.private is False
        process.wait(PATIENCE)


@pytest.mark.parametrize("end", [0, 7, 255, -9, -15])
def test_how_it_ended(end):
    with spawn(f"exit {end}" if end >= 0 else f"kill -{-end} $$; sleep 99") as process:
        status = process.wait(PATIENCE)
        assert (status.code, status.signal) == ((end, None) if end >= 0 else (None, -end))
        assert status.usage is None or status.usage.max_rss_bytes > 65536
        assert process.wait(0) is process.poll() is process.status is status
    assert process.returncode == end


def test_usage():
    with spawn("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done") as process:
        usage = process.wait(PATIENCE).usage
    assert usage is None or 0 < usage.user_seconds + usage.system_seconds < PATIENCE


def test_a_time_limit_is_kept_and_leaves_the_process_alone():
    with spawn("read x; exit 3", stdin=PIPE) as process:
        for limit in (0, 0.001, 0.13):
            began = time.monotonic()
            with pytest.raises(TimeoutExpired):
                process.wait(limit)
            assert limit <= time.monotonic() - began + 0.001
        assert process.poll() is None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait(PATIENCE).code == 3


def test_the_descriptor_is_readable_exactly_when_it_has_ended():
    with spawn("read x", stdin=PIPE) as process:
        assert not readable(process, 0.15)
        process.stdin.close()
        assert readable(process, PATIENCE)
        assert process.poll() is not None
        assert readable(process, 0)


def test_the_descriptor_of_one_that_has_ended_before_anybody_asked():
    with spawn("echo x", stdout=PIPE) as process:
        process.stdout.read()
        assert eventually(lambda: has_ended(process.pid), PATIENCE)
        assert readable(process, PATIENCE)
        assert process.poll().code == 0


def test_one_end_among_many():
    """Signals coalesce: one may stand for many ends.  And no descriptor is readable for another's end."""
    processes = [spawn("read x; exit $0".replace("$0", str(n)), stdin=PIPE) for n in range(60)]
    poll = select.poll()
    by_fd = {process.fileno(): n for n, process in enumerate(processes)}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    assert not poll.poll(60)
    for group in (range(1), range(1, 30), range(30, 60)):
        for n in group:
            processes[n].stdin.close()
        left = set(group)
        while left:
            ready = poll.poll(PATIENCE * 1000)
            assert ready, f"nobody tells of {left}"
            for fd, _ in ready:
                poll.unregister(fd)
                left.remove(by_fd[fd])
                assert processes[by_fd[fd]].poll().code == by_fd[fd]
    for process in processes:
        process.close()


def test_many_threads_wait_for_one():
    with spawn("read x; exit 5", stdin=PIPE) as process:
        codes = []
        threads = [threading.Thread(target=lambda: codes.append(process.wait(PATIENCE).code)) for _ in range(8)]
        for thread in threads:
            thread.start()
        process.stdin.close()
        for thread in threads:
            thread.join()
        assert codes == [5] * 8


def test_each_thread_waits_for_its_own():
    failed = []

    def work(n):
        for i in range(8):
            with spawn(f"exit {n + i}") as process:
                if process.wait(PATIENCE).code != n + i:
                    failed.append((n, i))

    threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_signals():
    with spawn("trap 'echo got; exit 4' USR1; echo ready; while :; do sleep 0.01; done", stdout=PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal("USR1")
        assert process.stdout.readline() == b"got\n"
        assert process.wait(PATIENCE).code == 4
        process.kill()
        process.signal_tree("KILL")
        assert process.poll().code == 4


def test_a_stop_reaches_the_group():
    """Its second process holds the pipe: the pipe's end proves the group gone, after its leader, too."""
    stubborn = "trap '' TERM; (trap '' TERM; sleep 99) & echo x; wait"
    for grace, script in ((PATIENCE, "sleep 99 & echo x; wait"), (0, stubborn)):
        with spawn(script, stdout=PIPE, process_group=0) as process:
            assert process.stdout.readline() == b"x\n"
            report = process.stop(grace=grace)
            assert report.empty
            assert process.stdout.read() == b""


def test_run_with_pipes_and_a_time_limit():
    done = holdfast.run(["cat"], input=b"x" * 300_000, capture_output=True, private=False)
    assert (done.returncode, len(done.stdout)) == (0, 300_000)
    with pytest.raises(TimeoutExpired) as caught:
        holdfast.run(["sh", "-c", "echo x; exec sleep 99"], capture_output=True, timeout=0.2, grace=1, private=False)
    assert caught.value.stdout == b"x\n"
    assert caught.value.status.signal == 15


def test_a_start_that_fails_leaves_nothing():
    for options, stage in (({}, "exec"), ({"cwd": "/nonexistent"}, "chdir")):
        with pytest.raises(SpawnError) as caught:
            holdfast.spawn(["/nonexistent/program"], private=False, **options)
        assert caught.value.stage == stage
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_start_without_descriptors_leaves_nothing():
    """Not even while the caller looks at the error."""
    spawn("exit 0").close()  # whatever is loaded late is loaded now
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held, failed = [os.dup(0)], 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 30, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(6):
            try:
                spawn("exit 0").close()
            except SpawnError as error:
                failed += 1
                assert error.errno == errno.EMFILE
                with pytest.raises(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)
            os.close(held.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in held:
            os.close(fd)
    assert failed or RUNG == "polling"  # that needs none


def test_a_start_that_nobody_takes_is_undone(monkeypatch):
    def refuse(*_):
        raise RuntimeError

    monkeypatch.setattr(handle.Process, "__init__", refuse)
    with pytest.raises(RuntimeError):
        spawn("sleep 99")
    gc.collect()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_status_that_another_wait_has_taken():
    """Whatever can be known of it, nobody waits for ever, and nothing signals the number any more."""
    with spawn("read x; exit 6", stdin=PIPE) as process:
        process.stdin.close()
        if RUNG == "pidfd" and not _reaped_by_waitpid(process.pid):
            return  # the kernel reaps by itself: nobody can take it
        if RUNG != "pidfd":
            assert os.waitpid(process.pid, 0)[1] >> 8 == 6
        try:
            assert process.wait(PATIENCE).code == 6
        except ChildProcessError as error:
            assert "another wait" in str(error)
        process.terminate()
        assert readable(process, PATIENCE)
        process._tree.status = process._tree.status or holdfast.ExitStatus(6, None, False, None, 0.0, 0.0)


def _reaped_by_waitpid(pid):
    try:
        return os.waitpid(pid, 0)[1] >> 8 == 6
    except ChildProcessError:
        return False


def test_an_exception_of_a_signal_handler_ends_a_wait_and_nothing_else():
    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with spawn("read x; exit 8", stdin=PIPE) as process:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Alarm):
                process.wait(PATIENCE)
            process.stdin.close()
            assert process.wait(PATIENCE).code == 8
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_program_s_own_handler_of_sigchld():
    """Set before a start and while one is waited for, it is called, and the wait notices the end."""
    called = []
    before = signal.signal(signal.SIGCHLD, lambda *_: called.append(1))
    try:
        with spawn("read x", stdin=PIPE) as process:
            assert not readable(process, 0)
            signal.signal(signal.SIGCHLD, lambda *_: called.append(2))
            process.stdin.close()
            assert process.wait(PATIENCE).code == 1
        with spawn("read x", stdin=PIPE) as process:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            process.stdin.close()
            assert process.wait(PATIENCE).code == 1
        mute = RUNG == "signalfd" or notify_reaps()
        assert eventually(lambda: mute or 2 in called, PATIENCE)
    finally:
        signal.signal(signal.SIGCHLD, before)


def notify_reaps():
    from holdfast.process import _native

    return RUNG == "pidfd" and _native.has_autoreap()


def test_a_forked_copy_has_its_own_children():
    with spawn("read x; exit 2", stdin=PIPE) as process:
        process.fileno()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pytest.raises(ValueError):
                    process.poll()
                with spawn("exit 3") as own, spawn("exit 4") as other:
                    fine = readable(own, PATIENCE) and own.poll().code == 3 and other.wait(PATIENCE).code == 4
                code = 0 if fine else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not readable(process, 0.1)
        process.stdin.close()
        assert readable(process, PATIENCE)
        assert process.wait(PATIENCE).code == 2


def test_asyncio_waits_for_the_descriptor():
    async def main():
        loop = asyncio.get_running_loop()
        with spawn("read x; exit 9", stdin=PIPE) as process:
            ready = loop.create_future()
            loop.add_reader(process.fileno(), lambda: ready.done() or ready.set_result(None))
            process.stdin.close()
            await asyncio.wait_for(ready, PATIENCE)
            loop.remove_reader(process.fileno())
            return process.poll().code

    assert asyncio.run(main()) == 9


def test_what_a_child_inherits_of_signals():
    """Nothing of what a rung does for itself."""
    look = ["sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status"]
    with open("/proc/self/status") as file:
        ignored = int(file.read().partition("SigIgn:")[2].split()[0], 16)
    lines = holdfast.run(look, private=False, capture_output=True, text=True).stdout.split()
    blocked, still_ignored = int(lines[1], 16), int(lines[3], 16)
    assert blocked == 0
    assert still_ignored & 1 << signal.SIGCHLD - 1 == ignored & 1 << signal.SIGCHLD - 1
