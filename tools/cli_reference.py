"""Writes the commands of docs/cli.md from the commands; with --check only compares (exit code 1: they differ).

Run it after a change under src/holdfast/cli, with the interpreter that holdfast is installed for.
"""

from __future__ import annotations

import pathlib
import re
import sys

import click

from holdfast.cli import run, status, target
from holdfast.cli.commands import cli

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/cli.md"
EXITS = {
    0: "It was done, or it is so.",
    target.REFUSED: "It was refused, has failed, or was not done in time; what is wrong stands on standard error.",
    2: "No such command, option, or value of one; nothing was done.",
    status.DOWN: "Of `status`: a service is not up.",
    status.UNKNOWN: "Of `status`: no service has this name.",
    target.NO_SUPERVISOR: "There is no supervisor in this run directory.",
    target.BAD_CONFIG: "The configuration has mistakes.",
    130: "Of `logs` and `events`: ended by Ctrl-C.",
}


def prose(text: str) -> str:
    """A docstring's paragraphs, a line each."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def command(name: str, parent: click.Context) -> list[str]:
    if name == "run":  # parsed by hand: click would be half of its time
        return ["### run", f"```text\n{run.USAGE}```"]
    group = parent.command
    assert isinstance(group, click.Group)
    found = group.get_command(parent, name)
    assert found is not None
    context = click.Context(found, info_name=f"holdfast {name}")
    usage = " ".join([context.info_name or "", *found.collect_usage_pieces(context)])
    records = [param.get_help_record(context) for param in found.get_params(context) if "--help" not in param.opts]
    rows = [f"| `{cell(record[0])}` | {cell(record[1])} |" for record in records if record]
    parts = [f"### {name}", f"`{usage}`", prose(found.help or "")]
    return parts + (["\n".join(["| option | meaning |", "|---|---|", *rows])] if rows else [])


def commands() -> str:
    context = click.Context(cli, info_name="holdfast")
    return "\n\n".join(part for name in cli.list_commands(context) for part in command(name, context))


def parts() -> dict[str, str]:
    rows = [f"| {code} | {meaning} |" for code, meaning in EXITS.items()]
    return {"exit codes": "\n".join(["| code | meaning |", "|---|---|", *rows]), "commands": commands()}


def main() -> int:
    page = PAGE.read_text()
    wanted = page
    for name, text in parts().items():
        pattern = rf"(<!-- {name}: made by tools/cli_reference.py -->\n).*?(<!-- end -->)"
        wanted, found = re.subn(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", wanted, flags=re.S)  # noqa: B023
        assert found == 1, name
    if "--check" in sys.argv:
        if page != wanted:
            print("docs/cli.md is not what the command line says: run tools/cli_reference.py")
        return int(page != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
