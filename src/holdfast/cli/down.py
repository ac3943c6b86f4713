"""`holdfast down`: the orderly end of a supervisor."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

import click

from .target import REFUSED, Duration, duration, fail, state_and_reason, target

if TYPE_CHECKING:
    from holdfast.client import Client

SHOWN = {"stopped", "survived", "lost"}


class _Late(Exception):
    pass


@click.command(short_help="Stop everything, then the supervisor.")
@click.option("--wait/--no-wait", default=True, help="Return when everything is stopped (the default), or at once.")
@click.option("--timeout", type=Duration(), help="How long to wait; then exit code 1, and the stop goes on.")
@target
def down(client: Client, wait: bool, timeout: float | None) -> None:
    """Stop every service in reverse order, then the supervisor."""
    place = client.supervisor()
    lock = os.open(os.path.join(place["run_dir"], "lock"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if wait:
            threading.Thread(target=_show_progress, args=(client,), daemon=True).start()
        client.shutdown()
        if wait:
            _wait_for_lock(lock, timeout or 0.0)
            click.echo("holdfast: everything is stopped")
    except _Late:
        fail(f"still stopping after {duration(timeout)}; it goes on: see `holdfast status`", REFUSED)
    finally:
        os.close(lock)


def _wait_for_lock(lock: int, limit: float) -> None:
    """The anchor holds it until it ends: no polling, and no race with a supervisor that is started meanwhile."""

    def late(_signo: int, _frame: FrameType | None) -> None:
        raise _Late

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _show_progress(client: Client) -> None:
    from holdfast.client import ClientError

    try:
        for event in client.events():
            if event["event"] in SHOWN:
                click.echo(f"{event['service']}  {state_and_reason(event['event'], event['text'])}")
                sys.stdout.flush()
    except (ClientError, OSError):
        pass  # it has ended
