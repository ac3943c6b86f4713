"""From a service's spec to the request that its keeper gets."""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Mapping

from holdfast.config.env_file import read_env_file
from holdfast.config.model import Service
from holdfast.process.options import DEVNULL, Plan, make_plan

from .sockets import Given

# What the supervisor got for itself and a service must not take for its own.
PRIVATE = ("NOTIFY_", "LISTEN_", "HOLDFAST_")
NOTHING = Given()
WATCHDOG = ("WATCHDOG_USEC", "WATCHDOG_PID")


class Surroundings:
    """What services inherit from the supervisor: taken once, before it changes anything of its own."""

    def __init__(self, environ: Mapping[str, str], run_dir: str) -> None:
        self.environ = {
            key: value for key, value in environ.items() if not key.startswith(PRIVATE) and key not in WATCHDOG
        }
        self.notify_address = os.path.join(run_dir, "notify")
        self.run_dir = os.path.realpath(run_dir)  # however it is named: the next supervisor's is the same
        self.nofile = resource.getrlimit(resource.RLIMIT_NOFILE)

    def raise_descriptor_limit(self) -> None:
        """RLIMIT_NOFILE up to the hard limit for the supervisor alone; services get the original one."""
        _, hard = self.nofile
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def marks(name: str, incarnation: int, around: Surroundings) -> dict[str, str]:
    """What tells the processes of one incarnation from all others on the machine, in their environment."""
    return {
        "HOLDFAST_SERVICE": name,
        "HOLDFAST_INCARNATION": str(incarnation),
        "HOLDFAST_SUPERVISOR": around.run_dir,
    }


def make_service_plan(spec: Service, incarnation: int, around: Surroundings, given: Given = NOTHING) -> Plan:
    """The checked request.  ValueError, OSError: a user that has gone, a value that the kernel does not take, an
    env_file that is not there."""
    env = dict(around.environ)
    user = spec.user
    group = spec.group
    groups = None
    if user is not None:
        entry = pwd.getpwnam(user) if isinstance(user, str) else _by_number(user)
        if entry is not None:
            env.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name, SHELL=entry.pw_shell)
            if group is None:
                group = entry.pw_gid
            groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        elif group is None:
            groups = []
    elif group is not None and os.geteuid() == 0:
        groups = []  # not root's supplementary groups with another group
    for path in spec.env_file:
        env.update(read_env_file(path))
    env.update(spec.env)
    env.update(marks(spec.name, incarnation, around))
    if spec.type == "notify" or spec.fd_store_max:
        env["NOTIFY_SOCKET"] = around.notify_address
    if given.fds:  # sd_listen_fds(3); the number is written into its place where it is known: in the process
        env.update(LISTEN_FDS=str(len(given.fds)), LISTEN_FDNAMES=":".join(given.names), LISTEN_PID="0" * 10)
    limits: dict[int | str, int | tuple[int, int]] = {"nofile": around.nofile}
    limits.update(spec.rlimits)
    return make_plan(
        spec.command[0] if spec.shell else spec.command,
        shell=spec.shell,
        cwd=spec.cwd,
        env=env,
        stdin=DEVNULL,
        stdout=DEVNULL,  # the keeper puts the pipes of its log in their place
        stderr=DEVNULL,
        new_session=True,
        umask=spec.umask,
        user=user,
        group=group,
        extra_groups=groups,
        nice=spec.nice,
        rlimits=limits,
        on_owner_loss=spec.on_owner_loss,
        stop_signal=spec.stop_signal,
        stop_scope=spec.stop_scope,
        grace=spec.grace,
        listen_fds=given.fds,
    )


def _by_number(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None
