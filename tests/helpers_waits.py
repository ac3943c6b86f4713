"""A program with children of its own beside 1,000 direct children of ours: `prefork` or `watcher` as its argument.

Both sides check everything: each exit code belongs to the child that it was given to, and nobody is told of another's.
"""

import os
import select
import signal
import sys
import threading

import holdfast
from holdfast.process import _native

OURS, WORKERS, GENERATIONS = 1000, 20, 5
LIMIT = 50


def start_ours():
    """They live until the gate is closed, all at the same time, and end with codes of their own."""
    read, write = os.pipe()
    script = "read x; exit $0"
    handles = [
        holdfast.spawn(["/bin/sh", "-c", script, str(n % 251)], stdin=read, private=False) for n in range(OURS)
    ]
    os.close(read)
    return handles, write


def check_ours(handles):
    """By a few threads, so that handles reap beside the program's waits."""
    wrong = []
    reaped_by_the_kernel = _native.has_autoreap() and os.environ["HOLDFAST_NOTIFIER"] == "pidfd"

    def some(part):
        for n in range(part, OURS, 4):
            status = handles[n].wait(LIMIT)
            if status.code != n % 251 or (status.usage is None) != reaped_by_the_kernel:
                wrong.append((n, status))

    threads = [threading.Thread(target=some, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    for handle in handles:
        handle.close()


def prefork():
    """Its handler of SIGCHLD waits for whoever there is; its loop replaces workers that have ended."""
    workers, reaped, codes, calls = {}, [], [], []
    bell_read, bell_write = os.pipe()
    os.set_blocking(bell_read, False)

    def reap(signo, frame):
        calls.append(signo)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            reaped.append((pid, os.waitstatus_to_exitcode(status)))
        os.write(bell_write, b"x")

    handles, gate = start_ours()
    signal.signal(signal.SIGCHLD, reap)
    for n in range(WORKERS * GENERATIONS):
        if n == WORKERS:
            os.close(gate)  # in the midst of it
        pid = os.fork()
        if pid == 0:
            os._exit(n + 1)
        workers[pid] = n + 1
        while len(workers) == WORKERS or (workers and n == WORKERS * GENERATIONS - 1):
            if not reaped:
                assert select.select([bell_read], [], [], LIMIT)[0], (len(workers), len(codes))
                os.read(bell_read, 65536)
            while reaped:
                pid, code = reaped.pop()
                assert workers.pop(pid) == code  # KeyError: a stranger
                codes.append(code)
    check_ours(handles)
    assert not reaped
    assert sorted(codes) == list(range(1, WORKERS * GENERATIONS + 1))
    assert len(calls) < OURS, "called for each of ours"
    print(len(calls), "calls")


def watcher():
    """A thread blocks in os.wait() as long as there are children and tells those who asked for them."""
    asked, strangers, results = {}, [], []
    there = threading.Condition()
    over = threading.Event()

    def watch():
        while not over.is_set():
            with there:
                there.wait_for(lambda: asked or over.is_set())
            try:
                pid, status = os.wait()
            except ChildProcessError:
                continue
            with there:
                code = asked.pop(pid, None)
                there.notify_all()
            if code != os.waitstatus_to_exitcode(status):
                strangers.append((pid, status))
            results.append(code)

    handles, gate = start_ours()  # before there is a second thread: signalfd asks for that
    thread = threading.Thread(target=watch)
    thread.start()
    for n in range(WORKERS * GENERATIONS):
        with there:
            if n >= WORKERS and not there.wait_for(lambda: len(asked) < WORKERS, LIMIT):
                raise AssertionError("the watcher is not told")
            pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {n + 1}"], os.environ)
            asked[pid] = n + 1
            there.notify_all()
        if n == WORKERS:
            os.close(gate)
    check_ours(handles)
    with there:
        assert there.wait_for(lambda: not asked, LIMIT)
        over.set()
        there.notify_all()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert not strangers, strangers[:5]
    assert sorted(results) == list(range(1, WORKERS * GENERATIONS + 1))


if __name__ == "__main__":
    with holdfast.forward_waits():
        {"prefork": prefork, "watcher": watcher}[sys.argv[1]]()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("each side got its own")
