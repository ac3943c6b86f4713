"""Listening sockets: opened for services, held over their restarts and ours, given to each new process.

In: the `sockets` of specs.  Out: descriptors for a start, in the order of the file.  A service that is down for good,
or by hand, has none: who connects is refused, instead of waiting for nobody.  A copy of each is left with the anchor,
which gives it to the next supervisor.  For the loop's thread; nothing blocks but `take_back`, for a start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from holdfast.config import model
from holdfast.engine.table import State

from .anchor import Anchor

if TYPE_CHECKING:
    from .supervisor import Supervisor

SOCKET = "socket"  # first word of the key of a deposit; the service and the socket follow
SETTLE = 2.0  # seconds in which the anchor has let go of what we have dropped
KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}


class CannotListen(OSError):
    """A socket of a service could not be opened; the text says which, and why."""

    def __init__(self, where: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.where = where

    def __str__(self) -> str:
        return f"socket {self.where}: {self.strerror}"


class Given(NamedTuple):
    """What a process gets from descriptor 3 on, and the names in LISTEN_FDNAMES.  The descriptors stay ours."""

    fds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


NOTHING = Given()


class Sockets:
    """Those of all services of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._held: dict[str, dict[str, int]] = {}  # service -> key of the socket -> descriptor
        self._anchor = Anchor()
        self._dropped = float("-inf")  # when the last one was

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def take_back(self, anchor: Anchor) -> None:
        """Before anything is started: what supervisors before us have left with the anchor is ours again."""
        self._anchor = anchor
        try:
            found = anchor.take_back()
        except OSError as error:
            self._supervisor.events.add("error", f"the sockets that were held cannot be taken over: {error}")
            return
        self._supervisor.stored.take_back(anchor, found)
        self._supervisor.lineage.take_back(anchor, found)
        for deposit, fd in found.items():
            _, name, key = deposit.split(" ", 2)
            self._held.setdefault(name, {})[key] = fd
        self.apply()

    def begin(self) -> None:
        """Start-up is over: open those of services that are on their way, so that who connects waits for them."""
        for name in [*self._held, *self._supervisor.stored.services()]:
            self.heed(name)
        for name, spec in self._supervisor.config.services.items():
            # One that is live has them, or has to end before they can be opened again.
            if spec.sockets and not self._supervisor.engine.units[name].live and not self._is_down(name):
                try:
                    self.give(spec)
                except (OSError, KeyError) as error:  # its start will say it again, and fail
                    self._supervisor.events.add("error", str(error), name)

    def give(self, spec: model.Service) -> Given:
        """What a process of this service gets, with what was stored; what is not open yet is opened.  CannotListen."""
        stored, labels = self._supervisor.stored.give(spec.name)
        if not spec.sockets:
            return Given(stored, labels)
        held = self._held.setdefault(spec.name, {})
        for each in spec.sockets:
            if _key(each) not in held:
                held[_key(each)] = fd = self._open(each, spec)
                self._deposit(spec.name, _key(each), fd)
        fds = tuple(held[_key(each)] for each in spec.sockets)
        return Given((*fds, *stored), (*(each.name or spec.name for each in spec.sockets), *labels))

    def heed(self, name: str) -> None:
        """Something has become of this service: one that is down shall not seem to listen."""
        stored = self._supervisor.stored
        if (name in self._held or name in stored.services()) and self._is_down(name):
            stored.clear(name)
            for key, fd in list(self._held.get(name, {}).items()):
                # The anchor may let go of its copy a moment later than we of ours: nobody comes in from now on.
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                    sock.shutdown(socket.SHUT_RDWR)
                self._drop(name, key)

    def apply(self) -> None:
        """The configuration is another one: what is in it no more is closed.  What is new is opened at the next
        start."""
        services = self._supervisor.config.services
        for name in list(self._held):
            wanted = {_key(each) for each in services[name].sockets} if name in services else set()
            for key in set(self._held[name]) - wanted:
                self._drop(name, key)
        for name in self._supervisor.stored.services() - services.keys():
            self._supervisor.stored.clear(name)

    def close(self) -> None:
        """Let go of all; services that run on have theirs."""
        for held in self._held.values():
            for fd in held.values():
                os.close(fd)
        self._held.clear()

    def _open(self, each: model.Socket, spec: model.Service) -> int:
        try:
            return _open(each, spec)
        except CannotListen as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < self._dropped + SETTLE:
                error.errno = errno.EAGAIN  # the anchor may have its copy still: it is tried again
            raise

    def _is_down(self, name: str) -> bool:
        if name not in self._supervisor.config.services:
            return True
        engine = self._supervisor.engine
        unit = engine.units[name]
        return not unit.live and (not unit.wanted or engine.closing or unit.phase.state in (State.EXITED, State.FATAL))

    def _deposit(self, name: str, key: str, fd: int) -> None:
        try:
            self.keep_room()
            self._anchor.deposit(f"{SOCKET} {name} {key}", fd)
        except OSError as error:
            text = f"{key} would be lost with this supervisor: the anchor cannot take it: {error}"
            self._supervisor.events.add("error", text, name)

    def keep_room(self) -> None:
        """OSError when the anchor keeps no more descriptors than we have, one that is to be left with it included."""
        others = len(self._supervisor.stored) + len(self._supervisor.lineage)
        if len(self) + others > self._anchor.deposits_max > 0:
            raise OSError(f"it keeps {self._anchor.deposits_max}")

    def _drop(self, name: str, key: str) -> None:
        self._anchor.withdraw(f"{SOCKET} {name} {key}")
        self._dropped = time.monotonic()
        os.close(self._held[name].pop(key))
        path = key.partition(" ")[2]
        if path.startswith("/"):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)
        if not self._held[name]:
            del self._held[name]


def _key(spec: model.Socket) -> str:
    return f"{spec.type} {spec.listen}"


def _open(spec: model.Socket, service: model.Service) -> int:
    """A descriptor of the socket, listening.  CannotListen."""
    sock: socket.socket | None = None
    try:
        if spec.listen.startswith("/"):
            sock = socket.socket(socket.AF_UNIX, KINDS[spec.type])
            _bind_path(sock, spec, service)
        else:
            host, _, port = spec.listen.rpartition(":")
            sock = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET, KINDS[spec.type])
            if spec.type == "stream":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host.strip("[]"), int(port)))
        if spec.type == "stream":
            sock.listen(spec.backlog)
        return sock.detach()
    except OSError as error:
        raise CannotListen(spec.listen, error) from None
    finally:
        if sock is not None:
            sock.close()  # nothing after detach


def _bind_path(sock: socket.socket, spec: model.Socket, service: model.Service) -> None:
    path = spec.listen
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    _remove_stale(path, KINDS[spec.type])
    os.fchmod(sock.fileno(), 0o600)  # the mode that bind gives it: nobody comes in before the next two lines
    sock.bind(path)
    if service.user is not None or service.group is not None:
        os.chown(path, *_identity(service))
    os.chmod(path, spec.mode)


def _identity(service: model.Service) -> tuple[int, int]:
    """User and group of its processes; -1: ours."""
    uid = gid = -1
    if isinstance(service.user, str):
        uid, gid = pwd.getpwnam(service.user)[2:4]
    elif service.user is not None:
        uid = service.user
    if isinstance(service.group, str):
        import grp

        gid = grp.getgrnam(service.group).gr_gid
    elif service.group is not None:
        gid = service.group
    return uid, gid


def _remove_stale(path: str, kind: socket.SocketKind) -> None:
    """Remove the file of a socket that nobody listens at any more.  OSError."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # somebody is there: bind will say so
