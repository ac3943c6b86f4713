"""When a command is done, for those who wait for it.  Pure."""

from __future__ import annotations

from typing import Literal

from .service import ServiceView
from .table import State

AT_REST = (State.STOPPED, State.EXITED, State.FATAL)


def outcome(
    verb: Literal["start", "stop", "restart"], before: ServiceView, now: ServiceView
) -> Literal["done", "failed", "unchanged"] | None:
    """What has become of a command for one service: `before` is its view before the command was handled, `now` any
    view after it.  None: it goes on.

    start, restart: done when ready, or completed; failed when it came to rest otherwise (`now.reason` says why).  A
    service in back-off goes on.  restart of one that serves until its successor is ready: failed when it still serves
    in the end.  stop: done when its tree is empty; failed when KILL could not empty it.
    """
    newer = now.incarnation > before.incarnation
    if verb == "stop":
        if now.retired:
            return None
        newer = newer and not before.next
        if now.live and (not newer or now.step == "post_stop"):
            return "failed" if now.state is State.FATAL else None
        return "unchanged" if not before.live and before.state in AT_REST and not before.due else "done"
    if now.state in AT_REST:
        return "done" if newer and (now.state is State.EXITED or now.due) and now.succeeded else "failed"
    if not now.ready or now.replacing:
        return None
    if verb == "restart" and not newer and now.reason:
        return "failed"
    return "unchanged" if before.ready and not newer else "done"
