"""What has happened to one tree, kept for those who ask for its events: the newest of its keeper's records.

Most trees are never asked: so records stay as they came, and nothing is imported or computed until somebody is.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .descriptor import Descriptor
    from .following import Callback

EVENTS_MAX = 1024


class Told:
    """Numbered entries: records (docs/wire.md), or the `ExitStatus` of a direct child.

    One thread at a time writes (the keeper's lock sees to that); any may read.  So steps are plain assignments, an
    entry is there before `end` counts it, and one that is told twice, because a signal handler cut us off, is one.
    """

    __slots__ = ("bells", "callbacks", "end", "entries", "last", "started_pid")

    def __init__(self) -> None:
        self.entries: dict[int, Any] = {}
        self.end = 0
        self.last: object = None
        self.bells: dict[Descriptor, None] = {}  # eventfds of those who wait; a dict's changes are single steps
        self.callbacks: tuple[Callback, ...] = ()
        self.started_pid = 0  # of what was started, when main is another by now

    def note(self, record: object, entry: object = None) -> None:
        """The next record; `entry` is kept in its place."""
        if record is not self.last:
            number = self.end
            self.entries[number] = entry or record
            self.last = record
            self.end = number + 1
            if number >= EVENTS_MAX:
                self.entries.pop(number - EVENTS_MAX, None)
        self.ring()

    def ring(self) -> None:
        """Wake those who wait for an event, or for the end."""
        for bell in list(self.bells):
            try:
                with bell as fd:
                    os.eventfd_write(fd, 1)
            except (ValueError, BlockingIOError):
                pass  # closed by its owner, or rung so often that it is readable anyway

    def call_back(self) -> None:
        """Tell those who want to be called.  Without any lock held: they may do what they like with the handle."""
        for callback in self.callbacks:
            callback.deliver()
