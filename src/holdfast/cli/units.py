"""Durations as people write them."""

from __future__ import annotations

LONGEST = 100 * 366 * 24 * 3_600_000
UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def _is_number(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit() and text[0] != "."


def milliseconds(text: str) -> int:
    """"1.5s" or "5m" in milliseconds.  ValueError says what is wrong and what was meant."""
    for unit in ("ms", "s", "m", "h"):
        number = text.removesuffix(unit)
        if number != text and _is_number(number):
            ms = float(number) * UNITS[unit]
            if ms > LONGEST:
                raise ValueError(f"{text!r} is longer than a hundred years")
            return round(ms)
    if _is_number(text):
        raise ValueError(f"{text!r} has no unit: write {text}s or {text}ms (units: ms, s, m, h)")
    raise ValueError(f"{text!r} is not a duration: write a number and a unit, such as 500ms, 10s, 5m, 1h")
