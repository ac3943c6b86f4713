"""What becomes of each change of one update: judged from the engine's views.  For the loop's thread."""

from __future__ import annotations

import asyncio

from holdfast.config.diff import Change
from holdfast.config.model import Config
from holdfast.engine.engine import Engine
from holdfast.engine.table import State

from .status import UpdateChange, UpdateStatus

PATIENCE = 30.0  # seconds, at least, in which something has to happen to one of those that are followed

Settled = dict[str, tuple[str, str]]  # outcome and message by service


class Trial:
    """One update, from before it is accepted until everything in it is up, gone or put back."""

    def __init__(self, engine: Engine, old: Config, new: Config, found: list[Change], rollback: bool) -> None:
        self.old = old
        self.new = new
        self.changes = found
        self.rollback = rollback
        self.over = asyncio.Event()
        self.open: dict[str, int] = {}  # who is followed, and the last incarnation of before
        self.next_look = float("inf")  # somebody will have lived long enough then
        self._engine = engine
        self._stopping = {change.service for change in found if change.effect == "stops"}
        self._returning: set[str] = set()  # to their old definitions
        self._settled: Settled = {}
        # So long it may take until something happens: an old tree ends, and what follows becomes ready.
        times = [
            spec.grace + (spec.awaits.timeout if spec.awaits else 0.0) + spec.backoff.reset_after
            for spec in new.services.values()
        ]
        self.patience = PATIENCE + max(times, default=0.0)

    def begin(self) -> None:
        """The engine has just taken the new plan: follow those that it touches."""
        for change in self.changes:
            name = change.service
            if change.effect == "applies":
                self._settled[name] = "done", ""
            elif change.effect == "restarts" and not self._engine.view(name).wanted:
                self._settled[name] = "unchanged", "it is stopped; its next start is by the new definition"
            else:
                self.open[name] = self._last_of_before(name)

    def _last_of_before(self, name: str) -> int:
        """The last incarnation that is none of the plan which was taken just now."""
        try:
            view = self._engine.view(name)
        except KeyError:
            return 0
        if view.replacing:  # its successor is, and not one that was given up for that
            return max(view.incarnation, *view.retired, 0)
        return view.incarnation - (view.live and view.state in (State.STARTING, State.RUNNING))

    def _reason(self, name: str) -> str:
        try:
            return self._engine.view(name).reason
        except KeyError:
            return ""

    def look(self, now: float) -> Settled:
        """Those of which it is known by now and was not before."""
        self.next_look = float("inf")
        found = {name: verdict for name in self.open if (verdict := self._verdict(name, now))}
        self._settle(found)
        return found

    def give_up(self) -> Settled:
        """Nothing has happened for too long."""
        found = {name: ("failed", f"not in time: {self._reason(name)}") for name in self.open}
        self._settle(found)
        return found

    def _settle(self, found: Settled) -> None:
        for name, (outcome, message) in found.items():
            del self.open[name]
            if name in self._returning:
                before = self._settled[name][1]
                outcome, message = "rolled_back", before if outcome == "done" else f"{before}; then {message}"
            self._settled[name] = outcome, message

    def put_back(self, failed: dict[str, str], config: Config) -> None:
        """They have their old definitions again, and are followed until they are up."""
        for name, why in failed.items():
            self._settled[name] = "rolled_back", why
            self.open.pop(name, None)
            if name in config.services:
                self._returning.add(name)
                self.open[name] = self._last_of_before(name)
        for name in self.open:
            if self._engine.view(name).state is State.STOPPING:
                self.open[name] = self._last_of_before(name)  # with those: its end is no failure

    def _verdict(self, name: str, now: float) -> tuple[str, str] | None:
        """None: it goes on."""
        try:
            view = self._engine.view(name)
        except KeyError:
            return "done", "nothing of it is left"
        ended = view.last_exit.words if view.last_exit else view.reason
        if view.live and view.state is State.FATAL:
            return "failed", view.reason
        if name in self._stopping - self._returning or view.state is State.STOPPING:
            return None
        if not view.wanted:
            return "done", "stopped meanwhile"
        newer = view.incarnation - self.open[name]
        if newer > 1 or view.state is State.BACKOFF or (newer > 0 and view.state is State.STARTING and not view.live):
            return "failed", ended
        if view.state in (State.STOPPED, State.FATAL):
            return "failed", view.reason
        if view.state is State.EXITED:
            return ("done" if view.succeeded else "failed"), view.reason
        if not view.ready or view.replacing:
            return None
        if newer <= 0:
            return "failed", view.reason  # its successor has
        if self.rollback and name not in self._returning:
            proved_at = view.since + self.new.services[name].backoff.reset_after
            if now < proved_at:
                self.next_look = min(self.next_look, proved_at)
                return None
        return "done", ""

    def status(self, unsettled: str, dry_run: bool) -> UpdateStatus:
        """The answer.  `unsettled`: the outcome of those of which nothing is known yet."""
        answers = []
        for change in self.changes:
            outcome, message = self._settled.get(change.service, (unsettled, ""))
            if dry_run:
                outcome = message = ""
            elif change.service in self.open and change.service not in self._returning:
                message = self._reason(change.service)
            answers.append(
                UpdateChange(change.service, change.change, change.effect, list(change.keys), outcome, message)
            )
        touched = sum(1 for change in self.changes if change.service and change.change != "added")
        return UpdateStatus(self.new.path, dry_run, len(self.old.services) - touched, answers)
