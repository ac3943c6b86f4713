"""Shared by the tests of the library: three ways to start a process, programs of their own, looks at /proc."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest

import holdfast
from holdfast.process import _native
from holdfast.process.keeper import KEEPER

WAYS = ("spawn", "runner", "direct")
NOBODY = 65534
NO_KEEPER = "ignore:no keeper can work here:RuntimeWarning"  # where there are no pidfds (test_notifiers.py)
is_root = os.geteuid() == 0
root_only = pytest.mark.skipif(not is_root, reason="needs root")


@contextmanager
def starter(way):
    """A function like `holdfast.spawn`: the module's, a runner's, or the module's with private=False."""
    if way == "runner":
        with holdfast.Runner() as runner:
            yield runner.spawn
    elif way == "direct":
        yield functools.partial(holdfast.spawn, private=False)
    else:
        yield holdfast.spawn


def tells_usage(start):
    """Whether processes that `start`, of a `starter`, starts have a usage: not those that the kernel itself reaps."""
    return not (isinstance(start, functools.partial) and _native.has_autoreap())


def program(code, *args, timeout=60, **options):
    """Run `code` in a fresh interpreter that may import this file; it must end with 0.  Its stdout."""
    env = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), **options.pop("env", {})}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", NO_KEEPER, "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True, text=True, timeout=timeout, env=env, check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done.stdout


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return default


def marked(marker):
    """The living processes that have `marker` in their environment."""
    found = []
    for pid in pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if marker.encode() in file.read():
                    found.append(pid)
        except OSError:
            pass  # gone, a zombie, or another user's
    return found


def keepers(owner=None):
    """The keepers whose owner we are: each holds a pidfd of its owner as descriptor 4."""
    owner = owner or os.getpid()
    return [
        pid
        for pid in pids()
        if read(f"/proc/{pid}/comm").strip() == "holdfast-keeper"
        and f"\nPid:\t{owner}\n" in read(f"/proc/{pid}/fdinfo/4") + "\n"
    ]


def descriptors():
    """The numbers of our open descriptors, without the one that lists them."""
    return sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}"))


def state(pid):
    """The state letter of a process that we hold."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2][1:2]


def nobody_can_run_keeper():
    """Whether the keeper can be reached by another user: not in a private home directory."""
    done = subprocess.run(["test", "-x", KEEPER], user=NOBODY, group=NOBODY, extra_groups=[], check=False)
    return done.returncode == 0


def identity_of(pidfd):
    """What reports say of the process: the inode of its pidfd, 0 where all pidfds share one (before Linux 6.9)."""
    inodes = []
    for pid in (1, os.getpid()):
        fd = os.pidfd_open(pid)
        inodes.append(os.fstat(fd).st_ino)
        os.close(fd)
    return os.fstat(pidfd).st_ino if inodes[0] != inodes[1] else 0


def kernel_tells_stolen_status():
    """PIDFD_INFO_EXIT: Linux 6.15."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    fd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    try:
        return _native.exit_info(fd) is not None
    finally:
        os.close(fd)
