"""Process trees for the tests, a marker to find what is left of them, and a log of what they were told."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
import uuid
from collections import Counter

import pytest
from conftest import require
from helpers_wait import LIMIT, all_ended, wait_for

import holdfast

__all__ = ["LIMIT", "wait_for"]

HERE = os.path.dirname(os.path.abspath(__file__))


def build_tree_program(directory: str) -> str:
    """Compile trees.c; the program's path."""
    require("gcc")
    program = os.path.join(directory, "tree")
    subprocess.run(
        ["gcc", "-O1", "-pthread", "-o", program, os.path.join(HERE, "trees.c")], check=True, timeout=60
    )
    return program


@pytest.fixture(scope="session")
def tree_program(tmp_path_factory):
    return build_tree_program(str(tmp_path_factory.mktemp("trees")))


def marked(mark: str) -> list[int]:
    """Every process on the machine that carries the mark in its environment, seen from outside."""
    found = []
    needle = b"HF_MARK=" + mark.encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if needle in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                pass  # ended meanwhile, or another user's
    return found


def left_of(mark: str, limit: float = 2.0) -> list[int]:
    """What is left of the marked ones.  The moment is for the marker's own reader: a process that dies
    keeps its environment readable until its memory is given back."""
    deadline = time.monotonic() + limit
    while (left := marked(mark)) and all_ended(left, deadline - time.monotonic()):
        continue  # those have ended; what they started meanwhile is looked for again
    return left


def state(pid: int) -> str:
    """The letter of /proc/PID/stat, "" when there is no such process."""
    return stat_fields(pid)[0]


def stat_fields(pid: int) -> list[str]:
    """What follows the name in /proc/PID/stat: state, ppid, pgrp, session, ..."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return [""]


class Tree:
    """One marked tree: how to start it and what it has said."""

    def __init__(self, program: str, shape: str, mode: str = "l", count: int = 0) -> None:
        self.mark = uuid.uuid4().hex
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.args = [program, str(self.writer), shape, mode, str(count)]
        self.env = {"HF_MARK": self.mark}
        self._text = b""
        self._ended = False

    def spawn(self, spawner=holdfast.spawn, **options):
        """Start it and wait until all of it is ready."""
        process = spawner(self.args, env=self.env, pass_fds=[self.writer], **options)
        os.close(self.writer)
        self.writer = -1
        try:
            self.wait_for("M")
        except BaseException:
            process.stop(grace=0)
            process.close()
            raise
        return process

    def _read(self, timeout: float) -> None:
        if not select.select([self.reader], [], [], timeout)[0]:
            return
        try:
            data = os.read(self.reader, 65536)
        except BlockingIOError:
            return
        self._text += data
        self._ended = not data

    def lines(self, what: str) -> list[int]:
        """Pids of the lines that begin with `what`, so far."""
        while not self._ended and select.select([self.reader], [], [], 0)[0]:
            self._read(0)
        return [int(line[2:]) for line in self._text.decode().splitlines() if line[0] == what]

    def counts(self, what: str) -> Counter[int]:
        return Counter(self.lines(what))

    def wait_for(self, what: str, number: int = 1) -> list[int]:
        deadline = time.monotonic() + LIMIT
        while len(self.lines(what)) < number:
            left = deadline - time.monotonic()
            assert left > 0 and not self._ended, f"only {self._text!r}"
            self._read(left)
        return self.lines(what)

    def read_to_the_end(self) -> None:
        """Until nobody holds the log any more."""
        deadline = time.monotonic() + LIMIT
        while not self._ended:
            left = deadline - time.monotonic()
            assert left > 0, "somebody still holds the log open"
            self._read(left)

    def close(self) -> None:
        os.close(self.reader)
        if self.writer >= 0:
            os.close(self.writer)


@pytest.fixture
def make_tree(tree_program):
    """Tree(...) with the program filled in; at the end of the test nothing of them is left."""
    made = []

    def make(shape, mode="l", count=0, program=None):
        tree = Tree(program or tree_program, shape, mode, count)
        made.append(tree)
        return tree

    yield make
    for tree in made:
        tree.close()
    for tree in made:
        assert not left_of(tree.mark), f"left: {[(p, state(p)) for p in left_of(tree.mark, 0)]}"


def kill_marked(mark: str) -> None:
    """Kill what carries the mark, each by a handle that was checked after it was opened."""
    for pid in marked(mark):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if pid in marked(mark):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)


def copy_package(directory: str) -> str:
    """A copy of the installed package: its keepers are told from all others by their executable."""
    shutil.copytree(os.path.dirname(holdfast.__file__), os.path.join(directory, "holdfast"))
    return os.path.join(directory, "holdfast", "process", "holdfast-keeper")


def keepers(executable: str) -> list[int]:
    """The living keepers that run this executable."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/exe") == executable:
                    found.append(int(name))
            except OSError:
                pass  # ended meanwhile, or another user's
    return found


def hold_keeper(process) -> int:
    """A pidfd of the process's keeper: its parent, checked after it was opened."""
    pid = int(stat_fields(process.pid)[1])
    fd = os.pidfd_open(pid)
    assert int(stat_fields(process.pid)[1]) == pid
    with open(f"/proc/{pid}/comm") as file:
        assert file.read().strip() == "holdfast-keeper"
    return fd
