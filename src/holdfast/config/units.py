"""Durations and sizes as people write them, both ways.  Imports nothing: `holdfast run` passes here."""

from __future__ import annotations

LONGEST = 100 * 366 * 24 * 3_600_000
UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
SIZES = {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def _is_number(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit() and text[0] != "."


def milliseconds(text: str) -> int:
    """ "1.5s" or "5m" in milliseconds.  ValueError says what is wrong and what was meant."""
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


def size(text: str) -> int:
    """ "16MiB" or "1.5GB" in bytes.  ValueError says what is wrong and what was meant."""
    number = text.rstrip("KMGTkmgtiIBb")
    unit = text[len(number) :]
    if not _is_number(number) or len(number) > 20:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, such as 64KB, 16MiB, 1GiB")
    if unit in SIZES:
        return round(float(number) * SIZES[unit])
    if not unit:
        raise ValueError(f"{text!r} has no unit: write {text}MB or {text}MiB (units: {', '.join(SIZES)})")
    meant = [each for each in SIZES if each[0] == unit[0].upper() and (len(unit) < 2 or len(each) >= len(unit))]
    meant = [each for each in meant if each.lower() == unit.lower()] or meant
    if meant:
        raise ValueError(f"{text!r} has an unknown unit: write {' or '.join(number + each for each in meant)}")
    raise ValueError(f"{text!r} has an unknown unit: KB, MB, GB, KiB, MiB and GiB are known")


def percent_text(share: float) -> str:
    """1.5 as "150%"."""
    return f"{round(share * 100, 6):.10g}%"


def percent(text: str) -> float:
    """ "150%" as 1.5.  ValueError."""
    number = text.removesuffix("%")
    if number == text or not _is_number(number):
        raise ValueError(f"{text!r} is not a percentage: write a number and %, such as 150%")
    return float(number) / 100


def duration_text(seconds: float) -> str:
    """0.1 as "100ms", 60.0 as "60s", 7200.0 as "2h": what `milliseconds` reads."""
    ms = round(seconds * 1000)
    if ms and ms % 3_600_000 == 0:
        return f"{ms // 3_600_000}h"
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def size_text(number: int) -> str:
    """16777216 as "16MiB": the largest unit that says it exactly, else KB with a fraction.  What `size` reads."""
    for unit in ("GiB", "GB", "MiB", "MB", "KiB", "KB"):
        if number and number % SIZES[unit] == 0:
            return f"{number // SIZES[unit]}{unit}"
    return f"{number // 1000}.{number % 1000:03d}KB" if number else "0KB"
