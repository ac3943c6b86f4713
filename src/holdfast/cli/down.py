"""`holdfast down`: the orderly end of a supervisor."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
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
    if not wait:
        client.shutdown()
        return
    lock = os.open(os.path.join(place["run_dir"], "lock"), os.O_RDONLY | os.O_CLOEXEC)
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, timeout or 0.0)
    try:
        while not _ask(client):
            pass
        # The anchor holds it until it ends: no polling, and no race with a supervisor that is started meanwhile.
        fcntl.flock(lock, fcntl.LOCK_SH)
    except _Late:
        fail(f"still stopping after {duration(timeout)}; it goes on: see `holdfast status`", REFUSED)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.close(lock)
    click.echo("holdfast: everything is stopped")


def _late(_signo: int, _frame: FrameType | None) -> None:
    raise _Late


def _ask(client: Client) -> bool:
    """Ask, and show what stops.  False: the supervisor was killed on the way, and its successor has to be asked."""
    from holdfast.client import ClientError, NoSupervisor

    try:
        with client.events() as events:  # first: nothing of what stops is missed
            client.shutdown()
            for event in events:
                if event["event"] in SHOWN and event["service"]:
                    click.echo(f"{event['service']}  {state_and_reason(event['event'], event['text'])}")
                    sys.stdout.flush()
    except NoSupervisor:
        return True  # it has ended
    except ClientError as error:
        if error.code == "lost":
            return False
        if error.code != "stopping":
            raise
    return True
