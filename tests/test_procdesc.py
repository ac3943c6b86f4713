"""`holdfast.procdesc`: a descriptor that is the process, with FreeBSD's meaning, and the record of CLONE_FD."""

from __future__ import annotations

import array
import errno
import os
import pathlib
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager

import pytest
from helpers_lib import NOBODY, descriptors, is_root, program, read, root_only, state
from helpers_readme import blocks
from helpers_wait import LIMIT, all_ended, eventually, wait_for

from holdfast.procdesc import PD_CLOEXEC, PD_DAEMON, pdfork, pdfstat, pdgetpid, pdkill, pdread, pdwait4
from holdfast.process import _native

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "procdesc.md").read_text()


def forked(body, flags=PD_CLOEXEC):
    """(descriptor, pid) of a child that runs `body` and ends with what that returns."""
    fd, pid = pdfork(flags)
    if pid == 0:
        code = 99
        try:
            code = body() or 0
        finally:
            os._exit(code)
    return fd, pid


def forever():
    while True:
        signal.pause()


@contextmanager
def held(pid):
    """A pidfd of a process that runs; in the end it must not any more."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
        assert ended(fd)
    finally:
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(fd)


def ended(pidfd, limit=LIMIT):
    return bool(select.select([pidfd], [], [], limit)[0])


@contextmanager
def sigchld():
    """What arrives of SIGCHLD meanwhile."""
    seen = []
    before = signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGCHLD, before)


def parent(pid):
    return int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])


# ---- how it ended


def test_every_code():
    for code in range(256):
        fd, pid = forked(lambda code=code: code)
        assert pdwait4(fd)[:2] == (pid, code << 8)
        os.close(fd)


@pytest.mark.parametrize("signo", [signal.SIGHUP, signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_status_is_that_of_wait4(signo):
    def die():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signo, signal.SIG_DFL) if signo != signal.SIGKILL else None
        os.kill(os.getpid(), signo)

    pid = os.fork()
    if pid == 0:
        die()
        os._exit(99)
    wanted = os.wait4(pid, 0)[1]
    fd, _ = forked(die)
    assert pdwait4(fd)[1] == wanted
    os.close(fd)


def test_resources():
    def work():
        while sum(os.times()[:2]) < 0.1:
            sum(range(1000))

    fd, _ = forked(work)
    _, status, usage = pdwait4(fd)
    assert status == 0 and isinstance(usage, resource.struct_rusage)
    assert 0.09 <= usage.ru_utime + usage.ru_stime < LIMIT and usage.ru_maxrss > 1000 and usage.ru_minflt > 10
    os.close(fd)


def test_the_record():
    fd, _ = forked(lambda: 7)
    assert ended(fd)
    code, status, utime, stime = struct.unpack("=IIQQ", os.read(fd, 24))
    assert (code, status) == (os.CLD_EXITED, 7) and 0 <= utime + stime < LIMIT * 1e6
    assert os.read(fd, 24) == b""
    os.close(fd)
    fd, _ = forked(forever)
    pdkill(fd, signal.SIGTERM)
    record = pdread(fd)
    assert (record.code, record.status) == (os.CLD_KILLED, signal.SIGTERM)
    assert 0 <= record.utime < LIMIT and 0 <= record.stime < LIMIT
    os.close(fd)


def test_one_wait_gets_it():
    fd, pid = forked(forever)
    results = []

    def wait():
        try:
            results.append(pdwait4(fd)[:2])
        except ChildProcessError:
            results.append(None)

    threads = [threading.Thread(target=wait) for _ in range(6)]
    for thread in threads:
        thread.start()
    pdkill(fd, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert sorted(results, key=bool) == [None] * 5 + [(pid, 9)]
    with pytest.raises(ChildProcessError) as caught:
        pdwait4(fd, os.WNOHANG)
    assert caught.value.errno == errno.ECHILD
    os.close(fd)


def test_wnohang_and_a_descriptor_that_does_not_block():
    fd, pid = forked(forever)
    os.set_blocking(fd, False)
    assert pdwait4(fd, os.WNOHANG) == (0, 0, None)
    with pytest.raises(BlockingIOError):
        os.read(fd, 24)
    pdkill(fd, signal.SIGKILL)
    assert pdwait4(fd)[:2] == (pid, 9)
    os.close(fd)


def test_poll():
    fd, _ = forked(forever)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(0) == []
    pdkill(fd, signal.SIGKILL)
    assert poll.poll(LIMIT * 1000)
    wait_for(lambda: poll.poll(0) == [(fd, select.POLLIN | select.POLLHUP)])
    pdread(fd)
    assert poll.poll(0)[0][1] & select.POLLHUP
    os.close(fd)


def test_fstat():
    before = subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout
    fd, _ = forked(forever)
    status = pdfstat(fd)
    assert status.st_mode & 0o777 == 0o700
    assert int(before) <= status.st_birthtime < int(before) + LIMIT
    assert status.st_birthtime == status.st_atime == status.st_ctime == status.st_mtime
    pdkill(fd, signal.SIGKILL)
    assert ended(fd)
    assert pdfstat(fd) == (status.st_mode & ~0o700, *status[1:])
    os.close(fd)


# ---- private


def test_nobody_else_sees_it():
    with sigchld() as seen:
        fd, pid = forked(lambda: 3)
        for wait in (lambda: os.waitpid(-1, 0), lambda: os.waitpid(pid, 0), lambda: os.waitpid(-1, os.WNOHANG)):
            with pytest.raises(ChildProcessError):
                wait()
        assert pdwait4(fd)[1] == 3 << 8
        os.close(fd)
    assert not seen


def test_no_zombie_where_nobody_asks():
    fd, pid = forked(lambda: 0)
    guard = parent(pid)
    with held(guard) if guard > 1 else pytest.raises(ValueError):
        assert ended(fd)
        wait_for(lambda: state(pid) == "")
    os.close(fd)


def test_where_sigchld_is_ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        fd, _ = forked(lambda: 5 if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN else 6)
        status = pdwait4(fd)[1]
        ignored = int(next(line for line in read("/proc/self/status").splitlines() if "SigIgn" in line).split()[1], 16)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert status == 5 << 8 and ignored >> signal.SIGCHLD - 1 & 1
    os.close(fd)


# ---- the child is a fork of us


def test_the_child_is_as_after_fork(tmp_path):
    local, reader = {"kept": 1}, os.pipe()
    signal.signal(signal.SIGUSR2, lambda *_: local.update(handled=1))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    limits, group, ours = resource.getrlimit(resource.RLIMIT_NOFILE), os.getpgrp(), descriptors()

    def look():
        os.kill(os.getpid(), signal.SIGUSR2)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        facts = [
            local == {"kept": 1, "handled": 1}, mask == {signal.SIGUSR1}, os.getpgrp() == group,
            resource.getrlimit(resource.RLIMIT_NOFILE) == limits, descriptors() == ours, os.getcwd() == cwd,
            threading.current_thread() is threading.main_thread(), threading.active_count() == 1,
            os.getpid() != os.getppid() != parent_pid,
        ]  # fmt: skip
        os.write(reader[1], repr([i for i, fact in enumerate(facts) if not fact]).encode())

    cwd, parent_pid = os.getcwd(), os.getpid()
    try:
        fd, _ = forked(look)
        assert pdwait4(fd)[1] == 0
        assert os.read(reader[0], 100) == b"[]"
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    for each in (fd, *reader):
        os.close(each)


def test_what_is_registered_at_fork_is_called():
    assert program("""
        import os
        from holdfast.procdesc import pdfork, pdwait4

        told = []
        os.register_at_fork(before=lambda: told.append("before"), after_in_child=lambda: told.append("child"),
                            after_in_parent=lambda: told.append("parent"))
        fd, pid = pdfork()
        if pid == 0:
            os._exit(told == ["before", "child"])
        print(pdwait4(fd)[1] >> 8, *told)
    """) == "1 before parent\n"  # fmt: skip


def test_from_a_thread_while_others_allocate():
    """libc's locks are free in the child, whatever the other threads were doing."""
    stop = threading.Event()

    def allocate():
        while not stop.is_set():
            [bytearray(5000) for _ in range(100)]

    def fork():
        for _ in range(25):
            fd, _ = forked(lambda: len([bytearray(100_000) for _ in range(20)]))
            statuses.append(pdwait4(fd)[1])
            os.close(fd)

    statuses: list[int] = []
    noise = [threading.Thread(target=allocate) for _ in range(2)]
    forks = [threading.Thread(target=fork) for _ in range(2)]
    for thread in [*noise, *forks]:
        thread.start()
    for thread in forks:
        thread.join()
    stop.set()
    for thread in noise:
        thread.join()
    assert statuses == [20 << 8] * 50


