"""Talk to a supervisor: its HTTP API over the unix socket, version 1, as plain dicts and lists.

In: a run directory.  Out: what docs/api.md describes, under the same names.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from time import monotonic, sleep

from .connection import ClientError, Connection, NoSupervisor, problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self, TypeVar

    Seconds = float
    JSON = dict[str, Any]
    T = TypeVar("T")

__all__ = ["Client", "ClientError", "NoSupervisor", "Stream"]

ANSWER_LIMIT: Seconds = 30.0  # for one answer, from connecting to its last byte
WAIT_MARGIN: Seconds = 5.0  # what a command that waits may take to answer after its own limit
ADOPTING_PAUSE: Seconds = 0.05  # until a supervisor that has just started is asked again
UPGRADE_MARGIN: Seconds = 30.0  # what the next version may take to say that it starts

# Not quoted in a path or a query.
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


class Client:
    """A supervisor's API.  Finds the socket as the command line does: `run_dir`, else the one that `config` names,
    else HOLDFAST_RUN_DIR, ./holdfast.toml upward, or the default (ConfigError where that file cannot be read).
    Connects at each call, so a supervisor that was started again in between is no matter.

    Every method may be called from any thread, several at a time.  All raise ClientError, and NoSupervisor where
    nobody listens.  `timeout` is for one answer, in seconds, None for no limit; commands that wait have their own.
    A supervisor that has just started and is adopting is asked again within this time.
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

    def reload(self, *names: str) -> list[JSON]:
        """Run the `reload_command` of services; returns when each is done, or has taken too long."""
        return self._post("/v1/reload", {"names": names}, None)["results"]  # type: ignore[no-any-return]

    def shutdown(self) -> JSON:
        """Ask the supervisor to stop all services in order and then itself.  Does not wait: `events` tells of it."""
        return self._post("/v1/shutdown", {}, self.timeout)  # type: ignore[no-any-return]

    def leave(self) -> JSON:
        """Ask the supervisor to end and leave the services running: `services`; `kept` against on_owner_loss."""
        return self._post("/v1/shutdown", {"keep": True}, self.timeout)  # type: ignore[no-any-return]

    def update(
        self, *, dry_run: bool = False, rollback: bool = False, wait: bool = True, timeout: Seconds | None = None
    ) -> JSON:
        """Ask the supervisor to read its file again and do what that changes: `changes`, with the outcome of each.

        With `rollback`, what does not become ready, or does not live `backoff.reset_after`, is put back.  With `wait`,
        returns when all is settled, or after `timeout` seconds: the update goes on then.  ClientError "bad_config",
        "refused": nothing was changed.
        """
        body = {"dry_run": dry_run, "rollback": rollback, "wait": wait, "timeout_seconds": timeout}
        limit = self.timeout if not wait else None if timeout is None else timeout + WAIT_MARGIN
        return self._post("/v1/update", body, limit)  # type: ignore[no-any-return]

    def upgrade(self) -> JSON:
        """Ask the supervisor to make way for the version that is installed now; returns when that has been tried and
        will take over.  ClientError "refused": it does not start, nothing was changed."""
        limit = None if self.timeout is None else self.timeout + UPGRADE_MARGIN
        return self._post("/v1/upgrade", {}, limit)  # type: ignore[no-any-return]

    def events(self, after: int | None = None) -> Stream:
        """Iterate over events as they happen: from now on, or all that are remembered with `seq` above `after`.

        Ends when the supervisor ends in order; ClientError "upgrading" when its next version goes on with the same
        numbers, "lost" when it ends otherwise.
        """
        return Stream(self, "/v1/events" + _query(after=after))

    def tree(self, name: str) -> JSON:
        """The processes of a service that live, with sessions, groups, times, and how each came to be."""
        return self._get(f"/v1/services/{_quote(name)}/tree")  # type: ignore[no-any-return]

    def lineage(self, name: str, after: int | None = None) -> Stream:
        """Iterate over what becomes of a service's processes, from now on or after the record `after`: forks, execs,
        adoptions, ends.  The first one, "source", says who tells.  Its lineage is followed for as long as this is open.

        Ends as `events` does.
        """
        return Stream(self, f"/v1/services/{_quote(name)}/lineage" + _query(after=after))

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

    def logs_of(self, cursors: dict[str, str | None], *, stream: str | None = None) -> Stream:
        """Iterate over what is written to the logs of up to 250 services, from the cursor of each on (None: all of it).

        As `logs` with `follow`; each entry has its `service`, and `cursors` of the iterator says where to go on.
        """
        return Stream(self, "/v1/logs", body={"cursors": cursors, "stream": stream})

    def history(self, *patterns: str, limit: int | None = None) -> list[JSON]:
        """The last `limit` incarnations (None: 100) of services, past ones too, that match (names, globs, `web@2`)."""
        return self._get("/v1/history" + _query(name=patterns, limit=limit))  # type: ignore[no-any-return]

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
        def once(limit: Seconds | None) -> Any:
            with Connection(self.path, limit) as connection:
                connection.request(method, target, body)
                return connection.answer()

        return _patiently(limit, once)


class Stream:
    """What `Client.events` and `Client.logs` return: an iterator of dicts, also a context manager.

    One thread at a time iterates; `close` may be called from any other, which ends the iteration there.
    """

    def __init__(self, client: Client, target: str, pages: Any = None, body: JSON | None = None) -> None:
        self.cursor: str | None = None
        self.cursors: dict[str, str | None] = dict(body["cursors"]) if body else {}
        self.missing_files = 0
        self._client = client
        self._pages = pages
        self._body = body
        self._waiting: deque[JSON] = deque()
        self._more = True
        self._closed = False
        _patiently(client.timeout, lambda limit: self._begin(target, limit))

    def _begin(self, target: str, limit: Seconds | None) -> None:
        self._connection = Connection(self._client.path, limit)
        with self._client._lock:
            self._client._streams.add(self)
        try:
            if self._body is None:
                self._connection.request("GET", target, b"")
            else:
                self._connection.request("POST", target, json.dumps(self._body).encode())
            if self._pages:
                self._take(self._connection.answer())
                self._connection.close()
                self._forget()
            else:
                self._connection.begin_stream()
        except BaseException:
            self._connection.close()
            self._forget()
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
                error = problem(data)
                if error.code != "stopping":
                    raise error
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
        if "service" in data:
            name = data["service"]
            self._waiting.extend({"service": name, **entry} for entry in data["entries"])
            self.cursors[name] = data["cursor"]
        else:
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


def _patiently(limit: Seconds | None, ask: Callable[[Seconds | None], T]) -> T:
    """Ask, and again while the supervisor adopts, within the limit."""
    deadline = None if limit is None else monotonic() + limit
    while True:
        left = None if deadline is None else max(0.0, deadline - monotonic())
        try:
            return ask(left)
        except ClientError as error:
            if error.code != "adopting" or (left is not None and left <= ADOPTING_PAUSE):
                raise
        sleep(ADOPTING_PAUSE)


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
