"""Cgroups as a test sees them: without the product's own idea of where they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import uuid

import pytest

CONTROLLERS = ("memory", "pids", "cpu")


def own_directories() -> dict[str, pathlib.Path]:
    """By controller of version 1, and "" for version 2: the directory of the cgroup that we are in."""
    own = {}
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    found = {}
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        for name in options.split(",") if kind == "cgroup" else [""] if kind == "cgroup2" else []:
            if name in own and name not in found and root == "/":
                found[name] = pathlib.Path(point + own[name])
    return found


def can_make(directory: pathlib.Path) -> bool:
    path = directory / f"test-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError:
        return False
    path.rmdir()
    return True


OWN = own_directories()
V1 = all(name in OWN and can_make(OWN[name]) for name in CONTROLLERS)
V2 = "" in OWN and can_make(OWN[""])
needs_v1 = pytest.mark.skipif(not V1, reason="needs memory, pids and cpu as cgroup v1, and the right to make some")
needs_v2 = pytest.mark.skipif(not V2, reason="needs a cgroup v2 directory that we may make others in")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def base(run_dir: pathlib.Path) -> str:
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(run_dir)), digest_size=6).hexdigest()
    return f"holdfast-{digest}"


def directory(controller: str, run_dir: pathlib.Path, name: str) -> pathlib.Path:
    return OWN[controller] / base(run_dir) / name


def left(run_dir: pathlib.Path) -> list[str]:
    """Directories of this run directory that are there, in any hierarchy that can be made in."""
    return [str(path) for own in OWN.values() if (path := own / base(run_dir)).exists()]


def pids(path: pathlib.Path) -> set[int]:
    return {int(pid) for pid in (path / "cgroup.procs").read_text().split()}


@contextlib.contextmanager
def made(parent: pathlib.Path):
    """A directory of the test's own, with what is below it, gone in the end; nobody may be in it then."""
    path = parent / f"test-{uuid.uuid4().hex}"
    path.mkdir()
    try:
        yield path
    finally:
        for below in [*path.iterdir(), path]:
            if below.is_dir():
                below.rmdir()
