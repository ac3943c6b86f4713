"""`holdfast up`: read the config, make the place ready, become the anchor."""

from __future__ import annotations

import os
import sys

import click

BAD_CONFIG = 78


@click.command()
@click.option("-c", "config_path", metavar="FILE", help="The configuration (default: ./holdfast.toml, or upward).")
@click.option("--run-dir", metavar="DIR", envvar="HOLDFAST_RUN_DIR", help="Use this run directory.")
@click.option("--detach", is_flag=True, help="Go to the background once everything is up.")
def up(config_path: str | None, run_dir: str | None, detach: bool) -> None:
    """Start the supervisor, and with it the services of a holdfast.toml.

    In the foreground until it is told to stop (Ctrl-C, TERM, `holdfast down`).
    """
    import msgspec

    from holdfast.config.load import ConfigError, find, load
    from holdfast.daemon import launch, place

    from .run import _environment

    config_path = config_path or find()
    if config_path is None:
        said = "no holdfast.toml here or above; name one with -c, or write one with `holdfast init`"
        click.echo(f"holdfast up: {said}", err=True)
        sys.exit(BAD_CONFIG)
    try:
        config = load(config_path)
    except ConfigError as error:
        for problem in error.errors:
            click.echo(str(problem), err=True)
        sys.exit(BAD_CONFIG)
    if run_dir is not None:
        supervisor = msgspec.structs.replace(config.supervisor, run_dir=os.path.abspath(run_dir))
        config = msgspec.structs.replace(config, supervisor=supervisor)
    try:
        log_fd = place.open_log(config.supervisor.log_dir) if detach else -1
        ours = place.take(config)
    except place.Refused as error:
        click.echo(f"holdfast up: {error}", err=True)
        sys.exit(1)
    command = launch.supervisor_command(ours.run_dir)
    environment = _environment()
    if not detach:
        try:
            launch.become_anchor(ours, config.path, command, environment)
        except OSError as error:
            click.echo(f"holdfast up: cannot start the anchor {launch.KEEPER}: {error.strerror}", err=True)
            sys.exit(1)
    done = launch.detach(ours, config.path, command, environment, log_fd)
    log = os.path.join(config.supervisor.log_dir, place.LOG)
    if done.status is None:
        click.echo(f"holdfast is up with {len(config.services)} services of {config.path}")
        click.echo(f"  anchor: pid {done.pid}; run directory: {ours.run_dir}; log: {log}")
        sys.exit(0)
    click.echo(f"{done.said}holdfast up: the supervisor did not come up; what it said is also in {log}", err=True)
    sys.exit(done.status)
