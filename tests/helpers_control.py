"""Shared by the tests of logs, control and client: a log writer, and a served supervisor that is all in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from holdfast.control.server import ControlServer
from holdfast.daemon.logs import LogReader
from holdfast.daemon.names import matching
from holdfast.daemon.status import (
    Ancestry,
    EventRecord,
    LastExit,
    Left,
    Outcome,
    ServiceStatus,
    ServiceTree,
    SupervisorStatus,
    TreeStatus,
    UpdateChange,
    UpdateStatus,
    UpgradeStatus,
)


class LogWriter:
    """Writes a stream's files as the keeper does: appends to the live one, rotates by rename, expires the oldest."""

    def __init__(self, directory, stream="stdout"):
        self.directory = str(directory)
        self.live, self.prefix = ("current", "") if stream == "stdout" else ("stderr", "stderr.")
        os.makedirs(self.directory, exist_ok=True)
        self.number = 1 + max(self.numbers(), default=0)
        self.fd = self._open()

    def path(self, name):
        return os.path.join(self.directory, name)

    def numbers(self):
        size = len(self.prefix)
        return sorted(
            int(name[size:])
            for name in os.listdir(self.directory)
            if name.startswith(self.prefix) and name[size:].isdecimal()
        )

    def _open(self):
        return os.open(self.path(self.live), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, data):
        os.write(self.fd, data)

    def rotate(self, keep=1000):
        os.close(self.fd)
        os.rename(self.path(self.live), self.path(f"{self.prefix}{self.number:08d}"))
        self.number += 1
        self.fd = self._open()
        for number in self.numbers()[:-keep]:
            os.unlink(self.path(f"{self.prefix}{number:08d}"))

    def age(self, seconds=10.0):
        """As if nothing had been written for a time."""
        status = os.fstat(self.fd)
        os.utime(self.fd, (status.st_atime, status.st_mtime - seconds))

    def close(self):
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class MemoryEvents:
    """As daemon/events.py, without the ring."""

    def __init__(self, first=0):
        self.records = []
        self.last = first
        self.grown = asyncio.Event()

    def add(self, event, text, service="", incarnation=None):
        self.last += 1
        self.records.append(EventRecord(self.last, time.time(), service, incarnation, event, text))
        self.grown.set()

    def after(self, seq):
        return [record for record in self.records if record.seq > seq]

    async def wait(self, seq):
        while self.last <= seq:
            self.grown.clear()
            await self.grown.wait()


