"""What a `holdfast.toml` says, resolved: the specs that engine and daemon work with.

The structs below, and those of parts.py, are the one table of keys and defaults.  Loader, JSON Schema and
docs/configuration.md are made from it: each field carries an `About`, which names the form of its text (forms.py) and
says what it means.
"""

from __future__ import annotations

import functools
import typing
from typing import Annotated, NamedTuple

import msgspec

from holdfast.process.more import OOM_SCORE_LEAST, OOM_SCORE_MOST

from .parts import (
    BACKLOG,
    COUNT_MAX,
    FD_STORE_MAX,
    NAME_LENGTH_MAX,
    PROBE_KINDS,
    REPLICAS_MAX,
    SECONDS_MAX,
    SERVICE_NAME,
    SOCKET_MODE,
    SOCKETS_MAX,
    About,
    Backoff,
    Health,
    Log,
    OnOwnerLoss,
    Probe,
    Ready,
    Resources,
    Restart,
    RestartOrder,
    Schedule,
    Scope,
    Socket,
    Stdin,
    Type,
)

__all__ = [
    "About",
    "BACKLOG",
    "Backoff",
    "Config",
    "Group",
    "Health",
    "Http",
    "Key",
    "Keys",
    "Log",
    "NAME_LENGTH_MAX",
    "PROBE_KINDS",
    "Probe",
    "Ready",
    "Resources",
    "SERVICE_NAME",
    "SOCKETS_MAX",
    "SOCKET_MODE",
    "Schedule",
    "Service",
    "Socket",
    "StartBudget",
    "Supervisor",
    "decode",
    "encode",
    "keys_of",
]


