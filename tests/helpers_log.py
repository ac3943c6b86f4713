"""A keeper that writes a log, and what a reader of its files sees.

`writer` compiles the program that makes output in bulk; `LogKeeper` is a raw keeper with a LOG request.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from conftest import require
from helpers_wire import SPEC, RawKeeper, wait_until

MARKER = re.compile(rb"--- holdfast: .*\n")
STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ")

# LINES of 100 bytes from number FIRST on, in writes of BLOCK bytes to descriptor FD.
WRITER = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char block[1 << 20];
int main(int n, char **v)
{
    long lines = atol(v[1]), first = n > 2 ? atol(v[2]) : 0;
    size_t limit = n > 3 ? strtoul(v[3], 0, 10) : 65536, at = 0;
    int fd = n > 4 ? atoi(v[4]) : 1;
    char line[100];
    memset(line, 'x', sizeof line);
    line[99] = '\n';
    for (long i = first; i < first + lines; i++) {
        long rest = i;
        for (int place = 9; place >= 0; place--, rest /= 10)
            line[place] = (char)('0' + rest % 10);
        for (size_t done = 0; done < sizeof line;) {
            size_t part = sizeof line - done < limit - at ? sizeof line - done : limit - at;
            memcpy(block + at, line + done, part);
            at += part;
            done += part;
            if (at == limit || (i == first + lines - 1 && done == sizeof line)) {
                for (size_t out = 0; out < at;) {
                    ssize_t w = write(fd, block + out, at - out);
                    if (w <= 0)
                        return 1;
                    out += (size_t)w;
                }
                at = 0;
            }
        }
    }
    return 0;
}
"""


def compile_writer(directory: Path) -> str:
    require("gcc")
    program = str(directory / "writer")
    subprocess.run(["gcc", "-O2", "-x", "c", "-", "-o", program], input=WRITER, text=True, check=True)
    return program


class LogKeeper(RawKeeper):
    """A keeper whose next process writes into `directory`."""

    feed_fd = -1

    def __init__(self, directory: Path, **options) -> None:
        super().__init__(**options)
        self.directory = Path(directory)

    def log(self, *, size=0, count=9, cap=0, timestamps=False, merge=True, label="web@41", flags=0) -> None:
        flags |= SPEC.numbers["LOG_TIMESTAMPS"] * timestamps | SPEC.numbers["LOG_MERGE"] * merge
        where = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        values = {"flags": flags, "rotate_count": count, "rotate_size": size, "cap": cap, "label": label.encode()}
        self.send(SPEC.record("LOG", values), [where])
        os.close(where)

    def start(self, *argv: str, env=(f"PATH={os.environ['PATH']}",), head=None, fds=(), **log) -> dict:
        """Two requests, one answer.  `head` is the SPAWN's, the rest the LOG's."""
        self.log(**log)
        return self.spawn(*argv, env=env, fds=fds, **(head or {}))

    def cat(self, to: int = 1, **log) -> None:
        """A service that says what it is fed."""
        theirs, self.feed_fd = os.pipe()
        script = ("-c", f"exec cat >&{to}") if to != 1 else ("-c", "exec cat")
        started = self.start(str(shutil.which("sh")), *script, fds=[theirs], head={"fd_targets": (0,)}, **log)
        os.close(theirs)
        assert started["name"] == "SPAWNED"

    def feed(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.feed_fd, data) :]

    def finish(self) -> dict:
        """The end of its input ends the service; the LOG_STATE at the end, if there was one."""
        if self.feed_fd >= 0:
            os.close(self.feed_fd)
            self.feed_fd = -1
        return dict(self.rest())

    def close(self) -> None:
        if self.feed_fd >= 0:
            os.close(self.feed_fd)
        super().close()

    def shell(self, script: str, **log) -> dict:
        return self.start(str(shutil.which("sh")), "-c", script, **log)

    queries = 0

    def state(self) -> dict:
        """As it is now: those that came unasked before are passed over."""
        self.queries += 1
        self.say("QUERY", id=self.queries)
        latest: dict = {}
        while True:
            name, values = self.wait_for("LOG_STATE", "MEMBERS")
            if name == "MEMBERS" and values["id"] == self.queries:
                return latest
            latest = values if name == "LOG_STATE" else latest


def numbered(directory: Path, prefix: str = "") -> list[Path]:
    """Rotated files, oldest first."""
    return sorted(p for p in Path(directory).iterdir() if re.fullmatch(re.escape(prefix) + r"\d{8,}", p.name))


def files(directory: Path, name: str = "current") -> list[Path]:
    """Every file of a stream, in the order in which they were written."""
    return [*numbered(directory, "" if name == "current" else name + "."), Path(directory) / name]


def text(directory: Path, name: str = "current") -> bytes:
    return b"".join(path.read_bytes() for path in files(directory, name))


def output(directory: Path, name: str = "current") -> bytes:
    """What the service wrote: without our markers (and without what stamps they carry)."""
    lines = text(directory, name).splitlines(keepends=True)
    return b"".join(line for line in lines if b"--- holdfast: " not in line)


def wait_for_text(path: Path, wanted: bytes) -> None:
    def there() -> bool:
        return path.exists() and wanted in path.read_bytes()

    wait_until(there, f"{wanted!r} is not in {path.name}")


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in Path(directory).iterdir())
