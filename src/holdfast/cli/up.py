"""`holdfast up`: read the config, make the place ready, become the anchor."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

import click

from .check import BAD_CONFIG, cannot_be_had, find_file
from .run import original_environment
from .target import counted

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command(short_help="Start the supervisor and its services.")
@click.option(
    "-c", "--config", "path", metavar="FILE", help="The file; else ./holdfast.toml, upward, or the default one."
)
@click.option("--run-dir", metavar="DIR", help="Use this run directory.")
@click.option("--detach", is_flag=True, help="Go to the background, and return when all has started or failed to.")
def up(path: str | None, run_dir: str | None, detach: bool) -> None:
    """Start the supervisor, and with it the services of a holdfast.toml.

    In the foreground until it is told to stop (Ctrl-C, TERM, `holdfast down`).
    """
    import msgspec

    from holdfast.config.load import ConfigError, load
    from holdfast.daemon import launch, place
    from holdfast.daemon.store import Store
    from holdfast.process.keeper import KEEPER

    try:
        config = load(find_file(path))
    except ConfigError as error:
        click.echo("\n".join(map(str, error.errors)), err=True)
        sys.exit(BAD_CONFIG)
    if run_dir is None and path is None:
        run_dir = os.environ.get("HOLDFAST_RUN_DIR")
    if run_dir:
        supervisor = msgspec.structs.replace(config.supervisor, run_dir=os.path.abspath(run_dir))
        config = msgspec.structs.replace(config, supervisor=supervisor, run_dir_given=True)
    try:
        log_dir = config.supervisor.log_dir  # made and checked in both cases: services' logs go there
        log_fd = place.open_log(log_dir) if detach else place.open_directory(log_dir, 0o700)
        ours = place.take(config)
    except place.Refused as error:
        click.echo(f"holdfast up: {error}", err=True)
        sys.exit(1)
    if refused := cannot_be_had(config):
        click.echo("\n".join(f"holdfast up: {each}" for each in refused), err=True)
        sys.exit(1)
    command = launch.supervisor_command(ours.run_dir)
    # In form it is what execve takes; names may come twice in it.
    environment = cast("Mapping[bytes, bytes]", original_environment())
    if not detach:
        try:
            launch.become_anchor(ours, config.path, command, environment)
        except OSError as error:
            click.echo(f"holdfast up: cannot start the anchor {KEEPER}: {error.strerror}", err=True)
            sys.exit(1)
    outdated = Store(ours.run_dir).outdated(config.services)
    done = launch.detach(ours, config.path, command, environment, log_fd)
    log = os.path.join(config.supervisor.log_dir, place.LOG)
    if done.status is None:
        total = len(config.services)
        number = f"{total - done.down} of {counted(total)}" if done.down else counted(total)
        click.echo(f"holdfast is up with {number} of {config.path}")
        for line in done.said.splitlines():
            click.echo(f"  {line}")
        click.echo(f"  anchor: pid {done.pid}; run directory: {ours.run_dir}; log: {log}")
        for name in outdated:
            click.echo(f"  {name} was started with another definition: it is restarted")
        http = config.supervisor.http
        if http.listen:
            click.echo(f"  API over TCP: http://{http.listen}, with the token in {http.token_file}")
        for each in config.services.values():
            if each.on_owner_loss != "keep":
                click.echo(f"  {each.name} ends with the supervisor: on_owner_loss = \"{each.on_owner_loss}\"")
        sys.exit(0)
    click.echo(f"{done.said}holdfast up: the supervisor did not come up; what it said is also in {log}", err=True)
    sys.exit(done.status)
