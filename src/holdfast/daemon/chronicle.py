"""What the history is told: from effects, from what keepers say, and from the event stream.  For the loop's thread."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.engine import effects as fx
from holdfast.engine.events import Exit
from holdfast.engine.service import Unit
from holdfast.process import events as told
from holdfast.process.status import ExitStatus, StopReport, Usage

from .history import History
from .history_file import READ_LIMIT, Unreadable, path_of, read
from .names import without_groups
from .show import signal_name
from .status import EventRecord, HistoryRecord, StopSummary

if TYPE_CHECKING:
    from .supervisor import Supervisor


class Chronicle:
    """Writes a supervisor's history.  Nothing here waits or fails, but `close`, which is bounded."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._recorded: dict[tuple[str, int], dict[str, Any]] = {}
        places = supervisor.config.supervisor
        self._history = History(
            path_of(places.state_dir, places.run_dir),
            tell=lambda text: self._soon(lambda: supervisor.events.add("history", text)),
            made_anew=lambda: self._soon(self._note_living),
        )
        self._self = "", supervisor.restarts + 1
        supervisor.events.listen(self._on_event)

    async def read(self, patterns: Iterable[str], limit: int) -> list[HistoryRecord]:
        """As `history_file.read`, with everything that has happened until now."""
        return await asyncio.to_thread(self._read, without_groups(patterns, self._supervisor.config.groups), limit)

    def _read(self, patterns: list[str], limit: int) -> list[HistoryRecord]:
        written = self._history.flush(READ_LIMIT)
        try:
            return read(self._history.path, patterns, limit)
        except Unreadable:
            if not written:
                raise  # locked, or the like: the writer cannot use it either, and tries again
            # It may be damaged where the writer does not look.  Then it is begun anew, and that can be read.
            self._history.doubt()
            self._history.flush(READ_LIMIT)
            return read(self._history.path, patterns, limit)

    def close(self) -> None:
        self._history.close()

    # ---- where it learns what

    def found(self, record: fx.Record) -> None:
        """Start-up has read a record: it may know of an end that the history does not."""
        if record.last_exit is not None:
            self._recorded[record.name, record.last_exit_of] = _exit(record.last_exit)

    def begin(self) -> None:
        """Start-up is over: what an earlier supervisor has not written down any more is closed."""
        live: set[tuple[str, int]] = set()
        ended = dict(self._recorded)
        for view in self._supervisor.engine.views():
            key = view.name, view.incarnation
            live.update((view.name, number) for number in view.retired)
            if view.live:
                live.add(key)
            if view.last_exit is not None and not (view.live and view.last_exit_of == view.incarnation):
                ended[view.name, view.last_exit_of] = _exit(view.last_exit)
        self._history.settle(live, ended)

    def perform(self, effect: fx.Effect) -> None:
        """An effect is about to be performed."""
        if isinstance(effect, fx.Spawn):
            key = effect.name, effect.incarnation
            self._history.note(key, new=True, why=_why(effect.step, effect.why), started_at=time.time())
        elif isinstance(effect, fx.Stop):
            self._history.note((effect.name, effect.incarnation), asked=effect.why)

    def heard(self, name: str, incarnation: int, event: told.Event) -> None:
        """A keeper, or the report of one, says something."""
        key = name, incarnation
        if isinstance(event, told.Spawned):
            self._history.note(key, pid=event.pid, started_at=event.started_at)
        elif isinstance(event, told.Moved):
            self._history.note(key, pid=event.pid)
        elif isinstance(event, told.Exited):
            self._history.note(key, **_status(event.status))
        elif isinstance(event, told.Empty):
            self._history.note(key, tree_usage=_usage(event.usage))
        elif isinstance(event, told.StopReported):
            self._history.note(key, stop=_stop(event.report))
        elif isinstance(event, told.LogState) and (event.lost or event.dropped):
            self._history.note(key, log_lost=event.lost, log_dropped=event.dropped)

    def used(self, name: str, incarnation: int, what: dict[str, float]) -> None:
        """What its cgroups have counted, before they are removed."""
        self._history.note((name, incarnation), resources=msgspec.json.encode(what).decode())

    def take_report(self, name: str, incarnation: int, path: str) -> None:
        """What a keeper has written when nobody was there to hear it."""
        try:
            said = told.read_report(path)
        except (OSError, ValueError):
            return
        for event in said:
            self.heard(name, incarnation, event)

    def _on_event(self, record: EventRecord) -> None:
        if not record.service:
            self._on_own_event(record)
            return
        columns: dict[str, Any]
        match record.event:
            case "ready":
                columns = {"ready_at": record.time}
            case "emptied":
                columns = {"empty_at": record.time}
            case "lost" | "stray":
                columns = {"ended_at": record.time, "cause": record.text}
            case "exited":
                columns = {"ended_at": record.time, "cause": record.text}
                unit = self._unit(record.service, record.incarnation)
                if unit is not None and unit.last_exit is not None and unit.last_exit_of == unit.incarnation:
                    columns |= _exit(unit.last_exit)
            case "adopted":
                columns = {"adopted": 1}
            case _:
                return
        if record.incarnation is not None:
            self._history.note((record.service, record.incarnation), **columns)
            if record.event == "adopted":
                self._note_living_one(record.service)

    def _on_own_event(self, record: EventRecord) -> None:
        if record.event == "started":
            self._history.note(self._self, new=True, pid=os.getpid(), why=record.text, started_at=record.time)
        elif record.event == "ended":
            self._history.note(self._self, ended_at=record.time, cause=record.text)
        elif record.event == "upgrading":
            self._history.note(self._self, ended_at=record.time, cause=f"upgraded {record.text}")

    # ---- parts of it

    def _note_living(self) -> None:
        """The file is new: what is known of those that live."""
        started_at = time.time() - (time.monotonic() - self._supervisor.started)
        self._history.note(self._self, pid=os.getpid(), started_at=started_at)
        for name in list(self._supervisor.copies):
            self._note_living_one(name)

    def _note_living_one(self, name: str) -> None:
        copy = self._supervisor.copies.get(name)
        if copy is not None and copy.tree.pid:
            unit = self._unit(name, copy.incarnation)
            key = name, copy.incarnation
            why = _why(unit.step, unit.why) if unit else None
            self._history.note(key, why=why, pid=copy.tree.pid, started_at=copy.tree.started_at)

    def _unit(self, name: str, incarnation: int | None) -> Unit | None:
        """None: that incarnation is not the last one, or the service is forgotten already."""
        unit = self._supervisor.engine.units.get(name)
        return unit if unit and unit.incarnation == incarnation else None

    def _soon(self, function: Callable[[], None]) -> None:
        """In the loop's thread; not at all, when that has ended."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            pass


def _why(step: fx.Step, why: str) -> str:
    return why if step == "main" else f"{step}: {why}"


def _exit(ended: Exit) -> dict[str, Any]:
    return {"cause": ended.words, "code": ended.code, "signal": ended.signal, "core": ended.core}


def _status(status: ExitStatus) -> dict[str, Any]:
    return {
        "code": status.code,
        "signal": status.signal,
        "core": status.core_dumped,
        "started_at": status.started_at,
        "ended_at": status.ended_at,
        "usage": _usage(status.usage),
    }


def _usage(usage: Usage | None) -> str | None:
    if usage is None:
        return None
    return msgspec.json.encode({name: getattr(usage, name) for name in Usage._fields}).decode()


def _stop(report: StopReport) -> str:
    summary = StopSummary(
        signal_name(report.signal), report.scope, report.grace, report.duration, report.signalled_count,
        report.killed_count, [f"{_plain(member.name)} ({member.pid})" for member in report.survivors],
    )  # fmt: skip
    return msgspec.json.encode(summary).decode()


def _plain(name: str) -> str:
    """A process may call itself by bytes that are no text."""
    return name.encode(errors="replace").decode()
