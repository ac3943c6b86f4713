"""Learning that a direct child has ended: one interface, one file a rung (design: the notifier ladder).

A rung turns a direct child into a descriptor that is readable exactly when the child has ended, and
gives its status once.  Rungs other than `pidfd` come with the portable tier.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ..status import ExitStatus

    class Notifier(Protocol):
        """Watches one direct child."""

        def fileno(self) -> int:
            """Readable exactly when the child has ended; valid until `close`."""

        def wait(self, timeout: float | None) -> bool:
            """True once the child has ended, False at the time limit.  Costs no CPU meanwhile."""

        def status(self, started_at: float, started: float) -> ExitStatus | None:
            """The exit status, reaping the child; None while it runs.  Ask again and get it again."""

        def signal(self, signo: int) -> None:
            """Send a signal; nothing happens when the child has ended.  PermissionError."""

        def close(self) -> None: ...
