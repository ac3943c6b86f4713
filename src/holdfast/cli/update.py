"""`holdfast update`: the supervisor reads its file again, and does what that changes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .act import GOOD
from .target import BAD_CONFIG, Duration, columns, counted, fail, json_option, show_json, target

if TYPE_CHECKING:
    from holdfast.client import Client


@click.command(short_help="Do what has changed in the file.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--rollback", is_flag=True, help="Put services back that do not come up with their new definition.")
@click.option("--timeout", type=Duration(), help="How long to wait, such as 30s; then exit code 1. The update goes on.")
@json_option
@target
def update(client: Client, dry_run: bool, rollback: bool, timeout: float | None, as_json: bool) -> None:
    """Let the supervisor read its file again and do what has changed; return when all of that is up, or has failed.

    A service is touched only when it has changed, or what it requires. A file with mistakes changes nothing (exit code
    78). Exit code 1: something has failed, or was put back.
    """
    from holdfast.client import ClientError

    try:
        done = client.update(dry_run=dry_run, rollback=rollback, timeout=timeout)
    except ClientError as error:
        if error.code != "bad_config":
            raise
        fail(str(error), BAD_CONFIG)
    if as_json:
        show_json(done)
    else:
        _show(done)
    sys.exit(0 if all(each["outcome"] in (*GOOD, "") for each in done["changes"]) else 1)


def _show(done: dict[str, Any]) -> None:
    rest = f"{counted(done['unchanged'])} unchanged"
    if not done["changes"]:
        click.echo(f"nothing has changed in {done['config']}: {rest}")
        return
    rows = []
    for each in done["changes"]:
        what = ": ".join(filter(None, (each["service"], ", ".join(each["keys"]))))
        what = f"{each['change']} {what} ({each['effect']})"
        outcome = each["outcome"].replace("_", " ")
        rows.append([what, outcome and click.style(outcome, fg="green" if outcome in GOOD else "red"), each["message"]])
    click.echo("\n".join(columns(rows)))
    click.echo(rest + (": nothing was done" if done["dry_run"] else ""))
