"""Learning that a direct child has ended: one interface, one file a rung (docs/notifiers.md).

A rung turns a direct child into a descriptor that is readable exactly when the child has ended, and
gives its status once.  Which one is used is found out once, by trying; HOLDFAST_NOTIFIER decides otherwise.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module

from ..errors import SpawnError
from . import pidfd as pidfd  # nearly always the one: then choosing takes no descriptor for its file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol, Self

    from ..descriptor import Descriptor
    from ..options import Plan
    from ..status import ExitStatus

    # As _native.spawn_direct: starts a child and gives its number, and what `own` has made of its pidfd, or number.
    Spawn = Callable[[bytes, Sequence[int], Callable[[int], Any], bool, bool], tuple[int, Any]]

    class Notifier(Protocol):
        """Watches one direct child.  Any thread."""

        @classmethod
        def start(cls, plan: Plan, spawn: Spawn) -> tuple[int, Self]:
            """Start the child: its number and its notifier, which ends it if closed or dropped before `keep`."""

        def keep(self) -> None:
            """Somebody has the child now: from here on dropping the notifier does nothing to it."""

        @property
        def descriptor(self) -> Descriptor:
            """Readable exactly when the child has ended; until `close`."""

        def wait(self, timeout: float | None) -> bool:
            """True once the child has ended, False at the time limit; does not reap."""

        def status(self, started_at: float, started: float) -> ExitStatus | None:
            """The exit status, reaping the child; None while it runs.  Ask again and get it again."""

        def signal(self, signo: int, group: bool) -> None:
            """Send a signal to the child or to the group that it leads; to what has ended nothing happens."""

        def close(self) -> None: ...

    class Rung(Protocol):
        """A module of this package."""

        def unusable(self, forced: bool) -> str:
            """Why not here and now, or "".  `forced`: it was asked for by name, and may change what it must."""

        NOTIFIER: type[Notifier]


RUNGS = ("pidfd", "kqueue", "signalfd", "selfpipe", "polling")  # the best first

_chosen: Rung | None = None
_name = ""


def load(name: str) -> Rung:
    try:
        return import_module(f"{__name__}.{name}")
    except OSError as error:  # no descriptor is left to read its file with
        raise SpawnError(error.errno or 0, error.strerror or str(error), "notifier") from None


def choice() -> str:
    """The name of the rung that direct children get; found once.  ValueError: HOLDFAST_NOTIFIER is none of `RUNGS`.

    SpawnError: what it names cannot be used here."""
    global _chosen, _name
    if _chosen is None:
        name = os.environ.get("HOLDFAST_NOTIFIER", "")
        if name and name not in RUNGS:
            raise ValueError(f"HOLDFAST_NOTIFIER must be one of {', '.join(RUNGS)}, not {name!r}")
        if name:
            why = load(name).unusable(True)
            if why:
                raise SpawnError(errno.ENOSYS, f"HOLDFAST_NOTIFIER={name}: {why}", "notifier")
        else:
            name = next(each for each in RUNGS if not load(each).unusable(False))
        _name, _chosen = name, load(name)
    return _name


def start(plan: Plan, spawn: Spawn) -> tuple[int, Notifier]:
    """Start a direct child, watched by the rung of `choice`: its number and its notifier.  OSError as of `spawn`."""
    if _chosen is None:
        choice()
    assert _chosen is not None
    return _chosen.NOTIFIER.start(plan, spawn)
