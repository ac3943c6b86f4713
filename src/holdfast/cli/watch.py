"""`holdfast logs` and `holdfast events`: what services write, and what happens to them."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .follow import FOLLOWED_MAX, events_from, logs_from
from .target import json_option, names_argument, target

if TYPE_CHECKING:
    from holdfast.client import Client

PALETTE = ("cyan", "magenta", "yellow", "green", "blue", "bright_red", "bright_cyan", "bright_magenta")


@click.command(name="logs", short_help="Show what services have written.")
@names_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, across rotations.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many to begin with.")
@click.option("--stderr", "only_stderr", is_flag=True, help="Standard error alone, where it is written apart.")
@json_option
@target
def logs(
    client: Client, names: tuple[str, ...], follow: bool, lines: int, only_stderr: bool, as_json: bool
) -> None:
    """Show what services have written (all, or those that match); several are told apart by name and colour."""
    found = [s["name"] for s in client.services(*names)]
    width = max((len(name) for name in found), default=0)
    stream = "stderr" if only_stderr else None
    lock = threading.Lock()
    over = threading.Event()
    troubles: list[Exception] = []

    prefixes = {
        name: "" if len(found) == 1 else click.style(f"{name:<{width}} | ", fg=PALETTE[number % len(PALETTE)])
        for number, name in enumerate(found)
    }

    def show(name: str, entry: dict[str, Any]) -> None:
        with lock:
            if as_json:
                click.echo(json.dumps({"service": name, **entry}))
            else:
                click.echo(prefixes[name] + entry["text"], nl=len(found) > 1 or not entry.get("partial"))

    def follow_some(cursors: dict[str, str | None]) -> None:
        try:
            for entry in logs_from(client, cursors, stream, over):
                show(entry["service"], entry)
        except Exception as error:  # the first is raised again where it can be dealt with
            troubles.append(error)
            over.set()
            client.close()  # ends the others

    try:
        cursors: dict[str, str | None] = {}
        for name in found:
            # In two steps, so that there is a place to go on from however early the supervisor ends.
            last = client.logs(name, lines=lines, stream=stream)
            for entry in last:
                show(name, entry)
            cursors[name] = last.cursor
        if not follow:
            return
        some = [dict(islice(cursors.items(), at, at + FOLLOWED_MAX)) for at in range(0, len(cursors), FOLLOWED_MAX)]
        threads = [threading.Thread(target=follow_some, args=[each], daemon=True) for each in some]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if troubles:
            raise troubles[0]
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _end_quietly()


@click.command(name="events", short_help="Show what has happened to services.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@json_option
@target
def events(client: Client, follow: bool, as_json: bool) -> None:
    """Show what has happened to services since the supervisor was started: starts, exits with their cause, restarts,
    lost log bytes.  Goes on over an upgrade, and over the death of a supervisor that its anchor starts again."""
    last = client.supervisor()["last_event"]
    try:
        for event in events_from(client, 0):
            click.echo(json.dumps(event) if as_json else _line(event))
            if event["seq"] >= last and not follow:
                return
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _end_quietly()


def _end_quietly() -> NoReturn:
    """`| head` has seen enough.  What the interpreter would still flush at its end must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
    sys.exit(0)


def _line(event: dict[str, Any]) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    who = event["service"] or "holdfast"
    if event["service"] and event["incarnation"]:
        who += f"@{event['incarnation']}"
    return f"{stamp}  {who:<16} {event['event'].replace('_', ' '):<12} {event['text']}".rstrip()
