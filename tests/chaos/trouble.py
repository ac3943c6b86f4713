"""What is not a kill: processes that are frozen, a disk that is full, descriptors that are exhausted."""

from __future__ import annotations

import ctypes
import os
import pathlib
import random
import resource
import signal
import time
from collections.abc import Callable

from . import processes
from .world import World

DISK = 48 << 20  # bytes of the disk that logs, records and history lie on
MS_NODEV, MNT_DETACH = 4, 2


def mount_small_disk(path: pathlib.Path) -> bool:
    """In our own mount namespace, as root; it ends with that.  False: this run has no disk to fill."""
    if os.getpid() != 1:
        return False
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", MS_NODEV, f"size={DISK},mode=0755".encode()) == 0


def unmount(path: pathlib.Path) -> None:
    ctypes.CDLL(None).umount2(os.fsencode(path), MNT_DETACH)


def _freeze(world: World, pid: int, what: str, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> None:
    if processes.send(pid, signal.SIGSTOP):
        world.freezes[what] += 1
        time.sleep(seconds)
        meanwhile()
        processes.send(pid, signal.SIGCONT)


def frozen_supervisor(world: World, dice: random.Random) -> None:
    """Services crash meanwhile; then it goes on, or dies without having gone on."""
    pid = world.supervisor()
    meanwhile = dice.choice((lambda: None, lambda: world.kill_supervisor(pid)))
    _freeze(world, pid, "supervisor", dice.uniform(0, 2), meanwhile)


def frozen_keeper(world: World, dice: random.Random) -> None:
    found = world.keeper(dice.choice(sorted(world.kinds)))
    if found:
        kill = lambda: world.kill_supervisor(world.supervisor())  # noqa: E731
        _freeze(world, found[0], "keeper", dice.uniform(0, 0.8), dice.choice((lambda: None, kill)))


def frozen_anchor(world: World, dice: random.Random) -> None:
    """Its supervisor dies meanwhile, and nobody starts the next until it goes on."""
    pid = world.supervisor()
    assert world.anchor is not None
    _freeze(world, world.anchor.pid, "anchor", dice.uniform(0, 0.5), lambda: world.kill_supervisor(pid))


def no_descriptors(world: World, dice: random.Random) -> None:
    """The supervisor may open no more than a few; services end and are to be started meanwhile."""
    world.settle()
    pid = world.supervisor()
    try:
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + dice.choice((0, 1, 2, 5, 10)), before[1]))
    except OSError:
        return
    world.exhausted["descriptors"] += 1
    world.kill_main(dice.choice(sorted(world.kinds)))
    time.sleep(dice.uniform(0.2, 1))
    if dice.random() < 0.5:
        world.kill_supervisor(pid)  # with its records as they are
    elif processes.start_time(pid) is not None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def full_disk(world: World, dice: random.Random) -> None:
    """What services write meanwhile is lost and counted; nothing else happens to them."""
    if not world.small_disk:
        return
    filler = world.directory / "disk" / "filler"
    before = world.births()
    try:
        with open(filler, "wb", buffering=0) as file:
            while file.write(bytes(65536)) == 65536:
                pass
    except OSError:
        pass
    world.exhausted["disk"] += 1
    step = dice.choice((lambda: None, lambda: world.kill_supervisor(world.supervisor())))
    time.sleep(dice.uniform(0.1, 1))
    step()
    time.sleep(dice.uniform(0.1, 0.5))
    filler.unlink()
    world.note_full_disk(before)


TROUBLE: tuple[Callable[[World, random.Random], None], ...] = (
    frozen_supervisor, frozen_keeper, frozen_anchor, no_descriptors, full_disk,
)  # fmt: skip
