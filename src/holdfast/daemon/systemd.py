"""What holdfast says of itself: sd_notify to systemd, or to whoever else has given NOTIFY_SOCKET to `holdfast up`.

The supervisor speaks, and the main process of the unit is the anchor: NotifyAccess=all.  Nothing waits here: a message
that finds no room is sent again in a moment, and one of the same kind that came meanwhile in its place.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from holdfast.engine.table import State
from holdfast.process.socket_path import at_path

from .status import EventRecord

if TYPE_CHECKING:
    from .supervisor import Supervisor

STATUS_PAUSE = 1.0  # seconds between two STATUS=
RETRY_PAUSE = 0.1  # seconds until what found no room is sent again
WATCHDOG_LEAST = 0.02  # seconds between two WATCHDOG=1, however often they are asked for


class Manager:
    """Who has started us, as far as he wants to hear of it.  For the loop's thread; nothing here waits or fails."""

    def __init__(self, supervisor: Supervisor, environ: Mapping[str, str]) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._sock: socket.socket | None = None
        self._waiting: dict[str, str] = {}  # by kind, in the order in which they are to be said
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._status = ""
        self._stopping = False
        if self._address.startswith(("/", "@")):
            # Opened now: descriptors may be short when it counts.
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            supervisor.events.listen(self._on_event)
            period = _watchdog_period(environ, supervisor.anchor_pid)
            if period is not None:
                self._watchdog(period)

    def ready(self) -> None:
        """Start-up is over, or what `reloading` has announced."""
        if not self._stopping:
            self._status = self._count()
            self._say("READY", f"READY=1\nSTATUS={self._status}")

    def reloading(self) -> None:
        """A changed configuration is about to be taken over; `ready` ends that, however it went."""
        if not self._stopping:
            self._say("RELOADING", f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def close(self, *, for_good: bool) -> None:
        """The last word.  `for_good`: nobody comes in our place."""
        if for_good:
            self._stop()
        for timer in self._timers.values():
            timer.cancel()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._say("STOPPING", "STOPPING=1")

    # ---- what makes us speak

    def _on_event(self, _event: EventRecord) -> None:
        if self._supervisor.engine.closing:
            self._stop()
        self._later("status", STATUS_PAUSE, self._tell_status)

    def _tell_status(self) -> None:
        status = self._count()
        if status != self._status and self._supervisor.state != "adopting":
            self._status = status
            self._say("STATUS", f"STATUS={status}")

    def _count(self) -> str:
        number = Counter(view.state for view in self._supervisor.engine.views())
        return "services: " + (", ".join(f"{number[state]} {state}" for state in State if number[state]) or "none")

    def _watchdog(self, period: float) -> None:
        """From the loop: who hangs is silent."""
        self._say("WATCHDOG", "WATCHDOG=1")
        self._timers["watchdog"] = self._loop.call_later(period, self._watchdog, period)

    # ---- how

    def _say(self, kind: str, text: str) -> None:
        self._waiting.pop(kind, None)  # what it said earlier is outdated
        self._waiting[kind] = text
        self._send()

    def _send(self) -> None:
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        while self._waiting and self._sock is not None:
            kind = next(iter(self._waiting))
            try:
                at_path(partial(self._sock.sendto, self._waiting[kind].encode()), address)
            except BlockingIOError:
                self._later("send", RETRY_PAUSE, self._send)
                return
            except OSError:
                pass  # nobody is there: nobody misses it
            del self._waiting[kind]

    def _later(self, what: str, seconds: float, call: Callable[[], None]) -> None:
        """Once, however often it is asked for until then."""
        if what not in self._timers and self._sock is not None:

            def due() -> None:
                del self._timers[what]
                call()

            self._timers[what] = self._loop.call_later(seconds, due)


def _watchdog_period(environ: Mapping[str, str], anchor_pid: int | None) -> float | None:
    """Seconds between two signs of life: half of what is allowed.  None: none are asked for, or of somebody else."""
    text, of = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (text.isdecimal() and 0 < len(text) < 20 and int(text)):
        return None
    if of and of not in (str(os.getpid()), str(anchor_pid)):
        return None
    return max(int(text) / 2e6, WATCHDOG_LEAST)
