"""Run a share of CPython's own test_subprocess over holdfast.subprocess; print what became of each test, as JSON.

usage: stdlib_subprocess.py SHARE SHARES.  A program of its own: to its end it has another `subprocess` than others.
"""

from __future__ import annotations

import json
import resource
import sys
import unittest

import holdfast.subprocess

sys.modules["subprocess"] = holdfast.subprocess
# test_no_leaking fills the table of descriptors, and gives up where that takes more than 1,026.
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

from test import test_subprocess  # noqa: E402

assert test_subprocess.subprocess is holdfast.subprocess
assert issubclass(test_subprocess.PopenExecuteChildRaises, holdfast.Popen)


def tests(suite: unittest.TestSuite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests(test)
        else:
            yield test


def main(share: int, shares: int) -> None:
    every = list(tests(unittest.defaultTestLoader.loadTestsFromModule(test_subprocess)))
    result = unittest.TextTestRunner(stream=sys.stderr).run(unittest.TestSuite(every[share::shares]))
    became = dict.fromkeys((name(test) for test in every[share::shares]), "passed")
    became.update((name(test), f"skipped: {why}") for test, why in result.skipped)
    became.update((name(test), f"failed: {why}") for test, why in result.failures + result.errors)
    json.dump(became, sys.stdout)


def name(test: unittest.TestCase) -> str:
    """As the documentation names it.  What fails outside a test (setUpClass) has a name, too, and is in no list."""
    return test.id().removeprefix("test.test_subprocess.")


main(*map(int, sys.argv[1:]))
