"""Who sits at a keeper's socket in its stead, and a control socket asked before anybody listens."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import socket
import subprocess
import sys
from typing import Self

from helpers_supervisor import LIMIT, Running, kill
from helpers_wait import wait_for

PROGRAM = """
import socket, sys
comm, path, manner = sys.argv[1:]
if comm:
    open("/proc/self/comm", "w").write(comm)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(path)
sock.listen(8)
print("listens", flush=True)
taken = []
while True:
    peer, _ = sock.accept()
    if manner == "garbage":
        peer.send(b"220 mail.example ESMTP")
    if manner != "hangs up":
        taken.append(peer)
    else:
        peer.close()
"""


class Impostor:
    """Listens at `path`, as a process called `comm` ("": as it happens); is `silent`, `hangs up`, or says `garbage`."""

    def __init__(self, path: pathlib.Path, manner: str = "silent", comm: str = "") -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, comm, str(path), manner], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout and self.process.stdout.readline() == "listens\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


def silent_keeper(up: Running, name: str = "ghost") -> Impostor:
    """A keeper that does not answer and is not stopped, of a service that is in no record and no configuration."""
    return Impostor(up.run_dir / "services" / name / "1.sock", comm="holdfast-keeper")


def kill_anchor_and_supervisor(up: Running) -> None:
    assert up.process
    supervisor = os.pidfd_open(up.client().supervisor()["pid"])
    kill(up.process.pid)
    up.process.wait()
    assert select.select([supervisor], [], [], LIMIT)[0]
    os.close(supervisor)


def ask_early(up: Running, *requests: str) -> list[tuple[str, str]]:
    """Send requests before the next supervisor listens (`up.up()` was just called); heads and bodies of the answers."""
    path = str(up.run_dir / "control")
    sockets: list[socket.socket] = []

    def connected() -> bool:
        sock = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            sock.connect(path)
            sockets.append(sock)
            return True
        sock.close()
        return False

    for request in requests:
        wait_for(connected, LIMIT)
        method, target, *body = request.split(" ", 2)
        text = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        sockets[-1].sendall(f"{text}Content-Length: {len(''.join(body))}\r\n\r\n{''.join(body)}".encode())
    answers = []
    for sock in sockets:
        sock.settimeout(LIMIT)
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
        sock.close()
        head, _, rest = data.decode().partition("\r\n\r\n")
        answers.append((head.lower(), rest))
    return answers
