"""`holdfast init`: a first configuration."""

from __future__ import annotations

import os

import click


@click.command(short_help="Write a first, commented holdfast.toml.")
@click.argument("file", default="holdfast.toml", type=click.Path())
def init(file: str) -> None:
    """Write a commented configuration to FILE (./holdfast.toml). Never overwrites."""
    from holdfast.config.starter import STARTER

    try:
        # O_EXCL: the file is ours, or it is left alone.
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise click.ClickException(f"{file} is there already, and is left as it is") from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None
    with open(fd, "w", encoding="utf-8") as out:
        out.write(STARTER)
    click.echo(f"Wrote {file}. Next: `holdfast check`, then `holdfast up`.")
