"""A pseudo-terminal with an interactive shell, driven as a person drives it: type, and read what comes."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
import uuid
from typing import Self

from helpers_wait import wait_for

HOLDFAST = os.path.join(os.path.dirname(sys.executable), "holdfast")
IN_SHELL = shlex.quote(HOLDFAST)  # a path may have spaces
LIMIT = 30.0  # a hang guard, never a measure
PROMPT = "<READY>"

# Prints what it gets, each delivery (set_wakeup_fd has a byte for every one, also where Python would merge
# two), and ends with code 7 when its FIFO says so.
COUNTER = """\
import os, select, signal, sys
r, w = os.pipe()
os.set_blocking(w, False)
signal.set_wakeup_fd(w, warn_on_full_buffer=False)
for s in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH", "CONT", "ALRM"):
    signal.signal(getattr(signal, "SIG" + s), lambda *_: None)
for s in (39, 40):
    signal.signal(s, lambda *_: None)
control = os.open(sys.argv[1], os.O_RDWR)
got = {}
os.write(1, b"up\\n")
while True:
    ready = select.select([r, control], [], [])[0]
    for n in os.read(r, 1) if r in ready else b"":
        name = signal.Signals(n).name[3:] if n < 32 else str(n)
        got[name] = got.get(name, 0) + 1
        os.write(1, b"got %s\\n" % name.encode())
    if control in ready and r not in ready:
        os.read(control, 64)
        for hidden in ("39", "CONT"):
            got.pop(hidden, None)
        os.write(1, b"counts %s\\n" % repr(sorted(got.items())).encode())
        sys.exit(7)
"""


def marked(marker: str) -> dict[int, str]:
    """Every living process with the marker in its environment: pid -> command line."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if marker.encode() not in file.read():
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                found[int(entry)] = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            pass  # not ours, or gone
    return found


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


def signal_process(pid: int, signo: int) -> None:
    """To one process that this test started, held while it is signalled."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signo)
    finally:
        os.close(fd)


class Marked:
    """An environment with a marker of its own, and the proof that nothing with it is left."""

    def __init__(self, **env: str) -> None:
        self.marker = f"HF_TEST_MARK={uuid.uuid4().hex}"
        self.env = {**os.environ, **env}
        name, value = self.marker.split("=")
        self.env[name] = value

    def members(self) -> dict[int, str]:
        return marked(self.marker)

    def assert_empty(self) -> None:
        poll_until(lambda: not self.members(), lambda: f"left: {self.members()}")

    def kill_all(self) -> None:
        for pid in self.members():
            try:
                signal_process(pid, signal.SIGKILL)
            except OSError:
                pass


class Terminal:
    """`with Terminal(["bash", ...]) as t`: t.run("command") types it and returns what it wrote."""

    def __init__(self, argv: list[str], expect: str = PROMPT, **env: str) -> None:
        self.marked = Marked(PS1=PROMPT, PS2="", TERM="dumb", ENV="", HISTFILE="", LC_ALL="C", **env)
        self.master, slave = os.openpty()
        modes = termios.tcgetattr(slave)
        modes[3] &= ~termios.ECHO
        modes[1] &= ~termios.ONLCR
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        self.unread = ""
        self.log = ""
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=self.marked.env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        if expect:
            self.expect(re.escape(expect))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:  # pytest shows it beside the failure
            print(f"the terminal showed:\n{self.log}\nunder it are: {self.marked.members()}")
        try:
            if kind is None:
                others = {pid: line for pid, line in self.marked.members().items() if pid != self.process.pid}
                assert not others, f"left under the shell: {others}"
        finally:
            self.marked.kill_all()
            self.hang_up()
            self.process.wait(LIMIT)
            self.marked.kill_all()

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str) -> str:
        """Read until the pattern has come; what came before it."""
        deadline = time.monotonic() + LIMIT
        while not (found := re.search(pattern, self.unread)):
            ready = select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"no {pattern!r} in {self.unread!r}; everything so far:\n{self.log}"
            try:
                data = os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # EIO: the last process has closed the terminal
                data = ""
            assert data, f"the terminal was closed before {pattern!r}:\n{self.log}"
            self.unread += data
            self.log += data
        before, self.unread = self.unread[: found.start()], self.unread[found.end() :]
        return before

    def prompt(self) -> str:
        return self.expect(re.escape(PROMPT))

    def run(self, command: str) -> str:
        self.send(command + "\n")
        return self.prompt()

    def catch_up(self) -> None:
        """Read past the prompts of commands whose own output was waited for instead."""
        self.send("echo 'caught 'up\n")
        self.expect("caught up\n")
        self.prompt()

    def code(self) -> int:
        """The shell's $? of what ran last."""
        self.send('echo "code $?."\n')
        self.expect(r"code ")
        code = int(self.expect(r"\."))
        self.prompt()
        return code

    def foreground(self) -> int:
        """The terminal's foreground group; its leader is the job that the shell started."""
        return os.tcgetpgrp(self.master)

    def modes(self) -> list:
        return termios.tcgetattr(self.master)


def poll_until(what, message="it did not happen"):
    """What `what()` answers, once that is true."""
    return wait_for(what, LIMIT, message)
