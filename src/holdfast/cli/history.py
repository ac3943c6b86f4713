"""`holdfast history`: every incarnation there was, why it was started and how it ended."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from .target import REFUSED, columns, duration, fail, json_option, names_argument, show_json, target

if TYPE_CHECKING:
    from holdfast.client import Client
    from holdfast.config.model import Config

OWN = "holdfast"  # what the supervisor's own lives are shown as, and asked for by
LIMIT_MAX = 10**9  # more than any history keeps
HEAD = ["SERVICE", "STARTED", "LIVED", "END", "WHY"]


@click.command(short_help="Show what ran, why it was started, how it ended.")
@names_argument()
@click.option(
    "--limit", type=click.IntRange(0, LIMIT_MAX), default=100, show_default=True, help="How many, the newest ones."
)
@json_option
@target
def history(client: Client, names: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Show the incarnations of services (all, and the supervisor's own; or those that match, past services too), oldest
    first.  It works without a supervisor, too."""
    from holdfast.client import NoSupervisor

    if OWN in names:
        names += ("",)
    alone = False
    try:
        rows = client.history(*names, limit=limit)
    except NoSupervisor:
        alone = True
        rows = _read_alone(client.run_dir, names, limit)
    if as_json:
        show_json(rows)
    elif not rows:
        click.echo(f"holdfast: there is no history{' of these' * bool(names)} for {client.run_dir}", err=True)
    else:
        lines = columns([HEAD, *(_row(row, alone) for row in rows)])
        click.echo(click.style(lines[0], bold=True))
        click.echo("\n".join(lines[1:]))


def _read_alone(run_dir: str, names: tuple[str, ...], limit: int) -> list[dict[str, Any]]:
    """What the file says, while nobody writes it."""
    import msgspec

    from holdfast.config.places import default_state_dir
    from holdfast.daemon.history_file import path_of, read
    from holdfast.daemon.names import without_groups

    config = _last_config(run_dir)
    state_dir = config.supervisor.state_dir if config else default_state_dir(os.environ)
    try:
        patterns = without_groups(names, config.groups if config else {})
        return [msgspec.to_builtins(row) for row in read(path_of(state_dir, run_dir), patterns, limit)]
    except (OSError, ValueError) as error:
        fail(str(error), REFUSED)
        raise


def _last_config(run_dir: str) -> Config | None:
    """As the last supervisor had it; after a reboot, what the file says."""
    from holdfast.config.load import load
    from holdfast.config.model import decode
    from holdfast.config.places import find_config

    try:
        with open(os.path.join(run_dir, "accepted.json"), "rb") as file:
            return decode(file.read())
    except (OSError, ValueError):
        path = find_config(click.get_current_context().params["config"], os.environ)
        return None if path is None else load(path)


def _row(row: dict[str, Any], alone: bool) -> list[str]:
    who = f"{row['service']}@{row['incarnation']}" if row["service"] else OWN
    started, ended = row["started_at"], row["ended_at"]
    stamp = "-" if started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))
    until = ended if alone or row["cause"] is not None else time.time()
    lived = None if started is None or until is None else max(0.0, until - started)
    return [who, stamp, duration(lived), _end(row, alone), row["why"]]


def _end(row: dict[str, Any], alone: bool) -> str:
    """How it ended, who had asked for that, and what did not go as it should."""
    if row["cause"] is None:
        if alone:  # it may run on; nobody is there to say
            return "no end known"
        return "runs" if not row["asked"] else f"stops: {row['asked']}"
    parts = [row["cause"]]
    if row["asked"]:
        parts.append(row["asked"])
    stop = row["stop"] or {}
    if stop.get("survivors"):
        parts.append("outlived KILL: " + ", ".join(stop["survivors"]))
    elif stop.get("killed"):
        parts.append(f"{stop['killed']} killed after the grace")
    if row["log_lost_bytes"] or row["log_dropped_bytes"]:
        parts.append(f"log: {row['log_lost_bytes']} bytes lost, {row['log_dropped_bytes']} dropped")
    return "; ".join(parts)
