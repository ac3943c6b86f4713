"""Who is who over the life of a supervisor: the identities of a tree's keeper, main process and adopted members.

A number alone is nobody.  With the inode of its pidfd (Linux 6.9; never used twice in one boot) or else its start
time, it is one process: that is looked up only through a pidfd that was opened before.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from holdfast.process import _native
from holdfast.process.held import HeldTree

from .processes import look

if TYPE_CHECKING:
    from .copy import Copy
    from .events import EventLog
    from .store import Store

POLLIN = 1
WRITE_PAUSE = 0.1  # seconds until those that a keeper has adopted are written down
ASK_PAUSE = 1.0  # seconds until a keeper is asked: it hears of no adoption by itself, and daemons are made at the start
KEEPER, MAIN, ADOPTED = "keeper", "main", "adopted"
LINE = re.compile(rf"({KEEPER}|{MAIN}|{ADOPTED}) ([1-9]\d{{0,6}}) (\d{{1,20}}) (\d{{1,20}})", re.ASCII)


class Identity(NamedTuple):
    """One process, for as long as this boot lasts.  `inode` is 0 where pidfds have none of their own."""

    role: str
    pid: int
    inode: int
    start: int

    def open(self) -> int:
        """A pidfd of exactly this process; -1: it has ended.  OSError: no descriptor is left."""
        try:
            pidfd = _native.pidfd_open(self.pid)
        except ProcessLookupError:
            return -1
        try:
            same = identify(self.role, self.pid, pidfd) == self
        except OSError:
            os.close(pidfd)
            raise
        if same:
            return pidfd
        os.close(pidfd)
        return -1

    def alive(self) -> bool:
        fd = self.open()
        if fd >= 0:
            os.close(fd)
        return fd >= 0


def identify(role: str, pid: int, pidfd: int) -> Identity | None:
    """The identity of who is held by `pidfd`; None: it has ended.  OSError: no descriptor is left."""
    seen = look(pid)
    if seen is None or _native.poll(pidfd, POLLIN, 0):  # alive after the look: it was seen, and nobody else
        return None
    return Identity(role, pid, _inode(pidfd), seen.start)


def _inode(pidfd: int) -> int:
    mine = os.fstat(pidfd)
    return 0 if os.path.samestat(mine, _anonymous()) else mine.st_ino


@functools.cache
def _anonymous() -> os.stat_result:
    """What descriptors without an inode of their own have in common."""
    other = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        return os.fstat(other)
    finally:
        os.close(other)


def of_tree(tree: HeldTree) -> list[Identity]:
    """Those of the tree who live now and are held.  OSError: as `identify`."""
    held = [(KEEPER, tree.keeper_pid, tree.keeper_pidfd), (MAIN, tree.pid, tree.pidfd)]
    held += [(ADOPTED, pid, fd) for pid, fd in tree.members.items()]
    return [who for role, pid, fd in held if pid and fd >= 0 and (who := identify(role, pid, fd))]


def encode(members: Iterable[Identity]) -> bytes:
    """One a line: role, pid, inode, start time."""
    return "".join(f"{role} {pid} {inode} {start}\n" for role, pid, inode, start in members).encode()


def decode(data: bytes) -> list[Identity]:
    """What can be read of it."""
    lines = map(LINE.fullmatch, data.decode(errors="replace").splitlines())
    return [Identity(line[1], int(line[2]), int(line[3]), int(line[4])) for line in lines if line]


class MemberFiles:
    """Keeps what is written of every copy's members up to date.  For the loop's thread."""

    def __init__(self, store: Store, events: EventLog) -> None:
        self._store = store
        self._events = events

    def take_over(self, copy: Copy) -> None:
        """A copy is held from now on: by us since its start, or an earlier supervisor may have written of it."""
        if copy.tree.attached:
            written = self._store.members(copy.name, copy.incarnation)
            copy.members = {who.role: who for who in written if who.role != ADOPTED}
            if copy.tree.pid and MAIN not in copy.members:
                self.write(copy)
        copy.asking = asyncio.get_running_loop().call_later(ASK_PAUSE, self._ask, copy)

    def _ask(self, copy: Copy) -> None:
        copy.asking = None
        try:
            copy.tree.query()  # it looks, and announces whom it had not seen
        except BlockingIOError:
            pass  # frozen

    def write_soon(self, copy: Copy) -> None:
        """It has adopted somebody.  Most of them end at once: who is there a moment later is written down."""
        if copy.unwritten is None:
            copy.unwritten = asyncio.get_running_loop().call_later(WRITE_PAUSE, self.write, copy)

    def write(self, copy: Copy) -> None:
        copy.unwritten = None
        try:
            alive = of_tree(copy.tree)
            for who in alive:
                if who.role != ADOPTED:
                    copy.members[who.role] = who
            adopted = [who for who in alive if who.role == ADOPTED]
            self._store.save_members(copy.name, copy.incarnation, [*copy.members.values(), *adopted])
        except OSError as error:  # only what is lost with its keeper would have needed it
            self._events.add("error", f"cannot write its members: {error}", copy.name, copy.incarnation)
