"""Following a tree: its events for an iterator, an async iterator, a callback.  No thread, and no loop of ours.

In: what the tree has been told; out: the events of events.py, each once to each who follows.  Who waits does so by an
ear of its own.
"""

from __future__ import annotations

import sys
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from . import _native
from .ear import Ear
from .errors import KeeperLost, TimeoutExpired
from .events import Account, EventsLost, Exited, Spawned
from .keeper import FROZEN_LIMIT, POLLIN
from .options import limit
from .status import ExitStatus
from .told import EVENTS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from .events import TreeEvent
    from .handle import Process, Tree
    from .status import Seconds


class _Cursor:
    """Where one who follows stands.  One thread at a time."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._next = 0
        self._begun = False
        self._account = Account()
        self._account.begin(tree.started_ns, tree.started_at)

    def take(self) -> TreeEvent | None:
        """The next event of those that are known already."""
        told = self._tree.told
        if not self._begun:
            self._begun = True
            return Spawned(told.started_pid or self._tree.pid, 0, self._tree.started_at)
        while (entry := told.entries.get(self._next)) is None:
            end = told.end
            if self._next >= end:
                return None
            lost = end - EVENTS_MAX - self._next
            if lost > 0:
                self._next += lost
                return EventsLost(lost)
            # It was noted between the two looks.
        self._next += 1
        return Exited(entry) if isinstance(entry, ExitStatus) else self._account.take_in(entry)  # type: ignore[return-value]

    @property
    def behind(self) -> bool:
        return not self._begun or self._next < self._tree.told.end


class Callback:
    """Somebody who wants to be called for each event, by whoever hears of it."""

    def __init__(self, tree: Tree, call: Callable[[TreeEvent], object]) -> None:
        from _thread import allocate_lock

        self._cursor = _Cursor(tree)
        self._call = call
        self._busy = allocate_lock()

    def deliver(self) -> None:
        """All that is known, in its order and one at a time: while another thread is at it, or we are (called from
        within the callback), that one goes on."""
        while self._cursor.behind and self._busy.acquire(blocking=False):
            try:
                while (event := self._cursor.take()) is not None:
                    self._call(event)
            finally:
                self._busy.release()


class Events:
    """What happens to a process and its tree, from its start on: an iterator, and an async iterator.

    Made by `Process.events`.  It ends when nothing of the tree is left (with `private=False`: of the process), after
    `Empty`.  Each sees every event by itself; one thread or task at a time may use it.  Its descriptors are given
    back at the end, by `close`, or when it is dropped.
    """

    def __init__(self, process: Process) -> None:
        self._process = process  # which would stop the tree if it were dropped
        self._tree = process._tree
        self._cursor = _Cursor(self._tree)
        self._ear: Ear | None = None
        self._closed = False

    # ---- one after another

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TreeEvent:
        event = self.wait()
        if event is None:
            raise StopIteration
        return event

    def wait(self, timeout: Seconds | None = None) -> TreeEvent | None:
        """Wait for the next event and return it; None when there is no other.

        `timeout` is in seconds, 0 does not wait; at the limit TimeoutExpired is raised and nothing is lost.
        KeeperLost: the keeper was killed; what it had told was given before.  RuntimeError: the handle was released.
        """
        timeout = limit(timeout)
        deadline = None if timeout is None else monotonic() + timeout
        while (event := self._look(self._hear)) is None and not self._over():
            if self._ear is None:
                self.fileno()
                continue  # what another thread has read since the look did not ring
            left = -1 if deadline is None else max(0, int((deadline - monotonic()) * 1e9))
            if not _native.poll(self.fileno(), POLLIN, left):
                raise TimeoutExpired(self._process.args, timeout or 0.0)
        return event

    # ---- under asyncio and trio

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TreeEvent:
        """As `next`, for a task of asyncio or trio.  Cancelled, it has lost no event.

        A keeper that is frozen or was killed costs seconds of waiting: that is done by a thread of the loop's, once.
        """
        tree, late = self._tree, False
        while (event := self._look(tree.advance)) is None and not self._over():
            if tree.lost or (late and tree.overdue):
                try:
                    await _in_thread(self._hear)
                except KeeperLost:
                    if not self._cursor.behind:
                        raise
            elif self._ear is None:
                self.fileno()  # and look again, as above
            else:
                late = tree.overdue
                await _readable(self.fileno(), FROZEN_LIMIT if late else None)
        if event is None:
            raise StopAsyncIteration
        return event

    # ---- both

    def fileno(self) -> int:
        """For loops of other kinds: when it is readable, `wait(0)` may have an event, or the end.

        Look with `wait(0)` first, until that raises TimeoutExpired: events that are known already may not show here.
        ValueError after the end.
        """
        if self._closed:
            raise ValueError("these events have come to their end")
        if self._ear is None:
            self._ear = Ear(self._tree)
        return self._ear.fileno()

    def _look(self, hear: Callable[[], object]) -> TreeEvent | None:
        if self._tree.foreign:
            self._tree.check()
        event = self._cursor.take()
        if event is not None or self._over():
            return event
        if self._ear is not None:
            self._ear.hush()
        try:
            hear()
        except KeeperLost:
            if not self._cursor.behind:
                raise
        if self._ear is not None:
            self._ear.watch(main=not self._tree.overdue)  # it would be readable for ever
        return self._cursor.take()

    def _hear(self) -> None:
        """What the keeper has said.  One that is frozen is thawed, or given up: that takes 3 s.  KeeperLost."""
        self._tree.hear()
        if not self._cursor.behind and not self._tree.empty:
            self._tree.check()

    def _over(self) -> bool:
        """Nothing is left of the tree, and all of it was given."""
        if not self._tree.empty or self._cursor.behind:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Give its descriptors back; nothing happens to the tree.  Idempotent."""
        self._closed = True
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()

    def __del__(self) -> None:
        if getattr(self, "_ear", None) is not None:
            self.close()


def _trio() -> Any:
    """The module, if it runs the task that asks."""
    trio = sys.modules.get("trio")  # who is not there runs nothing
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            return None
    return trio


async def _readable(fd: int, limit: Seconds | None) -> None:
    """Until a descriptor is readable, or the time is over, by the loop that runs the task that asks."""
    trio = _trio()
    if trio is not None:
        with trio.move_on_after(inf if limit is None else limit):
            await trio.lowlevel.wait_readable(fd)
        return
    import asyncio

    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def on_readable() -> None:
        if not ready.done():
            ready.set_result(None)

    timer = None if limit is None else loop.call_later(limit, on_readable)
    loop.add_reader(fd, on_readable)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
        if timer is not None:
            timer.cancel()


async def _in_thread(call: Callable[[], object]) -> None:
    """Await what blocks, in a thread of the loop that runs the task that asks."""
    trio = _trio()
    if trio is not None:
        await trio.to_thread.run_sync(call)
        return
    import asyncio

    await asyncio.to_thread(call)
