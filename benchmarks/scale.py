"""Five thousand services at once, and what ends first with more of them.

    python benchmarks/scale.py [--quick] [--json FILE]

As supervisor.py, in whose figures a thousand are the most: here it matters what grows with the number, and how.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from statistics import median

from lab import Lab, say
from library import parser, run
from supervised import Holdfast, own_cpu, pss
from supervisor_sections import adoption, stop_request

DEFAULTS = 'restart = "on-failure"\n'


def scale(lab: Lab) -> list[dict]:
    """Up, listed, its supervisor killed, stopped; and how much of what a machine has each service takes."""
    n, few, rounds = (40, 20, 1) if lab.quick else (5000, 500, 3)
    small, large = _lives(lab, few, rounds), _lives(lab, n, rounds)
    each = {key: (large[key] - small[key]) / (n - few) for key in ("descriptors", "processes", "memory_kib")}
    return [
        *({"what": "life", **row} for row in (small, large)),
        *({"what": "wall", **row} for row in _walls(each)),
        {"what": "beyond", **_beyond(lab, 20 if lab.quick else 200)},
    ]


def _lives(lab: Lab, n: int, rounds: int) -> dict:
    found = []
    for number in range(rounds):
        say(f"{n} services, {number + 1} of {rounds}")
        found.append(_life(lab, n))
    return {"rounds": rounds, **{key: round(median(row[key] for row in found), 2) for key in found[0]}}


def _life(lab: Lab, n: int) -> dict:
    with Holdfast(lab, count=n, settings=DEFAULTS) as holdfast:
        words = holdfast.ear.until(n, pause=0.02)
        row: dict = {"n": n, "up_ms": (max(word.ns for word in words) - holdfast.exec_ns) / 1e6}
        row["running_ms"] = _until_all_run(holdfast, n)
        pids = holdfast.processes()
        (supervisor,) = pids["supervisor"]
        row["up_cpu_ms"] = 1000 * own_cpu(pids["supervisor"])
        command = [*lab.holdfast, "status", "--run-dir", holdfast.run_dir]
        with holdfast.client() as client:
            row["list_ms"] = _times(5, client.services)
            row["one_ms"] = _times(5, lambda: client.service("s0"))
        row["status_ms"] = _times(3, lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
        memory = {what: pss(group) for what, group in pids.items()}
        row |= {f"{what}_kib": memory[what] for what in memory} | {"memory_kib": sum(memory.values())}
        row["descriptors"] = len(os.listdir(f"/proc/{supervisor}/fd"))
        row["processes"] = sum(map(len, pids.values())) + n
        with holdfast.client() as client:
            found = adoption(holdfast, client, n, "supervisor")
            row |= {f"{key}_ms": 1000 * found[key] for key in ("answer", "adopted", "settled", "cpu")}
            if {service["pid"] for service in client.services()} != {word.pid for word in words}:
                raise RuntimeError("a service was started again")
        return row | stop_request(holdfast)


def _until_all_run(holdfast: Holdfast, n: int) -> float:
    """From the exec until a client is told so; in ms."""
    holdfast.settled()
    with holdfast.client() as client:
        while sum(service["state"] == "running" for service in client.services()) < n:
            time.sleep(0.05)
    return (time.monotonic_ns() - holdfast.exec_ns) / 1e6


def _times(rounds: int, do) -> float:
    """Median in ms."""
    found = []
    for _ in range(rounds):
        began = time.monotonic()
        do()
        found.append(1000 * (time.monotonic() - began))
    return median(found)


def _walls(each: dict[str, float]) -> list[dict]:
    """How many services each limit of this machine would allow; the lowest is met first."""
    with open("/proc/sys/kernel/pid_max") as file:
        pid_max = int(file.read())
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    walls = [
        ("RLIMIT_NOFILE, hard", "descriptors of the supervisor", descriptors, each["descriptors"]),
        ("kernel.pid_max", "processes", pid_max, each["processes"]),
        ("memory that is available, KiB", "memory of holdfast (PSS), KiB", available, each["memory_kib"]),
    ]
    rows = [
        {"limit": limit, "of": of, "allowed": allowed, "each": round(used, 2), "services": int(allowed / used)}
        for limit, of, allowed, used in walls
        if used > 0
    ]
    return sorted(rows, key=lambda row: row["services"])


def _beyond(lab: Lab, more: int) -> dict:
    """More services than descriptors: who runs, what is said of the others, and whether a client is still heard."""
    limit, most = 48 + 3 * more, more  # supervisor.py leaves 48; the rest is for so many
    say(f"{2 * more} services with descriptors for {most}")
    with _Limited(lab, count=2 * more, settings=DEFAULTS, nofile=limit) as holdfast:
        holdfast.ear.until(most, pause=0.02)
        holdfast.settled()
        with holdfast.client() as client:
            services = client.services()
        running = [service for service in services if service["state"] == "running"]
        reasons = {service["reason"] for service in services if service not in running}
        return {"n": 2 * more, "descriptors": limit, "running": len(running), "reason": sorted(reasons)[0]}


class _Limited(Holdfast):
    """With a limit for descriptors."""

    def __init__(self, lab, *, nofile: int, **more):
        super().__init__(lab, **more)
        self.nofile = nofile

    def launch(self, argv: list[str], **more) -> None:
        super().launch(["sh", "-c", f'ulimit -n {self.nofile}; exec "$@"', "sh", *argv], **more)


if __name__ == "__main__":
    # No limits of its own: how fast it has to be, a thousand services say.
    sys.exit(run(parser(__doc__, ["scale"]).parse_args(), "scale", {"scale": scale}, lambda _: []))
