"""holdfast's library against subprocess, os.posix_spawn, asyncio and a C floor, side by side in one run.

    python benchmarks/library.py [--quick] [--section NAME]... [--memory MIB] [--json FILE]

Progress goes to stderr, tables to stdout, figures to FILE.  docs/benchmarks.md says how it measures.
Never fails for being slow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import report
from lab import Lab, say
from sections import SECTIONS
from targets import judge

import holdfast
from holdfast.process.keeper import KEEPER


def parser(doc: str, sections: Iterable[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--quick", action="store_true", help="a look whether it runs; the figures are worth nothing")
    made.add_argument("--section", action="append", choices=sections, help="only this one; may be repeated")
    made.add_argument("--json", metavar="FILE", help="write the figures there")
    return made


def parse(args: list[str]) -> argparse.Namespace:
    made = parser(__doc__, SECTIONS)
    made.add_argument("--memory", type=int, metavar="MIB", help="resident size of the large owner (default 4096)")
    options = made.parse_args(args)
    if options.memory is None:
        options.memory = 64 if options.quick else 4096
    options.memory <<= 20
    return options


def machine() -> dict:
    """What the figures depend on, and nothing that names this machine."""
    cpu = platform.machine()
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = f"{line.partition(':')[2].strip()} ({platform.machine()})"
                break
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / (1 << 20)
    return {
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "holdfast": holdfast.__version__,
        "keeper": "static" if is_static(KEEPER) else "dynamic",
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def is_static(program: str) -> bool:
    """No PT_INTERP among the program headers (64-bit ELF)."""
    with open(program, "rb") as file:
        head = file.read(64)
        file.seek(int.from_bytes(head[32:40], sys.byteorder))
        size, count = (int.from_bytes(head[at : at + 2], sys.byteorder) for at in (54, 56))
        return all(int.from_bytes(file.read(size)[:4], sys.byteorder) != 3 for _ in range(count))


def measure(options: argparse.Namespace, what: str, sections: Mapping[str, Callable], judge: Callable) -> dict:
    results: dict = {"format": 1, "what": what, "quick": options.quick, "machine": machine(), "sections": {}}
    began = time.monotonic()
    with Lab(options) as lab:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            lab.note("everything ran at real-time priority, for the machine had other work")
        for name in options.section or sections:
            results["sections"][name] = sections[name](lab)
        results["notes"] = lab.notes
    results["targets"] = judge(results["sections"])
    results["seconds"] = round(time.monotonic() - began, 1)
    say(f"{results['seconds']} s")
    return results


def run(options: argparse.Namespace, what: str, sections: Mapping[str, Callable], judge: Callable) -> int:
    """Measure, write the figures, print the tables; what the two benchmarks have in common."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is cleared away
    results = measure(options, what, sections, judge)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
    print(report.as_text(results))
    return 0


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:]), "library", SECTIONS, judge))
