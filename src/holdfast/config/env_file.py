"""Files of environment variables, as `env_file` names them: what systemd and the readers of `.env` agree on.

Comes in: a path.  Goes out: names and values, or an EnvFileError with file and line; never a value, which may be a
secret.  Read at each start, never when the configuration is.
"""

from __future__ import annotations

import re

from .errors import Wrong
from .files import Untrusted, read
from .forms import OWN_VARIABLES

ENV_FILE_MAX = 1024 * 1024  # bytes; execve takes about two of these for everything

NEWLINE = "\n"
_BLANK = re.compile(r"[ \t]*(?:[#;][^\n]*)?(?:\n|$)")
_NAME = re.compile(r"[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)
_PLAIN = re.compile(r"([^\n]*)")
_COMMENT = re.compile(r"(^|[ \t])#")
_ESCAPE = re.compile(r"\\(.)", re.S)
_ESCAPED = '"\\$`'


class EnvFileError(OSError):
    """The file cannot be used; str() says which, where and why.  `errno`: None where it was read and is wrong."""

    def __init__(self, where: str, why: str, errno: int | None = None) -> None:
        super().__init__(errno, f"env_file {where}: {why}")

    def __str__(self) -> str:
        return str(self.strerror)


def read_env_file(path: str) -> dict[str, str]:
    """The variables of a file; of two of a name the last.  EnvFileError.  Any thread."""
    try:
        text = read(path, ENV_FILE_MAX).decode("utf-8-sig")
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise EnvFileError(path, why, error.errno) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise EnvFileError(f"{path}:{line}", "is not UTF-8") from None
    except Untrusted as error:
        raise EnvFileError(path, str(error)) from None
    return _parse(text.replace("\r\n", "\n"), path)


def _parse(text: str, path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    try:
        while at < len(text):
            if blank := _BLANK.match(text, at):
                at = blank.end()
                continue
            start = _NAME.match(text, at)
            if start is None:
                raise Wrong("is not NAME=VALUE: a name has letters, digits and _, and nothing before it")
            found[start[1]], end = _value(start[1], text, start.end())
            rest = _BLANK.match(text, end)
            if rest is None:
                raise Wrong(f"something stands behind the quotation of {start[1]}")
            at = rest.end()
    except Wrong as wrong:
        raise EnvFileError(f"{path}:{text.count(NEWLINE, 0, at) + 1}", wrong.message) from None
    return found


def _value(name: str, text: str, at: int) -> tuple[str, int]:
    """The value that begins there, and where it ends."""
    if name in OWN_VARIABLES:
        raise Wrong(f"{name} is set by the supervisor itself")
    quote = text[at : at + 1]
    whole = {"'": _SINGLE, '"': _DOUBLE}.get(quote, _PLAIN).match(text, at)
    if whole is None:
        raise Wrong(f"the quotation of {name} has no end")
    if "\0" in whole[0]:
        raise Wrong(f"the value of {name} contains a NUL byte, which no program can be given")
    value = whole[1]
    if quote == '"':
        if set(_ESCAPE.findall(value)) - set(_ESCAPED):
            known = " ".join(_ESCAPED)
            raise Wrong(f"{name}: in double quotes a backslash stands before {known} alone; single quotes take any")
        value = _ESCAPE.sub(r"\1", value)
    elif quote != "'":
        value = value.rstrip(" \t")
        if "\\" in value or _COMMENT.search(value):
            raise Wrong(f"{name} has a backslash or a comment, which readers differ about: put the value in quotes")
    return value, whole.end()
