"""The one table of routes: what can be asked, what it takes, what it gives.

The application, the OpenAPI document (openapi.py) and the reference in docs/api.md are made from it: a new route is a
row here, a handler in handlers.py, and, where it takes or gives something new, a struct.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from holdfast.daemon.logs import Page, ServicePage
from holdfast.daemon.status import (
    Ancestry,
    EventRecord,
    HistoryRecord,
    Left,
    LineageRecord,
    ServiceStatus,
    SupervisorStatus,
    UpdateStatus,
    UpgradeStatus,
)

from .handlers import Api
from .requests import (
    AfterSeq,
    Command,
    Cursors,
    HistoryPart,
    LogPart,
    Names,
    Nothing,
    Reload,
    Results,
    Shutdown,
    Signal,
    Update,
)


class Route(NamedTuple):
    """One row.  `takes` is a struct: of the body with POST, of the query with GET."""

    method: str
    path: str  # {name}: of a service
    handler: Callable[[Api, Any, Any], Awaitable[Any]]
    takes: type
    gives: Any  # as JSON; None: a stream alone.  A tuple: one of them
    summary: str
    refuses: tuple[str, ...] = ()  # besides ANYWHERE: words of errors.STATUS
    streams: Any = None  # what the events of a stream have as their data


# What every request may be refused with; `not_json` of those that have a body.
ANYWHERE = (
    "bad_request", "no_token", "not_permitted", "too_slow", "too_large", "internal", "busy", "stopping", "upgrading",
    "unavailable",
)  # fmt: skip
NAMED = ("unknown_service", "adopting")

ROUTES = (
    Route("GET", "/v1/supervisor", Api.overview, Nothing, SupervisorStatus, "The supervisor itself."),
    Route(
        "GET", "/v1/services", Api.services, Names, list[ServiceStatus],
        "All services in start order, or those that a `name` matches.", NAMED,
    ),
    Route("GET", "/v1/services/{name}", Api.service, Nothing, ServiceStatus, "One service.", NAMED),
    Route(
        "GET", "/v1/services/{name}/logs", Api.logs, LogPart, Page,
        "Its log, from the oldest line that is left. With `follow` a stream that goes on with what is written.",
        NAMED, Page,
    ),
    Route(
        "GET", "/v1/services/{name}/tree", Api.tree, Nothing, Ancestry,
        "Its processes that live, and how each came to be.", NAMED,
    ),
    Route(
        "GET", "/v1/services/{name}/lineage", Api.lineage, AfterSeq, None,
        "What becomes of its processes from now on, as a stream that begins with who tells; with `after` first what is "
        "remembered.",
        NAMED, LineageRecord,
    ),
    Route(
        "POST", "/v1/logs", Api.several_logs, Cursors, None,
        "What is written to the logs of several services, as one stream.", NAMED, ServicePage,
    ),
    Route(
        "GET", "/v1/events", Api.events, AfterSeq, None,
        "What happens from now on, as a stream; with `after` first what is remembered.", (), EventRecord,
    ),
    Route(
        "GET", "/v1/history", Api.history, HistoryPart, list[HistoryRecord],
        "The last incarnations of services and of the supervisor itself, oldest first.", ("unknown_service",),
    ),
    Route("GET", "/v1/openapi.json", Api.openapi, Nothing, dict[str, Any], "This API as an OpenAPI document."),
    Route(
        "POST", "/v1/start", Api.start, Command, Results,
        "Start services and what they require; the outcome for each.", NAMED,
    ),
    Route(
        "POST", "/v1/stop", Api.stop, Command, Results,
        "Stop services and what requires them; the outcome for each.", NAMED,
    ),
    Route(
        "POST", "/v1/restart", Api.restart, Command, Results,
        "Stop services, then start them again; the outcome for each.", NAMED,
    ),
    Route(
        "POST", "/v1/signal", Api.signal, Signal, Results,
        "Send a signal to services that run; the outcome for each.", NAMED,
    ),
    Route(
        "POST", "/v1/reload", Api.reload, Reload, Results,
        "Run the reload commands of services that run; answers when each is done.", NAMED,
    ),
    Route(
        "POST", "/v1/shutdown", Api.shutdown, Shutdown, (Nothing, Left),
        "Stop everything in reverse order and then the supervisor; answers at once. With `keep` the services run on.",
        ("refused", "adopting"),
    ),
    Route(
        "POST", "/v1/update", Api.update, Update, UpdateStatus,
        "Read the file again and do what it changes; the outcome for each change.",
        ("refused", "bad_config", "adopting"),
    ),
    Route(
        "POST", "/v1/upgrade", Api.upgrade, Nothing, UpgradeStatus,
        "Make way for the version that is installed now; answers when that has been tried.", ("refused", "adopting"),
    ),
)  # fmt: skip
