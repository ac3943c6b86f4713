"""Where no keeper can be: on other systems than Linux, and where a filter refuses the calls for pidfds.

There `spawn` and `run` start direct children, and say so once; docs/notifiers.md says which promises are weaker.
"""

from __future__ import annotations

import errno
import sys

from . import _native
from .errors import SpawnError
from .notify import pidfd
from .options import LOSS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .options import SpawnOptions

_why: str | None = None  # no keeper; None: not tried yet
_told = False


def why_no_keeper() -> str:
    """What keeps keepers from working here, or "".  Found by trying, once; starts nothing."""
    global _why
    if _why is None:
        _why = pidfd.unusable(False) if hasattr(_native, "launch") else "there is none for this system"
    return _why


def tell() -> None:
    """Say, once, that what was to have a keeper gets none; where the program has called us, by whatever way."""
    global _told
    if not _told:
        import warnings

        _told = True
        level, frame = 1, sys._getframe()
        while frame.f_back and frame.f_globals.get("__name__", "").startswith(("holdfast.", "subprocess")):
            level, frame = level + 1, frame.f_back
        warnings.warn(
            f"no keeper can work here ({why_no_keeper()}): what is started is a direct child, visible to the program's "
            "own waits, not contained, and not stopped when the program is killed",
            RuntimeWarning,
            stacklevel=level,
        )


def without_keeper(options: SpawnOptions) -> SpawnOptions:
    """The same options for a direct child.  SpawnError where one of them cannot be had without a keeper."""
    for name in ("address", "forking"):
        if options.get(name):
            raise SpawnError(errno.ENOSYS, f"{name} needs a keeper, which cannot be here: {why_no_keeper()}", "launch")
    tell()
    weaker = options.copy()
    if weaker.get("on_owner_loss") in LOSS:
        del weaker["on_owner_loss"]
    weaker["private"] = False
    return weaker