class Service(msgspec.Struct, frozen=True):
    """One `[service.NAME]`."""

    name: str
    command: Annotated[
        tuple[str, ...],
        About("command", "What is run: a list of words, or a string that is split as a shell would, without a shell."),
    ]  # with `shell`: one element, the text for /bin/sh -c
    shell: Annotated[bool, About("boolean", "Give `command`, one string then, to `/bin/sh -c`.")] = False
    pre_start: Annotated[
        tuple[str, ...] | None,
        About(
            "command",
            "Runs to its end before each start of `command`, in the same surroundings. Only code 0 lets the start go "
            "on; else, or when it takes longer than 90s, the start has failed.",
            without="nothing",
        ),
    ] = None
    post_stop: Annotated[
        tuple[str, ...] | None,
        About(
            "command",
            "Runs when nothing of `command` or of a failed `pre_start` is left, for at most 90s, with "
            "`HOLDFAST_EXIT_CODE` or `HOLDFAST_EXIT_SIGNAL`. What becomes of it changes nothing else.",
            without="nothing",
        ),
    ] = None
    reload_command: Annotated[
        tuple[str, ...] | None,
        About(
            "command",
            "What `holdfast reload` runs, beside the service and for at most 90s, with `MAINPID` in its environment.",
            without="nothing",
        ),
    ] = None
    cwd: Annotated[str | None, About("path", "Directory it runs in.", without="the directory of the file")] = (
        None  # always set by load()
    )
    env: Annotated[
        dict[str, str],
        About("env", "Environment variables, added to what the supervisor has; `PATH` finds the command, too."),
    ] = {}
    env_file: Annotated[
        tuple[str, ...],
        About("paths", "[Files of variables](#files-of-variables), read at each start; `env` is set over them."),
    ] = ()
    user: Annotated[
        str | int | None, About("user", "User it runs as, by name or number. Only as root.", without="ours")
    ] = None
    group: Annotated[
        str | int | None,
        About("group", "Group it runs as, by name or number. Only as root.", without="that of `user`, else ours"),
    ] = None
    extra_groups: Annotated[
        tuple[str | int, ...] | None,
        About(
            "groups",
            "Supplementary groups, by name or number, instead of those of `user`. Only as root.",
            without="those of `user`, else ours",
        ),
    ] = None
    capabilities: Annotated[
        dict[str, tuple[str, ...]] | None,
        About(
            "capabilities",
            "Names of all [capabilities](identity.md#capabilities) that it and what it starts can have, which they "
            'have as an ordinary user, too: `["net_bind_service"]`. Or the sets: `{ ambient = […], bounding = […] }`.',
            without="ours",
        ),
    ] = None
    no_new_privs: Annotated[
        bool, About("boolean", "Neither it nor what it starts gains rights by a setuid program or a file's.")
    ] = False
    umask: Annotated[int | None, About("umask", "File mode creation mask, in octal digits.", without="ours")] = None
    nice: Annotated[int | None, About("integer", "Niceness; below 0 needs root.", -20, 19, without="ours")] = None
    ioprio: Annotated[
        str | None,
        About(
            "ioprio",
            "I/O priority: `best-effort:0` (first) to `best-effort:7`, `idle`, `none`; `realtime:0` to `realtime:7` "
            "need root.",
            without="ours",
        ),
    ] = None
    oom_score_adj: Annotated[
        int | None,
        About(
            "integer", "How readily the kernel kills it when memory is out; below ours needs root.",
            OOM_SCORE_LEAST, OOM_SCORE_MOST, without="ours",
        ),
    ] = None  # fmt: skip
    cpu_affinity: Annotated[
        tuple[int, ...] | None,
        About("cpus", 'CPUs that it runs on: `[0, 1]`, or `"0-3,5"`. All of them must be there.', without="ours"),
    ] = None
    rlimits: Annotated[
        dict[str, tuple[int, int]],
        About("rlimits", "Resource limits by the names of `ulimit` and `setrlimit(2)`: one value, or `[soft, hard]`."),
    ] = {}  # -1: unlimited
    resources: Annotated[
        Resources | None,
        About("table", "What it may use, all of its processes together; see [resources.md](resources.md)."),
    ] = None
    sockets: Annotated[
        tuple[Socket, ...],
        About("tables", "Sockets that are opened for it and held over its restarts and those of the supervisor."),
    ] = ()
    fd_store_max: Annotated[
        int,
        About(
            "integer",
            "Descriptors that it may leave with the supervisor (`FDSTORE=1` of sd_notify) for its next start.",
            0,
            FD_STORE_MAX,
        ),
    ] = 0
    replicas: Annotated[
        int | None,
        About(
            "integer",
            "So many services of this table, `NAME-1`, `NAME-2` and so on; `{index}` in its strings is the number. "
            "See [Replicas](#replicas).",
            0,
            REPLICAS_MAX,
            without="one, called `NAME`",
        ),
    ] = None  # of a spec always: load() has made one for each
    type: Annotated[
        Type,
        About(
            "choice",
            "When it is ready: `simple` once it runs, or as `ready` says; `notify` when it says `READY=1` "
            "(sd_notify), as with `ready = { notify = true }`; `oneshot` when it has ended with a code of "
            "`success_exit_codes`; `forking` when it has ended with code 0 and left a [daemon](daemons.md), which "
            "is ready as `ready` says, if that is given.",
        ),
    ] = "simple"
    main: Annotated[
        str | None,
        About(
            "process_name",
            "Of a `forking` service: the name of its main process, as `ps` shows it.",
            without="it is [found](daemons.md#the-main-process)",
        ),
    ] = None
    pid_file: Annotated[
        str | None,
        About(
            "path",
            "Of a `forking` service: the file in which it writes the number of its main process. Believed only of a "
            "process of its own.",
            without="none is read",
        ),
    ] = None
    ready: Annotated[
        Ready | None,
        About("table", "What tells that it is ready: one of `notify`, `fd`, `tcp`, `http`, `command`, `log`."),
    ] = None
    health: Annotated[
        Health | None,
        About("table", "What tells, from then on, that it is well; one of the same. Without it that is not asked."),
    ] = None
    watchdog: Annotated[
        float | None,
        About(
            "duration",
            "When it is ready it must say `WATCHDOG=1` (sd_notify) at least this often, else it is stopped, and "
            "`restart` decides. It finds it in `WATCHDOG_USEC`.",
            0.01,
            SECONDS_MAX,
            without="none",
        ),
    ] = None
    schedule: Annotated[
        Schedule,
        About(
            "table",
            "When a `oneshot` runs: a string is a cron expression.",
            without="when it is started",
            short="cron",
        ),
    ] = Schedule()
    restart: Annotated[
        Restart,
        About(
            "choice",
            "Whether it is started again when it ends: `always`, `on-failure` (a code that is no success, a signal, "
            "not ready in time, or unhealthy), `on-abnormal` (all but the code), `unless-stopped` (as `always`, but "
            "one that was stopped by hand stays so over a restart of the supervisor), `never`.",
        ),
    ] = "on-failure"
    restart_order: Annotated[
        RestartOrder,
        About(
            "choice",
            "What `holdfast restart` does: `stop-first`, or `start-first`: the new process is started beside the old "
            "one, which is stopped when the new one is ready, and serves on if that fails.",
        ),
    ] = "stop-first"
    backoff: Annotated[Backoff, About("table", "How long a restart waits.")] = Backoff()
    start_limit: Annotated[
        int,
        About(
            "integer",
            "Consecutive starts that did not live `backoff.reset_after`; then it is `fatal`. 0: no limit.",
            0,
            COUNT_MAX,
        ),
    ] = 10
    success_exit_codes: Annotated[tuple[int, ...], About("codes", "Exit codes that are no failure.", 0, 255)] = (0,)
    requires: Annotated[
        tuple[str, ...],
        About(
            "names", "[Services](#names) that are started with it, are ready before it starts, and stop after it."
        ),
    ] = ()
    after: Annotated[
        tuple[str, ...], About("names", "Services that, if they are started too, start before it and stop after it.")
    ] = ()
    stop_signal: Annotated[int, About("signal", "Signal that asks it to stop, by name.")] = 15
    stop_scope: Annotated[
        Scope,
        About(
            "choice",
            "Who gets `stop_signal`: the `main` process, its `group`, or the whole `tree`. What is left gets it when "
            "main has ended; what is left after `grace` is killed, wherever it is.",
        ),
    ] = "group"
    grace: Annotated[float, About("duration", "Time between `stop_signal` and KILL.", 0, SECONDS_MAX)] = 10.0
    log: Annotated[Log, About("table", "What becomes of its output.")] = Log()
    stdin: Annotated[
        Stdin,
        About(
            "choice",
            "What it reads: `null` (/dev/null), or a `pipe` that `holdfast attach` writes to. With `pty` it is that.",
        ),
    ] = "null"
    pty: Annotated[
        bool,
        About(
            "boolean",
            "Give it a terminal for stdin, stdout and stderr, so that it does not hold its output back; `holdfast "
            "attach` types there. See [terminal.md](terminal.md).",
        ),
    ] = False
    lineage: Annotated[
        bool,
        About(
            "boolean",
            "Follow every process of it by the kernel's proc connector; `holdfast tree` shows how each came to be. See "
            "[lineage.md](lineage.md).",
        ),
    ] = False
    essential: Annotated[
        bool, About("boolean", "When it has ended for good, the supervisor stops all others and ends with its status.")
    ] = False
    on_owner_loss: Annotated[
        OnOwnerLoss,
        About(
            "choice",
            "What becomes of it when the supervisor dies: `keep` it for the next "
            "supervisor, which takes it over; `stop` it, or `kill` it, at once.",
        ),
    ] = "keep"

    @property
    def awaits(self) -> Ready | None:
        """What tells that it is ready; None: it is as soon as it runs (`simple`), or has succeeded (`oneshot`).
        Without a kind: that it has ended and left a daemon (`forking`)."""
        if self.type == "notify" and not (self.ready and self.ready.kind):
            return msgspec.structs.replace(self.ready or Ready(), notify=True)
        if self.type == "forking":
            return self.ready or Ready()  # without a kind: the fork itself
        return self.ready if self.ready and self.ready.kind else None

    @property
    def ready_timeout(self) -> float:
        """Seconds for a start; for `pre_start` and `post_stop`, too."""
        return (self.ready or Ready()).timeout

    @property
    def speaks(self) -> bool:
        """Whether it is given the socket of sd_notify."""
        asked = any(each is not None and each.notify for each in (self.awaits, self.health))
        return asked or self.watchdog is not None or self.fd_store_max > 0


