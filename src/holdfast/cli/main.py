"""Where every `holdfast` command begins.  Looks at one word before it imports anything."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code, or does not return (`run` becomes the keeper)."""
    if len(argv) > 1 and argv[1] == "run":
        from .run import main as run

        return run(argv[2:])
    from .commands import cli

    try:
        cli.main(args=argv[1:], prog_name="holdfast", standalone_mode=True)
    except OSError as error:
        return _without_room(error)
    return 0


def _without_room(error: OSError) -> int:
    """The output goes where there is no room for it: one line says so.  Whatever else it is, it is raised."""
    import errno
    import os
    import sys

    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or error.filename is not None:
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python tries the rest once more when it ends
    sys.stderr.write(f"holdfast: cannot write the output: {error.strerror}\n")
    return 1
