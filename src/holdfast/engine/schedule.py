"""When a scheduled service runs: its times, and which of them have come.  Pure: clock and zone are given.

A time is what the expression says, in seconds since 1970; it is *due* a little later where there is jitter, and
*handled* once it was run or left out.  What is handled only goes forward, so no time is run twice.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from cronsim import CronSim

from ..config.model import Schedule

LATE = 120.0  # seconds; a time that is due for longer was missed: nobody was there, or the clock was set forward
SET_BACK = 10_800.0  # seconds; a clock that is set back by more was wrong before, and its times come again
WINDOWS = (3600.0, 86400.0, 32 * 86400.0, 366 * 86400.0)  # seconds that are looked through for the newest time


class Times:
    """The times of one schedule.  `name` makes the jitter of services with the same schedule differ."""

    def __init__(self, schedule: Schedule, name: str, zone: tzinfo) -> None:
        self._schedule = schedule
        self._name = name
        self._zone = zone

    def after(self, at: float) -> float:
        """The first one after that moment.  A time that the clock leaves out comes when the clock goes on; one that it
        shows twice comes the first time, or both times where the expression names no hour."""
        if self._schedule.every:
            every = round(self._schedule.every * 1000)
            return ((int(at * 1000) // every + 1) * every) / 1000
        for moment in CronSim(self._schedule.cron or "", datetime.fromtimestamp(int(at), self._zone)):
            if moment.timestamp() > at:  # an hour that is shown a second time begins before now
                return moment.timestamp()
        raise ValueError(f"{self._schedule.cron} is at no time")

    def newest(self, since: float, until: float) -> float | None:
        """The last one that is after `since` and not after `until`."""
        if self._schedule.every:
            every = round(self._schedule.every * 1000)
            last = (int(until * 1000) // every * every) / 1000
            return last if last > since else None
        for window in (*WINDOWS, until - since):
            found = None
            at = self.after(max(since, until - window))
            while at <= until:
                found, at = at, self.after(at)
            if found is not None or until - window <= since:
                return found
        return None

    def due(self, at: float) -> float:
        """When that one is to run: always the same for the same time, and before the next one."""
        if not self._schedule.jitter:
            return at
        part = random.Random(f"{self._name} {at}").random()
        return at + part * min(self._schedule.jitter, self.after(at) - at)


class Look(NamedTuple):
    """What a look at the clock has shown."""

    run: float | None  # this time has come
    missed: float | None  # this one, and maybe some before it, have passed without a run
    handled: float
    wake: float  # when to look again, by the same clock


def look(times: Times, handled: float, now: float, *, catch_up: bool) -> Look:
    """`handled`: the last time that was handled, or the moment from which on times count."""
    if handled > now + SET_BACK:
        handled = now
    newest = times.newest(handled, now)
    if newest is not None and times.due(newest) > now:
        newest = times.newest(handled, newest - 0.001)
    run = missed = None
    if newest is not None:
        if catch_up or now - times.due(newest) <= LATE:
            run = newest
            first = times.after(handled)
            missed = None if first >= newest else times.newest(handled, newest - 0.001)
        else:
            missed = newest
        handled = newest
    return Look(run, missed, handled, times.due(times.after(handled)))


def shown(at: float, zone: tzinfo) -> str:
    """A time for people."""
    return datetime.fromtimestamp(at, zone).strftime("%Y-%m-%d %H:%M:%S" + ("Z" if zone is UTC else ""))
