"""What is wrong with a configuration, in a form that people and programs can read.  Standard library alone."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """One mistake.  str() is one line, as compilers write it."""

    file: str  # as it was given
    line: int  # 0: none
    service: str  # "": the whole file, or [supervisor]
    key: str  # dotted; "" for the file or the service as such
    message: str  # what is wrong
    hint: str = ""  # what was meant, or what to do

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        service = f" service {self.service}:" if self.service else ""
        key = f" {self.key}:" if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return printable(f"{where}:{service}{key} {self.message}{hint}")


class ConfigError(Exception):
    """The configuration cannot be used.  `errors` has every Problem of the file, in the order of its lines."""

    def __init__(self, errors: list[Problem]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


class Wrong(Exception):
    """Inside the loader: a value cannot be used.  Not for users of this package."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def printable(text: str) -> str:
    """The text without control characters: a file must not command the terminal that its mistakes are shown on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def one_line(value: object, limit: int = 60) -> str:
    """A value of the file as a message may show it: on one line, shortened, without control characters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{printable(value[:limit])}{"" if len(value) <= limit else "…"}"'
    if isinstance(value, int) and value.bit_length() > 64:  # TOML has none; Python refuses to print the largest
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
