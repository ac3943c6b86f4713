"""Keepers killed at named moments: as a log is rotated, as they start, as they stop, as they write their report."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from . import processes
from .watch import Watch
from .world import World

MOMENT_LIMIT = 1.5  # seconds until a moment that does not come is given up


def keeper_at_rotation(world: World, dice: random.Random) -> None:
    name = dice.choice([name for name in world.kinds if world.rotates_fast(name)])
    found = world.keeper(name)
    directory = world.log_dir / name
    if found is None or not directory.is_dir():
        return
    with Watch(str(directory)) as watch:
        if watch.wait(lambda file: file.isdecimal() or file == "current", MOMENT_LIMIT):
            world.facts.killed[name, found[1]] = "keeper"
            _kill(world, found[0], "rotation")


def keeper_at_spawn(world: World, dice: random.Random) -> None:
    """As its socket has been made: before the keeper is there, before its process is, or just after."""
    name = dice.choice(sorted(world.kinds))
    directory = world.run_dir / "services" / name
    if not directory.is_dir():
        return
    with Watch(str(directory)) as watch:
        world.ask("restart", name)
        made = watch.wait(lambda file: file.endswith(".sock"), MOMENT_LIMIT)
    if not made:
        return
    world.facts.killed[name, int(made.partition(".")[0])] = "keeper"
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        for pid in processes.all_below():
            if processes.is_keeper(pid) and _holds(pid, str(directory)):
                time.sleep(dice.choice((0, 0, dice.uniform(0, 0.01))))
                _kill(world, pid, "spawn")
                return


def keeper_at_stop(world: World, dice: random.Random) -> None:
    name = dice.choice(sorted(world.kinds))
    found = world.keeper(name)
    if found is None:
        return
    world.ask(dice.choice(("stop", "restart")), name)
    time.sleep(dice.uniform(0, 0.02))
    world.facts.killed[name, found[1]] = "keeper"
    _kill(world, found[0], "stop")
    world.ask("start", name)


def keeper_at_report(world: World, dice: random.Random) -> None:
    """Nobody is there to hear that a service has ended, and the keeper dies as it writes that down."""
    name = dice.choice(sorted(world.kinds))
    found = world.keeper(name)
    directory = world.run_dir / "services" / name
    if found is None or not directory.is_dir() or not world.kill_anchor():
        return
    with Watch(str(directory)) as watch:
        world.kill_main(name)
        if watch.wait(lambda file: "report" in file, MOMENT_LIMIT):
            world.facts.killed[name, found[1]] = "keeper"
            _kill(world, found[0], "report")
    world.up()


def _holds(pid: int, directory: str) -> bool:
    """Whether it has this directory open: its report goes there."""
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") == directory for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _kill(world: World, pid: int, moment: str) -> None:
    if processes.is_keeper(pid) and processes.send(pid, signal.SIGKILL):
        world.kills["keeper"] += 1
        world.kills_at[f"keeper: {moment}"] += 1


MOMENTS: tuple[Callable[[World, random.Random], None], ...] = (
    keeper_at_rotation, keeper_at_spawn, keeper_at_stop, keeper_at_report,
)  # fmt: skip
