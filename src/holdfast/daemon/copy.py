"""One incarnation of one service: its held tree, and what is known of it beyond the engine's concern."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.process import _native
from holdfast.process.held import HeldTree

from .members import KEEPER, POLLIN, Identity, identify

KILL_LIMIT = 5.0  # seconds; after the first KILL a keeper reports what is left
FROZEN_LIMIT = 1.0  # seconds; how much longer a keeper may be silent, and how long once it was thawed


class Copy:
    """A service's process tree while it is held.  For the loop's thread."""

    def __init__(self, name: str, incarnation: int, tree: HeldTree, log_path: str) -> None:
        self.name = name
        self.incarnation = incarnation
        self.tree = tree
        self.log_path = log_path
        self.lost = self.dropped = self.log_error = 0
        self.main_pid = 0  # MAINPID= of sd_notify, of one that is not `forking`; 0: what the keeper says
        self.said_main = 0  # MAINPID= of one that is, until it is main
        self.move_heard = False  # its keeper has told us who is main
        self.refused = ""  # why a hint of which process is main is not believed
        self.status_text = ""  # STATUS= of sd_notify
        self.stopping_said = False  # STOPPING=1 of sd_notify
        self.reloading = False  # RELOADING=1 of sd_notify, and no READY=1 since
        self.reload_runs = False  # its reload_command does
        self.below_anchor = False  # its keeper is a child of our anchor
        self.members: dict[str, Identity] = {}  # keeper and main process, as they are written down
        self.unwritten: asyncio.TimerHandle | None = None  # adopted ones will be, soon
        self.asking: asyncio.TimerHandle | None = None  # its keeper will be, who is there
        self.following: asyncio.Task[None] | None = None  # its pid file is
        self.closed = False
        self.silent = False  # found by start-up, and its keeper has not said a word yet
        self._insist: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The main process's number, for showing."""
        return self.main_pid or self.tree.pid or None

    def stop(self, signo: int, scope: str, grace: float) -> None:
        """Ask the keeper for the end of the tree.  One that does not report it in time is frozen: it is thawed, and
        killed if that does not help (then the tree is ended as that of a lost keeper).  So every stop ends."""
        try:
            self.tree.stop(signo, scope, grace)
        except BlockingIOError:
            grace = 0.0  # frozen for so long already that its socket is full
        self._expect(grace + KILL_LIMIT + FROZEN_LIMIT, lambda: self._thaw(signo, scope))

    @property
    def stopping(self) -> bool:
        """Its end was asked for, and has not been reported."""
        return self._insist is not None

    def set_on_owner_loss(self, what: str) -> None:
        """Tell the keeper what to do when we die; one that is frozen has not even read that we are here."""
        if self.tree.attached:
            try:
                self.tree.set_on_owner_loss(what)
            except BlockingIOError:
                pass

    def stopped(self) -> None:
        """The keeper has reported the end of the stop."""
        if self._insist is not None:
            self._insist.cancel()
            self._insist = None

    def keeper_ended(self) -> bool:
        """It is known to have ended; one that has only hung up may live on, with all that it holds."""
        return self.tree.proved and (
            self.tree.keeper_pidfd < 0 or bool(_native.poll(self.tree.keeper_pidfd, POLLIN, 0))
        )

    def _thaw(self, signo: int, scope: str) -> None:
        self.tree.thaw()
        self._expect(FROZEN_LIMIT, self._kill_keeper)
        try:
            self.tree.stop(signo, scope, 0.0)
        except BlockingIOError:
            pass  # it takes what it has before it takes more

    def _kill_keeper(self) -> None:
        tree, written = self.tree, self.members.get(KEEPER)
        if not tree.proved and written and tree.keeper_pidfd >= 0:  # frozen since before we came
            try:
                tree.proved = identify(KEEPER, tree.keeper_pid, tree.keeper_pidfd) == written
            except OSError:
                pass
        tree.kill_keeper()

    def _expect(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self.stopped()
        self._insist = asyncio.get_running_loop().call_later(seconds, otherwise)

    def close(self) -> None:
        self.stopped()
        for each in (self.unwritten, self.asking, self.following):
            if each is not None:
                each.cancel()
        if not self.closed:
            self.closed = True
            self.tree.close()
