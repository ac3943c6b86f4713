"""`holdfast status`: what runs, what does not and why."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .target import columns, counted, duration, fail, json_option, names_argument, show_json, size, target

if TYPE_CHECKING:
    from holdfast.client import Client

DOWN, UNKNOWN = 3, 4
COLOURS = {"running": "green", "exited": None, "backoff": "yellow", "starting": "yellow", "stopping": "yellow",
           "fatal": "red", "stopped": None}  # fmt: skip
HEAD = ["NAME", "STATE", "PID", "UPTIME", "RESTARTS", "CPU", "MEMORY", "HELD BY", "LAST EXIT", ""]


@click.command(short_help="Show the state of services.")
@names_argument()
@json_option
@target
def status(client: Client, names: tuple[str, ...], as_json: bool) -> None:
    """Show the state of services (all, or those that match).

    Ends with 0 when all of them are up (ready, completed, or waiting for their schedule), 3 when one is not, 4 when a
    name is unknown.
    """
    from holdfast.client import ClientError

    try:
        services = client.services(*names)
    except ClientError as error:
        if error.code != "unknown_service":
            raise
        fail(str(error), UNKNOWN)
    if as_json:
        show_json(services)
    else:
        lines = columns([HEAD, *(_row(s) for s in services)], right=frozenset({2, 4}))
        click.echo(click.style(lines[0], bold=True))
        for line in lines[1:]:
            click.echo(line)
        click.echo("\n" + _supervisor(client.supervisor()))
    sys.exit(0 if all(s["ready"] or s.get("next_run") for s in services) else DOWN)


def _row(s: dict[str, Any]) -> list[str]:
    state = s["state"]
    if state == "running" and not s["ready"]:
        state = "running, not ready"
    elif s.get("reloading"):
        state += ", reloading"
    elif state == "exited" and s["ready"]:
        state = "completed"
    elif s.get("next_run"):
        state = "scheduled"
    tree, last = s["tree"], s["last_exit"]
    quiet = s["ready"]
    note = s["status_text"] if quiet else s["reason"]
    if last:  # it has a column of its own
        note = note.removeprefix(last["cause"]).removeprefix("; ")
    note = "; ".join(filter(None, (_health(s.get("health")), _main(s.get("main")), note)))
    if s.get("next_run"):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(s["next_run"]))
        note = f"next run {at} (in {duration(max(0.0, s['next_run'] - time.time()))}); {note}".removesuffix("; ")
    if s["frozen"]:
        note = f"{_stopped(s['frozen'])}; {note}".removesuffix("; ")
    loose = [name for name, each in (s.get("resources") or {}).get("limits", {}).items() if each["held"] == "not held"]
    if loose:
        note += f" [not held: {', '.join(loose)}]"
    log = s["log"]
    if log and (log["lost_bytes"] or log["dropped_bytes"]):
        note += f" [log: {log['lost_bytes']} bytes lost, {log['dropped_bytes']} dropped]"
    return [
        s["name"],
        click.style(state, fg="green" if s["ready"] else COLOURS.get(s["state"])),
        str(s["pid"] or "-"),
        duration(s["uptime_seconds"]),
        str(s["restarts"]),
        f"{tree['cpu_seconds']:.1f}s" if tree else "-",
        size(tree["memory_bytes"]) if tree else "-",
        _held_by(s),
        last["cause"] if last else "-",
        note.strip(),
    ]


def _main(main: dict[str, Any] | None) -> str:
    """What is not plain about which process is main."""
    if main and main["refused"]:
        return str(main["refused"])
    return "main: the oldest of several, none of which stands out" if main and main["rule"] == "together" else ""


def _health(health: dict[str, Any] | None) -> str:
    """What somebody should know who looks; "": it is well."""
    if health and health["state"] == "failing":
        return f"unhealthy: {health['text']} ({health['failures']} in a row)"
    if health and health["state"] == "unknown" and health["text"]:
        return f"health: {health['text']}"
    if health and health["failed"]:
        return f"health: {health['failed']} of {health['checks']} checks failed"
    return ""


def _stopped(frozen: list[dict[str, Any]]) -> str:
    """Who does nothing until somebody lets it go on, and how."""
    return f"stopped: {' and '.join(f['what'] for f in frozen)}: kill -CONT {' '.join(str(f['pid']) for f in frozen)}"


def _held_by(s: dict[str, Any]) -> str:
    if s["held_by"] is None or s["on_owner_loss"] == "keep":
        return s["held_by"] or "-"
    return f"{s['held_by']}; on owner loss: {s['on_owner_loss']}"


def _supervisor(s: dict[str, Any]) -> str:
    anchor = f"held by anchor {s['anchor_pid']}" if s["anchor_pid"] else "without an anchor"
    if s["frozen"]:
        anchor += f" ({_stopped(s['frozen'])})"
    state = "" if s["state"] == "running" else f" ({s['state']})"
    return (
        f"supervisor pid {s['pid']}{state}, {anchor}, restarts {s['restarts']}, "
        f"up {duration(s['uptime_seconds'])}, {counted(s['services'])}"
    )
