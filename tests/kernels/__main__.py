"""python -m kernels: boot each kernel, run the process suite inside, write the results and docs/kernels.md."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

from . import fetch, image
from .boot import boot

CACHE = image.ROOT / ".kernels"
RESULTS = pathlib.Path(__file__).resolve().parent / "results"
LIMIT = 1800.0  # seconds for a kernel

# The process suite: what talks to the kernel, and not the supervisor above it.
SUITE = (
    "auto_reap", "run", "handle", "private", "contained", "runner", "errors", "keeper_protocol", "held_keeper", "order",
    "survival", "threads", "hard", "status",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="kernels", description=__doc__)
    parser.add_argument("suites", nargs="*", default=fetch.SUITES, help=f"Debian's: {' '.join(fetch.SUITES)}")
    parser.add_argument("--tests", nargs="*", help="instead of the process suite; results are not kept")
    given = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    tests = given.tests or [f"tests/test_{name}.py" for name in SUITE]
    environment = {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    arguments = ["-o", "addopts=-n 2", "-p", "no:cacheprovider", "-q", "--color=no", *tests]
    initramfs = CACHE / "initramfs"
    job = {"environment": environment, "directory": str(image.ROOT), "tests": arguments}
    image.make(initramfs, json.dumps(job).encode())
    apt = fetch.Apt(CACHE / "apt")
    apt.run("apt-get", "update")
    good = True
    for suite in given.suites:
        result = run(suite, fetch.kernel_of(apt, suite, CACHE), initramfs)
        good = good and result["ended"] == "ended" and not result["failed"]
        if not given.tests:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{suite}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if good else 1


def run(suite: str, kernel: pathlib.Path, initramfs: pathlib.Path) -> dict[str, Any]:
    """Boot the kernel, and count what the tests said."""
    result: dict[str, Any] = {
        "suite": suite, "doctor": None,
        "passed": 0, "failed": [], "skipped": [], "seconds": {},
    }  # fmt: skip
    console = CACHE / f"{suite}.console"
    print(f"kernels: booting {kernel}", flush=True)
    began = time.monotonic()

    def heard(fact: dict[str, Any]) -> None:
        print(f"{time.monotonic() - began:7.1f}", fact.get("outcome", fact["what"]), fact.get("test", ""),
              fact.get("seconds", ""), fact.get("why", ""), fact.get("trace", ""), flush=True)
        if fact["what"] == "doctor":
            result["doctor"] = fact["doctor"]
        elif fact["what"] == "test":
            if fact["outcome"] == "passed":
                result["passed"] += 1
            else:
                result[fact["outcome"]].append({"test": fact["test"], "why": fact["why"]})

    result["ended"] = boot(kernel, initramfs, console, LIMIT, heard)
    result["took"] = round(time.monotonic() - began)
    return result


if __name__ == "__main__":
    os.chdir(image.ROOT)
    sys.exit(main())
