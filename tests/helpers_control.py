"""Shared by the tests of logs, control and client: a log writer."""

from __future__ import annotations

import os


class LogWriter:
    """Writes a stream's files as the keeper does: appends to the live one, rotates by rename, expires the oldest."""

    def __init__(self, directory, stream="stdout"):
        self.directory = str(directory)
        self.live, self.prefix = ("current", "") if stream == "stdout" else ("stderr", "stderr.")
        os.makedirs(self.directory, exist_ok=True)
        self.number = 1 + max(self.numbers(), default=0)
        self.fd = self._open()

    def path(self, name):
        return os.path.join(self.directory, name)

    def numbers(self):
        size = len(self.prefix)
        return sorted(
            int(name[size:])
            for name in os.listdir(self.directory)
            if name.startswith(self.prefix) and name[size:].isdecimal()
        )

    def _open(self):
        return os.open(self.path(self.live), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, data):
        os.write(self.fd, data)

    def rotate(self, keep=1000):
        os.close(self.fd)
        os.rename(self.path(self.live), self.path(f"{self.prefix}{self.number:08d}"))
        self.number += 1
        self.fd = self._open()
        for number in self.numbers()[:-keep]:
            os.unlink(self.path(f"{self.prefix}{number:08d}"))

    def age(self, seconds=10.0):
        """As if nothing had been written for a time."""
        status = os.fstat(self.fd)
        os.utime(self.fd, (status.st_atime, status.st_mtime - seconds))

    def close(self):
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
