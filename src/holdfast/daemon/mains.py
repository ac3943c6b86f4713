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
from holdfast.engine.effects import Step
from holdfast.engine.events import LEFT_NOTHING, Exit
from holdfast.process import events as told
from holdfast.process.status import ExitStatus

from .copy import Copy
from .members import MAIN
from .processes import is_below
from .watch import Watcher

if TYPE_CHECKING:
    from .supervisor import Supervisor

PID_FILE_BYTES = 64  # that are read of one
PIDS = 1 << 31
STALE_PAUSE = 1.0  # seconds
LOOK_AGAIN = (0.05, 0.2, 1.0, 5.0)  # the same
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

    def moved(self, copy: Copy, event: told.Moved) -> None:
        """Its keeper says so."""
        supervisor, key = self._supervisor, (copy.name, copy.incarnation)
        written = copy.members.get(MAIN)
        supervisor.members.write(copy)
        # What a keeper tells first to a new owner, it has told the last one, too, if that has written down who is main.
        if copy.move_heard or not copy.tree.attached or written != copy.members.get(MAIN):
            who = f"{event.pid}" if event.old_pid == event.pid else f"{event.old_pid} -> {event.pid}"
            supervisor.events.add("moved", f"main {who} ({WHY.get(event.rule, event.rule)})", *key)
        copy.move_heard = True
        supervisor.probes.forked(key)
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
            copy.said_main = pid
            self._refuse(copy, self._hint(copy, pid, "MAINPID"))
        elif is_below(pid, copy.tree.keeper_pid):
            copy.main_pid = pid  # for showing: main is what was started

    def look(self, copy: Copy) -> None:
        """Something has changed: what it has said of itself may hold now, and what its `pid_file` says, or will."""
        if copy.said_main and copy.tree.moves and (
            self._hint(copy, copy.said_main, "MAINPID") or copy.said_main == copy.tree.pid
        ):
            copy.said_main = 0  # it has come true, or never will
        spec = self._supervisor.config.services.get(copy.name)
        if spec is None or spec.pid_file is None or not copy.tree.moves or copy.closed:
            return
        self._read(copy, spec.pid_file)
        if copy.following is None or copy.following.done():
            copy.following = self._loop.create_task(self._follow(copy, spec.pid_file))

    def renew(self, copy: Copy) -> None:
        """The configuration has another `pid_file` for it."""
        if copy.following is not None:
            copy.following.cancel()
            copy.following = None
        copy.refused = ""
        self.look(copy)

    async def _follow(self, copy: Copy, path: str) -> None:
        """Read it at each change of its directory, for as long as the copy is held; what it says of nobody of this tree
        is told when it has stood there for a moment: it may be the last daemon's, and this one's comes."""
        try:
            with self._watcher.watching(os.path.dirname(path)) as changed:
                while not changed.gone:
                    refused = self._read(copy, path)
                    try:
                        async with asyncio.timeout(STALE_PAUSE if refused else None):
                            await changed.wait()
                        changed.clear()
                    except TimeoutError:
                        self._refuse(copy, refused)
                        await changed.wait()
        except OSError:  # there is no such directory: some make it when they have forked
            for pause in LOOK_AGAIN:
                await asyncio.sleep(pause)
                self._read(copy, path)

    def _read(self, copy: Copy, path: str) -> str:
        """Pass on what it says; if nobody of this tree is meant, the words for that."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return ""
        try:
            words = os.read(fd, PID_FILE_BYTES).split()
        except OSError:
            return ""
        finally:
            os.close(fd)
        return self._hint(copy, int(words[0]), path) if words and words[0].isdigit() else ""

    def _hint(self, copy: Copy, pid: int, source: str) -> str:
        tree = copy.tree
        if not 0 < pid < PIDS or not is_below(pid, tree.keeper_pid):
            return f"{source} names {pid}, which is not in this tree"
        copy.refused = ""
        if (pid, tree.rule) != (tree.pid, "asked") and is_below(pid, tree.keeper_pid, 1):
            # One that has another parent may be its next version, which is the keeper's child when that one has gone.
            try:
                tree.make_main(pid)
            except BlockingIOError:
                pass  # frozen
        return ""

    def _refuse(self, copy: Copy, why: str) -> None:
        if why and copy.refused != why:
            copy.refused = why
            self._supervisor.events.add("main_refused", why, copy.name, copy.incarnation)

    def _is_forking(self, copy: Copy) -> bool:
        spec = self._supervisor.config.services.get(copy.name)
        return copy.tree.moves > 0 or (spec is not None and spec.type == "forking")

    def close(self) -> None:
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
