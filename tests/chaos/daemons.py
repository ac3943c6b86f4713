"""The profile `daemons`: real daemons of `type = "forking"`, two of a kind and more, and what must hold for them.

Here the services say nothing about themselves, so other things are looked at: who answers at the address of each, who
listens there, and under which keeper everything lives.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import signal
import time
from dataclasses import dataclass, field

from helpers_daemons import PATH, STYLES, Instance, listeners, sockets_of

from holdfast.client import Client, ClientError

from . import invariants, processes
from .facts import Birth, Facts
from .world import LIMIT, Stuck, World, until

FORK_LIMIT = 2.0  # seconds until a start that does not come is given up: the supervisor was killed, too
WITH_WORKERS = ("nginx", "haproxy")
MENDS_WORKERS = "nginx"  # the end of a worker of haproxy is that of the service: it wants it so


@dataclass
class Seen:
    """A service at one moment."""

    pid: int  # as status says
    incarnation: int
    tree: set[int]  # what lives below the keeper of that process
    parent_is_keeper: bool
    listen: set[int]  # who has the sockets of its address
    mistaken: str  # "", or what was wrong with the answer there
    written: int | None  # the daemon's own pid file; None: it has none


@dataclass
class DaemonFacts(Facts):
    seen: dict[str, Seen] = field(default_factory=dict)
    keepers: dict[int, str] = field(default_factory=dict)  # keeper -> service
    strays: list[str] = field(default_factory=list)  # processes that are under no keeper
    served: list[str] = field(default_factory=list)  # addresses where somebody listens, after everything was stopped


def each_address_is_its_own(facts: DaemonFacts) -> list[str]:
    """The right instance answers, and only processes of its own tree listen there."""
    found = [seen.mistaken for seen in facts.seen.values() if seen.mistaken]
    for name, seen in facts.seen.items():
        if not seen.listen or seen.listen - seen.tree:
            found.append(f"{name}: {sorted(seen.listen)} listen, its processes are {sorted(seen.tree)}")
    return found


def main_is_right(facts: DaemonFacts) -> list[str]:
    """Status names a child of a keeper, the same process as the daemon's own pid file."""
    return [
        f"{name}: status says {seen.pid}, its own pid file {seen.written}, parent is a keeper: {seen.parent_is_keeper}"
        for name, seen in facts.seen.items()
        if not seen.parent_is_keeper or (seen.written is not None and seen.written != seen.pid)
    ]


def one_tree_each(facts: DaemonFacts) -> list[str]:
    """A keeper for each service, and nothing that lives under none."""
    held = sorted(facts.keepers.values())
    found = [] if held == sorted(facts.kinds) else [f"keepers hold {held}"]
    return found + [f"under no keeper: {each}" for each in facts.strays]


def restarts_have_a_cause(facts: DaemonFacts) -> list[str]:
    """Not more ends than were made: by a kill in its tree or of its keeper, by a command, by the stop in the end.
    Starts that a killed supervisor had not made are no ends."""
    ends: dict[str, list[str]] = {}
    for (name, number), cause in facts.told.items():
        if cause != "runs" and "supervisor was killed at that moment" not in cause:
            ends.setdefault(name, []).append(f"@{number} {cause}")
    return [
        f"{name}: {len(told)} ends, {facts.commands[name]} causes: {told}"
        for name, told in ends.items()
        if len(told) > facts.commands[name] + facts.ended
    ]


def nobody_serves(facts: DaemonFacts) -> list[str]:
    """After `down` nobody listens."""
    return [f"somebody listens for {name}" for name in facts.served]


ALWAYS = (each_address_is_its_own, main_is_right, one_tree_each)
AT_THE_END = (
    restarts_have_a_cause, nobody_serves, invariants.nothing_is_left, invariants.run_directory_is_tidy,
)  # fmt: skip


