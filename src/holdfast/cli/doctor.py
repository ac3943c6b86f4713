"""`holdfast doctor`: what this kernel and this installation offer."""

from __future__ import annotations

import json
import os
import sys

import click

import holdfast


@click.command(short_help="Show what this kernel offers, by trying it.")
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
