"""The ways to start a process and wait for it, with one face, so that one loop can measure them all."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from time import monotonic_ns, perf_counter_ns

import holdfast


class Adapter:
    """`loop`: durations (ns) of n times spawn + wait.  `start`/`end`: many alive, TERM to all, wait for all.
    `notice`: delays (ns) from a child's exit until `wait(timeout=10)` has returned."""

    def loop(self, argv: list[str], n: int) -> list[int]:
        samples = []
        for _ in range(n):
            began = perf_counter_ns()
            self.once(argv)
            samples.append(perf_counter_ns() - began)
        return samples

    def once(self, argv):
        raise NotImplementedError

    def start(self, argv, n):
        handles: list = []
        try:
            for _ in range(n):
                handles.append(self.one(argv))  # noqa: PERF401  # they are needed when it fails half-way
        except BaseException:
            self.end(handles)
            raise
        return handles

    def one(self, argv):
        raise NotImplementedError

    def end(self, handles):
        raise NotImplementedError

    def notice(self, argv, file, stamp, n):
        raise NotImplementedError

    def close(self):
        pass


class Holdfast(Adapter):
    """holdfast.spawn.  Its handle is closed inside the measured time: that is part of its use."""

    def __init__(self, **options):
        self.spawn = holdfast.spawn
        self.options = options

    def once(self, argv):
        with self.spawn(argv, **self.options) as process:
            process.wait()

    def one(self, argv):
        return self.spawn(argv, **self.options)

    def end(self, handles):
        for process in handles:
            process.terminate()
        for process in handles:
            process.wait()
        for process in handles:
            process.close()

    def notice(self, argv, file, stamp, n):
        delays = []
        for _ in range(n):
            stamp[0] = 0
            with self.spawn(argv, stdout=file, **self.options) as process:
                process.wait(timeout=10)
                delays.append(monotonic_ns() - stamp[0])
        return delays


class Runner(Holdfast):
    def __init__(self):
        super().__init__()
        self.runner = holdfast.Runner()
        self.spawn = self.runner.spawn

    def close(self):
        self.runner.close()


class Popen(Adapter):
    def once(self, argv):
        subprocess.Popen(argv).wait()

    def one(self, argv):
        return subprocess.Popen(argv)

    def end(self, handles):
        for process in handles:
            process.terminate()
        for process in handles:
            process.wait()

    def notice(self, argv, file, stamp, n):
        delays = []
        for _ in range(n):
            stamp[0] = 0
            process = subprocess.Popen(argv, stdout=file)
            process.wait(timeout=10)
            delays.append(monotonic_ns() - stamp[0])
        return delays


class PosixSpawn(Adapter):
    def once(self, argv):
        os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)

    def one(self, argv):
        return os.posix_spawn(argv[0], argv, os.environ)

    def end(self, handles):
        for pid in handles:
            os.kill(pid, signal.SIGTERM)  # ours and not reaped: the number is its own
        for pid in handles:
            os.waitpid(pid, 0)


class Asyncio(Adapter):
    """asyncio.create_subprocess_exec with the version's default child watcher."""

    def __init__(self):
        self.run = asyncio.new_event_loop()

    def loop(self, argv, n):
        async def many():
            samples = []
            for _ in range(n):
                began = perf_counter_ns()
                process = await asyncio.create_subprocess_exec(*argv)
                await process.wait()
                samples.append(perf_counter_ns() - began)
            return samples

        return self.run.run_until_complete(many())

    def start(self, argv, n):
        handles = []

        async def many():
            for _ in range(n):
                handles.append(await asyncio.create_subprocess_exec(*argv))  # noqa: PERF401  # as above

        try:
            self.run.run_until_complete(many())
        except BaseException:
            self.end(handles)
            raise
        return handles

    def end(self, handles):
        async def many():
            for process in handles:
                process.terminate()
            for process in handles:
                await process.wait()

        self.run.run_until_complete(many())

    def notice(self, argv, file, stamp, n):
        async def many():
            delays = []
            for _ in range(n):
                stamp[0] = 0
                process = await asyncio.create_subprocess_exec(*argv, stdout=file)
                await asyncio.wait_for(process.wait(), 10)
                delays.append(monotonic_ns() - stamp[0])
            return delays

        return self.run.run_until_complete(many())

    def close(self):
        self.run.close()


class Floor(Adapter):
    """clone + poll + waitid in C (floor.c), in this process."""

    def __init__(self, library: str):
        self.c = ctypes.CDLL(library)
        self.c.floor_problem.restype = ctypes.c_char_p
        self.c.floor_loop.restype = self.c.floor_notice.restype = self.c.floor_start.restype = ctypes.c_long

    def _error(self) -> Exception:
        what, _, number = self.c.floor_problem().decode().partition(": ")
        if what in ("clone", "poll", "waitid"):
            return OSError(int(number), f"C floor, {what}: {os.strerror(int(number))}")
        return RuntimeError(f"C floor: {what} {number}")

    def _argv(self, argv):
        return argv[0].encode(), (ctypes.c_char_p * (len(argv) + 1))(*(a.encode() for a in argv), None)

    def loop(self, argv, n):
        samples = (ctypes.c_uint64 * n)()
        if self.c.floor_loop(*self._argv(argv), ctypes.c_long(n), samples) != n:
            raise self._error()
        return list(samples)

    def start(self, argv, n):
        pidfds = (ctypes.c_int * n)()
        done = self.c.floor_start(*self._argv(argv), ctypes.c_long(n), pidfds)
        if done != n:
            self.c.floor_end(ctypes.c_long(done), pidfds)
            raise self._error()
        return pidfds

    def end(self, handles):
        self.c.floor_end(ctypes.c_long(len(handles)), handles)

    def notice(self, argv, file, stamp, n):
        delays = (ctypes.c_uint64 * n)()
        address = ctypes.byref(ctypes.c_uint64.from_buffer(stamp))
        if self.c.floor_notice(*self._argv(argv), file, address, ctypes.c_long(n), delays) != n:
            raise self._error()
        return list(delays)


NAMES = {
    "floor": "C floor",
    "posix_spawn": "os.posix_spawn",
    "popen": "subprocess.Popen",
    "runner": "holdfast.Runner",
    "spawn": "holdfast.spawn",
    "direct": "holdfast.spawn(private=False)",
    "asyncio": "asyncio",
}


def make(name: str, floor_library: str) -> Adapter:
    if name == "floor":
        return Floor(floor_library)
    if name == "direct":
        return Holdfast(private=False)
    kinds = {"spawn": Holdfast, "runner": Runner, "popen": Popen, "posix_spawn": PosixSpawn, "asyncio": Asyncio}
    return kinds[name]()
