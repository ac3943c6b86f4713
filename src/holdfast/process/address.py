"""Where a held keeper is found: its socket, the report file that it may leave, the first words to it.

For both faces of a held tree, the event face (held.py) and the handle (addressed.py).  Nothing in here waits for
anything, but for the exec of the keeper itself, and for the end of what an interrupted start had begun.
"""

from __future__ import annotations

import os
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from . import _native, keeper
from .events import EMPTY, FAILED
from .keeper import FROZEN_LIMIT, ON_OWNER_LOSS, SIGKILL, STOP, spawn_error, stop_body
from .options import LOSS
from .socket_path import at_path

if TYPE_CHECKING:
    from typing import Any

    from .options import Plan

# Tags and numbers of the wire (csrc/common/wire.h).
HELLO, HELD, LOG, ACK = 1, 9, 10, 11
HELD_STOP_REST, LOG_TIMESTAMPS, LOG_MERGE, LOG_TERMINAL, LOG_INPUT = 1, 1, 2, 4, 8
ACK_EXITED, ACK_EMPTY, ACK_STOP_REPORT = 1, 2, 4

REPORT_NAME_MAX = 63  # bytes, without the zero that ends it
LABEL_MAX = 159  # the same
QUEUE = 8  # owners that may wait to be heard


class LogPlan(NamedTuple):
    """What the keeper does with the output: files in `directory`, sizes in bytes (docs/wire.md, LOG)."""

    directory: str
    rotate_size: int
    rotate_count: int
    cap: int
    timestamps: bool
    merge: bool
    label: str
    terminal: bool = False  # stdin, stdout and stderr are a terminal, whose other end is the keeper's
    input: bool = False  # stdin is a pipe, whose other end is the keeper's


# ---- the socket


def _bind(sock: socket.socket, address: str) -> None:
    os.fchmod(sock.fileno(), 0o600)  # before it has a name: the kernel makes the name with it
    at_path(sock.bind, address)
    # The keeper listens once more, for itself.  But from here on, until the last one who may still become
    # the keeper has let go of it, an owner who comes after us is queued and not told that nobody is there.
    sock.listen(QUEUE)


def connect(address: str) -> tuple[socket.socket, int]:
    """A connection to the keeper that listens at `address`, HELLO said, and who listened last: the keeper, or who made
    its socket if the keeper has not come to it yet.

    FileNotFoundError, ConnectionRefusedError: no keeper is there.  BlockingIOError: too many wait for it already;
    it is frozen.  PermissionError: it is another user's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        at_path(sock.connect, address)
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():  # its words would be taken for a keeper's; and a keeper would not take us
            raise PermissionError(1, f"its keeper belongs to another user ({uid})", address)
        request(sock, HELLO, struct.pack("<II", 1, 0))
        return sock, pid
    except BaseException:
        sock.close()
        raise


def pidfd_of_peer(sock: int, pid: int, listener: int) -> int:
    """A pidfd of the keeper at the other end, by its number; -1 when it is gone.

    `pid` is what it says of itself, `listener` who listened last.  Both are the same, unless the keeper had not come to
    that yet, or has its numbers in another PID namespace: there, what it says is some process of ours.
    """
    if pid != listener:
        pid = next((number for number in (listener, pid) if _is_keeper(number)), -1)
    try:
        fd = _native.pidfd_open(pid)
    except OSError:
        return -1
    lives = False
    try:
        # If its end of the socket is open now, it lived when the number was opened.
        lives = not _native.poll(sock, 0, 0)
    finally:
        if not lives:
            os.close(fd)
    return fd if lives else -1


def _is_keeper(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().strip() == os.fsencode(os.path.basename(keeper.KEEPER))
    except OSError:
        return False


def request(sock: socket.socket, tag: int, body: bytes) -> None:
    """Does not block: BlockingIOError.  A keeper that is gone hears nothing, and its end will be read."""
    try:
        _native.send(sock.fileno(), tag, body)
    except (BrokenPipeError, ConnectionResetError):
        pass


def request_with(sock: socket.socket, tag: int, fd: int) -> None:
    """A request without a body, and the descriptor that goes along; otherwise as `request`."""
    try:
        socket.send_fds(sock, [_record(tag, b"")], [fd], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        pass


# ---- the report


def remove(path: str) -> None:
    """Remove the file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def remove_report(path: str) -> None:
    """Remove a report, and what a keeper has left that was killed as it wrote one there."""
    remove(path)
    directory, name = os.path.split(path)
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return
    for entry in entries:
        stem, _, pid = entry.rpartition(".")
        if stem == f".{name}" and pid.isdecimal():
            remove(os.path.join(directory, entry))


