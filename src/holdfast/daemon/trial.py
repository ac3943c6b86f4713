"""What becomes of each change of one update: judged from the engine's views.  For the loop's thread."""

from __future__ import annotations

import asyncio
from contextlib import suppress

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
        self.open: set[str] = set()  # who is followed: nothing of its old definition is up any more
        self.next_look = float("inf")  # somebody will have lived long enough then
        self._engine = engine
        self._untouched = {change.service for change in found if change.effect == "applies"}
        self._stopping = {change.service for change in found if change.effect == "stops"}
        self._returning: set[str] = set()  # to their old definitions
        self._restarts: dict[str, int] = {}  # by policy, at the beginning
        self._serving: dict[str, int] = {}  # the last incarnation of before, where its successor is started beside it
        self._settled: Settled = {}
        # So long it may take until something happens: an old tree ends, and what follows becomes ready.
        times = [
            spec.grace + (spec.awaits.timeout if spec.awaits else 0.0) + spec.backoff.reset_after
            + spec.ready_timeout * (bool(spec.pre_start) + bool(spec.post_stop))
            for spec in new.services.values()
        ]
        self.patience = PATIENCE + max(times, default=0.0)

    def begin(self) -> None:
        """The engine has just taken the new plan: follow those that it touches."""
        for change in self.changes:
            name = change.service
            if change.effect == "applies":
                self._settled[name] = "done", ""
            elif change.change == "changed" and not self._engine.view(name).wanted:
                self._settled[name] = "unchanged", "it is stopped; its next start is by the new definition"
            elif self._waits_for_its_time(name):
                self._settled[name] = "done", "" if change.effect == "starts" else "from its next run on"
            else:
                self._follow(name)

    def _waits_for_its_time(self, name: str) -> bool:
        """It has a schedule, and nothing that was no run of one is to end before."""
        spec = self.new.services.get(name)
        return spec is not None and spec.schedule.given and self._engine.view(name).state is not State.STOPPING

    def _follow(self, name: str) -> None:
        """Its old incarnation is down or on its way there: what comes up, or fails unasked, is of the new plan."""
        self.open.add(name)
        self._restarts[name] = self._serving[name] = 0
        with suppress(KeyError):  # gone already
            view = self._engine.view(name)
            self._restarts[name] = view.restarts
            if view.replacing:  # its successor is, and not one that was given up for that
                self._serving[name] = max(view.incarnation, *view.retired, 0)

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
        """Nothing has happened for too long.  A oneshot may run as long as it does, and what waits for it with it."""
        if any(self._runs_to_its_end(name) for name in self.open):
            return {}
        found = {name: ("failed", f"not in time: {self._reason(name)}") for name in self.open}
        self._settle(found)
        return found

    def _runs_to_its_end(self, name: str) -> bool:
        spec = self.new.services.get(name)
        if spec is None or spec.type != "oneshot":
            return False
        try:
            view = self._engine.view(name)
        except KeyError:
            return False
        return view.live and view.state is State.STARTING and view.step == "main"

    def _settle(self, found: Settled) -> None:
        for name, (outcome, message) in found.items():
            self.open.remove(name)
            if name in self._returning:
                before = self._settled[name][1]
                outcome, message = "rolled_back", before if outcome == "done" else f"{before}; then {message}"
            self._settled[name] = outcome, message

    def put_back(self, failed: dict[str, str], config: Config) -> None:
        """They have their old definitions again, and are followed until they are up."""
        for name, why in failed.items():
            self._settled[name] = "rolled_back", why
            self.open.discard(name)
            spec = config.services.get(name)
            if spec and not spec.schedule.given and name not in self._untouched:
                self._returning.add(name)
                self._follow(name)

    def _verdict(self, name: str, now: float) -> tuple[str, str] | None:
        """None: it goes on."""
        try:
            view = self._engine.view(name)
        except KeyError:
            return "done", "nothing of it is left"
        if view.live and view.state is State.FATAL:
            return "failed", view.reason
        if name in self._stopping - self._returning and not view.wanted:
            return None
        if view.state is State.STOPPING or view.replacing:
            return None
        if not view.wanted:
            return "done", "stopped meanwhile"
        # What the update has brought down began anew, from zero failures: an end that was asked for is none.
        if view.failures or view.restarts > self._restarts[name] or view.state is State.BACKOFF:
            return "failed", view.last_exit.words if view.last_exit else view.reason
        if view.due:
            return "done", ""
        if view.state in (State.STOPPED, State.FATAL):
            return "failed", view.reason
        if view.state is State.EXITED:
            return ("done" if view.succeeded else "failed"), view.reason
        if not view.ready:
            return None
        if view.incarnation <= self._serving[name]:
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
