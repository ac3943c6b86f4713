"""The supervisor's word with its anchor: docs/wire.md, "The anchor", from the supervisor's side.

In: descriptor 3, as the anchor gave it.  Out: READY, FAREWELL, queries.  Never blocks, and a supervisor that was
started by hand has no anchor: then there is nobody to tell, and `pid` says so.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import struct
import time
from typing import NamedTuple

from holdfast.process.status import Member

# Where the anchor leaves what outlives a supervisor, and the pipe of `up --detach` (for the first one only).
ANCHOR_FD, LOCK_FD, CONTROL_FD, NOTIFY_FD, CALLER_FD, ATTACH_FD = 3, 4, 5, 6, 7, 8
HTTP_FD = 9  # where [supervisor.http] asks for it

READY, FAREWELL, ANCHOR_QUERY, MEMBERS, ANCHOR_HELLO = 32, 33, 34, 73, 96
VERSION = 1
MEMBERS_MAX = 256
PACKET = 65536
_HEAD = struct.Struct("<HHI")
_HELLO = struct.Struct("<IiIIQ")
_MEMBERS = struct.Struct("<IIII")
_MEMBER = struct.Struct("<iI16s")

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
        _version, anchor.pid, anchor.restarts, _, started_at_ns = hello
        anchor.started_at = started_at_ns / 1e9
        return anchor

    @classmethod
    def _known(cls, fd: int, facts: str) -> Anchor:
        sock = socket.socket(fileno=fd)
        anchor = cls(sock)
        restarts, _, started_at = facts.partition(":")
        # Who made the socket, as the kernel says.
        anchor.pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        anchor.restarts, anchor.started_at = int(restarts), float(started_at)
        anchor._last_id = time.monotonic_ns() // 1_000_000 % (1 << 31)  # answers to earlier questions are not ours
        return anchor

    @property
    def facts(self) -> str:
        """What was in the hello, for `find` in the same process."""
        return f"{self.restarts}:{self.started_at}"

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

    def tell_caller(self) -> None:
        """Let `holdfast up --detach` return, if that waits: everything is up."""
        if self._caller >= 0:
            try:
                os.write(self._caller, b"up\n")
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
