"""Serves the API on a unix socket that is bound already: who may connect, how many, how slowly.

uvicorn's protocol does the HTTP, one object a connection.  Its server is not used: it changes the socket's mode, takes
over signals, may exit, and wakes up ten times a second.  Nothing here runs while no client does anything.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import resource
import select
import socket
import struct
import sys
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from holdfast.config.tcp import join
from holdfast.daemon.watch import Watcher

from .app import application
from .errors import Refusal
from .handlers import Api
from .seam import Asker, Peer, Remote, Supervised
from .streams import Ending
from .tcp import Tcp

CONNECTIONS_MAX = 256
TCP_CONNECTIONS_MAX = 64  # of their own: who has no token yet takes no place from who needs none
SPARE_DESCRIPTORS = 24  # that clients leave to services
BACKLOG = 1024  # that may wait to be accepted; more wait in connect
HEAD_MAX = 16384  # bytes of a request's line and headers
REQUEST_LIMIT = 10  # seconds for a request, from its first byte (of a new connection: from then) to its last
IDLE_LIMIT = 30  # seconds between two requests
UNREAD_LIMIT = 20  # seconds that an answer may stay unread
STOP_LIMIT = 2  # seconds that answers get when the server stops

log = logging.getLogger("holdfast.control")


class ControlServer:
    """The control socket of a supervisor, and one over TCP if there is one.  For the loop's thread.  Takes the sockets
    over and closes them."""

    def __init__(self, supervisor: Supervised, sock: socket.socket, tcp: Tcp | None = None) -> None:
        _quiet.setLevel(logging.ERROR)  # a client's mistakes are its own
        self._socks = {sock: None} if tcp is None else {sock: None, tcp.sock: tcp}
        self._watcher = Watcher()
        self._stop = Ending()
        self._state = ServerState()
        self._state.default_headers = []
        self._empty = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._config = Config(
            application(Api(supervisor, self._watcher, self._stop)),
            loop="none",
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_LIMIT,
            h11_max_incomplete_event_size=HEAD_MAX,
        )

    async def start(self) -> None:
        """Accept clients from now on."""
        self._config.load()
        loop = asyncio.get_running_loop()
        # A name of its own, not create_unix_server: that one looks at the path, and removes it in the end.
        # One at a time: where no descriptor is left, asyncio goes on to accept that often, and as often a second later.
        for sock, tcp in self._socks.items():
            server = await loop.create_server(functools.partial(self._connection, tcp), sock=sock, backlog=1)
            self._servers.append(server)
            sock.listen(BACKLOG)

    async def stop(self, upgrading: bool = False) -> None:
        """Accept no more; streams get their last event, what waits an answer.  Returns within STOP_LIMIT seconds."""
        if not self._servers:
            return
        for server in self._servers:
            server.close()
        self._stop.upgrading = upgrading
        self._stop.set()
        for connection in list(self._connections):
            connection.leave()
        try:
            async with asyncio.timeout(STOP_LIMIT):
                while self._state.tasks or self._state.connections:
                    self._empty.clear()
                    if self._state.tasks:
                        await asyncio.wait(self._state.tasks)
                    else:
                        await self._empty.wait()
        except TimeoutError:
            pass
        for connection in list(self._connections):
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)
        await asyncio.sleep(0)  # the connections hear of their end
        self._watcher.close()
        self._servers = []

    @property
    def _connections(self) -> set[_Connection]:
        return self._state.connections  # type: ignore[return-value]

    def _connection(self, tcp: Tcp | None) -> _Connection:
        connection = _Connection(self._config, self._state, {})
        connection.tcp = tcp
        connection.on_lost = self._empty.set
        return connection


class _Connection(H11Protocol):
    """uvicorn's connection, with our manners."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.logger = _quiet
        self.access_log = False
        self.app = self._with_peer
        self.on_lost: Any = None
        self.peer: Asker = Peer(0, 0)
        self.tcp: Tcp | None = None
        self._api = config.loaded_app
        self._patience: float = UNREAD_LIMIT
        self._streaming = False
        self._half_closed = False
        self._request_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    async def _with_peer(self, scope: Any, receive: Any, send: Any) -> None:
        # h11 limits only what comes in more than one piece.
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in self.headers)
        if size > HEAD_MAX:
            self._refuse(Refusal("too_large", f"a request's line and headers may have {HEAD_MAX} bytes"))
            self.cycle.disconnected = True  # so that uvicorn does not miss an answer
            return
        try:
            self._check_framing()
            if self.tcp is not None:
                self.tcp.check(self.headers)
        except Refusal as refusal:
            self._refuse(refusal)
            self.cycle.disconnected = True
            return
        scope["holdfast.peer"] = self.peer
        scope["holdfast.connection"] = self
        await self._api(scope, receive, send)

    def _check_framing(self) -> None:
        # Two lengths: a proxy that goes by the other one takes for a body what we take for the next request.
        names = {name for name, _ in self.headers}
        if b"content-length" in names and b"transfer-encoding" in names:
            raise Refusal("bad_request", "a request has Content-Length or Transfer-Encoding, not both")

    # ---- the beginning and the end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Every byte that the kernel does not take counts as unread, or a little would be left for ever.
        transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        limit = CONNECTIONS_MAX if self.tcp is None else TCP_CONNECTIONS_MAX
        if self.tcp is not None:
            self.peer = Remote(join(*transport.get_extra_info("peername")[:2]))
        else:
            self.peer = Peer(*struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[:2])
        if isinstance(self.peer, Peer) and self.peer.uid not in (0, os.geteuid()):
            self._refuse(Refusal("not_permitted", f"user {self.peer.uid} may not command this supervisor"))
        elif sum(each.tcp is self.tcp for each in self.connections) > limit:  # type: ignore[union-attr]
            self._refuse(Refusal("busy", f"{limit} clients are connected already", "try again"))
        elif sock.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS:
            self._refuse(Refusal("busy", "the supervisor has no descriptor left for clients", "try again"))
        else:
            self._request_timer = self.loop.call_later(REQUEST_LIMIT, self._request_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for timer in (self._request_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self.on_lost()

    def leave(self) -> None:
        """The server ends: now where nothing is asked, else after the answer."""
        try:
            self.shutdown()
        except Exception:  # h11 has nothing to close: an error was before
            self.transport.abort()

    # ---- requests

    def data_received(self, data: bytes) -> None:
        if self._streaming:
            return  # no request is taken behind a stream; but reading goes on, or nobody would see the client go
        try:
            super().data_received(data)
        except Exception:
            log.exception("a connection failed")
            self.transport.abort()
            return
        if not self._incomplete:
            if self._request_timer is not None:
                self._request_timer.cancel()
                self._request_timer = None
        elif self._request_timer is None:
            self._request_timer = self.loop.call_later(REQUEST_LIMIT, self._request_is_late)

    @property
    def _incomplete(self) -> bool:
        """Of the request that is due, something is missing."""
        return str(self.conn.their_state) in ("IDLE", "SEND_BODY")  # h11's words

    def _request_is_late(self) -> None:
        self._request_timer = None
        self._refuse(Refusal("too_slow", f"the request was not complete after {REQUEST_LIMIT} seconds"))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Half-closed by the client: it gets the answer to a whole request.  Closed: nobody waits for it."""
        if self.cycle is None or self.cycle.response_complete or self._incomplete or self._streaming:
            return False
        if self.tcp is not None:
            return False  # there nobody can tell the one from the other
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), 0)
        if any(mask & select.POLLHUP for _, mask in poll.poll(0)):
            return False
        self.cycle.keep_alive = False
        self._half_closed = True
        return True

    # ---- answers

    def begin_stream(self, patience: float) -> None:
        """The answer has no end of its own.  Its client may leave it unread for `patience` seconds, and
        UNREAD_LIMIT for the last word; it goes by closing either half, for a stream has no other end.
        """
        self._streaming = True
        self._patience = patience + UNREAD_LIMIT
        if self._half_closed:
            self.transport.close()
        else:
            self.flow.resume_reading()

    def unblock(self) -> None:
        """Let what is sent next go behind what the client has not read."""
        super().resume_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self._patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where h11 has raised RemoteProtocolError."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self._refuse(Refusal("too_large", f"a request's line and headers may have {HEAD_MAX} bytes"))
        else:
            self._refuse(Refusal("bad_request", f"this is not HTTP: {error}"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, unless an answer is under way, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = refusal.body
            head = (
                f"HTTP/1.1 {refusal.status} {refusal.code}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n"
            )
            head += "".join(f"{name}: {value}\r\n" for name, value in refusal.headers.items()) + "\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()


_quiet = logging.getLogger("holdfast.control.http")