class DaemonWorld(World):
    """With the daemons that are installed, each in turn."""

    always, at_the_end = ALWAYS, AT_THE_END

    def __init__(self, directory: pathlib.Path, services: int, **options: bool) -> None:
        super().__init__(directory, services, **options)
        os.environ["PATH"] = PATH
        styles = [style for style in STYLES.values() if style.program()]
        if not styles:
            raise Stuck(f"none of {', '.join(STYLES)} is installed")
        self.kinds = {f"{styles[i % len(styles)].name}-{i}": styles[i % len(styles)].name for i in range(services)}
        self.instances: dict[str, Instance] = {}
        self.facts: DaemonFacts = DaemonFacts(self.kinds)

    def configuration(self) -> str:
        text = '[supervisor]\nrun_dir = "run"\nlog_dir = "log"\nstate_dir = "state"\n'
        text += "start_budget = { at_once = 1000, per_second = 1000 }\n"
        backoff = {"first": "0s", "then": "100ms", "max": "1s"}
        for name, kind in self.kinds.items():
            keys = {"restart": "always", "start_limit": 0, "backoff": backoff, "grace": "5s"}
            self.instances[name] = Instance(STYLES[kind], name, self.own, **keys)
            text += self.instances[name].toml
        return text

    # ---- kills

    def keepers(self) -> dict[int, str]:
        """Those that live below us, and the service of each."""
        return {pid: name for pid in processes.all_below() if (name := self.held_by(pid))}

    def held_by(self, pid: int) -> str:
        """The service of a keeper: it has its directory open, for its report.  "": it is no keeper."""
        if not processes.is_keeper(pid):
            return ""
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            return ""
        services = str(self.run_dir / "services")
        return next((os.path.basename(link) for link in links if os.path.dirname(link) == services), "")

    def keeper_of(self, name: str) -> int:
        """0: none, and it has no children."""
        return next((pid for pid, held in self.keepers().items() if held == name), 0)

    def kill(self, name: str, pid: int, what: str) -> bool:
        mends = what == "worker" and self.kinds[name] == MENDS_WORKERS and "worker" in processes.command(pid)
        done = processes.send(pid, signal.SIGKILL, processes.start_time(pid), wait=LIMIT)
        self.kills[what] += done
        self.facts.commands[name] += done and not mends
        return done

    def kill_main(self, name: str) -> bool:
        """The oldest child of the keeper; during a start that may be the process that was started."""
        keeper = self.keeper_of(name)
        found = [(start, pid) for pid in processes.children(keeper) if (start := processes.start_time(pid)) is not None]
        return bool(found) and self.kill(name, min(found)[1], "service")

    def kill_worker(self, name: str, dice: random.Random) -> bool:
        keeper = self.keeper_of(name)
        found = sorted(below(keeper) - set(processes.children(keeper)))
        return bool(found) and self.kill(name, dice.choice(found), "worker")

    def kill_keeper(self, name: str) -> bool:
        keeper = self.keeper_of(name)
        return bool(keeper) and self.kill(name, keeper, "keeper")

    # ---- looking

    def settle(self) -> Facts:
        trouble: list[str] = []

        def settled() -> bool:
            self.supervisor()
            self.tidy()
            with contextlib.suppress(ClientError):
                client = Client(str(self.run_dir), timeout=LIMIT)
                if client.supervisor()["state"] != "running":
                    return False
                self.facts.status = {status["name"]: status for status in client.services()}
                trouble[:] = [f"{name} is {status['state']}: {status['reason']}"
                              for name, status in self.facts.status.items() if not status["ready"]]  # fmt: skip
                if not trouble:  # a kill of this moment may not have been seen yet, a worker may not be there again
                    trouble[:] = [line for invariant in ALWAYS for line in invariant(self.look())]
                return not trouble
            return False

        try:
            until(settled, "all are up again")
        except Stuck as error:
            raise Stuck(f"{error}; {trouble}") from None
        return self.facts

    def look(self) -> DaemonFacts:
        facts = self.facts
        facts.keepers = self.keepers()
        holders = {pid: sockets_of(pid) for pid in processes.all_below()}
        facts.seen = {}
        for name, status in facts.status.items():
            one, pid = self.instances[name], status["pid"] or 0
            birth = Birth(status["incarnation"], pid, 0)
            if birth not in (known := facts.births.setdefault(name, [])):
                known.append(birth)
            keeper = processes.parent(pid) if pid else 0
            inodes = listeners(one.address)
            facts.seen[name] = Seen(
                pid, status["incarnation"], below(keeper) if keeper else set(),
                facts.keepers.get(keeper) == name, {holder for holder, has in holders.items() if has & inodes},
                one.mistaken(pid), (one.pid_file() or -1) if one.style.own_pid_file else None,
            )  # fmt: skip
        held = {self.anchor.pid} if self.anchor else set()
        for keeper in facts.keepers:
            held |= {keeper, *below(keeper)}
        facts.strays = [
            f"{pid}: {command}" for pid in processes.all_below()
            if pid not in held and (command := processes.command(pid)) and "holdfast" not in command
        ]  # fmt: skip
        return facts

    def finish(self) -> Facts:
        self.end()
        self.facts.status, self.facts.seen = {}, {}
        self.facts.left = [f"{pid}: {processes.command(pid)}" for pid in processes.all_below()]
        self.facts.served = [name for name, one in self.instances.items() if not one.refuses()]
        for name in self.kinds:
            self.facts.files[name] = sorted(os.listdir(self.run_dir / "services" / name))
        self.facts.told = self._history()
        return self.facts


def below(pid: int) -> set[int]:
    """Every process below it, zombies too."""
    found: set[int] = set()
    todo = processes.children(pid)
    while todo:
        pid = todo.pop()
        found.add(pid)
        todo += processes.children(pid)
    return found


def worker(world: DaemonWorld, dice: random.Random) -> None:
    """A process that is a child of a main process."""
    if having := [name for name, kind in sorted(world.kinds.items()) if kind in WITH_WORKERS]:
        world.kill_worker(dice.choice(having), dice)


def at_the_fork(world: DaemonWorld, dice: random.Random) -> None:
    """Any process of a service, its keeper too, while it forks away."""
    assert world.anchor is not None
    name, anchor = dice.choice(sorted(world.kinds)), world.anchor.pid
    before = set(processes.children(anchor))

    def started() -> list[int]:  # a keeper falls to the anchor as soon as it is there; few are new, so this is quick
        return [pid for pid in processes.children(anchor) if pid not in before and world.held_by(pid) == name]

    world.ask("restart", name)
    with contextlib.suppress(Stuck):
        keeper = until(started, "it starts anew", FORK_LIMIT)[0]
        time.sleep(dice.uniform(0, 0.02))
        world.kill(name, dice.choice(sorted(below(keeper) | {keeper})), "while it forks")
