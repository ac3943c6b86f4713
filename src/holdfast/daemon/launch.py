"""From a place to an anchor: this process becomes it, or (detached) leaves it behind and says how it went.

In: a `Place` and the supervisor's command.  Out: nothing comes back from `become_anchor`; `detach` returns when
the supervisor is up.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from holdfast.process.keeper import KEEPER

from .anchor import ATTACH_FD, CALLER_FD, CONTROL_FD, HTTP_FD, LOCK_FD, NOTIFY_FD
from .place import Place, sign

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# How long an anchor may take to end after its supervisor has failed to start.
END_PATIENCE_MS = 1000


class Detached(NamedTuple):
    """How `detach` went.  `status`: None when it is up, `down` is how many services are not, and `said` which; else the
    exit code, and `said` is what went into the log."""

    pid: int
    status: int | None
    said: str
    down: int = 0


def supervisor_command(run_dir: str) -> list[str]:
    """What the anchor starts.  -P: a module in the directory that somebody stands in is none of ours."""
    return [sys.executable, "-P", "-m", "holdfast.cli.supervise", "--run-dir", run_dir]


def become_anchor(
    place: Place, config_path: str, command: Sequence[str], environment: Mapping[bytes, bytes], caller: int = -1
) -> NoReturn:
    """Exec into the anchor, with the lock and the sockets (and `caller`, a pipe) where supervisors look for them.
    OSError when that fails."""
    sign(place.lock_fd, os.getpid(), config_path)
    sockets = {CONTROL_FD: place.control, NOTIFY_FD: place.notify, ATTACH_FD: place.attach}
    given = {LOCK_FD: place.lock_fd, **{number: sock.fileno() for number, sock in sockets.items()}}
    if place.http is not None:
        given[HTTP_FD] = place.http.fileno()
    kept = ",".join(map(str, given))
    if caller >= 0:
        given[CALLER_FD] = caller
    # Lifted first: any of them may lie where another has to go.
    lifted = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(given) + 1) for target, fd in given.items()}
    for target, fd in lifted.items():
        os.dup2(fd, target, inheritable=True)
    arguments = [f"fds={kept}", *([f"once={CALLER_FD}"] if caller >= 0 else [])]
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: our caller has closed that one
        stream.flush()
    os.execve(KEEPER, ["holdfast-keeper", "anchor", *arguments, "--", *command], environment)


def detach(
    place: Place, config_path: str, command: Sequence[str], environment: Mapping[bytes, bytes], log_fd: int
) -> Detached:
    """Become the anchor in a session of our own, with the log as stdout and stderr, and wait until the supervisor
    is up or has failed.  To be called in a program with one thread."""
    began = os.fstat(log_fd).st_size
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log_fd, 1)
            os.dup2(log_fd, 2)
            become_anchor(place, config_path, command, environment, tell)
        except OSError as error:
            os.write(2, f"holdfast: cannot start the anchor {KEEPER}: {error.strerror}\n".encode())
        finally:
            os._exit(1)
    os.close(tell)
    with open(told, "rb") as pipe:
        word, _, number = pipe.readline().decode().partition(" ")
        if word.strip() == "up":
            return Detached(pid, None, pipe.read().decode("utf-8", "replace"), int(number or 0))
    status = _wait(pid)
    path = f"/proc/self/fd/{log_fd}"  # opened again, to be read
    with open(path, encoding="utf-8", errors="replace") as file:
        file.seek(began)
        return Detached(pid, status, file.read())


def _wait(pid: int) -> int:
    """The anchor's exit code as a shell has it; 1 when it lives on: its next supervisor may do better."""
    pidfd = os.pidfd_open(pid)  # our child, not reaped: the number is its own
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(END_PATIENCE_MS):
            return 1
    finally:
        os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def raise_descriptor_limit() -> tuple[int, int] | None:
    """Allow this process as many descriptors as it may have; the limit as it was, for those that we start (as soft
    and hard), or None when nothing had to be changed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard
