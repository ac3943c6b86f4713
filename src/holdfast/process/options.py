"""spawn()'s arguments, checked and turned into the body of a spawn request.

Everything that can be wrong with the arguments is found here, before anything is started.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enums of it: 3.5 ms
import os
from os import PathLike, getpgrp

from . import _native
from .errors import SpawnError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import IO, Any, Literal, TypeAlias, TypedDict

    from .capabilities import Capabilities
    from .status import Seconds

    StrPath: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
    Command: TypeAlias = Sequence[StrPath] | StrPath
    File: TypeAlias = int | IO[Any] | None
    Limit: TypeAlias = int | tuple[int, int]
    OnOwnerLoss: TypeAlias = Literal["stop", "kill", "keep"]
    Scope: TypeAlias = Literal["main", "group", "tree"]

    class SpawnOptions(TypedDict, total=False):
        """The keyword arguments of `spawn`, for those who pass them on."""

        cwd: StrPath | None
        env: Mapping[str, str] | Mapping[bytes, bytes] | None
        stdin: File
        stdout: File
        stderr: File
        pass_fds: Iterable[int]
        shell: bool
        executable: StrPath | None
        new_session: bool
        process_group: int | None
        umask: int | None
        user: int | str | None
        group: int | str | None
        extra_groups: Iterable[int | str] | None
        nice: int | None
        rlimits: Mapping[int | str, Limit] | None
        capabilities: Capabilities | None
        no_new_privs: bool
        ioprio: str | None
        oom_score_adj: int | None
        cpu_affinity: str | Iterable[int] | None
        on_owner_loss: OnOwnerLoss | None
        stop_signal: int | str
        stop_scope: Scope
        grace: Seconds
        address: StrPath | None
        private: bool
        forking: bool
        main: str | None
        ready_timeout: Seconds


PIPE = -1
STDOUT = -2
DEVNULL = -3

GRACE: Seconds = 10.0
READY_TIMEOUT: Seconds = 90.0
PROCESS_NAME_MAX = 15  # bytes that the kernel keeps of the name of a process
LOSS = {"stop": 0, "kill": 1, "keep": 2}
SCOPE = {"main": 0, "group": 1, "tree": 2}
FDS_MAX = 240  # descriptors passed to one process, stdio included

# Bits of the wire (csrc/common/child.h).
NEW_SESSION, SET_PGID, SET_UMASK, SET_UID, SET_GID = 1, 2, 4, 8, 16
SET_GROUPS, SET_NICE, CLOSE_FDS, RESTORE_SIGNALS = 32, 64, 256, 512
LISTEN_PID, FORKING = 2048, 8192
TARGET_CGROUP, TARGET_CGROUP_PROCS = 1 << 30, (1 << 30) + 1


def signal_number(value: int | str) -> int:
    """15, "TERM" or "SIGTERM" as a number.  ValueError, TypeError."""
    if isinstance(value, str):
        name = value.upper()
        number = getattr(_signal, name if name.startswith("SIG") else "SIG" + name, None)
        if number is None and name.isdigit():
            number = int(name)
        if number is None:
            raise ValueError(f"not a signal: {value!r}")
        value = number
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a signal is a name or a number, not {value!r}")
    number = int(value)
    if not 1 <= number <= 64:
        raise ValueError(f"not a signal: {value!r} (1 to 64)")
    return number


def milliseconds(name: str, value: Seconds) -> int:
    """A duration in seconds for the wire.  ValueError, TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value <= 1e9:
        raise ValueError(f"{name} must be between 0 and 1e9 seconds, not {value!r}")
    return round(value * 1000)


def limit(timeout: Seconds | None) -> Seconds | None:
    """A time limit for the clocks below, which end at 292 years: 31 years and more (math.inf) are no limit."""
    return None if timeout is None or timeout > 1e9 else max(0.0, timeout)


def _uid(user: int | str) -> int:
    if isinstance(user, str):
        import pwd

        try:
            return pwd.getpwnam(user).pw_uid
        except KeyError:
            raise ValueError(f"no such user: {user!r}") from None
    return _id("user", user)


def _gid(group: int | str) -> int:
    if isinstance(group, str):
        import grp

        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"no such group: {group!r}") from None
    return _id("group", group)


