"""Where every `holdfast` command begins.  Looks at one word before it imports anything."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code, or does not return (`run` becomes the keeper)."""
    if len(argv) > 1 and argv[1] == "run":
        from .run import main as run

        return run(argv[2:])
    from .commands import cli

    cli.main(args=argv[1:], prog_name="holdfast", standalone_mode=True)
    return 0
