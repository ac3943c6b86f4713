"""How the values are written that say who a service is and what it may do: groups, capabilities, I/O priority, CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from holdfast.process.capabilities import NAMES, SETS, capability_sets, plain_name
from holdfast.process.more import CPUS_MAX, cpu_numbers, io_priority

from .errors import Wrong, one_line
from .forms import Around, did_you_mean, each_of, group, kind, string
from .model import Key

EXAMPLE_OF_CPUS = 'such as [0, 1] or "0-3,5"'


def groups(value: object, key: Key, around: Around) -> tuple[str | int, ...]:
    if not isinstance(value, list):
        raise Wrong(f"must be a list of groups, not {kind(value)}", 'such as ["audio", "video"]')
    if os.geteuid() != 0:
        raise Wrong("only root may choose the groups", f"leave `{key.field}` out, or start the supervisor as root")
    return tuple(dict.fromkeys(group(each, key, around) for each in value))


def capabilities(value: object, _key: Key, around: Around) -> dict[str, tuple[str, ...]]:
    """By the names of the sets that are given, which are both where it is one list."""
    if isinstance(value, dict):
        for word in value:
            if word not in SETS:
                hint = did_you_mean(word, SETS) or f"known: {', '.join(SETS)}"
                raise Wrong(f"{one_line(word)} is no set of capabilities", hint)
        given = each_of(value, lambda _, names: _names(names, around))
    else:
        given = dict.fromkeys(SETS, _names(value, around))
    try:
        return capability_sets(given)
    except ValueError as error:
        raise Wrong(str(error), "what is not in bounding cannot be had") from None


def _names(value: object, around: Around) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong(f"must be a list of capabilities, not {kind(value)}", 'such as ["net_bind_service"]')
    result = []
    for each in value:
        text = string(each, around)
        try:
            result.append(plain_name(text))
        except ValueError:
            hint = did_you_mean(text.lower().removeprefix("cap_"), NAMES)
            raise Wrong(f"{one_line(text)} is no capability", hint or "capabilities(7) has them all") from None
    return tuple(result)


def ioprio(value: object, _key: Key, around: Around) -> str:
    text = string(value, around)
    try:
        io_priority(text)
    except ValueError:
        hint = '"best-effort:0" to "best-effort:7", "realtime:0" to "realtime:7", "idle" or "none"'
        raise Wrong(f"{one_line(text)} is no I/O priority", hint) from None
    return text


def cpus(value: object, _key: Key, around: Around) -> tuple[int, ...]:
    if not isinstance(value, (str, list)):
        raise Wrong(f"must be a list of numbers or a string, not {kind(value)}", EXAMPLE_OF_CPUS)
    given = string(value, around) if isinstance(value, str) else value
    try:
        return cpu_numbers(given)
    except (ValueError, TypeError):
        words = one_line(given) if isinstance(given, str) else f"[{', '.join(map(one_line, given[:5]))}]"
        raise Wrong(f"{words} names no CPUs, 0 to {CPUS_MAX - 1}", EXAMPLE_OF_CPUS) from None


IDENTITY_FORMS: dict[str, Callable[[object, Key, Around], Any]] = {
    "groups": groups, "capabilities": capabilities, "ioprio": ioprio, "cpus": cpus,
}  # fmt: skip