def _id(what: str, value: int) -> int:
    # 2**32 - 1 means "leave it" to the kernel: never what the caller meant.
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a name or a number, not {value!r}")
    if not 0 <= value < 2**32 - 1:
        raise ValueError(f"{what} is out of range: {value}")
    return value


def _rlimits(limits: Mapping[int | str, Limit]) -> tuple[tuple[int, int, int], ...]:
    import resource

    result = []
    for key, value in limits.items():
        which = key if isinstance(key, int) else getattr(resource, "RLIMIT_" + key.upper(), None)
        if which is None:
            raise ValueError(f"no such limit: {key!r} (names as in ulimit's RLIMIT_*, e.g. 'nofile')")
        soft, hard = value if isinstance(value, tuple) else (value, value)
        if not (-1 <= soft < 2**64 and -1 <= hard < 2**64):
            raise ValueError(f"limit {key!r} must be -1 (none) or between 0 and 2**64 - 1, not {value!r}")
        result.append((which, soft % 2**64, hard % 2**64))  # -1 (RLIM_INFINITY) is all ones
    return tuple(result)


def _pass_fds(fds: Iterable[int]) -> list[int]:
    """Those above 2, once each."""
    extra = list(dict.fromkeys(fds))
    if any(isinstance(fd, bool) or not isinstance(fd, int) or fd < 0 for fd in extra):
        raise ValueError(f"pass_fds must be descriptors: {extra!r}")
    if len(extra) > FDS_MAX - 3:
        raise ValueError(f"at most {FDS_MAX - 3} pass_fds, not {len(extra)}")
    return [fd for fd in extra if fd > 2]


def _process_name(name: str, forking: bool) -> str:
    if not forking:
        raise ValueError("main is for forking=True: of any other program main is what was started")
    if not isinstance(name, str):
        raise TypeError(f"main must be the name of a process, not {name!r}")
    if not 0 < len(os.fsencode(name)) <= PROCESS_NAME_MAX or "\0" in name:
        raise ValueError(f"the name of a process has 1 to {PROCESS_NAME_MAX} bytes: {name!r}")
    return name


class Plan:
    """A checked request: the body, the descriptors that go along, and what the owner keeps.

    `child_files` are closed after the start, `owner_files` (stdin, stdout, stderr) are the owner's
    ends of pipes; `discard` closes both when nothing was started.
    """

    __slots__ = (
        "address",
        "args",
        "body",
        "child_files",
        "cwd",
        "executable",
        "fds",
        "forking",
        "grace",
        "leads_group",
        "on_owner_loss",
        "owner_files",
        "ready_timeout",
        "stop_scope",
        "stop_signal",
    )  # fmt: skip

    address: StrPath | None
    args: Command
    body: bytes
    executable: StrPath
    cwd: StrPath | None
    fds: list[int]
    forking: bool
    grace: Seconds
    leads_group: bool
    on_owner_loss: OnOwnerLoss
    ready_timeout: Seconds
    stop_scope: Scope
    stop_signal: int

    def __init__(self) -> None:
        self.child_files: list[int] = []
        self.owner_files: Sequence[int | None] = ()

    def __del__(self) -> None:
        self.close_child_files()

    def close_child_files(self) -> None:
        # Forgotten first: an exception out of a signal handler must not lead to a second close, of
        # another's descriptor.
        while self.child_files:
            fd = self.child_files[-1]
            del self.child_files[-1]
            os.close(fd)

    def discard(self) -> None:
        self.close_child_files()
        files, self.owner_files = self.owner_files, ()
        for fd in files:
            if fd is not None:
                os.close(fd)


