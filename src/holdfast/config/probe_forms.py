"""How the values of `ready` and `health` are written, and what is wrong with them together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from .errors import Wrong, one_line
from .forms import Around, kind
from .forms import string as plain_string
from .model import PROBE_KINDS, Key, Probe, Service

LOCALHOST = "127.0.0.1"
UNIX = "unix:"
REGEX_MAX = 1000  # characters


def address(value: object, key: Key, around: Around) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        raise Wrong("must be a string, not an integer", f'"{value}" is that port of {LOCALHOST}')
    text = plain_string(value, around)
    if text.startswith(UNIX):
        if not text.removeprefix(UNIX):
            raise Wrong("has no path", '"unix:/run/x.sock"')
        return UNIX + os.path.normpath(os.path.join(around.directory, text.removeprefix(UNIX)))
    try:
        endpoint(text)
    except ValueError:
        hint = '"127.0.0.1:8080", "8080", "[::1]:80", "unix:/run/x.sock"'
        raise Wrong(f"{one_line(text)} is no address", hint) from None
    return text


def endpoint(text: str) -> tuple[str, int]:
    """Host and port of an address that is no path.  ValueError."""
    found = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:/\[\]]+)):)?([0-9]{1,5})", text)
    if not found or not 0 < int(found[3]) < 65536:
        raise ValueError(text)
    return found[1] or found[2] or LOCALHOST, int(found[3])


def url(value: object, key: Key, around: Around) -> str:
    text = plain_string(value, around)
    if text.lower().startswith("https:"):
        raise Wrong("https is not asked", 'a program does it: command = ["curl", "-fsS", "-o", "/dev/null", "https://…"]')
    try:
        target(text)
    except ValueError:
        raise Wrong(f"{one_line(text)} is no URL of http", '"http://127.0.0.1:8080/health"') from None
    return text


def target(text: str) -> tuple[str, int, str, str]:
    """Host, port, what Host says, and path, of a URL.  ValueError."""
    from urllib.parse import urlsplit

    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(text)
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc or parts.port == 0:
        raise ValueError(text)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, parts.port or 80, parts.netloc, path


def regex(value: object, key: Key, around: Around) -> str:
    if not isinstance(value, str):
        raise Wrong(f"must be a string, not {kind(value)}")
    if not value or len(value) > REGEX_MAX:
        raise Wrong("is empty: every line would do" if not value else f"has more than {REGEX_MAX} characters")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise Wrong(f"is no regular expression: {error}", "'…' keeps its backslashes in TOML") from None
    return value


PROBE_FORMS: dict[str, Callable[[object, Key, Around], Any]] = {"address": address, "url": url, "regex": regex}


def wrong_probes(spec: Service) -> Iterator[tuple[str, str, str]]:
    """What is wrong with them, though each value is right: key, message, hint."""
    for key, probe in (("ready", spec.ready), ("health", spec.health)):
        if probe is None:
            continue
        kinds = _given(probe)
        if len(kinds) > 1:
            yield key, f"has {' and '.join(kinds)}: one of them tells", "leave the others out"
        limits_steps = key == "ready" and not kinds and bool(spec.pre_start or spec.post_stop)
        if not kinds and not limits_steps and not (
            key == "ready" and spec.type in ("notify", "forking")
        ):
            yield key, "does not say what tells", f"one of {', '.join(PROBE_KINDS)}"
        if spec.type == "oneshot" and not limits_steps:
            yield key, "means nothing for a oneshot, which is ready when it has succeeded", f"leave `{key}` out"
    if spec.type == "oneshot" and spec.watchdog is not None:
        yield "watchdog", "means nothing for a oneshot, which is over when it is ready", "leave `watchdog` out"
    if spec.type == "notify" and spec.ready and _given(spec.ready) not in ([], ["notify"]):
        yield "ready", 'type "notify" says already that it tells so itself', "leave `type` out"
    if spec.ready and spec.health and spec.ready.fd is not None and spec.ready.fd == spec.health.fd:
        yield "health", "its descriptor is that of `ready`", "give each its own"


def _given(probe: Probe) -> list[str]:
    return [kind for kind in PROBE_KINDS if getattr(probe, kind) not in (False, None)]
