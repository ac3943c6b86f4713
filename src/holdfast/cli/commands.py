"""The click side of the command line: everything but `run`.  A command's module is imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys

import click

import holdfast


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"holdfast {holdfast.__version__}")
        ctx.exit(0)


# Each command and the module that has it, under the same name.
COMMANDS = {
    "up": "up",
    "down": "down",
    "update": "update",
    "upgrade": "upgrade",
    "status": "status",
    "tree": "tree",
    "start": "act",
    "stop": "act",
    "restart": "act",
    "signal": "act",
    "reload": "act",
    "attach": "attach",
    "logs": "watch",
    "events": "watch",
    "history": "history",
    "check": "check",
    "schema": "schema",
    "init": "init",
    "doctor": "doctor",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["run", *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f".{COMMANDS[cmd_name]}", __package__)
        found: click.Command = getattr(module, cmd_name)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Hold on to processes: by file descriptor, never by number."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(args: tuple[str, ...]) -> None:
    """Run a command: bounded, contained, reported."""
    from .run import main  # reached as `holdfast -h run` and the like; `holdfast run` never comes here

    sys.exit(main(list(args)))
