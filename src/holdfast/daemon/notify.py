"""sd_notify: what services say about themselves, believed only from their own tree.

One datagram socket for all.  The kernel names the sender (SCM_CREDENTIALS, and SCM_PIDFD from Linux 6.5 on);
the chain of its parents has to reach the keeper of a service, and the sender has to be there still
when that has been read, or the numbers may have been another's.  Who has gone by then cannot be
believed: senders that leave at once wait for the barrier (BARRIER=1, as systemd-notify does).

Whoever can reach the socket can send descriptors, and the last close of one may take as long as its sender
likes: a connection that lingers, a file of a file system that is a program of his.  So a thread closes them,
all but the pipe of a barrier that a service passes.
"""

from __future__ import annotations

import array
import os
import queue
import socket
import struct
import threading
from collections.abc import Container
from typing import NamedTuple

from holdfast.process import _native

from .processes import ancestors

SO_PASSPIDFD, SCM_PIDFD = 76, 4  # Linux 6.5; not in Python's socket module
DATAGRAM_MAX = 65536
FDS_MAX = 253
CLOSING_MAX = 1024  # descriptors that wait to be closed; while there are more nothing is received
CREDENTIALS = struct.Struct("3i")


class Message(NamedTuple):
    """One datagram: the keeper whose tree the sender belongs to, who it is, and what it says."""

    keeper_pid: int
    pid: int
    fields: dict[str, str]
    fds: list[int]  # that came with FDSTORE=1, for the receiver to close


class NotifySocket:
    """The supervisor's end, made by `place.take`.  For its thread; does not block."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        self.refused = 0  # messages that came from outside, or from nobody any more
        self._given = self._closed = 0  # descriptors, by us and by the thread
        self._to_close: queue.SimpleQueue[int] | None = None

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def choked(self) -> bool:
        """Too many descriptors wait to be closed: `receive` gives nothing now."""
        return self._given - self._closed > CLOSING_MAX

    def receive(self, keepers: Container[int], most: int = 64) -> list[Message]:
        """What has come, at most so many: services that talk without end must not starve the others."""
        messages = []
        for _ in range(most):
            if self.choked:
                break
            fds: list[int] = []
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    DATAGRAM_MAX,
                    socket.CMSG_SPACE(FDS_MAX * 4) + socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                break
            except OSError:
                continue
            keeper = 0
            try:
                pid, pidfd = _sender(ancillary, fds)
                try:
                    keeper = _keeper_of(pid, pidfd, keepers)
                finally:
                    if pidfd >= 0:
                        os.close(pidfd)
                fields = _parse(data)
                if keeper:
                    stored, fds = (fds, []) if fields.get("FDSTORE") == "1" else ([], fds)
                    messages.append(Message(keeper, pid, fields, stored))
                else:
                    self.refused += 1
            finally:
                for fd in fds:  # a barrier is passed when its descriptor is closed
                    self._dispose(fd, believed=bool(keeper))
        return messages

    def _dispose(self, fd: int, *, believed: bool) -> None:
        if believed and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:["):
            os.close(fd)
            return
        if self._to_close is None:
            to_close: queue.SimpleQueue[int] = queue.SimpleQueue()
            try:
                threading.Thread(target=self._close_all, args=(to_close,), name="closer", daemon=True).start()
            except RuntimeError:  # no thread is left for us
                os.close(fd)
                return
            self._to_close = to_close
        self._given += 1
        self._to_close.put(fd)

    def dispose(self, fd: int) -> None:
        """Close a descriptor that somebody has sent, in the thread for that."""
        self._dispose(fd, believed=False)

    def _close_all(self, to_close: queue.SimpleQueue[int]) -> None:
        while True:
            try:
                os.close(to_close.get())
            except OSError:
                pass  # what its end has to say is for its sender
            self._closed += 1

    def close(self) -> None:
        self._sock.close()


def name_senders(sock: socket.socket) -> None:
    """Have the kernel name the sender of each message.  To be called before the first can come: it is named as the
    message is sent, and a service may speak before a supervisor listens."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
    except OSError:
        pass  # before 6.5: the pid of the credentials, opened by us


def _sender(ancillary: list[tuple[int, int, bytes]], fds: list[int]) -> tuple[int, int]:
    """Its pid, and a pidfd (-1: gone) for us to close.  Every descriptor that it has sent goes into fds."""
    pid = 0
    pidfd = -1
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS:
            pid = CREDENTIALS.unpack(data[: CREDENTIALS.size])[0]
        elif kind in (SCM_PIDFD, socket.SCM_RIGHTS):
            received = array.array("i")
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
            if kind == SCM_PIDFD:
                pidfd = received[0]
            else:
                fds.extend(received)
    if pid and pidfd < 0:
        try:
            pidfd = _native.pidfd_open(pid)
        except OSError:
            pass
    return pid, pidfd


def _keeper_of(pid: int, pidfd: int, keepers: Container[int]) -> int:
    """The keeper above the sender; 0: none, or the sender is gone and its number says nothing."""
    if pidfd < 0 or pid <= 0:
        return 0
    keeper = 0
    try:
        keeper = next((above for above in ancestors(pid) if above in keepers), 0)
        _native.pidfd_signal(pidfd, 0)
    except PermissionError:
        pass  # another user's, and there
    except OSError:
        return 0
    return keeper


def _parse(data: bytes) -> dict[str, str]:
    """`KEY=value` lines; what is no such line is skipped, as systemd does."""
    fields = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals:
            fields[key] = value
    return fields
