"""`pipeline`: commands side by side, each reading what the one before it writes, from start to empty trees.

Between two commands is a pipe of the kernel and nothing of ours: that is the backpressure, and when a reader ends its
writer gets SIGPIPE.  Each command is a tree of its own, with a keeper.
"""

from __future__ import annotations

import os
from time import monotonic

from .errors import CalledProcessError, TimeoutExpired
from .options import PIPE
from .pump import Pump
from .run import decode, prepare
from .spawn import spawn_into

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import IO, Any, Self, Unpack

    from .descriptor import Descriptor
    from .handle import Process
    from .keeper import Keeper
    from .options import Command, SpawnOptions
    from .status import ExitStatus, Seconds, StopReport

SIGPIPE = 13
COMMANDS_MAX = 250  # each is a step of recursion where all are waited for


class CompletedPipeline:
    """What `pipeline` returns: `args`, the commands; `statuses`, their ExitStatuses; `stdout`, `stderr` as from `run`.

    `reports` has for each command the StopReport when something of its tree was left and had to be stopped, else None.
    """

    def __init__(
        self,
        args: Sequence[Command],
        statuses: Sequence[ExitStatus],
        stdout: Any,
        stderr: Any,
        reports: Sequence[StopReport | None],
    ) -> None:
        self.args = tuple(args)
        self.statuses = tuple(statuses)
        self.stdout = stdout
        self.stderr = stderr
        self.reports = tuple(reports)

    @property
    def _failed(self) -> int | None:
        """The last one that failed.  Ended by SIGPIPE has not: whoever read from it had read enough."""
        for i in reversed(range(len(self.statuses))):
            status = self.statuses[i]
            if not status.ok and not (status.signal == SIGPIPE and i < len(self.statuses) - 1):
                return i
        return None

    @property
    def returncode(self) -> int:
        """0 when no command has failed, else that of the last one that has.

        A command before the last that SIGPIPE has ended has not failed: what read from it had read enough.
        """
        failed = self._failed
        return 0 if failed is None else self.statuses[failed].returncode

    def check_returncode(self) -> None:
        """CalledProcessError, of the last command that has failed, unless `returncode` is 0."""
        failed = self._failed
        if failed is not None:
            status = self.statuses[failed]
            raise CalledProcessError(status.returncode, self.args[failed], self.stdout, self.stderr, status)

    def __repr__(self) -> str:
        codes = [status.returncode for status in self.statuses]
        return f"CompletedPipeline(args={list(self.args)!r}, returncodes={codes!r})"


def pipeline(
    commands: Iterable[Command],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: Seconds | None = None,
    check: bool = False,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[SpawnOptions],
) -> CompletedPipeline:
    """Run commands side by side, the output of each the input of the next, and return how all of them ended.

    As `run` with `commands` (250 at most) for a command: `input` and `stdin` are the first one's, `stdout` is the last
    one's, `stderr` all of them share; with `stderr=STDOUT` each one's goes where its output goes.  Other options are
    `spawn`'s, for every command alike.  It ends when all commands have ended; what one has left of its tree is
    stopped as soon as it has ended, so that nothing keeps the next from the end of its input.  `timeout` (seconds)
    limits the whole: at the limit all trees are stopped at once, and TimeoutExpired has the output so far, with
    `statuses` and `reports` of all.  `check` raises CalledProcessError if one has failed (what that is:
    `CompletedPipeline.returncode`).

    SpawnError: one could not be started; those before it are stopped.  KeeperLost, ValueError, TypeError, and any
    exception from outside (KeyboardInterrupt): all are stopped.  Any thread.
    """
    args = list(commands)
    if isinstance(commands, (str, bytes)) or not 0 < len(args) <= COMMANDS_MAX:
        raise ValueError(f"a pipeline is a list of 1 to {COMMANDS_MAX} commands")
    for option in ("address", "forking"):
        if options.get(option):
            raise ValueError(f"{option} is for spawn: a pipeline ends with its commands")
    as_text = bool(text or encoding or errors)
    input, limit = prepare(input, capture_output, timeout, as_text, encoding, errors, options)
    with _Line() as line:
        line.start(args, options)
        files: Any = line  # a pump moves the bytes of anything that has the three
        pump = Pump(files, input)
        timed_out = line.run(pump, limit)
        pump.drain()

        def output(which: int, file: object) -> Any:
            if file is None:
                return None
            data = pump.output(which)
            return decode(data, encoding, errors or ("replace" if timed_out else None)) if as_text else data

        stdout, stderr = output(1, line.stdout), output(2, line.stderr)
        statuses = [stage.process.status for stage in line.stages]
        reports = [stage.report for stage in line.stages]
    if timed_out:
        raise TimeoutExpired(args, timeout or 0.0, stdout, stderr, statuses[-1], reports[-1], statuses, reports)
    result = CompletedPipeline(args, [status for status in statuses if status], stdout, stderr, reports)
    if check:
        result.check_returncode()
    return result


