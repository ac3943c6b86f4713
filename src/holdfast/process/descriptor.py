"""A descriptor that several threads use and one of them closes.

The number may be given away by the kernel the moment it is closed: so it is counted while in use,
"closed" is set first, and the last user closes.  (Go's pidfd code learned this the hard way.)
"""

from __future__ import annotations

import os
from _thread import allocate_lock


class Descriptor:
    """Owns one descriptor.  `with descriptor as fd:` keeps it open meanwhile.  Any thread.

    Owns it exactly when the constructor returns, also when a signal handler raises.  Dropped, it closes.
    """

    __slots__ = ("_closed", "_fd", "_lock", "_users")

    def __init__(self, fd: int) -> None:
        self._lock = allocate_lock()
        self._users = 0
        self._fd = fd  # from here on nothing is called, so no handler can run before we own it
        self._closed = False

    @classmethod
    def taken_from(cls, fds: list[int]) -> Descriptor:
        """Owns the last of `fds`, which is no longer in there: it is in the one place or in the other, always."""
        taken = cls.__new__(cls)
        taken._lock = allocate_lock()
        taken._users = 0
        taken._closed, taken._fd = False, fds[-1]  # from here on nothing is called
        del fds[-1]
        return taken

    @property
    def closed(self) -> bool:
        return self._closed

    def fileno(self) -> int:
        """The bare number; valid until `close`.  ValueError afterwards."""
        if self._closed:
            raise ValueError("the handle is closed")
        return self._fd

    def __enter__(self) -> int:
        with self._lock:
            if self._closed:
                raise ValueError("the handle is closed")
            self._users += 1
            return self._fd

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and self._users == 0
        if last:
            os.close(self._fd)

    def close(self) -> None:
        """No new use from now on; the number is given back when the last user has left.  Idempotent."""
        with self._lock:
            first = not self._closed
            self._closed = True
            last = first and self._users == 0
        if last:
            os.close(self._fd)

    def become(self, fd: int) -> None:
        """The same number is another descriptor from now on: a copy of `fd`, which stays the caller's."""
        with self._lock:
            if not self._closed:
                os.dup2(fd, self._fd, inheritable=False)

    def abandon(self) -> None:
        """In a forked child: close our copy without the lock, whose holder did not come along."""
        self._lock = allocate_lock()
        if not self._closed:
            self._closed = True
            os.close(self._fd)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            os.close(self._fd)
