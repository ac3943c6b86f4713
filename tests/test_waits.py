"""forward_waits: waits of the program and our direct children, each side gets exactly its own."""

from __future__ import annotations

import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from helpers_lib import program
from helpers_readme import blocks
from helpers_wait import LIMIT, all_ended, wait_for

import holdfast
from holdfast import PIPE, forward_waits, spawn
from holdfast.process import _native, handle, looking, waits
from holdfast.process.direct import DirectTree
from holdfast.process.notify import pidfd

# From Linux 7.1 on the kernel reaps direct children: nobody meets them, and there is no usage.
USAGE = not _native.has_autoreap()
met = pytest.mark.skipif(not USAGE, reason="the kernel reaps direct children (Linux 7.1)")
RUNGS = ["pidfd", "selfpipe", "polling"]  # not signalfd: there the program's own handler of SIGCHLD is mute
PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "waits.md").read_text()


def ours(script: str = "read x; exit 7", **options) -> holdfast.Process:
    """A direct child of ours that ends when its input does."""
    return spawn(["/bin/sh", "-c", script], stdin=PIPE, private=False, **options)


@contextmanager
def holding(**options):
    process = ours(**options)
    with process:
        yield process
        process.stdin.close()
        assert process.wait(LIMIT).code == 7
        assert (process.status.usage is not None) == USAGE  # reaped by us, not made up for


def child(code: int = 0, group: bool = False, held: int = -1) -> int:
    """The program's own: ends with `code`, at once or when `held` can be read.  It holds none of our pipes."""
    script = f"exit {code}" if held < 0 else f"read x; exit {code}"
    actions = [] if held < 0 else [(os.POSIX_SPAWN_DUP2, held, 0)]
    return os.posix_spawn(
        "/bin/sh", ["sh", "-c", script], os.environ, file_actions=actions, **({"setpgroup": 0} if group else {})
    )


def answer(*pid: int) -> object:
    """What a wait for any child, or for that one, comes to."""
    try:
        return os.waitpid(*pid, 0) if pid else os.wait()
    except ChildProcessError:
        return "none"


@pytest.fixture
def gate():
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


ANY_WAITS = {
    "wait": lambda: os.wait(),
    "waitpid": lambda: os.waitpid(-1, 0),
    "waitpid in the group": lambda: os.waitpid(0, 0),
    "waitpid in that group": lambda: os.waitpid(-os.getpgrp(), 0),
    "wait3": lambda: os.wait3(0)[:2],
    "wait4": lambda: os.wait4(-1, 0)[:2],
    "waitid": lambda: (lambda r: (r.si_pid, r.si_status << 8))(os.waitid(os.P_ALL, 0, os.WEXITED)),
    "waitid in the group": lambda: (lambda r: (r.si_pid, r.si_status << 8))(os.waitid(os.P_PGID, 0, os.WEXITED)),
}
any_wait = pytest.mark.parametrize("wait", ANY_WAITS.values(), ids=ANY_WAITS)


# ---- what a wait gets


@any_wait
def test_a_wait_gets_the_programs_child_and_never_ours(wait):
    with forward_waits(), holding() as living, ours("exit 5") as ended:
        assert all_ended([ended.pid])
        pid = child(3)
        assert wait() == (pid, 3 << 8)
        assert living.poll() is None
        assert ended.wait(LIMIT).code == 5
        assert (ended.status.usage is not None) == USAGE


@any_wait
def test_nothing_of_the_program_is_left(wait):
    """A blocking wait whose only children are ours would never return."""
    with forward_waits(), holding(), pytest.raises(ChildProcessError):
        wait()


@any_wait
def test_as_ever_without_children_of_ours(wait):
    with forward_waits():
        with pytest.raises(ChildProcessError):
            wait()
        pid = child(9)
        assert wait() == (pid, 9 << 8)


