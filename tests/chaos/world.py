"""The supervisor under test with its services, in a directory of its own, and what is done to it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Self

from holdfast.client import Client, ClientError

from . import facts as seen
from . import processes
from .facts import Birth, Facts
from .invariants import ALWAYS, AT_THE_END, STEADY, status_is_true

HERE = pathlib.Path(__file__).parent
HOLDFAST = str(pathlib.Path(sys.executable).parent / "holdfast")
POINT_LIMIT = 1.0  # seconds until an armed supervisor counts as past its point
LIMIT = 20.0  # for anything that is waited for: a guard against hangs
PAUSE = 0.003
# In turn, so that every number of services has them all.
KINDS = ("writer", "crasher", "forker", "notify", "stubborn", "leaver", "hider", "oneshot", "forker", "writer")


class Stuck(Exception):
    """Something did not come to be within LIMIT: a violation of its own."""


def until(look, what: str, limit: float = LIMIT):
    deadline = time.monotonic() + limit
    while not (value := look()):
        if time.monotonic() > deadline:
            raise Stuck(f"not within {limit:g} s: {what}")
        time.sleep(PAUSE)
    return value


class World:
    """`with World(directory, services) as world`: up; at the end down, and nothing is left."""

    always, at_the_end = ALWAYS, AT_THE_END  # invariants

    def __init__(self, directory: pathlib.Path, services: int, *, small_disk: bool = False) -> None:
        self.directory = directory
        self.small_disk = small_disk  # what the supervisor writes lies on one that can be filled, `directory`/disk
        self.own = directory / "own"  # the services' files
        self.journal = directory / "up.out"
        self.point = directory / "point"
        self.freezes: Counter[str] = Counter()
        self.exhausted: Counter[str] = Counter()
        self.kinds = {f"{KINDS[i % len(KINDS)]}{i}": KINDS[i % len(KINDS)] for i in range(services)}
        self.facts = Facts(self.kinds)
        self.kills: Counter[str] = Counter()
        self.kills_at: Counter[str] = Counter()  # named points
        self.anchor: subprocess.Popen[bytes] | None = None

    def configuration(self) -> str:
        disk = "disk/" if self.small_disk else ""
        text = f'[supervisor]\nrun_dir = "{disk}run"\nlog_dir = "{disk}log"\nstate_dir = "{disk}state"\n'
        text += "start_budget = { at_once = 1000, per_second = 1000 }\n"
        python = os.path.realpath(sys.executable)
        for name, kind in self.kinds.items():
            words = [python, "-I", "-S", str(HERE / "service.py"), kind, str(self.own), name]
            command = " ".join(f"'{word}'" for word in words)
            text += f"[service.{name}]\nshell = true\ncommand = {json.dumps(f'exec {command} $HOLDFAST_INCARNATION')}\n"
            size = "4KiB" if self.rotates_fast(name) else "64KiB"
            text += f"start_limit = 0\nlog = {{ rotate = {{ size = '{size}', count = 10000 }}, cap = '8GiB' }}\n"
            text += f"grace = '{'200ms' if kind in ('stubborn', 'forker') else '10s'}'\n"
            text += {
                "crasher": "restart = 'always'\nbackoff = { first = '0s', then = '100ms', max = '1s' }\n",
                "notify": "type = 'notify'\n",
                "oneshot": "type = 'oneshot'\n",
                "leaver": "on_owner_loss = 'stop'\nrestart = 'always'\n",
            }.get(kind, "restart = 'always'\n")
        return text

    def rotates_fast(self, name: str) -> bool:
        return name.startswith("writer") and name.endswith("0")

    @property
    def run_dir(self) -> pathlib.Path:
        return self.directory / ("disk/run" if self.small_disk else "run")

    @property
    def log_dir(self) -> pathlib.Path:
        return self.directory / ("disk/log" if self.small_disk else "log")

    # ---- the supervisor and its anchor

    def up(self) -> None:
        """Start an anchor where none is."""
        if self.anchor is not None and self.anchor.poll() is None:
            return
        with open(self.journal, "ab") as out:
            self.anchor = subprocess.Popen(
                [HOLDFAST, "up", "-c", str(self.directory / "holdfast.toml")],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(HERE / "points"), "CHAOS_POINT": str(self.point),
                     "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip

    def supervisor(self) -> int:
        """Its pid, once there is one; an anchor that ended with its first supervisor is started anew."""

        def look() -> int:
            self.up()
            assert self.anchor is not None
            for pid in processes.children(self.anchor.pid):
                if "holdfast.cli.supervise" in processes.command(pid) and processes.start_time(pid) is not None:
                    return pid
            return 0

        return until(look, "a supervisor is started")

    def kill_supervisor(self, pid: int) -> bool:
        done = processes.send(pid, signal.SIGKILL, wait=LIMIT)
        self.kills["supervisor"] += done
        self.facts.owner_lost += done
        return done

    def kill_anchor(self) -> bool:
        assert self.anchor is not None
        done = self.anchor.poll() is None and processes.send(self.anchor.pid, signal.SIGKILL)
        if done:
            self.anchor.wait(LIMIT)
            self.kills["anchor"] += 1
            self.facts.owner_lost += 1
        return done

    def wait_for_point(self, pid: int, name: str) -> None:
        """Until an armed supervisor has died of it; one that never comes there is left alone."""
        with contextlib.suppress(Stuck):
            until(lambda: processes.start_time(pid) is None, f"it comes to {name}", POINT_LIMIT)
        if processes.start_time(pid) is None:
            self.kills["supervisor"] += 1
            self.kills_at[name] += 1
            self.facts.owner_lost += 1

    # ---- services

    def living(self, name: str) -> list[Birth]:
        births = seen.births(str(self.own), name)
        return [birth for birth in births[-50:] if processes.start_time(birth.pid) == birth.start]

    def kill_main(self, name: str) -> bool:
        for birth in self.living(name):
            self.facts.killed.setdefault((name, birth.incarnation), "main")
            done = processes.send(birth.pid, signal.SIGKILL, birth.start)
            self.kills["service"] += done
            return done
        return False

    def keeper(self, name: str) -> tuple[int, int] | None:
        """Of the living copy: the keeper's pid, and the incarnation."""
        for birth in self.living(name):
            pid = processes.parent(birth.pid)
            if processes.is_keeper(pid) and processes.start_time(birth.pid) == birth.start:
                return pid, birth.incarnation
        return None

    def kill_keeper(self, name: str) -> bool:
        found = self.keeper(name)
        if found is None:
            return False
        self.facts.killed[name, found[1]] = "keeper"
        done = processes.send(found[0], signal.SIGKILL)
        self.kills["keeper"] += done
        return done

    def ask(self, verb: str, name: str) -> None:
        """A command, in flight: nobody waits for its end, and it may meet a supervisor that dies."""
        if verb != "start":
            self.facts.commands[name] += 1
        with contextlib.suppress(ClientError):
            getattr(Client(str(self.run_dir), timeout=5.0), verb)(name, wait=False)

    def births(self) -> dict[str, list[Birth]]:
        return {name: seen.births(str(self.own), name) for name in self.kinds}

    def note_full_disk(self, before: dict[str, list[Birth]]) -> None:
        """Who lived since then may have lost lines, which are counted, and the row of its end."""
        self.facts.disks_filled += 1
        for name, births in self.births().items():
            since = births[max(0, len(before[name]) - 1) :]
            self.facts.disk_full |= {(name, birth.incarnation) for birth in since}

    # ---- looking

    def tidy(self) -> None:
        processes.reap({self.anchor.pid} if self.anchor else set())

    def settle(self) -> Facts:
        """Until a supervisor answers, each service that is to run is ready, and what was asked and what was looked at
        after that agree; what was seen then."""

        def settled() -> bool:
            self.supervisor()
            self.tidy()
            with contextlib.suppress(ClientError):
                client = Client(str(self.run_dir), timeout=LIMIT)
                if client.supervisor()["state"] != "running":
                    return False
                self.facts.status = {status["name"]: status for status in client.services()}
                if all(self.facts.status[n]["ready"] for n, kind in self.kinds.items() if kind in STEADY):
                    return not status_is_true(self.look())  # a kill of this moment may not have been seen yet
            return False

        try:
            until(settled, "all are up again")
        except Stuck as error:
            down = [f"{name} is {status['state']}: {status['reason']}" for name, status in self.facts.status.items()
                    if self.kinds[name] in STEADY and not status["ready"]]  # fmt: skip
            raise Stuck(f"{error}; {down + status_is_true(self.look())}") from None
        return self.facts

    def look(self) -> Facts:
        """Read what services have written, and who lives.  After `settle`, as long as nothing is done."""
        own, facts = str(self.own), self.facts
        for name in self.kinds:
            facts.births[name] = seen.births(own, name)
            facts.ends |= seen.ends(own, name)
            facts.alive[name] = self.living(name)
            facts.doubles += [
                line for each in seen.lines_of(f"{own}/{name}.doubles")
                if (line := f"{name}@{each}") not in facts.doubles
            ]  # fmt: skip
        return facts

    def end(self) -> None:
        """Stop everything in order."""
        self.settle()
        assert self.anchor is not None
        processes.send(self.anchor.pid, signal.SIGTERM)
        self.facts.ended = True
        self.anchor.wait(LIMIT)
        self.tidy()

    def finish(self) -> Facts:
        """End, and read all."""
        self.end()
        facts = self.look()
        facts.status = {}
        facts.left = [f"{pid}: {processes.command(pid)}" for pid in processes.all_below()]
        for name in self.kinds:
            facts.counts |= seen.counts(str(self.own), name)
            facts.files[name] = sorted(os.listdir(self.run_dir / "services" / name))
            facts.logs[name] = seen.log_files(str(self.log_dir / name))
        facts.told = self._history()
        return facts

    def _history(self) -> dict[seen.Life, str]:
        """What `holdfast history` knows."""
        done = subprocess.run(
            [HOLDFAST, "history", "--json", "--limit", "1000000"], capture_output=True, text=True, timeout=LIMIT,
            env={**os.environ, "HOLDFAST_RUN_DIR": str(self.run_dir)},
        )  # fmt: skip
        return seen.told_in_history(done.stdout) if done.returncode == 0 else {}

    def __enter__(self) -> Self:
        self.own.mkdir()
        (self.directory / "holdfast.toml").write_text(self.configuration())
        self.up()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Whatever is left is below us, and ends."""
        for signo in (signal.SIGCONT, signal.SIGKILL):
            if self.anchor is not None and self.anchor.poll() is None:
                processes.send(self.anchor.pid, signo)
        if self.anchor is not None:
            self.anchor.wait()
        deadline = time.monotonic() + LIMIT
        while (left := processes.all_below()) and time.monotonic() < deadline:
            for pid in left:
                processes.send(pid, signal.SIGKILL)
            self.tidy()
        self.tidy()
