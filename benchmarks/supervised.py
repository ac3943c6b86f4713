"""What is measured: holdfast as it is installed, and the C floor, each with services that say when they began."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

BEGAN, TERM, WRITING, WRITTEN = 1, 2, 3, 4
LIMIT = 60.0  # seconds for anything that is waited for: a hang guard, not a measure
TICK = os.sysconf("SC_CLK_TCK")

# Immediate restarts, as often as one likes: what holdfast can do, not what it does by default.
AT_ONCE = """restart = "always"
start_limit = 0
backoff = { first = "0s", then = "0s", max = "0s", jitter = 0 }
"""
NO_BUDGET = "start_budget = { at_once = 1000000, per_second = 1000000 }\n"


class Word(NamedTuple):
    """What a service said: when (CLOCK_MONOTONIC), which process, what."""

    ns: int
    pid: int
    what: int


class Ear:
    """The FIFO that the services speak into.  When nobody is left who has it open, it hangs up: all are dead."""

    def __init__(self, path: str):
        self.path = path
        os.mkfifo(path, 0o666)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.own_end = -1
        self.heard: list[Word] = []

    def keep_open(self) -> None:
        """For services that come and go: no hangup any more."""
        self.own_end = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)

    def listen(self, wait: float) -> list[Word]:
        """What has been said since; waits for the first word."""
        if wait:
            select.select([self.fd], [], [], wait)
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        return [Word(*fields) for fields in struct.iter_unpack("=QII", data)]

    def all(self) -> list[Word]:
        """Everything that has been said, without waiting."""
        while words := self.listen(0.0):
            self.heard += words
        heard, self.heard = self.heard, []
        return heard

    def until(self, number: int, what: int = BEGAN, pause: float = 0.0) -> list[Word]:
        """The next `number` words of this kind; `pause` gives the processor to those who are measured."""
        deadline = time.monotonic() + LIMIT
        while True:
            found = [word for word in self.heard if word.what == what][:number]
            if len(found) == number:
                taken = set(found)
                self.heard = [word for word in self.heard if word not in taken]
                return found
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(found)} of {number} services have spoken")
            time.sleep(pause)
            words = self.listen(LIMIT)
            self.heard += words
            if not words:
                time.sleep(0.001)  # hung up: nobody is there yet, or nobody any more

    def hangup(self) -> int:
        """When the last of them was gone, in ns."""
        poll = select.poll()
        poll.register(self.fd, 0)  # a hangup needs not be asked for
        if not poll.poll(LIMIT * 1000):
            raise RuntimeError("services are still there")
        return time.monotonic_ns()

    def close(self) -> None:
        for fd in (self.fd, self.own_end):
            if fd >= 0:
                os.close(fd)


class Supervised:
    """Services under something that supervises them; a context manager with a directory of its own."""

    name = ""

    def __init__(self, lab, mode: str = "i", *arguments: str, count: int = 1, grace_ms: int = 1000):
        self.lab, self.count, self.grace_ms = lab, count, grace_ms
        self.directory = tempfile.mkdtemp(prefix="holdfast-bench-", dir=lab.base)
        self.ear = Ear(os.path.join(self.directory, "ear"))
        gate = os.path.join(self.directory, "go")
        os.mkfifo(gate)
        self.gate = os.open(gate, os.O_RDWR | os.O_CLOEXEC)
        self.command = [lab.service, self.ear.path, mode, *(gate if a == "GO" else a for a in arguments)]
        self.process: subprocess.Popen | None = None
        self.exec_ns = 0

    def launch(self, argv: list[str], **more) -> None:
        with open(os.path.join(self.directory, "output"), "ab") as out:
            self.exec_ns = time.monotonic_ns()
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **more)

    def said(self) -> str:
        with open(os.path.join(self.directory, "output"), errors="replace") as file:
            return file.read()[-2000:]

    def ended(self) -> int:
        """Wait for the end of what was launched; when that was, in ns."""
        assert self.process is not None
        fd = os.pidfd_open(self.process.pid)  # our child: wait(timeout) would sleep, and look now and then
        try:
            if not select.select([fd], [], [], LIMIT)[0]:
                raise RuntimeError(f"{self.name} does not end: {self.said()}")
        finally:
            os.close(fd)
        return time.monotonic_ns()

    def go(self) -> None:
        """Let the service write."""
        os.write(self.gate, b"!")

    def kill(self, word: Word) -> int:
        """SIGKILL to a service that spoke; when, in ns."""
        fd = os.pidfd_open(word.pid)
        try:
            with open(f"/proc/{word.pid}/cmdline", "rb") as file:
                if os.fsencode(self.ear.path) not in file.read():
                    raise RuntimeError(f"{word.pid} is not ours")
            ns = time.monotonic_ns()
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            return ns
        finally:
            os.close(fd)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def start(self) -> None:
        raise NotImplementedError

    def __exit__(self, *_exc) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.ear.close()
        os.close(self.gate)
        shutil.rmtree(self.directory)


class Floor(Supervised):
    name = "floor"
    logs = True

    def start(self) -> None:
        logs = "-"
        if self.logs:
            logs = os.path.join(self.directory, "log")
            os.mkdir(logs)
        numbers = [str(self.count), str(self.grace_ms)]
        self.launch([self.lab.supervisor_floor, *numbers, logs, "10000000", "10", *self.command])

    def processes(self) -> list[int]:
        assert self.process is not None
        return [self.process.pid]

    def stop(self) -> None:
        self.process.terminate()

    def restart(self) -> None:
        """TERM to the services, KILL after the grace, and again from the start."""
        self.process.send_signal(signal.SIGUSR1)


class BareFloor(Floor):
    """Without logs."""

    name = "floor without logs"
    logs = False


class Holdfast(Supervised):
    name = "holdfast"

    def __init__(self, lab, *arguments, settings: str = AT_ONCE, places: str = NO_BUDGET, timestamps=False, **more):
        super().__init__(lab, *arguments, **more)
        self.settings, self.places, self.timestamps = settings, places, timestamps

    def start(self) -> None:
        self.run_dir = os.path.join(self.directory, "run")
        file = os.path.join(self.directory, "holdfast.toml")
        with open(file, "w", encoding="utf-8") as out:
            out.write(f'[supervisor]\nrun_dir = "run"\nlog_dir = "log"\nstate_dir = "state"\n{self.places}')
            command = ", ".join(f'"{word}"' for word in self.command)
            log = 'rotate = { size = "10MB", count = 10 }'
            for i in range(self.count):
                out.write(
                    f'[service.s{i}]\ncommand = [{command}]\ngrace = "{self.grace_ms}ms"\n{self.settings}'
                    f"log = {{ {log}, timestamps = {str(self.timestamps).lower()} }}\n"
                )
        self.file = file
        self.up()

    def up(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        self.launch([*self.lab.holdfast, "up", "-c", self.file], env=environment)

    def kill_anchor(self) -> None:
        """SIGKILL to what was launched: the kernel ends the supervisor with it."""
        self.process.kill()
        self.process.wait()

    def client(self):
        from holdfast.client import Client

        return Client(self.run_dir)

    def settled(self) -> dict:
        """Wait until the API answers; the supervisor's own status."""
        from holdfast.client import ClientError

        deadline = time.monotonic() + LIMIT
        while True:
            try:
                status = self.client().supervisor()
                if status["state"] != "adopting":
                    return status
            except ClientError:
                pass
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"no answer from the supervisor: {self.said()}")
            time.sleep(0.01)

    def processes(self) -> dict[str, list[int]]:
        """The living processes that are holdfast's, by what they are."""
        status = self.settled()
        anchor, supervisor = status["anchor_pid"], status["pid"]
        keepers = [pid for pid, parent in parents().items() if parent == anchor and pid != supervisor]
        return {"supervisor": [supervisor], "anchor": [anchor], "keepers": keepers}

    def stop(self) -> None:
        self.client().shutdown()


def parents() -> dict[int, int]:
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                found[int(entry)] = int(stat(int(entry))[1])
    return found


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (field 3 is [0])."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def tree_cpu(root: int) -> float:
    """CPU seconds of a process, of its living descendants, and of all that these have reaped."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    ticks, open_ = 0, [root]
    while open_:
        pid = open_.pop()
        open_ += children.get(pid, [])
        with contextlib.suppress(OSError):
            ticks += sum(int(field) for field in stat(pid)[11:15])
    return ticks / TICK


def own_cpu(pids: list[int]) -> float:
    """CPU seconds of these processes' threads, from the scheduler's nanoseconds."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def switches(pids: list[int]) -> int:
    """How often threads of these processes have been given a processor."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status") as file:
                total += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
    return total


def pss(pids: list[int]) -> int:
    """Their share of memory in KiB."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total
