"""`open_process`, and the handle that it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.abc
from anyio.lowlevel import checkpoint

from ..process.options import PIPE
from ..process.spawn import spawn
from .listener import Listener
from .pipes import Receiver, Sender

if TYPE_CHECKING:
    from typing import IO, Any, Unpack

    from ..process.following import Events
    from ..process.handle import Process as Handle
    from ..process.options import Command, SpawnOptions
    from ..process.status import ExitStatus, Seconds, StopReport


async def open_process(args: Command, **options: Unpack[SpawnOptions]) -> Process:
    """Start a command and return its handle when it runs (exec has succeeded).

    `args` and the options are those of `holdfast.spawn`, but `stdin`, `stdout` and `stderr` are PIPE unless something
    else is given.  `forking` is for `holdfast.spawn` alone.  The loop stands still for about a millisecond, as it does
    for any program that starts another.  Cancelled, nothing is started.  SpawnError, ValueError, TypeError.
    """
    no_daemon(options)
    await checkpoint()
    options.setdefault("stdin", PIPE)
    options.setdefault("stdout", PIPE)
    options.setdefault("stderr", PIPE)
    return Process(spawn(args, **options))


def no_daemon(options: SpawnOptions) -> None:
    if options.get("forking"):
        raise ValueError("forking is for holdfast.spawn: it waits for the daemon, and would hold up the loop")


class Process(anyio.abc.Process):
    """A running process with everything that descends from it; an `anyio.abc.Process`.

    Made by `open_process`.  As an async context manager it stops the whole tree at the end of the block, and so does
    `aclose`.  For tasks of the loop that made it; `send_signal`, `terminate`, `kill` and `signal_tree` for any thread.
    """

    def __init__(self, process: Handle) -> None:
        self._process = process
        self._listener = Listener(process)
        # Without their buffers: nothing but us reads and writes these.
        self._stdin = None if process.stdin is None else Sender(_bare(process, "stdin"))
        self._stdout = None if process.stdout is None else Receiver(_bare(process, "stdout"))
        self._stderr = None if process.stderr is None else Receiver(_bare(process, "stderr"))
        self._closed = False

    # ---- looking

    @property
    def args(self) -> Command:
        """The command."""
        return self._process.args

    @property
    def pid(self) -> int:
        """The process's number, for printing: act through the methods."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As in subprocess: None while it runs."""
        status = self.status
        return None if status is None else status.returncode

    @property
    def status(self) -> ExitStatus | None:
        """The exit status, or None while the process runs."""
        if self._process.status is None:
            self._process._tree.advance()
        return self._process.status

    @property
    def report(self) -> StopReport | None:
        """What the last stop of the tree did, if there was one."""
        return self._process.report

    @property
    def stdin(self) -> Sender | None:
        """The stream to its stdin, where that is PIPE."""
        return self._stdin

    @property
    def stdout(self) -> Receiver | None:
        """The stream from its stdout, where that is PIPE."""
        return self._stdout

    @property
    def stderr(self) -> Receiver | None:
        """The stream from its stderr, where that is PIPE."""
        return self._stderr

    def events(self) -> Events:
        """What happens to the process and its tree, for `async for`, from the start on: see `holdfast.Process`."""
        return self._process.events()

    # ---- waiting

    async def wait(self) -> int:
        """Wait until the process has ended and return its returncode; `status` has the rest.

        Not for pipes, nor for descendants.  Cancelled, the process goes on.  KeeperLost: the keeper was killed.
        ClosedResourceError: closed meanwhile.
        """
        process = self._process
        await self._listener.until(lambda: process.status)
        assert process.status is not None
        return process.status.returncode

    async def wait_empty(self) -> None:
        """Wait until nothing of the tree is left.  With `private=False`: for the process alone.  As `wait`."""
        tree = self._process._tree
        await self._listener.until(lambda: tree.empty)

    # ---- acting

    def send_signal(self, signal: int | str) -> None:
        """Send a signal to the process itself; nothing happens when it has ended.  PermissionError."""
        self._process.send_signal(signal)

    def signal_tree(self, signal: int | str) -> None:
        """Send a signal to every process of the tree that is there now.  With `private=False`: to its group."""
        self._process.signal_tree(signal)

    def terminate(self) -> None:
        """SIGTERM to the process itself."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to the process itself; `stop(grace=0)` kills the tree."""
        self._process.kill()

    async def stop(self, grace: Seconds | None = None, signal: int | str | None = None) -> StopReport:
        """Stop the whole tree and return when it is empty, with a report of what that took.

        As `holdfast.Process.stop`.  Cancelled, it is the waiting that ends: the keeper goes on with the stop.
        """
        return await self._listener.finish_stop(*self._process._begin_stop(grace, signal))

    def release(self) -> None:
        """Let the tree outlive us: give the handle up without stopping anything."""
        self._closed = True
        for pipe in (self._stdin, self._stdout, self._stderr):
            if pipe is not None:
                pipe.close()
        self._listener.close()
        self._process.release()

    async def aclose(self) -> None:
        """Stop the tree if anything of it is left, and give back every descriptor.  Idempotent.  KeeperLost.

        The streams are closed from now on; what the process writes while it is stopped is thrown away.  Bounded by
        `grace` and a few seconds; cancelling does not shorten it, and takes effect afterwards.
        """
        if self._closed:
            await checkpoint()
            return
        self._closed = True
        if self._stdin is not None:
            self._stdin.close()
        for pipe in (self._stdout, self._stderr):
            if pipe is not None:
                pipe.retire()
        tree = self._process._tree
        try:
            if not tree.empty and tree.owned and not self._process._gave_up:
                self._listener.discard()
                await self._listener.end()
            else:
                await checkpoint()
        finally:
            self._listener.close()
            self._process.close()

    def __repr__(self) -> str:
        return f"<holdfast.aio.Process {self.args!r} pid {self.pid}: {self._process.status or 'running'}>"


def _bare(process: Handle, name: str) -> Any:
    file: IO[Any] = getattr(process, name)
    bare = file.detach()  # type: ignore[attr-defined]  # of a BufferedReader or BufferedWriter
    setattr(process, name, bare)
    return bare
