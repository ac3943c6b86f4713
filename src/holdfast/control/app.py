"""The API, version 1: one ASGI application.  Reads snapshots of the supervisor, hands it commands; docs/api.md.

Whatever a client sends ends in an answer with JSON in it, and nothing of it in the daemon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from holdfast.daemon.logs import STREAMS
from holdfast.daemon.status import Outcome
from holdfast.daemon.watch import Watcher

from .errors import Refusal, did_you_mean, explain
from .requests import HISTORY_ROWS, LINES_MAX, Command, Nothing, Query, Reload, Shutdown, Signal, body_of
from .seam import Peer, Supervised, Verb
from .streams import Ending, EventStream, attended, events_after, log_after

_SEQ = 10**18  # more than any event's number
_ROWS = 10**9  # more than any history keeps

Answer = Any  # something that is a response, or becomes one as JSON
Handler = Callable[[Request], Awaitable[Answer]]


class Api:
    """One handler a route.  `stop` is set when the server ends."""

    def __init__(self, supervisor: Supervised, watcher: Watcher, stop: Ending) -> None:
        self.supervisor = supervisor
        self.watcher = watcher
        self.stop = stop

    def app(self) -> Starlette:
        """The ASGI application."""
        get: dict[str, Handler] = {
            "/v1/supervisor": self.overview,
            "/v1/services": self.services,
            "/v1/services/{name}": self.service,
            "/v1/services/{name}/logs": self.logs,
            "/v1/events": self.events,
            "/v1/history": self.history,
        }
        post: dict[str, Handler] = {
            "/v1/start": partial(self.command, "start"),
            "/v1/stop": partial(self.command, "stop"),
            "/v1/restart": partial(self.command, "restart"),
            "/v1/signal": self.signal,
            "/v1/reload": self.reload,
            "/v1/shutdown": self.shutdown,
            "/v1/upgrade": self.upgrade,
        }
        routes = [
            Route(path, _endpoint(handler), methods=[method])
            for method, handlers in (("GET", get), ("POST", post))
            for path, handler in handlers.items()
        ]

        async def no_route(request: Request, error: Exception) -> Response:
            path = request.url.path
            if isinstance(error, HTTPException) and error.status_code == 405:
                allow = ", ".join(sorted(error.headers["Allow"].split(", "))) if error.headers else ""
                refusal = Refusal(
                    "method_not_allowed", f"{path} is not for {request.method}", f"it is for {allow}", allow=allow
                )
            else:
                hint = did_you_mean(path, [*get, *post])
                refusal = Refusal("not_found", f"there is nothing at {path}", hint or "everything begins with /v1/")
            return _refused(refusal)

        app = Starlette(routes=routes, exception_handlers={HTTPException: no_route})
        app.router.redirect_slashes = False
        return app

    async def overview(self, request: Request) -> Answer:
        Query(request, ())
        return self.supervisor.overview()

    async def services(self, request: Request) -> Answer:
        return self.supervisor.services(Query(request, (), many=("name",)).many("name"))

    async def service(self, request: Request) -> Answer:
        Query(request, ())
        return self.supervisor.service(request.path_params["name"])

    async def history(self, request: Request) -> Answer:
        query = Query(request, ("limit",), many=("name",))
        limit = query.number("limit", _ROWS)
        return await self.supervisor.history(query.many("name"), HISTORY_ROWS if limit is None else limit)

    async def command(self, verb: Verb, request: Request) -> Answer:
        body = await body_of(request, Command)

        async def work() -> Sequence[Outcome]:
            return await self.supervisor.command(
                verb, body.names, wait=body.wait, timeout=body.timeout_seconds, peer=_peer(request)
            )

        return {"results": await attended(work(), request.receive, self.stop) or []}  # none: the client is gone

    async def signal(self, request: Request) -> Answer:
        body = await body_of(request, Signal)
        return {"results": self.supervisor.send_signal(body.names, body.signal, body.scope, peer=_peer(request))}

    async def reload(self, request: Request) -> Answer:
        body = await body_of(request, Reload)
        work = self.supervisor.reload(body.names, peer=_peer(request))
        return {"results": await attended(work, request.receive, self.stop) or []}

    async def shutdown(self, request: Request) -> Answer:
        body = await body_of(request, Shutdown)
        if body.keep:
            return self.supervisor.leave(peer=_peer(request))
        self.supervisor.shut_down(peer=_peer(request))
        return {}

    async def upgrade(self, request: Request) -> Answer:
        await body_of(request, Nothing)
        work = self.supervisor.upgrade(peer=_peer(request))
        return await attended(work, request.receive, self.stop) or {}  # nothing: the client is gone

    async def events(self, request: Request) -> Answer:
        after = Query(request, ("after",)).number("after", _SEQ)
        events = self.supervisor.events
        if after is None:
            after = events.last
        elif after > events.last:
            after = -1  # a number of an earlier supervisor, before the clock was set back: all, and that there is a gap
        return EventStream(events_after(events, after), self.stop)

    async def logs(self, request: Request) -> Answer:
        query = Query(request, ("lines", "cursor", "stream", "follow"))
        lines, cursor = query.number("lines", LINES_MAX), query.get("cursor")
        if lines is not None and cursor is not None:
            raise Refusal("bad_request", "lines and cursor exclude each other")
        stream = query.choice("stream", STREAMS)
        streams = STREAMS if stream is None else (stream,)
        follow = query.flag("follow")
        reader = self.supervisor.log_reader(request.path_params["name"])
        if lines is not None:
            cursor = reader.tail(lines, streams)
        if not follow:
            return reader.read(cursor, streams)
        if cursor is not None:
            reader.read(cursor, streams)  # a bad cursor is refused before the stream begins
        return EventStream(log_after(reader, cursor, self.watcher, streams), self.stop)


def _peer(request: Request) -> Peer:
    return request.scope["holdfast.peer"]  # type: ignore[no-any-return]


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Any]]:
    """The handler's answer, or what went wrong with it, as a response."""

    async def endpoint(request: Request) -> Any:
        try:
            answer = await handler(request)
            if isinstance(answer, EventStream):
                return answer
            return Response(msgspec.json.encode(answer) + b"\n", media_type="application/json")
        except Exception as error:
            return _refused(explain(error))

    return endpoint


def _refused(refusal: Refusal) -> Response:
    # Not for a connection of which the rest of a request may still come: the next one would begin within it.
    headers = {"connection": "close"} if refusal.code in ("too_large", "not_json") else {}
    if refusal.code == "adopting":
        headers["retry-after"] = "1"
    if refusal.allow:
        headers["allow"] = refusal.allow
    return Response(refusal.body, refusal.status, headers, media_type="application/json")
