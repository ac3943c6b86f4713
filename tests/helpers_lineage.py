"""Shared by the tests of lineage: a program that forks and knows what it did, and who else listens."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess

import pytest
from conftest import require
from helpers_wait import eventually

from holdfast.process.connector import Connector

HERE = pathlib.Path(__file__).resolve().parent


def build_program(directory) -> str:
    """Compile lineage.c; the program's path."""
    require("gcc")
    path = directory / "lineage"
    subprocess.run(["gcc", "-O1", "-pthread", "-o", path, HERE / "lineage.c"], check=True, timeout=60)
    return str(path)


def needs_connector():
    """Skip where the kernel does not tell us."""
    try:
        Connector().close()
    except OSError as error:
        pytest.skip(f"the proc connector is not to be had here: {error}")


def orphans(path) -> dict[int, int]:
    """What `orphan` of lineage.c has written: pid -> previous parent."""
    return {int(pid): int(previous) for pid, previous in map(str.split, pathlib.Path(path).read_text().splitlines())}


def somebody_listens() -> bool:
    """Whether the kernel counts a listener: then who has only bound a socket hears of a fork."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 11) as sock:
        sock.bind((0, 1))
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with contextlib.suppress(BlockingIOError):
            return bool(sock.recv(256))
    return False


def nobody_listens(limit: float = 15.0) -> bool:
    """Whether that comes to its end, for other tests may listen for a moment."""
    return bool(eventually(lambda: not somebody_listens(), limit))
