"""inotify: to do something at the very moment when a file appears."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from typing import Self

CREATED, MOVED = 0x100, 0x80 | 0x40  # IN_CREATE; IN_MOVED_FROM, IN_MOVED_TO
_libc = ctypes.CDLL(None, use_errno=True)
_HEAD = struct.Struct("iIII")


class Watch:
    """The names that appear in a directory.  `with Watch(path) as watch: watch.wait(lambda name: ..., 1.0)`."""

    def __init__(self, directory: str) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, os.fsencode(directory), CREATED | MOVED) < 0:
            code = ctypes.get_errno()
            self.close()
            raise OSError(code, os.strerror(code), directory)

    def wait(self, wanted, limit: float) -> str:
        """The first name for which wanted(name) is true; "" at the limit, in seconds."""
        while select.select([self._fd], [], [], limit)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                continue
            at = 0
            while at < len(data):
                length = _HEAD.unpack_from(data, at)[3]
                at += _HEAD.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
                if wanted(name):
                    return name
        return ""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
