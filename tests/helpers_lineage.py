"""Shared by the tests of lineage: a program that forks and knows what it did, and who else listens."""

from __future__ import annotations

import contextlib
import errno
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
        try:
            return bool(sock.recv(256))
        except BlockingIOError:
            return False
        except OSError as error:  # it has heard more than it can hold
            assert error.errno == errno.ENOBUFS
            return True


def nobody_listens(limit: float = 5.0) -> bool:
    """Whether that comes to its end: other tests, and other programs, may listen for a moment or for long."""
    return bool(eventually(lambda: not somebody_listens(), limit))


def listeners(pids) -> int:
    """Descriptors of the connector that these processes have."""
    with open("/proc/net/netlink") as file:
        inodes = {line.split()[-1] for line in file if line.split()[1] == "11"}
    links = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sum(link.removeprefix("socket:[").removesuffix("]") in inodes for link in links)
