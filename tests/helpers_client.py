"""A client of a service's terminal, spoken by the tables of docs/wire.md, and a keeper that takes it."""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from typing import Any, Self

from helpers_log import LogKeeper
from helpers_wire import PATIENCE, SPEC

TERMINAL, INPUT = SPEC.numbers["LOG_TERMINAL"], SPEC.numbers["LOG_INPUT"]
HAS_TERMINAL, HAS_INPUT = SPEC.numbers["HAS_TERMINAL"], SPEC.numbers["HAS_INPUT"]
NEW_SESSION = {"options": SPEC.numbers["NEW_SESSION"]}
DATA = ("RECENT", "OUTPUT")


class Client:
    """One end of a connection; the keeper has the other."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.shown = b""  # all OUTPUT so far
        self.recent = b""
        self.skipped = 0

    def next(self, timeout: float = PATIENCE) -> tuple[str, Any]:
        """The next record, body or values; ("", {}) at the end."""
        self.sock.settimeout(timeout)
        try:
            packet = self.sock.recv(65536)
        except ConnectionResetError:  # told once, ahead of what was said
            packet = self.sock.recv(65536)
        if not packet:
            return "", {}
        ((name, values),) = SPEC.decode(packet)
        if name in DATA:
            values = packet[8:]
        if name == "OUTPUT":
            self.shown += values
        elif name == "RECENT":
            self.recent = values
        elif name == "SKIPPED":
            self.skipped += values["bytes"]
        return name, values

    def until(self, wanted: bytes) -> None:
        """Read until this was shown; what was shown up to its end is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while wanted not in self.shown:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.shown!r}"
            name, values = self.next()
            assert name in DATA, (name, values, self.shown)
        self.shown = self.shown.partition(wanted)[2]

    def rest(self) -> list[tuple[str, Any]]:
        """Everything else, up to the end of the connection."""
        found = []
        while (record := self.next())[0]:
            found.append(record)
        return found

    def say(self, name: str, body: bytes | None = None, **values: object) -> None:
        self.sock.settimeout(PATIENCE)
        self.sock.send(SPEC.record(name, values, body=body))

    def type(self, text: bytes) -> None:
        # Without padding: in this record the length alone counts.
        self.sock.settimeout(PATIENCE)
        self.sock.send(SPEC.record("INPUT", body=text)[: 8 + len(text)])

    def leave(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TerminalKeeper(LogKeeper):
    """A keeper whose process has a terminal, or a pipe for stdin."""

    def sh(self, script: str, *, flags: int = TERMINAL, **log) -> dict:
        started = self.start(str(shutil.which("sh")), "-c", script, flags=flags, head=NEW_SESSION, **log)
        assert started["name"] == "SPAWNED", started
        return started

    def python(self, script: str, *, flags: int = TERMINAL, **log) -> dict:
        path = os.path.join(self.directory.parent, "program.py")
        with open(path, "w") as file:
            file.write(script)
        started = self.start(str(shutil.which("python3")), path, flags=flags, head=NEW_SESSION, **log)
        assert started["name"] == "SPAWNED", started
        return started

    def ask(self, *, narrow: bool = False) -> Client:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if narrow:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.send(SPEC.record("ATTACH"), [theirs.fileno()])
        theirs.close()
        return Client(ours)

    def attach(self, *, narrow: bool = False) -> Client:
        client = self.ask(narrow=narrow)
        name, client.attached = client.next()  # type: ignore[attr-defined]
        assert name == "ATTACHED", (name, client.attached)  # type: ignore[attr-defined]
        return client

    def ended(self) -> dict:
        """EXITED, when everything that was written before is in the log."""
        values: dict = self.wait_for("EXITED")[1]
        return values


def writable(sock: socket.socket) -> bool:
    return bool(select.select([], [sock], [], 0)[1])
