"""What clients may ask of a supervisor: to look, and to act on names, patterns and single incarnations."""

from __future__ import annotations

import asyncio
import os
import signal as signals
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

from holdfast.engine import events as ev
from holdfast.engine.outcome import outcome
from holdfast.engine.service import ServiceView
from holdfast.process.options import SCOPE, signal_number

from .copy import Copy
from .events import EventLog, Ring
from .logs import LogReader
from .names import StillAdopting, UnknownService, matching
from .processes import Table
from .reload import Reloads
from .show import service_status, signal_name, supervisor_status
from .status import (
    Ancestry,
    HistoryRecord,
    Left,
    LineageRecord,
    Outcome,
    ServiceStatus,
    SupervisorStatus,
    UpdateStatus,
    UpgradeStatus,
)
from .supervisor import Supervisor
from .tree import ancestry
from .upgrade import Refused, Upgrade, promise_to_keep, running

Verb = Literal["start", "stop", "restart"]
ASKED: dict[Verb, type[ev.StartAsked | ev.StopAsked | ev.RestartAsked]] = {
    "start": ev.StartAsked,
    "stop": ev.StopAsked,
    "restart": ev.RestartAsked,
}


class Commands:
    """A supervisor's counter.  For the loop's thread.  UnknownService, ValueError, StillAdopting: nothing was done.

    While the supervisor adopts there are the overview, the events, and the end of everything to ask for."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._reloads = Reloads(supervisor)

    # ---- looking

    @property
    def events(self) -> EventLog:
        return self._supervisor.events

    def overview(self) -> SupervisorStatus:
        return supervisor_status(self._supervisor)

    def services(self, patterns: Iterable[str] = ()) -> list[ServiceStatus]:
        """The state of those that match, in start order; all without patterns."""
        self._adoption_is_over()
        table = Table()
        names = matching(self._supervisor.engine.order, patterns, self._supervisor.config.groups)
        return [self._status(name, table) for name in names]

    def service(self, name: str) -> ServiceStatus:
        self._known(name)
        return self._status(name, Table())

    def log_reader(self, name: str) -> LogReader:
        self._known(name)
        return LogReader(os.path.join(self._supervisor.config.supervisor.log_dir, name))

    def tree(self, name: str) -> Ancestry:
        """Who of it lives, and how each came to be."""
        self._known(name)
        return ancestry(self._supervisor, name)

    def lineage(self, name: str) -> AbstractContextManager[tuple[Ring[LineageRecord], str]]:
        """The records of its lineage, which are made as long as this is open, and who tells."""
        self._known(name)
        return self._supervisor.lineage.following(name)

    async def history(self, patterns: Iterable[str], limit: int) -> list[HistoryRecord]:
        """The last `limit` rows of those that match (`web*`, `web@41`), past services too.  OSError: unreadable."""
        return await self._supervisor.chronicle.read(patterns, limit)

    def _adoption_is_over(self) -> None:
        if self._supervisor.state == "adopting":
            raise StillAdopting(self._supervisor.adopted, self._supervisor.found)

    def _known(self, name: str) -> None:
        self._adoption_is_over()
        order = self._supervisor.engine.order
        if name not in order:
            raise UnknownService(name, order, self._supervisor.config.groups)

    def _status(self, name: str, table: Table) -> ServiceStatus:
        return service_status(self._supervisor, name, table)

    # ---- acting

    async def command(
        self, verb: Verb, names: Sequence[str], *, wait: bool, timeout: float | None, peer: object
    ) -> list[Outcome]:
        """start, stop or restart; with wait, return when each has got there or cannot, or after timeout seconds.

        May be cancelled, and `timed_out` is no end either: what was asked for goes on.
        """
        engine = self._supervisor.engine
        meant = self._resolve(names)
        gone = [name for name, incarnation in meant if engine.is_gone(name, incarnation)]
        asked = tuple((name, incarnation) for name, incarnation in meant if name not in gone)
        before = {name: engine.view(name) for name, _ in asked}
        if asked:
            self._tell(verb, asked, peer)
            self._supervisor.post(ASKED[verb](asked, str(peer)))
        late = await self._wait(verb, before, timeout) if wait else set()
        table = Table()
        answers = []
        for name, incarnation in meant:
            came_of_it = self._outcome(verb, before[name]) if name in before else None
            if came_of_it == "forgotten":
                answers.append(Outcome(name, "done", "not in the configuration any more", None))
                continue
            status = self._status(name, table)
            if name in gone:
                answers.append(_gone(status, incarnation))
            elif name in late:
                answers.append(Outcome(name, "timed_out", f"still {status.state}: {status.reason}", status))
            else:
                answers.append(Outcome(name, came_of_it or "asked", status.reason, status))
        return answers

    def send_signal(self, names: Sequence[str], signal: int | str, scope: str, *, peer: object) -> list[Outcome]:
        """Send a signal to services that run: to the main process, its group or the whole tree."""
        number = signal_number(signal)
        if scope not in SCOPE:
            raise ValueError(f"scope must be main, group or tree, not {scope!r}")
        table = Table()
        answers = []
        for name, incarnation in self._resolve(names):
            copy = self._supervisor.copies.get(name)
            status = self._status(name, table)
            if incarnation is not None and status.incarnation != incarnation:
                answers.append(_gone(status, incarnation))
            elif copy is None:
                unreached = self._supervisor.unreached.get(name)
                why = f"it is held by {unreached}" if unreached else f"nothing of it runs: it is {status.state}"
                answers.append(Outcome(name, "refused", why, status))
            elif refused := _refused_signal(copy, number, scope):
                answers.append(Outcome(name, "refused", refused, status))
            else:
                self.events.add("signal", f"{signal_name(number)} to its {scope} ({peer})", name, copy.incarnation)
                to = "" if scope == "main" else f" to its {scope}"
                answers.append(Outcome(name, "done", f"{signal_name(number)} was sent{to}", status))
        return answers

    async def reload(self, names: Sequence[str], *, peer: object) -> list[Outcome]:
        """Run the reload_command of services that run; return when each is done.  As `command`: may be cancelled."""
        refused: dict[str, tuple[str, str]] = {}
        asked = []
        for name, incarnation in self._resolve(names):
            if incarnation is not None and self._supervisor.engine.is_gone(name, incarnation):
                refused[name] = "gone", f"incarnation {incarnation} is gone"
            elif why := self._reloads.refusal(name):
                refused[name] = "refused", why
            else:
                asked.append(name)
        self._tell("reload", tuple((name, None) for name in asked), peer)
        said = dict(zip(asked, await asyncio.gather(*map(self._reloads.reload, asked)), strict=True))
        table = Table()
        answers = []
        for name in (each for each in self._supervisor.engine.order if each in refused or each in said):
            outcome, text = refused.get(name) or ("done" if said[name][0] else "failed", said[name][1])
            answers.append(Outcome(name, outcome, text, self._status(name, table)))
        return answers

    def shut_down(self, *, peer: object) -> None:
        """Begin to stop everything; returns at once."""
        self.events.add("asked", f"to stop everything ({peer})")
        self._supervisor.shut_down(str(peer))
        self._supervisor.remind_anchor()

    def leave(self, *, peer: object) -> Left:
        """End, and leave the services running.  upgrade.Refused."""
        self._adoption_is_over()
        supervisor = self._supervisor
        self.events.add("asked", f"to end and leave the services running ({peer})")
        promise_to_keep(supervisor)
        names = running(supervisor)
        if not supervisor.left.done():
            supervisor.left.set_result(None)
            supervisor.remind_anchor(signals.SIGQUIT)
        policies = {name: supervisor.on_owner_loss(name) for name in names}
        return Left(len(names), {name: what for name, what in policies.items() if what != "keep"})

    async def update(
        self, *, dry_run: bool, rollback: bool, wait: bool, timeout: float | None, peer: object
    ) -> UpdateStatus:
        """Read the file again, and do what it changes.  update.BadFile, upgrade.Refused, or cancelled before it is
        accepted: nothing has changed."""
        self._adoption_is_over()
        return await self._supervisor.updates.update(
            dry_run=dry_run, rollback=rollback, wait=wait, timeout=timeout, peer=peer
        )

    async def upgrade(self, *, peer: object) -> UpgradeStatus:
        """Make way for the version that is installed now.  upgrade.Refused, or cancelled: nothing has changed."""
        self._adoption_is_over()
        supervisor = self._supervisor
        self.events.add("asked", f"to upgrade ({peer})")
        upgrade = Upgrade(supervisor)
        try:
            await upgrade.prepare()
        except Refused as error:
            self.events.add("refused", f"to upgrade: {str(error).splitlines()[-1]}")  # of a traceback, what it comes to
            raise
        except asyncio.CancelledError:
            self.events.add("refused", "to upgrade: given up while the next version was tried")
            raise
        upgrade.begin()
        return UpgradeStatus(supervisor.version, upgrade.next_version, len(running(supervisor)), self.events.last)

    # ---- parts of them

    def _resolve(self, given: Sequence[str]) -> list[tuple[str, int | None]]:
        """`web`, `web*`, `group:web*`, `web@41` to names, in start order, and the incarnations that are meant."""
        self._adoption_is_over()
        order = self._supervisor.engine.order
        meant: dict[str, int | None] = {}
        for text in given:
            pattern, at, number = text.partition("@")
            if at and not (number.isascii() and number.isdecimal()):
                raise ValueError(f"{text!r}: after the @ stands the number of an incarnation, as status shows it")
            for name in matching(order, [pattern], self._supervisor.config.groups):
                meant[name] = int(number) if at else None
        return [(name, meant[name]) for name in order if name in meant]

    def _tell(self, verb: str, asked: tuple[tuple[str, int | None], ...], peer: object) -> None:
        for name, _ in asked:
            incarnation = self._supervisor.engine.view(name).incarnation
            self.events.add("asked", f"to {verb} ({peer})", name, incarnation or None)

    async def _wait(self, verb: Verb, before: dict[str, ServiceView], timeout: float | None) -> set[str]:
        """Those that were not done at the timeout."""
        open_ = set(before)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    open_ -= {name for name in open_ if self._outcome(verb, before[name])}
                    if not open_:
                        break
                    await self._supervisor.changed()
        except TimeoutError:
            pass
        return open_

    def _outcome(self, verb: Verb, before: ServiceView) -> str | None:
        try:
            now = self._supervisor.engine.view(before.name)
        except KeyError:
            return "forgotten"  # it was in no configuration any more, and its tree is empty
        return outcome(verb, before, now)


def _refused_signal(copy: Copy, number: int, scope: str) -> str:
    """Send it; why that could not be done, of this one: the others get theirs."""
    try:
        copy.tree.signal(number, scope)
    except BlockingIOError:
        return "its keeper does not answer"
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


def _gone(status: ServiceStatus, incarnation: int | None) -> Outcome:
    message = f"incarnation {incarnation} is gone: the last one is {status.incarnation}"
    return Outcome(status.name, "gone", message, status)
