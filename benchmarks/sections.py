"""The sections of the library benchmark: each takes the lab and returns rows (flat dictionaries)."""

from __future__ import annotations

import os
import sys
import time
from itertools import product

from adapters import NAMES
from lab import Lab, Series, row, say, take_turns

ALL = ("floor", "posix_spawn", "popen", "runner", "spawn", "direct", "asyncio")
WITH_TIMEOUT = ("floor", "popen", "runner", "spawn", "direct", "asyncio")
CGROUP_V1, CGROUP_V2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"


def _rows(series: list[Series], reference: str = "popen") -> list[dict]:
    """Rows of series that differ in `adapter` alone, each against subprocess and the floor."""
    by_name = {each.keys["adapter"]: each for each in series}
    return [row(each, by_name.get(reference), by_name.get("floor")) for each in series]


def spawn(lab: Lab) -> list[dict]:
    """Start a program and wait for it, one after another."""
    rows: list[dict] = []
    rounds, batch = (3, 3) if lab.quick else (60, 20)
    for pinned in (True, False):
        worker = lab.worker(pinned)
        for name, argv in (("one page", [lab.nano]), ("/bin/true", ["/bin/true"])):
            say(f"spawn + wait, {name}, {'pinned' if pinned else 'not pinned'}")
            series = [
                Series(
                    {"adapter": adapter, "program": name, "pinned": pinned},
                    lambda w=worker, a=adapter, v=argv: w.ask("loop", adapter=a, argv=v, n=batch),
                    [],
                )
                for adapter in ALL
            ]
            take_turns(series, rounds)
            rows += _rows(series)
        worker.close()
    return rows


def memory(lab: Lab) -> list[dict]:
    """The same from an owner with much resident memory, next to one without, in turns."""
    size = lab.options.memory
    if size == 0 or size > available_memory() * 0.8:
        lab.note(f"section memory skipped: {size >> 20} MiB wanted, {available_memory() >> 20} MiB available")
        return []
    rows: list[dict] = []
    rounds, batch = (3, 3) if lab.quick else (40, 15)
    for pinned in (True, False):
        small, large = lab.worker(pinned), lab.worker(pinned, size)
        if large.ask("resident") < size:
            raise RuntimeError("the large owner's memory is not resident")
        for name, argv in (("one page", [lab.nano]), ("/bin/true", ["/bin/true"])):
            say(f"spawn + wait with {size >> 20} MiB resident, {name}, {'pinned' if pinned else 'not pinned'}")
            pairs = [
                [
                    Series(
                        {"adapter": adapter, "program": name, "pinned": pinned, "memory": size},
                        lambda w=worker, a=adapter, v=argv: w.ask("loop", adapter=a, argv=v, n=batch),
                        [],
                    )
                    for worker in (small, large)
                ]
                for adapter in ALL
            ]
            take_turns([each for pair in pairs for each in pair], rounds)
            for without, with_it in pairs:
                result = row(with_it, without)
                result["ratio_small"] = result.pop("ratio_popen")
                result["median_small_us"] = row(without)["median_us"]
                rows.append(result)
        small.close()
        large.close()
    return rows


def available_memory() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


def alive(lab: Lab) -> list[dict]:
    """Many at once: start all; TERM to all and wait for all."""
    rows = []
    n, rounds = (20, 2) if lab.quick else (1000, 5)
    for pinned in (True, False):
        say(f"{n} alive at once, {'pinned' if pinned else 'not pinned'}")
        worker = lab.worker(pinned)
        starts = {a: Series({"adapter": a, "pinned": pinned, "n": n, "phase": "start"}, None, []) for a in ALL}
        ends = {a: Series({"adapter": a, "pinned": pinned, "n": n, "phase": "end"}, None, []) for a in ALL}
        for number in range(rounds):
            shift = number % len(ALL)
            for adapter in ALL[shift:] + ALL[:shift]:
                start, end = worker.ask("alive", adapter=adapter, n=n)
                starts[adapter].rounds.append([start])
                ends[adapter].rounds.append([end])
        rows += _rows([*starts.values()]) + _rows([*ends.values()])
        worker.close()
    return rows


def notice(lab: Lab) -> list[dict]:
    """From the exit to the return of wait(timeout=10)."""
    rows: list[dict] = []
    for pinned in (True, False):
        worker = lab.worker(pinned)
        for ms, rounds, batch in ((0, 30, 20), (1, 30, 15), (20, 15, 5), (500, 8, 1)):
            if lab.quick:
                if ms > 20:
                    continue
                rounds, batch = 2, 1
            say(f"delay from exit to notice, {ms} ms of life, {'pinned' if pinned else 'not pinned'}")
            series = [
                Series(
                    {"adapter": adapter, "life_ms": ms, "pinned": pinned},
                    lambda w=worker, a=adapter, m=ms, b=batch: w.ask("notice", adapter=a, ms=m, n=b),
                    [],
                )
                for adapter in WITH_TIMEOUT
            ]
            take_turns(series, rounds, 0 if lab.quick else 1)
            rows += _rows(series)
        worker.close()
    return rows


def idle(lab: Lab) -> list[dict]:
    """Waits in progress, one thread each: what they cost while nothing happens."""
    rows = []
    n, first, seconds = (20, 0.2, 0.3) if lab.quick else (500, 2.0, 5.0)
    for adapter in ("spawn", "runner", "direct", "popen"):
        say(f"{n} waits in progress, {NAMES[adapter]}")
        worker = lab.worker(False)
        result = worker.ask("idle", adapter=adapter, n=n, first=first, seconds=seconds)
        for window in ("first", "later"):
            figures = result[window]
            rows.append(
                {"adapter": adapter, "n": n, "window": window, "seconds": round(figures["seconds"], 2)}
                | {key: round(value, 6) for key, value in figures.items() if key != "seconds"}
            )
        worker.close()
    return rows