def test_from_a_thread_with_a_small_stack():
    assert program("""
        import os, threading
        from holdfast.procdesc import pdfork, pdwait4

        def fork():
            fd, pid = pdfork()
            if pid == 0:
                os._exit(6)
            print(pdwait4(fd)[1] >> 8)

        threading.stack_size(64 << 10)
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
    """) == "6\n"


def test_the_child_knows_its_cpu():
    """The kernel writes the number of the CPU where libc reads it, there as well."""
    import ctypes

    libc = ctypes.CDLL(None)
    cpus = sorted(os.sched_getaffinity(0))

    def look():
        for cpu in [*cpus, *cpus]:
            os.sched_setaffinity(0, [cpu])
            if libc.sched_getcpu() != cpu:
                return 1
        return 0

    fd, _ = forked(look)
    assert pdwait4(fd)[1] == 0
    os.close(fd)


def test_without_clone3():
    assert program("""
        import os
        from holdfast.process import _native
        from holdfast.procdesc import pdfork, pdwait4

        _native.forbid_clone3()
        fd, pid = pdfork()
        if pid == 0:
            os._exit(4)
        print(pdwait4(fd)[1] >> 8)
    """) == "4\n"


def test_children_have_children():
    def fork_again():
        fd, _ = forked(lambda: 8)
        return pdwait4(fd)[1] >> 8

    fd, _ = forked(fork_again)
    assert pdwait4(fd)[1] >> 8 == 8
    os.close(fd)


