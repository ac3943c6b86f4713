"""`holdfast upgrade`: the version that is installed now takes over from the one that runs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .follow import events_from
from .target import REFUSED, counted, fail, target

if TYPE_CHECKING:
    from holdfast.client import Client


@click.command(short_help="Let the installed version take over from the one that runs.")
@target
def upgrade(client: Client) -> None:
    """Let the version that is installed now take over from the supervisor that runs, without touching services.

    Refused, with nothing changed, when that version does not start.
    """
    from holdfast.client import ClientError

    began = time.monotonic()
    asked = client.upgrade()
    try:
        _wait_for_the_next(client, asked, began)
    except ClientError as error:
        if error.code != "no_answer":
            raise
        fail(f"version {asked['next_version']} was to take over; services run on, but {error}", REFUSED)


def _wait_for_the_next(client: Client, asked: dict[str, Any], began: float) -> None:
    """Says what became of it, and ends the command."""
    alone = 0.0
    for event in events_from(client, asked["last_event"]):
        if event["service"]:
            continue
        if event["event"] == "upgrading":
            alone = event["time"]
        elif event["event"] == "upgraded":
            gone = f", {event['time'] - alone:.2f} s of that without a supervisor" if alone else ""
            click.echo(
                f"holdfast: upgraded from {asked['version']} to {asked['next_version']} in "
                f"{time.monotonic() - began:.2f} s{gone}; {counted(asked['services'])} untouched"
            )
            sys.exit(0)
        elif event["event"] == "gap":  # nothing is forgotten between two versions
            now = client.supervisor()
            fail(f"version {now['version']} died, and its anchor started it again: see `holdfast events`", REFUSED)
    fail("the supervisor has ended; services that ran are left running", REFUSED)