# ---- the start


def _record(tag: int, body: bytes) -> bytes:
    return struct.pack("<HHI", tag, 0, len(body)) + body  # all bodies here are multiples of 8


def _directory(path: str) -> int:
    return os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _fitting(what: str, text: str, most: int) -> bytes:
    data = os.fsencode(text)
    if not data or len(data) > most or b"\0" in data:
        raise ValueError(f"{what} must have 1 to {most} bytes: {text!r}")
    return data


def _undo(sock: socket.socket) -> None:
    """A keeper that runs all the same, for the start was interrupted, shall leave nothing: not even a report."""
    request(sock, STOP, stop_body(1, SIGKILL, "tree", 0))
    deadline = monotonic() + FROZEN_LIMIT
    inbox: list[tuple[list[Any] | None, list[int]]] = []
    records: list[Any] | None = []
    while records is not None and not any(record[0] in (FAILED, EMPTY) for record in records):
        left = max(0, int((deadline - monotonic()) * 1e9))
        if not _native.receive(sock.fileno(), -1, -1, left, inbox):
            break
        records, fds = inbox.pop()
        for fd in fds:
            os.close(fd)
    request(sock, ACK, struct.pack("<II", ACK_EXITED | ACK_EMPTY | ACK_STOP_REPORT, 0))
    request(sock, ON_OWNER_LOSS, struct.pack("<II", LOSS["kill"], 0))
    sock.close()


class LowNumbers:
    """Two descriptors of an owner that will have thousands, taken before it has: a start costs the same then as now,
    for the kernel need not copy what lies above them.  For one thread alone.  OSError."""

    def __init__(self) -> None:
        self.owner = _native.pidfd_open(os.getpid())
        self.socket = os.dup(self.owner)

    def close(self) -> None:
        os.close(self.owner)
        os.close(self.socket)


def launch(
    plan: Plan, address: str, report: str, stop_rest: bool, log: LogPlan | None, low: LowNumbers | None = None
) -> tuple[socket.socket, int]:
    """Start a held keeper with its process, without waiting for the exec: our end of its socket, and its pid.

    SpawnError, OSError, ValueError: nothing was started and nothing is left.
    """
    files: list[int] = []
    keep = ours = theirs = None
    try:
        directory, name = os.path.split(report)
        packets = []
        name_bytes = _fitting("report's name", name, REPORT_NAME_MAX)
        held = struct.pack("<II64s", HELD_STOP_REST * stop_rest, 0, name_bytes)
        files.append(_directory(directory))
        if log:
            flags = LOG_TIMESTAMPS * log.timestamps | LOG_MERGE * log.merge
            flags |= LOG_TERMINAL * log.terminal | LOG_INPUT * log.input
            label = _fitting("label", log.label, LABEL_MAX)
            body = struct.pack("<IIQQ160s", flags, log.rotate_count, log.rotate_size, log.cap, label)
            files.append(_directory(log.directory))
            packets.append((_record(LOG, body), files[1:]))
        keep = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _bind(keep, address)
        hello = _record(HELLO, struct.pack("<II", 1, 0)) + _record(HELD, held)
        packets.insert(0, (hello, [keep.fileno(), files[0]]))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for packet, fds in packets:
            socket.send_fds(ours, [packet], fds, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        try:
            _native.send_spawn(ours.fileno(), plan.body, plan.fds)
            numbers = (low.socket, low.owner) if low else ()
            pid = _native.launch_on(os.fsencode(keeper.KEEPER), theirs.fileno(), *numbers)
        except OSError as error:
            raise spawn_error(error, plan) from None
    except BaseException:
        if keep and keep.getsockname():  # it has its name from us
            remove(address)
        if ours and theirs:
            theirs.close()
            _undo(ours)
        raise
    finally:
        for fd in files:
            os.close(fd)
        for end in (keep, theirs):
            if end:
                end.close()
    keeper.reap_retired()
    return ours, pid
