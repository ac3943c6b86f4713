"""`holdfast upgrade`: the supervisor makes way for its next version, in the same process.

In: a supervisor that was asked.  Out: an exec.  Services do not notice: they are their keepers', and the next version
finds those as it would after a kill.  What a kill would lose is handed over: the anchor (by arguments), the sockets (by
their numbers), what has happened (a file), and signals that come meanwhile (they stay pending).

Order: 1. the next version is tried, and says who it is; 2. keepers are told that trees go on without us; both can be
refused, and nothing has changed; 3. clients are told to come again; 4. signals are held; 5. exec.  A next version
that fails after that is started again by the anchor, as any supervisor that dies.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import msgspec

from .anchor import ANCHOR_FD, ATTACH_FD, CALLER_FD, CONTROL_FD, LOCK_FD, NOTIFY_FD, SIGNALS, Anchor
from .events import EventLog
from .launch import supervisor_command
from .status import EventRecord
from .store import write_by_rename

if TYPE_CHECKING:
    from .supervisor import Supervisor

CHECK_LIMIT = 30.0  # seconds for the next version to say that it would start
ALONE_LIMIT = 1.0  # seconds for threads to end; the journal's may be kept by a terminal that nobody reads
SAID_MAX = 2000  # characters of what it says instead
HANDED = "events.handed"  # in the run directory: between two versions


class Refused(Exception):
    """Nothing was changed; the text says why."""


# ---- services that run on


def running(supervisor: Supervisor) -> list[str]:
    """Names of those that run, as far as is known: what a frozen keeper holds counts as alive."""
    return [name for name, copy in supervisor.copies.items() if copy.tree.status is None]


def keep_running(supervisor: Supervisor, keep: bool = True) -> list[str]:
    """Tell the keepers that trees go on without us, whatever `on_owner_loss` says; or, without keep, what it says.
    Names of those that cannot be told: frozen for so long that their socket is full."""
    deaf = []
    for copy in supervisor.all_copies():
        name = copy.name
        configured = supervisor.on_owner_loss(name)
        if configured != "keep":
            try:
                copy.tree.set_on_owner_loss("keep" if keep else configured)
            except BlockingIOError:
                deaf.append(name)
    return deaf


def promise_to_keep(supervisor: Supervisor) -> None:
    """As `keep_running`, all or none of them: Refused."""
    deaf = keep_running(supervisor)
    if deaf:
        keep_running(supervisor, False)
        raise Refused(
            f"the keeper of {', '.join(deaf)} does not answer (stopped with SIGSTOP?), and would end it: on_owner_loss"
        )


# ---- from one version to the next


async def alone() -> None:
    """Return when no other thread is left, or after ALONE_LIMIT.  One that has been joined lives on for a moment, and
    takes a signal that this thread has blocked: then nobody hears of it."""
    loop = asyncio.get_running_loop()
    await loop.shutdown_default_executor()
    end = loop.time() + ALONE_LIMIT
    while len(os.listdir("/proc/self/task")) > 1 and loop.time() < end:
        await asyncio.sleep(0.001)


class Upgrade:
    """The way out of one supervisor.  For the loop's thread, but for `execute`, which comes after the loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.next_version = ""
        self._supervisor = supervisor
        self._held: list[int] = []  # signals that came when nobody could obey them any more
        self._sockets: list[int] = []

    async def prepare(self) -> None:
        """All that can be refused."""
        supervisor = self._supervisor
        self._refuse_unless_running()
        self.next_version = await asyncio.to_thread(_try_next, supervisor.config.supervisor.run_dir)
        self._refuse_unless_running()  # it has taken its time
        try:
            for fd in (CONTROL_FD, NOTIFY_FD, ATTACH_FD):
                self._sockets.append(os.dup(fd))  # what serves them closes them
            _write(supervisor)
            promise_to_keep(supervisor)
        except OSError as error:
            self._give_up()
            raise Refused(f"what has happened cannot be handed over: {error}") from None
        except Refused:
            self._give_up()
            raise

    def _give_up(self) -> None:
        for fd in self._sockets:
            os.close(fd)
        _forget(self._supervisor.config.supervisor.run_dir)

    def _refuse_unless_running(self) -> None:
        if self._supervisor.state != "running" or self._supervisor.left.done():
            raise Refused(f"the supervisor is {self._supervisor.state}, or about to leave")

    def begin(self) -> None:
        """From now on signals are for the next version, and the supervisor is about to leave."""
        self._supervisor.left.set_result(self)
        for signo in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signo, self._held.append, signo)

    async def hand_over(self) -> None:
        """The last thing in this loop, when everything is closed, signals are blocked, and no other thread is left."""
        for _ in range(3):  # what came before that is on its way through the loop
            await asyncio.sleep(0)
        for signo in self._held:
            os.kill(os.getpid(), signo)  # pending, until the next version has its handlers
        try:
            _write(self._supervisor)
        except OSError:
            _forget(self._supervisor.config.supervisor.run_dir)  # an older state of it would be a lie

    def execute(self, anchor: Anchor, environment: Mapping[bytes, bytes]) -> NoReturn:
        """Become the next version.  OSError."""
        supervisor = self._supervisor
        # Services shall have the limit that we were started with.
        resource.setrlimit(resource.RLIMIT_NOFILE, supervisor.around.nofile)
        for fd, number in zip(self._sockets, (CONTROL_FD, NOTIFY_FD, ATTACH_FD), strict=True):
            os.dup2(fd, number, inheritable=True)
        command = [*supervisor_command(supervisor.config.supervisor.run_dir), "--upgraded-from", supervisor.version]
        if anchor.pid is not None:
            command += ["--anchor", anchor.facts]
            for number in (ANCHOR_FD, LOCK_FD, *([CALLER_FD] if anchor.caller_waits else [])):
                os.set_inheritable(number, True)
            if anchor.http >= 0:
                os.set_inheritable(anchor.http, True)
        os.execve(sys.executable, command, environment)