def test_exec_in_the_child():
    fd, _ = forked(lambda: os.execv("/bin/sh", ["sh", "-c", "exit 9"]))
    assert pdwait4(fd)[1] == 9 << 8
    os.close(fd)


# ---- the last close


def test_close_kills():
    fd, pid = forked(forever)
    with held(pid):
        os.close(fd)


def test_the_last_close_kills():
    fd, pid = forked(forever)
    with held(pid) as pidfd:
        copy = os.dup(fd)
        os.close(fd)
        assert pdwait4(copy, os.WNOHANG) == (0, 0, None)
        assert not ended(pidfd, 0.1)
        os.close(copy)


def test_close_kills_what_resists():
    def resist():
        for signo in set(range(1, 65)) - {9, 19, 32, 33}:
            signal.signal(signo, signal.SIG_IGN)
        os.write(writer, b"x")
        os.kill(os.getpid(), signal.SIGSTOP)
        forever()

    reader, writer = os.pipe()
    fd, pid = forked(resist)
    with held(pid):
        assert os.read(reader, 1) == b"x"
        os.close(fd)
    os.close(reader)
    os.close(writer)


def owner(code, *, wait_for_pid=True, **options):
    """Another program that runs `code`, which prints a pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, signal, sys\nfrom holdfast.procdesc import *\n" + code],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    assert process.stdout
    return process, int(process.stdout.readline()) if wait_for_pid else 0


START = """
fd, pid = pdfork(FLAGS)
if pid == 0:
    sys.stdin.close(); sys.stdout.close(); os.close(0); os.close(1)
    while True: signal.pause()
