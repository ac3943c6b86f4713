"""`forward_waits`: the program's own waits leave alone the direct children that we hold (docs/waits.md).

A wait first looks who has something to tell (looking.py), and is then made for that very child.  So nothing is ever
taken that would have to be given back.
"""

from __future__ import annotations

import os
import posix
import signal
from _thread import allocate_lock
from operator import index

from . import children, looking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType, TracebackType
    from typing import Any, Self, TypeVar

    _T = TypeVar("_T")
    _Key = tuple[ModuleType, str]

P_PIDFD = 3  # os.P_PIDFD, if Python was built with it

_lock = allocate_lock()
_users: dict[Forwarding, None] = {}
_real: dict[_Key, Callable[..., Any]] = {}  # what ours stand in the place of
_left: set[_Key] = set()  # where somebody else stood in our place when we stopped, who may call us
_seen = 0  # how many of ours had ended when there last was a SIGCHLD


# ---- the waits


def _take(idtype: int, ident: int, options: int, take: Callable[[int], _T]) -> _T | None:
    """What `take` gets from one that has something to tell; None: nobody has yet."""
    while (found := looking.find(idtype, ident, options)) is not None:
        try:
            if taken := take(found.si_pid):
                return taken
        except ChildProcessError:
            pass  # another thread was before us
    return None


def _wait_for(pid: int, options: int, call: Callable[[int, int], tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """By the rules of waitpid(2), of which `call` is one form; None: nobody yet."""
    if not _users:
        return call(pid, options)
    try:
        if pid > 0:
            if looking.is_ours(pid):
                raise looking.no_child()
            return call(pid, options)

        def take(child: int) -> tuple[Any, ...] | None:
            taken = call(child, options | os.WNOHANG)
            return taken if taken[0] else None

        idtype, ident = (os.P_ALL, 0) if pid == -1 else (os.P_PGID, -pid or os.getpgrp())
        return _take(idtype, ident, options | os.WEXITED, take)
    finally:
        looking.wake()


def _waitpid(pid: int, options: int, /) -> tuple[Any, ...]:
    return _wait_for(index(pid), index(options), _real[os, "waitpid"]) or (0, 0)


def _wait() -> tuple[Any, ...]:
    return _waitpid(-1, 0)


def _wait4(pid: int, options: int) -> tuple[Any, ...]:
    taken = _wait_for(index(pid), index(options), _real[os, "wait4"])
    if taken is None:
        from resource import struct_rusage

        taken = (0, 0, struct_rusage((0.0, 0.0, *[0] * 14)))
    return taken


def _wait3(options: int) -> tuple[Any, ...]:
    return _wait4(-1, options)


def _waitid(idtype: int, ident: int, options: int, /) -> Any:
    real, options = _real[os, "waitid"], index(options)
    if not _users:
        return real(idtype, ident, options)
    try:
        if idtype not in (os.P_ALL, os.P_PGID):
            if looking.is_ours(_of_pidfd(ident) if idtype == P_PIDFD else ident):
                raise looking.no_child()
            return real(idtype, ident, options)
        if options & os.WNOWAIT:
            return looking.find(idtype, ident, options)
        return _take(idtype, ident, options, lambda child: real(os.P_PID, child, options | os.WNOHANG))
    finally:
        looking.wake()


def _of_pidfd(fd: int) -> int:
    """Whose it is; 0: nobody's, or not to be known."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            return int(file.read().partition(b"\nPid:")[2].split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return 0


# ---- the program's handler of SIGCHLD


class _Filtered:
    """A handler of the program that is not called for what was ours alone.

    While hundreds end, the next signal interrupts us before we are through with the last: that one only leaves word.
    """

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler
        self._looking = self._again = False

    def __call__(self, *given: Any) -> None:
        if self._looking:
            self._again = True
            return
        only_ours = self._again = bool(_users)
        while only_ours and self._again:
            self._again, self._looking = False, True
            try:
                only_ours = _only_ours()
            finally:
                self._looking = False
        if not only_ours:
            self.handler(*given)


def _only_ours() -> bool:
    """Whether all that is to be found since the last SIGCHLD is that some of ours have ended or stopped.

    Where nothing at all is, another wait may have taken it: then it is not.
    """
    global _seen
    stopped = False
    try:
        look = os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT
        while (found := posix.waitid(os.P_ALL, 0, look)) is not None:
            if not looking.meet(found):
                return False
            stopped = stopped or not looking.has_ended(found)
    except ChildProcessError:
        pass
    finally:
        before, _seen = _seen, children.ended()
        looking.wake()
    return stopped or _seen != before


def _unfiltered(handler: Any) -> Any:
    return handler.handler if isinstance(handler, _Filtered) else handler


def _signal(signalnum: int, handler: Any) -> Any:
    if _users and signalnum == signal.SIGCHLD and callable(handler) and not isinstance(handler, _Filtered):
        handler = _Filtered(handler)
    return _unfiltered(_real[signal, "signal"](signalnum, handler))


def _getsignal(signalnum: int) -> Any:
    return _unfiltered(_real[signal, "getsignal"](signalnum))


# ---- on and off

_OURS: dict[_Key, Callable[..., Any]] = {
    (os, "wait"): _wait,
    (os, "waitpid"): _waitpid,
    (os, "wait3"): _wait3,
    (os, "wait4"): _wait4,
    (os, "waitid"): _waitid,
    (signal, "signal"): _signal,
    (signal, "getsignal"): _getsignal,
}


class Forwarding:
    """What `forward_waits` returns; as a context manager it stops at the end of the block.  Any thread."""

    def stop(self) -> None:
        """The program has its own functions again, unless another `forward_waits` is in force.  Idempotent.

        A function that somebody else has replaced since stays as it is.
        """
        with _lock:
            if _users.pop(self, self) is self or _users:
                return
            for (module, name), ours in _OURS.items():
                if getattr(module, name) is ours:
                    setattr(module, name, _real[module, name])
                else:
                    _left.add((module, name))
            _change_handler(_unfiltered)
            looking.hush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def forward_waits() -> Forwarding:
    """From now on no wait of this program takes the exit status of a direct child that a handle has.

    For `os.wait`, `waitpid`, `wait3`, `wait4` and `waitid` those children are not there (as with `private=True`, where
    they need not be hidden): a wait that meets one leaves the status to its handle and goes on, with its own flags, and
    raises ChildProcessError when none but ours is left.  A handler of SIGCHLD is not called where it can be told that
    only ours have ended.  Call it early: who has taken a function out of `os` before keeps the real one.

    Returns an object whose `stop()` ends it, as does the end of a `with`; several count.  Any thread; a handler
    that is already set is left alone by others than the main thread.  NotImplementedError: this system has no waitid.
    """
    if not hasattr(posix, "waitid"):
        raise NotImplementedError("os.waitid is missing (on macOS it comes with Python 3.13)")
    forwarding = Forwarding()
    with _lock:
        if not _users:
            for (module, name), ours in _OURS.items():
                there = getattr(module, name)
                if (module, name) not in _left and there is not ours:  # ours: a stop or a start was interrupted
                    _real[module, name] = there
                    setattr(module, name, ours)
        _users[forwarding] = None
        _change_handler(_Filtered)
    return forwarding


def _change_handler(change: Callable[[Any], Any]) -> None:
    now = _real[signal, "getsignal"](signal.SIGCHLD)
    then = change(_unfiltered(now)) if callable(now) else now
    if type(then) is not type(now):
        try:
            _real[signal, "signal"](signal.SIGCHLD, then)
        except ValueError:
            pass  # not the main thread: a handler that is filtered lets everything pass when nobody forwards
