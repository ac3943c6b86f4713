"""`run`: one command from start to empty tree, bounded in every respect."""

from __future__ import annotations

from time import monotonic

from .errors import CalledProcessError, TimeoutExpired
from .options import PIPE, limit
from .pump import Pump
from .spawn import spawn_into
from .status import ExitStatus, StopReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Unpack

    from .handle import Process
    from .options import Command, SpawnOptions
    from .status import Seconds


class CompletedProcess:
    """What `run` returns: `args`, `returncode`, `stdout`, `stderr` as in subprocess (None where not captured).

    `status` is the ExitStatus.  `report` is the StopReport when something of the tree was left and had
    to be stopped, else None.
    """

    def __init__(
        self, args: Command, status: ExitStatus, stdout: Any, stderr: Any, report: StopReport | None
    ) -> None:
        self.args = args
        self.returncode = status.returncode
        self.stdout = stdout
        self.stderr = stderr
        self.status = status
        self.report = report

    def check_returncode(self) -> None:
        """CalledProcessError unless the command ended with code 0."""
        if self.returncode:
            raise CalledProcessError(self.returncode, self.args, self.stdout, self.stderr, self.status)

    def __repr__(self) -> str:
        return f"CompletedProcess(args={self.args!r}, returncode={self.returncode!r})"


def run(
    args: Command,
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: Seconds | None = None,
    check: bool = False,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[SpawnOptions],
) -> CompletedProcess:
    """Run a command to its end and return how it ended, with its output if asked for.

    When the command has ended, what is left of its tree is stopped: so when `run` returns, nothing
    runs on, and no grandchild that holds a pipe can make it hang.  `timeout` (seconds) limits the
    command itself: at the limit the tree is stopped (`stop_signal`, `grace`, KILL: at most grace + 5 s
    more) and TimeoutExpired carries the output so far.  `check` raises CalledProcessError.  `input` is
    bytes, or a string with `text`; text is decoded with `encoding` (default: the locale's) and
    universal newlines.  Other options are those of `spawn`.  SpawnError, KeeperLost, ValueError,
    TypeError.  An exception from outside (KeyboardInterrupt) stops the tree too.  Any thread.
    """
    return run_with(spawn_into, args, input, capture_output, timeout, check, text, encoding, errors, options)


def run_with(
    spawner: Any,
    args: Command,
    input: Any,
    capture_output: bool,
    timeout: Seconds | None,
    check: bool,
    text: bool,
    encoding: str | None,
    errors: str | None,
    options: Any,
) -> CompletedProcess:
    """`run` over any `spawn_into` (the module's or a runner's)."""
    if options.get("forking"):
        raise ValueError("forking is for spawn: a daemon has no end that run could wait for")
    as_text = bool(text or encoding or errors)
    input, time_limit = prepare(input, capture_output, timeout, as_text, encoding, errors, options)
    held: list[Process] = []
    try:
        process = spawner(held, args, options)
        pump = Pump(process, input) if process.stdin or process.stdout or process.stderr else None
        if pump:
            report, timed_out = _run_with_pipes(process, pump, time_limit)
        else:
            report, timed_out = _run_plain(process, time_limit)

        def output(which: int, file: object) -> Any:
            if pump is None or file is None:
                return None
            data = pump.output(which)
            # Cut off by the limit, the output may end inside a character: no second error for that.
            return decode(data, encoding, errors or ("replace" if timed_out else None)) if as_text else data

        stdout, stderr = output(1, process.stdout), output(2, process.stderr)
        status = process.status
        if timed_out:
            raise TimeoutExpired(args, timeout or 0.0, stdout, stderr, status, report)
        assert status is not None
        result = CompletedProcess(args, status, stdout, stderr, report)
    finally:
        for process in held:
            process.close()
    if check:
        result.check_returncode()
    return result


def prepare(
    input: Any,
    capture_output: bool,
    timeout: Seconds | None,
    as_text: bool,
    encoding: str | None,
    errors: str | None,
    options: Any,
) -> tuple[bytes | None, Seconds | None]:
    """The input as bytes and the time limit, checked; `options` get the files that follow from the rest."""
    if input is not None:
        if options.get("stdin") is not None:
            raise ValueError("stdin and input cannot both be given")
        options["stdin"] = PIPE
        if isinstance(input, str):
            if not as_text:
                raise TypeError("input is a string: give text=True, or bytes")
            input = input.encode(encoding or _locale_encoding(), errors or "strict")
        memoryview(input)  # TypeError: before anything is started
    if capture_output:
        if options.get("stdout") is not None or options.get("stderr") is not None:
            raise ValueError("stdout and stderr cannot be given with capture_output")
        options["stdout"] = options["stderr"] = PIPE
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must not be negative: {timeout!r}")
    return input, limit(timeout)


def capture(
    args: Command,
    *,
    input: Any = None,
    timeout: Seconds | None = None,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[SpawnOptions],
) -> tuple[Any, Any, ExitStatus]:
    """Run a command to its end and return its output, its error output and how it ended.

    A `run` that captures, and is `out, err, status = capture(...)`; how it ended raises nothing.  With `stderr=STDOUT`
    both come as the first, and the second is None.  TimeoutExpired, SpawnError, KeeperLost, ValueError, TypeError.
    Any thread.
    """
    files: SpawnOptions = {"stdout": PIPE, "stderr": PIPE, **options}
    done = run(args, input=input, timeout=timeout, text=text, encoding=encoding, errors=errors, **files)
    return done.stdout, done.stderr, done.status


def _run_plain(process: Process, timeout: Seconds | None) -> tuple[StopReport | None, bool]:
    tree = process._tree
    timed_out = not tree.wait_exit(timeout)
    return (None if tree.empty else process.stop()), timed_out


def _run_with_pipes(process: Process, pump: Pump, timeout: Seconds | None) -> tuple[StopReport | None, bool]:
    """As above, but bytes move all the time: in the grace too, or a full pipe would block the clean-up."""
    tree = process._tree
    deadline = None if timeout is None else monotonic() + timeout
    report = None
    timed_out = not pump.until(lambda: tree.wait_exit(0), tree.voices, deadline)
    if not tree.empty:
        args = (process._stop_signal, process._stop_scope, process._grace)
        stop_id = tree.begin_stop(*args)
        limit = monotonic() + process._grace + tree.stop_margin
        pump.until(lambda: tree.advance() or tree.stopped(stop_id), tree.voices[:1], limit)
        report = tree.finish_stop(stop_id, *args, waited=True)
        process._gave_up = not report.empty
    pump.drain()
    return report, timed_out


def _locale_encoding() -> str:
    import locale

    return locale.getencoding()


def decode(data: bytes, encoding: str | None, errors: str | None) -> str:
    text = data.decode(encoding or _locale_encoding(), errors or "strict")
    return text.replace("\r\n", "\n").replace("\r", "\n")