print(pid, flush=True)
"""


@pytest.mark.parametrize("end", ["kill -9", "exit", "exception", "exec"])
def test_the_end_of_its_owner_is_a_close(end):
    ends = {
        "kill -9": "signal.pause()", "exit": "sys.stdin.read(1)", "exception": "sys.stdin.read(1); os._exit(3)",
        "exec": "sys.stdin.read(1); os.execv('/bin/sleep', ['sleep', '100'])",
    }  # fmt: skip
    process, pid = owner(START.replace("FLAGS", "PD_CLOEXEC") + ends[end])
    with process:
        with held(pid):
            if end == "kill -9":
                process.kill()
            else:
                process.stdin.write("x")
                process.stdin.flush()
        process.kill()


def test_without_cloexec_exec_keeps_it():
    """And the next program knows what to do with it."""
    successor = "import sys\nfrom holdfast.procdesc import *\nfd = int(sys.argv[1])\npdkill(fd, 15)\n" \
                "print(pdgetpid(fd), *pdwait4(fd)[:2])"  # fmt: skip
    code = START.replace("FLAGS", "0") + f"os.execv(sys.executable, [sys.executable, '-c', {successor!r}, str(fd)])"
    process, pid = owner(code)
    with process:
        assert process.stdout.readline() == f"{pid} {pid} 15\n"


def test_sent_to_another():
    """The descriptor lives where its copies are."""
    ours, theirs = socket.socketpair()
    fd, pid = forked(forever)
    with held(pid) as pidfd, ours:
        with theirs:
            receiver = subprocess.Popen(
                [sys.executable, "-c", "import socket, sys\nfrom holdfast.procdesc import *\n"
                 f"s = socket.socket(fileno={theirs.fileno()})\n_, fds, _, _ = socket.recv_fds(s, 1, 1)\n"
                 "print(pdgetpid(fds[0]), pdwait4(fds[0], 1), flush=True)\nsys.stdin.read()"],
                pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        with receiver:
            socket.send_fds(ours, [b"x"], [fd])
            assert receiver.stdout.readline() == f"{pid} (0, 0, None)\n"
            os.close(fd)
            assert not ended(pidfd, 0.1)
            receiver.kill()


def test_a_forked_copy_of_us_holds_it():
    fd, pid = forked(forever)
    reader, writer = os.pipe()
    with held(pid) as pidfd:
        copy = os.fork()
        if copy == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(fd)
        assert not ended(pidfd, 0.1)
        os.close(writer)
        os.waitpid(copy, 0)
    os.close(reader)


def test_a_daemon_outlives_the_last_close():
    fd, pid = forked(forever, PD_DAEMON | PD_CLOEXEC)
    guard = parent(pid)
    with held(guard), held(pid) as pidfd:
        os.close(fd)
        assert not ended(pidfd, 0.2)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        wait_for(lambda: state(pid) == "")


def test_inheritance():
    for flags, inheritable in ((0, True), (PD_CLOEXEC, False), (PD_DAEMON, True)):
        fd, pid = forked(forever, flags)
        assert os.get_inheritable(fd) is inheritable
        with held(pid):
            pdkill(fd, signal.SIGKILL)
        os.close(fd)


@pytest.mark.parametrize("flags", [PD_CLOEXEC, PD_CLOEXEC | PD_DAEMON])
def test_the_guard_is_killed(flags):
    fd, pid = forked(forever, flags)
    with held(pid) as child:
        with held(parent(pid)) as guard:
            wait_for(lambda: read(f"/proc/{parent(pid)}/comm") == "holdfast-keeper\n")
            signal.pidfd_send_signal(guard, signal.SIGKILL)
        with pytest.raises(ChildProcessError):
            pdread(fd)
        with pytest.raises(ProcessLookupError):
            pdkill(fd, 0)
        if flags & PD_DAEMON:
            assert not ended(child, 0.2)
            signal.pidfd_send_signal(child, signal.SIGKILL)
    os.close(fd)


def test_a_daemon_outlives_a_guard_that_is_killed_at_once():
    """Before it has had the processor: it took the end of its guard for that of its start."""
    assert program("""
        import os, select, signal
        from helpers_lib import read
        from holdfast.procdesc import PD_CLOEXEC, PD_DAEMON, pdfork

        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        for _ in range(3):
            _, pid = pdfork(PD_CLOEXEC)  # it ends with us
            while pid == 0:
                pass
        for _ in range(20):
            fd, pid = pdfork(PD_DAEMON | PD_CLOEXEC)
            if pid == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
                os._exit(7)
            child = os.pidfd_open(pid)
            guard = os.pidfd_open(int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1]))
            signal.pidfd_send_signal(guard, signal.SIGKILL)
            assert select.select([guard], [], [], 15)[0]
            assert not select.select([child], [], [], 0.02)[0]
            signal.pidfd_send_signal(child, signal.SIGKILL)
            for each in (fd, child, guard):
                os.close(each)
    """) == ""


def test_the_guard_is_small_and_out_of_the_way():
    fd, pid = forked(forever)
    guard = parent(pid)
    wait_for(lambda: read(f"/proc/{guard}/comm") == "holdfast-keeper\n")
    wait_for(lambda: os.readlink(f"/proc/{guard}/cwd") == "/")
    open_files = sorted(os.readlink(f"/proc/{guard}/fd/{n}").split(":")[0] for n in os.listdir(f"/proc/{guard}/fd"))
    assert open_files == ["/dev/null"] * 3 + ["anon_inode", "socket"]
    assert os.getpgid(guard) == guard and os.getpgid(pid) == os.getpgrp()
    os.close(fd)
    assert all_ended([pid, guard])


# ---- pdkill, and whom it means


def test_signal_zero_and_after_the_end():
    fd, pid = forked(forever)
    pdkill(fd, 0)
    pdkill(fd, signal.SIGKILL)
    assert ended(fd)
    with pytest.raises(ProcessLookupError):
        pdkill(fd, 0)
    pdread(fd)
    with pytest.raises(ProcessLookupError):
        pdkill(fd, signal.SIGKILL)
    assert pdgetpid(fd) == pid
    os.close(fd)


def test_what_is_no_process_descriptor(tmp_path):
    one, other = socket.socketpair()
    with open(tmp_path / "file", "w") as file, one, other:
        for call in (pdgetpid, pdread, pdwait4, pdfstat, lambda fd: pdkill(fd, 0)):
            for fd, number in ((file.fileno(), errno.EINVAL), (other.fileno(), errno.EINVAL), (9999, errno.EBADF)):
                with pytest.raises(OSError) as caught:
                    call(fd)
                assert caught.value.errno == number


def test_misuse():
    with pytest.raises(ValueError, match="unknown flags"):
        pdfork(4)
    fd, _ = forked(lambda: 0)
    with pytest.raises(ValueError, match="WNOHANG"):
        pdwait4(fd, os.WUNTRACED)
    os.close(fd)


@root_only
def test_the_word_of_another_user_is_not_taken():
    """Somebody else's socket with the name of our process: root must not be made to kill it."""
    with held(os.posix_spawn("/bin/sleep", ["sleep", "100"], {})) as victim:
        pid = int(next(line for line in read(f"/proc/self/fdinfo/{victim}").splitlines() if "Pid:" in line).split()[1])
        ours, theirs = socket.socketpair()
        with ours, theirs:
            forger = os.fork()
            if forger == 0:
                try:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                    one, _two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    one.bind(f"\0holdfast.procdesc/{pid}/1")
                    theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))])
                    theirs.recv(1)
                finally:
                    os._exit(0)
            _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
            assert pdgetpid(fd) == pid
            with pytest.raises(PermissionError, match="made by user"):
                pdkill(fd, signal.SIGKILL)
            os.close(fd)
            ours.send(b"x")
            os.waitpid(forger, 0)
        assert not ended(victim, 0)
        signal.pidfd_send_signal(victim, signal.SIGKILL)
        os.waitpid(pid, 0)


