"""A server that is given its sockets (sd_listen_fds), and a load on it that counts what fails."""

from __future__ import annotations

import json
import pathlib
import socket
import threading
from typing import Self

# Answers each request with its pid; on TERM it accepts nothing more, ends what it has begun, and goes.
SERVER = r'''
import os, select, signal, socket, sys, threading
assert os.environ["LISTEN_PID"] == str(os.getpid()), (os.environ["LISTEN_PID"], os.getpid())
count = int(os.environ["LISTEN_FDS"])
listeners = [socket.socket(fileno=3 + n) for n in range(count)]
for each in listeners:
    assert each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    each.setblocking(False)
r, w = os.pipe()
os.set_blocking(w, False)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.set_wakeup_fd(w)
def answer(connection):
    with connection:
        connection.settimeout(30)
        said = b""
        while not said.endswith(b"\r\n\r\n"):
            part = connection.recv(4096)
            if not part:
                return
            said += part
        body = b"%d %s" % (os.getpid(), os.environ["LISTEN_FDNAMES"].encode())
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
if "NOTIFY_SOCKET" in os.environ:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as tell:
        tell.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
busy = []
while True:
    readable = select.select([*listeners, r], [], [])[0]
    if r in readable:
        break
    for listener in readable:
        try:
            connection = listener.accept()[0]
        except BlockingIOError:
            continue
        connection.setblocking(True)
        busy = [each for each in busy if each.is_alive()]
        busy.append(threading.Thread(target=answer, args=(connection,)))
        busy[-1].start()
for each in busy:
    each.join()
'''


def server(directory: pathlib.Path) -> str:
    """The server's command for the file."""
    path = directory / "server.py"
    path.write_text(SERVER)
    return json.dumps(["python3", "-u", str(path)])


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(address: tuple[str, int] | str, limit: float = 30.0) -> tuple[int, str]:
    """One request: who has answered (its pid), and the names of its sockets.  OSError, AssertionError."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(limit)
        sock.connect(address)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        said = b""
        while part := sock.recv(4096):
            said += part
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200"), said
    pid, _, names = body.decode().partition(" ")
    return int(pid), names


class Load:
    """Clients that ask one after another without a pause, until the end of the `with`; `failed` has what went wrong."""

    def __init__(self, address: tuple[str, int] | str, clients: int = 3) -> None:
        self.address = address
        self.failed: list[str] = []
        self.answered: dict[int, int] = {}  # by whom -> how often
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                pid, _ = ask(self.address)
            except (OSError, AssertionError, ValueError) as error:
                self.failed.append(repr(error))
            else:
                self.answered[pid] = self.answered.get(pid, 0) + 1

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.set()
        for each in self._threads:
            each.join()
