"""Reading a configuration that somebody else could have written: checked and read through one descriptor.

Comes in: a path.  Goes out: its bytes, or an OSError or Untrusted that says why not.  Standard library alone: every
command passes here.
"""

from __future__ import annotations

import os
import stat

FILE_MAX = 16 * 1024 * 1024  # bytes
LINKS_MAX = 40  # symbolic links on the way, as the kernel's own limit


class Untrusted(Exception):
    """The file is refused for what others could do to it; str() says what."""


def read(path: str, limit: int = FILE_MAX) -> bytes:
    """The whole file, of at most `limit` bytes.  OSError: it cannot be read; Untrusted: it should not be."""
    # NONBLOCK: the open of a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise Untrusted("is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise Untrusted("is not a regular file")
        if os.geteuid() == 0:
            _check(path, status)
        chunks = []
        left = limit + 1
        while left and (chunk := os.read(fd, left)):
            chunks.append(chunk)
            left -= len(chunk)
        if not left:
            raise Untrusted(f"is larger than {limit} bytes")
        return b"".join(chunks)
    finally:
        os.close(fd)


def _check(path: str, opened: os.stat_result) -> None:
    """Root runs what the file says: nobody else may be able to write it or to put another in its place.

    Walks the path as the kernel does, link by link.  A directory that everybody may write is refused; with the sticky
    bit (/tmp) it will do if the next entry is root's or ours, for others could have made it otherwise.
    """
    if opened.st_mode & stat.S_IWOTH:
        raise Untrusted("is writable by everybody, and root would run what it says: chmod o-w it")
    parts = os.path.join(os.getcwd(), path).split("/")[::-1]
    here = "/"
    links = 0
    status = os.stat(here)
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        shared = status.st_mode & stat.S_IWOTH
        if shared and not status.st_mode & stat.S_ISVTX:
            raise Untrusted(f"lies in {here}, where everybody may replace it, and root would run what it says")
        if part == "..":
            here = os.path.dirname(here)
            status = os.stat(here)
            continue
        there = os.path.join(here, part)
        entry = os.lstat(there)
        if shared and entry.st_uid not in (0, os.geteuid()):
            raise Untrusted(
                f"lies in {here}, where everybody may make files, and {there} belongs to user {entry.st_uid}"
            )
        if stat.S_ISLNK(entry.st_mode):
            links += 1
            if links > LINKS_MAX:
                raise Untrusted("has too many symbolic links on its way")
            target = os.readlink(there)
            if target.startswith("/"):
                here = "/"
                status = os.stat(here)
            parts += target.split("/")[::-1]
        else:
            here, status = there, entry
    if (status.st_dev, status.st_ino) != (opened.st_dev, opened.st_ino):
        raise Untrusted("was replaced while it was read")