@any_wait
def test_a_wait_that_blocks_passes_over_ours_that_end_meanwhile(wait, gate):
    several = [ours("read x; exit 4") for _ in range(5)]
    found = []
    with forward_waits():
        pid = child(6, held=gate[0])
        thread = threading.Thread(target=lambda: found.append(wait()))
        thread.start()
        wait_for(lambda: looking._sleepers)
        for process in several:
            process.stdin.close()
        assert [process.wait(LIMIT).code for process in several] == [4] * 5
        assert all(bool(process.status.usage) == USAGE for process in several)
        assert not found
        os.write(gate[1], b"\n")
        thread.join(LIMIT)
        assert found == [(pid, 6 << 8)]
    for process in several:
        process.close()


@pytest.mark.parametrize(
    "look",
    [
        lambda pid: os.waitpid(pid, os.WNOHANG),
        lambda pid: os.wait4(pid, os.WNOHANG)[:2],
        lambda pid: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) or (0, 0),
    ],
)
def test_not_yet(look, gate):
    with forward_waits(), holding():
        pid = child(held=gate[0])
        with ours("exit 5") as ended:
            assert all_ended([ended.pid])
            assert look(-1) == (0, 0)
            assert ended.wait(LIMIT).code == 5
        os.write(gate[1], b"\n")
        assert os.waitpid(-1, 0) == (pid, 0)
        with pytest.raises(ChildProcessError):
            look(-1)


def test_nobody_yet_with_usage(gate):
    with forward_waits(), holding():
        child(held=gate[0])
        pid, status, usage = os.wait3(os.WNOHANG)
        assert (pid, status) == (0, 0)
        assert usage.ru_maxrss == 0
        os.write(gate[1], b"\n")
        _, _, usage = os.wait3(options=0)
        assert usage.ru_maxrss > 0


def test_ours_by_name():
    """What names a child of ours finds none, as with one that is private."""
    with forward_waits(), holding() as process:
        for options in (0, os.WNOHANG):
            with pytest.raises(ChildProcessError):
                os.waitpid(process.pid, options)
            with pytest.raises(ChildProcessError):
                os.wait4(process.pid, options)
            fd = os.pidfd_open(process.pid)
            for idtype, ident in ((os.P_PID, process.pid), (os.P_PIDFD, fd)):
                with pytest.raises(ChildProcessError):
                    os.waitid(idtype, ident, os.WEXITED | options)
            os.close(fd)


def test_the_programs_by_name(gate):
    with forward_waits(), holding():
        pid = child(2)
        assert os.waitpid(pid, 0) == (pid, 2 << 8)
        pid = child(3)
        fd = os.pidfd_open(pid)
        assert os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status == 3
        os.close(fd)
        assert subprocess.run(["/bin/sh", "-c", "exit 4"]).returncode == 4


def test_a_look_takes_nothing():
    with forward_waits(), holding(), ours("exit 5") as ended:
        assert all_ended([ended.pid])
        pid = child(8)
        for _ in range(2):
            assert os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_pid == pid
        assert os.wait() == (pid, 8 << 8)
        assert ended.wait(LIMIT).code == 5


def test_groups_are_told_apart(gate):
    with forward_waits(), holding(), ours(process_group=0, script="exit 5") as alone:
        assert all_ended([alone.pid])
        pid = child(8, group=True, held=gate[0])
        with pytest.raises(ChildProcessError):
            os.waitpid(0, 0)  # ours is in that group, the program's is not
        with pytest.raises(ChildProcessError):
            os.waitpid(-alone.pid, 0)
        os.write(gate[1], b"\n")
        assert os.waitid(os.P_PGID, pid, os.WEXITED).si_status == 8
        assert alone.wait(LIMIT).code == 5


@met
def test_stops_of_ours_are_not_told(gate):
    with forward_waits(), holding() as process:
        pid = child(held=gate[0])
        process.send_signal("STOP")
        wait_for(lambda: looking.posix.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG))
        assert os.waitpid(-1, os.WUNTRACED | os.WCONTINUED | os.WNOHANG) == (0, 0)
        os.kill(pid, signal.SIGSTOP)
        found, status = os.waitpid(-1, os.WUNTRACED)
        assert found == pid
        assert os.WSTOPSIG(status) == signal.SIGSTOP
        process.send_signal("CONT")
        os.kill(pid, signal.SIGCONT)
        found, status = os.waitpid(-1, os.WCONTINUED)
        assert found == pid
        assert os.WIFCONTINUED(status)
        os.write(gate[1], b"\n")
        assert os.wait() == (pid, 0)


