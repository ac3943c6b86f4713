"""`holdfast start`, `stop`, `restart`, `signal`, `reload`: ask, wait until it is so, say what came of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .target import Duration, json_option, names_argument, show_json, state_and_reason, target

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.client import Client

GOOD = {"done", "unchanged", "gone", "asked"}


def _verb(verb: str, help_text: str) -> click.Command:
    @click.command(name=verb, help=help_text, short_help=help_text.partition(",")[0].partition(";")[0] + ".")
    @names_argument(required=True)
    @click.option("--wait/--no-wait", default=True, help="Return when it is so (the default), or at once.")
    @click.option("--timeout", type=Duration(), help="How long to wait, such as 30s; then exit code 1.")
    @json_option
    @target
    def command(client: Client, names: tuple[str, ...], wait: bool, timeout: float | None, as_json: bool) -> None:
        ask: Callable[..., list[dict[str, Any]]] = getattr(client, verb)
        _show(ask(*names, wait=wait, timeout=timeout), as_json)

    return command


def _show(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        show_json(results)
    else:
        width = max((len(r["name"]) for r in results), default=0)
        for r in results:
            good = r["outcome"] in GOOD
            outcome = click.style(r["outcome"].replace("_", " "), fg="green" if good else "red")
            state = state_and_reason(r["service"]["state"] if r["service"] else "", r["message"])
            click.echo(f"{r['name']:<{width}}  {outcome}  {state}")
    sys.exit(0 if all(r["outcome"] in GOOD for r in results) else 1)


start = _verb("start", "Start services, with what they require; return when they are ready.")
stop = _verb("stop", "Stop services, and first what requires them; return when nothing of their trees is left.")
restart = _verb("restart", "Stop services and start them again, with what requires them.")


@click.command(name="signal", short_help="Send a signal to services.")
@click.argument("signal_", metavar="SIGNAL")
@names_argument(required=True)
@click.option(
    "--scope",
    type=click.Choice(["main", "group", "tree"]),
    default="main",
    show_default=True,
    help="The main process, its process group, or every process of the tree.",
)
@json_option
@target
def signal(client: Client, signal_: str, names: tuple[str, ...], scope: str, as_json: bool) -> None:
    """Send SIGNAL (HUP, USR1, 12 ...) to services."""
    _show(client.signal(*names, signal=signal_, scope=scope), as_json)


@click.command(short_help="Run the reload commands of services.")
@names_argument(required=True)
@json_option
@target
def reload(client: Client, names: tuple[str, ...], as_json: bool) -> None:
    """Run the `reload_command` of services; return when it is done, and they are ready again."""
    _show(client.reload(*names), as_json)
