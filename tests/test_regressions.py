"""One test per mended bug that has no better home; each names what went wrong."""

import fcntl
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid

import pytest
from helpers_wait import wait_for

import holdfast
from holdfast.config.load import load
from holdfast.daemon import place
from holdfast.daemon.notify import NotifySocket
from holdfast.process import _native


def test_spawn_error_is_the_oserror_that_subprocess_would_raise():
    for command, kind in ((["/nonexistent"], FileNotFoundError), (["/etc/passwd"], PermissionError)):
        with pytest.raises(kind) as caught:
            holdfast.spawn(command)
        error = caught.value
        assert isinstance(error, holdfast.SpawnError) and error.stage == "exec" and error.filename == command[0]
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and (again.errno, again.stage) == (error.errno, "exec")
    with pytest.raises(NotADirectoryError) as caught:
        holdfast.spawn(["true"], cwd="/etc/passwd")
    assert caught.value.stage == "chdir"


def test_a_character_cut_by_the_time_limit_is_not_a_second_error():
    with pytest.raises(holdfast.TimeoutExpired) as caught:
        holdfast.run(
            ["sh", "-c", r"printf 'a\303'; exec sleep 99"],
            capture_output=True, text=True, encoding="utf-8", timeout=0.3,
        )  # fmt: skip
    assert caught.value.stdout == "a\N{REPLACEMENT CHARACTER}"


def test_a_runner_that_cannot_start_leaves_nothing(monkeypatch):
    monkeypatch.setattr("holdfast.process.keeper._KEEPER", b"/nonexistent/keeper")
    with pytest.raises(holdfast.SpawnError) as caught:
        holdfast.Runner()
    assert caught.value.stage == "launch"


def test_an_idle_keeper_that_was_killed_costs_its_runner_nothing():
    """The first start after it failed with EPIPE, although nothing had been started."""
    with holdfast.Runner() as runner:
        runner.run(["true"])
        (idle,) = runner._idle
        idle.kill()
        assert select.select([idle._pidfd], [], [], 10)[0]
        assert runner.run(["true"]).status.ok


def test_a_runner_closed_under_its_processes_leaves_them_to_their_keepers():
    """Their handles said KeeperLost and killed at once; TERM and the grace are the keepers' to give."""
    reader, writer = os.pipe()
    with holdfast.Runner() as runner:
        process = runner.spawn(
            ["sh", "-c", "trap 'echo term; exit' TERM; echo ready; while :; do sleep 0.01; done"], stdout=writer
        )
        assert os.read(reader, 100) == b"ready\n"
    os.close(writer)
    with pytest.raises(RuntimeError, match="runner is closed"):
        process.wait()
    process.close()
    assert os.read(reader, 100) == b"term\n"
    assert os.read(reader, 100) == b""
    os.close(reader)


INTERRUPTED = """
import gc, os, random, select, signal, sys, time, holdfast

class Interrupted(BaseException):
    pass

def interrupt(*_):
    raise Interrupted

options = {"keep": {"on_owner_loss": "keep"}, "direct": {"private": False}}[sys.argv[1]]
holdfast.run(["true"], **options)
signal.signal(signal.SIGALRM, interrupt)
rng = random.Random(7)
interrupted = 0
for _ in range(300):
    process = None
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 4e-4))
            process = holdfast.spawn(
                ["/bin/sleep", "99"], stdout=holdfast.DEVNULL, stderr=holdfast.DEVNULL, **options
            )
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        interrupted += 1
    if process is not None:
        process.stop(grace=0)
        process.close()
    del process
gc.collect()
print(interrupted)
"""


@pytest.mark.parametrize("kind", ["keep", "direct"])
def test_an_interrupted_start_leaves_nothing(kind):
    """Undone by hanging up, which "keep" outlives; a direct child was simply forgotten."""
    mark = str(uuid.uuid4())
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, kind], env={**os.environ, "HOLDFAST_TEST": mark},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    interrupted = int(done.stdout)
    assert interrupted > 3, "it was hardly ever interrupted: nothing was tried"
    deadline = time.monotonic() + 10
    while (left := _marked(mark)) and time.monotonic() < deadline:
        select.select([], [], [], 0.02)
    for pidfd in (os.pidfd_open(pid) for pid in left):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    # A handler that runs between the end of spawn and the assignment finds a start that is complete: that
    # window is a few microseconds of the hundreds.  Before, every interrupted start was left running.
    assert len(left) <= interrupted // 4, (left, interrupted)


def _marked(mark):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark.encode() in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return found


