"""What every test gets: a look afterwards at everything that may leak.

Checked after each test, in the test's own process: descriptors, children and zombies, threads.  A test
that leaves something behind fails, whatever else it found.
"""

from __future__ import annotations

import gc
import os
import threading

import pytest
from helpers_wait import eventually


def _descriptors() -> dict[str, str]:
    result = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            result[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the one that listed
    return result


def _children() -> set[str]:
    result = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                result.update(file.read().split())
        except OSError:
            pass  # the thread has ended meanwhile
    return result


def _settled(look, before, limit=5.0):
    """What look() shows beyond `before`, once nothing is left or the limit is reached."""
    eventually(lambda: not set(look()) - set(before), limit)
    return {key: True for key in look() if key not in before}


@pytest.fixture(autouse=True)
def no_leaks():
    gc.collect()
    fds, children, threads = _descriptors(), _children(), set(threading.enumerate())
    yield
    gc.collect()
    left = _settled(_descriptors, fds)
    now = _descriptors()
    assert not left, f"descriptors left open: { {fd: now.get(fd) for fd in left} }"
    assert not _settled(_children, children), "children or zombies left"
    assert not _settled(lambda: set(threading.enumerate()), threads), "threads left"


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the two collections around each test need not walk through it (40 ms each)."""
    gc.collect()
    gc.freeze()


def require(program: str) -> None:
    """Skip where a program is missing; under CI (HOLDFAST_NO_SKIPS) that is a failure."""
    import shutil

    if shutil.which(program) is None:
        if os.environ.get("HOLDFAST_NO_SKIPS"):
            pytest.fail(f"{program} is missing, and CI must have it")
        pytest.skip(f"{program} is not installed")