@root_only
def test_of_another_user():
    """A child that has changed its user: its maker, who has changed as well, may not."""
    reader, writer = os.pipe()

    def owner():
        fd, _ = forked(forever)
        os.setuid(NOBODY)
        try:
            pdkill(fd, signal.SIGTERM)
        except PermissionError as error:
            return error.errno
        return 0

    fd, _ = forked(owner)
    assert pdwait4(fd)[1] == errno.EPERM << 8
    for each in (fd, reader, writer):
        os.close(each)


# ---- starts that fail


def test_a_guard_that_cannot_be_started():
    """Then there has never been a child, and nothing is left."""
    reader, writer = os.pipe()
    before = descriptors()
    with sigchld() as seen:
        with pytest.raises(FileNotFoundError):
            if _native.pdfork(b"/nowhere/at/all", False, [])[1] == 0:
                os.write(writer, b"x")
                os._exit(0)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
    assert not seen and descriptors() == before
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_handler_that_raises():
    """Then there has been no child, nor is there a descriptor: the signal is held back until the fork is over."""
    assert program("""
        import os, random, signal
        from helpers_lib import descriptors, marked
        from helpers_wait import wait_for
        from holdfast.procdesc import PD_CLOEXEC, pdfork

        class Raised(BaseException):
            pass

        def interrupt(*_):
            raise Raised

        us, mark = os.getpid(), "HF_PROCDESC=" + os.environ["HF_PROCDESC"]
        signal.signal(signal.SIGALRM, interrupt)
        rng, raised, before = random.Random(7), 0, descriptors()
        for _ in range(100):
            fd = -1
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
                    fd, pid = pdfork(PD_CLOEXEC)
                    if pid == 0:
                        while True:
                            signal.pause()
                finally:
                    if os.getpid() != us:
                        os._exit(1)
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Raised:
                raised += 1
            if fd >= 0:
                os.close(fd)
            assert descriptors() == before
        assert raised > 3, "nothing was tried"
        wait_for(lambda: marked(mark) == [us])
    """, env={"HF_PROCDESC": uuid.uuid4().hex}) == ""


