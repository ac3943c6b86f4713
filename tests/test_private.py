"""Private: no SIGCHLD handler and no waitpid(-1) of the program ever meets a process of ours (done-when 2)."""

import os

import pytest
from helpers_lib import kernel_tells_stolen_status, program

COUNT = int(os.environ.get("HOLDFAST_TEST_PROCESSES", 1000))  # fewer where the kernel is emulated

# argv: how to start (spawn, runner, direct), what the program does with SIGCHLD (handler, ignore).
# The program has one child of its own, so that the thread's waitpid(-1, 0) blocks instead of failing,
# and so that handler and thread are proved to work: at the end they do meet that one.
PROGRAM = """
import os, signal, subprocess, sys, threading
from helpers_lib import descriptors, keepers, starter, tells_usage
from helpers_wait import eventually

way, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
called, got = [], []
if mode == "handler":
    signal.signal(signal.SIGCHLD, lambda *_: called.append(1))
else:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)

def thief():
    while True:
        try:
            got.append(os.waitpid(-1, 0))
        except ChildProcessError:
            return

def expected(i):
    # every tenth by a signal
    return -9 if i % 10 == 9 else i % 256

own = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
thread = threading.Thread(target=thief, daemon=True)  # a failed assertion must not hang
thread.start()
before = descriptors()
wrong, without_usage = [], 0
with starter(way) as start:
    told = tells_usage(start)
    for first in range(0, count, 50):
        batch = [
            (i, start(["sh", "-c", "kill -9 $$" if expected(i) == -9 else f"exit {expected(i)}"]))
            for i in range(first, first + 50)
        ]
        for i, process in batch:
            status = process.wait(30)
            if status.returncode != expected(i) or process.poll() is not status:
                wrong.append((i, status))
            without_usage += status.usage is None
            process.close()
assert not wrong, wrong
assert descriptors() == before
assert eventually(lambda: not keepers()), keepers()
met, heard = len(got), len(called)
if way != "direct":
    assert (met, heard, without_usage) == (0, 0, 0), (met, heard, without_usage)
if not told:  # the kernel reaps, and neither met nor heard it can be
    assert (met, heard, without_usage) == (0, 0, count), (met, heard, without_usage)
own.stdin.close()
thread.join()
if mode == "handler":
    assert [pid for pid, _ in got[met:]] == [own.pid] and called
    # Exactly those that the thread took have lost their usage, and nothing but their usage.
    assert without_usage == (met if told else count), (without_usage, met)
else:
    assert got == [], got
    assert without_usage == (count if way == "direct" else 0)
own.returncode = 0
"""


@pytest.mark.parametrize("mode", ["handler", "ignore"])
@pytest.mark.parametrize("way", ["spawn", "runner"])
def test_a_thousand_processes_meet_no_handler_and_no_waitpid(way, mode):
    program(PROGRAM, way, mode, COUNT)


@pytest.mark.parametrize("mode", ["handler", "ignore"])
def test_direct_children_keep_their_status_when_it_is_stolen(mode):
    if not kernel_tells_stolen_status():
        pytest.skip("this kernel (before 6.15) cannot tell a stolen status again")
    program(PROGRAM, "direct", mode, COUNT)


def test_a_program_that_holds_a_child_sees_no_other_child():
    """The owner's own list of children shows nothing of ours: neither process nor keeper."""
    program("""
        import os, holdfast
        with holdfast.spawn(["cat"], stdin=holdfast.PIPE) as process, holdfast.Runner() as runner:
            with runner.spawn(["cat"], stdin=holdfast.PIPE):
                with open("/proc/self/task/%d/children" % os.getpid()) as file:
                    assert file.read() == ""
                try:
                    os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    pass
                else:
                    raise AssertionError("waitpid saw a child")
    """)
