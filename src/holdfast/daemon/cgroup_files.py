"""Limits as the files of a cgroup have them, and what those files count.  Knows both versions and makes nothing.

A service has one directory in each hierarchy that is ours; whichever has a file is asked, so nobody has to remember of
which version it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from holdfast.config.model import Resources
from holdfast.config.units import percent_text, size_text

PERIOD = 100_000  # microseconds in which cpu_max is counted: the kernel's own choice
SHARES = 1024  # of version 1 are a weight of 100
PAGE = os.sysconf("SC_PAGE_SIZE")
PRESSURE = ("cpu", "memory", "io")


class Limit(NamedTuple):
    """A limit: its controller, and its file in version 2 and in version 1 ("": there is none)."""

    controller: str
    v2: str
    v1: str


LIMITS = {
    "memory_high": Limit("memory", "memory.high", ""),  # a soft limit is something else
    "memory_max": Limit("memory", "memory.max", "memory.limit_in_bytes"),
    "cpu_max": Limit("cpu", "cpu.max", "cpu.cfs_quota_us"),
    "cpu_weight": Limit("cpu", "cpu.weight", "cpu.shares"),
    "io_weight": Limit("io", "io.weight", ""),
    "pids_max": Limit("pids", "pids.max", "pids.max"),
}
CONTROLLERS = tuple(dict.fromkeys(each.controller for each in LIMITS.values()))


def asked(resources: Resources) -> dict[str, float]:
    """The limits that are given."""
    values = {name: getattr(resources, name) for name in LIMITS}
    return {name: value for name, value in values.items() if value is not None}


def words(name: str, value: float) -> str:
    """As in "memory_max 64MiB"."""
    if name.startswith("memory"):
        return f"{name} {size_text(int(value))}"
    return f"{name} {percent_text(value) if name == 'cpu_max' else int(value)}"


def text(name: str, value: float | None, version: int) -> str:
    """What is written into the file; None: the limit is taken away."""
    if name == "cpu_max":
        quota = None if value is None else round(value * PERIOD)
        return f"{quota or 'max'} {PERIOD}" if version == 2 else str(quota or -1)
    if name == "cpu_weight" and version == 1:
        return str(max(2, round((value or 100) * SHARES / 100)))
    if name in ("cpu_weight", "io_weight"):
        return f"{'default ' * (name == 'io_weight')}{value or 100:.0f}"
    if value is None:
        return "-1" if name == "memory_max" and version == 1 else "max"
    if name.startswith("memory"):  # as the kernel rounds it, which is how it is read back
        value -= value % PAGE
    return f"{value:.0f}"


def read(directory: str, file: str) -> str:
    """"" where there is no such file, or nothing to be read in it."""
    try:
        with open(os.path.join(directory, file), encoding="ascii", errors="replace") as opened:
            return opened.read()
    except OSError:
        return ""


def write(directory: str, file: str, value: str) -> None:
    """OSError, also where there is no such file: in one write, and nothing is made."""
    fd = os.open(os.path.join(directory, file), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


class Cgroups(tuple[str, ...]):
    """The directories of one incarnation, that of version 2 first; they may be gone, and then nothing is known."""

    def where(self, name: str) -> tuple[str, int] | None:
        """Directory and version of a limit; None: nothing here has it."""
        for directory in self:
            for version, file in ((2, LIMITS[name].v2), (1, LIMITS[name].v1)):
                # pids.max is in both: what a directory of version 2 has, one of version 1 has not.
                if file and os.path.exists(os.path.join(directory, file)):
                    return directory, version if LIMITS[name].v2 != LIMITS[name].v1 else _version(directory)
        return None

    def held(self, name: str, value: float) -> str:
        """How a limit is held, in words; "": it is not, here, or another is in force: the kernel has refused it."""
        directory, version = self.where(name) or ("", 0)
        lines = read(directory, _file(name, version)).splitlines() if version else []
        return f"cgroup v{version}" if lines[:1] == [text(name, value, version)] else ""

    def set(self, name: str, value: float | None) -> None:
        """Change a limit, or with None take it away.  OSError: it cannot be; nobody here has it."""
        directory, version = self.where(name) or ("", 0)
        write(directory, _file(name, version), text(name, value, version))

    def pids(self) -> list[int]:
        """Who is in it, or in one that it has made in it, as far as they have numbers here."""
        for directory in self:
            if found := [pid for path, _, _ in os.walk(directory) for pid in read(path, "cgroup.procs").split()]:
                return [int(pid) for pid in found if pid != "0"]
        return []

    # ---- what the kernel counts; None: it does not

    def memory(self) -> int | None:
        return self._number("memory.current", "memory.usage_in_bytes")

    def memory_peak(self) -> int | None:
        return self._number("memory.peak", "memory.max_usage_in_bytes")

    def tasks(self) -> int | None:
        """Processes and threads."""
        return self._number("pids.current")

    def cpu_seconds(self) -> float | None:
        used = self._field("cpu.stat", "usage_usec")
        if used is not None:
            return used / 1e6
        used = self._number("cpuacct.usage")
        return None if used is None else used / 1e9

    def oom_kills(self) -> int | None:
        """How many were killed because there was no memory: here, or of all the machine."""
        found = self._field("memory.events", "oom_kill")
        return self._field("memory.oom_control", "oom_kill") if found is None else found

    def hit_memory_max(self) -> bool:
        """Whether it was this limit that left no memory, ever."""
        return bool(self._field("memory.events", "oom") or self._number("memory.failcnt"))

    def pressure(self) -> dict[str, float]:
        """Percent of the last ten seconds in which something of it has waited, by what for."""
        return dict(self._pressures())

    def _pressures(self) -> Iterator[tuple[str, float]]:
        for what in PRESSURE:
            for line in self._text(f"{what}.pressure").splitlines():
                kind, average, *_ = line.split()
                if kind == "some":
                    yield what, float(average.removeprefix("avg10="))

    def _text(self, *files: str) -> str:
        return next((found for each in self for file in files if (found := read(each, file))), "")

    def _number(self, *files: str) -> int | None:
        found = self._text(*files).strip()
        return int(found) if found.isdecimal() else None

    def _field(self, file: str, name: str) -> int | None:
        for line in self._text(file).splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
        return None


def _file(name: str, version: int) -> str:
    return LIMITS[name].v2 if version == 2 else LIMITS[name].v1


def _version(directory: str) -> int:
    return 2 if os.path.exists(os.path.join(directory, "cgroup.controllers")) else 1
