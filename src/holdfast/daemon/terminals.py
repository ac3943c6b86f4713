"""The socket `attach`: who wants to sit at a service's terminal, or write to its stdin, says here which one it is.

In: connections, each with one packet that names a service.  Out: the connection, in the hands of that service's keeper;
or a refusal, one line of JSON.  From then on we are not between them: a client does not notice when we die.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from .names import UnknownService

if TYPE_CHECKING:
    from .supervisor import Supervisor

REQUEST_MAX = 4096  # bytes
REQUEST_LIMIT = 5.0  # seconds from connecting to the name
CLIENTS_MAX = 16  # that have not said yet what they want
ACCEPT_PAUSE = 1.0  # seconds until the next try, where no descriptor is left


class Request(msgspec.Struct):
    """What a client says first."""

    name: str


class Refused(Exception):
    """As an error of the API: a word for programs, and a text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Terminals:
    """Clients on their way to the keepers of one supervisor.  For its loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._clients: dict[socket.socket, asyncio.TimerHandle] = {}

    def listen(self, sock: socket.socket) -> None:
        """Take the socket over."""
        sock.setblocking(False)
        self._sock = sock
        self._accept_again()

    def close(self) -> None:
        for client in list(self._clients):
            self._let_go(client)
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _accept_again(self) -> None:
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._on_client)

    def _on_client(self) -> None:
        assert self._sock is not None
        try:
            client, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:  # the table is full, and we would be told of the same client at once
            self._loop.remove_reader(self._sock)
            self._loop.call_later(ACCEPT_PAUSE, self._accept_again)
            return
        client.setblocking(False)
        self._clients[client] = self._loop.call_later(REQUEST_LIMIT, self._let_go, client)
        if len(self._clients) > CLIENTS_MAX:
            self._refuse(client, Refused("busy", f"{CLIENTS_MAX} clients have not said yet what they want"))
        else:
            self._loop.add_reader(client, self._on_request, client)

    def _on_request(self, client: socket.socket) -> None:
        try:
            self._pass_on(client)
        except BlockingIOError:
            return
        except Refused as refusal:
            self._refuse(client, refusal)
        except OSError:
            pass  # gone
        self._let_go(client)

    def _pass_on(self, client: socket.socket) -> None:
        data = client.recv(REQUEST_MAX)
        pid, uid, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            raise Refused("not_permitted", f"user {uid} may not command this supervisor")
        try:
            name = msgspec.json.decode(data, type=Request).name
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Refused("bad_request", f"this is no request: {error}") from None
        order = self._supervisor.engine.order
        if name not in order:
            raise Refused("unknown_service", str(UnknownService(name, order, self._supervisor.config.groups)))
        copy = self._supervisor.copies.get(name)
        if copy is None or copy.closed or copy.tree.status is not None:
            raise Refused("refused", f"{name} does not run: nobody is at its terminal")
        try:
            copy.tree.pass_client(client.fileno())
        except BlockingIOError:
            raise Refused("refused", f"the keeper of {name} does not answer (stopped with SIGSTOP?)") from None
        self._supervisor.events.add("attached", f"a client (pid {pid}, uid {uid})", name, copy.incarnation)

    def _refuse(self, client: socket.socket, refusal: Refused) -> None:
        error = {"code": refusal.code, "message": str(refusal), "hint": ""}
        try:
            client.send(msgspec.json.encode({"error": error}) + b"\n")
        except OSError:
            pass  # gone; and into an empty socket one line always goes
        self._let_go(client)

    def _let_go(self, client: socket.socket) -> None:
        timer = self._clients.pop(client, None)
        if timer is not None:
            timer.cancel()
            self._loop.remove_reader(client)
            client.close()
