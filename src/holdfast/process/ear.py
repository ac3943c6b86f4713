"""A descriptor that is readable when a tree may have something new to say, for one who waits in a loop.

An epoll of its own: two tasks of a loop cannot watch one descriptor.  A bell in it rings when another was faster to
read what the keeper had to say.
"""

from __future__ import annotations

import os
import select

from .descriptor import Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .handle import Tree


class Ear:
    """Level-triggered: so `hush` it, then let the tree be heard (`hear`, `advance`), look, `watch`, and wait again.

    One thread or task at a time.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._bell = Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.epoll = select.epoll()
        with self._bell as fd:
            self.epoll.register(fd, select.EPOLLIN)
        tree.told.bells[self._bell] = None
        self.watch()

    def fileno(self) -> int:
        return self.epoll.fileno()

    def hush(self) -> None:
        """Before the look: what is noted after it rings again."""
        try:
            with self._bell as fd:
                os.eventfd_read(fd)
        except (BlockingIOError, ValueError):
            pass  # it has not rung, or is closed

    def watch(self, main: bool = True) -> None:
        """Listen to what the tree is heard by now; to the process's own descriptor only while its end is awaited, and
        not at all without `main`: it is readable for ever then."""
        voices, descriptor = self._tree.voices, self._tree.descriptor
        if not main:
            voices = tuple(voice for voice in voices if voice is not descriptor)
        for voice in voices:
            try:
                with voice as fd:
                    if fd >= 0:
                        self.epoll.register(fd, select.EPOLLIN)
            except (FileExistsError, ValueError):
                pass  # there already; or closed by another thread, who rings
        if descriptor is not None and descriptor not in voices:
            try:
                with descriptor as fd:
                    self.epoll.unregister(fd)
            except (FileNotFoundError, ValueError):
                pass

    def close(self) -> None:
        """Give its two descriptors back.  Idempotent."""
        self._tree.told.bells.pop(self._bell, None)
        self._bell.close()
        self.epoll.close()
