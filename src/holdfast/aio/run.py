"""`run_process`: one command from start to empty tree."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from ..process.errors import TimeoutExpired
from ..process.options import PIPE, limit
from ..process.run import CompletedProcess
from ..process.spawn import spawn
from .handle import no_daemon
from .listener import Listener

if TYPE_CHECKING:
    from typing import Unpack

    from ..process.handle import Process
    from ..process.options import Command, SpawnOptions
    from ..process.status import Seconds


async def run_process(
    args: Command,
    *,
    input: bytes | None = None,
    timeout: Seconds | None = None,
    check: bool = True,
    **options: Unpack[SpawnOptions],
) -> CompletedProcess:
    """Run a command to its end and return how it ended, with its output.

    As `holdfast.run`, but with anyio's defaults: `stdout` and `stderr` are PIPE, `check` is True, stdin is ours (with
    `input`, bytes: a pipe).  When the command has ended, what is left of its tree is stopped.  At the limit, `timeout`
    seconds, the tree is stopped and TimeoutExpired carries the output so far.  Cancelled, or at any other exception,
    the tree is stopped, too: `stop_signal`, `grace`, KILL, at most `grace` and a few seconds, which nothing shortens;
    bytes move meanwhile, so that no full pipe holds it up.

    CalledProcessError, SpawnError, KeeperLost, ValueError, TypeError.
    """
    no_daemon(options)
    if input is not None:
        if options.get("stdin") is not None:
            raise ValueError("stdin and input cannot both be given")
        options["stdin"] = PIPE
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must not be negative: {timeout!r}")
    await checkpoint()
    options.setdefault("stdout", PIPE)
    options.setdefault("stderr", PIPE)
    process = spawn(args, **options)
    try:
        result = await _run(process, input, timeout)
    finally:
        process.close()
    if check:
        result.check_returncode()
    return result


async def _run(process: Process, input: bytes | None, timeout: Seconds | None) -> CompletedProcess:
    listener = Listener(process)
    tree = process._tree
    report = None
    try:
        pump = listener.carry(input)
        patience = limit(timeout)
        try:
            with anyio.move_on_after(inf if patience is None else patience) as scope:
                await listener.until(lambda: process.status)
        finally:
            if not tree.empty:
                report = await listener.end()
        pump.drain()
    finally:
        listener.close()
    stdout = None if process.stdout is None else pump.output(1)
    stderr = None if process.stderr is None else pump.output(2)
    if scope.cancelled_caught:
        raise TimeoutExpired(process.args, timeout or 0.0, stdout, stderr, process.status, report)
    assert process.status is not None
    return CompletedProcess(process.args, process.status, stdout, stderr, report)
