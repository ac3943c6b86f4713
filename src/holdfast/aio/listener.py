"""Waiting for what a keeper says, in a loop that is not ours.

A keeper that is frozen or was killed costs seconds of waiting; only for that time a thread is used, one of anyio's.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from ..process.ear import Ear
from ..process.keeper import FROZEN_LIMIT
from ..process.pump import Pump
from ..process.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..process.handle import Process
    from ..process.status import Seconds, StopReport


class Listener:
    """Hears what happens to one tree, for any number of tasks of one loop: one of them waits on the descriptor, the
    others for it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._tree = process._tree
        self._ear: Ear | None = None
        self._pump: Pump | Sink | None = None
        self._heard: anyio.Event | None = None  # there while a task listens, and set when it stops
        self._patience = inf  # until when a keeper that owes a word may be silent, by the loop's clock
        self._closed = False

    def carry(self, input: bytes | None) -> Pump:
        """From now on bytes move while a task listens: `input` to the process, its output to what is returned."""
        self._ear = Ear(self._tree)
        self._pump = pump = Pump(self._process, input, self._ear.epoll)
        return pump

    def discard(self) -> None:
        """From now on its output is read while a task listens, and thrown away."""
        if self._ear is None:
            self._ear = Ear(self._tree)
        self._pump = Sink(self._process, self._ear.epoll)

    async def until(self, done: Callable[[], object]) -> None:
        """Until done(), which looks at what the tree knows; always a checkpoint.  Cancelled, nothing is lost.

        KeeperLost; RuntimeError: the handle was released; ValueError: we are a forked copy.
        """
        if self._tree.foreign:
            self._tree.check()
        if not self._closed:
            self._tree.advance()
        if done():
            await checkpoint()
        while not done():
            if self._closed:
                raise anyio.ClosedResourceError
            if self._tree.lost:
                await anyio.to_thread.run_sync(self._tree.check)
            elif self._heard is not None:
                await self._heard.wait()
            else:
                await self._listen()

    async def _listen(self) -> None:
        self._heard = heard = anyio.Event()
        try:
            if self._ear is None:
                self._ear = Ear(self._tree)  # what was said since the look did not ring: look again
            else:
                await self._wait(self._ear)
            if not self._closed:
                self._hear(self._ear)
        finally:
            self._heard = None
            heard.set()

    async def _wait(self, ear: Ear) -> None:
        with anyio.CancelScope(deadline=self._patience) as scope:
            try:
                await anyio.wait_readable(ear.fileno())
            except anyio.ClosedResourceError:
                pass  # closed meanwhile, as who waits will see
        if scope.cancelled_caught:
            await anyio.to_thread.run_sync(self._tree.hear)  # thaws it, or gives it up
            self._patience = inf

    def _hear(self, ear: Ear) -> None:
        if self._pump is not None and not self._pump.move(ear.epoll.poll(0)):
            return
        ear.hush()
        self._tree.advance()
        overdue = self._tree.overdue
        ear.watch(main=not overdue)
        if not overdue:
            self._patience = inf
        elif self._patience == inf:
            self._patience = anyio.current_time() + FROZEN_LIMIT

    async def finish_stop(self, stop_id: int, signo: int, scope: str, grace: Seconds) -> StopReport:
        """As a tree's, of which these are the arguments."""
        tree = self._tree
        with anyio.move_on_after(grace + tree.stop_margin):
            await self.until(lambda: tree.stopped(stop_id))

        def finish() -> StopReport:
            return tree.finish_stop(stop_id, signo, scope, grace, waited=True)

        report = finish() if tree.stopped(stop_id) and not tree.lost else await anyio.to_thread.run_sync(finish)
        self._process._gave_up = not report.empty
        return report

    async def end(self) -> StopReport:
        """Stop the tree, and wait until nothing of it is left, whatever is cancelled meanwhile."""
        args = self._process._begin_stop()

        async def ended() -> StopReport:
            report = await self.finish_stop(*args)
            if report.empty:
                with anyio.move_on_after(FROZEN_LIMIT):  # the word follows the report
                    await self.until(lambda: self._tree.empty)
            return report

        return await undisturbed(ended)

    def close(self) -> None:
        """Tasks that still wait get ClosedResourceError, unless what they wait for has come.  Idempotent."""
        self._closed = True
        ear, self._ear = self._ear, None
        if ear is not None:
            anyio.notify_closing(ear.fileno())
            ear.close()


async def undisturbed(wait: Callable[[], Awaitable[StopReport]]) -> StopReport:
    """Await wait(), which is bounded and may be begun again, to its end.

    No scope can cancel it; a bare `Task.cancel` of asyncio, which knows no shields, takes effect afterwards.
    """
    put_off: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while True:
            try:
                result = await wait()
                break
            except anyio.get_cancelled_exc_class() as error:
                put_off = error
    if put_off is not None:
        raise put_off
    return result
