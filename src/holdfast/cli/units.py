"""Durations as people write them."""

from __future__ import annotations

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def milliseconds(text: str) -> int:
    """"1.5s" or "5m" in milliseconds.  ValueError says what is wrong and what was meant."""
    for unit in ("ms", "s", "m", "h"):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit() and number[0] != ".":
            return round(float(number) * UNITS[unit])
    if text.replace(".", "", 1).isdigit():
        raise ValueError(f"{text!r} has no unit: write {text}s or {text}ms (units: ms, s, m, h)")
    raise ValueError(f"{text!r} is not a duration: write a number and a unit, such as 500ms, 10s, 5m, 1h")
