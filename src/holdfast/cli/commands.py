"""The click side of the command line: everything but `run`."""

from __future__ import annotations

import json
import os
import sys

import click

import holdfast

from .check import check
from .init import init
from .schema import schema
from .up import up


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"holdfast {holdfast.__version__}")
        ctx.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print the version."
)
def cli() -> None:
    """Hold on to processes: by file descriptor, never by number."""


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(args: tuple[str, ...]) -> None:
    """Run a command: bounded, contained, reported."""
    from .run import main  # reached as `holdfast -h run` and the like; `holdfast run` never comes here

    sys.exit(main(list(args)))


for command in (check, init, schema, up):
    cli.add_command(command)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(as_json: bool) -> None:
    """Show what this kernel and this installation offer, by trying it."""
    from holdfast.process.probe import examine, means

    findings = examine()
    uses = means(findings)
    healthy = all(f.available for f in findings if f.name in ("keeper", "pidfd", "P_PIDFD", "subreaper"))
    if as_json:
        document = {
            "version": holdfast.__version__,
            "kernel": os.uname().release,
            "machine": os.uname().machine,
            "healthy": healthy,
            "findings": [f.as_dict() for f in findings],
            "means": uses,
        }
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(f"holdfast {holdfast.__version__} on Linux {os.uname().release} ({os.uname().machine})\n")
        for f in findings:
            mark = click.style("yes", fg="green") if f.available else click.style("no ", fg="red")
            click.echo(f"  {mark}  {f.name:<20} {f.detail}")
            if not f.available:
                click.echo(f"       {'':<20} without it: {f.without}")
        click.echo("\nIn use:")
        for what, how in uses.items():
            click.echo(f"  {what:<14} {how}")
        click.echo("\nEverything needed is there." if healthy else "\nSomething needed is missing: see above.")
    sys.exit(0 if healthy else 1)