def test_a_handler_that_raises_timeout_in_a_runners_start_does_not_mix_up_processes():
    """`'alarm' <= 2` was a TypeError, and the keeper went back to the idle ones with a start under way."""

    def alarm(*_):
        raise TimeoutError("alarm")

    def unread(fd):
        """How many bytes of the request the keeper has not read yet."""
        return struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))[0]

    def strike():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with holdfast.Runner() as runner:
            runner.run(["true"])
            (idle,) = runner._idle
            frozen = os.dup(idle._pidfd)
            _native.pidfd_signal(frozen, signal.SIGSTOP)
            control = os.dup(idle._sock)
            asked = threading.Thread(target=lambda: wait_for(lambda: unread(control)) and strike())
            asked.start()
            with pytest.raises(TimeoutError, match="alarm"):
                runner.spawn(["sh", "-c", "exit 3"])
            asked.join()
            os.close(control)
            assert runner.run(["sh", "-c", "exit 4"]).returncode == 4
            _native.pidfd_signal(frozen, signal.SIGCONT)
            assert select.select([frozen], [], [], 10)[0]  # and it ends
            os.close(frozen)
    finally:
        signal.signal(signal.SIGALRM, before)


EARLY_CLOSE = """
import os, select, sys
fd = int(sys.argv[1])
os.close(1); os.close(2)
os.write(fd, str(os.getpid()).encode()); os.close(fd)
select.select([], [], [], 1)
os._exit(5)
"""


def test_output_that_closes_early_under_a_frozen_keeper_does_not_hang_run():
    """After the end of the output only the keeper's word was waited for."""
    reader, writer = os.pipe()
    frozen = []

    def freeze():
        pid = int(os.read(reader, 20))
        with open(f"/proc/{pid}/stat") as file:
            keeper = os.pidfd_open(int(file.read().rsplit(")", 1)[1].split()[1]))
        signal.pidfd_send_signal(keeper, signal.SIGSTOP)
        os.close(keeper)
        frozen.append(pid)

    thread = threading.Thread(target=freeze)
    thread.start()
    command = [sys.executable, "-ISc", EARLY_CLOSE, str(writer)]
    done = holdfast.run(command, capture_output=True, pass_fds=[writer])
    os.close(writer)
    thread.join()
    os.close(reader)
    assert frozen and done.returncode == 5


def test_communicate_hears_of_a_lost_keeper():
    """It waited for a pipe that an escaped grandchild held."""
    with pytest.raises(holdfast.KeeperLost):
        process = holdfast.spawn(
            ["sh", "-c", "(setsid sleep 20 &); sleep 0.1; echo up; exec sleep 20"], stdout=holdfast.PIPE
        )
        assert process.stdout.read(3) == b"up\n"
        began = time.monotonic()
        process._tree.keeper.kill()
        try:
            process.communicate()
        finally:
            assert time.monotonic() - began < 15
            with pytest.raises(holdfast.KeeperLost):
                process.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root for a pid namespace")
def test_a_foreign_proc_is_not_believed():
    """In it the numbers mean others: a command was taken for a stranger and its exit code was lost."""
    holdfast_ = os.path.join(os.path.dirname(sys.executable), "holdfast")
    script = f"'{holdfast_}' run -- sh -c 'exit 3'; echo $?; '{holdfast_}' run -- true; echo $?"
    done = holdfast.run(
        ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["3", "0"], done.stderr


def test_closing_a_runner_reads_what_was_said_already():
    """A status that lay in the socket was thrown away."""
    with holdfast.Runner() as runner:
        process = runner.spawn(["sh", "-c", "exit 7"])
        assert select.select([process], [], [], 10)[0]
        select.select([process._tree.keeper._sock], [], [], 10)
    assert process.poll().code == 7
    process.close()


def test_a_closed_runner_is_not_a_lost_keeper():
    """The second close turned "left" into "lost"."""
    runner = holdfast.Runner()
    process = runner.spawn(["sleep", "99"], grace=0.1)
    runner.close()
    process.close()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        process.wait()
    assert not isinstance(caught.value, holdfast.KeeperLost)


def test_a_service_that_is_ready_before_its_supervisor_listens_is_believed(tmp_path):
    """The kernel names senders as they send: set at the receiver's start, that was too late for the first services,
    which then stayed "not ready yet" until they were killed for it."""
    file = tmp_path / "holdfast.toml"
    file.write_text('[supervisor]\nrun_dir = "run"\nlog_dir = "log"\n[service.x]\ncommand = "true"\n')
    ours = place.take(load(str(file)))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
            service.connect(str(tmp_path / "run" / "notify"))
            service.send(b"READY=1")
        (message,) = NotifySocket(ours.notify).receive({os.getppid()})  # as if our parent were the keeper
        assert (message.pid, message.fields) == (os.getpid(), {"READY": "1"})
    finally:
        os.close(ours.lock_fd)
        ours.control.close()
        ours.notify.close()
        ours.attach.close()


@pytest.mark.parametrize("private", [True, False])
def test_communicate_writes_to_who_has_no_output(tmp_path, private):
    """It stopped writing with the last output at its end, and then waited for one that waited for its input."""
    given = os.urandom(300_000)  # more than a pipe holds
    got = tmp_path / "got"
    for script, options in (('exec cat > "$1"', {}), ('exec cat > "$1" 2>&-', {"stderr": holdfast.PIPE})):
        with holdfast.spawn(
            ["sh", "-c", script, "sh", got], stdin=holdfast.PIPE, private=private, **options
        ) as process:
            assert process.communicate(given, timeout=30) == (b"", b"")
            assert process.wait().code == 0
        assert got.read_bytes() == given
