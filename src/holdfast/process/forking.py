"""Starts that are over when the program has forked a daemon and ended: waiting for that, and what if none comes."""

from __future__ import annotations

import errno
import os

from .errors import SpawnError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .kept import KeptTree
    from .options import Plan


def await_daemon(tree: KeptTree, plan: Plan) -> None:
    """Return when main is the daemon.  SpawnError, and nothing is left: it failed, left no process, or took too long.
    KeeperLost."""
    if tree.wait_forked(plan.ready_timeout):
        return
    ended = tree.status
    stop_id = tree.begin_stop(plan.stop_signal, plan.stop_scope, plan.grace)
    tree.finish_stop(stop_id, plan.stop_signal, plan.stop_scope, plan.grace)
    if ended is None:
        number, text = errno.ETIMEDOUT, f"it has not left a daemon in {plan.ready_timeout:g} s"
    elif ended.returncode:
        number, text = errno.ECHILD, f"it has not left a daemon: {ended}"
    else:
        number, text = errno.ECHILD, "it has ended and left no process"
    raise SpawnError(number, text, "fork", os.fspath(plan.executable))
