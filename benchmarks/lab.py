"""What the sections share: the programs, the workers, turn-taking and statistics."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from statistics import median

HERE = os.path.dirname(os.path.abspath(__file__))
NANO_FLAGS = [
    "-O2", "-s", "-static", "-nostdlib", "-nostartfiles", "-ffreestanding", "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables", "-fno-pie", "-no-pie",
    "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-z,norelro",
]  # fmt: skip
FLOOR_FLAGS = ["-O2", "-shared", "-fPIC"]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Lab:
    """The compiled programs and everything that was started with them; a context manager."""

    def __init__(self, options):
        self.options = options
        self.quick = options.quick
        self.notes: list[str] = []
        self._workers: list[Worker] = []

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="holdfast-bench-")
        # Run directories and logs lie in memory where there is such a place: what is measured is not the disk.
        self.base = "/dev/shm" if os.access("/dev/shm", os.W_OK) and room("/dev/shm") > 512 << 20 else self.directory
        self.cpu = quietest_cpu()
        return self

    @cached_property
    def nano(self) -> str:
        return self._compile("nano.c", "nano", NANO_FLAGS)

    @cached_property
    def floor(self) -> str:
        return self._compile("floor.c", "floor.so", FLOOR_FLAGS)

    @cached_property
    def service(self) -> str:
        return self._compile("service.c", "service", NANO_FLAGS)

    @cached_property
    def supervisor_floor(self) -> str:
        return self._compile("supervisor_floor.c", "supervisor_floor", ["-O2"])

    @cached_property
    def holdfast(self) -> list[str]:
        """The command as it is installed."""
        script = os.path.join(os.path.dirname(sys.executable), "holdfast")
        return [script] if os.path.exists(script) else [sys.executable, "-m", "holdfast"]

    def _compile(self, source: str, name: str, flags: list[str]) -> str:
        compiler = os.environ.get("CC") or shutil.which("gcc") or "cc"
        out = os.path.join(self.directory, name)
        subprocess.run([*compiler.split(), *flags, "-o", out, os.path.join(HERE, source)], check=True)
        return out

    def __exit__(self, *exc):
        for worker in self._workers:
            worker.close()
        shutil.rmtree(self.directory)

    def worker(self, pinned: bool, memory: int = 0, rung: str = "") -> Worker:
        """`rung`: what tells it of the ends of direct children; "": the best there is."""
        cpu = self.cpu if pinned else None
        worker = Worker({"nano": self.nano, "floor": self.floor, "cpu": cpu, "memory": memory}, rung)
        self._workers.append(worker)
        return worker

    def note(self, text: str) -> None:
        say(text)
        self.notes.append(text)


class Worker:
    """Our end of a worker.py."""

    def __init__(self, setting: dict, rung: str = ""):
        self._process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"HOLDFAST_NOTIFIER": rung},
        )  # fmt: skip
        self.pid = self._process.pid
        self._talk(setting)

    def begin(self, do: str, **arguments) -> None:
        """The first half of `ask`, for what several do at the same time."""
        self._send({"do": do} | arguments)

    def result(self):
        """The second half."""
        answer = self._receive()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def ask(self, do: str, **arguments):
        answer = self._talk({"do": do} | arguments)
        for _ in range(60):
            if answer.get("errno") != errno.EAGAIN:
                break
            say("out of processes: somebody else has them; once more in a second")
            time.sleep(1)
            answer = self._talk({"do": do} | arguments)
        if "error" in answer:
            raise RuntimeError(f"{do} {arguments}: {answer['error']}")
        return answer["result"]

    def _talk(self, command: dict) -> dict:
        self._send(command)
        return self._receive()

    def _send(self, command: dict) -> None:
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return json.loads(line)

    def close(self):
        """Idempotent."""
        if self._process.stdin.closed:
            return
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def room(path: str) -> int:
    """Bytes that are free in a filesystem."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def quietest_cpu() -> int:
    """Of the processors that we may use, the one that was idle most in the last moment."""

    def idle():
        result = {}
        with open("/proc/stat") as file:
            for line in file:
                if line.startswith("cpu") and line[3].isdigit():
                    name, *ticks = line.split()
                    result[int(name[3:])] = int(ticks[3])
        return result

    before = idle()
    time.sleep(0.3)
    after = idle()
    return max(os.sched_getaffinity(0), key=lambda cpu: after.get(cpu, 0) - before.get(cpu, 0))


@dataclass
class Series:
    """One thing that is measured: `batch` returns some durations in ns, `keys` say what it is."""

    keys: dict
    batch: object
    rounds: list[list[int]]

    @property
    def medians(self) -> list[float]:
        return [median(samples) for samples in self.rounds]


def take_turns(series: list[Series], rounds: int, warm_up: int = 1) -> None:
    """Everybody's batch once a round; who is first changes.  The warm-up rounds are thrown away."""
    for number in range(warm_up + rounds):
        shift = number % len(series)
        for each in series[shift:] + series[:shift]:
            samples = each.batch()
            if number >= warm_up:
                each.rounds.append(samples)


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def row(series: Series, popen: Series | None = None, floor: Series | None = None) -> dict:
    """Medians over rounds (ratios too: each round against the same round, so that slow moments of the
    machine fall out); p10, p99 and worst over all samples."""
    every = [ns for samples in series.rounds for ns in samples]
    result = dict(series.keys) | {
        "median_us": round(median(series.medians) / 1000, 2),
        "p10_us": round(percentile(every, 10) / 1000, 2),
        "p99_us": round(percentile(every, 99) / 1000, 2),
        "max_us": round(max(every) / 1000, 2),
        "samples": len(every),
    }
    if popen:
        result["ratio_popen"] = ratio(series, popen)
    if floor:
        result["ratio_floor"] = ratio(series, floor)
    return result


def ratio(one: Series, other: Series) -> float:
    return round(median(a / b for a, b in zip(one.medians, other.medians, strict=True)), 3)
