"""An anchor with a stand-in for the supervisor: a small real program that speaks READY and FAREWELL on descriptor 3.

What a stand-in sees it writes as lines into a FIFO: monotonic ns, its pid, how many were there before it, words.
What it shall do is said in its arguments (a plan for each life) or by clients of its descriptor 5, a listening socket.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
import uuid
from typing import NamedTuple, Self

import helpers_wire

LIMIT = 30.0  # a hang guard, never a measure
ROOT = helpers_wire.ROOT

STAND_IN = r'''
import os, select, signal, socket, stat, struct, subprocess, sys, time
given = sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n))
listener = socket.socket(fileno=5) if 5 in given else None
journal, lives = os.open(sys.argv[1], os.O_WRONLY), sys.argv[2].split(",")
SIGNALS = [getattr(signal, "SIG" + s) for s in "HUP INT QUIT TERM USR1 USR2".split()]
anchor = socket.socket(fileno=3)
packet = anchor.recv(65536, socket.MSG_DONTWAIT)
tag, _, length, version, pid, restarts, _, at = struct.unpack("<HHIIiIIQ", packet)
assert (tag, length, version) == (96, 24, 1), packet
def tell(*words):
    line = " ".join(map(str, (time.monotonic_ns(), os.getpid(), restarts, *words)))
    os.write(journal, line.encode() + b"\n")
def say(tag, body):
    anchor.send(struct.pack("<HHI", tag, 0, len(body)) + body)
blocked = sorted(signal.Signals(s).name[3:] for s in signal.pthread_sigmask(signal.SIG_BLOCK, []))
r, w = os.pipe()
os.set_blocking(w, False)
signal.set_wakeup_fd(w, warn_on_full_buffer=False)  # a byte for every delivery
for s in [*SIGNALS, signal.SIGCONT, signal.SIGWINCH]:
    signal.signal(s, lambda *_: None)
tell("hello", pid)
def do(step):
    word, _, rest = step.partition(" ")
    if word == "ready":
        say(32, bytes(8))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        tell("ready")
    elif word == "up":
        os.write(7, b"up\n")
        os.close(7)
    elif word == "say":
        print(rest, file=sys.stderr, flush=True)
    elif word == "gate":
        open(sys.argv[1] + ".gate").close()
    elif word == "exit":
        os._exit(int(rest))
    elif word == "die":
        os.kill(os.getpid(), 9)
    elif word == "farewell":
        say(33, struct.pack("<iI", int(rest), 0))
    elif word == "hang_up":
        anchor.close()
    elif word == "stop":
        os.kill(os.getpid(), 19)
    elif word == "orphans":  # each loses its parent at once, lives for a moment, and falls to a subreaper
        for i in range(int(rest)):
            if os.fork() == 0:
                if os.fork() == 0:
                    os.setsid()
                    os.close(journal)
                    select.select([], [], [], 0.01)
                os._exit(0)
            os.wait()
    elif word == "linger":  # one that stays until somebody kills it
        first = os.fork()
        if first == 0:
            if os.fork() == 0:
                signal.set_wakeup_fd(-1)
                os.closerange(3, 100)  # as a keeper has it: the lock is not its own
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                signal.pause()
            os._exit(0)
        os.waitpid(first, 0)
    elif word == "show":
        return f"{os.getpid()} {restarts} fds={given} blocked={blocked} nofile={__import__('resource').getrlimit(7)}"
    elif word == "child":
        return subprocess.check_output(["ls", "/proc/self/fd"], text=True, close_fds=False).replace("\n", " ")
    else:
        raise SystemExit("unknown: " + step)
    return f"{os.getpid()} {restarts}"
for step in lives[min(restarts, len(lives) - 1)].split("+"):
    do(step)
while True:
    ready = select.select([r, *([listener] if listener else [])], [], [])[0]
    if r in ready:
        for n in os.read(r, 1):
            tell("got", signal.Signals(n).name[3:])
    elif listener in ready:
        client = listener.accept()[0]
        with client:
            client.send(do(client.recv(1000).decode()).encode())
'''


class Line(NamedTuple):
    at_ns: int
    pid: int
    restarts: int
    words: str


class Journal:
    """What stand-ins say, and the gate at which they wait."""

    def __init__(self, tmp_path) -> None:
        self.fifo = os.path.join(tmp_path, f"journal-{uuid.uuid4().hex[:8]}")
        os.mkfifo(self.fifo)
        os.mkfifo(self.fifo + ".gate")
        self.journal = os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)
        self.unread = b""

    def next(self, words: str | None = None) -> Line:
        """The next line of a stand-in; with `words`, it must be these."""
        deadline = time.monotonic() + LIMIT
        while b"\n" not in self.unread:
            ready = select.select([self.journal], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"no stand-in says {words or 'anything'!r}"
            self.unread += os.read(self.journal, 4096)
        line, _, self.unread = self.unread.partition(b"\n")
        at, pid, restarts, rest = line.decode().split(" ", 3)
        if words is not None:
            assert rest.split(" ")[0] == words.split(" ")[0] and words in rest, f"{rest!r} instead of {words!r}"
        return Line(int(at), int(pid), int(restarts), rest)

    def started(self) -> Line:
        """A stand-in has started and is ready."""
        self.next("hello")
        return self.next("ready")

    def silent(self) -> bool:
        """No stand-in has said anything more."""
        return not self.unread and not select.select([self.journal], [], [], 0)[0]

    def open_gate(self) -> None:
        os.close(os.open(self.fifo + ".gate", os.O_WRONLY))


class AnchorProcess(Journal):
    """`holdfast-keeper anchor` as a child, in a group of its own, with stand-ins below it.

    lives: plans, separated by commas, one a life (the last one for all that follow); steps separated by "+".
    """

    def __init__(
        self, tmp_path, lives: str = "ready", *, command=None, arguments=("fds=4,5",), more=(), wrap=()
    ) -> None:
        super().__init__(tmp_path)
        self.address = str(tmp_path / uuid.uuid4().hex[:8])
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen()
        self.lock = os.open(str(tmp_path / "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.marker = f"HF_TEST_MARK={uuid.uuid4().hex}"
        self.errors, stderr = os.pipe()
        command = command or [sys.executable, "-I", "-S", "-c", STAND_IN, self.fifo, lives]
        argv = [*wrap, helpers_wire.KEEPER, "anchor", *arguments, "--", *command]
        high = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 30) for fd, to in ((self.lock, 4),
                (self.listener.fileno(), 5), (stderr, 2), *more)}  # fmt: skip
        name, value = self.marker.split("=")
        self.pid = os.posix_spawn(
            argv[0], argv, {**os.environ, name: value}, setpgroup=0,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in high.items()],
        )  # fmt: skip
        self.pidfd = os.pidfd_open(self.pid)  # our child, not reaped yet: the number is its own
        for fd in (stderr, *high.values()):
            os.close(fd)
        self.code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.code is None:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                self.wait()
            kill_marked(self.marker)
        finally:
            self.listener.close()
            for fd in (self.journal, self.lock, self.errors, self.pidfd):
                os.close(fd)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT)
        sock.connect(self.address)
        return sock

    def ask(self, step: str) -> str:
        """Let the living stand-in do something; what it answers ("" when it dies of it)."""
        with self.connect() as sock:
            sock.send(step.encode())
            try:
                return sock.recv(65536).decode()
            except ConnectionResetError:
                return ""

    def signal(self, signo: int) -> None:
        signal.pidfd_send_signal(self.pidfd, signo)

    def said(self) -> str:
        """The next piece of what the anchor has written to stderr."""
        assert select.select([self.errors], [], [], LIMIT)[0], "the anchor writes nothing"
        return os.read(self.errors, 65536).decode()

    def wait(self) -> int:
        if self.code is None:
            assert select.select([self.pidfd], [], [], LIMIT)[0], "the anchor does not end"
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def children(self) -> list[int]:
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
            return [int(pid) for pid in file.read().split()]


def kill(pid: int, signo: int = signal.SIGKILL) -> None:
    """Signal a stand-in of ours, held while it is signalled."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signo)
    finally:
        os.close(fd)


def kill_marked(marker: str) -> None:
    """Kill whatever has the marker in its environment, until nothing has."""
    deadline = time.monotonic() + LIMIT
    while found := helpers_wire.marked(marker):
        assert time.monotonic() < deadline, found
        for pid in found:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if pid in helpers_wire.marked(marker):  # held now, and still the one that was meant
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(fd)


def state(pid: int) -> str:
    """The letter of /proc/PID/stat; "" when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
