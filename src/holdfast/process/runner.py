"""`Runner`: many short commands, one after another or at once, through keepers that are used again.

Its children inherit the state that the *runner* was created with.  That comes from a template: a
keeper that never gets a process, launched at creation, from which every other keeper is started.
"""

from __future__ import annotations

import os
import weakref
from _thread import RLock

from . import _native
from .errors import SpawnError
from .handle import Process
from .keeper import Keeper
from .kept import KeptTree
from .options import make_plan
from .run import CompletedProcess, run_with
from .tier import why_no_keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self, Unpack

    from .options import Command, SpawnOptions
    from .status import Seconds

EPIPE, ENOSYS = 32, 38
IDLE_MAX = 32  # empty keepers kept for the next process; more are let go


class _Lease(KeptTree):
    """A tree on a runner's keeper: when its process is given up, the keeper goes back to the runner."""

    __slots__ = ("runner",)

    runner: Runner

    def drop(self) -> None:
        with self.keeper.lock:
            if self.keeper.tree is not self:
                return  # given up before
            clean = self.empty and (self.report is None or self.report.empty)
            if clean:
                self.keeper.tree = None  # from here on nothing that our handle does reaches the keeper
        if clean:
            self.release_descriptors()
        else:
            super().drop()
        self.runner._take_back(self.keeper)


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: whoever held a lock did not come along."""
    for runner in list(_runners):
        runner._lock = RLock()


os.register_at_fork(after_in_child=_renew_locks)


class Runner:
    """Runs commands whose children inherit the state that this runner was created with, not the caller's.

    That state is: working directory, umask, user and groups, capabilities, limits, niceness and
    scheduling, signal mask of nobody but the spawning thread, ignored signals, session, terminal, cgroup
    and namespaces.  `cwd`, `env`, `umask`, `user`, `group`, `extra_groups`, `nice`, `rlimits`, `process_group`,
    `new_session`, standard streams and `pass_fds` may change them for each process; the environment
    and the signal mask are the caller's at each spawn.  After a change of our ids, groups, capabilities or
    namespaces the runner refuses (RuntimeError): a program that gave up its rights never gets a child
    that has them.

    It is faster than the module's `spawn`: a keeper whose tree is empty gets the next process.  A keeper
    whose last tree left survivors, or is not empty when its handle is given up, is not used again.
    Up to 32 empty keepers wait.  Any thread.  `close` (or the end of `with`) ends the runner and, as
    their owner is lost, stops what its keepers still hold.
    """

    def __init__(self) -> None:
        self._closed = True  # until everything is there: then `close` has something to close
        self._lock = RLock()  # a collected handle may give its keeper back in the middle of our own work
        self._idle: list[Keeper] = []
        self._busy: set[Keeper] = set()
        self._pid = os.getpid()
        self._group = os.getpgrp()
        if why_no_keeper():
            raise SpawnError(ENOSYS, f"a runner needs a keeper, which cannot be here: {why_no_keeper()}", "launch")
        self._template = Keeper.launch_template()
        self._status = self._namespaces = -1
        try:
            # Both are used under the lock only.  O_PATH: after a change of ids the directory is root's.
            self._status = os.open("/proc/self/status", os.O_RDONLY)
            self._namespaces = os.open("/proc/self/ns", os.O_PATH | os.O_DIRECTORY)
            self._identity = _native.identity(self._status, self._namespaces)
        except BaseException:
            self._template.close()
            self._close_files()
            raise
        self._closed = False
        _runners.add(self)

    def spawn(self, args: Command, **options: Unpack[SpawnOptions]) -> Process:
        """As the module's `spawn`, with the runner's state; `private=False` and `address` are refused (ValueError)."""
        return self._spawn_into([], args, options)

    def _spawn_into(self, held: list[Process], args: Command, options: SpawnOptions) -> Process:
        """See spawn.py."""
        if not options.get("private", True):
            raise ValueError("a runner's processes are always private")
        if options.get("address") is not None:
            raise ValueError("a keeper that is used again has no address")
        if options.get("process_group") is None and not options.get("new_session"):
            options["process_group"] = self._group  # ours by now may lie in another session than the keepers
        plan = make_plan(args, **options)
        attempts = IDLE_MAX
        tree: _Lease | None = None
        try:
            while True:
                keeper = self._empty_keeper()
                try:
                    tree = _Lease(keeper, plan)
                    tree.runner = self
                    keeper.start(tree, plan)
                    plan.close_child_files()
                    if plan.forking:
                        from .forking import await_daemon

                        await_daemon(tree, plan)
                    process = Process(tree, plan)
                    tree.started()
                    break
                except BaseException as error:
                    if tree is not None:
                        tree.release_descriptors()
                    self._take_back(keeper)
                    # EPIPE: it was killed while it was idle, and has not read the request.  Take another.
                    if not (isinstance(error, SpawnError) and error.errno == EPIPE and attempts):
                        raise
                    attempts -= 1
        except BaseException:
            plan.discard()
            raise
        held.append(process)  # between started's end and this no handler runs
        return process

    def run(
        self,
        args: Command,
        *,
        input: Any = None,
        capture_output: bool = False,
        timeout: Seconds | None = None,
        check: bool = False,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SpawnOptions],
    ) -> CompletedProcess:
        """As the module's `run`, with the runner's state."""
        return run_with(self._spawn_into, args, input, capture_output, timeout, check, text, encoding, errors, options)

    def close(self) -> None:
        """End the runner.  Trees that are still there lose their owner, so their keepers stop them.  Idempotent."""
        with self._lock:
            keepers = [*self._idle, *self._busy, self._template] if not self._closed else []
            self._closed = True
            self._idle.clear()
            self._busy.clear()
            if keepers:
                self._close_files()
        for keeper in keepers:
            keeper.close()

    def _close_files(self) -> None:
        for fd in (self._status, self._namespaces):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    # ---- keepers

    def _empty_keeper(self) -> Keeper:
        with self._lock:
            if self._closed:
                raise RuntimeError("the runner is closed")
            if os.getpid() != self._pid:
                raise RuntimeError("the runner belongs to the program that we were forked from")
            if _native.identity(self._status, self._namespaces) != self._identity:
                raise RuntimeError(
                    "ids, groups, capabilities or namespaces of this program have changed since the runner was "
                    "created; its children would still have the old ones. Make a new Runner"
                )
            while self._idle:
                keeper = self._idle.pop()
                if not keeper.closed:  # an interruption may have left one so
                    break
            else:
                keeper = self._template.launch_another()
            self._busy.add(keeper)
        return keeper

    def _take_back(self, keeper: Keeper) -> None:
        with self._lock:
            self._busy.discard(keeper)
            # With a tree: an interrupted spawn's, and closing the keeper stops it.
            if keeper.tree is None and not keeper.closed and not self._closed and len(self._idle) < IDLE_MAX:
                self._idle.append(keeper)
                return
        keeper.close()