def keeper(lab: Lab) -> list[dict]:
    """Size of a keeper, and its whole cost: what the memory cgroup is charged for it."""
    n = 20 if lab.quick else 1000
    say(f"size of {n} keepers")
    worker = lab.worker(False)
    with Cgroup(lab) as group:
        usage = kernel = None
        if group.path:
            try:
                group.add(worker.pid)
                usage, kernel = group.usage, group.kernel
            except OSError as error:
                lab.note(f"no charge of a memory cgroup: {error.strerror}")
        try:
            result = worker.ask("keeper", n=n, usage=usage, kernel=kernel)
        finally:
            worker.close()  # before its cgroup
    return [{key: round(value, 1) if isinstance(value, float) else value for key, value in result.items()}]


class Cgroup:
    """A memory cgroup of our own (version 1), where we may make one."""

    def __init__(self, lab: Lab):
        self.path = None
        base = CGROUP_V1
        own = next((p for _, c, p in _own_cgroups() if c == "memory"), None)
        if own is None or not os.path.exists(os.path.join(base, "memory.kmem.usage_in_bytes")):
            lab.note("no charge of a memory cgroup: this takes a memory cgroup of version 1, and root")
            return
        parent = os.path.join(base, own.lstrip("/"))
        if not os.path.isdir(parent):
            parent = base
        path = os.path.join(parent, f"holdfast-bench-{os.getpid()}")
        try:
            os.mkdir(path)
        except OSError as error:
            lab.note(f"no charge of a memory cgroup: cannot make one ({error.strerror})")
            return
        self.path = path
        self.usage = os.path.join(path, "memory.usage_in_bytes")
        self.kernel = os.path.join(path, "memory.kmem.usage_in_bytes")

    def add(self, pid: int) -> None:
        with open(os.path.join(self.path, "cgroup.procs"), "w") as file:
            file.write(str(pid))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        deadline = time.monotonic() + 10
        while self.path:
            try:
                os.rmdir(self.path)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # the last processes are just going


def _own_cgroups():
    with open("/proc/self/cgroup") as file:
        for line in file:
            yield line.rstrip("\n").split(":", 2)


def imports(lab: Lab) -> list[dict]:
    """A whole interpreter with an import, over one without."""
    return _commands(
        lab,
        {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import holdfast": [sys.executable, "-c", "import holdfast"],
            "import holdfast; holdfast.spawn": [sys.executable, "-c", "import holdfast; holdfast.spawn"],
            "import holdfast; holdfast.run": [sys.executable, "-c", "import holdfast; holdfast.run"],
            "import subprocess": [sys.executable, "-c", "import subprocess"],
        },
        "python -c pass",
    )


def command(lab: Lab) -> list[dict]:
    """`holdfast run` over the bare command, and over an interpreter that does nothing."""
    return _commands(
        lab,
        {
            "/bin/true": ["/bin/true"],
            "python -c pass": [sys.executable, "-c", "pass"],
            "holdfast run -- /bin/true": [*lab.holdfast, "run", "--", "/bin/true"],
            "holdfast run --timeout 1m -- /bin/true": [*lab.holdfast, "run", "--timeout", "1m", "--", "/bin/true"],
        },
        "/bin/true",
    )


def _commands(lab: Lab, commands: dict[str, list[str]], base: str) -> list[dict]:
    rows = []
    rounds = 2 if lab.quick else 21
    for pinned in (True, False):
        say(f"{', '.join(commands)}, {'pinned' if pinned else 'not pinned'}")
        worker = lab.worker(pinned)
        series = [
            Series(
                {"what": what, "pinned": pinned},
                lambda w=worker, v=argv: w.ask("loop", adapter="floor", argv=v, n=1),
                [],
            )
            for what, argv in commands.items()
        ]
        take_turns(series, rounds)
        bare = next(each for each in series if each.keys["what"] == base)
        python = next(each for each in series if each.keys["what"] == "python -c pass")
        for each in series:
            result = row(each)
            for key, other in {"over_base_us": bare, "over_python_us": python}.items():
                result[key] = round(row(each)["median_us"] - row(other)["median_us"], 2)
            rows.append(result)
        worker.close()
    return rows


def capture(lab: Lab) -> list[dict]:
    """run(capture_output=True) against subprocess.run(capture_output=True)."""
    rows: list[dict] = []
    sizes = ((64, 3, 2), (1 << 20, 2, 1)) if lab.quick else ((64, 40, 15), (64 << 20, 12, 1))
    for pinned, (size, rounds, batch) in product((True, False), sizes):
        say(f"capture of {size} bytes, {'pinned' if pinned else 'not pinned'}")
        worker = lab.worker(pinned)
        series = [
            Series(
                {"adapter": how, "bytes": size, "pinned": pinned},
                lambda w=worker, h=how, s=size, b=batch: w.ask(
                    "capture", how=h, argv=[lab.nano, "o", str(s)], size=s, n=b
                ),
                [],
            )
            for how in ("subprocess", "holdfast", "runner")
        ]
        take_turns(series, rounds)
        rows += _rows(series, "subprocess")
        worker.close()
    return rows


SECTIONS = {
    "spawn": spawn,
    "memory": memory,
    "alive": alive,
    "notice": notice,
    "idle": idle,
    "keeper": keeper,
    "imports": imports,
    "command": command,
    "capture": capture,
}
