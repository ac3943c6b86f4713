"""`holdfast check`: what is wrong with a configuration, or what would run."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from .target import counted

if TYPE_CHECKING:
    from holdfast.config.model import Config

BAD_CONFIG = 78  # as in sysexits.h


@click.command(short_help="Check a configuration.")
@click.option(
    "-c", "--config", "path", metavar="FILE", help="The file; else ./holdfast.toml, upward, or the default one."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def check(path: str | None, as_json: bool) -> None:
    """Check a configuration, and show what would run, in the order of its start.

    Warnings, on standard error, are of what is missing only now: an env_file, a limit that cannot be had here.

    Exit code 0: it can be used. 78: it cannot; every mistake is on a line of its own, with file and line.
    """
    from holdfast.config.errors import printable
    from holdfast.config.load import ConfigError, load

    found = path
    try:
        found = find_file(path)
        config = load(found)
    except ConfigError as error:
        if as_json:
            problems = [each._asdict() for each in error.errors]
            click.echo(json.dumps({"file": found, "valid": False, "errors": problems}, indent=2))
        else:
            click.echo("\n".join(map(str, error.errors)), err=True)
        sys.exit(BAD_CONFIG)
    warnings = _warnings(config)
    if as_json:
        click.echo(json.dumps({**_document(found, config), "warnings": warnings}, indent=2))
    else:
        _table(found, config)
        click.echo("".join(f"warning: {printable(each)}\n" for each in warnings), err=True, nl=False)


def find_file(path: str | None) -> str:
    """The file that a command means; ConfigError when there is none."""
    from holdfast.config.errors import ConfigError, Problem
    from holdfast.config.places import FILE, find_config

    found = find_config(path, os.environ)
    if found is None:
        missing = f"there is no {FILE} here, above, or in the default place"
        raise ConfigError([Problem(FILE, 0, "", "", missing, "`holdfast init` writes one")])
    if path is None and found.startswith(os.path.join(os.getcwd(), "")):
        return os.path.relpath(found)  # what was found here is shown as it would be typed
    return found


def _document(file: str, config: Config) -> dict[str, object]:
    """For programs.  Without the values of `env`, which are nobody's business."""
    import msgspec

    from holdfast.config.graph import start_order

    services = []
    for name in start_order(config.services):
        service: dict[str, object] = msgspec.to_builtins(config.services[name])
        service["env"] = sorted(config.services[name].env)
        services.append(service)
    supervisor = msgspec.to_builtins(config.supervisor)
    return {
        "file": file, "valid": True, "errors": [], "files": config.files, "supervisor": supervisor,
        "services": services, "groups": config.groups,
    }  # fmt: skip


def _warnings(config: Config) -> list[str]:
    """What is no mistake of the file and may be one all the same, as things are now."""
    from holdfast.config.env_file import EnvFileError, read_env_file

    found = [f"{name}:* names no service (replicas = 0)" for name, names in config.groups.items() if not names]
    wrong: dict[str, str] = {}
    for spec in config.services.values():
        for path in spec.env_file:
            if path not in wrong:
                try:
                    read_env_file(path)
                    wrong[path] = ""
                except EnvFileError as error:
                    wrong[path] = str(error)
            if wrong[path]:
                found.append(f"service {spec.name} would not start now: {wrong[path]}")
    return found + [f"{each} (as things are here)" for each in cannot_be_had(config)]


def cannot_be_had(config: Config) -> list[str]:
    """Limits that this machine would not give a supervisor that is started here, as we are."""
    if all(spec.resources is None for spec in config.services.values()):
        return []
    from holdfast.daemon.cgroups import find, refused

    return refused(config, find(config.supervisor.run_dir, lambda: {os.getpid()}, trial=True))


def _table(file: str, config: Config) -> None:
    import shlex

    from holdfast.config.graph import start_order

    rows = [("SERVICE", "TYPE", "RESTART", "REQUIRES", "COMMAND")]
    for name in start_order(config.services):
        spec = config.services[name]
        command = spec.command[0] if spec.shell else shlex.join(spec.command)
        rows.append((name, spec.type, spec.restart, ", ".join(spec.requires) or "-", " ".join(command.split())))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        *cells, command = row
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo(f"{line}  {command if len(command) <= 60 else command[:59] + '…'}")
    beside = [os.path.join(os.path.dirname(file), os.path.relpath(path, os.path.dirname(config.path)))
              for path in config.files[1:]]  # fmt: skip
    click.echo(f"\n{', '.join([file, *beside])}: {counted(len(rows) - 1)}, no mistakes")
