"""What the commands that talk to a supervisor share: which one, and what its refusals mean for the exit code."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    ParamType = click.ParamType[float]
else:
    ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

REFUSED, NO_SUPERVISOR, BAD_CONFIG = 1, 69, 78


def target(function: F) -> F:
    """Options -c and --run-dir; the command gets the client as its first argument, and errors become exit codes."""

    @click.option("-c", "--config", metavar="FILE", help="The configuration file that names the run directory.")
    @click.option("--run-dir", metavar="DIR", help="The supervisor's run directory.")
    @functools.wraps(function)
    def command(*args: Any, config: str | None, run_dir: str | None, **kwargs: Any) -> Any:
        from holdfast.client import Client, ClientError, NoSupervisor
        from holdfast.config.errors import ConfigError

        try:
            with Client(run_dir=run_dir, config=config) as client:
                return function(client, *args, **kwargs)
        except ConfigError as error:
            fail("\n".join(str(problem) for problem in error.errors), BAD_CONFIG)
        except NoSupervisor as error:
            fail(str(error), NO_SUPERVISOR)
        except ClientError as error:
            fail(str(error), REFUSED)

    return command  # type: ignore[return-value]


class Duration(ParamType):
    """`500ms`, `10s`, `5m`, `1h` as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from holdfast.config.units import milliseconds

        try:
            return milliseconds(value) / 1000
        except ValueError as error:
            self.fail(str(error), param, ctx)


def fail(text: str, status: int) -> None:
    """Say why on standard error and end with this status."""
    click.echo(f"holdfast: {text}", err=True)
    sys.exit(status)


def names_argument(required: bool = False) -> Callable[[F], F]:
    """NAMES: services, globs, `group:glob`, `name@incarnation`; completed from the running supervisor."""
    metavar = "NAME..." if required else "[NAME]..."
    return click.argument("names", nargs=-1, required=required, metavar=metavar, shell_complete=complete_names)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def show_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def complete_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from holdfast.client import Client, ClientError

    try:
        with Client(run_dir=ctx.params.get("run_dir"), config=ctx.params.get("config"), timeout=1.0) as client:
            services = client.services()
    except (ClientError, OSError):
        return []
    if "@" in incomplete:
        names = [f"{s['name']}@{s['incarnation']}" for s in services]
    else:
        names = [s["name"] for s in services]
    return [name for name in names if name.startswith(incomplete)]


def duration(seconds: float | None) -> str:
    """`3m 12s`: two units at most; `-` for none."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for size, unit, smaller, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller}{below}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"


def size(number: float) -> str:
    """`12 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def counted(services: int) -> str:
    """`1 service`, `2 services`."""
    return f"{services} service" + ("" if services == 1 else "s")


def state_and_reason(state: str, reason: str) -> str:
    """`running`, `fatal: could not start`, and `stopped by hand` rather than `stopped: stopped by hand`."""
    if not reason or reason == state or reason.startswith(f"{state} "):
        return reason or state
    return f"{state}: {reason}"


def columns(rows: list[list[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Rows of equal length as lines, in columns; the last column is as long as it is."""
    widths = [max(len(click.unstyle(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            fill = " " * (widths[i] - len(click.unstyle(cell)))
            cells.append(fill + cell if i in right else cell + fill)
        lines.append("  ".join(cells).rstrip())
    return lines
