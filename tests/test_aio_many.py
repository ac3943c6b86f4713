"""holdfast.aio at size: a gibibyte both ways, a thousand at once, and CPython's own tests of asyncio's processes."""

from __future__ import annotations

import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest
from helpers_aio import LOOPS, nothing_left
from helpers_lib import program

each_loop = pytest.mark.parametrize("loop", LOOPS)
DESCRIPTORS = 10_000


@each_loop
def test_a_gibibyte_both_ways(loop):
    """Through cat: what is sent comes back, byte by byte, while neither side holds the other up."""
    code = """
    import os, sys, anyio
    from helpers_aio import run
    from holdfast import aio

    BLOCK = os.urandom(1 << 20)
    BLOCKS = 1024

    async def main():
        async with await aio.open_process(["cat"]) as process:
            async def feed():
                for _ in range(BLOCKS):
                    await process.stdin.send(BLOCK)
                await process.stdin.aclose()

            received = 0
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed)
                async for data in process.stdout:
                    at = received % len(BLOCK)
                    first = BLOCK[at : at + len(data)]
                    assert data == first + BLOCK[: len(data) - len(first)]
                    received += len(data)
            assert await process.wait() == 0
            print(received)

    run(sys.argv[1], main)
    """
    assert program(code, loop) == f"{1 << 30}\n"


@each_loop
def test_a_thousand_at_once(loop):
    """All live at the same time; half of them end, each with its own word, and half are cancelled.  No thread, nothing
    left."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors, and the hard limit is {hard}")
    code = """
    import asyncio, os, resource, sys, threading, anyio
    from helpers_aio import run
    from holdfast import aio

    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    async def main():
        before = len(os.listdir("/proc/self/fd"))
        all_run = anyio.Event()
        running = 0
        words = []

        async def one(number):
            nonlocal running
            options = {"stderr": None} | ({"stdin": None} if number % 2 else {})
            command = ["sleep", "99"] if number % 2 else ["cat"]
            async with await aio.open_process(command, **options) as process:
                running += 1
                if running == 1000:
                    all_run.set()
                if number % 2:
                    await process.wait()
                await all_run.wait()
                await process.stdin.send(b"%d" % number)
                await process.stdin.aclose()
                words.append(await process.stdout.receive())
                assert await process.wait() == 0

        async with anyio.create_task_group() as all_tasks:
            async with anyio.create_task_group() as tasks:
                for number in range(1000):
                    (all_tasks if number % 2 else tasks).start_soon(one, number)
            assert threading.active_count() == 1
            all_tasks.cancel_scope.cancel()
        assert sorted(map(int, words)) == list(range(0, 1000, 2))
        assert len(os.listdir("/proc/self/fd")) <= before, os.listdir("/proc/self/fd")

    run(sys.argv[1], main)
    """
    with nothing_left() as env:
        program(code, loop, DESCRIPTORS, env=env)


@pytest.mark.parametrize("loop", LOOPS[:2])
def test_the_standard_tests_of_asyncio(loop):
    """Those of test.test_asyncio.test_subprocess that are about processes, on processes of ours."""
    pytest.importorskip("test.test_asyncio.test_subprocess", reason="the interpreter's own tests are not installed")
    here = pathlib.Path(__file__).parent
    with nothing_left() as env:
        command = [sys.executable, "-W", "error", str(here / "helpers_aio_standard.py"), loop]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False, cwd=os.sep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    passed, parts, skipped = map(int, re.findall(r"passed (\d+), of parts (\d+), skipped (\d+)", done.stdout)[0])
    assert passed >= 20
    assert skipped <= parts + 1  # one of its own may not be for this system