def _try_next(run_dir: str) -> str:
    """The version that is installed now, if it starts and can read what we have accepted.  Refused.  Any thread."""
    from holdfast.process.errors import KeeperLost, TimeoutExpired
    from holdfast.process.options import DEVNULL, PIPE, STDOUT
    from holdfast.process.run import run  # which no supervisor needs otherwise

    try:
        # In a session of its own: when one of our group ends whose parent is of another group, the kernel takes the
        # group for orphaned now, and sends HUP and CONT to all of it if one is stopped.  The anchor may be.
        done = run(
            [*supervisor_command(run_dir), "--check"], stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True,
            errors="replace", timeout=CHECK_LIMIT, new_session=True,
        )  # fmt: skip
    except TimeoutExpired:
        raise Refused(f"the version that is installed now did not say within {CHECK_LIMIT:.0f} s who it is") from None
    except (KeeperLost, OSError) as error:
        raise Refused(f"the version that is installed now cannot be started: {error}") from None
    said = done.stdout.strip()
    if done.returncode or not said.startswith("holdfast "):
        raise Refused(f"the version that is installed now does not start: {said[-SAID_MAX:] or done.status}")
    return str(said.partition(" ")[2])


# ---- what has happened


def _path(run_dir: str) -> str:
    return os.path.join(run_dir, HANDED)


def _write(supervisor: Supervisor) -> None:
    write_by_rename(_path(supervisor.config.supervisor.run_dir), msgspec.json.encode(supervisor.events.after(0)))


def _forget(run_dir: str) -> None:
    try:
        os.unlink(_path(run_dir))
    except OSError:
        pass


def take_events_over(events: EventLog, run_dir: str, upgraded: bool) -> None:
    """Go on where the version before us has stopped counting.  One that was started anew does not know what has
    happened between that and now: there the file is only removed."""
    if upgraded:
        try:
            with open(_path(run_dir), "rb") as file:
                events.resume(msgspec.json.decode(file.read(), type=list[EventRecord]))
        except (OSError, ValueError):
            pass  # clients are told of a gap
    _forget(run_dir)
