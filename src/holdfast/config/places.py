"""Where things lie: the file, the run, state and log directories.  Imports nothing heavy: `status` passes here."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "holdfast.toml"
CONTROL = "control"  # the control socket, in the run directory
ATTACH = "attach"  # the one for terminals


def control_path(run_dir: str) -> str:
    """The control socket of the supervisor of that run directory."""
    return os.path.join(run_dir, CONTROL)


def find(start: str = ".") -> str | None:
    """The nearest holdfast.toml in `start` or above it."""
    here = os.path.abspath(start)
    while True:
        path = os.path.join(here, FILE)
        if os.path.isfile(path):
            return path
        above = os.path.dirname(here)
        if above == here:
            return None
        here = above


def find_config(config: str | None, environ: Mapping[str, str], start: str = ".") -> str | None:
    """The file that a command without further words means: `config` itself, ./holdfast.toml upward, the default one."""
    if config is not None:
        return config
    found = find(start)
    if found is None:
        path = os.path.join(_directory("config", environ), FILE)
        found = path if os.path.isfile(path) else None
    return found


# what: (variable of systemd, root's, variable of XDG, its default below $HOME, subdirectory)
_PLACES = {
    "config": ("CONFIGURATION_DIRECTORY", "/etc/holdfast", "XDG_CONFIG_HOME", ".config", ""),
    "run": ("RUNTIME_DIRECTORY", "/run/holdfast", "XDG_RUNTIME_DIR", "", ""),
    "state": ("STATE_DIRECTORY", "/var/lib/holdfast", "XDG_STATE_HOME", ".local/state", ""),
    "log": ("LOGS_DIRECTORY", "/var/log/holdfast", "XDG_STATE_HOME", ".local/state", "log"),
}


def _directory(what: str, environ: Mapping[str, str]) -> str:
    systemd, root, xdg, below_home, subdirectory = _PLACES[what]
    given = environ.get(systemd, "").partition(":")[0]  # a unit may name several
    if given.startswith("/"):
        return given
    if os.geteuid() == 0:
        return root
    base = environ.get(xdg, "")
    if not base.startswith("/"):  # relative ones are to be ignored
        if what == "run":
            # Never a directory that others can write, such as /tmp: the socket commands everything.
            return os.path.join(_directory("state", environ), "run")
        base = os.path.join(environ.get("HOME") or os.path.expanduser("~"), below_home)
    return os.path.join(base, "holdfast", subdirectory).rstrip("/")


def default_run_dir(environ: Mapping[str, str]) -> str:
    """/run/holdfast for root, else below $XDG_RUNTIME_DIR, else below the state directory; systemd's comes first."""
    return _directory("run", environ)


def default_state_dir(environ: Mapping[str, str]) -> str:
    """/var/lib/holdfast for root, else below $XDG_STATE_HOME; systemd's comes first."""
    return _directory("state", environ)


def default_log_dir(environ: Mapping[str, str]) -> str:
    """/var/log/holdfast for root, else below $XDG_STATE_HOME; systemd's comes first."""
    return _directory("log", environ)


def run_dir_for(config: str | None, run_dir: str | None, environ: Mapping[str, str]) -> str:
    """The run directory that a command means, absolute.

    `run_dir` (--run-dir), else what `config` says (-c), else HOLDFAST_RUN_DIR, else what the file says that is found
    (./holdfast.toml upward, or the default one), else the default: what was typed beats what lies around.  Reads no
    more of the file than it needs; ConfigError when it cannot.
    """
    given = run_dir or (None if config else environ.get("HOLDFAST_RUN_DIR"))
    if given:
        return os.path.abspath(given)
    path = find_config(config, environ)
    if path is None:
        return default_run_dir(environ)
    from .files import Untrusted, read

    problem, hint, data = "", "", b""
    try:
        data = read(path)
    except Untrusted as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if b"run_dir" in data:
        import tomllib

        try:
            value = tomllib.loads(data.decode()).get("supervisor", {}).get("run_dir")
            if value is not None:
                from .vars import expand

                return os.path.abspath(os.path.join(os.path.dirname(path), expand(value, environ)))
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            problem, hint = f"run_dir cannot be read from it: {error}", "`holdfast check` says more"
    if problem:
        from .errors import ConfigError, Problem

        raise ConfigError([Problem(path, 0, "", "", problem, hint)])
    return default_run_dir(environ)
