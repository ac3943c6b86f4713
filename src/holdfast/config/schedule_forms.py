"""How the times of a schedule are written: cron expressions and the names of time zones."""

from __future__ import annotations

from .errors import Wrong, one_line

FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
MEANT = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31; L is the last",
    "month": "1 to 12, or JAN to DEC",
    "day-of-week": "0 to 7 (both are Sunday), or MON to SUN; MON#2 is the second Monday, 5L the last Friday",
}
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def cron(value: object, *_: object) -> str:
    """Five fields that some time fits."""
    from datetime import UTC, datetime

    from cronsim import CronSim, CronSimError

    if not isinstance(value, str):
        raise Wrong("must be a string of five fields", 'such as "0 3 * * *"')
    words = value.split()
    if len(words) != len(FIELDS):
        meant = NICKNAMES.get(value.strip().lower())
        hint = f'"{meant}"' if meant else f"{', '.join(FIELDS)}; shorter times than a minute: every"
        raise Wrong(f"{one_line(value)} has {len(words)} fields, and there are five", hint)
    text = " ".join(words)
    try:
        next(CronSim(text, datetime(2024, 1, 1, tzinfo=UTC)))
    except StopIteration:
        raise Wrong(f"{one_line(text)} is at no time") from None
    except (CronSimError, ValueError, OverflowError, RecursionError) as error:
        field = str(error).removeprefix("Bad ")
        if field not in FIELDS:
            raise Wrong(f"{one_line(text)} cannot be read") from None
        raise Wrong(f"{field}: {one_line(words[FIELDS.index(field)])} is none, or never comes", MEANT[field]) from None
    return text


def zone(value: object, *_: object) -> str:
    """A name of the time zone database."""
    import zoneinfo

    if not isinstance(value, str):
        raise Wrong("must be the name of a time zone", 'such as "Europe/Berlin"')
    try:
        zoneinfo.ZoneInfo(value)
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError, but for names that are directories
        raise Wrong(f"there is no time zone {one_line(value)} on this machine") from None
    except KeyError:
        from .forms import did_you_mean

        hint = did_you_mean(value, zoneinfo.available_timezones())
        raise Wrong(f"there is no time zone {one_line(value)} on this machine", hint) from None
    return value
