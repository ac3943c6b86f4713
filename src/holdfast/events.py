"""The events of a process and its tree, as `Process.events` and `Process.on_event` give them.

Values that say what has happened, in the words of the keeper: `Spawned` first, `Empty` last.
"""

from __future__ import annotations

from .process.events import (
    Adopted,
    Continued,
    Empty,
    EventsLost,
    Exited,
    MemberExited,
    Moved,
    Spawned,
    Stopped,
)
from .process.following import Events

__all__ = (
    "Adopted",
    "Continued",
    "Empty",
    "Events",
    "EventsLost",
    "Exited",
    "MemberExited",
    "Moved",
    "Spawned",
    "Stopped",
)
