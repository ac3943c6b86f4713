"""The files of a configuration: the one that is named, and those in `conf.d` beside it; and where in them things stand.

Comes in: a path.  Goes out: texts as tomllib reads them, and a Problem for each that it cannot read.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from typing import Any, NamedTuple

from . import positions
from .errors import Problem
from .files import Untrusted, read

DIRECTORY = "conf.d"

Path = tuple[str, ...]  # the tables and keys that lead to a place


class Source:
    """One file that is TOML.  `is_main`: it is the one that was named."""

    def __init__(self, path: str, text: str, data: dict[str, Any], is_main: bool) -> None:
        self.path = path
        self.text = text
        self.data = data
        self.is_main = is_main

    @functools.cached_property
    def lines(self) -> dict[Path, int]:
        return positions.lines(self.text)  # only for messages

    def where(self, path: Path) -> str:
        """`holdfast.toml:12`, of a table or key."""
        return f"{self.path}:{positions.line_of(self.lines, path)}"


class At(NamedTuple):
    """A place in a file: the tables and keys that lead to it."""

    source: Source
    path: Path
    service: str = ""

    def __truediv__(self, key: str) -> At:
        return self._replace(path=(*self.path, key))

    @property
    def key(self) -> str:
        """As a message names it, dotted; of a service, below its table."""
        return ".".join(self.path[2:] if self.service else self.path)

    @property
    def where(self) -> str:
        """`holdfast.toml:12`."""
        return self.source.where(self.path)


def read_all(path: str) -> tuple[list[Source], list[Problem]]:
    """The file first, then those of conf.d by name.  Without the file itself the others mean nothing."""
    sources: list[Source] = []
    problems: list[Problem] = []
    _read(path, True, sources, problems)
    if sources:
        directory = os.path.join(os.path.dirname(path), DIRECTORY)
        names: list[str] = []
        try:
            names = _names(directory, os.stat(path).st_uid)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, Untrusted) as error:
            problems.append(_unreadable(directory, "", error))
        for name in names:
            _read(os.path.join(directory, name), False, sources, problems)
    return sources, problems


def _names(directory: str, owner: int) -> list[str]:
    """Nobody names this directory, so it must be of those who could have written the main file or the program: beside
    a file in /tmp anybody can make one."""
    names = sorted(os.listdir(directory))
    for status in (os.lstat(directory), os.stat(directory)):  # the link, if it is one, and what it leads to
        if status.st_uid not in (0, os.geteuid(), owner):
            raise Untrusted(f"belongs to user {status.st_uid}, who has not written the file beside it")
    return [name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _read(path: str, is_main: bool, sources: list[Source], problems: list[Problem]) -> None:
    text = ""
    try:
        text = read(path).decode("utf-8-sig")
        sources.append(Source(path, text, tomllib.loads(text), is_main))
    except (OSError, Untrusted, ValueError, RecursionError) as error:
        problems.append(_unreadable(path, text, error))


def _unreadable(path: str, text: str, error: Exception) -> Problem:
    line, message, hint = 0, str(error), ""
    if isinstance(error, FileNotFoundError):
        message, hint = "there is no such file", "`holdfast init` writes one"
    elif isinstance(error, OSError):
        message = f"cannot be read: {error.strerror or error}"
    elif isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        message = f"is not UTF-8: byte 0x{error.object[error.start]:02x}"
    elif isinstance(error, RecursionError):
        message = "is nested too deeply"
    elif isinstance(error, ValueError):
        if found := re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message):
            line = int(found[1] or text.count("\n") + (not text.endswith("\n")))
            message = message[: found.start()] if found[1] else message[: found.start()] + " at the end of the file"
        if "twice" in message or "overwrite" in message:
            hint = "a table or a key of this name stands above"
        elif (
            line > 1 and (above := text.splitlines()[line - 2 : line - 1]) and above[0].count("{") > above[0].count("}")
        ):
            hint = "an inline table { … } stands on one line"
        message = f"is not TOML: {message[:1].lower()}{message[1:]}"
    return Problem(path, line, "", "", message, hint)
