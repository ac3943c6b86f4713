"""The process in which things are measured: one for each setting (pinned or not, much memory or not).

Reads commands (JSON, one a line) and answers each with one line.  `library.py` asks several workers and
adapters in turn, so that whatever else the machine does meets them all alike.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import subprocess
import sys
import threading
import time
from statistics import median
from time import perf_counter_ns

import adapters

PAGE = mmap.PAGESIZE


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def field(text: str, name: str) -> int:
    """The number after `name:` in a /proc text."""
    for line in text.splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


def settled(value, limit: float = 3.0) -> int:
    """value() once three looks 50 ms apart agree to 0.1 %, or at the limit: exits finish their work late."""
    deadline = time.monotonic() + limit
    looks = [value()]
    while time.monotonic() < deadline:
        time.sleep(0.05)
        looks = [*looks[-2:], value()]
        if len(looks) == 3 and max(looks) - min(looks) <= max(looks) / 1000:
            break
    return looks[-1]


class Worker:
    def __init__(self, setting: dict):
        self.nano, self.floor = setting["nano"], setting["floor"]
        if setting["cpu"] is not None:
            os.sched_setaffinity(0, {setting["cpu"]})
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.ballast = None
        if setting["memory"]:
            # Small pages: most page tables, so the worst case for whatever copies or walks them.
            self.ballast = mmap.mmap(-1, setting["memory"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.ballast.madvise(mmap.MADV_NOHUGEPAGE)
            step = 1 << 28
            for at in range(0, setting["memory"], step):
                end = min(at + step, setting["memory"])
                self.ballast[at:end:PAGE] = b"\1" * len(range(at, end, PAGE))
        self._payload = b""
        self.adapters: dict[str, adapters.Adapter] = {}
        self.stamp_file = os.memfd_create("exit-time", os.MFD_CLOEXEC)
        os.truncate(self.stamp_file, PAGE)
        self.stamp_map = mmap.mmap(self.stamp_file, PAGE)
        gc.disable()  # collected by hand before each batch

    def adapter(self, name: str) -> adapters.Adapter:
        if name not in self.adapters:
            self.adapters[name] = adapters.make(name, self.floor)
        return self.adapters[name]

    # ---- commands

    def resident(self) -> int:
        return int(read("/proc/self/statm").split()[1]) * PAGE

    def loop(self, adapter, argv, n):
        gc.collect()
        return self.adapter(adapter).loop(argv, n)

    def notice(self, adapter, ms, n):
        gc.collect()
        stamp = memoryview(self.stamp_map).cast("Q")
        return self.adapter(adapter).notice([self.nano, "t", str(ms)], self.stamp_file, stamp, n)

    def rung(self):
        """What tells us of the ends of direct children; fails where the one that was asked for cannot work."""
        from holdfast.process import notify

        return notify.choice()

    def starts(self, adapter, n):
        """A duration: n times spawn and wait(timeout=10), one after another."""
        gc.collect()
        stamp = memoryview(self.stamp_map).cast("Q")
        began = perf_counter_ns()
        self.adapter(adapter).notice([self.nano, "t", "0"], self.stamp_file, stamp, n)
        return [perf_counter_ns() - began]

    def alive(self, adapter, n):
        """(start, end) in ns for n processes alive at once."""
        a = self.adapter(adapter)
        gc.collect()
        began = perf_counter_ns()
        handles = a.start([self.nano, "p"], n)
        middle = perf_counter_ns()
        a.end(handles)
        return middle - began, perf_counter_ns() - middle

    def capture(self, how, argv, size, n):
        """Durations of n times run(capture_output=True) that must return `size` bytes."""
        import holdfast

        if how == "runner":
            run = self.adapter("runner").runner.run
        else:
            run = {"subprocess": subprocess.run, "holdfast": holdfast.run}[how]
        gc.collect()
        samples = []
        for _ in range(n):
            began = perf_counter_ns()
            result = run(argv, capture_output=True)
            samples.append(perf_counter_ns() - began)
            if len(result.stdout) != size:
                raise RuntimeError(f"{how}: {len(result.stdout)} bytes instead of {size}")
        return samples

    def communicate(self, how, what, size):
        """A duration: from the start until communicate has passed `size` bytes each way that `what` names."""
        import holdfast

        start = {"subprocess": subprocess.Popen, "holdfast": holdfast.spawn, "Popen": holdfast.Popen}[how]
        argv = [self.nano, "o", str(size)] if what == "stdout" else ["/bin/cat"]
        given = None if what == "stdout" else self.payload(size)
        gc.collect()
        began = perf_counter_ns()
        with start(
            argv,
            stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
            stdout=subprocess.DEVNULL if what == "stdin" else subprocess.PIPE,
        ) as process:
            out = process.communicate(given)[0]
        passed = perf_counter_ns() - began
        if len(out or b"") != (0 if what == "stdin" else size):
            raise RuntimeError(f"{how}: {len(out or b'')} bytes of {what}")
        return [passed]

    def payload(self, size):
        if len(self._payload) != size:
            piece = os.urandom(min(size, 1 << 20))
            self._payload = piece * (size // len(piece))  # bytes(size) would be one page of zeros
        return self._payload

    def idle(self, adapter, n, first, seconds):
        """Wake-ups and CPU of n threads in wait(timeout=3600), and of their keepers: in the `first`
        seconds, and in a window after them."""
        a = self.adapter(adapter)
        handles = a.start([self.nano, "p"], n)
        keepers = keepers_of(handles) if adapter in ("spawn", "runner") else []
        threading.stack_size(256 * 1024)

        def wait(handle):
            handle.wait(timeout=3600)

        threads = [threading.Thread(target=wait, args=(handle,)) for handle in handles]
        for thread in threads:
            thread.start()
        tids = [thread.native_id for thread in threads]
        time.sleep(min(0.5, first))  # until all of them wait
        early = self._window(tids, keepers, first)
        later = self._window(tids, keepers, seconds)
        for handle in handles:
            handle.kill()
        for thread in threads:
            thread.join()
        for handle in handles:
            if hasattr(handle, "close"):
                handle.close()
        return {"first": early, "later": later, "keepers": len(keepers)}

    def _window(self, tids, keepers, seconds):
        def look():
            cpu = time.process_time() - time.thread_time()  # without the thread that looks
            owner = sum(switches(f"/proc/self/task/{tid}") for tid in tids)
            theirs = sum(switches(f"/proc/{pid}") for pid in keepers)
            their_cpu = sum(int(read(f"/proc/{pid}/schedstat").split()[0]) for pid in keepers)
            return cpu, owner, theirs, their_cpu / 1e9

        before, began = look(), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        after = look()
        names = ("owner_cpu_seconds", "owner_wakeups", "keeper_wakeups", "keeper_cpu_seconds")
        return {"seconds": passed} | {name: max(0, b - a) for name, a, b in zip(names, before, after, strict=True)}

    def keeper(self, n, usage, kernel):
        """Sizes of keepers that hold a process each, and what n of them cost the memory cgroup that this
        worker is in (files `usage` and `kernel`; None: there is none)."""
        result = {"n": n}
        a = self.adapter("spawn")
        a.end(a.start([self.nano, "p"], n))  # so that our own heap has its size
        gc.collect()
        charged = {}
        for name in ("floor", "spawn") if usage else ():
            a = self.adapter(name)
            gc.collect()
            before = settled(lambda: int(read(usage))), int(read(kernel)), self.resident()
            handles = a.start([self.nano, "p"], n)
            after = settled(lambda: int(read(usage))), int(read(kernel)), self.resident()
            charged[name] = [(y - x) / n for x, y in zip(before, after, strict=True)]
            a.end(handles)
        if usage:
            for name, (total, kernel_part, own) in charged.items():
                result[name] = {"total_bytes": total, "kernel_bytes": kernel_part, "owner_bytes": own}
            # What stands in the owner's own memory (a handle is some Python objects) is not the keeper's.
            result["keeper_total_bytes"] = (
                charged["spawn"][0] - charged["spawn"][2] - (charged["floor"][0] - charged["floor"][2])
            )
            result["keeper_kernel_bytes"] = charged["spawn"][1] - charged["floor"][1]
        a = self.adapter("spawn")
        handles = a.start([self.nano, "p"], min(n, 100))
        rollups = [read(f"/proc/{pid}/smaps_rollup") for pid in keepers_of(handles)]
        a.end(handles)
        for key, names in {
            "rss_kib": ("Rss",), "pss_kib": ("Pss",), "private_kib": ("Private_Clean", "Private_Dirty"),
            "private_dirty_kib": ("Private_Dirty",),
        }.items():  # fmt: skip
            result[key] = median(sum(field(text, name) for name in names) for text in rollups)
        return result

    def close(self):
        for adapter in self.adapters.values():
            adapter.close()


def keepers_of(handles) -> list[int]:
    """The parents of the kept processes, which are alive: so are these."""
    return [field(read(f"/proc/{handle.pid}/status"), "PPid") for handle in handles]


def switches(process: str) -> int:
    return field(read(process + "/status"), "voluntary_ctxt_switches")


def main() -> None:
    commands = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # what we start shall not hold our own pipes
    os.dup2(null, 1)
    worker = Worker(json.loads(commands.readline()))
    print("{}", file=answers, flush=True)
    for line in commands:
        command = json.loads(line)
        try:
            answer = {"result": getattr(worker, command.pop("do"))(**command)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "errno": getattr(error, "errno", None)}
        print(json.dumps(answer), file=answers, flush=True)
    worker.close()


if __name__ == "__main__":
    sys.exit(main())
