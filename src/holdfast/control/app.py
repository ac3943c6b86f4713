"""The API, version 1: one ASGI application, made from the table of routes; docs/api.md.

Whatever a client sends ends in an answer with JSON in it, and nothing of it in the daemon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette import routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .errors import Refusal, did_you_mean, explain
from .handlers import Api
from .requests import body_of, query_of
from .routes import ROUTES, Route
from .streams import EventStream


def application(api: Api) -> Starlette:
    """The ASGI application."""
    app = Starlette(
        routes=[routing.Route(each.path, _endpoint(each, api), methods=[each.method]) for each in ROUTES],
        exception_handlers={HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    path = request.url.path
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = ", ".join(sorted(error.headers["Allow"].split(", "))) if error.headers else ""
        return _refused(
            Refusal("method_not_allowed", f"{path} is not for {request.method}", f"it is for {allow}", allow=allow)
        )
    hint = did_you_mean(path, [each.path for each in ROUTES])
    return _refused(Refusal("not_found", f"there is nothing at {path}", hint or "everything begins with /v1/"))


def _endpoint(route: Route, api: Api) -> Callable[[Request], Awaitable[Any]]:
    """The handler's answer, or what went wrong with it, as a response."""

    async def endpoint(request: Request) -> Any:
        try:
            takes: type[msgspec.Struct] = route.takes
            given = await body_of(request, takes) if route.method == "POST" else query_of(request, takes)
            answer = await route.handler(api, request, given)
            if isinstance(answer, EventStream):
                return answer
            return Response(msgspec.json.encode(answer) + b"\n", media_type="application/json")
        except Exception as error:
            return _refused(explain(error))

    return endpoint


def _refused(refusal: Refusal) -> Response:
    # Not for a connection of which the rest of a request may still come: the next one would begin within it.
    closing = {"connection": "close"} if refusal.code in ("too_large", "not_json") else {}
    headers = {**closing, **refusal.headers}
    return Response(refusal.body, refusal.status, headers, media_type="application/json")
