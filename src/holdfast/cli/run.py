"""`holdfast run`: parse the options by hand, then become the keeper.

Imports next to nothing: what it costs comes on top of every command that is run through it.
"""

from __future__ import annotations

import os
import sys

from holdfast.config.units import milliseconds

USAGE = """\
Usage: holdfast run [options] -- command [argument ...]

Run a command: bounded, contained, reported.  When it has ended, what is left of
its process tree is stopped: the signal, then after the grace KILL, until the
tree is empty.

Options:
  --timeout DURATION   stop the tree when the command runs longer (exit 124)
  --grace DURATION     time between the stop signal and KILL (default 10s)
  --signal NAME        the stop signal (default TERM)
  --die-with-parent    stop the tree when the caller ends, however it ends
  --report             one line on stderr about how it ended (always printed
                       when the time limit was hit or something could not be
                       killed)
  --report-json FILE   the whole report as JSON: status, resources, who was
                       signalled
  --verbose            say on stderr what is being done
  --help               this text

Durations are written with a unit: 500ms, 10s, 5m, 1h.
Signals that holdfast receives are passed on to the command.  Exit code: the
command's; 128+n when it was ended by signal n; 124 timed out; 125 holdfast
failed; 126 cannot be run; 127 not found.
"""


class UsageError(Exception):
    pass


def _options(args: list[str]) -> tuple[list[str], list[str]]:
    """The keeper's arguments and the command."""
    import _signal  # type: ignore[import-not-found]

    given = {"grace_ms": "10000", "signal": "15"}
    rest = list(args)
    while rest and rest[0] != "--" and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in ("--timeout", "--grace", "--signal", "--report-json"):
            if not equals:
                if not rest:
                    raise UsageError(f"{option} needs a value")
                value = rest.pop(0)
            if option == "--signal":
                name = value.upper().removeprefix("SIG")
                number = int(value) if value.isascii() and value.isdigit() else getattr(_signal, "SIG" + name, None)
                if not isinstance(number, int) or not 1 <= number <= 64 or name.startswith("_"):
                    raise UsageError(f"--signal: {value!r} is not a signal (a name such as TERM, or a number)")
                given["signal"] = str(int(number))
            elif option == "--report-json":
                if not value:
                    raise UsageError("--report-json needs a file name")
                given["json"] = value
            else:
                try:
                    ms = milliseconds(value)
                except ValueError as error:
                    raise UsageError(f"{option}: {error}") from None
                if option == "--timeout" and ms == 0:
                    raise UsageError("--timeout: must be longer than 0; leave it out for no limit")
                given["timeout_ms" if option == "--timeout" else "grace_ms"] = str(ms)
        elif option in ("--report", "--verbose", "--die-with-parent") and not equals:
            if option == "--die-with-parent":
                parent = os.getppid()
                if parent == 0:
                    raise UsageError("--die-with-parent: the caller is outside this pid namespace, out of sight")
                given["parent"] = str(parent)
            else:
                given[option[2:]] = "1"
        else:
            raise UsageError(f"unknown option {option}")
    if rest and rest[0] == "--":
        rest.pop(0)
    if not rest:
        raise UsageError("no command given")
    return [f"{key}={value}" for key, value in given.items()], rest


class _Environment:
    """What execve is given: a mapping in form, but names may come twice and the order is kept."""

    def __init__(self, entries: list[bytes]) -> None:
        self._pairs = [(name, value) for name, equals, value in (e.partition(b"=") for e in entries) if equals and name]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, name: bytes) -> bytes:
        return dict(self._pairs)[name]

    def keys(self) -> list[bytes]:
        return [name for name, _ in self._pairs]

    def values(self) -> list[bytes]:
        return [value for _, value in self._pairs]


def original_environment() -> _Environment:
    """As it was when we were started: Python adds LC_CTYPE in the C locale, the command shall not see it."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return _Environment(file.read().split(b"\0"))
    except OSError:
        return _Environment([name + b"=" + value for name, value in os.environb.items()])


def main(args: list[str]) -> int:
    # A Ctrl-C from here on ends us as it would end the command: no traceback.
    import _signal

    if _signal.getsignal(_signal.SIGINT) is not _signal.SIG_IGN:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if args and args[0] in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    try:
        options, command = _options(args)
    except UsageError as error:
        print(f"holdfast run: {error}\nTry 'holdfast run --help'.", file=sys.stderr)
        return 125
    from holdfast.process import _native

    keeper = os.path.join(os.path.dirname(_native.__file__), "holdfast-keeper")
    try:
        os.execve(keeper, ["holdfast-keeper", "run", *options, "--", *command], original_environment())  # type: ignore[arg-type]
    except OSError as error:
        hint = f"; mend it with: chmod +x {keeper}" if error.errno == 13 else ""
        print(f"holdfast run: cannot start the keeper {keeper}: {error.strerror}{hint}", file=sys.stderr)
        return 125
    except ValueError as error:  # a NUL in an argument cannot come from a command line, but from Python code
        print(f"holdfast run: {error}", file=sys.stderr)
        return 125

