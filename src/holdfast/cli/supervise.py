"""What the anchor starts: `python -m holdfast.cli.supervise --run-dir DIR`.

After an upgrade `--upgraded-from VERSION --anchor FACTS` follow; with `--check` it only says whether it would start.

Puts the parts together: the accepted configuration, the daemon, the control socket.  Order: 1. signals
are heard before anything is started; 2. adoption: every keeper is asked; 3. while they answer, the slow imports
of HTTP and the control socket, whose clients have waited in its queue; 4. when adoption is over, READY to the anchor.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import holdfast
from holdfast.config.model import Config, decode
from holdfast.daemon.adopt import adopt
from holdfast.daemon.anchor import ATTACH_FD, CONTROL_FD, NOTIFY_FD, SIGNALS, Anchor
from holdfast.daemon.commands import Commands
from holdfast.daemon.journal import Journal
from holdfast.daemon.notify import NotifySocket
from holdfast.daemon.plan import Surroundings
from holdfast.daemon.supervisor import Supervisor
from holdfast.daemon.upgrade import Upgrade, alone, running, take_events_over
from holdfast.engine.service import ServiceView
from holdfast.engine.table import State
from holdfast.process.keeper import KEEPER

if TYPE_CHECKING:
    from holdfast.control.tcp import Tcp

from .run import original_environment

BAD_CONFIG = 78  # as in sysexits.h
HEAD_START = 0.05  # seconds that adoption has for itself: keepers that answer at once do not wait for imports
LINE_MAX = 500  # characters of what `up --detach` shows of a service that is not up
RETRY_PAUSE = 5.0  # seconds until the anchor tries again when what was accepted cannot be read


def main(argv: list[str]) -> int:
    """Supervise until the orderly end; the exit status.  An unclean end is the anchor's to mend."""
    run_dir = argv[argv.index("--run-dir") + 1]
    accepted = os.path.join(run_dir, "accepted.json")
    if "--check" in argv:
        return _check(accepted)
    # What a start makes lives as long as its service: to look through it every 700 objects finds nothing.
    gc.set_threshold(10_000)
    anchor = Anchor.find(_option(argv, "--anchor"))
    try:
        with open(accepted, "rb") as file:
            config = decode(file.read())
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        return _cannot_supervise(anchor, f"{accepted}: {error}")
    end = asyncio.run(_supervise(config, anchor, _option(argv, "--upgraded-from")))
    if isinstance(end, Upgrade):
        environment = cast("Mapping[bytes, bytes]", original_environment())
        end.execute(anchor, environment)  # an error in this is an unclean end: the anchor mends it
    anchor.farewell(end)
    return end


def _option(argv: list[str], name: str) -> str | None:
    return argv[argv.index(name) + 1] if name in argv else None


def _check(accepted: str) -> int:
    """Before an upgrade: that this version can be loaded, and reads what was accepted; says who it is."""
    import holdfast.control.server

    try:
        with open(accepted, "rb") as file:
            decode(file.read())
    except (OSError, ValueError) as error:
        print(f"{accepted}: {error}")
        return 1
    if not os.access(KEEPER, os.X_OK):
        print(f"not executable: {KEEPER}")
        return 1
    print(f"holdfast {holdfast.__version__}")
    return 0


class _EndAsked(Exception):
    pass


def _cannot_supervise(anchor: Anchor, why: str) -> int:
    """Without what was accepted nothing may be touched.  The anchor tries again, and who asks for the end gets it."""
    todo = "end this supervisor (Ctrl-C, TERM) and `holdfast up` again: the services run on, and are taken over"
    print(f"holdfast: cannot supervise: {why}; {todo}", file=sys.stderr, flush=True)
    if anchor.restarts:

        def end(_signo: int, _frame: object) -> None:
            raise _EndAsked

        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signo, end)
        try:
            anchor.ready()
            time.sleep(RETRY_PAUSE)
        except _EndAsked:
            anchor.farewell(BAD_CONFIG)
    return BAD_CONFIG


async def _supervise(config: Config, anchor: Anchor, upgraded_from: str | None) -> int | Upgrade:
    loop = asyncio.get_running_loop()
    places = config.supervisor
    around = Surroundings(os.environ, places.run_dir)
    around.raise_descriptor_limit()
    supervisor = Supervisor(
        config, around, version=holdfast.__version__, anchor_pid=anchor.pid, restarts=anchor.restarts
    )
    take_events_over(supervisor.events, places.run_dir, upgraded_from is not None)
    supervisor.lost.anchor = anchor
    supervisor.sockets.take_back(anchor)
    journal = _keep_journal(supervisor)
    _listen_to_signals(supervisor)
    loop.set_exception_handler(lambda _, context: supervisor.events.add("error", _explain(context)))
    if upgraded_from is not None:
        supervisor.events.add("started", f"pid {os.getpid()}, in place of version {upgraded_from}")
    elif anchor.restarts:
        supervisor.events.add("started", f"pid {os.getpid()}, again, by its anchor")
    else:
        supervisor.events.add("started", f"pid {os.getpid()}, services: {len(config.services)}{_policies(config)}")
    taking_over = loop.create_task(_take_over(supervisor, anchor))
    await asyncio.wait({taking_over}, timeout=HEAD_START)

    from holdfast.control.server import ControlServer  # Starlette and uvicorn: 0.1 s that nothing waits for

    upgrade: Upgrade | None = None
    server = ControlServer(Commands(supervisor), socket.socket(fileno=CONTROL_FD), _tcp(supervisor, anchor))
    await server.start()
    try:
        await taking_over
        if upgraded_from is not None:
            count = len(running(supervisor))
            text = f"from version {upgraded_from} to {holdfast.__version__}; services that run on: {count}"
            supervisor.events.add("upgraded", text)
        supervisor.run_task(_tell_caller(supervisor, anchor))
        ends: set[asyncio.Future[Any]] = {supervisor.finished, supervisor.left}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if supervisor.finished.done():
            supervisor.events.add("ended", "everything is stopped")
        elif upgrade := supervisor.left.result():
            supervisor.events.add("upgrading", f"to version {upgrade.next_version}")
        else:
            supervisor.events.add("ended", "the services run on")
    finally:
        await server.stop(upgrade is not None)
        supervisor.leave()
        journal.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one that comes now shall not end us half-way
    await alone()
    if upgrade is None:
        return supervisor.finished.result() if supervisor.finished.done() else 0
    await upgrade.hand_over()
    return upgrade


def _tcp(supervisor: Supervisor, anchor: Anchor) -> Tcp | None:
    """The API over TCP, where it is asked for.  The anchor has its socket, so a change of it takes another anchor."""
    http = supervisor.config.supervisor.http
    if http.listen is None or http.token_file is None:
        return None
    if anchor.http < 0:
        supervisor.events.add("error", f"nobody listens on {http.listen}: `holdfast down --keep` and `up` do it")
        return None
    from holdfast.control.tcp import Tcp

    supervisor.events.add("listening", f"http://{http.listen}, with the token in {http.token_file}")
    return Tcp(socket.socket(fileno=os.dup(anchor.http)), http.token_file, http.allowed_hosts)


def _policies(config: Config) -> str:
    """Of services that do not run on without a supervisor."""
    named = [f"{each.name} {each.on_owner_loss}" for each in config.services.values() if each.on_owner_loss != "keep"]
    return f"; on owner loss: {', '.join(named)}" if named else ""


async def _take_over(supervisor: Supervisor, anchor: Anchor) -> None:
    await adopt(supervisor)
    # Not before: what was said while nobody was there is believed only when it is known whose trees there are.
    supervisor.voices.listen(NotifySocket(socket.socket(fileno=NOTIFY_FD)))
    supervisor.terminals.listen(socket.socket(fileno=ATTACH_FD))
    anchor.ready()


async def _tell_caller(supervisor: Supervisor, anchor: Anchor) -> None:
    """`up --detach` returns when nothing is on its way up any more: started, or failed for a first time.

    In start order, so that what a service waits for has been looked at before: if it waits still, that one is not
    coming, and its restarts may go on for ever."""
    if anchor.caller_waits:
        specs = supervisor.config.services
        order = supervisor.engine.order
        expected = {name: None for name in order if name in specs and not specs[name].schedule.given}
        for name in expected:
            with suppress(KeyError):  # an update has taken it out
                while (view := supervisor.engine.view(name)).state is State.STARTING and not view.waiting_for:
                    await supervisor.changed()
        views = [view for view in supervisor.engine.views() if view.name in expected]
        down = [view for view in views if view.wanted and not view.ready]
        anchor.tell_caller([f"not up: {_how_it_is(view)}" for view in down])


def _how_it_is(view: ServiceView) -> str:
    why = view.reason or (view.last_exit.words if view.last_exit else "")
    text = f"{view.name} is {view.state}" + (f": {why}" if why else "")
    return "".join(c if c.isprintable() else "?" for c in text[:LINE_MAX])


def _keep_journal(supervisor: Supervisor) -> Journal:
    width = max((len(name) for name in supervisor.engine.order), default=8)
    path = os.path.join(supervisor.config.supervisor.log_dir, "holdfast.log")
    try:
        detached = os.path.samestat(os.fstat(2), os.stat(path))
    except OSError:
        detached = False
    journal = Journal(2, os.environ, width, path if detached else None)
    supervisor.events.listen(journal.event)
    return journal


def _listen_to_signals(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    interactive = os.isatty(0)

    def quit_() -> None:
        if not supervisor.left.done():
            supervisor.left.set_result(None)

    def hang_up() -> None:
        if interactive and not _terminal_is_there():
            supervisor.shut_down("SIGHUP")  # the window was closed: as with Ctrl-C
        else:
            supervisor.updates.hang_up()

    for end in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(end, supervisor.shut_down, end.name)
    loop.add_signal_handler(signal.SIGQUIT, quit_)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    for unused in (signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(unused, lambda: None)  # not SIG_IGN: services would inherit that
    # The anchor has started us with signals blocked, so that none comes before its handler.  From here on
    # nothing is: services inherit the mask.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _terminal_is_there() -> bool:
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True


def _explain(context: dict[str, object]) -> str:
    error = context.get("exception")
    return f"{context.get('message')}: {error!r}" if error else str(context.get("message"))


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    # All is closed and told.  Taking the interpreter apart is 25 ms more for whoever waits for the end.
    sys.stdout.flush()
    os._exit(ended)
