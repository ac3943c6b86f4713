"""Who of the program's own children has something to tell: a wait that passes over those that we hold.

In: what a wait of the program asks for, in waitid(2)'s words.  Out: a child that is not ours, of which nothing is taken
yet; or nobody yet; or ChildProcessError, when none of the program's is left.  What is met of ours goes to its handle.
"""

from __future__ import annotations

import os
import posix  # never what the program, or we, have put into `os`
from errno import ECHILD

from . import _native, children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .direct import DirectTree

_sleepers: list[tuple[int, int, int]] = []  # what the waits ask for that are in the kernel, or about to be
_alarms: list[DirectTree] = []
_witness = 0  # a child of the program that was there when we last looked


def no_child() -> ChildProcessError:
    return ChildProcessError(ECHILD, os.strerror(ECHILD))


def is_ours(pid: int) -> bool:
    """Whether a child of ours has this number, and has not ended; one that has is reaped, by us."""
    tree = children.find(pid)
    return tree is not None and not tree.reap()


def has_ended(found: os.waitid_result) -> bool:
    return found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


def meet(found: os.waitid_result) -> bool:
    """Whether what a look has found is ours; then it is out of the way of the next look."""
    tree = children.find(found.si_pid)
    if tree is None:
        return False
    if has_ended(found):
        if not tree.reap():  # it runs, so what has ended cannot be it
            children.forget(tree)
        return True
    try:  # a stop, or its end, of which a handle does not tell
        posix.waitid(os.P_PID, found.si_pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
    except ChildProcessError:
        pass
    return True


def find(idtype: int, ident: int, options: int) -> os.waitid_result | None:
    """P_ALL or P_PGID: who has something to tell, which is still there to be taken.  None: nobody yet (WNOHANG)."""
    look = options | os.WNOWAIT
    while True:
        found = posix.waitid(idtype, ident, look | os.WNOHANG) or _sleep(idtype, ident, look)
        if found is None:
            return None
        if meet(found):
            continue
        if children.any_here():
            interrupted = children.settle()  # it may be the child of a start that is not over
            if meet(found):
                continue
            if interrupted and options & os.WNOHANG:
                return None
        return found


def _sleep(idtype: int, ident: int, look: int) -> os.waitid_result | None:
    asked = (idtype, ident, look | os.WNOHANG)
    if look & os.WNOHANG:
        if not _others(*asked):
            raise no_child()
        return None
    _sleepers.append(asked)  # before we look who is left: from here on we are woken if that changes
    try:
        if not _others(*asked):
            raise no_child()
        return posix.waitid(idtype, ident, look)
    finally:
        _sleepers.remove(asked)


def wake() -> None:
    """The program's waits that are in the kernel look again, if nothing is left for one of them but ours.

    The kernel wakes them for a child alone, of the group that they wait for: so one is started that ends at once.  A
    wait for stops only, which would not even look at that, sleeps on until ours have ended.  Whoever takes such a child
    out of the way calls this once more, for those it was meant for may not have seen it yet.
    """
    idle = [asked for asked in list(_sleepers) if asked[2] & os.WEXITED and not _others(*asked)]
    if not idle:
        return
    hush()
    for group in {ident if idtype == os.P_PGID else 0 for idtype, ident, _ in idle}:
        _ring(group)


def _ring(group: int) -> None:
    from .direct import DirectTree
    from .options import DEVNULL, make_plan

    plan = make_plan(
        ["/bin/sh", "-c", ""], private=False, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, process_group=group or None
    )
    try:
        _alarms.append(DirectTree(plan, _unreaped))
    except OSError:
        pass  # then they sleep until a child ends
    finally:
        plan.close_child_files()


def _unreaped(body: bytes, fds: Sequence[int], own: Callable[[int], Any], _: bool, by_number: bool) -> tuple[int, Any]:
    return _native.spawn_direct(body, fds, own, False, by_number)  # what the kernel reaps wakes nobody


def hush() -> None:
    """Reap what has woken others."""
    while True:
        try:
            tree = _alarms.pop()
        except IndexError:
            return
        try:
            tree.wait_exit(None)
        except ChildProcessError:
            pass  # by a wait that we do not see
        tree.drop()


def _others(idtype: int, ident: int, look: int) -> bool:
    """Whether a child is there that is not ours, and that this wait can be for; in doubt it is."""
    global _witness
    if not children.any_here():
        return True  # the kernel has answered already
    if _witness and _counts(_witness, idtype, ident, look):
        return True
    for _ in range(2):  # a list that is read while children are reaped may lack some of those that are left
        pids = _listed()
        if pids is None:
            return True
        unknown = [pid for pid in pids if children.find(pid) is None]
        if unknown:
            children.settle()
            for pid in unknown:
                if _counts(pid, idtype, ident, look):
                    _witness = pid
                    return True
    return False


def _counts(pid: int, idtype: int, ident: int, look: int) -> bool:
    try:
        if is_ours(pid) or (idtype == os.P_PGID and os.getpgid(pid) != (ident or os.getpgrp())):
            return False
        posix.waitid(os.P_PID, pid, look)
    except (ChildProcessError, ProcessLookupError):
        return False
    return True


def _listed() -> list[int] | None:
    """All children of this process, ended ones too; None where the kernel does not tell."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None  # the /proc of another pid namespace
        while True:
            tasks = os.listdir("/proc/self/task")
            found: list[int] = []
            for task in tasks:
                try:
                    with open(f"/proc/self/task/{task}/children", "rb") as file:
                        found += map(int, file.read().split())
                except FileNotFoundError:
                    if task == str(os.getpid()):
                        return None
                except ProcessLookupError:
                    pass
            # The children of a thread that has ended are another's now, whom we may have asked before.
            if set(tasks) <= set(os.listdir("/proc/self/task")):
                return found
    except OSError:
        return None
