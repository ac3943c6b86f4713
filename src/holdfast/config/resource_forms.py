"""What a service may use: how a share of processors is written, and what is wrong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import units
from .errors import Wrong, one_line
from .forms import Around, kind
from .model import Key, Service


def percent(value: object, key: Key, _around: Around) -> float:
    """ "150%" as 1.5."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise Wrong(f"{one_line(value)} has no unit", f'of one processor: "{one_line(value)}%"')
    if not isinstance(value, str):
        raise Wrong(f'must be a percentage such as "150%", not {kind(value)}')
    try:
        share = units.percent(value)
    except ValueError:
        raise Wrong(f"{one_line(value)} is no percentage", 'of one processor, such as "50%" or "150%"') from None
    low, high = key.about.low, key.about.high
    assert low is not None
    assert high is not None
    if not low <= share <= high:
        raise Wrong(f"must be from {units.percent_text(low)} to {units.percent_text(high)}, not {one_line(value)}")
    return share


RESOURCE_FORMS: dict[str, Callable[[object, Key, Around], Any]] = {"percent": percent}


def wrong_resources(spec: Service) -> Iterator[tuple[str, str, str]]:
    """What is wrong though each value is right: key, message, hint."""
    asked = spec.resources
    if asked and asked.memory_max and asked.memory_high and asked.memory_high >= asked.memory_max:
        message = f"memory_high is not below memory_max ({units.size_text(asked.memory_max)}): it would not be reached"
        yield "resources", message, "make it lower, or leave it out"
