"""Families of processes that fork as daemons do, for tests: what each of them does, one thing after another.

    family(["start", ["name", "a"], ["up"], ["pause"]], ["exit", 0])

The program that is started does these: `fork` and `start` make a child that does the rest of the list (`start` waits
until that one is `up`); `gate` waits until somebody writes a line into a pipe with a name; `setsid`, `name`, `exec`,
`exit`, `die` by a signal, `on` a signal do something else, `wait` for a child, `see` the end of one and leave it,
`write` its number into a file, `pause` for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

PROGRAM = """
import ctypes, json, os, signal, sys
prctl = ctypes.CDLL(None).prctl
def act(actions, up):
    for what, *args in actions:
        if what in ("fork", "start"):
            told, tell = os.pipe()
            if os.fork() == 0:
                os.close(told)
                act(args, tell)
                os._exit(0)
            os.close(tell)
            if what == "start":
                os.read(told, 1)
            os.close(told)
        elif what == "up": os.write(up, b"x")
        elif what == "gate":
            with open(args[0]) as gate: gate.readline()
        elif what == "setsid": os.setsid()
        elif what == "name": prctl(15, args[0].encode(), 0, 0, 0)
        elif what == "exec": os.execvp(args[0], args)
        elif what == "exit": os._exit(args[0])
        elif what == "die": os.kill(os.getpid(), args[0])
        elif what == "on":
            signal.signal(args[0], lambda *_, rest=args[1:]: act(rest, up))
        elif what == "wait": os.wait()
        elif what == "see": os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        elif what == "write":
            with open(args[0] + ".new", "w") as file: file.write(f"{args[1] if args[1:] else os.getpid()}\\n")
            os.rename(args[0] + ".new", args[0])
        elif what == "pause":
            while True: signal.pause()
        else: raise ValueError(what)
act(json.loads(sys.argv[1]), -1)
"""

# A daemon of the classic kind: the one that is started ends at once, and the one between after having made a session.
TWICE = [["fork", ["setsid"], ["fork", ["name", "twice"], ["pause"]]], ["exit", 0]]
# One that ends when its daemon is there.
ONCE = [["start", ["setsid"], ["name", "once"], ["up"], ["pause"]], ["exit", 0]]


def family(*actions: list) -> list[str]:
    """The command."""
    return [sys.executable, "-S", "-E", "-c", PROGRAM, json.dumps(actions)]


def command(*actions: list) -> str:
    """The same as TOML has it."""
    return json.dumps(family(*actions))


def name_of(pid: int) -> str:
    """"" when it is gone."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def gates(directory):
    """gate(name): the path of a pipe; gate.open(name): whoever waits there goes on."""
    fds = {}

    def make(name: str) -> str:
        path = str(directory / name)
        os.mkfifo(path)
        fds[name] = os.open(path, os.O_RDWR)
        return path

    make.open = lambda name: os.write(fds[name], b"\n")
    try:
        yield make
    finally:
        for fd in fds.values():
            os.close(fd)
