"""`Process`: the handle.  A face over a tree (kept or direct) and the pipes to it."""

from __future__ import annotations

import os
import warnings

from .errors import TimeoutExpired
from .options import limit, milliseconds, signal_number
from .status import ExitStatus, StopReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, Any, Self, TypeAlias

    from .direct import DirectTree
    from .events import TreeEvent
    from .following import Events
    from .kept import KeptTree
    from .options import Command, Plan
    from .pump import Pump
    from .status import Member, Seconds

    Tree: TypeAlias = KeptTree | DirectTree


class Process:
    """A running process, held by a descriptor, with everything that descends from it.

    Made by `spawn`, `attach` or `Runner.spawn`.  As a context manager it stops the whole tree at the end of the
    block.  All methods may be called from any thread.  In a forked child of the program a handle is
    inert: its methods raise ValueError there.

    `args` is the command (from `attach` the address), `stdin`, `stdout`, `stderr` are binary files for those that
    were PIPE, else None.
    """

    def __init__(self, tree: Tree, plan: Plan) -> None:
        self.args: Command = plan.args
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        if plan.owner_files:
            self._open_files(plan)
        self._tree = tree
        self._stop_signal = plan.stop_signal
        self._stop_scope = plan.stop_scope
        self._grace = plan.grace
        self._closed = False
        self._pump: Pump | None = None  # of a communicate that reached its time limit
        self._gave_up = False  # a stop has reported survivors: another would wait for them in vain

    def _open_files(self, plan: Plan) -> None:
        stdin, stdout, stderr = plan.owner_files
        plan.owner_files = ()
        self.stdin = None if stdin is None else os.fdopen(stdin, "wb")
        self.stdout = None if stdout is None else os.fdopen(stdout, "rb")
        self.stderr = None if stderr is None else os.fdopen(stderr, "rb")

    # ---- looking

    @property
    def pid(self) -> int:
        """The process's number, for printing: act through the methods.  With `forking` it changes when main does."""
        return self._tree.pid

    def fileno(self) -> int:
        """The process's pidfd: readable exactly when the process has ended.  ValueError after `close`.

        Where there are no pidfds it is another descriptor, which is readable then as well (docs/notifiers.md).

        With `forking`: when main has moved it is, under the same number, the pidfd of the present one; readable before
        that is known, it says no more than that `poll` will know.  An epoll has to be told anew of the number then.
        """
        if self._tree.descriptor is None:
            raise ValueError("the handle is closed")
        return self._tree.descriptor.fileno()

    @property
    def private(self) -> bool:
        """A keeper holds it.  False: a direct child, as asked for, or because no keeper can be here."""
        return self._tree.private

    @property
    def status(self) -> ExitStatus | None:
        """The exit status if it is known already; `poll` asks, `wait` waits."""
        return self._tree.status

    @property
    def started_at(self) -> float:
        """When it was started, in seconds since the epoch."""
        return self._tree.started_at

    @property
    def report(self) -> StopReport | None:
        """What the last stop of the tree did that is known of, whoever asked for it: us, or an owner before us."""
        return self._tree.report

    @property
    def returncode(self) -> int | None:
        """As in subprocess: None until the exit is known (by `wait` or `poll`)."""
        status = self._tree.status
        return None if status is None else status.returncode

    def poll(self) -> ExitStatus | None:
        """The exit status, or None while the process runs.  Does not wait (a lost keeper takes 3 s).  KeeperLost.

        Once `fileno` is readable this never answers None, but with `forking`, when main has moved.
        """
        if self._tree.status is None:
            self._tree.wait_exit(0.0)
        return self._tree.status

    def wait(self, timeout: Seconds | None = None) -> ExitStatus:
        """Wait until the process has ended and return how; costs no CPU meanwhile.

        Does not wait for pipes nor for descendants (`communicate`, `wait_empty` do).  `timeout` is in
        seconds; at the limit TimeoutExpired is raised and the process goes on.  KeeperLost: the keeper
        was killed.  May be called again and from several threads; a signal handler's exception (such as
        KeyboardInterrupt) ends the wait and nothing else.
        """
        tree = self._tree
        if tree.status is None and not tree.wait_exit(timeout and limit(timeout)):
            raise TimeoutExpired(self.args, timeout or 0.0)
        assert tree.status is not None
        return tree.status

    def wait_empty(self, timeout: Seconds | None = None) -> None:
        """Wait until nothing of the tree is left.  TimeoutExpired, KeeperLost.

        With `private=False` descendants are unknown, and this waits for the process alone.
        """
        if not self._tree.wait_empty(limit(timeout)):
            raise TimeoutExpired(self.args, timeout or 0.0)

    def communicate(self, input: bytes | None = None, timeout: Seconds | None = None) -> tuple[bytes, bytes]:
        """Write `input`, read stdout and stderr to their ends, wait for the process, return what was read.

        For those that are not PIPE the result is b"".  At the limit TimeoutExpired is raised with the
        output so far and the process goes on; another call without `input` takes up where this one
        stopped, so that neither output nor input is lost.  One thread at a time.
        """
        from .pump import Pump

        pump = self._pump
        if pump is None:
            pump = self._pump = Pump(self, input)
        elif input is not None:
            raise ValueError("the input of the communicate that reached its time limit is still under way")
        if not pump.until_ended(limit(timeout)):
            raise TimeoutExpired(self.args, timeout or 0.0, pump.output(1), pump.output(2))
        self._pump = None
        return pump.output(1), pump.output(2)

    # ---- the tree

    def members(self) -> tuple[Member, ...]:
        """The processes of the tree that are there now, the eldest first, as far as its keeper sees them.

        Asks the keeper and waits for its answer (a frozen one takes 8 s: KeeperLost).  Empty when nothing is left.
        Processes that have ended and were not waited for by their parents count.  With `private=False`: the process.
        """
        return self._tree.members()

    def events(self) -> Events:
        """What happens to the process and its tree, from the start on: `for` and `async for` iterate over it.

        The events are those of `holdfast.events`.  Asked for late, it begins with what has happened already; of
        more than 1,024 the oldest are lost and counted (`EventsLost`).  Any number may follow, each sees all.
        It keeps the handle alive.  With `private=False` there are `Spawned` and `Exited` alone.
        """
        from .following import Events

        return Events(self)

    def on_event(self, callback: Callable[[TreeEvent], object]) -> None:
        """Call `callback(event)` for each event of the tree; first, before this returns, for those until now.

        There is no thread that would do so: it is called in whichever thread hears of the event, within `wait`, `poll`,
        `stop`, `communicate`, `members`, an iterator over `events` or another method that learns what the keeper has
        said.  One at a time, in their order, with no lock held: it may use the handle.  What it raises comes out of
        that method, and the event counts as told.
        """
        from .following import Callback

        if self._tree.foreign:
            self._tree.check()
        self._tree.told.callbacks += (Callback(self._tree, callback),)
        self._tree.advance()
        self._tree.told.call_back()

    # ---- acting

    def send_signal(self, signal: int | str) -> None:
        """Send a signal to the process itself, through its descriptor: never to another that got its number.

        Nothing happens when it has ended.  PermissionError: it runs under another user.
        """
        self._tree.signal(signal_number(signal), "main")

    def signal_tree(self, signal: int | str) -> None:
        """Send a signal to every process of the tree that is there now.  With `private=False`: to its group."""
        self._tree.signal(signal_number(signal), "tree")

    def terminate(self) -> None:
        """SIGTERM to the process itself."""
        self.send_signal(15)

    def kill(self) -> None:
        """SIGKILL to the process itself; `stop(grace=0)` kills the tree."""
        self.send_signal(9)

    def stop(self, grace: Seconds | None = None, signal: int | str | None = None) -> StopReport:
        """Stop the whole tree and return when it is empty, with a report of what that took.

        The stop signal, then CONT, to `stop_scope`; when the main process has ended, the same to what
        is left; after `grace` seconds (default: spawn's) KILL, to everything, until nothing is left.
        `grace=0` kills at once.  Bounded: 5 s after the first KILL the report names survivors (processes
        that may not be signalled, or cannot die).  A stop that is under way is shortened, never
        lengthened.  KeeperLost.
        """
        report = self._tree.finish_stop(*self._begin_stop(grace, signal))
        self._gave_up = not report.empty
        return report

    def _begin_stop(
        self, grace: Seconds | None = None, signal: int | str | None = None
    ) -> tuple[int, int, str, Seconds]:
        """Ask for it without waiting; the arguments of `finish_stop`."""
        signo = self._stop_signal if signal is None else signal_number(signal)
        grace = self._grace if grace is None else grace
        milliseconds("grace", grace)
        return self._tree.begin_stop(signo, self._stop_scope, grace), signo, self._stop_scope, grace

    def release(self) -> None:
        """Let the tree outlive us: give the handle up without stopping anything.

        As if it had been started with `on_owner_loss="keep"`, except that the main process still dies
        with its keeper (that is fixed at the start).  Started with `address`, it is left to who attaches next,
        even if it has ended.  The handle is closed afterwards.
        """
        self._tree.set_on_owner_loss("keep")
        self._close_files()
        self._closed = True
        self._tree.drop()

    def close(self) -> None:
        """Stop the tree if anything of it is left, and give back every descriptor.  Idempotent.  KeeperLost.

        Its stdin is at its end from now on, without what was not flushed.  What it writes while it is stopped is read
        and thrown away: neither a full pipe nor a closed one disturbs its cleaning up.  This frees the `address`
        of one that has it: how it ended is known now, here and nowhere else.
        """
        if self._closed:
            return
        self._closed = True
        try:
            stdin = unbuffered(self.stdin)  # a thread that writes to who does not read has the buffer's lock
            if stdin is not None:
                stdin.close()
            if not self._tree.empty and self._tree.owned:
                self._tree.check()
                if not self._gave_up:
                    self._stop_unheard()
        finally:
            self._close_files()
            self._tree.acknowledge()
            self._tree.drop()
            self._tree.told.call_back()

    def _stop_unheard(self) -> None:
        if self.stdout is None and self.stderr is None:
            self.stop()
            return
        from .sink import stop_unheard

        stop_unheard(self)

    def _close_files(self) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                try:
                    file.close()
                except (BrokenPipeError, ValueError):
                    pass  # unread input of a process that has ended; or detached: it is somebody else's

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        self._closed = True
        if self._tree.status is None:
            self._tree.advance()
        if self._tree.status is None and not self._tree.empty:
            # Not stopped here: a destructor must not wait.  The keeper sees its owner go and stops the tree.
            warnings.warn(
                f"{self!r} was dropped while it ran: to its keeper that is the loss of its owner",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
        self._tree.drop()

    def __repr__(self) -> str:
        status = self._tree.status
        return f"<holdfast.Process {self.args!r} pid {self.pid}: {status or 'running'}>"


def unbuffered(file: Any) -> Any:
    """The file without its buffer and the lock of that; None where it is closed, or detached."""
    try:
        return None if file is None or file.closed else getattr(file, "raw", file)
    except ValueError:
        return None
