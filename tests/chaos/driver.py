"""The run: steps by the dice, a look from outside after each that has settled, and a report."""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

from . import invariants, steps, trouble
from .daemons import DaemonWorld
from .world import Stuck, World

VIOLATIONS_MAX = 20  # then there is enough to look at
SETTLED = 0.4  # part of the steps after which everything is waited for and looked at


@dataclass
class Options:
    profile: str
    seed: int
    steps: int
    services: int
    kills: int = 0  # end after so many; 0: no limit


def repeat_with(options: Options) -> str:
    words = f"PROFILE={options.profile} SEED={options.seed} STEPS={options.steps} SERVICES={options.services}"
    return f"make chaos {words}" + (f" KILLS={options.kills}" if options.kills else "")


def run(options: Options, directory: pathlib.Path, progress=lambda _text: None) -> dict:
    """Do it; the report, as JSON types.  `violations` is empty when all went well."""
    dice = random.Random(options.seed)
    began = time.time()
    counter: Counter[str] = Counter()
    done: Counter[str] = Counter()
    violations: list[str] = []
    small_disk = options.profile == "trouble" and trouble.mount_small_disk(directory / "disk")
    world_of = DaemonWorld if options.profile == "daemons" else World
    with world_of(directory, options.services, small_disk=small_disk) as world:
        interrupted = False
        try:
            world.settle()
            for number in range(options.steps):
                step = dice.choice(steps.PROFILES[options.profile])
                step(world, dice)
                done[step.__name__] += 1
                world.tidy()
                if dice.random() < SETTLED:
                    violations += invariants.check(world.settle(), world.always, counter)
                so_far = f"kills: {dict(world.kills)}, violations: {len(violations)}"
                progress(f"{number + 1}/{options.steps} {step.__name__}; {so_far}")
                if len(violations) >= VIOLATIONS_MAX or 0 < options.kills <= sum(world.kills.values()):
                    break
            facts = world.finish()
            violations += invariants.check(facts, world.at_the_end, counter)
        except Stuck as error:
            violations.append(str(error))
        except KeyboardInterrupt:
            interrupted = True
        facts = world.look()
        return {
            "profile": options.profile,
            "seed": options.seed,
            "commit": commit(),
            "services": options.services,
            "steps": sum(done.values()),
            "steps_by_kind": dict(sorted(done.items())),
            "kills": sum(world.kills.values()),
            "kills_by_kind": dict(sorted(world.kills.items())),
            "kills_at_points": dict(sorted(world.kills_at.items())),
            "frozen": dict(sorted(world.freezes.items())),
            "exhausted": dict(sorted(world.exhausted.items())),
            "lives": sum(len(births) for births in facts.births.values()),
            "ends_told": sum(told != "runs" for told in facts.told.values()),
            "lines": sum(facts.counts.values()),
            "log_files": sum(len(files) for files in facts.logs.values()),
            "invariants_checked": dict(sorted(counter.items())),
            "violations": list(dict.fromkeys(violations))[: 5 * VIOLATIONS_MAX],
            "interrupted": interrupted,
            "seconds": round(time.time() - began, 1),
            "kernel": os.uname().release,
            "python": sys.version.split()[0],
            "repeat": repeat_with(options),
        }


def commit() -> str:
    try:
        here = pathlib.Path(__file__).parent
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def as_json(report: dict) -> str:
    return json.dumps(report, indent=1) + "\n"
