"""How the values of `main` and its like are written, and what does not go with a `forking` service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .errors import Wrong, one_line
from .forms import Around
from .forms import string as plain_string
from .model import Key, Service

PROCESS_NAME_MAX = 15  # bytes that the kernel keeps of a name


def process_name(value: object, key: Key, around: Around) -> str:
    text = plain_string(value, around)
    size = len(text.encode())
    if not text:
        raise Wrong("is empty", "the name of a process, as `ps -o comm` shows it")
    if size > PROCESS_NAME_MAX:
        cut = text.encode()[:PROCESS_NAME_MAX].decode(errors="ignore")
        raise Wrong(f"{one_line(text)} has {size} bytes, and the kernel keeps {PROCESS_NAME_MAX}", f'"{cut}"')
    return text


DAEMON_FORMS: dict[str, Callable[[object, Key, Around], Any]] = {"process_name": process_name}


def wrong_daemon(spec: Service) -> Iterator[tuple[str, str, str]]:
    """What is wrong though each value is right: key, message, hint."""
    if spec.type != "forking":
        for key in ("main", "pid_file"):
            if getattr(spec, key) is not None:
                hint = 'type = "forking"; of any other the main process is what was started'
                yield key, f'is for services of type "forking", and this is "{spec.type}"', hint
    elif spec.pty:
        hint = "leave it out, or let it stay in the foreground"
        yield "pty", 'cannot go with type "forking": the end of what was started hangs up the terminal', hint
