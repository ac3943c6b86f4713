"""Which process is main, of services that fork a daemon: what the keepers say of it, and the hints that they are given.

In: a keeper's word that main has moved, numbers from a `pid_file` or `MAINPID`.  Out: events for the engine, and
numbers for the keeper, which takes its own children alone.  A number in a file is anybody's: it is passed on only when
its process is seen below this very keeper.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from holdfast.config.model import Service
from holdfast.engine import events as ev
from holdfast.engine.effects import Step
from holdfast.engine.events import LEFT_NOTHING, Exit
from holdfast.process import events as told
from holdfast.process.status import ExitStatus

from .copy import Copy
from .processes import is_below, look
from .watch import Watcher

if TYPE_CHECKING:
    from .supervisor import Supervisor

PID_FILE_MAX = 64  # bytes that are read of one
LOOK_AGAIN = (0.05, 0.2, 1.0, 5.0)  # seconds: pid files are written after the fork, too, and into new directories
WHY = {
    "name": "it has the name",
    "only": "only one is left",
    "session": "the oldest in a session of its own",
    "together": "the oldest of several",
    "asked": "as it says itself",
}


class Mains:
    """The main processes of one supervisor's services.  For its loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._watcher = Watcher()
        self._watching: dict[Copy, asyncio.Task[None]] = {}

    def moved(self, copy: Copy, event: told.Moved) -> None:
        """Its keeper says so."""
        supervisor, key = self._supervisor, (copy.name, copy.incarnation)
        supervisor.members.write(copy)
        why = WHY.get(event.rule, event.rule)
        if event.old_pid == event.pid:
            supervisor.events.add("moved", f"main {event.pid} ({why})", *key)
        else:
            supervisor.events.add("moved", f"main {event.old_pid} -> {event.pid} ({why})", *key)
        spec = supervisor.config.services.get(copy.name)
        if spec is not None and spec.awaits is not None and not spec.awaits.kind:
            supervisor.post(ev.BecameReady(*key))
        self.look(copy)

    def end_of(self, copy: Copy, status: ExitStatus) -> Exit:
        """How its main process has ended, as the engine knows it."""
        view = self._supervisor.engine.view(copy.name)
        step: Step = view.step if copy.incarnation == view.incarnation else "main"
        spec = self._supervisor.config.services.get(copy.name)
        return exit_of(status, spec, step, moved=copy.tree.moves > 0 or copy.stopping)

    # ---- hints

    def said(self, copy: Copy, pid: int) -> None:
        """`MAINPID`, from somebody in its tree."""
        if self._is_forking(copy):
            self._hint(copy, pid, "MAINPID")
        elif is_below(pid, copy.tree.keeper_pid):
            copy.main_pid = pid  # for showing: main is what was started

    def look(self, copy: Copy) -> None:
        """Something has changed: its `pid_file` may say what it means, now or in a moment."""
        spec = self._supervisor.config.services.get(copy.name)
        if spec is None or spec.pid_file is None or not copy.tree.moves:
            return
        self._read(copy, spec.pid_file)
        if copy in self._watching:
            self._watching[copy].cancel()
        task = self._watching[copy] = self._loop.create_task(self._follow(copy, spec.pid_file))
        task.add_done_callback(lambda task: self._watching.get(copy) is task and self._watching.pop(copy))

    async def _follow(self, copy: Copy, path: str) -> None:
        """Read it at each change of its directory for a while: as long as a daemon that has just forked may need."""
        try:
            with self._watcher.watching(os.path.dirname(path)) as changed:
                deadline = self._loop.time() + LOOK_AGAIN[-1]
                while not copy.closed and not changed.gone:
                    self._read(copy, path)
                    try:
                        async with asyncio.timeout_at(deadline):
                            await changed.wait()
                    except TimeoutError:
                        return
                    changed.clear()
        except OSError:
            for pause in LOOK_AGAIN:
                await asyncio.sleep(pause)
                if copy.closed:
                    return
                self._read(copy, path)

    def _read(self, copy: Copy, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return
        try:
            words = os.read(fd, PID_FILE_MAX).split()
        except OSError:
            return
        finally:
            os.close(fd)
        if words and words[0].isdigit():
            self._hint(copy, int(words[0]), path)

    def _hint(self, copy: Copy, pid: int, source: str) -> None:
        tree = copy.tree
        if pid == tree.pid and tree.rule == "asked":
            copy.refused = ""
        elif not is_below(pid, tree.keeper_pid):
            self._refuse(copy, f"{source} names {pid}, which is not in this tree")
        elif (seen := look(pid)) and seen.parent != tree.keeper_pid:
            copy.refused = ""  # below main: the next version of it, as a rule, which is ours when that one has gone
        else:
            copy.refused = ""
            try:
                tree.make_main(pid)
            except BlockingIOError:
                pass  # frozen

    def _refuse(self, copy: Copy, why: str) -> None:
        if copy.refused != why:
            copy.refused = why
            self._supervisor.events.add("main_refused", why, copy.name, copy.incarnation)

    def _is_forking(self, copy: Copy) -> bool:
        spec = self._supervisor.config.services.get(copy.name)
        return copy.tree.moves > 0 or (spec is not None and spec.type == "forking")

    def close(self) -> None:
        for task in self._watching.values():
            task.cancel()
        self._watcher.close()


def exit_of(status: ExitStatus, spec: Service | None = None, step: Step = "main", *, moved: bool = True) -> Exit:
    """An exit as the engine and the records know it.  `moved`: main has been another process than the one that was
    started, or was asked to end."""
    left_nothing = spec is not None and spec.type == "forking" and step == "main" and status.code == 0 and not moved
    return Exit(
        code=status.code, signal=status.signal, core=status.core_dumped, cause=LEFT_NOTHING if left_nothing else ""
    )


def reported_exit(path: str, spec: Service | None, step: Step) -> Exit | None:
    """What the keeper wrote of the end of main; None: there is no report."""
    try:
        said = told.read_report(path)
    except (OSError, ValueError):
        return None
    moved = any(isinstance(event, (told.Moved, told.StopReported)) for event in said)
    exits = [exit_of(event.status, spec, step, moved=moved) for event in said if isinstance(event, told.Exited)]
    return exits[-1] if exits else Exit(None, None, cause="could not start") if said else None
