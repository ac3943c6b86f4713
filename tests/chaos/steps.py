"""What a step does to the world.  Each is one function of the world and the dice; the profiles choose among them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from .daemons import at_the_fork, worker
from .moments import MOMENTS
from .trouble import TROUBLE
from .world import World

Step = Callable[[Any, random.Random], None]  # of a World

# Points inside a supervisor's life: an audit event of its Python, and a part of its arguments.
POINTS = {
    "start-up": ("open", "accepted.json"),
    "reading a record": ("open", "/record"),
    "connecting to a keeper": ("socket.connect", ".sock"),
    "writing a record": ("open", "record.new"),
    "renaming a record": ("os.rename", "record.new"),
    "binding a keeper's socket": ("socket.bind", ".sock"),
    "removing a report": ("os.remove", ".report"),
    "removing a socket": ("os.remove", ".sock"),
    "opening a log directory": ("os.mkdir", "-"),
    "taking the control socket": ("import", "uvicorn"),
}


def pause(dice: random.Random, longest: float) -> None:
    time.sleep(dice.uniform(0, longest))


def supervisor(world: World, dice: random.Random) -> None:
    """The supervisor, at any moment of its life."""
    pid = world.supervisor()
    pause(dice, 0.4)
    world.kill_supervisor(pid)


def settled_supervisor(world: World, dice: random.Random) -> None:
    """One that has everything."""
    world.settle()
    pause(dice, 0.3)
    world.kill_supervisor(world.supervisor())


def anchor(world: World, dice: random.Random) -> None:
    """The anchor, and with it the supervisor, if there is one: it may be in the pause before the next."""
    if dice.random() < 0.5:
        world.supervisor()
    pause(dice, 0.4)
    world.kill_anchor()
    world.up()


def both(world: World, dice: random.Random) -> None:
    """Supervisor and anchor, a moment apart."""
    pid = world.supervisor()
    pause(dice, 0.3)
    if world.kill_supervisor(pid):
        pause(dice, 0.01)
    world.kill_anchor()
    world.up()


def at_a_point(world: World, dice: random.Random) -> None:
    """The next supervisor, from inside, at a named point."""
    name = dice.choice(sorted(POINTS))
    event, text = POINTS[name]
    world.point.write_text(f"{event} {text} {dice.choice((0, 0, 0, 1, 2, 5))}\n")
    dice.choice((settled_supervisor, anchor))(world, dice)
    armed = world.supervisor()
    world.wait_for_point(armed, name)


def keeper(world: World, dice: random.Random) -> None:
    for name in dice.sample(sorted(world.kinds), dice.choice((1, 1, 2, 3))):
        world.kill_keeper(name)


def service(world: World, dice: random.Random) -> None:
    for name in dice.sample(sorted(world.kinds), dice.choice((1, 1, 2, 3))):
        world.kill_main(name)


def command(world: World, dice: random.Random) -> None:
    """A service is asked to start, stop or restart."""
    name = dice.choice(sorted(world.kinds))
    verb = dice.choice(("restart", "restart", "stop", "start"))
    world.ask(verb, name)
    if verb == "stop":
        pause(dice, 0.1)
        world.ask("start", name)


def together(*steps: Step) -> Step:
    def all_of_them(world: World, dice: random.Random) -> None:
        for step in dice.sample(steps, len(steps)):
            step(world, dice)
            pause(dice, 0.02)

    all_of_them.__name__ = "_".join(step.__name__ for step in steps)
    return all_of_them


def _now(world: World, dice: random.Random) -> None:
    """The supervisor, this moment."""
    world.kill_supervisor(world.supervisor())


_now.__name__ = "supervisor"

SUPERVISOR: tuple[Step, ...] = (supervisor, settled_supervisor, anchor, anchor, both, both, at_a_point)
KEEPERS: tuple[Step, ...] = (
    keeper, service, command,
    together(keeper, _now), together(keeper, command), together(command, _now), together(service, _now),
    together(service, keeper), together(keeper, anchor), together(keeper, command, _now),
)  # fmt: skip
DAEMONS: tuple[Step, ...] = (
    service, service, worker, worker, keeper, command, supervisor, anchor, at_the_fork, together(at_the_fork, _now),
    together(service, worker), together(service, keeper), together(service, command),
    together(service, _now), together(worker, _now), together(keeper, _now), together(command, _now),
)  # fmt: skip
PROFILES: dict[str, tuple[Step, ...]] = {
    "supervisor": SUPERVISOR, "keepers": (*KEEPERS, *MOMENTS), "trouble": (*TROUBLE, *TROUBLE, supervisor),
    "daemons": DAEMONS,
}  # fmt: skip
