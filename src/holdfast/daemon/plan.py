"""From a service's spec to the request that its keeper gets."""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.config.env_file import read_env_file
from holdfast.config.model import Service
from holdfast.engine.effects import Step
from holdfast.engine.events import Exit
from holdfast.process.options import DEVNULL, Plan, make_plan

from .show import signal_name
from .sockets import NOTHING, Given

# What the supervisor got for itself and a service must not take for its own.
PRIVATE = ("NOTIFY_", "LISTEN_", "HOLDFAST_")
WATCHDOG = ("WATCHDOG_USEC", "WATCHDOG_PID")


class Surroundings:
    """What services inherit from the supervisor: taken once, before it changes anything of its own.  `own` is what of
    its environment was meant for the supervisor alone."""

    def __init__(self, environ: Mapping[str, str], run_dir: str) -> None:
        self.own = {key: value for key, value in environ.items() if key.startswith(PRIVATE) or key in WATCHDOG}
        self.environ = {key: value for key, value in environ.items() if key not in self.own}
        self.notify_address = os.path.join(run_dir, "notify")
        self.run_dir = os.path.realpath(run_dir)  # however it is named: the next supervisor's is the same
        self.nofile = resource.getrlimit(resource.RLIMIT_NOFILE)

    def raise_descriptor_limit(self) -> None:
        """RLIMIT_NOFILE up to the hard limit for the supervisor alone; services get the original one."""
        _, hard = self.nofile
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def command_of(spec: Service, step: Step) -> tuple[str, ...]:
    return {"pre_start": spec.pre_start, "main": spec.command, "post_stop": spec.post_stop}[step] or ()


def marks(name: str, incarnation: int, around: Surroundings) -> dict[str, str]:
    """What tells the processes of one incarnation from all others on the machine, in their environment."""
    return {
        "HOLDFAST_SERVICE": name,
        "HOLDFAST_INCARNATION": str(incarnation),
        "HOLDFAST_SUPERVISOR": around.run_dir,
    }


def exit_variables(ended: Exit | None) -> dict[str, str]:
    """What post_stop learns of the end that it comes after."""
    if ended is not None and ended.signal is not None:
        return {"HOLDFAST_EXIT_SIGNAL": signal_name(ended.signal)}
    return {"HOLDFAST_EXIT_CODE": str(ended.code)} if ended is not None and ended.code is not None else {}


def make_service_plan(
    spec: Service, incarnation: int, around: Surroundings, step: Step = "main", ended: Exit | None = None,
    given: Given = NOTHING, cgroups: Sequence[str] = (),
) -> Plan:  # fmt: skip
    """The checked request.  `ended`: for post_stop, how main has; `given`: for main, what it gets to listen on;
    `cgroups`: where it is started.

    ValueError, OSError: a user that has gone, a value that the kernel does not take, an
    env_file that is not there."""
    options = around_service(spec, around)
    options["env"].update(marks(spec.name, incarnation, around))
    fds: list[int] = []
    if step == "main":
        if spec.speaks:
            options["env"]["NOTIFY_SOCKET"] = around.notify_address
        if spec.watchdog is not None:
            options["env"]["WATCHDOG_USEC"] = str(round(spec.watchdog * 1e6))
        if given.fds:  # sd_listen_fds(3); the number is written into its place where it is known: in the process
            listening = {"LISTEN_FDS": str(len(given.fds)), "LISTEN_FDNAMES": ":".join(given.names)}
            options["env"].update(listening, LISTEN_PID="0" * 10)
        fds = [each.fd for each in (spec.awaits, spec.health) if each and each.fd is not None]
    elif step == "post_stop":
        options["env"].update(exit_variables(ended))
    command = command_of(spec, step)
    return make_plan(
        command[0] if spec.shell else command,
        shell=spec.shell,
        stdout=DEVNULL,  # the keeper puts the pipes of its log in their place
        stderr=DEVNULL,
        pass_fds=fds,
        listen_fds=given.fds,
        cgroups=cgroups,
        on_owner_loss=spec.on_owner_loss,
        forking=spec.type == "forking" and step == "main",
        main=spec.main if step == "main" else None,
        stop_signal=spec.stop_signal,
        stop_scope=spec.stop_scope,
        grace=spec.grace,
        **options,
    )


def around_service(spec: Service, around: Surroundings) -> dict[str, Any]:
    """What a service's program and commands beside it have in common, as options of a spawn.  OSError."""
    env = dict(around.environ)
    user = spec.user
    group = spec.group
    groups: list[str | int] | None = None
    if user is not None:
        entry = pwd.getpwnam(user) if isinstance(user, str) else _by_number(user)
        if entry is not None:
            env.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name, SHELL=entry.pw_shell)
            if group is None:
                group = entry.pw_gid
            groups = [*os.getgrouplist(entry.pw_name, entry.pw_gid)]
        elif group is None:
            groups = []
    elif group is not None and os.geteuid() == 0:
        groups = []  # not root's supplementary groups with another group
    if spec.extra_groups is not None:
        groups = list(spec.extra_groups)
    if spec.pty:
        env.setdefault("TERM", "xterm")  # what most terminals that somebody sits at understand
    for path in spec.env_file:
        env.update(read_env_file(path))
    env.update(spec.env)
    limits: dict[int | str, int | tuple[int, int]] = {"nofile": around.nofile}
    limits.update(spec.rlimits)
    return {
        "cwd": spec.cwd,
        "env": env,
        "stdin": DEVNULL,
        "new_session": True,
        "umask": spec.umask,
        "user": user,
        "group": group,
        "extra_groups": groups,
        "capabilities": spec.capabilities,
        "no_new_privs": spec.no_new_privs,
        "nice": spec.nice,
        "ioprio": spec.ioprio,
        "oom_score_adj": spec.oom_score_adj,
        "cpu_affinity": spec.cpu_affinity,
        "rlimits": limits,
    }


def _by_number(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None
