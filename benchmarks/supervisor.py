"""holdfast's supervisor against a C floor, side by side in one run.

    python benchmarks/supervisor.py [--quick] [--section NAME]... [--json FILE]

Progress goes to stderr, tables to stdout, figures to FILE.  docs/benchmarks.md says how it measures.
Never fails for being slow.
"""

from __future__ import annotations

import sys

from library import parser, run
from supervisor_sections import SECTIONS
from targets import judge_supervisor

if __name__ == "__main__":
    sys.exit(run(parser(__doc__, SECTIONS).parse_args(), "supervisor", SECTIONS, judge_supervisor))
