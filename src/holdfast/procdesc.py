"""Process descriptors with FreeBSD's meaning: `pdfork`, `pdkill`, `pdgetpid`, `pdwait4`, and what poll, read, close do.

A process descriptor is a number like any other: `os.close`, `os.dup`, `select.poll` and `socket.send_fds` take it, and
it may be given to other programs, which use it as this one does.  When its last copy is closed, wherever it was, also
by the end of its holders, the process is killed, unless it was made with PD_DAEMON.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from typing import NamedTuple

from .process import _native
from .process.keeper import KEEPER, reap_retired, retire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from resource import struct_rusage

PD_DAEMON = 1
PD_CLOEXEC = 2

__all__ = (
    "PD_CLOEXEC",
    "PD_DAEMON",
    "Exited",
    "Status",
    "pdfork",
    "pdfstat",
    "pdgetpid",
    "pdkill",
    "pdread",
    "pdwait4",
)

_POLLIN = 1
_HANG_UP_NS = 1_000_000_000  # for a guard that somebody has stopped in between
_CLD_EXITED, _CLD_DUMPED = 1, 3
_RECORD = struct.Struct("=IIQQ" + "Q" * 7)  # csrc/keeper/procdesc.c


class Exited(NamedTuple):
    """How a process ended, as the CLONE_FD proposal has it.

    `code` is os.CLD_EXITED, CLD_KILLED or CLD_DUMPED; `status` the exit code or the signal's number; `utime` and
    `stime` user and system time in seconds.
    """

    code: int
    status: int
    utime: float
    stime: float


class Status(NamedTuple):
    """What fstat(2) says of a process descriptor on FreeBSD.

    The owner's bits of `st_mode` are set while the process lives.  The times are all the same, when it was made, in
    seconds since the epoch.
    """

    st_mode: int
    st_birthtime: float
    st_atime: float
    st_ctime: float
    st_mtime: float


def pdfork(flags: int = 0) -> tuple[int, int]:
    """Fork this program; returns (process descriptor, pid), and in the child (-1, 0).

    As os.fork, but without SIGCHLD at the child's end, unseen by waitpid(-1), and without a zombie: its parent is a
    guard.  `flags`: with PD_DAEMON the last close leaves the child alone; with PD_CLOEXEC exec closes the descriptor,
    else it is inherited.  ValueError, OSError (what fork and exec say: then there is no child).  Any thread; as with
    os.fork the child has that thread alone.
    """
    if flags & ~(PD_DAEMON | PD_CLOEXEC):
        raise ValueError(f"unknown flags: {flags:#x}")
    reap_retired()
    sys.audit("os.fork")
    held: list[int] = []
    try:
        fd, pid, guard = _native.pdfork(os.fsencode(KEEPER), bool(flags & PD_DAEMON), held)
        if pid and not flags & PD_CLOEXEC:
            os.set_inheritable(fd, True)
        if guard >= 0:
            retire(guard)
        return fd, pid
    except BaseException:
        if held:
            os.close(held[0])
        raise


def pdgetpid(fd: int) -> int:
    """The pid, for printing.  OSError (EINVAL): not a process descriptor.  Any thread."""
    return _native.pdname(fd)[0]


def pdkill(fd: int, signum: int) -> None:
    """Send a signal to the process, never to another that got its number; 0 looks whether it lives.

    ProcessLookupError: it has ended.  PermissionError: it runs under another user, or another user has made the
    descriptor, who is not root: then its word for whom it means is not taken.  OSError, as pdgetpid.  Any thread.
    """
    pid, _, maker = _native.pdname(fd)
    if maker not in (0, os.geteuid()):
        raise PermissionError(1, f"this process descriptor was made by user {maker}")
    if not _ended(fd):
        pidfd = _native.pidfd_open(pid)
        try:
            if not _ended(fd):  # looked at with the pidfd in hand: it is the right one
                _native.pidfd_signal(pidfd, signum)
                return
        finally:
            os.close(pidfd)
    raise ProcessLookupError(3, "the process has ended")


def pdread(fd: int) -> Exited:
    """Wait until the process has ended and return how.  os.read(fd, 24) gives the same as bytes.

    These are two unsigned 32-bit numbers and two of 64 bits, in the machine's order, with times in microseconds.  The
    record is there once: ChildProcessError when somebody has had it, or the guard was killed.  OSError, as pdgetpid.
    Any thread; a thread waits alone, the others run.
    """
    code, status, utime, stime, *_ = _take(fd)
    return Exited(code, status, utime / 1e6, stime / 1e6)


def pdwait4(fd: int, options: int = 0) -> tuple[int, int, struct_rusage | None]:
    """Wait until the process has ended; its pid, wait status and resources as from os.wait4, whose meaning it has.

    With os.WNOHANG (0, 0, None) while it runs.  ChildProcessError, as pdread: one wait gets it.  ValueError: another
    option.  Any thread.
    """
    if options & ~os.WNOHANG:
        raise ValueError("the one option is WNOHANG")
    pid = pdgetpid(fd)
    if options and not _ended(fd):
        return 0, 0, None
    from resource import struct_rusage

    code, status, utime, stime, rss, minor, major, blocks_in, blocks_out, voluntary, involuntary = _take(fd)
    if code == _CLD_EXITED:
        status <<= 8
    elif code == _CLD_DUMPED:
        status |= 0x80
    usage = (utime / 1e6, stime / 1e6, rss, 0, 0, 0, minor, major, 0, blocks_in, blocks_out, 0, 0, 0, voluntary,
             involuntary)  # fmt: skip
    return pid, status, struct_rusage(usage)


def pdfstat(fd: int) -> Status:
    """The state of a process as FreeBSD's fstat(2) tells it.  OSError, as pdgetpid.  Any thread."""
    made_at = _native.pdname(fd)[1] / 1e9
    mode = os.fstat(fd).st_mode & ~(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    return Status(mode if _ended(fd) else mode | stat.S_IRWXU, made_at, made_at, made_at, made_at)


def _ended(fd: int) -> bool:
    return bool(_native.poll(fd, _POLLIN, 0))


def _take(fd: int) -> tuple[int, ...]:
    pdgetpid(fd)
    _native.poll(fd, _POLLIN, -1)  # not in the read: that waits for nothing where somebody has set O_NONBLOCK
    packet = os.read(fd, _RECORD.size)
    _native.poll(fd, 0, _HANG_UP_NS)  # comes right behind, and says "ended" for ever
    if len(packet) != _RECORD.size:
        raise ChildProcessError(10, "the status of this process was taken already, or nobody knows it")
    return _RECORD.unpack(packet)
