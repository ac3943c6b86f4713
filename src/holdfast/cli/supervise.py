"""What the anchor starts: `python -m holdfast.cli.supervise --run-dir DIR`.

Puts the parts together: the accepted configuration, the daemon, the control socket.  Order: 1. signals
are heard before anything is started; 2. adoption: every keeper is asked; 3. while they answer, the slow imports
of HTTP and the control socket, whose clients have waited in its queue; 4. when adoption is over, READY to the anchor.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time

import holdfast
from holdfast.config.model import Config, decode
from holdfast.daemon.adopt import adopt
from holdfast.daemon.anchor import CONTROL_FD, NOTIFY_FD, Anchor
from holdfast.daemon.commands import Commands
from holdfast.daemon.journal import Journal
from holdfast.daemon.notify import NotifySocket
from holdfast.daemon.plan import Surroundings
from holdfast.daemon.supervisor import Supervisor
from holdfast.engine.table import State

BAD_CONFIG = 78  # as in sysexits.h
HEAD_START = 0.05  # seconds that adoption has for itself: keepers that answer at once do not wait for imports
RETRY_PAUSE = 5.0  # seconds until the anchor tries again when what was accepted cannot be read


def main(argv: list[str]) -> int:
    """Supervise until the orderly end; the exit status.  An unclean end is the anchor's to mend."""
    anchor = Anchor.find()
    run_dir = argv[argv.index("--run-dir") + 1]
    accepted = os.path.join(run_dir, "accepted.json")
    try:
        with open(accepted, "rb") as file:
            config = decode(file.read())
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        return _cannot_supervise(anchor, f"{accepted}: {error}")
    status = asyncio.run(_supervise(config, anchor))
    anchor.farewell(status)
    return status


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


async def _supervise(config: Config, anchor: Anchor) -> int:
    loop = asyncio.get_running_loop()
    places = config.supervisor
    around = Surroundings(os.environ, places.run_dir)
    around.raise_descriptor_limit()
    supervisor = Supervisor(
        config, around, version=holdfast.__version__, anchor_pid=anchor.pid, restarts=anchor.restarts
    )
    supervisor.lost.anchor = anchor
    journal = _keep_journal(supervisor)
    leave: asyncio.Future[int] = loop.create_future()
    _listen_to_signals(supervisor, leave)
    loop.set_exception_handler(lambda _, context: supervisor.events.add("error", _explain(context)))
    if anchor.restarts:
        supervisor.events.add("started", f"pid {os.getpid()}, again, by its anchor")
    else:
        supervisor.events.add("started", f"pid {os.getpid()}, services: {len(config.services)}")
    taking_over = loop.create_task(_take_over(supervisor, anchor))
    await asyncio.wait({taking_over}, timeout=HEAD_START)

    from holdfast.control.server import ControlServer  # Starlette and uvicorn: 0.1 s that nothing waits for

    server = ControlServer(Commands(supervisor), socket.socket(fileno=CONTROL_FD))
    await server.start()
    try:
        await taking_over
        supervisor.run_task(_tell_caller(supervisor, anchor))
        done, _ = await asyncio.wait({supervisor.finished, leave}, return_when=asyncio.FIRST_COMPLETED)
        status = done.pop().result()
        supervisor.events.add("ended", "the services run on" if leave.done() else "everything is stopped")
    finally:
        await server.stop()
        supervisor.leave()
        journal.close()
    return status


async def _take_over(supervisor: Supervisor, anchor: Anchor) -> None:
    await adopt(supervisor)
    # Not before: what was said while nobody was there is believed only when it is known whose trees there are.
    supervisor.listen_to_notify(NotifySocket(socket.socket(fileno=NOTIFY_FD)))
    anchor.ready()


async def _tell_caller(supervisor: Supervisor, anchor: Anchor) -> None:
    """`up --detach` returns when nothing is on its way up any more: started, or failed for a first time.

    In start order, so that what a service waits for has been looked at before: if it waits still, that one is not
    coming, and its restarts may go on for ever."""
    if anchor.caller_waits:
        for name in [name for name in supervisor.engine.order if name in supervisor.config.services]:
            while (view := supervisor.engine.view(name)).state is State.STARTING and not view.waiting_for:
                await supervisor.changed()
        anchor.tell_caller()


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


def _listen_to_signals(supervisor: Supervisor, leave: asyncio.Future[int]) -> None:
    loop = asyncio.get_running_loop()
    interactive = os.isatty(0)

    def quit_() -> None:
        if not leave.done():
            leave.set_result(0)

    def hang_up() -> None:
        if interactive and not _terminal_is_there():
            supervisor.shut_down()  # the window was closed: as with Ctrl-C
        else:
            supervisor.events.add("refused", "HUP: to take over a changed file, stop and start again (in this version)")

    loop.add_signal_handler(signal.SIGTERM, supervisor.shut_down)
    loop.add_signal_handler(signal.SIGINT, supervisor.shut_down)
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
    os._exit(ended)
