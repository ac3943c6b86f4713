"""What services may use: the cgroups of their incarnations, from before the start until nothing is left in them.

An incarnation's directories are written down (store.py, `N.cgroup`) before they are made, so each supervisor that comes
later finds them, whatever cgroup it is in itself, and removes what is left.  A service without `resources` has none.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from holdfast.config.model import Config, Service
from holdfast.engine.events import OUT_OF_MEMORY, Exit
from holdfast.engine.table import State

from .cgroup_files import LIMITS, Cgroups, asked, words
from .cgroups import Ground, find, refused, remove
from .oom import OomWatch
from .processes import Table, name_of
from .status import ResourceLimit, ResourceStatus
from .store import write_by_rename

if TYPE_CHECKING:
    from .copy import Copy
    from .supervisor import Supervisor

SIGKILL = 9
OOM_AGE = 2.0  # seconds for the report of an end to follow the kill that made it
REMOVE_PAUSE = 0.5  # seconds until a directory is tried again that somebody is still in
RLIMIT = "rlimit data of each process"
NOT_HELD = "not held"
NONE = Cgroups()


class ResourceError(OSError):
    """Says it in words that need no number."""

    def __str__(self) -> str:
        return self.strerror or ""


class Resources:
    """The cgroups of one supervisor's services; `len`: descriptors that it has for them.  For the loop's thread."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._ground: Ground | None = None
        self._parents: set[str] = set()  # of directories that there were: they are to go in the end
        self._cgroups: dict[tuple[str, int], Cgroups] = {}
        self._kills: dict[tuple[str, int], tuple[int, float]] = {}  # how many that are known of, and since when
        self._watch = OomWatch(self.look)

    def __len__(self) -> int:
        return len(self._watch)

    @property
    def ground(self) -> Ground:
        """Found when it is needed for the first time: until then nothing is made, and nobody moved."""
        if self._ground is None:
            self._ground = find(self._supervisor.around.run_dir, self._ours)
            self._parents.update(self._ground.parents)
            for parent in self._ground.parents:
                for entry in os.scandir(parent):
                    if entry.is_dir():
                        with suppress(OSError):  # somebody is in it
                            remove(entry.path)  # left by one whose run directory is gone
        return self._ground

    def _ours(self) -> Collection[int]:
        """Ourselves, our anchor, and what is below it."""
        above = self._supervisor.anchor_pid or os.getpid()
        return {os.getpid(), above, *Table().below(above)}

    def refused(self, config: Config) -> list[str]:
        """What a configuration asks for and cannot have."""
        if all(spec.resources is None for spec in config.services.values()):
            return []
        return refused(config, self.ground)

    # ---- an incarnation

    def prepare(self, spec: Service, incarnation: int) -> tuple[Service, Cgroups]:
        """Make its directories, with the limits in force, and what is to be started in them.  OSError."""
        limits = spec.resources
        if limits is None:
            self._cgroups[spec.name, incarnation] = NONE
            return spec, NONE
        if self._ground and not all(map(os.path.isdir, self._ground.parents)):
            self._ground = None  # somebody has tidied up
        missing = self.ground.missing(limits)
        if missing and not limits.optional:
            name, why = next(iter(missing.items()))
            raise ResourceError(errno.ENOTSUP, f"{words(name, asked(limits)[name])} cannot be had: {why}")
        name = f"{spec.name}@{incarnation}"
        cgroups = Cgroups(os.path.join(parent, name) for parent in self.ground.parents)
        if inside := cgroups.pids():  # of a supervisor that has lost its run directory
            text = f"there is somebody in {cgroups[0]} already: {name_of(inside[0]) or '?'} {inside[0]}"
            raise ResourceError(errno.EBUSY, text)
        if cgroups:
            path = self._supervisor.store.cgroup(spec.name, incarnation)
            write_by_rename(path, "".join(f"{each}\n" for each in cgroups).encode())
        self._cgroups[spec.name, incarnation] = cgroups
        for directory in cgroups:
            try:
                os.mkdir(directory)
            except FileExistsError:
                remove(directory)
                os.mkdir(directory)
        for limit, value in asked(limits).items():
            self._set(cgroups, limit, value, limits.optional)
        if limits.memory_max and not cgroups.where("memory_max"):
            soft, hard = (min(each if each >= 0 else limits.memory_max, limits.memory_max)
                          for each in spec.rlimits.get("data", (-1, -1)))  # fmt: skip
            spec = msgspec.structs.replace(spec, rlimits={**spec.rlimits, "data": (soft, hard)})
        return spec, cgroups

    def _set(self, cgroups: Cgroups, limit: str, value: float | None, optional: bool) -> None:
        try:
            cgroups.set(limit, value)
        except OSError as error:
            if optional:
                return
            what = words(limit, value) if value is not None else limit
            raise ResourceError(error.errno, f"{what} cannot be set: {error.strerror}") from None

    def apply(self, name: str) -> None:
        """The limits of a service that runs have changed."""
        spec = self._supervisor.config.services[name]
        if spec.resources is None:
            return
        limits = {**dict.fromkeys(LIMITS), **asked(spec.resources)}
        for copy in self._supervisor.all_copies():
            if copy.name != name:
                continue
            cgroups = self.of(name, copy.incarnation)
            for limit, value in limits.items():
                if value is None and not cgroups.where(limit):
                    continue
                try:
                    self._set(cgroups, limit, value, False)
                except OSError as error:
                    self._supervisor.events.add("error", error.strerror or "", name, copy.incarnation)

    def of(self, name: str, incarnation: int) -> Cgroups:
        """Its directories; none where it has none."""
        key = name, incarnation
        if key not in self._cgroups:
            self._cgroups[key] = self._supervisor.store.cgroups(name, incarnation)
        return self._cgroups[key]

    def hold(self, copy: Copy) -> None:
        """It lives, and is ours from now on: hear of kills for want of memory."""
        cgroups = self.of(copy.name, copy.incarnation)
        if cgroups:
            self._kills[copy.name, copy.incarnation] = cgroups.oom_kills() or 0, time.monotonic()
            self._watch.add((copy.name, copy.incarnation), cgroups)

    def remove(self, name: str, incarnation: int) -> None:
        """Nothing is left of it: what it has used is written down, and its directories go."""
        cgroups = self.of(name, incarnation)
        self._watch.drop((name, incarnation))
        self._kills.pop((name, incarnation), None)
        self._cgroups.pop((name, incarnation), None)
        if not cgroups:
            return
        used = {"memory_peak_bytes": cgroups.memory_peak(), "cpu_seconds": cgroups.cpu_seconds(),
                "oom_kills": cgroups.oom_kills()}  # fmt: skip
        known = {key: value for key, value in used.items() if value is not None}
        if known:
            self._supervisor.chronicle.used(name, incarnation, known)
        self._parents.update(map(os.path.dirname, cgroups))
        self._remove(cgroups, name, incarnation)

    def _remove(self, cgroups: Cgroups, name: str, incarnation: int, *, again: bool = True) -> None:
        try:
            for directory in cgroups:
                remove(directory)
        except OSError as error:
            if error.errno == errno.EBUSY and again:
                later = functools.partial(self._remove, cgroups, name, incarnation, again=False)
                self._loop.call_later(REMOVE_PAUSE, later)
            else:
                text = f"cannot remove its cgroup: {error}"
                self._supervisor.events.add("error", text, name, incarnation)

    # ---- kills for want of memory

    def look(self, name: str, incarnation: int) -> None:
        """Tell of those that are new."""
        known, _ = self._kills.get((name, incarnation), (0, 0.0))
        count = self.of(name, incarnation).oom_kills() or 0
        if count > known:
            self._kills[name, incarnation] = count, time.monotonic()
            text = f"{count - known} of its processes killed: {self._why(name, incarnation)}"
            self._supervisor.events.add("oom_kill", text, name, incarnation)

    def _why(self, name: str, incarnation: int) -> str:
        spec = self._supervisor.config.services.get(name)
        limit = spec.resources.memory_max if spec and spec.resources else None
        if limit is not None and self.of(name, incarnation).hit_memory_max():
            return f"{OUT_OF_MEMORY} ({words('memory_max', limit)})"
        return f"{OUT_OF_MEMORY} (not by a limit of its own)"

    def explained(self, name: str, incarnation: int, ended: Exit) -> Exit:
        """The same exit, with its cause where it was the kernel that has killed main."""
        if ended.signal != SIGKILL or self._is_being_stopped(name, incarnation):
            return ended
        known, since = self._kills.get((name, incarnation), (0, time.monotonic()))
        count = self.of(name, incarnation).oom_kills() or 0
        if count <= known and not (count and time.monotonic() - since < OOM_AGE):
            return ended
        self._kills[name, incarnation] = count, 0.0
        return replace(ended, cause=self._why(name, incarnation))

    def _is_being_stopped(self, name: str, incarnation: int) -> bool:
        """Then it may be our KILL."""
        with suppress(KeyError):
            view = self._supervisor.engine.view(name)
            return incarnation in view.retired or (
                view.incarnation == incarnation and view.state is State.STOPPING
            )
        return False

    # ---- for people

    def status(self, name: str, incarnation: int) -> ResourceStatus | None:
        """What it uses and how it is limited; None: it has no `resources`."""
        spec = self._supervisor.config.services.get(name)
        cgroups = self.of(name, incarnation)
        if not cgroups and not (spec and spec.resources):
            return None
        self.look(name, incarnation)
        limits = asked(spec.resources) if spec and spec.resources else {}
        return ResourceStatus(
            limits={limit: ResourceLimit(value, _held(limit, value, cgroups)) for limit, value in limits.items()},
            memory_bytes=cgroups.memory(),
            memory_peak_bytes=cgroups.memory_peak(),
            cpu_seconds=cgroups.cpu_seconds(),
            tasks=cgroups.tasks(),
            oom_kills=cgroups.oom_kills(),
            pressure=cgroups.pressure(),
        )

    def close(self) -> None:
        """Nothing is heard any more; our own directories go, unless there is somebody in them."""
        self._watch.close()
        for parent in self._parents:
            with suppress(OSError):
                os.rmdir(parent)


def _held(limit: str, value: float, cgroups: Cgroups) -> str:
    if limit == "memory_max" and not cgroups.where(limit):
        return RLIMIT
    return cgroups.held(limit, value) or NOT_HELD
