"""Talk to a supervisor: its HTTP API over the unix socket, version 1, as plain dicts and lists.

In: a run directory.  Out: what docs/api.md describes, under the same names.  A small reader of its own
takes the place of an HTTP library: `holdfast status` has to be there at once.  It understands what the
supervisor sends, not what any server might.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import threading
from collections import deque
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

    Seconds = float
    JSON = dict[str, Any]

ANSWER_LIMIT: Seconds = 30.0  # for one answer, from connecting to its last byte
WAIT_MARGIN: Seconds = 5.0  # what a command that waits may take to answer after its own limit
HEAD_BYTES_MAX = 65536
SOCKET_PATH_MAX = 107  # sun_path, less its final zero

# Not quoted in a path or a query.
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


class ClientError(Exception):
    """The supervisor refused, or gave no answer.

    `code` is one of the words of docs/api.md ("unknown_service", "bad_request", ...), or of the client itself:
    "no_answer" (the time limit was reached), "lost" (the connection ended before the answer did: whether
    a command was carried out is unknown), "not_permitted" (the socket is another user's), "bad_answer".
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


class Client:
    """A supervisor's API.  Finds the socket as the command line does: `run_dir`, else the one that `config` names,
    else HOLDFAST_RUN_DIR, ./holdfast.toml upward, or the default (ConfigError where that file cannot be read).
    Connects at each call, so a supervisor that was started again in between is no matter.

    Every method may be called from any thread, several at a time.  All raise ClientError, and NoSupervisor where
    nobody listens.  `timeout` is for one answer, in seconds, None for no limit; commands that wait have their own.
    As a context manager, or with `close`, it ends the streams that are still open.
    """

    def __init__(
        self, run_dir: str | None = None, *, config: str | None = None, timeout: Seconds | None = ANSWER_LIMIT
    ) -> None:
        if run_dir is None:
            from .config.places import run_dir_for

            run_dir = run_dir_for(config, None, os.environ)
        self.run_dir = run_dir
        self.path = os.path.join(run_dir, "control")
        self.timeout = timeout
        self._streams: set[Stream] = set()
        self._lock = threading.Lock()

    def supervisor(self) -> JSON:
        """The supervisor itself: its pid, state, uptime, directories."""
        return self._get("/v1/supervisor")  # type: ignore[no-any-return]

    def services(self, *patterns: str) -> list[JSON]:
        """The status of each service that one of the `patterns` (names or globs; none: all) matches, in start order."""
        return self._get("/v1/services" + _query(name=patterns))  # type: ignore[no-any-return]

    def service(self, name: str) -> JSON:
        """The status of one service."""
        return self._get(f"/v1/services/{_quote(name)}")  # type: ignore[no-any-return]

    def start(self, *names: str, wait: bool = True, timeout: Seconds | None = None) -> list[JSON]:
        """Start services (names, globs, `name@incarnation`) and what they require; the outcome of each.

        With `wait`, returns when they are ready or have failed, or after `timeout` seconds: they go on
        starting then, and their outcome is "timed_out".
        """
        return self._command("start", names, wait, timeout)

    def stop(self, *names: str, wait: bool = True, timeout: Seconds | None = None) -> list[JSON]:
        """Stop services and what requires them; with `wait`, returns when nothing of their trees is left."""
        return self._command("stop", names, wait, timeout)

    def restart(self, *names: str, wait: bool = True, timeout: Seconds | None = None) -> list[JSON]:
        """Stop services, then start them again; `web@41` does nothing when 41 is gone already."""
        return self._command("restart", names, wait, timeout)

    def signal(self, *names: str, signal: str | int, scope: str = "main") -> list[JSON]:
        """Send a signal ("HUP", 1) to the `main` process, its `group`, or the whole `tree` of services."""
        body = {"names": names, "signal": signal, "scope": scope}
        return self._post("/v1/signal", body, self.timeout)["results"]  # type: ignore[no-any-return]

    def shutdown(self) -> JSON:
        """Ask the supervisor to stop all services in order and then itself.  Does not wait: `events` tells of it."""
        return self._post("/v1/shutdown", {}, self.timeout)  # type: ignore[no-any-return]

    def events(self, after: int | None = None) -> Stream:
        """Iterate over events as they happen: from now on, or all that are remembered with `seq` above `after`.

        Ends when the supervisor ends in order; ClientError "lost" when it ends otherwise.
        """
        return Stream(self, "/v1/events" + _query(after=after))

    def logs(
        self,
        name: str,
        *,
        lines: int | None = None,
        cursor: str | None = None,
        stream: str | None = None,
        follow: bool = False,
    ) -> Stream:
        """Iterate over a service's log: dicts with `stream` ("stdout", "stderr") and `text`, a line without its end.

        The last `lines`, or what follows `cursor` (the `cursor` attribute of an earlier iteration).  Ends with
        what is there; with `follow` it waits for more, as `events` does.  `partial` in an entry: the line goes on
        in the next one of its stream.  `missing_files` of the iterator: how many were removed unread.
        """
        query = _query(lines=lines, cursor=cursor, stream=stream, follow=1 if follow else None)
        address = f"/v1/services/{_quote(name)}/logs"
        if follow:
            return Stream(self, address + query)
        return Stream(self, address + query, pages=lambda at: self._get(address + _query(cursor=at, stream=stream)))

    def close(self) -> None:
        """End the streams that are open, in whatever thread they are waited for."""
        with self._lock:
            streams = list(self._streams)
        for each in streams:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _command(self, verb: str, names: tuple[str, ...], wait: bool, timeout: Seconds | None) -> list[JSON]:
        body = {"names": names, "wait": wait, "timeout_seconds": timeout}
        limit = self.timeout if not wait else None if timeout is None else timeout + WAIT_MARGIN
        return self._post(f"/v1/{verb}", body, limit)["results"]  # type: ignore[no-any-return]

    def _get(self, target: str) -> Any:
        return self._exchange("GET", target, b"", self.timeout)

    def _post(self, target: str, body: JSON, limit: Seconds | None) -> Any:
        return self._exchange("POST", target, json.dumps(body).encode(), limit)

    def _exchange(self, method: str, target: str, body: bytes, limit: Seconds | None) -> Any:
        with _Connection(self.path, limit) as connection:
            connection.request(method, target, body)
            return connection.answer()


class Stream:
    """What `Client.events` and `Client.logs` return: an iterator of dicts, also a context manager.

    One thread at a time iterates; `close` may be called from any other, which ends the iteration there.
    """

    def __init__(self, client: Client, target: str, pages: Any = None) -> None:
        self.cursor: str | None = None
        self.missing_files = 0
        self._client = client
        self._pages = pages
        self._waiting: deque[JSON] = deque()
        self._more = True
        self._closed = False
        self._connection = _Connection(client.path, client.timeout)
        with client._lock:
            client._streams.add(self)
        try:
            self._connection.request("GET", target, b"")
            if pages:
                self._take(self._connection.answer())
                self._connection.close()
                self._forget()
            else:
                self._connection.begin_stream()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[JSON]:
        return self

    def __next__(self) -> JSON:
        while not self._waiting:
            if self._closed or not self._more:
                self.close()
                raise StopIteration
            self._read()
        return self._waiting.popleft()

    def _read(self) -> None:
        if self._pages:
            self._take(self._pages(self.cursor))
            return
        try:
            event, data = self._connection.next_event()
            if event == "end":
                problem = _problem(data)
                if problem.code != "stopping":
                    raise problem
                self._more = False
            else:
                self._take(data)
        except (ClientError, OSError):
            closed = self._closed
            self.close()
            if closed:  # by another thread, which is how it asked us to end
                return
            raise

    def _take(self, data: JSON) -> None:
        if "entries" not in data:  # an event
            self._waiting.append(data)
            return
        self._waiting.extend(data["entries"])
        self.cursor = data["cursor"]
        self.missing_files += data["missing_files"]
        self._more = data["more"] or not self._pages

    def _forget(self) -> None:
        with self._client._lock:
            self._client._streams.discard(self)

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self._connection.close()
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Connection:
    """One request and its answer.  HTTP/1.1 as our server speaks it: a length, chunks, or up to the end."""

    def __init__(self, path: str, limit: Seconds | None) -> None:
        self.deadline = None if limit is None else monotonic() + limit
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
            raise _no_answer() from None
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
            raise _no_answer()
        self.socket.settimeout(left)

    def _fill(self) -> bool:
        """Read more; False at the end."""
        self._arm()
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise _no_answer() from None
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
    directory = -1
    try:
        if limit is not None:
            # Not settimeout: a connect that must not block fails at once where the queue is full.  In a timeval
            # zero would mean no limit.
            micros = max(1, int(min(limit, 1e9) * 1e6))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(micros, 10**6)))
        address = path
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        made.connect(address)
        return made
    except OSError as error:
        made.close()
        raise _connect_error(path, error) from None
    except BaseException:
        made.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)


def _connect_error(path: str, error: OSError) -> ClientError:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        return NoSupervisor("no_supervisor", f"no supervisor listens at {path}", "start one with: holdfast up")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ClientError("not_permitted", f"{path}: {error.strerror}", "it belongs to another user")
    if error.errno == errno.EAGAIN:
        return _no_answer()
    return ClientError("no_connection", f"{path}: {error.strerror}")


def _no_answer() -> ClientError:
    return ClientError("no_answer", "the supervisor did not answer in time", "it may be busy or stopped (SIGSTOP)")


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
    raise _problem(value.get("error") if isinstance(value, dict) else None)


def _problem(error: Any) -> ClientError:
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


def _quote(text: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in os.fsencode(text))


def _query(**fields: Any) -> str:
    """None is left out; a tuple becomes the key repeated."""
    pairs = [
        f"{key}={_quote(str(each))}"
        for key, value in fields.items()
        for each in (value if isinstance(value, tuple) else () if value is None else (value,))
    ]
    return "?" + "&".join(pairs) if pairs else ""
