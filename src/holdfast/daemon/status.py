"""What the API shows: one structure a thing, the same names everywhere.  Each field says what it means: the OpenAPI
document and the reference in docs/api.md are made from it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


def means(text: str) -> Meta:
    return Meta(description=text)


class LastExit(Struct, frozen=True):
    """How a main process ended."""

    code: Annotated[int | None, means("its exit code; null: a signal ended it, or nobody knows")]
    signal: Annotated[str | None, means('the signal that ended it, as "SIGKILL"')]
    cause: Annotated[str, means('in words: "exited with code 1", "killed by SIGKILL", "could not start: …"')]


class TreeStatus(Struct, frozen=True):
    """Everything that a service has started and that lives."""

    processes: Annotated[int, means("how many")]
    cpu_seconds: Annotated[float, means("processor time that these have used")]
    memory_bytes: Annotated[int, means("their resident memory together")]


class LogStatus(Struct, frozen=True):
    """What becomes of a service's output."""

    path: Annotated[str, means("the file that is being written")]
    lost_bytes: Annotated[int, means("that could not be written: the disk was full")]
    dropped_bytes: Annotated[int, means("that would have gone past the cap")]
    error: Annotated[str | None, means("why nothing can be written now")]


class HealthStatus(Struct, frozen=True):
    """What a service's `health`, or its `watchdog`, has found in this incarnation."""

    state: Annotated[str, means("`ok`, `failing`; `unknown`: not asked yet, or it could not be")]
    failures: Annotated[int, means("in a row")]
    text: Annotated[str, means("the last answer")]
    checked_seconds_ago: Annotated[float | None, means("when that came; null: nobody has asked yet")]
    checks: Annotated[int, means("how many answers there were")]
    failed: Annotated[int, means('how many of them were bad: of one that flaps this grows, though it is "ok" now')]


class MainStatus(Struct, frozen=True):
    """Which process is main, of a service that has forked a daemon (docs/daemons.md)."""

    rule: Annotated[
        str,
        means(
            "why it is this one: it has the `name` of `main`, is the `only` one that was left, the oldest in a "
            "`session` of its own, the oldest of several that are main `together`, or was `asked` for (`pid_file`, "
            "`MAINPID`)"
        ),
    ]
    moved: Annotated[int, means("how often it has become another process")]
    refused: Annotated[str, means("what `pid_file` or `MAINPID` says, and why it is not believed")] = ""


class Frozen(Struct, frozen=True):
    """Who is stopped (SIGSTOP, a debugger) and does nothing until `kill -CONT`."""

    what: Annotated[str, means("`keeper`, `main` or `anchor`")]
    pid: int


class ResourceLimit(Struct, frozen=True):
    """One limit of a service."""

    value: Annotated[float, means("as it was asked for: bytes, processors (`150%` is 1.5), a weight, a number")]
    held: Annotated[
        str,
        means(
            "`cgroup v2`, `cgroup v1`, `rlimit data of each process`; `not held`: it is `optional`, or the kernel has "
            "refused a change"
        ),
    ]


class ResourceStatus(Struct, frozen=True):
    """What a service with `resources` may use, and what it does. Of what nobody counts: null."""

    limits: Annotated[dict[str, ResourceLimit], means("by their keys")]
    memory_bytes: Annotated[int | None, means("files that it has read or written, and kernel memory, are in it")]
    memory_peak_bytes: Annotated[int | None, means("the most that it was")]
    cpu_seconds: Annotated[float | None, means("of all processes that it has had")]
    tasks: Annotated[int | None, means("processes and threads")]
    oom_kills: Annotated[int | None, means("processes that the kernel has killed because there was no memory")]
    pressure: Annotated[
        dict[str, float],
        means("percent of the last ten seconds in which something of it has waited for `cpu`, `memory`, `io`"),
    ]


