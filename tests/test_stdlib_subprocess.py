"""CPython's own test_subprocess, with holdfast.subprocess in the place of `subprocess`: the running Python's.

What fails must be in the table of docs/subprocess.md, with its reason; what passes must not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from helpers_lib import marked
from helpers_wait import eventually

import holdfast

HERE = pathlib.Path(__file__).resolve().parent
PAGE = (HERE.parent / "docs" / "subprocess.md").read_text()
# Of the tests, not of names: ProcessTestCaseNoPoll runs those of ProcessTestCase once more.
LISTED = dict(re.findall(r"^\| `(\w+\.test_\w+)` \| (.+) \|$", PAGE, re.MULTILINE))
SHARES = 4  # most of them sleep: together they take as long as the longest


def python_with_tests() -> str:
    """Not the virtual environment's interpreter, where some of the tests cannot be run."""
    if importlib.util.find_spec("test.test_subprocess") is None:
        if os.environ.get("HOLDFAST_NO_SKIPS"):
            pytest.fail("this Python has no test package, and CI must have it (Debian: libpython3.11-testsuite)")
        pytest.skip("this Python has no test package (Debian: libpython3.11-testsuite)")
    return getattr(sys, "_base_executable", sys.executable)


def run_shares(python: str, directory: pathlib.Path, env: dict[str, str]) -> dict[str, str]:
    """What became of each test."""
    became: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        shares = []
        for share in range(SHARES):
            own = directory / str(share)  # the tests write files with fixed names
            own.mkdir()
            log = stack.enter_context(open(own / "log", "w+"))
            process = stack.enter_context(
                subprocess.Popen(
                    [python, str(HERE / "stdlib_subprocess.py"), str(share), str(SHARES)],
                    env=env, cwd=own, stdout=subprocess.PIPE, stderr=log, text=True,
                )
            )  # fmt: skip
            stack.callback(process.kill)
            shares.append((process, log))
        for process, log in shares:
            out, _ = process.communicate(timeout=100)
            log.seek(0)
            assert process.returncode == 0, log.read()[-4000:]
            became.update(json.loads(out))
    return became


def test_of_cpython_all_passes_that_is_not_listed_and_nothing_that_is(tmp_path):
    python = python_with_tests()
    mark = f"{os.getpid()}-{os.urandom(4).hex()}"
    packages = str(pathlib.Path(holdfast.__file__).parent.parent)
    became = run_shares(python, tmp_path, {**os.environ, "PYTHONPATH": packages, "HOLDFAST_TEST_STDLIB": mark})
    assert eventually(lambda: not marked(f"HOLDFAST_TEST_STDLIB={mark}")), "something is left"
    passed = {name for name, what in became.items() if what == "passed"}
    assert len(passed) > 250
    assert {"ProcessTestCase.test_no_leaking", "POSIXProcessTestCase.test_preexec"} <= passed
    failed = {name: what for name, what in became.items() if what.startswith("failed") and name not in LISTED}
    assert not failed, "\n".join(f"{name}\n{what}" for name, what in failed.items())
    assert not passed & set(LISTED)


def test_the_list_is_short_and_gives_reasons():
    assert 0 < len(LISTED) <= 15
    assert all(LISTED.values())