def _stdio(plan: Plan, given: tuple[File, File, File]) -> tuple[list[int], list[int], int]:
    """Sources and targets of 0, 1, 2, and the bits of those that the child shall not have."""
    closed = _native.closed_std()
    if given == (None, None, None) and not closed:
        return [0, 1, 2], [0, 1, 2], 0
    sources: list[int] = []
    targets: list[int] = []
    owner_files: list[int | None]
    inherited_closed, closed = closed, 0
    null = -1
    plan.owner_files = owner_files = [None, None, None]
    for target, file in enumerate(given):
        if file is None:
            if inherited_closed & 1 << target:  # closed in the owner: closed in the child
                closed |= 1 << target
                continue
            source = target
        elif file == PIPE:
            reader, writer = os.pipe()
            source, own = (reader, writer) if target == 0 else (writer, reader)
            plan.child_files.append(source)
            owner_files[target] = own
        elif file == DEVNULL:
            if null < 0:
                # In C from the call into the list: between the two a handler that raises would make us lose it.
                plan.child_files.extend(map(os.open, ["/dev/null"], [os.O_RDWR | os.O_CLOEXEC]))
                null = plan.child_files[-1]
            source = null
        elif file == STDOUT:
            if target != 2:
                raise ValueError("STDOUT is for stderr only")
            if closed & 2:
                closed |= 4
                continue
            source = sources[targets.index(1)]
        elif isinstance(file, int):
            if isinstance(file, bool) or file < 0:
                raise ValueError(f"not a descriptor: {file!r}")
            source = file
        else:
            if not hasattr(file, "fileno"):
                raise TypeError(f"not a descriptor and not a file: {file!r}")
            source = file.fileno()
        sources.append(source)
        targets.append(target)
    return sources, targets, closed


def _open_cgroups(plan: Plan, cgroups: Sequence[str], targets: list[int]) -> None:
    """What says where the process is started, behind all other descriptors."""
    for directory in cgroups:
        is_v2 = os.path.exists(f"{directory}/cgroup.controllers")
        path, flags = (directory, os.O_RDONLY | os.O_DIRECTORY) if is_v2 else (f"{directory}/cgroup.procs", os.O_WRONLY)
        try:
            plan.child_files.extend(map(os.open, [path], [flags | os.O_CLOEXEC]))
        except OSError as error:
            raise SpawnError(error.errno or 0, os.strerror(error.errno or 0), "cgroup") from None
        plan.fds.append(plan.child_files[-1])
        targets.append(TARGET_CGROUP if is_v2 else TARGET_CGROUP_PROCS)


def _argv(args: Command, shell: bool, executable: StrPath | None) -> tuple[list[StrPath], StrPath]:
    if shell:
        if not isinstance(args, (str, bytes)):
            raise TypeError("shell=True takes one string")
        return ["/bin/sh", "-c", args], executable or "/bin/sh"
    if isinstance(args, (str, bytes)):
        raise TypeError(
            "the command must be a list of arguments; a string is split by a shell only with shell=True"
        )
    argv: list[StrPath] = [args] if isinstance(args, PathLike) else list(args)
    if not argv:
        raise ValueError("the command is empty")
    return argv, argv[0] if executable is None else executable


