"""On which line of a TOML file a key stands, for messages: tomllib does not say.

A small scan of a text that tomllib has accepted.  It knows strings, comments, brackets and dotted keys; where it does
not understand something it only misses a line, and the line of the table is used instead.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str, ...]

_PART = r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'"""
_KEY = rf"(?:{_PART})(?:[ \t]*\.[ \t]*(?:{_PART}))*"
_TOKEN = re.compile(
    rf"""(?P<header>(?<![^\n])[ \t]*\[\[?[ \t]*(?P<table>{_KEY})[ \t]*\]\]?)
    |(?P<skip>[ \t\r]+|\#[^\n]*)
    |(?P<newline>\n)
    |(?P<key>(?P<name>{_KEY})[ \t]*=)
    |(?P<string>\"\"\"(?:[^\\]|\\.)*?\"{{3,5}}|'''.*?'{{3,5}}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')
    |(?P<open>[\[{{])|(?P<close>[\]}}])|(?P<comma>,)
    |(?P<other>[^\s\[\]{{}},\#"'=]+|.)""",
    re.X | re.S,
)


def _parts(key: str) -> Path:
    names = re.findall(_PART, key)
    return tuple(tomllib.loads(f"x = {each}")["x"] if each[0] in "\"'" else each for each in names)


def lines(text: str) -> dict[Path, int]:
    """Every table and key of the text with the line where it is first named."""
    found: dict[Path, int] = {}
    table: Path = ()
    nested: list[Path | None] = []  # open brackets: the key of an inline table, None for an array
    current: Path = ()
    line = 1
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "header" and not nested:
            current = table = _note(found, (), _parts(token["table"]), line)
        elif kind == "header":  # an array within an array, at the beginning of a line
            nested += [None] * (token[0].count("[") - token[0].count("]"))
        elif kind == "key":
            base = next((each for each in reversed(nested) if each is not None), table)
            current = _note(found, base, _parts(token["name"]), line)
        elif kind == "open":
            nested.append(current if token[0] == "{" else None)
        elif kind == "close" and nested:
            nested.pop()
        line += token[0].count("\n")
    return found


def _note(found: dict[Path, int], base: Path, parts: Path, line: int) -> Path:
    for end in range(1, len(parts) + 1):
        found.setdefault(base + parts[:end], line)
    return base + parts


def line_of(found: dict[Path, int], path: Path) -> int:
    """The line of the key, else of the nearest table around it; 0 when there is none."""
    while path:
        if path in found:
            return found[path]
        path = path[:-1]
    return 0