class _Stage:
    """One command: it runs, what it leaves is stopped, it is over."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.report: StopReport | None = None
        self.over = False
        self.limit: float | None = None  # of its stop, on the monotonic clock
        self._stop_id = 0
        self._how = (process._stop_signal, process._stop_scope, process._grace)

    @property
    def voices(self) -> tuple[Keeper | Descriptor, ...]:
        # Stopped, its main may have ended: readable for ever, and no news.
        return self.process._tree.voices if self.limit is None else self.process._tree.voices[:1]

    def begin_stop(self) -> None:
        if self.limit is None and not self.over:
            tree = self.process._tree
            self._stop_id = tree.begin_stop(*self._how)
            self.limit = monotonic() + self.process._grace + tree.stop_margin

    def step(self) -> bool:
        """Look, and do what is to be done; whether there was anything."""
        tree = self.process._tree
        if self.limit is None:
            if not tree.wait_exit(0.0):
                return False
            if tree.empty:
                self.over = True
            else:
                self.begin_stop()
            return True
        tree.advance()
        if not tree.stopped(self._stop_id) and monotonic() < self.limit:
            return False
        self.report = tree.finish_stop(self._stop_id, *self._how)
        self.process._gave_up = not self.report.empty
        self.over = True
        return True


class _Line:
    """The commands, and the files at the two ends, which a pump takes for those of one process."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.stages: list[_Stage] = []  # when all have been started
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None

    def start(self, args: list[Command], options: SpawnOptions) -> None:
        last_stdout = options.get("stdout")
        stderr = -1
        try:
            if options.get("stderr") == PIPE:
                reader, stderr = os.pipe()
                self.stderr = os.fdopen(reader, "rb")
                options["stderr"] = stderr
            for i, command in enumerate(args):
                options["stdout"] = PIPE if i < len(args) - 1 else last_stdout
                process = spawn_into(self.processes, command, options)
                if i == 0:
                    self.stdin = process.stdin
                else:
                    before = self.processes[-2].stdout
                    assert before is not None
                    before.close()  # the reader's alone: when that ends, its writer shall know
                options["stdin"] = process.stdout
            self.stdout = self.processes[-1].stdout
            self.stages = [_Stage(process) for process in self.processes]
        finally:
            if stderr >= 0:
                os.close(stderr)

    def run(self, pump: Pump, timeout: Seconds | None) -> bool:
        """Move bytes until every command is over; whether the time limit was reached."""
        deadline = None if timeout is None else monotonic() + timeout
        timed_out = False
        while left := [stage for stage in self.stages if not stage.over]:
            limits = [limit for limit in (deadline, *(stage.limit for stage in left)) if limit is not None]
            voices = [voice for stage in left for voice in stage.voices]
            pump.until(lambda: any(stage.step() for stage in left), voices, min(limits, default=None))
            if deadline is not None and monotonic() >= deadline:
                deadline = None
                if any(stage.process.poll() is None for stage in left):
                    timed_out = True
                    for stage in left:
                        stage.begin_stop()
        return timed_out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            for process in self.processes:  # all first, so that their graces run side by side
                if not process._tree.empty:
                    process._begin_stop()
        finally:
            if self.stderr is not None:
                self.stderr.close()
            _close(self.processes)


def _close(processes: list[Process]) -> None:
    if processes:
        try:
            processes[0].close()
        finally:
            _close(processes[1:])
