"""`holdfast down`: the orderly end of a supervisor."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

import click

from holdfast.config.holder import holder

from .target import REFUSED, Duration, counted, duration, fail, state_and_reason, target

if TYPE_CHECKING:
    from holdfast.client import Client

NEXT = {"lost", "upgrading"}  # the supervisor goes, and another one comes
SHOWN = {"stopped", "survived", "lost"}
LOOK_PAUSE = 3.0  # seconds between two looks whether those who should end are stopped


class _Late(Exception):
    pass


class _Alarm:
    """Raises in the main thread: _Late after `timeout` seconds; ClientError when those who should end are stopped (by
    SIGSTOP), and nobody knows when they will."""

    def __init__(self, run_dir: str, timeout: float | None) -> None:
        self._run_dir = run_dir
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._ring)
        self._set()

    def __exit__(self, *_exc: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _set(self) -> None:
        left = LOOK_PAUSE if self._deadline is None else self._deadline - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, min(LOOK_PAUSE, left)))  # 0 would mean never

    def _ring(self, _signo: int, _frame: FrameType | None) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise _Late
        found = holder(self._run_dir)
        if found is not None and found.silent:
            from holdfast.client import ClientError

            raise ClientError("no_answer", f"the stop was asked for, but {found.words}", found.remedy)
        self._set()


@click.command(short_help="Stop everything, then the supervisor.")
@click.option("--keep", is_flag=True, help="End the supervisor alone: the services run on, until the next `up`.")
@click.option("--wait/--no-wait", default=True, help="Return when everything is stopped (the default), or at once.")
@click.option("--timeout", type=Duration(), help="How long to wait; then exit code 1, and the stop goes on.")
@target
def down(client: Client, keep: bool, wait: bool, timeout: float | None) -> None:
    """Stop every service in reverse order, then the supervisor."""
    place = client.supervisor()
    ask = _leave if keep else _stop
    if not wait:
        _leave(client) if keep else client.shutdown()
        return
    lock = os.open(os.path.join(place["run_dir"], "lock"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _Alarm(place["run_dir"], timeout):
            while not ask(client):
                pass
            # The anchor holds it until it ends: no polling, and no race with a supervisor that is started meanwhile.
            fcntl.flock(lock, fcntl.LOCK_SH)
    except _Late:
        doing = "ending" if keep else "stopping"
        fail(f"still {doing} after {duration(timeout)}; it goes on: see `holdfast status`", REFUSED)
    finally:
        os.close(lock)
    if not keep:
        click.echo("holdfast: everything is stopped")


def _leave(client: Client) -> bool:
    """Ask, and show what runs on."""
    from holdfast.client import ClientError

    try:
        left = client.leave()
    except ClientError as error:
        if error.code not in NEXT:
            raise
        return False
    click.echo(f"holdfast: {counted(left['services'])} left running, without a supervisor until `holdfast up`")
    for name, what in left["kept"].items():
        click.echo(f"  {name}, although it has on_owner_loss = \"{what}\"")
    return True


def _stop(client: Client) -> bool:
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
        if error.code in NEXT:
            return False
        if error.code != "stopping":
            raise
    return True
