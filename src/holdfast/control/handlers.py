"""What is done for each route of the table (routes.py): a request's particulars in, something that becomes JSON out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from holdfast.daemon.logs import STREAMS
from holdfast.daemon.status import Outcome
from holdfast.daemon.watch import Watcher

from .errors import Refusal
from .requests import (
    AfterSeq,
    Command,
    Cursors,
    HistoryPart,
    LogPart,
    Names,
    Nothing,
    Reload,
    Shutdown,
    Signal,
    Update,
    last_event_id,
    query_forms,
    value_of,
)
from .seam import Asker, Supervised, Verb
from .streams import Ending, EventStream, attended, events_after, lineage_after, log_after, logs_after

Answer = Any  # something that becomes JSON, or an EventStream


class Api:
    """One method a route.  `ending` is set when the server ends."""

    def __init__(self, supervisor: Supervised, watcher: Watcher, ending: Ending) -> None:
        self.supervisor = supervisor
        self.watcher = watcher
        self.ending = ending

    # ---- looking

    async def overview(self, _request: Request, _query: Nothing) -> Answer:
        return self.supervisor.overview()

    async def services(self, _request: Request, query: Names) -> Answer:
        return self.supervisor.services(query.name)

    async def service(self, request: Request, _query: Nothing) -> Answer:
        return self.supervisor.service(request.path_params["name"])

    async def tree(self, request: Request, _query: Nothing) -> Answer:
        return self.supervisor.tree(request.path_params["name"])

    async def lineage(self, request: Request, query: AfterSeq) -> Answer:
        after = _after(request, query)
        return EventStream(lineage_after(self.supervisor.lineage(request.path_params["name"]), after), self.ending)

    async def history(self, _request: Request, query: HistoryPart) -> Answer:
        return await self.supervisor.history(query.name, query.limit)

    async def openapi(self, _request: Request, _query: Nothing) -> Answer:
        from .openapi import document

        return document()

    async def events(self, request: Request, query: AfterSeq) -> Answer:
        events, after = self.supervisor.events, _after(request, query)
        if after is None:
            after = events.last
        elif after > events.last:
            after = -1  # a number of an earlier supervisor, before the clock was set back: all, and that there is a gap
        return EventStream(events_after(events, after), self.ending)

    async def logs(self, request: Request, query: LogPart) -> Answer:
        cursor = query.cursor
        if query.lines is not None and cursor is not None:
            raise Refusal("bad_request", "lines and cursor exclude each other")
        streams = STREAMS if query.stream is None else (query.stream,)
        reader = self.supervisor.log_reader(request.path_params["name"])
        last = last_event_id(request) if query.follow else None
        if last is not None:
            cursor = last
        elif query.lines is not None:
            cursor = reader.tail(query.lines, streams)
        if not query.follow:
            return reader.read(cursor, streams)
        if cursor is not None:
            reader.read(cursor, streams)  # a bad cursor is refused before the stream begins
        return EventStream(log_after(reader, cursor, self.watcher, streams), self.ending)

    async def several_logs(self, _request: Request, body: Cursors) -> Answer:
        streams = STREAMS if body.stream is None else (body.stream,)
        readers = {name: (self.supervisor.log_reader(name), cursor) for name, cursor in body.cursors.items()}
        for reader, cursor in readers.values():
            if cursor is not None:
                reader.check(cursor, streams)  # a bad one is refused before the stream begins
        return EventStream(logs_after(readers, self.watcher, streams), self.ending)

    # ---- acting

    async def start(self, request: Request, body: Command) -> Answer:
        return await self._command("start", request, body)

    async def stop(self, request: Request, body: Command) -> Answer:
        return await self._command("stop", request, body)

    async def restart(self, request: Request, body: Command) -> Answer:
        return await self._command("restart", request, body)

    async def _command(self, verb: Verb, request: Request, body: Command) -> Answer:
        async def work() -> Sequence[Outcome]:
            return await self.supervisor.command(
                verb, body.names, wait=body.wait, timeout=body.timeout_seconds, peer=_peer(request)
            )

        return {"results": await attended(work(), request.receive, self.ending) or []}  # none: the client is gone

    async def signal(self, request: Request, body: Signal) -> Answer:
        return {"results": self.supervisor.send_signal(body.names, body.signal, body.scope, peer=_peer(request))}

    async def reload(self, request: Request, body: Reload) -> Answer:
        work = self.supervisor.reload(body.names, peer=_peer(request))
        return {"results": await attended(work, request.receive, self.ending) or []}  # none: the client is gone

    async def shutdown(self, request: Request, body: Shutdown) -> Answer:
        if body.keep:
            return self.supervisor.leave(peer=_peer(request))
        self.supervisor.shut_down(peer=_peer(request))
        return {}

    async def update(self, request: Request, body: Update) -> Answer:
        work = self.supervisor.update(
            dry_run=body.dry_run, rollback=body.rollback, wait=body.wait, timeout=body.timeout_seconds,
            peer=_peer(request),
        )  # fmt: skip
        return await attended(work, request.receive, self.ending) or {}  # nothing: the client is gone

    async def upgrade(self, request: Request, _body: Nothing) -> Answer:
        work = self.supervisor.upgrade(peer=_peer(request))
        return await attended(work, request.receive, self.ending) or {}  # nothing: the client is gone


def _after(request: Request, query: AfterSeq) -> int | None:
    if last := last_event_id(request):
        # Before the query, for who comes back by himself asks at the address that he began with.
        after: int = value_of("Last-Event-ID", last, query_forms(AfterSeq)["after"])
        return after
    return query.after


def _peer(request: Request) -> Asker:
    return request.scope["holdfast.peer"]  # type: ignore[no-any-return]
