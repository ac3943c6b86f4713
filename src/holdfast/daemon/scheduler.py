"""The clock of services with a schedule: looks when the next time comes, tells the engine, and writes down what came.

asyncio's clock stands still while the machine sleeps and does not follow one that is set.  So no wait is longer than
LOOK_EACH, and when the two clocks have moved against each other every schedule is looked at anew.

What was handled is in a file of `state_dir`, which outlives a reboot, and in the engine's record, which is written
before a run: a supervisor that is killed in between neither repeats a time nor leaves it out.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import zlib
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec

from holdfast.engine import events as ev
from holdfast.engine.schedule import Times, look, shown

from .store import write_by_rename

if TYPE_CHECKING:
    from .supervisor import Supervisor

LOOK_EACH = 60.0  # seconds between two looks at the clock, at most
CLOCK_MOVED = 1.0  # seconds between two clocks that ran alike until now


class _Job:
    """One service with a schedule."""

    def __init__(self, times: Times, when: tuple[object, ...], zone: tzinfo, handled: float) -> None:
        self.times = times
        self.when = when  # what they follow from
        self.zone = zone
        self.handled = handled
        self.wake = 0.0  # 0: to be found


class Scheduler:
    """All schedules of one supervisor.  For its loop; it costs nothing where there are none."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        places = supervisor.config.supervisor
        number = zlib.crc32(os.fsencode(os.path.realpath(places.run_dir)))  # supervisors may share a state_dir
        self.path = os.path.join(places.state_dir, f"schedule-{number:08x}.json")
        self._jobs: dict[str, _Job] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._apart = 0.0  # of the two clocks
        self._written = b""
        self._begun = False
        self._saving = threading.Lock()
        self._writing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start-up is over, or the configuration is another one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        before, self._jobs = self._jobs, {}
        first, self._begun = not self._begun, True
        scheduled = [spec for spec in self._supervisor.config.services.values() if spec.schedule.given]
        if not scheduled:
            return
        handled = self._read() if first else {}
        now = time.time()
        for spec in scheduled:
            zone = ZoneInfo(spec.schedule.timezone) if spec.schedule.timezone else local_zone()
            when = spec.schedule.cron, spec.schedule.every, spec.schedule.timezone
            if first:
                last = max(handled.get(spec.name, 0.0), self._supervisor.engine.view(spec.name).scheduled)
            else:
                last = job.handled if (job := before.get(spec.name)) and job.when == when else 0.0
            # A new one has missed nothing, nor has one with other times now.
            self._jobs[spec.name] = _Job(Times(spec.schedule, spec.name, zone), when, zone, last or now)
        self._look()

    def next_run(self, name: str) -> float | None:
        """When that is, by the clock on the wall."""
        job = self._jobs.get(name)
        return job.wake if job and job.wake else None

    def _look(self) -> None:
        now, apart = time.time(), time.time() - self._loop.time()
        moved, self._apart = abs(apart - self._apart) > CLOCK_MOVED, apart
        for name, job in self._jobs.items():
            if moved or now >= job.wake:
                self._look_at(name, job, now)
        self._write()
        wait = min(job.wake for job in self._jobs.values()) - time.time()
        self._timer = self._loop.call_later(min(max(wait, 0.0), LOOK_EACH), self._look)

    def _look_at(self, name: str, job: _Job, now: float) -> None:
        supervisor = self._supervisor
        seen = look(job.times, job.handled, now, catch_up=supervisor.config.services[name].schedule.catch_up)
        job.handled, job.wake = seen.handled, seen.wake
        if seen.missed is not None:
            supervisor.events.add("skipped", f"missed until {shown(seen.missed, job.zone)}", name)
        if seen.run is not None:
            supervisor.post(ev.ScheduleDue(name, seen.run, shown(seen.run, job.zone)))

    # ---- what outlives us

    def _read(self) -> dict[str, float]:
        try:
            with open(self.path, "rb") as file:
                return msgspec.json.decode(file.read(), type=dict[str, float])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._supervisor.events.add("error", f"what was run last is not known: {self.path}: {error}")
            return {}

    def _write(self) -> None:
        """Soon, in a thread: the disk may be slow."""
        if self._writing is None or self._writing.done():
            self._writing = self._loop.create_task(self._write_until_done())

    async def _write_until_done(self) -> None:
        while (data := self._data()) != self._written:
            self._written = data
            try:
                await asyncio.to_thread(self._save, data)
            except OSError as error:
                self._supervisor.events.add("error", f"cannot write what was run: {self.path}: {error}")

    def _save(self, data: bytes) -> None:
        with self._saving:  # `close` comes while the thread is at it
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            write_by_rename(self.path, data)

    def _data(self) -> bytes:
        return msgspec.json.encode({name: job.handled for name, job in self._jobs.items()})

    def close(self) -> None:
        """No time comes any more.  What was handled is on disk, or in the engine's records."""
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()
        if self._jobs and self._data() != self._written:
            try:
                self._save(self._data())
            except OSError:
                pass  # there is nobody to tell any more


def local_zone() -> tzinfo:
    """The machine's own: TZ, or /etc/localtime."""
    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        if name:
            return ZoneInfo(name)
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file, key="local time")
    except (OSError, ValueError, KeyError):
        return UTC
