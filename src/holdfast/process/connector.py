"""The kernel's proc connector: what becomes of every process of the machine, told as it happens.

In: nothing.  Out: happenings as plain tuples, and how many were lost.  It is a hint and no proof: messages are lost
when they are not read in time, pids are only numbers, and it is to be had in the initial user and pid namespaces alone
(as root; as anybody since Linux 6.6).  Read in Python: 1.3 us a message, of which a process makes five or six.

The kernel counts its listeners, and one that leaves without IGNORE is counted for ever: every later fork pays for it.
So `close` is a must, and a program that may be killed leaves a copy of the descriptor with somebody who lives on.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self, TypeAlias

    # what, when (ns on the monotonic clock), and the message's numbers; 0 where it has fewer:
    #   FORK: parent's thread and process, child's thread and process
    #   EXEC, SID: thread, process     UID, GID: thread, process, real id, effective id
    #   COMM: thread, process, four numbers that are the bytes of its name
    #   COREDUMP: thread, process      EXIT: thread, process, wait status, signal, parent's thread and process (or 0)
    Happening: TypeAlias = tuple[int, int, int, int, int, int, int, int]

FORK, EXEC, UID, GID, SID, COMM, COREDUMP, EXIT = 1, 2, 4, 0x40, 0x80, 0x200, 0x40000000, 0x80000000

RECEIVE_BYTES = 16 * 1024 * 1024  # asked for; the kernel doubles it, and a message takes 832: 40,000 of them
MESSAGE_LEAST = 512  # bytes that one takes of it, at the least

_CONNECTOR = 11  # NETLINK_CONNECTOR
_LISTEN, _IGNORE = 1, 2
_RCVBUFFORCE, _MEMINFO = 33, 55  # of SOL_SOCKET
_HEAD = struct.Struct("=IHHIIIIIIHH")  # nlmsghdr, cn_msg
_EVENT = struct.Struct("=IxxxxQIIIIII")  # proc_event: what, cpu, when, and its numbers
_SIZE = _HEAD.size + _EVENT.size


class Connector:
    """A listener.  OSError: it is not to be had here, and the text says why.  For one thread."""

    def __init__(self, receive_bytes: int = RECEIVE_BYTES) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _CONNECTOR)
        self._begin()
        try:
            self._sock.bind((0, 1))
            self._enlarge(receive_bytes)
            self._listen()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, fd: int) -> Self:
        """The listener behind a descriptor, which is ours from now on.  What lies in it unread is read."""
        self = cls.__new__(cls)
        self._sock = socket.socket(fileno=fd)
        self._begin()
        return self

    def _begin(self) -> None:
        self._dropped = 0  # as the kernel had counted when we last looked
        self._suspect = 0  # more messages that may be from before a loss; 0: none was noticed

    def _enlarge(self, size: int) -> None:
        for option in (_RCVBUFFORCE, socket.SO_RCVBUF):  # the first takes privileges, the second what is allowed
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, option, size)
                return
            except PermissionError:
                pass

    def _listen(self) -> None:
        # The kernel answers within send, and not at all where it does not listen to us.
        mark = int.from_bytes(os.urandom(3), "little") + 1
        try:
            self._tell(_LISTEN, mark)
        except ConnectionRefusedError:
            raise OSError(errno.ECONNREFUSED, "the kernel has none in this network namespace") from None
        for _ in range(self._room()):
            try:
                data, _address = self._sock.recvfrom(_SIZE, socket.MSG_DONTWAIT)
            except OSError:
                break
            if len(data) == _SIZE and _HEAD.unpack_from(data)[8] == mark + 1:  # others hear it, and we theirs
                error = _EVENT.unpack_from(data, _HEAD.size)[2]
                if error:
                    raise OSError(error, os.strerror(error))
                return
        raise OSError(errno.EOPNOTSUPP, "no process events arrive (only in the initial pid and user namespaces)")

    def _tell(self, operation: int, mark: int) -> None:
        body = struct.pack("=I", operation)
        head = _HEAD.pack(_HEAD.size + len(body), 3, 0, 0, 0, 1, 1, 0, mark, len(body), 0)
        self._sock.send(head + body, socket.MSG_DONTWAIT)

    def _room(self) -> int:
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // MESSAGE_LEAST

    def fileno(self) -> int:
        """Readable when something has happened."""
        return self._sock.fileno()

    def read(self, most: int) -> tuple[list[Happening], int]:
        """So many happenings, in order, fewer where there are no more; and how many were lost: not 0 once all that came
        before the loss is read.  What is looked up then, and what is read later, is together the truth again."""
        found: list[Happening] = []
        due = False
        unpack, receive = _EVENT.unpack_from, self._sock.recvfrom
        while len(found) < most:
            try:
                data, address = receive(_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                due, self._suspect = due or self._suspect > 0, 0
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                due = due or self._suspect > 0  # the queue was empty in between
                self._suspect = self._room()
                continue
            if self._suspect:
                self._suspect -= 1
                due = due or not self._suspect
            # From the kernel: its port is 0.  An answer to somebody's LISTEN is a message like the others, of kind 0.
            if address[0] == 0 and len(data) == _SIZE:
                found.append(unpack(data, _HEAD.size))
        return found, self._lost() if due else 0

    def _lost(self) -> int:
        dropped = self._drops()
        lost, self._dropped = (dropped - self._dropped) % (1 << 32), dropped
        return lost or 1  # told already, with what was lost before

    def _drops(self) -> int:
        numbers = self._sock.getsockopt(socket.SOL_SOCKET, _MEMINFO, 36)
        return int(struct.unpack_from("=9I", numbers)[8])

    def close(self) -> None:
        """Listen no more, also for who else has this descriptor."""
        try:
            self._tell(_IGNORE, 0)
        except OSError:
            pass  # then the kernel had not listened
        self._sock.close()

    def leave(self) -> None:
        """Close our descriptor; somebody else has a copy, and listens on."""
        self._sock.close()
