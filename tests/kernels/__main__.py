"""python -m kernels: boot each kernel, run the process suite inside, keep the results and write docs/kernels.md."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

from . import fetch, image, table
from .boot import boot

CACHE = image.ROOT / ".kernels"
LIMIT = 2700.0  # seconds for a kernel, on a machine that has much else to do

# The process suite: what asks the kernel, without the supervisor above it; and resources, as controllers are there.
SUITE = (
    "auto_reap", "run", "handle", "private", "contained", "runner", "errors", "keeper_protocol", "held_keeper", "held",
    "status", "members", "forking", "forking_keeper", "more", "cgroups", "resources", "pipeline", "procdesc",
)  # fmt: skip
ENVIRONMENT = {
    "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1", "HOLDFAST_TEST_PROCESSES": "200",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="kernels", description=__doc__)
    parser.add_argument("suites", nargs="*", default=fetch.SUITES, help=f"Debian's: {' '.join(fetch.SUITES)}")
    parser.add_argument("--tests", nargs="*", help="these instead of the process suite; no results are kept")
    given = parser.parse_args()
    if unknown := set(given.suites) - set(fetch.SUITES):
        parser.error(f"no kernel is known of {', '.join(sorted(unknown))}: there are {', '.join(fetch.SUITES)}")
    if os.uname().machine != "x86_64":
        raise SystemExit("kernels: an x86-64 machine is needed: its Python runs in the emulated one")
    CACHE.mkdir(exist_ok=True)
    # Of the rungs: each does the same.  What is said where there are none needs no other kernel.
    tests = given.tests or [*(f"tests/test_{name}.py" for name in SUITE), "tests/test_notifiers.py::test_rung"]
    arguments = ["-o", "addopts=", "-p", "no:cacheprovider", "-q", "--color=no", *tests]
    initramfs = CACHE / "initramfs"
    job = {"environment": ENVIRONMENT, "directory": str(image.ROOT), "tests": arguments}
    image.make(initramfs, json.dumps(job).encode())
    apt = fetch.Apt(CACHE / "apt")
    apt.run("apt-get", "update")
    good = True
    for suite in given.suites:
        result = run(suite, fetch.kernel_of(apt, suite, CACHE), initramfs)
        print(f"kernels: {suite}: {result['ended']} in {result['took']} s: {result['passed']} passed, "
              f"{len(result['failed'])} failed, {len(result['skipped'])} skipped", flush=True)  # fmt: skip
        good = good and result["ended"] == "ended with 0"
        if not given.tests and result["doctor"]:
            table.keep(suite, result)
    return 0 if good else 1


def run(suite: str, kernel: pathlib.Path, initramfs: pathlib.Path) -> dict[str, Any]:
    """Boot the kernel, and gather what is told: doctor's findings, and each test's result."""
    result: dict[str, Any] = {"suite": suite, "doctor": None, "passed": 0, "failed": [], "skipped": []}
    print(f"kernels: booting {kernel.relative_to(CACHE)}", flush=True)
    began = time.monotonic()
    end = "ended without a word"

    def heard(fact: dict[str, Any]) -> None:
        nonlocal end
        what = fact.pop("what")
        print(f"{time.monotonic() - began:7.1f} s {what}", *fact.values() if what != "doctor" else "", flush=True)
        if what == "doctor":
            result["doctor"] = fact["doctor"]
        elif what == "end":
            end = f"ended with {fact['code']}"
        elif what == "test" and fact["outcome"] == "passed":
            result["passed"] += 1
        elif what == "test":
            result[fact["outcome"]].append({"test": fact["test"], "why": fact["why"]})

    in_time = boot(kernel, initramfs, CACHE / f"{suite}.console", LIMIT, heard)
    result["ended"] = end if in_time else f"still running after {LIMIT:g} s"
    result["took"] = round(time.monotonic() - began)
    return result


if __name__ == "__main__":
    os.chdir(image.ROOT)
    sys.exit(main())
