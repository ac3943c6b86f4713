"""`holdfast update` and HUP: the file is read again, and what it changes is done.

Order: 1. the file is read and checked, in a thread; 2. what differs is found; until here everything can be refused, and
nothing has changed; 3. accepted.json is replaced by rename: from here on a supervisor that starts follows the new plan;
4. the engine takes it.  A supervisor that is killed before 3 leaves the old plan, after it the new one: what runs with
another definition than the accepted one is found out by the next (Record.definition), and replaced.
5. Each service that starts is followed until it is up or has failed; with `rollback`, one that fails is put back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from holdfast.config.diff import changes, fixed
from holdfast.config.errors import ConfigError
from holdfast.config.load import load
from holdfast.config.model import Config, Service, encode
from holdfast.engine.graph import Graph

from .place import ACCEPTED
from .status import UpdateStatus
from .store import write_by_rename
from .trial import Trial
from .upgrade import Refused

if TYPE_CHECKING:
    from .supervisor import Supervisor

LOOK_PAUSE = 0.02  # seconds between two looks at services that are followed: many of them change at once


class BadFile(Refused):
    """The file cannot be used; the text has every mistake of it."""


class Updates:
    """The updates of one supervisor.  For the loop's thread."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._busy = ""  # by whom: until it is accepted, and with `rollback` until everything is proved

    def hang_up(self) -> None:
        """HUP: nobody waits for the answer, the events tell."""

        async def update() -> None:
            manager = self._supervisor.manager
            while self._supervisor.state == "adopting":  # it is not ready yet, and knows not what there is to change
                await self._supervisor.changed()
            manager.reloading()
            try:
                with suppress(Refused):
                    await self.update(wait=False, peer="SIGHUP")
            finally:
                manager.ready()

        self._supervisor.run_task(update())

    async def update(
        self, *, dry_run: bool = False, rollback: bool = False, wait: bool = True, timeout: float | None = None,
        peer: object,
    ) -> UpdateStatus:  # fmt: skip
        """Read the file and do what it changes.  Refused, BadFile, or cancelled before it is accepted: nothing has
        changed.  Cancelled, or timed out, later: only the waiting ends."""
        events = self._supervisor.events
        events.add("asked", f"to {'show an update' if dry_run else 'update'} ({peer})")
        try:
            trial = await self._begin(dry_run, rollback, peer)
        except Refused as error:
            for line in str(error).splitlines():
                events.add("refused", f"to update: {line}")
            raise
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout if wait else 0):
                await trial.over.wait()
        return trial.status("timed_out" if wait else "asked", dry_run)

    async def _begin(self, dry_run: bool, rollback: bool, peer: object) -> Trial:
        """Everything up to the point from which it goes on by itself."""
        supervisor = self._supervisor
        if self._busy:
            raise Refused(f"another update is under way ({self._busy})")
        self._busy, followed = str(peer), False
        try:
            self._refuse_unless_running()
            config = await asyncio.to_thread(_read, supervisor.config)
            self._refuse_unless_running()  # it has taken its time
            if words := fixed(supervisor.config, config):
                text = f"{words[0]}: that cannot change while it runs; `holdfast down`, then `holdfast up`"
                raise Refused(text)
            if refused := supervisor.resources.refused(config):
                raise Refused("\n".join(refused))
            trial = Trial(supervisor.engine, supervisor.config, config, changes(supervisor.config, config), rollback)
            if dry_run or config == supervisor.config:
                trial.over.set()
                return trial
            try:
                self._accept(config, str(peer))
            except OSError as error:
                raise Refused(f"the new configuration cannot be written: {error}") from None
            trial.begin()
            for change in trial.changes:
                supervisor.events.add("updated", str(change), change.service)
            followed = rollback
            supervisor.run_task(self._follow(trial))
            return trial
        finally:
            if not followed:
                self._busy = ""

    def _refuse_unless_running(self) -> None:
        supervisor = self._supervisor
        if supervisor.state != "running" or supervisor.left.done() or supervisor.engine.closing:
            raise Refused(f"the supervisor is {supervisor.state}, or about to leave")

    def _accept(self, config: Config, by: str) -> None:
        """OSError: it could not be written, and nothing has changed."""
        write_by_rename(os.path.join(config.supervisor.run_dir, ACCEPTED), encode(config))
        self._supervisor.take(config, by)

    async def _follow(self, trial: Trial) -> None:
        supervisor = self._supervisor
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        try:
            while trial.open:
                now = loop.time()
                settled = trial.look(now)
                if settled:
                    quiet_since = now
                elif now > quiet_since + trial.patience:
                    settled = trial.give_up()
                    quiet_since = now
                failed = {name: why for name, (outcome, why) in settled.items() if outcome == "failed"}
                if failed and trial.rollback:
                    self._put_back(trial, failed)
                    continue  # one that has never stopped is there already
                if trial.open:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(trial.next_look, quiet_since + trial.patience) - now):
                            await supervisor.changed()
                    await asyncio.sleep(LOOK_PAUSE)
        finally:
            if trial.rollback:
                self._busy = ""
            trial.over.set()

    def _put_back(self, trial: Trial, failed: dict[str, str]) -> None:
        """To their old definitions; all of the update, where the plan would not hold together with only these."""
        supervisor, old = self._supervisor, trial.old
        services = dict(supervisor.config.services)
        for name in failed:
            if name in old.services:
                services[name] = old.services[name]
            else:
                del services[name]
        groups = {name: tuple(filter(services.__contains__, group)) for name, group in supervisor.config.groups.items()}
        config = msgspec.structs.replace(supervisor.config, services=services, groups=groups)
        if not _hold_together(services):  # an old requirement is gone, or a new service is required
            config = old
            failed = {**{change.service: "goes with what was put back" for change in trial.changes}, **failed}
        try:
            self._accept(config, "rolled back")
        except OSError as error:
            supervisor.events.add("error", f"what has failed cannot be put back: {error}")
            return
        trial.put_back(failed, config)
        for name, why in failed.items():
            supervisor.events.add("rolled_back", why, name)


def _hold_together(services: Mapping[str, Service]) -> bool:
    """Whether these could have come from one file."""
    try:
        Graph(services)
    except ValueError:
        return False
    return not any(services[name].schedule.given for spec in services.values() for name in spec.requires)


def _read(accepted: Config) -> Config:
    """The file as it is now, with `${VAR}` of the supervisor's own environment, which is that of `holdfast up`."""
    try:
        config = load(accepted.path, environ=os.environ)
    except ConfigError as error:
        raise BadFile(str(error)) from None
    if accepted.run_dir_given:
        places = msgspec.structs.replace(config.supervisor, run_dir=accepted.supervisor.run_dir)
        config = msgspec.structs.replace(config, supervisor=places, run_dir_given=True)
    return config