def test_no_descriptor_is_left():
    """Whatever number is free, either it works or there is an OSError and nothing has happened."""
    assert program("""
        import os, resource
        from helpers_lib import descriptors
        from holdfast.procdesc import PD_CLOEXEC, pdfork, pdwait4

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        full = []
        while True:
            try:
                full.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        results = []
        for free in range(1, 8):
            os.close(full.pop())
            try:
                fd, pid = pdfork(PD_CLOEXEC)
            except OSError as error:
                assert error.errno == 24, error
                results.append("EMFILE")
                continue
            if pid == 0:
                os._exit(7)
            results.append(pdwait4(fd)[1] >> 8)
            os.close(fd)
        print(*results)
    """) == "EMFILE EMFILE EMFILE 7 7 7 7\n"


@pytest.mark.skipif(not is_root, reason="needs root")
def test_no_more_processes():
    """As a user who may have no more: EAGAIN, and nothing is left."""
    assert program("""
        import os, resource
        from holdfast.procdesc import pdfork

        os.setgroups([])
        os.setgid(61234)
        os.setuid(61234)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            if pdfork()[1] == 0:
                os._exit(0)
        except BlockingIOError as error:
            print(error.errno)
    """) == "11\n"


def test_many_at_once():
    children = [forked(forever) for _ in range(40)]
    pids = [pid for _, pid in children]
    guards = [parent(pid) for pid in pids]
    assert len(set(guards)) == 40
    for fd, _ in children:
        os.close(fd)
    assert all_ended(pids + guards)
    assert not eventually(lambda: [pid for pid in pids if state(pid) == "Z"], 0)


def test_where_we_are_a_subreaper():
    """The guard comes back to us; it is not left for others to find."""
    assert program("""
        import ctypes, os
        from helpers_lib import read
        from helpers_wait import wait_for
        from holdfast.process.keeper import reap_retired
        from holdfast.procdesc import PD_CLOEXEC, pdfork, pdwait4

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        for i in range(3):
            fd, pid = pdfork(PD_CLOEXEC)
            if pid == 0:
                os._exit(i)
            assert pdwait4(fd)[1] >> 8 == i
            os.close(fd)
        wait_for(lambda: reap_retired() or not read(f"/proc/self/task/{os.getpid()}/children"))
    """) == ""


# ---- its page


@pytest.mark.parametrize("code", [body for language, body in blocks(PAGE) if language == "python"])
def test_what_the_page_shows(code):
    assert program(code) == ""
