"""Programs that fork as daemons do: each a few lines of Python, run as `fork(PROGRAM)`."""

from __future__ import annotations

import json
import sys

START = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None)
def name(text): libc.prctl(15, text.encode(), 0, 0, 0)
def child(work):
    if os.fork() == 0:
        work()
        os._exit(0)
def wait(): signal.pause()
"""

# The starter ends at once; the one between makes a session, forks the daemon and ends.
TWICE = """
def daemon():
    name("twice")
    wait()
def between():
    os.setsid()
    child(daemon)
child(between)
"""


def fork(program: str, *args: str) -> str:
    """The command, as TOML has it."""
    return json.dumps([sys.executable, "-S", "-E", "-c", START + program, *args])
