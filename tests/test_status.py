"""How a process ended is told exactly, whoever started it, and every wait is bounded (done-when 5)."""

import array
import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers_lib import WAYS, kernel_tells_stolen_status, program, starter, state, tells_usage
from helpers_wait import eventually

import holdfast
from holdfast import DEVNULL, PIPE

STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
IGNORED = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
TERMINATING = [n for n in range(1, 65) if n not in STOPPING | IGNORED]


def _ignored_here():
    """What we were started with: posix_spawn of glibc, by which make starts us, ignores its own two, 32 and 33."""
    with open("/proc/self/status") as file:
        bits = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))
    return {n for n in (32, 33) if bits >> (n - 1) & 1}


TERMINATING = [n for n in TERMINATING if n not in _ignored_here()]


@pytest.fixture(params=WAYS)
def start(request):
    with starter(request.param) as start:
        yield start


# ---- codes and signals


def test_every_exit_code(start):
    for code in range(256):
        with start(["sh", "-c", f"exit {code}"]) as process:
            status = process.wait(30)
        assert (status.code, status.signal, status.core_dumped) == (code, None, False)
        assert status.returncode == code and process.returncode == code
        assert status.ok == (code == 0)
        assert str(status) == f"exit code {code}"


def test_every_terminating_signal_sent_by_us(start):
    for number in TERMINATING:
        with start(["cat"], stdin=PIPE, rlimits={"core": 0}) as process:
            process.send_signal(number)
            status = process.wait(30)
        assert (status.code, status.signal, status.core_dumped) == (None, number, False)
        assert status.returncode == process.returncode == -number and not status.ok
        assert str(status) == f"signal {number}"


SUICIDE = """
import os, signal, sys
number = int(sys.argv[1])
if number not in (9, 32, 33):
    signal.signal(number, signal.SIG_DFL)
if number not in (9, 32, 33):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
os.kill(os.getpid(), number)
"""


def test_every_terminating_signal_sent_by_itself():
    with holdfast.Runner() as runner:
        for number in TERMINATING:
            done = runner.run([sys.executable, "-ISE", "-c", SUICIDE, str(number)], rlimits={"core": 0})
            assert (done.status.code, done.status.signal) == (None, number)


def test_core_flag(start, tmp_path):
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("cores are forbidden here (hard limit 0)")
    with open("/proc/sys/kernel/core_pattern") as file:
        if file.read(1) in ("|", "@"):
            pytest.skip("cores go to a program here")
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT):
        with start(["sh", "-c", f"kill -{int(number)} $$"], cwd=tmp_path, rlimits={"core": hard}) as process:
            status = process.wait(30)
        assert status.signal == number and status.core_dumped
        assert str(status) == f"signal {int(number)} (core dumped)"
    with start(["sh", "-c", "kill -TERM $$"], cwd=tmp_path, rlimits={"core": hard}) as process:
        assert process.wait(30).signal == 15 and not process.wait().core_dumped


def test_core_flag_of_a_stolen_status(tmp_path):
    if not kernel_tells_stolen_status():
        pytest.skip("this kernel (before 6.15) cannot tell a stolen status again")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("cores are forbidden here (hard limit 0)")
    with open("/proc/sys/kernel/core_pattern") as file:
        if file.read(1) in ("|", "@"):
            pytest.skip("cores go to a program here")
    program("""
        import resource, signal, holdfast
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        for limit, dumped in ((0, False), (hard, True)):
            p = holdfast.spawn(["sh", "-c", "kill -SEGV $$"], private=False, rlimits={"core": (limit, hard)})
            status = p.wait(30)
            assert (status.signal, status.core_dumped, status.usage) == (11, dumped, None), status
            p.close()
    """, cwd=tmp_path)  # fmt: skip


def test_stopping_and_continuing_end_no_wait(start):
    with start(["cat"], stdin=PIPE, stdout=PIPE) as process:
        for _ in range(3):
            process.send_signal("STOP")
            assert eventually(lambda: state(process.pid) == "T")
            assert process.poll() is None
            assert not select.select([process], [], [], 0)[0]
            with pytest.raises(holdfast.TimeoutExpired):
                process.wait(0.05)
            process.send_signal("CONT")
            assert eventually(lambda: state(process.pid) != "T")
            assert process.poll() is None
        process.stdin.write(b"still here\n")
        process.stdin.close()
        assert process.stdout.read() == b"still here\n"
        assert process.wait(30).ok


# ---- the status as a value


def test_status_is_a_value(start):
    with start(["sh", "-c", "exit 3"]) as process:
        status = process.wait(30)
        assert process.status is status and process.poll() is status and process.wait() is status
    again = pickle.loads(pickle.dumps(status))
    assert again == status and hash(again) == hash(status) and again is not status
    other = holdfast.run(["sh", "-c", "exit 4"]).status
    assert status != other and status != 3
    usage = "usage=Usage(" if tells_usage(start) else "usage=None"
    for word in ("code=3", "signal=None", "core_dumped=False", usage, "elapsed=", "started_at="):
        assert word in repr(status)
    assert repr(process) == f"<holdfast.Process ['sh', '-c', 'exit 3'] pid {process.pid}: exit code 3>"


