"""Processes for asyncio (its own loop, uvloop, others) and trio, through anyio.

`open_process` starts one and returns a `Process`, which is an `anyio.abc.Process`; `run_process` runs a command to its
end.  The processes are those of `holdfast.spawn`: private, contained, held.  Whatever is cancelled, no tree is left
behind; no process has a thread.
"""

from __future__ import annotations

from .handle import Process, open_process
from .run import run_process

__all__ = (
    "Process",
    "open_process",
    "run_process",
)
