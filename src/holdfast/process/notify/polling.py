"""The rung that works everywhere: the two-step loop, 50 us, then 49.95 ms at most."""

from __future__ import annotations

from time import sleep

from .hub import Hub
from .numbered import LONG, SHORT, Bell, NumberedNotifier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..descriptor import Descriptor


def unusable(forced: bool) -> str:
    return ""


class PollingNotifier(NumberedNotifier):
    """Looks again and again.  Only where somebody asks for the descriptor a thread does so for all children."""

    _bell: Bell | None = None
    _closed = False

    @property
    def descriptor(self) -> Descriptor:
        with self._lock:
            if self._bell is None:
                bell = Bell()
                if self._closed:
                    bell.close()
                elif self.ended():
                    bell.ring()
                else:
                    _hub.add(self)
                self._bell = bell
            return self._bell.descriptor

    def look(self) -> bool:
        if self._closed or not self.ended():
            return self._closed
        if self._bell is not None:
            self._bell.ring()
        return True

    def close(self) -> None:
        super().close()
        self._closed = True
        _hub.discard(self)
        if self._bell is not None:
            self._bell.close()


_hub = Hub(lambda age: sleep(min(LONG, max(SHORT, age / 4))))

NOTIFIER = PollingNotifier