def test_times_are_plausible(start):
    before, before_monotonic = time.time(), time.monotonic()
    with start(["cat"], stdin=PIPE) as process:
        with pytest.raises(holdfast.TimeoutExpired):
            process.wait(0.3)
        process.stdin.close()
        status = process.wait(30)
    after, spent = time.time(), time.monotonic() - before_monotonic
    assert 0.3 <= status.elapsed <= spent
    assert before - 0.01 <= status.started_at <= status.ended_at <= after + 0.01
    assert abs(status.ended_at - status.started_at - status.elapsed) < 1e-5  # a double holds 0.2 us of an epoch


WORK = """
import time
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
memory = bytearray(192 << 20)
memory[::4096] = b"x" * len(memory[::4096])
"""


def test_usage_agrees_with_wait4(start):
    argv = [sys.executable, "-ISE", "-c", WORK]
    # By a small parent: until its exec a child of vfork has its parent's memory, and the peak remembers that.
    look = (
        "import os, subprocess, sys; child = subprocess.Popen(sys.argv[1:]); "
        "usage = os.wait4(child.pid, 0)[2]; child.returncode = 0; print(list(usage))"
    )
    printed = subprocess.run([sys.executable, "-c", look, *argv], capture_output=True, text=True, check=True).stdout
    want = resource.struct_rusage(json.loads(printed))
    with start(argv) as process:
        usage = process.wait(60).usage
    if not tells_usage(start):
        assert usage is None
        return
    cpu, want_cpu = usage.user_seconds + usage.system_seconds, want.ru_utime + want.ru_stime
    assert cpu >= 0.3 and abs(cpu - want_cpu) < 0.5 * want_cpu
    peak, most = want.ru_maxrss * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.9 * peak < usage.max_rss_bytes < max(1.1 * peak, 1.05 * most)  # a direct child's parent is this process
    # A huge page that could not be had is 512 faults more.
    assert usage.minor_faults > 100
    assert abs(usage.minor_faults - want.ru_minflt) < max(0.2 * want.ru_minflt, 2048)
    assert usage.voluntary_switches >= 0 and usage.major_faults >= 0 and usage.blocks_out >= 0


def test_usage_covers_children_that_were_waited_for(start):
    """As wait4: those that the process itself waited for are counted in."""
    with start(["sh", "-c", f"\"{sys.executable}\" -ISE -c '{WORK}'; exit 0"]) as process:
        usage = process.wait(60).usage
    if not tells_usage(start):
        assert usage is None
        return
    assert usage.user_seconds + usage.system_seconds >= 0.3 and usage.max_rss_bytes > 192 << 20


def test_a_reused_keeper_does_not_add_up_the_usage_of_earlier_tenants():
    with holdfast.Runner() as runner:
        first = runner.run([sys.executable, "-ISE", "-c", WORK]).status.usage
        second = runner.run(["true"]).status.usage
    assert first.user_seconds + first.system_seconds >= 0.3
    assert second.user_seconds + second.system_seconds < 0.2 and second.max_rss_bytes < first.max_rss_bytes / 4


# ---- waiting


def test_timeouts_leave_the_process_alone(start):
    with start(["cat"], stdin=PIPE) as process:
        for timeout in (0, 0.0, -1, 0.02):
            with pytest.raises(holdfast.TimeoutExpired) as caught:
                process.wait(timeout)
            assert caught.value.cmd == ["cat"] and caught.value.timeout == timeout
            assert isinstance(caught.value, TimeoutError) and "timed out after" in str(caught.value)
        assert process.poll() is None and process.status is None and process.returncode is None
        process.stdin.close()
        assert process.wait(30).ok and process.wait(0).ok and process.wait(-1).ok


def test_an_endless_timeout_is_no_timeout(start):
    """math.inf and numbers beyond what the clocks hold mean: as long as it takes."""
    for timeout in (float("inf"), 1e12, 1e300):
        with start(["cat"], stdin=PIPE, stdout=PIPE) as process:
            closer = threading.Timer(0.05, process.stdin.close)
            closer.start()
            assert process.wait(timeout).ok
            process.wait_empty(timeout)
            closer.join()
        with start(["cat"], stdin=PIPE, stdout=PIPE) as process:
            assert process.communicate(b"x", timeout) == (b"x", b"")
    assert holdfast.run(["true"], timeout=float("inf"), capture_output=True).status.ok
    assert holdfast.run(["true"], timeout=float("inf")).status.ok


def test_descriptor_is_readable_exactly_when_ended(start):
    with start(["cat"], stdin=PIPE) as process:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        assert poll.poll(20) == []
        process.stdin.close()
        assert poll.poll(30_000)[0][0] == process.fileno()
        assert process.poll() is not None
        assert poll.poll(0)  # and stays so
    with pytest.raises(ValueError, match="closed"):
        process.fileno()


