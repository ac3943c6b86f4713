"""What can go wrong, as exceptions.

`SpawnError`: nothing was started.  `TimeoutExpired`, `CalledProcessError`: it ran, but not as wished.
`KeeperLost`: the keeper was killed under us, and what it held is no longer proved gone.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    from .status import ExitStatus, Member, StopReport

STAGES = {
    1: "launch",  # starting the keeper
    2: "receive",  # the keeper reading the request
    3: "clone",
    4: "descriptors",
    5: "chdir",
    6: "setsid",
    7: "setpgid",
    8: "nice",
    9: "rlimit",
    10: "setgroups",
    11: "setgid",
    12: "setuid",
    13: "pdeathsig",
    14: "exec",
    15: "cgroup",
    16: "cpu_affinity",
    17: "ioprio",
    18: "oom_score_adj",
    19: "capabilities",
    20: "no_new_privs",
}


class SpawnError(OSError):
    """The process was not started and nothing is left of the attempt.

    An `OSError` with `errno` and `strerror`, and also a FileNotFoundError, PermissionError,
    NotADirectoryError or BlockingIOError where the errno says so; `filename` is the program or directory
    where one is meant.  `stage` names the step that failed, one of the words of `STAGES` ("exec", "chdir", ...);
    "fork": what was to leave a daemon has left none.
    """

    stage: str

    def __new__(cls, errno: int, strerror: str, _stage: str, filename: object = None) -> Self:
        """As OSError does: the errno chooses the class, so that `except FileNotFoundError` works as well."""
        kind = _BY_ERRNO.get(errno, cls) if cls is SpawnError else cls
        args = (errno, strerror) if filename is None else (errno, strerror, filename)
        return OSError.__new__(kind, *args)  # type: ignore[return-value]

    def __init__(self, _errno: int, _strerror: str, stage: str, _filename: object = None) -> None:
        self.stage = stage

    def __str__(self) -> str:
        return f"{super().__str__()} (stage: {self.stage})"

    def __reduce__(self) -> tuple[Any, ...]:
        return SpawnError, (self.errno, self.strerror, self.stage, self.filename)


class _NotFound(SpawnError, FileNotFoundError):
    pass


class _NotPermitted(SpawnError, PermissionError):
    pass


class _NotADirectory(SpawnError, NotADirectoryError):
    pass


class _TryAgain(SpawnError, BlockingIOError):
    pass


_BY_ERRNO: dict[int, type[SpawnError]] = {
    1: _NotPermitted,  # EPERM
    2: _NotFound,  # ENOENT
    11: _TryAgain,  # EAGAIN: the process limit
    13: _NotPermitted,  # EACCES
    20: _NotADirectory,  # ENOTDIR
}
for _kind in _BY_ERRNO.values():
    _kind.__name__ = _kind.__qualname__ = "SpawnError"


class TimeoutExpired(TimeoutError):
    """A time limit was reached.

    From `Process.wait` the process goes on as if nothing had happened.  From `run` the tree has been
    stopped: `report` says how, `status` how the main process ended, and `stdout` and `stderr` hold
    the output so far (`output` is another name for `stdout`, as in subprocess).  From `pipeline` these two are the
    last command's, and `statuses` and `reports` have those of all; else they are empty.
    """

    def __init__(
        self,
        cmd: Any,
        timeout: float,
        output: Any = None,
        stderr: Any = None,
        status: ExitStatus | None = None,
        report: StopReport | None = None,
        statuses: Sequence[ExitStatus | None] = (),
        reports: Sequence[StopReport | None] = (),
    ) -> None:
        super().__init__(cmd, timeout)
        self.cmd = cmd
        self.timeout = timeout
        self.output = output
        self.stderr = stderr
        self.status = status
        self.report = report
        self.statuses = tuple(statuses)
        self.reports = tuple(reports)

    @property
    def stdout(self) -> Any:
        """What was read of stdout; the same as `output`."""
        return self.output

    def __str__(self) -> str:
        return f"Command {self.cmd!r} timed out after {self.timeout:g} seconds"


class CalledProcessError(Exception):
    """`run(check=True)`: the command ended with a code other than 0 or by a signal.

    `returncode`, `cmd`, `output`, `stdout`, `stderr` as in subprocess; `status` says the rest.
    """

    def __init__(
        self, returncode: int, cmd: Any, output: Any = None, stderr: Any = None, status: ExitStatus | None = None
    ) -> None:
        super().__init__(returncode, cmd)
        self.returncode = returncode
        self.cmd = cmd
        self.output = output
        self.stderr = stderr
        self.status = status

    @property
    def stdout(self) -> Any:
        """What was read of stdout; the same as `output`."""
        return self.output

    def __str__(self) -> str:
        how = f"signal {-self.returncode}" if self.returncode < 0 else f"exit code {self.returncode}"
        return f"Command {self.cmd!r} ended with {how}"


class KeeperLost(RuntimeError):
    """The keeper ended without having proved the tree empty: it was killed, or it was frozen past a bound.

    What the owner held by descriptor has been killed (the main process, adopted members that were
    reported, and the process group where the main process led one), except with `on_owner_loss="keep"`.
    `survivors` are the members known to be alive all the same; other descendants are unknown.
    `status` is the main process's exit status where the kernel could still tell it, without rusage.

    From `attach` and `spawn(address=...)` nothing of that is known: `pid` is 0, nothing was killed, and `address`
    is where nobody answers: its keeper was killed, or who started it was before there was one.
    """

    def __init__(
        self, pid: int, survivors: Sequence[Member], status: ExitStatus | None, address: str | None = None
    ) -> None:
        super().__init__(pid, survivors, status, address)
        self.pid = pid
        self.survivors = tuple(survivors)
        self.status = status
        self.address = address

    def __str__(self) -> str:
        if self.address is not None:
            return f"the keeper at {self.address} was lost, or never came to be; what it held is unknown"
        known = ", ".join(f"{m.name or '?'}[{m.pid}]" for m in self.survivors) or "none"
        return f"the keeper of process {self.pid} was lost; known survivors: {known}; other descendants unknown"
