"""The C half on systems other than Linux, in Python: enough for direct children, over the standard library's Popen.

Installed as holdfast.process._native where the extension is not built (meson.build).  There is no keeper, so what only
keepers need is not here; and what has no descriptor of a process says ENOSYS.
"""

from __future__ import annotations

import errno
import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

# Bits of the wire (csrc/common/child.h).
NEW_SESSION, SET_PGID, SET_UMASK, SET_UID, SET_GID = 1, 2, 4, 8, 16
SET_GROUPS, SET_NICE, RESTORE_SIGNALS = 32, 64, 512
STAGE_CLONE, STAGE_CHDIR, STAGE_SETUID, STAGE_EXEC = 3, 5, 12, 14


class _Body:
    """What is to be started: the arguments of `spawn_body`, as they came."""

    def __init__(self, *args: Any) -> None:
        (
            self.argv, self.env, self.executable, self.cwd, self.options, self.pgid, self.umask, self.uid, self.gid,
            self.nice, self.groups, self.rlimits, self.targets,
        ) = args[:13]  # fmt: skip


def spawn_body(*args: Any) -> _Body:
    if len(args) > 18 and args[18]:
        raise OSError(errno.ENOSYS, "capabilities, priorities and CPUs are for Linux")
    body = _Body(*args)
    for word in (*body.argv, body.executable):
        if not isinstance(word, (str, bytes, os.PathLike)):
            raise TypeError(f"an argument is a string, bytes or a path, not {word!r}")
        if b"\0" in os.fsencode(word):
            raise ValueError("embedded null byte")
    return body


def spawn_direct(
    body: _Body, fds: Sequence[int], own: Callable[[int], Any], auto_reap: bool = False, by_number: bool = False
) -> tuple[int, Any]:
    """(pid, own(pid)): always by number.  OSError with the stage, as of the extension."""
    import subprocess

    if not by_number:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), None, None, STAGE_CLONE)
    sources = dict(zip(body.targets, fds, strict=True))
    has = body.options.__and__
    try:
        process = subprocess.Popen(
            body.argv,
            executable=body.executable,
            stdin=sources.pop(0, None),
            stdout=sources.pop(1, None),
            stderr=sources.pop(2, None),
            pass_fds=[target for target, source in sources.items() if target == source],
            cwd=body.cwd,
            env=body.env,
            restore_signals=bool(has(RESTORE_SIGNALS)),
            start_new_session=bool(has(NEW_SESSION)),
            process_group=body.pgid if has(SET_PGID) else None,
            umask=body.umask if has(SET_UMASK) else -1,
            user=body.uid if has(SET_UID) else None,
            group=body.gid if has(SET_GID) else None,
            extra_groups=list(body.groups) if has(SET_GROUPS) else None,
            preexec_fn=_prepare(body) if has(SET_NICE) or body.rlimits else None,
        )
    except OSError as error:
        name, number = error.filename, error.errno or 0
        stage = STAGE_EXEC if name == body.executable else STAGE_CHDIR if name == body.cwd and name else STAGE_SETUID
        raise OSError(number, os.strerror(number), None, None, stage) from None
    except subprocess.SubprocessError as error:  # in what _prepare does
        raise OSError(errno.EPERM, str(error), None, None, STAGE_CLONE) from None
    try:
        return process.pid, own(process.pid)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.returncode = 0  # ours now: nobody else shall wait for it, or warn


def _prepare(body: _Body) -> Callable[[], None]:
    import resource

    def prepare() -> None:
        if body.options & SET_NICE:
            os.nice(body.nice)
        for which, *pair in body.rlimits:
            soft, hard = (resource.RLIM_INFINITY if limit >> 63 else limit for limit in pair)
            resource.setrlimit(which, (soft, hard))

    return prepare


def poll(fd: int, events: int, timeout_ns: int) -> int:
    poller = select.poll()
    poller.register(fd, events)
    if timeout_ns < 0:
        return next((event for _, event in poller.poll()), 0)
    deadline = monotonic() + timeout_ns / 1e9
    while True:
        left = deadline - monotonic()
        ready = poller.poll(max(0.0, min(left * 1000, 1e9)) + (0.999 if left > 0 else 0))
        if ready or left <= 0:
            return ready[0][1] if ready else 0


def closed_std() -> int:
    bits = 0
    for fd in range(3):
        try:
            if not os.get_inheritable(fd):
                bits |= 1 << fd
        except OSError:
            bits |= 1 << fd
    return bits


def has_clone3() -> bool:
    return False


def has_autoreap() -> bool:
    return False


def _absent(*_: object) -> Any:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


pidfd_open = pidfd_signal = wait_status = exit_info = _absent