@pytest.mark.parametrize(("way", "tries"), [("spawn", 300), ("runner", 400), ("direct", 300)])
def test_poll_never_answers_none_once_the_descriptor_is_readable(way, tries):
    with starter(way) as start:
        for i in range(tries):
            with start(["sh", "-c", f"exit {i % 256}"]) as process:
                select.select([process], [], [], 30)
                status = process.poll()
                assert status is not None, f"try {i}"
                assert status.code == i % 256


def test_many_threads_wait_for_one_process(start):
    with start(["cat"], stdin=PIPE) as process:
        ready = threading.Barrier(9)
        got = []

        def wait(timeout):
            ready.wait(30)
            try:
                got.append(process.wait(timeout))
            except holdfast.TimeoutExpired:
                got.append(process.wait(30))

        threads = [threading.Thread(target=wait, args=(t,)) for t in (None, None, 30, 30, 0.01, 0.01, 0.02, 0)]
        for thread in threads:
            thread.start()
        ready.wait(30)
        with pytest.raises(holdfast.TimeoutExpired):
            process.wait(0.1)
        process.stdin.close()
        for thread in threads:
            thread.join(30)
        assert len(got) == 8 and all(status is got[0] for status in got) and got[0].ok


def test_a_signal_handler_s_exception_ends_a_wait_and_nothing_else():
    program("""
        import functools, signal, holdfast
        class Enough(Exception):
            pass
        def handler(*_):
            raise Enough
        signal.signal(signal.SIGALRM, handler)
        with holdfast.Runner() as runner:
            for start in (holdfast.spawn, runner.spawn, functools.partial(holdfast.spawn, private=False)):
                with start(["cat"], stdin=holdfast.PIPE, stdout=holdfast.PIPE) as process:
                    for wait in (process.wait, functools.partial(process.wait, 30), process.wait_empty):
                        signal.setitimer(signal.ITIMER_REAL, 0.05)
                        try:
                            wait()
                        except Enough:
                            pass
                        else:
                            raise AssertionError("the wait ended by itself")
                    assert process.poll() is None
                    assert process.communicate(b"alive") == (b"alive", b"")
    """)


# ---- communicate

BOTH_WAYS = """
import os, sys, threading
def copy():
    while data := os.read(0, 65536):
        os.write(1, data)
def shout():
    for _ in range(64):
        os.write(2, b"e" * 65536)
threads = [threading.Thread(target=copy), threading.Thread(target=shout)]
[t.start() for t in threads]; [t.join() for t in threads]
"""


def test_communicate_moves_much_in_all_directions(start):
    data = os.urandom(1 << 20) * 8
    with start([sys.executable, "-ISE", "-c", BOTH_WAYS], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(data, 60)
        assert out == data and err == b"e" * (64 * 65536)
        assert process.status.ok


def test_communicate_with_some_of_the_pipes(start):
    with start(["sh", "-c", "echo out; echo err >&2"], stdout=PIPE, stderr=DEVNULL) as process:
        assert process.communicate() == (b"out\n", b"")
    with start(["sh", "-c", "echo out; echo err >&2"], stdout=PIPE, stderr=holdfast.STDOUT) as process:
        assert process.communicate(timeout=30) == (b"out\nerr\n", b"")
    with start(["cat"], stdin=PIPE) as process:
        assert process.communicate() == (b"", b"")
    with start(["true"]) as process:
        with pytest.raises(ValueError, match="stdin=PIPE"):
            process.communicate(b"x")
        assert process.communicate() == (b"", b"")


def test_communicate_writes_all_bytes_of_wider_items(start):
    numbers = array.array("i", range(200_000))  # more than a pipe holds
    with start(["wc", "-c"], stdin=PIPE, stdout=PIPE) as process:
        assert int(process.communicate(numbers)[0]) == 800_000


def test_communicate_with_a_process_that_does_not_read(start):
    with start(["sh", "-c", "exec <&-; echo done"], stdin=PIPE, stdout=PIPE) as process:
        assert process.communicate(b"x" * (4 << 20), 30) == (b"done\n", b"")
        assert process.status.ok


def test_communicate_goes_on_after_a_time_limit(start):
    """Nothing is lost by a limit: neither output nor input that was not taken yet."""
    data = os.urandom(1 << 20)
    gate, opener = os.pipe()
    script = "import os; os.write(1, b'first'); os.read(%d, 1)\nwhile data := os.read(0, 65536): os.write(1, data)"
    argv = [sys.executable, "-ISE", "-c", script % gate]
    with start(argv, stdin=PIPE, stdout=PIPE, pass_fds=[gate]) as process:
        os.close(gate)
        first = process.stdout.fileno()
        select.select([first], [], [], 30)
        for input in (data, None, None):
            with pytest.raises(holdfast.TimeoutExpired) as caught:
                process.communicate(input, timeout=0.05)
            assert caught.value.output == b"first" and caught.value.stderr == b""
        with pytest.raises(ValueError, match="under way"):
            process.communicate(data)
        os.write(opener, b"!")
        os.close(opener)
        assert process.communicate(timeout=30) == (b"first" + data, b"")
        assert process.communicate() == (b"", b"")
