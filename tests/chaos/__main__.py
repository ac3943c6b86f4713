"""python -m chaos: one run.  As root in namespaces of its own, so that nothing but its own can be hit."""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import shutil
import signal
import sys
import tempfile

from .driver import Options, as_json, run
from .steps import PROFILES
from .trouble import unmount
from .world import Stuck

PR_SET_CHILD_SUBREAPER = 36
ISOLATED = "HOLDFAST_CHAOS_ISOLATED"


def isolate() -> None:
    """Go on as PID 1 of a namespace (root), else as the one to whom all that is below falls."""
    if os.geteuid() == 0 and ISOLATED not in os.environ and shutil.which("unshare"):
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m", "chaos"]
        os.execvpe("unshare", [*command, *sys.argv[1:]], {**os.environ, ISOLATED: "1"})
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--profile", default="supervisor", choices=PROFILES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--services", type=int, default=20)
    parser.add_argument("--kills", type=int, default=0, help="end after so many")
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    parser.add_argument("--limit", type=int, default=7200, help="seconds that the run may take")
    parser.add_argument("--keep", action="store_true", help="leave the directory of the run, as after violations")
    given = parser.parse_args()
    isolate()
    options = Options(given.profile, given.seed, given.steps, given.services, given.kills)
    terminal = sys.stderr.isatty()

    def progress(text: str) -> None:
        print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def too_long(_signo: int, _frame: object) -> None:
        raise Stuck(f"the run took longer than {given.limit} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: everything is ended
    signal.alarm(given.limit)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
    keep = given.keep
    try:
        report = run(options, directory, progress)
        keep |= bool(report["violations"])
        if given.json:
            pathlib.Path(given.json).write_text(as_json(report))
        print("\n" + as_json(report))
        if report["violations"]:
            print(f"chaos: violations: {len(report['violations'])}; repeat with: {report['repeat']}", file=sys.stderr)
        return 130 if report["interrupted"] else 1 if report["violations"] else 0
    finally:
        if keep:
            print(f"chaos: left in {directory}", file=sys.stderr)
        else:
            unmount(directory / "disk")
            shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
