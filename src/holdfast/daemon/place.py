"""The run directory: made and checked, held by a lock, with its sockets bound and the accepted config in it.

In: a config.  Out: descriptors that the anchor keeps open, so that they outlive every supervisor.  Who holds the
lock is decided by flock alone; the number in its text is for a person to read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import socket
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from holdfast.config import tcp
from holdfast.config.holder import holder
from holdfast.config.model import encode
from holdfast.config.places import CONTROL
from holdfast.process.socket_path import at_path

from .notify import name_senders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.config.model import Config

LOCK, NOTIFY, ACCEPTED = "lock", "notify", "accepted.json"
LOG = "holdfast.log"
BACKLOG_LIMIT = 128  # clients that wait while there is no supervisor
# A supervisor that is just being killed holds its lock until the kernel has taken it apart.
LOCK_PATIENCE = 1.0


class Refused(Exception):
    """The place cannot be used; the text says why and what to do."""


class Place(NamedTuple):
    """A run directory that is ours: the lock and the sockets, open and close-on-exec."""

    run_dir: str
    lock_fd: int
    control: socket.socket
    notify: socket.socket
    http: socket.socket | None = None  # listens at what `[supervisor.http]` says


def take(config: Config) -> Place:
    """Make the run directory ours and put into it what a supervisor needs.  For a program with one thread.

    Refused when another supervisor holds it, or when it is not safe: a symbolic link, another user's, or writable
    by others.  What was opened until then is closed by the end of the process.
    """
    run_dir = config.supervisor.run_dir
    directory = open_directory(run_dir, 0o711 if os.geteuid() == 0 else 0o700)
    lock_fd = _lock(directory, run_dir)
    if other := _robbed(run_dir):
        raise Refused(f"a supervisor still runs that had {run_dir} until it was removed: end it first (kill {other})")
    try:
        # Under the lock: a socket that lies there belongs to nobody any more.
        control = _bind(directory, run_dir, CONTROL, socket.SOCK_STREAM, 0o600)
        control.listen(BACKLOG_LIMIT)
        notify = _bind(directory, run_dir, NOTIFY, socket.SOCK_DGRAM, 0o666)
        name_senders(notify)
        _write(directory, ACCEPTED, encode(config))
    except OSError as error:
        raise Refused(f"cannot use the run directory {run_dir}: {error.strerror or error}") from None
    os.close(directory)
    listen = config.supervisor.http.listen
    return Place(run_dir, lock_fd, control, notify, _listen(listen) if listen else None)


def sign(lock_fd: int, pid: int, config_path: str) -> None:
    """Write into the lock who holds it, for those who meet it."""
    text = json.dumps({"anchor": pid, "config": config_path}).encode() + b"\n"
    os.pwrite(lock_fd, text, 0)
    os.ftruncate(lock_fd, len(text))


def open_directory(path: str, mode: int) -> int:
    """A descriptor of the directory, made with `mode` if it was not there (those above it with 0755).

    Refused unless it is a directory, no symbolic link, ours, and writable by nobody else.
    """
    try:
        with _umask(0):
            _make(path, mode)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if os.path.islink(path):
            raise Refused(f"{path} is a symbolic link: give the directory itself") from None
        raise Refused(f"cannot use the directory {path}: {error.strerror}") from None
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        os.close(fd)
        raise Refused(f"{path} belongs to {_name(found.st_uid)}, and we are {_name(os.geteuid())}")
    if found.st_mode & 0o022:
        os.close(fd)
        bits = stat.S_IMODE(found.st_mode)
        raise Refused(f"{path} is writable by others (mode {bits:04o}): mend it with chmod go-w {path}")
    return fd


def open_log(log_dir: str) -> int:
    """A descriptor that appends to the supervisor's own log (0600), for who has no terminal."""
    directory = open_directory(log_dir, 0o700)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with _umask(0):
            return os.open(LOG, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise Refused(f"cannot write {os.path.join(log_dir, LOG)}: {error.strerror}") from None
    finally:
        os.close(directory)


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    """What is made has its mode from the first moment on: there is no time before a chmod."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _make(path: str, mode: int) -> None:
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make(parent, 0o755)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        pass  # what it is will be looked at


def _lock(directory: int, run_dir: str) -> int:
    try:
        with _umask(0):
            fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        raise Refused(f"cannot lock {run_dir}: {error.strerror}") from None
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                who, found = _holder(fd), holder(run_dir)
                os.close(fd)
                stopped = f"; {found.words}; {found.remedy}" if found is not None and found.words else ""
                raise Refused(f"another supervisor holds {run_dir}: {who}{stopped}") from None
        time.sleep(0.02)


def _robbed(run_dir: str) -> int:
    """The pid of an anchor of ours that was started for this directory, or 0.  We hold the lock: if there is one, its
    lock was removed, with its sockets, and what it runs would run twice.  Only a look: nothing is signalled by it."""
    ours = os.stat("/proc/self/ns/mnt")
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if words[:2] != [b"holdfast-keeper", b"anchor"] or os.fsencode(run_dir) not in words:
                continue
            if os.path.samestat(os.stat(f"/proc/{entry}/ns/mnt"), ours):  # else it means another directory
                return int(entry)
        except OSError:
            continue  # gone, or not ours to look at
    return 0


def _holder(fd: int) -> str:
    """In words, from the lock's text and the time when it was written."""
    try:
        text = json.loads(os.pread(fd, 65536, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.fstat(fd).st_mtime))
        return f"pid {int(text['anchor'])} since {since}, with {text['config']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said who it is yet"


def _bind(directory: int, run_dir: str, name: str, kind: socket.SocketKind, mode: int) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise Refused(f"{os.path.join(run_dir, name)} is in the way: it is no socket of ours; remove it")
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, kind)
    with _umask(~mode & 0o777):
        at_path(sock.bind, os.path.join(run_dir, name))
    return sock


def _listen(address: str) -> socket.socket:
    host, port = tcp.split(address)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is left of old connections is no listener
        sock.bind((host, port))
        sock.listen(BACKLOG_LIMIT)
    except OSError as error:
        raise Refused(f"cannot listen on {address} (supervisor.http.listen): {error.strerror}") from None
    return sock


def _write(directory: int, name: str, data: bytes) -> None:
    """The whole file or the old one, whatever happens meanwhile."""
    new = name + ".new"
    try:
        os.unlink(new, dir_fd=directory)
    except FileNotFoundError:
        pass
    with _umask(0):
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
