"""Held trees for tests: a place for their files, owners in processes of their own, a look from outside."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from helpers_trees import kill_marked, left_of
from helpers_wait import wait_for

from holdfast.process.held import HeldTree, KeeperGone
from holdfast.process.options import DEVNULL, make_plan

PATIENCE = 30.0


class Place:
    """A directory with the socket, the report file and pipes by name; everything started here is marked."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.mark = f"held-{os.getpid()}-{os.urandom(6).hex()}"
        self.env = {"PATH": os.environ["PATH"], "HF_MARK": self.mark}
        self.address = os.path.join(directory, "1.sock")
        self.report = os.path.join(directory, "1.report")
        self.trees: list[HeldTree] = []
        self.owners: list[subprocess.Popen[str]] = []
        self.fds: list[int] = []

    def plan(self, script: str, *args: str, **options):
        options = {"env": self.env, "grace": 5, "on_owner_loss": "keep"} | options
        return make_plan(
            ["sh", "-c", script, "sh", *args],
            new_session=True, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, **options,
        )  # fmt: skip

    def start(self, script: str, *args: str, stop_rest: bool = True, **options) -> HeldTree:
        plan = self.plan(script, *args, **options)
        tree = HeldTree.start(plan, address=self.address, report=self.report, stop_rest=stop_rest)
        self.trees.append(tree)
        return tree

    def attach(self) -> HeldTree:
        tree = HeldTree.attach(self.address)
        self.trees.append(tree)
        return tree

    def gate(self, name: str) -> str:
        """A pipe by name: who reads it waits until it is `opened`."""
        path = os.path.join(self.directory, name)
        os.mkfifo(path)
        self.fds.append(os.open(path, os.O_RDWR))  # so that no open waits
        return path

    def open(self, gate: str, text: str = "0") -> None:
        fd = os.open(gate, os.O_WRONLY)
        os.write(fd, text.encode() + b"\n")
        os.close(fd)

    def owner(self, script: str, *args: str) -> subprocess.Popen[str]:
        """A tree started by another process, which says its pid and keeper's pid and then does as it is told.

        Its source has `tree` (Spawned is known) and `place`; it waits on stdin afterwards.
        """
        source = (
            "import os, sys, select\nfrom helpers_held import *\nplace = Place(sys.argv[1])\n"
            "place.mark = sys.argv[2]; place.env['HF_MARK'] = place.mark\n"
            "tree = place.start(sys.argv[3], *sys.argv[5:], stop_rest=False)\n"
            "until(tree, 'Spawned')\nexec(sys.argv[4])\n"
            "print(tree.pid, tree.keeper_pid, flush=True)\nsys.stdin.read()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", source, self.directory, self.mark, script, args[0] if args else "", *args[1:]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
        )  # fmt: skip
        self.owners.append(process)
        return process

    def pids_of(self, owner: subprocess.Popen[str]) -> tuple[int, int]:
        assert owner.stdout
        pid, keeper = owner.stdout.readline().split()
        return int(pid), int(keeper)

    def held_fd(self, pid: int) -> int:
        """A pidfd of a process that is known to live or to be unreaped; closed at the end."""
        self.fds.append(os.pidfd_open(pid))
        return self.fds[-1]

    def close(self) -> None:
        for tree in self.trees:
            tree.close()
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
    with tempfile.TemporaryDirectory(prefix="hf") as directory:
        held = Place(directory)
        try:
            yield held
            left = left_of(held.mark)
        finally:
            kill_marked(held.mark)
            held.close()
        assert not left


def ended(fd: int, limit: float = PATIENCE) -> bool:
    return bool(select.select([fd], [], [], limit)[0])


def until(tree: HeldTree, *names: str) -> list:
    """Its events until one of each of these kinds has come; the end of the keeper is unexpected unless named."""
    found: list = []
    deadline = time.monotonic() + PATIENCE
    while not set(names) <= {type(event).__name__ for event in found}:
        assert not any(isinstance(event, KeeperGone) for event in found), found
        assert select.select([tree], [], [], max(0.0, deadline - time.monotonic()))[0], f"only {found}"
        found += tree.events()
    return found


def until_adopted(tree: HeldTree) -> list:
    """Until it has a member that the keeper adopted: adoption itself makes no event, a question finds it."""
    found: list = []
    deadline = time.monotonic() + PATIENCE
    while not tree.members:
        assert time.monotonic() < deadline
        tree.query()
        found += until(tree, "Members")
    return found


def kinds(events: list) -> list[str]:
    return [type(event).__name__ for event in events]


def first(events: list, name: str):
    return next(event for event in events if type(event).__name__ == name)


def freeze(pidfd: int, pid: int) -> None:
    """SIGSTOP, and not before it has stopped."""
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)

    def stopped() -> bool:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    wait_for(stopped, PATIENCE, "the keeper to stop")
