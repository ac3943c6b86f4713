"""Where a socket listens: how the address is written, read and brought into its one form."""

from __future__ import annotations

import os
import socket

from .errors import Wrong, one_line
from .forms import Around, string
from .model import Key

LOOPBACK = "127.0.0.1"
FD_NAME_MAX = 128
PATH_MAX = 107  # bytes that the kernel takes for the path of a socket


def listen(value: object, _key: Key, around: Around) -> str:
    """A path, or "ADDRESS:PORT" with the address as the kernel writes it: equal ones are equal text."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise Wrong("must be a string, not an integer", f'"{value}"')
    text = string(value, around)
    if "/" in text:
        if not text.startswith("/"):
            raise Wrong("the path of a socket must be absolute", "/run/…")
        path = os.path.normpath(text)
        if len(os.fsencode(path)) > PATH_MAX:
            raise Wrong(f"is longer than the {PATH_MAX} bytes that the kernel takes for the path of a socket")
        return path
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise Wrong(f"{one_line(text)} is no address", 'such as "127.0.0.1:8080", "[::1]:8080" or "/run/web.sock"')
    return f"{_host(host) if colon else LOOPBACK}:{int(port)}"


def fd_name(value: object, _key: Key, around: Around) -> str:
    """A name for LISTEN_FDNAMES, where colons stand between names."""
    text = string(value, around)
    if not 0 < len(text) <= FD_NAME_MAX or not text.isascii() or not text.isprintable() or ":" in text:
        raise Wrong(f"{one_line(text)} is no name", f"up to {FD_NAME_MAX} ASCII characters, no colon")
    return text


def _host(text: str) -> str:
    family, bare = socket.AF_INET, text
    if text.startswith("[") and text.endswith("]"):
        family, bare = socket.AF_INET6, text[1:-1]
    try:
        plain = socket.inet_ntop(family, socket.inet_pton(family, bare))
    except (OSError, ValueError):
        hint = f"[{text}]" if ":" in text else f'"{LOOPBACK}" is this machine alone, "0.0.0.0" and "[::]" everybody'
        raise Wrong(f"{one_line(text)} is no address of a machine: names are not looked up", hint) from None
    return plain if family == socket.AF_INET else f"[{plain}]"