class ServiceStatus(Struct, frozen=True):
    """A service as it is now."""

    name: Annotated[str, means("its name in the configuration")]
    state: Annotated[
        str, means("`stopped`, `starting`, `running`, `backoff`, `stopping`, `exited`, `fatal`")
    ]
    ready: Annotated[bool, means("what requires it may start")]
    pid: Annotated[int | None, means("of the main process, while it lives")]
    incarnation: Annotated[int, means("which start of this service it is; never used again")]
    uptime_seconds: Annotated[float | None, means("since the main process was started")]
    restarts: Annotated[int, means("how often it was started again by itself")]
    last_exit: Annotated[LastExit | None, means("how the main process ended last")]
    tree: Annotated[TreeStatus | None, means("everything it has started")]
    held_by: Annotated[str | None, means('what holds the tree together: "keeper 1234, as subreaper"')]
    reason: Annotated[str, means("why it is in this state")]
    waiting_for: Annotated[list[str], means("names of the services that it waits for")]
    status_text: Annotated[str, means("what it says of itself (`STATUS=` of sd_notify)")]
    on_owner_loss: Annotated[str, means("what happens to it when everybody who supervises is gone")]
    log: Annotated[LogStatus | None, means("what becomes of its output, while it runs")]
    frozen: Annotated[list[Frozen], means("who of it is stopped (SIGSTOP): its `keeper`, its `main` process")] = []
    health: Annotated[HealthStatus | None, means("whether it is well; null: nobody looks")] = None
    step: Annotated[str, means("what its incarnation is: `main`, or the `pre_start` or `post_stop` of it")] = "main"
    reloading: Annotated[
        bool, means("its `reload_command` runs, or it said `RELOADING=1` and not `READY=1` since")
    ] = False
    next_run: Annotated[float | None, means("unix seconds: the next run of one that waits for its schedule")] = None
    main: Annotated[MainStatus | None, means("which process is main; null: the one that was started")] = None
    resources: Annotated[ResourceStatus | None, means("what it may use, and does; null: it has no `resources`")] = None


class SupervisorStatus(Struct, frozen=True):
    """The supervisor itself."""

    pid: int
    state: Annotated[str, means("`adopting`, `running`, `stopping`")]
    anchor_pid: Annotated[int | None, means("who starts it again; null: nobody does")]
    restarts: Annotated[int, means("how often the anchor has started it again")]
    uptime_seconds: float
    version: Annotated[str, means("of holdfast")]
    config: Annotated[str, means("the file that `up` has read")]
    run_dir: str
    log_dir: str
    services: Annotated[int, means("how many")]
    last_event: Annotated[int, means("the `seq` of the newest event")]
    found: Annotated[int, means("services that an earlier supervisor had left when this one started")] = 0
    adopted: Annotated[int, means("of how many of them it is known what has become: taken over, or ended")] = 0
    frozen: Annotated[list[Frozen], means("the `anchor`, when it is stopped (SIGSTOP)")] = []


class Left(Struct, frozen=True):
    """Services that run on with nobody."""

    services: Annotated[int, means("how many")]
    kept: Annotated[
        dict[str, str], means("of these, what `on_owner_loss` says where it is not `keep`: it does not come to that")
    ]


class UpgradeStatus(Struct, frozen=True):
    """From one version to the next."""

    version: str
    next_version: str
    services: Annotated[int, means("how many run")]
    last_event: Annotated[int, means("its `seq`: `upgraded` comes after it")]


class UpdateChange(Struct, frozen=True):
    """One difference between the accepted configuration and the file."""

    service: Annotated[str, means('"" for what is of no service: supervisor.KEY, group.NAME')]
    change: Annotated[str, means("added, removed, changed")]
    effect: Annotated[str, means("starts, stops, restarts; applies: without a new process")]
    keys: Annotated[list[str], means("what differs, in words, without the values of environment variables")]
    outcome: Annotated[
        str,
        means(
            "done, failed, unchanged (it is stopped, and stays so), rolled_back, timed_out, asked (without `wait`); "
            '"" of a dry run'
        ),
    ] = ""
    message: Annotated[str, means("why")] = ""


class UpdateStatus(Struct, frozen=True):
    """What the file changes, and what came of it."""

    config: Annotated[str, means("the file that was read")]
    dry_run: bool
    unchanged: Annotated[int, means("services")]
    changes: list[UpdateChange]


class Outcome(Struct, frozen=True):
    """What came of a command for one service."""

    name: str
    outcome: Annotated[
        str,
        means(
            "`done`, `unchanged` (it was so already), `asked` (with `wait` false), `gone` (the incarnation), `failed`, "
            "`timed_out` or `refused`"
        ),
    ]
    message: str
    service: Annotated[
        ServiceStatus | None, means("after it; null: it was not in the configuration any more, and is forgotten now")
    ]


class EventRecord(Struct, frozen=True):
    """Something that has happened."""

    seq: Annotated[int, means("a number that grows")]
    time: Annotated[float, means("seconds since 1970")]
    service: Annotated[str, means('"" for the supervisor itself')]
    incarnation: int | None
    event: Annotated[str, means("a word: `starting`, `spawned`, `ready`, `exited`, `emptied`, `backoff`, `fatal`, …")]
    text: Annotated[str, means("for people")]


