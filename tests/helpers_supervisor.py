"""A real supervisor for a test: `holdfast up` on a file of its own, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid
from typing import Self

from helpers_wait import all_ended, wait_for

from holdfast.client import Client, ClientError

HOLDFAST = str(pathlib.Path(sys.executable).parent / "holdfast")
PLACES = '[supervisor]\nrun_dir = "run"\nlog_dir = "log"\nstate_dir = "state"\n'
LIMIT = 30.0  # for anything that is waited for: a hang guard, not a measure


class Running:
    """`holdfast up` in the foreground.  `with Running(tmp_path, services) as up: up.until("web", state="running")`."""

    def __init__(
        self, directory: pathlib.Path, services: str, *, places: str = PLACES, through: tuple[str, ...] = (),
        **environment: str,
    ) -> None:  # fmt: skip
        self.through = through  # a command that it is started by
        self.directory = directory
        self.file = directory / "holdfast.toml"
        self.file.write_text(places + services)
        self.mark = f"HOLDFAST_TEST={uuid.uuid4().hex}".replace("HOLDFAST_TEST", "TEST_MARK")
        name, _, value = self.mark.partition("=")
        self.environment = {**os.environ, name: value, **environment}
        self.output = directory / "up.out"
        self.process: subprocess.Popen[bytes] | None = None

    def up(self, *options: str) -> subprocess.Popen[bytes]:
        with open(self.output, "ab") as out:
            self.process = subprocess.Popen(
                [*self.through, HOLDFAST, "up", "-c", str(self.file), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment,
            )
        return self.process

    @property
    def run_dir(self) -> pathlib.Path:
        return self.directory / "run"

    def client(self) -> Client:
        return Client(str(self.run_dir))

    def wait_for_socket(self) -> None:
        """Until the supervisor answers."""

        def answers() -> bool:
            assert self.process is None or self.process.poll() is None, self.output.read_text()
            with contextlib.suppress(ClientError):
                return self.client().supervisor()["state"] != "adopting"
            return False

        wait_for(answers, LIMIT, self.output.read_text)

    def until(self, name: str, condition=None, **fields) -> dict:
        """The first status of a service that meets the condition and has these fields; woken by events."""

        def met(status):
            return all(status[key] == value for key, value in fields.items()) and (not condition or condition(status))

        deadline = time.monotonic() + LIMIT
        with self.client() as client:
            while True:
                last = client.supervisor()["last_event"]
                status = client.service(name)
                if met(status):
                    return status
                assert time.monotonic() < deadline, f"{status}\n{self.output.read_text()}"
                with client.events(after=last) as events:
                    guard = threading.Timer(1.0, events.close)  # what is waited for may make no event
                    guard.start()
                    next(iter(events), None)
                    guard.cancel()
                    guard.join()

    def holdfast(self, *args: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A command of the command line against this supervisor."""
        done = subprocess.run(
            [HOLDFAST, *args], env={**self.environment, "HOLDFAST_RUN_DIR": str(self.run_dir)}, text=True,
            capture_output=True, timeout=LIMIT + 30,
        )  # fmt: skip
        if check is not None:
            assert done.returncode == check, f"{args}: {done}\n{self.output.read_text()}"
        return done

    def marked(self) -> dict[int, list[str]]:
        """Every process that inherited the mark: pid and command line."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and int(entry) != os.getpid():
                try:
                    with open(f"/proc/{entry}/environ", "rb") as file:
                        environ = file.read()
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        command = file.read().decode("utf-8", "replace").split("\0")
                except OSError:
                    continue
                if self.mark.encode() in environ.split(b"\0"):
                    found[int(entry)] = command
        return found

    def of_service(self, name: str) -> list[int]:
        """Living processes that carry the service's marker and ours."""
        wanted = {self.mark.encode(), b"HOLDFAST_SERVICE=" + name.encode()}
        found = []
        for pid in self.marked():
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    environ = set(file.read().split(b"\0"))
            except OSError:
                continue
            if wanted <= environ:
                found.append(pid)
        return sorted(found)

    def stop(self, signo: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signo)
        status = self.process.wait(LIMIT + 30)
        self.process = None
        return status

    def __enter__(self) -> Self:
        self.up()
        self.wait_for_socket()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process is not None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        deadline = time.monotonic() + 5
        while (left := self.marked()) and all_ended(left, deadline - time.monotonic()):
            continue  # those have ended; what they started meanwhile is looked for again
        for pid in left:  # ours by the mark: nothing of a failed test shall run on
            with contextlib.suppress(OSError):
                fd = os.pidfd_open(pid)
                if pid in self.marked():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
        assert not left, f"left behind: {left}\n{self.output.read_text()}"


def log_of(running: Running, name: str) -> str:
    path = running.directory / "log" / name / "current"
    return path.read_text() if path.exists() else ""


def kill(pid: int, signo: int = signal.SIGKILL) -> None:
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signo)
    os.close(fd)


def keeper_of(pid: int) -> int:
    """The parent of a service's main process."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


NOTIFIER = """
import os, signal, socket, sys, time
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        sock.send(text.encode())
"""


def python(directory, name: str, text: str) -> str:
    """A service's program; its command for the file."""
    path = directory / f"{name}.py"
    path.write_text(NOTIFIER + text)
    return json.dumps(["python3", "-u", str(path)])