class MemorySupervisor:
    """What control/seam.py wants of a supervisor: services are names with a state, commands change it at once.

    `slow` is a service whose start and stop never get done.
    """

    def __init__(self, log_dir, names=("db", "web", "web-admin", "slow")):
        self.log_dir = str(log_dir)
        self.states = dict.fromkeys(names, "running")
        self.events = MemoryEvents()
        self.asked = []
        self.waiting = 0
        self.failing = None

    def overview(self):
        if self.failing:
            raise self.failing
        values = {
            "pid": os.getpid(), "state": "running", "anchor_pid": None, "restarts": 0, "uptime_seconds": 1.5,
            "version": "0.1.0", "config": "holdfast.toml", "run_dir": "/run/x", "log_dir": self.log_dir,
            "services": len(self.states), "last_event": self.events.last, "found": 0, "adopted": 0, "frozen": [],
        }  # fmt: skip
        return SupervisorStatus(**{key: values[key] for key in SupervisorStatus.__struct_fields__})

    def status(self, name):
        on = self.states[name] == "running"
        return ServiceStatus(
            name=name, state=self.states[name], ready=on, pid=4711 if on else None, incarnation=41,
            uptime_seconds=12.5 if on else None, restarts=1, last_exit=LastExit(None, "SIGKILL", "killed by SIGKILL"),
            tree=TreeStatus(2, 0.5, 4096) if on else None, held_by="keeper 4710, as subreaper" if on else None,
            reason="", waiting_for=[], status_text="", on_owner_loss="keep", log=None,
        )  # fmt: skip

    def services(self, patterns):
        return [self.status(name) for name in matching(list(self.states), patterns, {})]

    def service(self, name):
        matching(list(self.states), [name], {})
        return self.status(name)

    def log_reader(self, name):
        matching(list(self.states), [name], {})
        return LogReader(os.path.join(self.log_dir, name))

    def tree(self, name):
        matching(list(self.states), [name], {})
        return Ancestry(name, "keeper", "its lineage is off", 0, 0, [ServiceTree(41, 4710, [])])

    @contextlib.contextmanager
    def lineage(self, name):
        matching(list(self.states), [name], {})
        yield MemoryEvents(), "nobody"

    async def history(self, patterns, limit):
        return []

    async def command(self, verb, names, *, wait, timeout, peer):
        found = matching(list(self.states), [name.partition("@")[0] for name in names], {})
        self.asked.append((verb, found, peer))
        outcomes = []
        for name in found:
            if name == "slow" and wait:
                self.waiting += 1
                try:
                    async with asyncio.timeout(timeout):
                        await asyncio.Event().wait()
                except TimeoutError:
                    outcomes.append(Outcome(name, "timed_out", "still starting", self.status(name)))
                    continue
                finally:
                    self.waiting -= 1
            self.states[name] = "stopped" if verb == "stop" else "running"
            self.events.add(f"{verb}ed", f"by {peer}", name, 41)
            outcomes.append(Outcome(name, "done", "", self.status(name)))
        return outcomes

    def send_signal(self, names, signal, scope, *, peer):
        if signal == "NONE":
            raise ValueError("no signal is called 'NONE'")
        found = matching(list(self.states), names, {})
        self.asked.append(("signal", found, peer))
        text = f"SIG{signal} was sent" + ("" if scope == "main" else f" to its {scope}")
        return [Outcome(name, "done", text, self.status(name)) for name in found]

    async def reload(self, names, *, peer):
        found = matching(list(self.states), names)
        self.asked.append(("reload", found, peer))
        return [Outcome(name, "done", "reload_command exited with code 0", self.status(name)) for name in found]

    def shut_down(self, *, peer):
        self.asked.append(("shutdown", [], peer))

    def leave(self, *, peer):
        self.asked.append(("leave", [], peer))
        return Left(len(self.states), {"db": "stop"})

    async def update(self, *, dry_run, rollback, wait, timeout, peer):
        self.asked.append(("update", [dry_run, rollback, wait, timeout], peer))
        if self.failing:
            raise self.failing
        change = UpdateChange("web", "changed", "restarts", ['nice 0 -> 5'], "done", "")
        return UpdateStatus("/etc/holdfast.toml", dry_run, len(self.states) - 1, [change])

    async def upgrade(self, *, peer):
        self.asked.append(("upgrade", [], peer))
        if self.failing:
            raise self.failing
        return UpgradeStatus("0.1.0", "0.2.0", len(self.states), self.events.last)


class Served:
    """A MemorySupervisor behind a ControlServer whose loop runs in a thread: clients are real clients."""

    def __init__(self, run_dir, **options):
        self.run_dir = str(run_dir)
        self.path = os.path.join(self.run_dir, "control")
        self.options = options
        self.errors = []
        self.upgrading = False

    def __enter__(self):
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self.thread.start()
        assert ready.wait(30)
        return self

    async def _serve(self, ready):
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.supervisor = MemorySupervisor(os.path.join(self.run_dir, "logs"), **self.options)
        self.ending = asyncio.Event()
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(self.path)
        os.chmod(self.path, 0o600)
        sock.listen(1)
        self.server = ControlServer(self.supervisor, sock, self.tcp())
        await self.server.start()
        ready.set()
        await self.ending.wait()
        await self.server.stop(self.upgrading)

    def tcp(self):
        """Where a subclass listens besides."""

    def do(self, function, *args):
        """Call in the loop's thread; its result."""

        async def call():
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def stop(self):
        """Begin the orderly stop, and wait for it."""
        with contextlib.suppress(RuntimeError):  # stopped already
            self.loop.call_soon_threadsafe(self.ending.set)
        self.thread.join(30)
        assert not self.thread.is_alive()

    def __exit__(self, *exc):
        self.stop()
        if exc[0] is None:
            assert not self.errors, self.errors

    def connect(self):
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(self.path)  # blocking: it waits where the queue is full
            made.settimeout(30)
        except OSError:
            made.close()
            raise
        return made

    def ask(self, data):
        """Send bytes, give up the sending half, everything that is answered."""
        with self.connect() as made:
            with contextlib.suppress(BrokenPipeError):
                made.sendall(data)
                made.shutdown(socket.SHUT_WR)
            return everything(made)

    def ask_stream(self, data):
        """Everything that is answered until the server ends it."""
        with self.connect() as made:
            made.sendall(data)
            return everything(made)


def everything(made):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := made.recv(65536):
            data += piece
    return data


def as_nobody(args, **options):
    """Run a Python that another user can run too, as that user."""
    who = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/", "check": False}
    for python in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        try:
            if python and subprocess.run([python, "-c", ""], **who).returncode == 0:
                return subprocess.run([python, *args], capture_output=True, text=True, timeout=60, **who, **options)
        except PermissionError:
            continue
    return pytest.skip("no Python that another user can run")
