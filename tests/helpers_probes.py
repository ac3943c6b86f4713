"""Programs for tests of probes: a web server that lies as it is told, and what shows how it is."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket

from helpers_supervisor import NOTIFIER, Running, kill
from helpers_wait import all_ended, wait_for

# What a GET gets is in the file `mood`: "200 OK", "503 Busy", "silence", "close"; "dead": the port is closed.
SERVER = """
import os, pathlib, socket, sys, threading
port, mood = int(sys.argv[1]), pathlib.Path(sys.argv[2])
def serve(connection):
    with connection:
        what = mood.read_text().strip()
        if what == "close":
            return
        connection.recv(65536)
        if what == "silence":
            threading.Event().wait()
        body = b"x" * 100
        head = f"HTTP/1.1 {what}\\r\\nContent-Length: {len(body)}\\r\\nConnection: close\\r\\n\\r\\n"
        connection.sendall(head.encode() + body)
with socket.create_server(("127.0.0.1", port)) as server:
    print("listens", flush=True)
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


def free_port() -> int:
    """A port that nobody had a moment ago; should somebody take it, the service's next start does better."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def script(directory: pathlib.Path, name: str, text: str) -> pathlib.Path:
    path = directory / f"{name}.py"
    path.write_text(text)
    return path


class Web:
    """A service `web` that serves on a port, in the mood that is set."""

    def __init__(self, directory: pathlib.Path, mood: str = "200 OK") -> None:
        self.port = free_port()
        self.path = directory / "mood"
        self.set(mood)
        self.words = ["python3", str(script(directory, "web", SERVER)), str(self.port), str(self.path)]
        self.command = json.dumps(self.words)
        self.url = f"http://127.0.0.1:{self.port}/health"

    def set(self, mood: str) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.write_text(mood)
        temporary.rename(self.path)


def notifier(directory: pathlib.Path, name: str, text: str) -> str:
    """A program that has `tell(text)`; its command for the file."""
    return json.dumps(["python3", "-u", str(script(directory, name, NOTIFIER + text))])


def fifo(path: pathlib.Path) -> pathlib.Path:
    """What a program reads from it waits until `release` writes."""
    os.mkfifo(path)
    return path


def release(path: pathlib.Path) -> None:
    with open(path, "w") as file:
        file.write("go\n")


def again(up: Running) -> None:
    """Kill the supervisor and wait until its successor has taken over."""
    before = up.client().supervisor()["pid"]
    kill(before)

    def changed() -> bool:
        with contextlib.suppress(Exception):
            now = up.client().supervisor()
            return now["pid"] != before and now["state"] == "running"
        return False

    wait_for(changed, 30, up.output.read_text)


@contextlib.contextmanager
def frozen_anchor(up: Running):
    """A time without any supervisor: it is killed, and its anchor stopped, which would start the next."""
    anchor = up.client().supervisor()
    kill(anchor["anchor_pid"], signal.SIGSTOP)
    try:
        fd = os.pidfd_open(anchor["pid"])
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            assert all_ended([anchor["pid"]])
        finally:
            os.close(fd)
        yield
    finally:
        kill(anchor["anchor_pid"], signal.SIGCONT)