class Group(msgspec.Struct, frozen=True):
    """One `[group.NAME]`."""

    services: Annotated[
        tuple[str, ...],
        About("names", "Its services."),
    ]


class StartBudget(msgspec.Struct, frozen=True):
    """How many restarts all services together may have.  First starts are not counted."""

    at_once: Annotated[int, About("integer", "Restarts that may happen at once.", 1, COUNT_MAX)] = 50
    per_second: Annotated[
        float, About("number", "Restarts per second that are allowed after those.", 0.01, COUNT_MAX)
    ] = 25.0


class Http(msgspec.Struct, frozen=True):
    """The API over TCP, besides the control socket."""

    listen: Annotated[
        str | None,
        About(
            "loopback",
            "Address of this machine and port, such as `127.0.0.1:9001` or `[::1]:9001`; see "
            "[the API](api.md#over-tcp).",
            without="there is none",
        ),
    ] = None
    token_file: Annotated[
        str | None,
        About(
            "token_file",
            "File with the token that clients have to send: at least 32 characters, mode 0600.",
            without="must be given with `listen`",
        ),
    ] = None
    allowed_hosts: Annotated[
        tuple[str, ...],
        About("hosts", "Names, besides those of this machine, that clients may know it by: those of a proxy."),
    ] = ()


