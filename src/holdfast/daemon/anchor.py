"""The supervisor's word with its anchor: docs/wire.md, "The anchor", from the supervisor's side.

In: descriptor 3, as the anchor gave it.  Out: READY, FAREWELL, queries.  Never blocks, and a supervisor that was
started by hand has no anchor: then there is nobody to tell, and `pid` says so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from holdfast.process import _native
from holdfast.process.status import Member

# Where the anchor leaves what outlives a supervisor, and the pipe of `up --detach` (for the first one only).
ANCHOR_FD, LOCK_FD, CONTROL_FD, NOTIFY_FD, CALLER_FD, ATTACH_FD = 3, 4, 5, 6, 7, 8
HTTP_FD = 9  # where [supervisor.http] asks for it

READY, FAREWELL, ANCHOR_QUERY, DEPOSIT, WITHDRAW, TAKE = 32, 33, 34, 35, 36, 37
MEMBERS, ANCHOR_HELLO, DEPOSITED = 73, 96, 97
VERSION = 1
MEMBERS_MAX = 256
PACKET = 65536
DOWN_SHOWN = 20  # services that `up --detach` names as not up; a line each, which a pipe takes at once
_HEAD = struct.Struct("<HHI")
_HELLO = struct.Struct("<IiIIQ")
_MEMBERS = struct.Struct("<IIII")
_MEMBER = struct.Struct("<iI16s")
_DEPOSITED = struct.Struct("<II240s")
KEY_SIZE = 240  # of a deposit, with a NUL
TAKE_LIMIT = 5.0  # seconds for the anchor to give back what was left with it

# Blocked by the anchor at our start: none of them finds us without a handler.
SIGNALS = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)


class Members(NamedTuple):
    """Everybody below the anchor at the time of query `id`; `unlisted` more had no room in the answer."""

    id: int
    members: tuple[Member, ...]
    unlisted: int


class Anchor:
    """The anchor that started this process, or none: then `pid` is None and telling does nothing.

    `restarts`: how many supervisors this anchor had before us.  `started_at`: when it was started, in seconds
    since 1970.  To be used by one thread.
    """

    pid: int | None = None
    restarts: int = 0
    started_at: float = 0.0
    deposits_max = 0  # descriptors that it keeps for its supervisors

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._sock = sock
        self._caller = -1
        self.http = -1  # a listening TCP socket; stays open as long as we run
        self._last_id = 0
        self._parts: list[Member] = []
        self._parts_id = 0

    @classmethod
    def find(cls, known: str | None = None) -> Anchor:
        """Take descriptor 3 over when an anchor has said hello there, and keep it, and the others that an anchor
        gives, from programs that we start.  To be called before anything else is opened.

        `known`: what `facts` were for who was this process before an upgrade, and has read the hello."""
        anchor = cls.at(ANCHOR_FD) if known is None else cls._known(ANCHOR_FD, known)
        if anchor.pid is None:
            return anchor
        for number in (ANCHOR_FD, LOCK_FD, CONTROL_FD, NOTIFY_FD, CALLER_FD, ATTACH_FD, HTTP_FD):
            try:
                given = os.get_inheritable(number)  # what we have opened ourselves is not
                os.set_inheritable(number, False)
            except OSError:
                continue  # this anchor was not given it
            if number == CALLER_FD and given and stat.S_ISFIFO(os.fstat(number).st_mode):
                anchor._caller = number
            if number == HTTP_FD and given and stat.S_ISSOCK(os.fstat(number).st_mode):
                anchor.http = number
        return anchor

    @classmethod
    def at(cls, fd: int) -> Anchor:
        """The anchor at the other end of descriptor `fd`, taken over.  A descriptor in which no hello of an anchor
        lies is somebody else's and left alone: then there is no anchor."""
        hello = _hello(fd)
        if hello is None:
            return cls()
        anchor = cls(socket.socket(fileno=fd))
        _version, anchor.pid, anchor.restarts, anchor.deposits_max, started_at_ns = hello
        anchor.started_at = started_at_ns / 1e9
        return anchor

    @classmethod
    def _known(cls, fd: int, facts: str) -> Anchor:
        sock = socket.socket(fileno=fd)
        anchor = cls(sock)
        restarts, started_at, *more = facts.split(":")
        # Who made the socket, as the kernel says.
        anchor.pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        anchor.restarts, anchor.started_at = int(restarts), float(started_at)
        anchor.deposits_max = int(more[0]) if more else 0
        anchor._last_id = time.monotonic_ns() // 1_000_000 % (1 << 31)  # answers to earlier questions are not ours
        return anchor

    @property
    def facts(self) -> str:
        """What was in the hello, for `find` in the same process."""
        return f"{self.restarts}:{self.started_at}:{self.deposits_max}"

    def fileno(self) -> int:
        """Readable when an answer has come; -1 without an anchor."""
        return self._sock.fileno() if self._sock else -1

    def ready(self) -> None:
        """Say that we have started, and let signals in.  After an end without `farewell`, from now on, the anchor
        starts another supervisor.  Every handler must be in place, and no program started yet: it would inherit
        the signals blocked."""
        self._tell(READY, struct.pack("<Q", 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    @property
    def caller_waits(self) -> bool:
        """Whether `holdfast up --detach` waits for `tell_caller`."""
        return self._caller >= 0

    def tell_caller(self, down: Sequence[str] = ()) -> None:
        """Let `holdfast up --detach` return, if that waits: everything is up, but for what these lines say."""
        if self._caller >= 0:
            more = [f"and {len(down) - DOWN_SHOWN} more"] if len(down) > DOWN_SHOWN else []
            text = "\n".join([f"up {len(down)}" if down else "up", *down[:DOWN_SHOWN], *more, ""])
            try:
                os.write(self._caller, text.encode())
            except OSError:
                pass  # it has gone away; a supervisor ignores SIGPIPE, as every Python does
            os.close(self._caller)
            self._caller = -1

    def farewell(self, status: int) -> None:
        """Say that we end in order; the anchor ends with this exit code once we have."""
        self._tell(FAREWELL, struct.pack("<iI", status, 0))

    def query(self) -> int:
        """Ask who lives below the anchor; `answers` will have `Members` with the id that this returns.
        One question at a time: a second one before the answer to the first may be passed over."""
        self._last_id += 1
        self._tell(ANCHOR_QUERY, struct.pack("<II", self._last_id, 0))
        return self._last_id

    def answers(self) -> list[Members]:
        """Take in everything that has come; answers that are complete."""
        found: list[Members] = []
        while self._sock:
            try:
                packet = self._sock.recv(PACKET, socket.MSG_DONTWAIT)
            except OSError:
                break  # nothing there; or the anchor has ended, and the kernel is about to end us
            if not packet:
                break
            for tag, body in _records(packet):
                if tag == MEMBERS:
                    self._take(body, found)
        return found

    # ---- what outlives us

    def deposit(self, key: str, fd: int) -> None:
        """Leave a copy of a descriptor with the anchor, for our successors; one of this key is replaced.  OSError: it
        cannot be sent now.  How many are kept, `deposits_max`, is to be heeded: one too many is dropped there."""
        if self._sock and self.deposits_max:
            packet = _HEAD.pack(DEPOSIT, 0, KEY_SIZE) + _key(key)
            socket.send_fds(self._sock, [packet], [fd], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def withdraw(self, key: str) -> None:
        """The anchor shall let go of it."""
        self._tell(WITHDRAW, _key(key))

    def take_back(self) -> dict[str, int]:
        """What was left with the anchor, which has it still: key -> a descriptor of ours.  For a start, before
        anything else is asked.  TimeoutError, OSError: the anchor does not answer, or we have no descriptors left."""
        found: dict[str, int] = {}
        while self._sock and len(found) < self.deposits_max:
            index = len(found)
            self._tell(TAKE, struct.pack("<II", index, 0))
            try:
                while (key := self._await(index, found)) is None:
                    pass
            except OSError:
                for fd in found.values():
                    os.close(fd)
                raise
            if not key:
                break
        return found

    def _await(self, index: int, found: dict[str, int]) -> str | None:
        """The next packet: the key that it brings, "" where no more are there; None when it is about something else."""
        assert self._sock
        if not _native.poll(self._sock.fileno(), 1, int(TAKE_LIMIT * 1e9)):
            raise TimeoutError(f"the anchor does not answer within {TAKE_LIMIT:g} s")
        packet, fds, _, _ = socket.recv_fds(self._sock, PACKET, 1, socket.MSG_DONTWAIT)
        if not packet:
            raise ConnectionError("the anchor has ended")
        for tag, body in _records(packet):
            if tag == DEPOSITED:
                at, _, data = _DEPOSITED.unpack_from(body)
                key = os.fsdecode(data.split(b"\0")[0])
                if at == index and (fds or not key):
                    if key:
                        os.set_inheritable(fds[0], False)
                        found[key] = fds.pop()
                    return key
                if at == index:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        for fd in fds:
            os.close(fd)
        return None

    def close(self) -> None:
        """Let go of the descriptor.  The anchor goes by our exit, not by this."""
        if self._caller >= 0:
            os.close(self._caller)
        if self._sock:
            self._sock.close()
        self._sock, self._caller = None, -1

    def _take(self, body: bytes, found: list[Members]) -> None:
        number, count, unlisted, _ = _MEMBERS.unpack_from(body)
        if number != self._parts_id:
            self._parts, self._parts_id = [], number
        for at in range(_MEMBERS.size, _MEMBERS.size + count * _MEMBER.size, _MEMBER.size):
            pid, flags, name = _MEMBER.unpack_from(body, at)
            self._parts.append(Member(pid, flags, name.split(b"\0")[0].decode(errors="replace")))
        if count < MEMBERS_MAX:  # a full one is followed by another
            found.append(Members(number, tuple(self._parts), unlisted))
            self._parts = []

    def _tell(self, tag: int, body: bytes) -> None:
        if self._sock:
            try:
                self._sock.send(_HEAD.pack(tag, 0, len(body)) + body, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # its socket is never full of our few words: it has ended, and so will we


def _key(key: str) -> bytes:
    data = os.fsencode(key)
    if not 0 < len(data) < KEY_SIZE:
        raise ValueError(f"a key of a deposit has 1 to {KEY_SIZE - 1} bytes: {key!r}")
    return data.ljust(KEY_SIZE, b"\0")


def _hello(fd: int) -> tuple[int, int, int, int, int] | None:
    """The hello that waits in the socket, taken out of it; None when this is not an anchor's."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        copy = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
    except OSError:
        return None
    with copy:
        if copy.family != socket.AF_UNIX or copy.type != socket.SOCK_SEQPACKET:
            return None
        for flags in (socket.MSG_PEEK, 0):
            try:
                packet = copy.recv(PACKET, flags | socket.MSG_DONTWAIT)
                records = list(_records(packet))
            except OSError:
                return None
            if not records or records[0][0] != ANCHOR_HELLO or len(records[0][1]) < _HELLO.size:
                return None
        return _HELLO.unpack_from(records[0][1])


def _records(packet: bytes) -> list[tuple[int, bytes]]:
    """Tag and body of every record; a packet that lies ends where it does."""
    found = []
    at = 0
    while at + _HEAD.size <= len(packet):
        tag, _, length = _HEAD.unpack_from(packet, at)
        at += _HEAD.size
        if at + length > len(packet):
            break
        found.append((tag, packet[at : at + length]))
        at += (length + 7) // 8 * 8
    return found
