"""Shared by the tests of holdfast.aio: the three loops, as their own `run` starts them, and marked commands."""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import contextmanager

import anyio
import trio
import uvloop
from helpers_trees import left_of
from helpers_wait import LIMIT

LOOPS = ("asyncio", "uvloop", "trio")
uvloop.new_event_loop().close()  # libuv has a pipe for signals from its first loop on, for ever: not a leak of a test


def run(loop: str, main, *args):
    """Run main(*args) under that loop, bounded; what it returns.  No anyio.run: a user's loop is his own."""

    async def bounded():
        with anyio.fail_after(4 * LIMIT):
            return await main(*args)

    if loop == "trio":
        return trio.run(bounded)
    factory = uvloop.new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory, debug=loop == "asyncio") as runner:
        return runner.run(bounded())


@contextmanager
def nothing_left():
    """An environment with a mark; at the end no process on the machine carries it."""
    mark = uuid.uuid4().hex
    yield {**os.environ, "HF_MARK": mark}
    assert not left_of(mark)


async def until_blocked(loop: str) -> None:
    """Until every other task waits for something."""
    if loop == "trio":
        import trio.testing

        await trio.testing.wait_all_tasks_blocked()
    else:
        await anyio.wait_all_tasks_blocked()
