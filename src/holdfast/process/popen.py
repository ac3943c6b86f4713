"""`Popen`: the standard library's class over a keeper, for code that is written for it and cannot change.

Arguments, files and their text modes, and what happens at a Ctrl-C are the standard library's own.  Ours are the
start, the wait, the signals, the pump of `communicate`, and the end of a `with`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import AnyStr

from . import _native
from .direct import DirectTree
from .handle import Process
from .keeper import SIGKILL
from .options import FDS_MAX, limit, make_plan
from .pump import Pump
from .spawn import start
from .tier import tell, why_no_keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Self, TypeVar

    from .status import Seconds

    _T = TypeVar("_T")

_standard: Any = subprocess.Popen


class Popen(subprocess.Popen[AnyStr]):
    """subprocess.Popen with a keeper: private, its exit status cannot be stolen, and contained by a `with`.

    Everything is as in the standard library, except for this.  No `waitpid` and no SIGCHLD of the program sees the
    process, whose parent is the keeper.  A `wait` with a time limit costs no CPU.  At the end of a `with`, when the
    process has ended, what is left of its tree is stopped (TERM, 10 s, KILL), and so it is if we are killed inside.
    Outside a `with` the process outlives us and a dropped object, as there.

    With `preexec_fn` it is a direct child, started by the standard library and with all that this means for
    programs with threads: neither private nor contained.  The same with `close_fds=False` when more than 237
    descriptors would be inherited, and where no keeper can work (docs/notifiers.md).

    SpawnError (an OSError) where the standard library raises an OSError.  KeeperLost from any method that looks at
    the process.  Any thread.
    """

    # Of the standard library, whose own types do not know them.
    text_mode: bool
    _remaining_time: Callable[[float | None], float | None]
    _close_pipe_fds: Callable[..., None]
    _translate_newlines: Callable[..., str]

    # The standard library's constructor may fail, and its destructor look at us, before there is one.
    _process: Process | None = None
    _pump: Pump | None = None

    # ---- the start

    def _execute_child(self, *given: Any) -> None:
        """As the standard library's constructor calls it, with everything checked and the pipes made."""
        (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, _, _, shell, *pipes,
         restore_signals, gid, gids, uid, umask, new_session, process_group) = given  # fmt: skip
        stdin, _, _, stdout, _, stderr = (None if fd == -1 else int(fd) for fd in pipes)  # False is 0 there
        argv, program = _command(args, executable, shell)
        pass_fds = [int(fd) for fd in pass_fds] if close_fds else _inheritable()
        alone = bool(why_no_keeper())
        if alone:
            tell()
        if alone or preexec_fn is not None or len(pass_fds) > FDS_MAX - 3:
            self._start_direct(argv, program, given)
            return
        sys.audit("subprocess.Popen", program, argv, cwd, env)
        for name, number in (("user", uid), ("group", gid)):
            if number is not None and number >= 2**32 - 1:
                raise OverflowError(f"{name} is out of range: {number}")
        plan = make_plan(
            argv, executable=program, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds,
            restore_signals=bool(restore_signals), new_session=bool(new_session),
            process_group=None if process_group < 0 else process_group, umask=None if umask < 0 else umask & 0o777,
            user=uid, group=gid, extra_groups=gids, on_owner_loss="keep",
        )  # fmt: skip
        self._process = start(plan, True, [])
        self.pid = self._process.pid
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _start_direct(self, argv: list[Any], program: Any, given: tuple[Any, ...]) -> None:
        """What only a copy of us can do, the standard library starts; from then on it is a direct child like others."""

        def fork_exec(
            _body: bytes, _fds: Sequence[int], own: Callable[[int], _T], _auto_reap: bool, by_number: bool
        ) -> tuple[int, _T]:
            _standard._execute_child(self, *given)
            if by_number:
                return self.pid, own(self.pid)
            try:
                fd = _native.pidfd_open(self.pid)
            except OSError:  # no descriptor left
                os.kill(self.pid, SIGKILL)
                os.waitpid(self.pid, 0)
                raise
            return self.pid, own(fd)

        plan = make_plan(argv, executable=program, private=False)
        tree = DirectTree(plan, fork_exec)
        self._process = Process(tree, plan)
        tree.started()

    # ---- looking

    def _look(self, timeout: Seconds | None) -> int | None:
        """Wait for the end; the return code, or None at the time limit."""
        if self.returncode is None:
            assert self._process is not None
            tree = self._process._tree
            try:
                if tree.wait_exit(limit(timeout)):
                    assert tree.status is not None
                    self.returncode = tree.status.returncode
                    if tree.empty:  # as a rule: then nothing is left to hold, and a list of ended ones costs nothing
                        self._process.close()
            except ChildProcessError:
                self.returncode = 0  # a direct child's, taken by another wait and forgotten by the kernel: as there
        return self.returncode

    def _internal_poll(self, _deadstate: object = None) -> int | None:
        return self._look(0.0)

    def _wait(self, timeout: Seconds | None) -> int:
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _communicate(self, input: Any, endtime: float | None, orig_timeout: Seconds) -> tuple[Any, Any]:
        pump = self._pump
        if pump is None:
            us: Any = self
            pump = self._pump = Pump(us, self._begin_input(input))
        if not pump.until_ended(limit(self._remaining_time(endtime))):
            raise subprocess.TimeoutExpired(self.args, orig_timeout, pump.output(1) or None, pump.output(2) or None)
        return self._output(1, self.stdout), self._output(2, self.stderr)

    def _begin_input(self, input: Any) -> Any:
        if self.stdin is None:
            return None
        try:
            self.stdin.flush()
            if not input:
                self.stdin.close()
        except BrokenPipeError:
            pass  # it has ended, or wants no input
        if not input:
            return None
        if self.text_mode:
            file: Any = self.stdin
            input = input.encode(file.encoding, file.errors)
        return memoryview(input).cast("B")

    def _output(self, which: int, file: Any) -> Any:
        if file is None:
            return None
        assert self._pump is not None
        file.close()
        data = self._pump.output(which)
        return self._translate_newlines(data, file.encoding, file.errors) if self.text_mode else data

    @property
    def _tree(self) -> Any:
        """For the pump, which moves the bytes of anything that has a tree and three files."""
        assert self._process is not None
        return self._process._tree

    # ---- acting

    def send_signal(self, sig: int) -> None:
        """Send a signal to the process, through its descriptor; nothing happens when it has ended.  PermissionError."""
        if self.poll() is None:
            self._tree.signal(sig, "main")

    def __enter__(self) -> Self:
        self._tree.set_on_owner_loss("stop")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, value, traceback)
        finally:
            if self._process is not None:
                self._process.close()
                self._look(0.0)

    def __del__(self) -> None:
        process = self._process
        if process is None or process._tree.foreign:
            return
        if isinstance(process._tree, DirectTree):
            _standard.__del__(self)  # somebody has to reap it: the next Popen does
            return
        try:
            if self.returncode is None:
                warnings.warn(f"subprocess {self.pid} is still running", ResourceWarning, stacklevel=2, source=self)
        finally:  # a warning may be an error
            if not process._closed:
                process.release()  # its keeper reaps it


def _command(args: Any, executable: Any, shell: bool) -> tuple[list[Any], Any]:
    """The arguments and the program, by the rules of the standard library."""
    if isinstance(args, (str, bytes, os.PathLike)):
        if shell and isinstance(args, os.PathLike):
            raise TypeError("with shell=True the command must be a string or a list, not a path")
        argv: list[Any] = [args]
    else:
        argv = list(args)
    if shell:
        argv = [executable or "/bin/sh", "-c", *argv]
    return argv, argv[0] if executable is None else executable


def _inheritable() -> list[int]:
    """What a child gets that closes nothing: descriptors above 2 without close-on-exec."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            pass  # the listing's own, or closed by another thread
    return found