def test_misuse_is_told_as_ever():
    with forward_waits(), holding():
        for call, error in (
            (lambda: os.waitpid("1", 0), TypeError),
            (lambda: os.waitpid(-1), TypeError),
            (lambda: os.waitid(os.P_ALL, 0, 0), OSError),
            (lambda: os.waitid(77, 0, os.WEXITED), OSError),
        ):
            with pytest.raises(error):
                call()


def test_handles_are_as_ever():
    with forward_waits():
        process = ours("read x; kill -SEGV $$")
        pid = child(1)
        assert os.wait()[0] == pid
        process.stdin.close()
        assert select.select([process], [], [], LIMIT)[0]
        with pytest.raises(ChildProcessError):
            os.wait()  # this is what reaps it
        assert select.select([process], [], [], 0)[0]
        assert process.wait(0).signal == signal.SIGSEGV
        assert [type(event).__name__ for event in process.events()] == ["Spawned", "Exited"]
        process.close()
        with ours("exec sleep 600") as process:
            assert process.stop(grace=0).empty
        assert process.status.signal == 9


@met
def test_what_is_given_up_is_the_programs():
    with forward_waits():
        process = ours()
        stdin = os.dup(process.stdin.fileno())
        process.release()
        os.close(stdin)
        assert os.wait() == (process.pid, 7 << 8)


# ---- threads


def test_the_last_one_is_taken_by_another_thread(gate):
    """All others then have nothing left to wait for, and the kernel does not wake them while ours live."""
    answers = []

    def wait() -> None:
        answers.append(answer())

    with forward_waits(), holding():
        pid = child(3, held=gate[0])
        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(looking._sleepers) == 4)
        os.write(gate[1], b"\n")
        for thread in threads:
            thread.join(LIMIT)
        assert answers.count((pid, 3 << 8)) == 1
        assert answers.count("none") == 3


def test_the_last_one_is_taken_by_name(gate):
    """As by subprocess, while a thread waits for any: one of the two gets it, the other learns that nothing is left."""
    answers: list[object] = []

    def wait(pid: int) -> None:
        answers.append(answer(pid))

    with forward_waits(), holding():
        for _ in range(20):
            pid = child(held=gate[0])
            thread = threading.Thread(target=wait, args=(-1,))
            thread.start()
            wait_for(lambda: looking._sleepers)
            os.write(gate[1], b"\n")
            wait(pid)
            thread.join(LIMIT)
            assert sorted(map(str, answers)) == [str((pid, 0)), "none"]
            answers.clear()


def test_the_last_one_of_a_group_is_taken_by_name(gate):
    """Who waits for a group is woken by a child of that group alone."""
    answers: list[object] = []

    def wait() -> None:
        answers.append(answer(-pid))

    with forward_waits():
        pid = child(group=True, held=gate[0])
        with holding(process_group=pid) as process:
            threads = [threading.Thread(target=wait) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(looking._sleepers) == 2)
            os.write(gate[1], b"\n")
            for thread in threads:
                thread.join(LIMIT)
            assert sorted(map(str, answers)) == [str((pid, 0)), "none"]
            assert process.poll() is None