class Supervisor(msgspec.Struct, frozen=True):
    """`[supervisor]`.  Directories are absolute."""

    run_dir: Annotated[
        str, About("path", "Sockets and records of what runs.", without="`/run/holdfast`; see [Places](#places)")
    ]
    log_dir: Annotated[
        str, About("path", "The services' output.", without="`/var/log/holdfast`; see [Places](#places)")
    ]
    state_dir: Annotated[
        str, About("path", "What outlives a reboot: the history.", without="`/var/lib/holdfast`; see [Places](#places)")
    ]
    start_budget: Annotated[
        StartBudget, About("table", "Restarts of all services together, so that a storm does not take the machine.")
    ] = StartBudget()
    http: Annotated[Http, About("table", "The API over TCP.")] = Http()


class Config(msgspec.Struct, frozen=True):
    """A whole configuration, checked.  `services` keeps the order of the files."""

    path: str  # absolute
    supervisor: Supervisor
    services: dict[str, Service]
    groups: dict[str, tuple[str, ...]] = {}  # names by group; the replicas of a service are one of its name
    files: tuple[str, ...] = ()  # all that was read, absolute, `path` first
    run_dir_given: bool = False  # run_dir is not the file's: `up --run-dir`, HOLDFAST_RUN_DIR


def encode(config: Config) -> bytes:
    """The config as JSON, for accepted.json.  Any thread."""
    return msgspec.json.encode(config)


def decode(data: bytes) -> Config:
    """What `encode` made; keys that were added since have their defaults.  ValueError: it is something else."""
    try:
        return msgspec.json.decode(data, type=Config)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not an accepted configuration: {error}") from None


class Key(NamedTuple):
    """One key of the text: the field it fills, and how."""

    field: str
    about: About
    type: object
    default: object  # msgspec.NODEFAULT where the key must be given


Keys = dict[str, "Key | Keys"]  # a dict: a table of the text that is no struct of its own


@functools.cache
def keys_of(struct: type[msgspec.Struct]) -> Keys:
    """The keys of a table, in the order of the struct, nested as the text nests them."""
    hints = typing.get_type_hints(struct, include_extras=True)
    result: Keys = {}
    for field in msgspec.structs.fields(struct):
        about = next((each for each in getattr(hints[field.name], "__metadata__", ()) if isinstance(each, About)), None)
        if about is None:
            continue
        *tables, last = (about.key or field.name).split(".")
        place = result
        for table in tables:
            inner = place.setdefault(table, {})
            assert isinstance(inner, dict)
            place = inner
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        plain = hints[field.name].__origin__
        if about.form == "table":  # one that may be missing
            plain = next(each for each in (typing.get_args(plain) or (plain,)) if each is not type(None))
        place[last] = Key(field.name, about, plain, default)
    return result
