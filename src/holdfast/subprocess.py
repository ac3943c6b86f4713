"""The standard library's `subprocess` over keepers: `import holdfast.subprocess as subprocess`.

The same names, arguments and exceptions.  `Popen` is `holdfast.Popen`; the functions use it in a `with`, so that when
they return nothing is left of what they have started: a process that it put into the background is stopped.  Names
that are not here are the standard library's own.
"""

import subprocess as _standard
from subprocess import DEVNULL, PIPE, STDOUT, CalledProcessError, CompletedProcess, SubprocessError, TimeoutExpired
from typing import Any as _Any

from .process.popen import Popen

# The standard library's __all__ on this system.  Whatever this module needs itself has a name that begins with "_".
__all__ = (
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Popen",
    "SubprocessError",
    "TimeoutExpired",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "run",
)


def __getattr__(name: str) -> _Any:
    return getattr(_standard, name)


def run(
    *popenargs: _Any,
    input: _Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **kwargs: _Any,
) -> CompletedProcess[_Any]:
    """Run a command to its end.  TimeoutExpired at `timeout` seconds, CalledProcessError by `check`.  Any thread."""
    if input is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input cannot both be given")
        kwargs["stdin"] = PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr cannot be given with capture_output")
        kwargs["stdout"] = kwargs["stderr"] = PIPE
    with Popen(*popenargs, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException as error:
            process.kill()
            if isinstance(error, TimeoutExpired):
                process.wait()
            raise
        result = CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        result.check_returncode()
    return result


def call(*popenargs: _Any, timeout: float | None = None, **kwargs: _Any) -> int:
    """Run a command to its end and return its return code.  TimeoutExpired.  Any thread."""
    with Popen(*popenargs, **kwargs) as process:
        try:
            return process.wait(timeout)
        except BaseException:
            process.kill()
            raise


def check_call(*popenargs: _Any, **kwargs: _Any) -> int:
    """Run a command to its end and return 0.  CalledProcessError, TimeoutExpired.  Any thread."""
    code = call(*popenargs, **kwargs)
    if code:
        raise CalledProcessError(code, kwargs["args"] if "args" in kwargs else popenargs[0])
    return 0


def check_output(*popenargs: _Any, timeout: float | None = None, **kwargs: _Any) -> _Any:
    """Run a command to its end and return its output.  CalledProcessError, TimeoutExpired.  Any thread."""
    for name in ("stdout", "check"):
        if name in kwargs:
            raise ValueError(f"{name} argument not allowed, it will be overridden.")
    if "input" in kwargs and kwargs["input"] is None:
        # Here None has always been an empty input, not the absence of one.
        as_text = any(kwargs.get(name) for name in ("text", "universal_newlines", "encoding", "errors"))
        kwargs["input"] = "" if as_text else b""
    return run(*popenargs, stdout=PIPE, timeout=timeout, check=True, **kwargs).stdout


def getstatusoutput(cmd: _Any, *, encoding: str | None = None, errors: str | None = None) -> tuple[int, str]:
    """Run a shell command; its return code, and its output with stderr but without the last newline.  Any thread."""
    done = run(cmd, shell=True, text=True, stdout=PIPE, stderr=STDOUT, encoding=encoding, errors=errors)
    return done.returncode, done.stdout.removesuffix("\n")


def getoutput(cmd: _Any, *, encoding: str | None = None, errors: str | None = None) -> str:
    """The output of a shell command, with stderr but without the last newline.  Any thread."""
    return getstatusoutput(cmd, encoding=encoding, errors=errors)[1]