class TreeProcess(Struct, frozen=True):
    """A process of a service, now."""

    pid: int
    name: Annotated[str, means("as in /proc/PID/comm")]
    main: Annotated[bool, means("it is the main process")]
    parent: Annotated[int, means("its keeper, or another one of these")]
    session: Annotated[int, means("its session; its own pid: it leads it")]
    group: Annotated[int, means("its process group, in the same way")]
    state: Annotated[
        str, means("`running`, `sleeping`, `waiting` (for a disk or the like), `stopped`, `traced`, `ended`")
    ]
    started_at: Annotated[float, means("unix seconds")]
    cpu_seconds: float
    memory_bytes: Annotated[int, means("resident")]
    how: Annotated[
        str, means("it came to be: `started` by the keeper, `forked` or `adopted`; `unknown`: that was not seen")
    ]
    by: Annotated[int | None, means("whose child it was born as, or, of one that was adopted, whose it was before")]
    at: Annotated[float | None, means("when that was, unix seconds")]
    executed: Annotated[int | None, means("how often it was seen to execute a program; null: nobody looks")]


class ServiceTree(Struct, frozen=True):
    """The processes of one incarnation, parents before their children."""

    incarnation: int
    keeper: Annotated[int, means("the pid of its keeper, which is none of them")]
    processes: list[TreeProcess]


class Ancestry(Struct, frozen=True):
    """Who of a service lives, and how each came to be."""

    service: str
    source: Annotated[str, means("of how they came to be: `connector`, the kernel's, or `keeper`: adoptions alone")]
    why: Annotated[str, means("it is not the connector")]
    lost: Annotated[int, means("messages that the kernel had no room for, of all processes of the machine")]
    last_record: Annotated[int, means("the `seq` of the newest record of its lineage; 0: none is kept")]
    trees: Annotated[list[ServiceTree], means("of all its incarnations that live; the one that serves first")]


class LineageRecord(Struct, frozen=True):
    """Something that became of a process of a service."""

    seq: Annotated[int, means("a number that grows, of this service's records")]
    time: Annotated[float, means("seconds since 1970")]
    incarnation: int | None
    event: Annotated[
        str,
        means(
            "`started`, `forked`, `adopted`, `executed`, `named`, `session`, `user`, `group`, `dumped`, `exited`; "
            "`found`: it was there when somebody looked; `lost`, `gap`: some are missing; `source`: who tells"
        ),
    ]
    pid: Annotated[int | None, means("null: it is about none of them alone")]
    name: Annotated[str, means("of the process, from then on")]
    by: Annotated[int | None, means("its parent, when it was started, forked or found; adopted: the one that it had")]
    status: Annotated[int | None, means("of one that exited, as wait(2) has it; null: nobody knows")]
    text: Annotated[str, means("for people")]


class StopSummary(Struct, frozen=True):
    """How a tree was stopped."""

    signal: Annotated[str, means('as "SIGTERM"')]
    scope: Annotated[str, means("`main`, `group` or `tree`")]
    grace_seconds: float
    seconds: Annotated[float, means("until the tree was empty, or the stop gave up")]
    signalled: Annotated[int, means("how many processes")]
    killed: Annotated[int, means("how many of them by SIGKILL")]
    survivors: Annotated[list[str], means('"name (pid)" of those that could not be killed')]


class HistoryRecord(Struct, frozen=True):
    """One incarnation, past or present. Times in seconds since 1970, null where it has not come to that."""

    service: Annotated[str, means('"" for the supervisor itself')]
    incarnation: int
    boot: Annotated[str, means("the boot id: with another one, numbers have begun anew")]
    pid: int | None
    why: Annotated[str, means("it was started")]
    started_at: float | None
    ready_at: float | None
    ended_at: Annotated[float | None, means("its main process")]
    empty_at: Annotated[float | None, means("its tree")]
    asked: Annotated[str, means('why its end was asked for, and by whom; "": by nobody')]
    cause: Annotated[str | None, means("how it ended, in words; null: it lives")]
    code: Annotated[int | None, means("of the main process, as `signal` and `core`")]
    signal: str | None
    core: bool
    usage: Annotated[
        dict[str, float] | None,
        means("of the main process, as getrusage(2): `user_seconds`, `system_seconds`, `max_rss_bytes`, …"),
    ]
    tree_usage: Annotated[dict[str, float] | None, means("of all that its keeper reaped; null: nobody knows")]
    stop: Annotated[StopSummary | None, means("if it was stopped")]
    adopted: Annotated[int, means("by so many supervisors that came later")]
    log_lost_bytes: int
    log_dropped_bytes: int
    resources: Annotated[
        dict[str, float] | None,
        means("what its cgroups have counted: `memory_peak_bytes`, `cpu_seconds`, `oom_kills`; null: it had none"),
    ] = None
