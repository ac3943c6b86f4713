"""What can be known from outside: the services' own files, their logs, what the supervisor said, what is alive.

`gather` reads it; the invariants look at nothing else, so a test can hand them a world that is wrong.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

Life = tuple[str, int]  # service, incarnation

class Birth(NamedTuple):
    incarnation: int
    pid: int
    start: int


@dataclass
class Facts:
    kinds: dict[str, str]  # service -> kind
    births: dict[str, list[Birth]] = field(default_factory=dict)
    ends: dict[Life, str] = field(default_factory=dict)  # "exit 3", "term": said by the service itself
    doubles: list[str] = field(default_factory=list)
    counts: dict[Life, int] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)  # the files of each, oldest first
    told: dict[Life, str] = field(default_factory=dict)  # exits as the history tells them
    alive: dict[str, list[Birth]] = field(default_factory=dict)
    status: dict[str, dict] = field(default_factory=dict)  # as the supervisor answers; empty: not asked
    left: list[str] = field(default_factory=list)  # processes after everything was stopped
    files: dict[str, list[str]] = field(default_factory=dict)  # in the run directory of each, after that
    # What the driver has done:
    killed: dict[Life, str] = field(default_factory=dict)  # its main process ("main") or keeper ("keeper")
    commands: Counter[str] = field(default_factory=Counter)  # stops and restarts that were asked for
    disk_full: set[Life] = field(default_factory=set)  # they lived while the disk was full
    disks_filled: int = 0
    owner_lost: int = 0  # kills of supervisors
    ended: bool = False  # everything was stopped in the end


def lines_of(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def births(directory: str, name: str) -> list[Birth]:
    return [Birth(*map(int, line.split())) for line in lines_of(f"{directory}/{name}.births")]


def ends(directory: str, name: str) -> dict[Life, str]:
    found = {}
    for line in lines_of(f"{directory}/{name}.ends"):
        number, _, how = line.partition(" ")
        found[name, int(number)] = how
    return found


def counts(directory: str, name: str) -> dict[Life, int]:
    try:
        with open(f"{directory}/{name}.counts", "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return {}
    numbers = struct.unpack(f"<{len(data) // 8}Q", data)
    return {(name, incarnation): count for incarnation, count in enumerate(numbers) if count}


def log_files(directory: str) -> list[str]:
    """Oldest first: numbered names, then `current`."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    numbered = sorted((name for name in names if name.isdecimal()), key=int)
    return [os.path.join(directory, name) for name in [*numbered, *(["current"] if "current" in names else [])]]


def log_lines(paths: list[str]) -> Iterator[str]:
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                yield line.rstrip("\n")


def told_in_history(text: str) -> dict[Life, str]:
    """Rows of `holdfast history --json`."""
    rows = json.loads(text)
    return {(row["service"], row["incarnation"]): row["cause"] or "runs" for row in rows if row["service"]}
