"""`holdfast logs` and `holdfast events`: what services write, and what happens to them."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .follow import events_from, log_from
from .target import json_option, names_argument, target

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def entries(name: str) -> Iterator[dict[str, Any]]:
        # In two steps, so that there is a place to go on from however early the supervisor ends.
        last = client.logs(name, lines=lines, stream=stream)
        yield from last
        if follow:
            yield from log_from(client, name, last.cursor, stream, over)

    def show(number: int, name: str) -> None:
        prefix = "" if len(found) == 1 else click.style(f"{name:<{width}} | ", fg=PALETTE[number % len(PALETTE)])
        for entry in entries(name):
            with lock:
                if as_json:
                    click.echo(json.dumps({"service": name, **entry}))
                else:
                    click.echo(prefix + entry["text"], nl=len(found) > 1 or not entry.get("partial"))

    def follow_one(number: int, name: str) -> None:
        try:
            show(number, name)
        except Exception as error:  # the first is raised again where it can be dealt with
            troubles.append(error)
            over.set()
            client.close()  # ends the others

    try:
        if not follow:
            for number, name in enumerate(found):
                show(number, name)
            return
        threads = [threading.Thread(target=follow_one, args=pair, daemon=True) for pair in enumerate(found)]
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
