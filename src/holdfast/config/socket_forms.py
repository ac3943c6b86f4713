"""Where a socket listens: how the address is written and brought into its one form; and what is wrong together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .errors import Wrong, one_line
from .forms import Around, string
from .model import BACKLOG, SOCKET_MODE, SOCKETS_MAX, Key, Service

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


SOCKET_FORMS: dict[str, Callable[[object, Key, Around], Any]] = {"listen": listen, "fd_name": fd_name}


def wrong_sockets(spec: Service) -> Iterator[tuple[str, str, str]]:
    """What is wrong with them, and with `restart_order`, though each value is right: key, message, hint."""
    if len(spec.sockets) > SOCKETS_MAX:
        yield "sockets", f"are {len(spec.sockets)}, {SOCKETS_MAX} are allowed", ""
    for each in spec.sockets:
        if each.type == "datagram" and each.backlog != BACKLOG:
            yield "sockets", f"{each.listen} has a backlog, and datagrams have no connections", "leave `backlog` out"
        if not each.listen.startswith("/") and each.mode != SOCKET_MODE:
            yield "sockets", f"{each.listen} has a mode, and only a unix socket has a file", "leave `mode` out"
    end = 3 + len(spec.sockets) + spec.fd_store_max
    for key, probe in (("ready", spec.ready), ("health", spec.health)):
        if probe is not None and probe.fd is not None and 3 <= probe.fd < end:
            message = f"its descriptor {probe.fd} is one that `sockets` or `fd_store_max` may take: 3 to {end - 1}"
            yield key, message, f"fd = {end}, or higher"
    if spec.restart_order == "start-first":
        if spec.ready and spec.ready.log is not None:
            message = "a line of `log` could be of the process that still serves, where restart_order is start-first"
            yield "ready", message, "notify, fd, tcp, http or command tells of the new one"
        if spec.type == "oneshot":
            hint = "leave `restart_order` out"
            yield "restart_order", "a oneshot has no successor that could be ready before it ends", hint
        elif steps := [step for step in ("pre_start", "post_stop") if getattr(spec, step)]:
            message = f"start-first cannot go with {' and '.join(steps)}: they would run while it serves"
            yield "restart_order", message, 'what they do can be done in `command`; or restart_order = "stop-first"'


def twice(services: Iterable[Service]) -> Iterator[tuple[str, str, str]]:
    """Addresses that more than one socket has: service, message, hint."""
    listening: dict[tuple[str, str], str] = {}
    for spec in services:
        for each in spec.sockets:
            if other := listening.get((each.listen, each.type)):
                yield spec.name, f"{each.listen} is listened at twice", f"service {other} has it, too"
            listening[each.listen, each.type] = spec.name
