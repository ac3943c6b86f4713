"""One request to a supervisor and its answer: HTTP/1.1 over the unix socket, as our server speaks it.

A small reader of its own takes the place of an HTTP library: `holdfast status` has to be there at once.  It
understands what the supervisor sends, not what any server might.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from time import monotonic

from .process.socket_path import at_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    Seconds = float
    JSON = dict[str, Any]

SILENCE: Seconds = 3.0  # without an answer, until it is looked whether those who should give it are stopped
HEAD_BYTES_MAX = 65536


class ClientError(Exception):
    """The supervisor refused, or gave no answer.

    `code` is one of the words of docs/api.md ("unknown_service", "bad_request", ...), or of the client itself:
    "no_answer" (the time limit was reached, or the supervisor is stopped: then the hint says how to let it go
    on, and what was asked for may still be carried out), "lost" (the connection ended before the answer did:
    whether a command was carried out is unknown), "not_permitted" (the socket is another user's), "bad_answer".
    `message` says what is wrong, `hint` what to do about it ("" where there is nothing to say).
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class NoSupervisor(ClientError):
    """Nobody listens in the run directory; `code` is "no_supervisor"."""


class Connection:
    """A connection for one request.  The answer has a length, or chunks, or goes up to the end."""

    def __init__(self, path: str, limit: Seconds | None) -> None:
        self.deadline = None if limit is None else monotonic() + limit
        self.path = path
        self.streaming = False
        self.buffer = bytearray()
        self.chunked = False
        self.left = 0  # of the body, or of the chunk
        self.socket = _connect(path, limit)

    def request(self, method: str, target: str, body: bytes) -> None:
        head = f"{method} {target} HTTP/1.1\r\nHost: holdfast\r\nConnection: close\r\n"
        if method == "POST":
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._arm()
        try:
            self.socket.sendall(head.encode() + b"\r\n" + body)
        except TimeoutError:
            raise _no_answer(self.path) from None
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read; the answer says why

    def answer(self) -> Any:
        status = self._head()
        body = bytearray()
        while chunk := self._body():
            body += chunk
        return _checked(status, bytes(body))

    def begin_stream(self) -> None:
        status = self._head()
        if status != 200:
            body = bytearray()
            while chunk := self._body():
                body += chunk
            _checked(status, bytes(body))
        self.deadline = None
        self.streaming = True
        self.text = bytearray()

    def next_event(self) -> tuple[str, JSON]:
        """The next server-sent event: its type ("message" where it has none) and its data."""
        while True:
            end = self.text.find(b"\n\n")
            if end >= 0:
                break
            chunk = self._body()
            if not chunk:
                raise _lost()
            self.text += chunk
        fields = dict(line.partition(b": ")[::2] for line in bytes(self.text[:end]).split(b"\n"))
        del self.text[: end + 2]
        return fields.get(b"event", b"message").decode(), _decoded(fields.get(b"data", b""))

    def close(self) -> None:
        # shutdown first: it wakes a thread that waits in recv, which close does not.
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _arm(self) -> None:
        left = None if self.deadline is None else self.deadline - monotonic()
        if left is not None and left <= 0:
            raise _no_answer(self.path)
        self.socket.settimeout(left if self.streaming else SILENCE if left is None else min(left, SILENCE))

    def _fill(self) -> bool:
        """Read more; False at the end."""
        while True:
            self._arm()
            try:
                data = self.socket.recv(65536)
                break
            except TimeoutError:
                # A command may take as long as it likes; but who is stopped will not answer before somebody knows.
                if stopped := _stopped(self.path):
                    raise stopped from None
            except ConnectionResetError:
                return False
        self.buffer += data
        return bool(data)

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            if len(self.buffer) > HEAD_BYTES_MAX:
                raise _bad_answer()
            if not self._fill():
                raise _lost()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    def _head(self) -> int:
        version, _, rest = self._line().partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise _bad_answer()
        length = -1
        while line := self._line():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = _number(value.strip(), 10)
            elif name.lower() == b"transfer-encoding":
                self.chunked = value.strip().lower() == b"chunked"
        self.left = 0 if self.chunked else length
        return int(rest[:3])

    def _body(self) -> bytes:
        """The next piece of the body, b"" after the last."""
        if self.chunked and self.left == 0:
            size = _number(self._line().partition(b";")[0], 16)
            if size == 0:
                self.chunked = False  # and `left` is 0: the end
                return b""
            self.left = size
        if self.left == 0:
            return b""
        if not self.buffer and not self._fill():
            if self.left < 0:  # no length was given: up to the end
                return b""
            raise _lost()
        piece = bytes(self.buffer if self.left < 0 else self.buffer[: self.left])
        del self.buffer[: len(piece)]
        if self.left > 0:
            self.left -= len(piece)
            if self.chunked and self.left == 0 and self._line():
                raise _bad_answer()
        return piece


def _connect(path: str, limit: Seconds | None) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if limit is not None:
            # Not settimeout: a connect that must not block fails at once where the queue is full.  In a timeval
            # zero would mean no limit.
            micros = max(1, int(min(limit, 1e9) * 1e6))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(micros, 10**6)))
        at_path(made.connect, path)
        return made
    except OSError as error:
        made.close()
        raise _connect_error(path, error) from None
    except BaseException:
        made.close()
        raise


def _connect_error(path: str, error: OSError) -> ClientError:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        return NoSupervisor("no_supervisor", f"no supervisor listens at {path}", "start one with: holdfast up")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ClientError("not_permitted", f"{path}: {error.strerror}", "it belongs to another user")
    if error.errno == errno.EAGAIN:
        return _no_answer(path)
    return ClientError("no_connection", f"{path}: {error.strerror}")


def _no_answer(path: str) -> ClientError:
    hint = "it may be busy, or fail at each start: see its log"
    return _stopped(path) or ClientError("no_answer", "the supervisor did not answer in time", hint)


def _stopped(path: str) -> ClientError | None:
    """What there is to say where those who should answer are stopped."""
    from .config.holder import holder

    found = holder(os.path.dirname(path))
    return ClientError("no_answer", found.words, found.remedy) if found is not None and found.silent else None


def _lost() -> ClientError:
    return ClientError("lost", "the connection to the supervisor ended before its answer did", "try again")


def _bad_answer() -> ClientError:
    return ClientError("bad_answer", "what answered at the supervisor's socket does not speak its language")


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise _bad_answer() from None


def _checked(status: int, body: bytes) -> Any:
    value = _decoded(body)
    if status == 200:
        return value
    raise problem(value.get("error") if isinstance(value, dict) else None)


def problem(error: Any) -> ClientError:
    """The supervisor's own words, if they are."""
    try:
        return ClientError(error["code"], error["message"], error["hint"])
    except (KeyError, TypeError):
        return _bad_answer()


def _number(digits: bytes, base: int) -> int:
    if not digits.isalnum():  # int would take signs, spaces and underscores
        raise _bad_answer()
    try:
        return int(digits, base)
    except ValueError:
        raise _bad_answer() from None
