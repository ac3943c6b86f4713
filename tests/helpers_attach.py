"""Trees at an address for tests: a place for them, and owners in processes of their own that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

import pytest
from helpers_trees import kill_marked, left_of
from helpers_wait import wait_for

import holdfast

LIMIT = 30.0

# What every owner's source begins with; `start` starts a shell script at the address.
PRELUDE = """
import os, sys, holdfast
from holdfast.process import _native, addressed
holdfast.spawn  # loads it, for who is about to become another user
address, mark = sys.argv[1:3]
def start(script, *args, **options):
    return holdfast.spawn(["sh", "-c", script, "sh", *args], address=address, **{"env": {"PATH": os.environ["PATH"],
        "HF_MARK": mark}, "on_owner_loss": "keep", "stdin": holdfast.DEVNULL, "stdout": holdfast.DEVNULL} | options)
def say(*words):
    print(*words, flush=True)
def die(*_):
    os.kill(os.getpid(), 9)
"""


class Place:
    """A directory for an address; everything that is started here carries a mark, and none of it is left."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.address = os.path.join(directory, "app")
        self.mark = f"attach-{os.getpid()}-{os.urandom(6).hex()}"
        self.env = {"PATH": os.environ["PATH"], "HF_MARK": self.mark}
        self.owners: list[subprocess.Popen[str]] = []
        self.fds: list[int] = []

    def spawn(self, script: str, *args: str, **options) -> holdfast.Process:
        defaults = {"env": self.env, "address": self.address, "on_owner_loss": "keep", "grace": 5}
        return holdfast.spawn(["sh", "-c", script, "sh", *args], **defaults | options)

    def owner(self, source: str, *args: str, **options) -> subprocess.Popen[str]:
        """A process that runs `source`, says what it says, and is killed at the end of the test."""
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PRELUDE + source, self.address, self.mark, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        self.owners.append(process)
        return process

    def hear(self, owner: subprocess.Popen[str]) -> list[str]:
        assert owner.stdout
        return owner.stdout.readline().split()

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def until_reported(self) -> None:
        """Until the keeper has left its report and is gone: who connects is refused then."""
        wait_for(lambda: "app.report" in self.files(), LIMIT, "the report")

    def gate(self, name: str) -> str:
        """A pipe by name beside the directory: who reads it waits until it is `opened`."""
        path = f"{self.directory}.{name}"
        os.mkfifo(path)
        self.fds.append(os.open(path, os.O_RDWR))  # so that no open waits
        return path

    def open(self, gate: str) -> None:
        fd = os.open(gate, os.O_WRONLY)
        os.write(fd, b"0\n")
        os.close(fd)

    def close(self) -> None:
        for owner in self.owners:
            owner.kill()
            owner.wait()
            assert owner.stdin and owner.stdout
            owner.stdin.close()
            owner.stdout.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(prefix="hf") as above:
        directory = os.path.join(above, "d")
        os.mkdir(directory, 0o755)
        os.chmod(above, 0o755)  # another user may look in
        made = Place(directory)
        try:
            yield made
            left = left_of(made.mark)
        finally:
            kill_marked(made.mark)
            made.close()
        assert not left


def keeper_of(process: holdfast.Process) -> tuple[int, int]:
    """Pid and pidfd of its keeper, the parent: checked after it was opened."""
    pid = parent(process.pid)
    fd = os.pidfd_open(pid)
    assert parent(process.pid) == pid
    return pid, fd


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def end_by(fd: int, signo: int = signal.SIGKILL) -> None:
    signal.pidfd_send_signal(fd, signo)
