"""Which numbers are those of direct children that we hold, for the program's own waits (waits.py) to leave them alone.

In: starts, and trees that are over.  Out: whose a child is that a wait has met.  A signal handler may ask at any
moment, in the thread that it interrupts, so there is no lock here that one thread could meet twice.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from _thread import allocate_lock, get_ident
from _weakref import ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable

    from .direct import DirectTree

_trees: dict[int, ref[DirectTree]] = {}
_starts: dict[LockType, list[int]] = {}  # the lock that a start holds -> its thread, how often one had to do without it
_ended = 0


def start(tree: DirectTree, begin: Callable[[], object]) -> None:
    """Run `begin`, which starts the child of `tree`, and know it by `tree.pid` from then on.

    The child may end, and be met by a wait, before its number is known: so a start is known while it is under way.
    """
    lock = allocate_lock()
    state = [get_ident(), 0]
    with lock:  # in C: it is released whatever interrupts us, and that ends the start, not the line below
        _starts[lock] = state
        try:
            begin()
            _trees[tree.pid] = ref(tree)
        finally:
            _starts.pop(lock, None)
            if state[1]:
                _signal.raise_signal(_signal.SIGCHLD)  # for whoever was told that there is nothing yet


def forget(tree: DirectTree, reaped: bool = False) -> None:
    """Its child has been reaped, by us or by others, or is given up: the number is no longer ours."""
    global _ended
    known = _trees.get(tree.pid)
    if known is not None and known() is tree:
        _trees.pop(tree.pid, None)
        _ended += reaped


def find(pid: int) -> DirectTree | None:
    """Whose child this is, if it is one of ours: `DirectTree.reap` says whether it still is."""
    known = _trees.get(pid)
    return None if known is None else known()


def settle() -> bool:
    """Wait until what other threads are starting now is known.

    True: we have interrupted a start of this thread, and cannot.  When that is over SIGCHLD is raised once more.
    """
    interrupted = False
    for lock, state in list(_starts.items()):
        if not lock.locked():
            _starts.pop(lock, None)  # a start that was interrupted at its very end
        elif state[0] == get_ident():
            state[1] += 1
            interrupted = True
        else:
            with lock:
                pass
    return interrupted


def any_here() -> bool:
    """Whether there are any children of ours, or may be in a moment."""
    return bool(_trees or _starts)


def ended() -> int:
    """How many of ours have ended so far that were reaped by us, so that a SIGCHLD told of it: for comparing."""
    return _ended


def _forget_all() -> None:
    """In a forked child: they are its parent's."""
    _trees.clear()
    _starts.clear()


os.register_at_fork(after_in_child=_forget_all)