def test_a_handler_is_before_the_one_that_was_to_be_woken(monkeypatch):
    """It reaps what was started to wake a thread, which may not have run yet: then once more, until it has."""
    rings = []
    ring = looking._ring
    monkeypatch.setattr(looking, "_ring", lambda group: (rings.append(group), ring(group)))
    asleep = (os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    with handling() as (_, handler), forward_waits(), holding():
        signal.signal(signal.SIGCHLD, handler)
        looking._sleepers.append(asleep)
        try:
            looking.wake()
            wait_for(lambda: len(rings) > 3)
        finally:
            looking._sleepers.remove(asleep)


def test_two_threads_are_done_with_the_same_wakers(monkeypatch):
    class Emptied(list):
        def pop(self):  # another thread was quicker
            self.clear()
            return super().pop()

    monkeypatch.setattr(looking, "_alarms", Emptied([None]))
    looking.hush()


def test_a_start_that_is_undone_is_ours_to_the_end(monkeypatch):
    """A wait beside it is not told of a child that the program has never heard of."""
    answers = []
    close = pidfd.PidfdNotifier.close

    def slow(notifier) -> None:
        _native.pidfd_signal(notifier.descriptor.fileno(), signal.SIGKILL)
        assert all_ended([notifier._pid])
        try:
            answers.append(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            answers.append("none")
        close(notifier)

    def refuse(*_):
        raise RuntimeError

    with forward_waits(), monkeypatch.context() as patch:
        patch.setattr(pidfd.PidfdNotifier, "close", slow)
        patch.setattr(handle.Process, "__init__", refuse)
        with pytest.raises(RuntimeError):
            ours()
    assert answers == ["none"]


@any_wait
def test_another_thread_is_quicker(wait, monkeypatch):
    """What a look has found may be gone when the wait is made for it: then the next one is looked for."""
    find, taken = looking.find, []

    def slow(*asked):
        found = find(*asked)
        if not taken:
            taken.append(looking.posix.waitpid(found.si_pid, 0))
        return found

    with forward_waits(), holding():
        pids = [child(3), child(3)]
        assert all_ended(pids)
        monkeypatch.setattr(looking, "find", slow)
        assert sorted([wait(), *taken]) == sorted((pid, 3 << 8) for pid in pids)


@pytest.mark.parametrize("rung", RUNGS)
def test_signals_at_any_moment(rung):
    """Handlers that wait for anybody interrupt starts and waits of ours in the same thread, again and again."""
    program("""
        import os, signal, sys
        import holdfast
        from holdfast.process import _native
        told = os.environ["HOLDFAST_NOTIFIER"] != "pidfd" or not _native.has_autoreap()
        mine, found = {}, {}
        def reap(signo, frame):
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return
                if pid == 0:
                    return
                found[pid] = os.waitstatus_to_exitcode(status)
        signal.signal(signal.SIGCHLD, reap)
        signal.signal(signal.SIGALRM, reap)
        with holdfast.forward_waits():
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            for n in range(250):
                mine[os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {n % 100}"], os.environ)] = n % 100
                with holdfast.spawn(["/bin/sh", "-c", f"exit {n % 99}"], private=False) as process:
                    status = process.wait(15)
                    assert status.code == n % 99, status
                    assert (status.usage is not None) == told
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            while True:
                try:
                    pid, status = os.wait()
                except ChildProcessError:
                    break
                found[pid] = os.waitstatus_to_exitcode(status)
            assert found == mine, (set(found) ^ set(mine))
    """, env={"HOLDFAST_NOTIFIER": rung})  # fmt: skip


def test_a_start_that_is_not_over(monkeypatch):
    """A child that has ended before anybody knew its number is still ours."""
    started, go = threading.Event(), threading.Event()
    begin = DirectTree._begin

    def slow(self, *given) -> None:
        begin(self, *given)
        assert all_ended([self.pid])
        started.set()
        assert go.wait(LIMIT)

    monkeypatch.setattr(DirectTree, "_begin", slow)
    answers: list[object] = []

    def wait() -> None:
        answers.append(answer())

    made: list[holdfast.Process] = []
    with forward_waits():
        starting = threading.Thread(target=lambda: made.append(ours("exit 5")))
        starting.start()
        assert started.wait(LIMIT)
        waiting = threading.Thread(target=wait)
        waiting.start()
        go.set()
        starting.join(LIMIT)
        waiting.join(LIMIT)
        assert answers == ["none"]
        assert made[0].wait(LIMIT).code == 5
        assert (made[0].status.usage is not None) == USAGE
        made[0].close()


def test_a_signal_within_a_start(monkeypatch):
    """The handler cannot wait for the start that it interrupts: it finds nothing, and is called again afterwards."""
    begin = DirectTree._begin
    found: list[object] = []

    def handler(*_) -> None:
        try:
            found.append(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            found.append(None)

    def interrupted(self, *given) -> None:
        begin(self, *given)
        pids.append(child(6))
        assert all_ended([self.pid, *pids])
        signal.raise_signal(signal.SIGCHLD)

    pids: list[int] = []
    monkeypatch.setattr(DirectTree, "_begin", interrupted)
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        with forward_waits(), ours("exit 5") as process:
            wait_for(lambda: (pids[0], 6 << 8) in found)
            assert (0, 0) in found
            assert process.wait(LIMIT).code == 5
            assert (process.status.usage is not None) == USAGE
    finally:
        signal.signal(signal.SIGCHLD, before)


@met
def test_a_handler_may_ask_the_handle_that_it_interrupts(monkeypatch):
    """One that asks in the midst of the thread's own question must neither wait for itself nor spoil the answer."""
    real, depth = _native.wait_status, []

    def interrupted(fd):
        if not depth:
            depth.append(1)
            assert process.poll().code == 5  # as a signal handler would
        return real(fd)

    with ours("exit 5") as process:
        assert all_ended([process.pid])
        monkeypatch.setattr(_native, "wait_status", interrupted)
        assert process.poll().code == 5
        assert (process.status.usage is not None) == USAGE


def test_a_forked_copy_waits_for_its_own():
    with forward_waits(), holding():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                grandchild = child(5)
                assert os.wait() == (grandchild, 5 << 8)
                try:
                    os.wait()
                except ChildProcessError:
                    code = 0
            finally:
                os._exit(code)
        assert os.wait() == (pid, 0)


# ---- handlers of SIGCHLD


@contextmanager
def handling():
    calls: list[int] = []

    def handler(signo, frame) -> None:
        calls.append(signo)

    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield calls, handler
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_is_called_for_the_programs_alone(when):
    with handling() as (calls, handler):
        if when == "before":
            signal.signal(signal.SIGCHLD, handler)
        with forward_waits():
            if when == "after":
                signal.signal(signal.SIGCHLD, handler)
            assert signal.getsignal(signal.SIGCHLD) is handler
            for _ in range(3):
                with ours() as process:
                    process.stdin.close()
                    assert process.wait(LIMIT).code == 7
            assert calls == []
            pid = child(1)
            assert os.waitpid(pid, 0) == (pid, 1 << 8)
            assert calls == [signal.SIGCHLD]  # taken when it is its turn: in doubt it is called
            signal.raise_signal(signal.SIGCHLD)
            assert len(calls) == 2
            assert signal.signal(signal.SIGCHLD, signal.SIG_DFL) is handler
            signal.signal(signal.SIGCHLD, handler)
        assert signal.getsignal(signal.SIGCHLD) is handler
        with ours() as process:
            process.stdin.close()
            assert process.wait(LIMIT).code == 7
        assert len(calls) == 2 + USAGE


def test_handlers_do_not_pile_up(monkeypatch):
    """While many end, each SIGCHLD interrupts the look that the one before it has begun."""
    several = [ours("read x; exit 4") for _ in range(20)]
    depth, deepest, meet = [], [], looking.meet

    def interrupted(found) -> bool:
        depth.append(1)
        deepest.append(len(depth))
        signal.raise_signal(signal.SIGCHLD)
        try:
            return meet(found)
        finally:
            depth.pop()

    with handling() as (calls, handler), forward_waits():
        for process in several:
            process.stdin.close()
        assert all_ended([process.pid for process in several])
        signal.signal(signal.SIGCHLD, handler)
        monkeypatch.setattr(looking, "meet", interrupted)
        pid = child(3)
        assert all_ended([pid])
        wait_for(lambda: calls)
        assert max(deepest) == 1
        monkeypatch.undo()
        assert os.wait() == (pid, 3 << 8)
        assert [process.wait(LIMIT).code for process in several] == [4] * 20
    for process in several:
        process.close()


def test_a_handler_is_called_when_both_have_ended(gate):
    with handling() as (calls, handler), forward_waits(), ours() as process:
        pid = child(held=gate[0])
        signal.signal(signal.SIGCHLD, handler)
        process.stdin.close()
        os.write(gate[1], b"\n")
        assert all_ended([process.pid, pid])
        wait_for(lambda: calls)
        assert os.wait() == (pid, 0)
        assert process.wait(LIMIT).code == 7


def test_other_signals_are_not_touched():
    with forward_waits():
        before = signal.getsignal(signal.SIGUSR1)
        handler = lambda *_: None  # noqa: E731
        assert signal.signal(signal.SIGUSR1, handler) is before
        assert signal.getsignal(signal.SIGUSR1) is handler
        assert signal.signal(signal.SIGUSR1, before) is handler


# ---- on and off


NAMES = [(os, name) for name in ("wait", "waitpid", "wait3", "wait4", "waitid")]
NAMES += [(signal, "signal"), (signal, "getsignal")]


@met
def test_it_is_given_back():
    real = [getattr(module, name) for module, name in NAMES]
    first = forward_waits()
    second = forward_waits()
    wrapped = [getattr(module, name) for module, name in NAMES]
    assert not set(real) & set(wrapped)
    first.stop()
    first.stop()
    assert [getattr(module, name) for module, name in NAMES] == wrapped
    second.stop()
    assert [getattr(module, name) for module, name in NAMES] == real
    process = ours("exit 5")
    assert os.waitpid(-1, 0) == (process.pid, 5 << 8)
    process.release()


@pytest.mark.parametrize("of", ["start", "stop"])
def test_an_interrupted_change_is_made_good_by_the_next(monkeypatch, of):
    """What was left in the place of the real functions was taken for real, and called itself."""

    class Interrupted(dict):
        def items(self):
            yield from list(super().items())[:3]
            raise KeyboardInterrupt

    real = [getattr(module, name) for module, name in NAMES]
    forwarding = forward_waits() if of == "stop" else None
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(waits, "_OURS", Interrupted(waits._OURS))
        forwarding.stop() if forwarding else forward_waits()
    for _ in range(2):
        with forward_waits():
            pid = child(3)
            assert os.waitpid(-1, 0) == (pid, 3 << 8)
        assert [getattr(module, name) for module, name in NAMES] == real


def test_one_that_replaced_ours_is_left_in_its_place(monkeypatch):
    program("""
        import os
        import holdfast
        forwarding = holdfast.forward_waits()
        ours = os.waitpid
        def theirs(*given):
            return ours(*given)
        os.waitpid = theirs
        forwarding.stop()
        assert os.waitpid is theirs
        def ended(code):
            pid = os.fork()
            if pid == 0:
                os._exit(code)
            return pid
        pid = ended(3)
        assert os.waitpid(-1, 0) == (pid, 3 << 8)
        with holdfast.forward_waits(), holdfast.spawn(["cat"], stdin=holdfast.PIPE, private=False) as process:
            assert os.waitpid is theirs
            pid = ended(4)
            assert os.waitpid(-1, 0) == (pid, 4 << 8)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                pass
            else:
                raise AssertionError
    """)


def test_from_another_thread():
    """A handler that is set stays as it is then, and is filtered when it is set anew."""
    with handling() as (calls, handler):
        signal.signal(signal.SIGCHLD, handler)
        made: list = []
        thread = threading.Thread(target=lambda: made.append(forward_waits()))
        thread.start()
        thread.join(LIMIT)
        with made[0]:
            assert signal.getsignal(signal.SIGCHLD) is handler
            with holding(), pytest.raises(ChildProcessError):
                os.wait()
            assert len(calls) == 1
            signal.signal(signal.SIGCHLD, handler)
            with holding():
                pass
            assert len(calls) == 1


# ---- beside 1,000 direct children


@pytest.mark.parametrize(
    ("name", "rung"), [*((name, rung) for name in ("prefork", "watcher") for rung in RUNGS), ("watcher", "signalfd")]
)
def test_beside_a_thousand(name, rung):
    """A pre-fork server that reaps in its handler; a program with a thread that watches children by blocking waits."""
    code = pathlib.Path(__file__).with_name("helpers_waits.py").read_text()
    printed = program(code, name, env={"HOLDFAST_NOTIFIER": rung})
    assert printed.splitlines()[-1] == "each side got its own"


# ---- the page


def test_the_examples_of_the_page():
    examples = [body for language, body in blocks(PAGE) if language == "python"]
    assert examples
    for each in examples:
        done = subprocess.run([sys.executable, "-W", "error", "-c", each], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
