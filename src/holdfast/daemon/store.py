"""The run directory: what outlives the supervisor.

    services/NAME/record     what the engine wants remembered, written by rename before it is acted upon
    services/NAME/41.sock    where the keeper of incarnation 41 listens
    services/NAME/41.report  what that keeper wrote when it ended with nobody to tell
    services/NAME/41.members who keeper, main process and adopted members are (members.py): one line each
    services/NAME/41.ready   what that incarnation says of itself, or where its log began (hear.py)
    services/NAME/41.health  likewise
    services/NAME/41.watchdog  the time that it has given itself, if it has
    services/NAME/41.cgroup  its directories in the hierarchies of cgroups, if it has any: a line each
    boot                     the boot that all of this belongs to: after another one nothing of it is alive

Everything here is small and local; nothing is synced to disk, for what it describes ends with the machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping

import msgspec

from holdfast.config.diff import definition
from holdfast.config.model import Service
from holdfast.engine.effects import Record
from holdfast.process.address import remove

from .cgroup_files import Cgroups
from .members import Identity, decode, encode

BOOT_ID = "/proc/sys/kernel/random/boot_id"
HEARD = ("ready", "early", "health", "watchdog")
FILES = ("sock", "report", "members", "cgroup", *HEARD)  # of one incarnation


def write_by_rename(path: str, data: bytes) -> None:
    """Replace a file at once: a reader, or a supervisor after a kill, sees the old or the new one.  OSError."""
    temporary = path + ".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)  # half of it, on a full disk
        raise


class Store:
    """The files of one run directory.  For the supervisor's thread; every method may raise OSError."""

    def __init__(self, run_dir: str) -> None:
        self.path = run_dir
        self._services = os.path.join(run_dir, "services")
        self._known: set[str] = set()  # directories that are there: one mkdir a service, not one a start

    def outdated(self, services: Mapping[str, Service]) -> list[str]:
        """Those that run, by what is on record, with another definition than the given one."""
        if _read(os.path.join(self.path, "boot")) != (_read(BOOT_ID) or b"unknown\n"):
            return []
        found = []
        for name in filter(services.__contains__, self.names()):
            record = self.record(name)
            if record and record.live and record.definition not in ("", definition(services[name])):
                found.append(name)
        return found

    def begin(self) -> None:
        """Make the place ready; what an earlier boot left is removed."""
        boot = _read(BOOT_ID) or b"unknown\n"
        mark = os.path.join(self.path, "boot")
        known = _read(mark)
        if known != boot:
            if known is not None:  # without a mark nothing says that what is there is dead
                shutil.rmtree(self._services, ignore_errors=True)
            write_by_rename(mark, boot)
        os.makedirs(self._services, 0o700, exist_ok=True)

    def directory(self, name: str) -> str:
        """The directory of a service, made when it is not there."""
        path = f"{self._services}/{name}"
        if name not in self._known:
            os.makedirs(path, 0o700, exist_ok=True)
            self._known.add(name)
        return path

    def address(self, name: str, incarnation: int) -> str:
        return f"{self.directory(name)}/{incarnation}.sock"

    def report(self, name: str, incarnation: int) -> str:
        return f"{self.directory(name)}/{incarnation}.report"

    def heard(self, name: str, incarnation: int, what: str) -> str:
        return f"{self.directory(name)}/{incarnation}.{what}"

    def cgroup(self, name: str, incarnation: int) -> str:
        return os.path.join(self.directory(name), f"{incarnation}.cgroup")

    def cgroups(self, name: str, incarnation: int) -> Cgroups:
        """Its directories; none, where nothing is written down."""
        lines = os.fsdecode(_read(os.path.join(self._services, name, f"{incarnation}.cgroup")) or b"").splitlines()
        return Cgroups(line for line in lines if line.startswith("/"))

    def save(self, record: Record) -> None:
        data = msgspec.json.encode(record)
        try:
            write_by_rename(f"{self.directory(record.name)}/record", data)
        except FileNotFoundError:  # somebody has tidied up
            self._known.discard(record.name)
            write_by_rename(f"{self.directory(record.name)}/record", data)

    def names(self) -> list[str]:
        """Services that have left something.  What is no directory is somebody else's."""
        try:
            with os.scandir(self._services) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def record(self, name: str) -> Record | None:
        """What was saved last; None: nothing, or nothing that can be read (another version's, say)."""
        data = _read(os.path.join(self._services, name, "record"))
        if data is None:
            return None
        try:
            record = msgspec.json.decode(data, type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return record if record.name == name else None

    def save_members(self, name: str, incarnation: int, members: Iterable[Identity]) -> None:
        write_by_rename(f"{self.directory(name)}/{incarnation}.members", encode(members))

    def members(self, name: str, incarnation: int) -> list[Identity]:
        """Those that were saved, dead or alive; none: it never came to be, or nobody has written it down."""
        return decode(_read(os.path.join(self._services, name, f"{incarnation}.members")) or b"")

    def incarnations(self, name: str) -> list[int]:
        """Those that have left a socket, a report or members, newest first."""
        found = set()
        for entry in os.listdir(os.path.join(self._services, name)):
            stem, _, end = entry.partition(".")
            if end in FILES and stem.isdecimal():
                found.add(int(stem))
        return sorted(found, reverse=True)

    def forget_incarnation(self, name: str, incarnation: int) -> None:
        """Also what a keeper or a supervisor has left that was killed as it wrote: .41.report.1234, 41.members.new."""
        # Not by `directory`: that of a forgotten service is not made again.
        directory = f"{self._services}/{name}"
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.startswith((f"{incarnation}.", f".{incarnation}.")):
                remove(f"{directory}/{entry}")

    def forget(self, name: str) -> None:
        """Everything about a service that is not configured any more and does not run."""
        shutil.rmtree(os.path.join(self._services, name), ignore_errors=True)
        self._known.discard(name)


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
