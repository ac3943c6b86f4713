"""What services say of themselves (sd_notify), turned into events of the engine and facts for status."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from holdfast.engine import events as ev

from .copy import Copy
from .notify import Message, NotifySocket

if TYPE_CHECKING:
    from .supervisor import Supervisor

REFUSED_PAUSE = 1.0  # seconds between two events about notifications that were refused
CHOKED_PAUSE = 0.1  # seconds until notifications are read again


class Voices:
    """The notifications of one supervisor's services.  For its loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._notify: NotifySocket | None = None
        self._refused = 0  # notifications, of which has been told
        self._refused_told = float("-inf")

    def listen(self, notify: NotifySocket) -> None:
        self._notify = notify
        self._loop.add_reader(notify.fileno(), self._on_notify)

    def _on_notify(self) -> None:
        assert self._notify is not None
        by_keeper = self._supervisor.by_keeper
        for message in self._notify.receive(by_keeper):
            if copy := by_keeper.get(message.keeper_pid):
                self._on_message(copy, message)
        # Everybody may write to this socket: nobody shall fill the log with that, or drive other events out.
        refused, now = self._notify.refused, self._loop.time()
        if refused > self._refused and now >= self._refused_told + REFUSED_PAUSE:
            text = "a notification came from no service, or its sender was gone already"
            if refused > self._refused + 1:
                text += f"; {refused - self._refused} since this was last said"
            self._supervisor.events.add("notify_refused", text)
            self._refused, self._refused_told = refused, now
        if self._notify.choked:
            self._loop.remove_reader(self._notify.fileno())
            self._loop.call_later(CHOKED_PAUSE, self.listen, self._notify)

    def _on_message(self, copy: Copy, message: Message) -> None:
        name, incarnation, fields = copy.name, copy.incarnation, message.fields
        if "STATUS" in fields:
            # It will be shown on somebody's terminal.
            copy.status_text = "".join(c if c.isprintable() else "?" for c in fields["STATUS"][:1024])
        pid, extension = _number(fields, "MAINPID"), _number(fields, "EXTEND_TIMEOUT_USEC")
        if pid:
            self._supervisor.mains.said(copy, pid)
        if extension:
            self._supervisor.post(ev.TimeExtended(name, incarnation, self._loop.time() + extension / 1e6))
        if fields.get("STOPPING") == "1" and not copy.stopping_said:
            copy.stopping_said = True
            self._supervisor.events.add("stopping", "it says that it stops", name, incarnation)
        if fields.get("RELOADING") == "1" and not copy.reloading:
            copy.reloading = True
            self._supervisor.events.add("reloading", "it says that it reloads", name, incarnation)
        if fields.get("READY") == "1" and copy.reloading:
            copy.reloading = False
            self._supervisor.events.add("reloaded", "it says that it is ready again", name, incarnation)
        if message.fds:
            self._supervisor.stored.put(name, incarnation, message.fds, fields)
        if fields.get("FDSTOREREMOVE") == "1" and "FDNAME" in fields:
            self._supervisor.stored.remove(name, fields["FDNAME"])
        self._supervisor.probes.said(name, incarnation, fields)

    def dispose(self, fd: int) -> None:
        """Close a descriptor of a service's making: not in this thread."""
        if self._notify is not None:
            self._notify.dispose(fd)
        else:
            os.close(fd)

    def close(self) -> None:
        if self._notify is not None:
            self._loop.remove_reader(self._notify.fileno())
            self._notify.close()


def _number(fields: dict[str, str], key: str) -> int:
    """0: there is none, or none that means anything."""
    text = fields.get(key, "")
    return int(text) if text.isdecimal() and len(text) < 20 else 0