def make_plan(
    args: Command,
    *,
    cwd: StrPath | None = None,
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    pass_fds: Iterable[int] = (),
    shell: bool = False,
    executable: StrPath | None = None,
    new_session: bool = False,
    process_group: int | None = None,
    umask: int | None = None,
    user: int | str | None = None,
    group: int | str | None = None,
    extra_groups: Iterable[int | str] | None = None,
    nice: int | None = None,
    rlimits: Mapping[int | str, Limit] | None = None,
    capabilities: Capabilities | None = None,
    no_new_privs: bool = False,
    ioprio: str | None = None,
    oom_score_adj: int | None = None,
    cpu_affinity: str | Iterable[int] | None = None,
    on_owner_loss: OnOwnerLoss | None = None,
    stop_signal: int | str = 15,
    stop_scope: Scope = "group",
    grace: Seconds = GRACE,
    address: StrPath | None = None,
    private: bool = True,
    forking: bool = False,
    main: str | None = None,
    ready_timeout: Seconds = READY_TIMEOUT,
    listen_fds: Sequence[int] = (),
    cgroups: Sequence[str] = (),
    restore_signals: bool = True,
) -> Plan:
    """Check everything and build the request; see `spawn` for the arguments.  ValueError, TypeError, SpawnError.

    `listen_fds` become the descriptors from 3 on, and LISTEN_PID, for which `env` has a place (any ten digits), the
    number of the process, as sd_listen_fds(3) wants it.  In `cgroups`, directories of either version, it is started.
    `restore_signals=False`: what Python ignores stays ignored."""
    plan = Plan()
    plan.args = args
    argv, plan.executable = _argv(args, shell, executable)
    plan.cwd = cwd
    if env is not None and not hasattr(env, "items"):
        raise TypeError(f"env must be a mapping, not {env!r}")
    options = RESTORE_SIGNALS if restore_signals else 0
    pgid = 0
    if address is not None:
        if not private:
            raise ValueError("address needs a keeper: it cannot be given with private=False")
        if process_group:
            raise ValueError("with address the keeper is in a session of its own, where that process group is not")
        new_session = new_session or process_group is None  # it shall outlive our terminal, too
    plan.address = address
    if new_session:
        if process_group is not None:
            raise ValueError("new_session already makes a process group; process_group cannot be given with it")
        options |= NEW_SESSION
    elif process_group is not None:
        if process_group < 0:
            raise ValueError(f"process_group must be 0 or a group's number, not {process_group}")
        options |= SET_PGID
        pgid = process_group
    elif private:
        # The keeper has a group of its own; the child belongs to ours, as with subprocess.
        # 0 (our group's leader is outside our pid namespace, so it has no number here): a new group.
        options |= SET_PGID
        pgid = getpgrp()
    plan.leads_group = new_session or (bool(options & SET_PGID) and pgid == 0)
    if umask is not None:
        if not 0 <= umask <= 0o777:
            raise ValueError(f"umask must be between 0 and 0o777, not {umask:#o}")
        options |= SET_UMASK
    uid = gid = 0
    groups: tuple[int, ...] = ()
    if user is not None:
        uid = _uid(user)
        options |= SET_UID
    if group is not None:
        gid = _gid(group)
        options |= SET_GID
    if extra_groups is not None:
        groups = tuple(_gid(g) for g in extra_groups)
        options |= SET_GROUPS
    if nice is not None:
        options |= SET_NICE
    limits = _rlimits(rlimits) if rlimits else ()
    more = b""
    identity = capabilities, no_new_privs, ioprio, oom_score_adj, cpu_affinity
    main_name = "" if main is None else _process_name(main, forking)
    if main_name or identity != (None, False, None, None, None):
        from .more import pack_identity  # only those need it who ask for that

        more = pack_identity(*identity, main_name)
    if on_owner_loss is None:
        on_owner_loss = "stop"
    elif not private and on_owner_loss != "kill":
        raise ValueError(f"on_owner_loss={on_owner_loss!r} needs a keeper: with private=False it can only be 'kill'")
    if on_owner_loss not in LOSS:
        raise ValueError(f"on_owner_loss must be 'stop', 'kill' or 'keep', not {on_owner_loss!r}")
    if stop_scope not in SCOPE:
        raise ValueError(f"stop_scope must be 'main', 'group' or 'tree', not {stop_scope!r}")
    if not private:
        options |= CLOSE_FDS
    plan.forking, plan.ready_timeout = forking, ready_timeout
    if forking:
        milliseconds("ready_timeout", ready_timeout)
        if not private:
            raise ValueError("forking needs a keeper: it cannot be given with private=False")
        options |= FORKING
    plan.on_owner_loss = on_owner_loss
    plan.stop_scope = stop_scope
    plan.stop_signal = 15 if stop_signal == 15 else signal_number(stop_signal)
    plan.grace = grace
    grace_ms = milliseconds("grace", grace)
    extra = _pass_fds(pass_fds) if pass_fds else []
    if listen_fds:
        options |= LISTEN_PID
    try:
        sources, targets, closed = _stdio(plan, (stdin, stdout, stderr))
        plan.fds = [*sources, *extra, *listen_fds]
        targets += [*extra, *range(3, 3 + len(listen_fds))]
        if cgroups:
            _open_cgroups(plan, cgroups, targets)
        plan.body = _native.spawn_body(
            argv, env, plan.executable, cwd, options, pgid, umask or 0, uid, gid, nice or 0, groups, limits,
            targets, closed, LOSS[on_owner_loss], plan.stop_signal, SCOPE[stop_scope], grace_ms, more,
        )  # fmt: skip
    except BaseException as error:
        plan.discard()
        if isinstance(error, OverflowError):
            raise ValueError(f"a number is out of range: {error}") from None
        if isinstance(error, SpawnError):
            raise
        if isinstance(error, OSError) and error.errno is not None:  # None: a file object without a descriptor
            raise SpawnError(error.errno, os.strerror(error.errno), "descriptors") from None
        raise
    return plan


make_plan.__qualname__ = "spawn"  # whose options these are: it stands in the error for one that there is not
