"""What the API shows: one structure a thing, the same names everywhere."""

from __future__ import annotations

import msgspec


class LastExit(msgspec.Struct, frozen=True):
    code: int | None
    signal: str | None  # "SIGKILL"
    cause: str  # in words: "exited with code 1", "killed by SIGKILL", "keeper lost", "could not start: ..."


class TreeStatus(msgspec.Struct, frozen=True):
    processes: int
    cpu_seconds: float
    memory_bytes: int


class LogStatus(msgspec.Struct, frozen=True):
    path: str
    lost_bytes: int
    dropped_bytes: int
    error: str | None


class Frozen(msgspec.Struct, frozen=True):
    what: str  # keeper | main | anchor
    pid: int


class ServiceStatus(msgspec.Struct, frozen=True):
    name: str
    state: str
    ready: bool
    pid: int | None
    incarnation: int
    uptime_seconds: float | None
    restarts: int
    last_exit: LastExit | None
    tree: TreeStatus | None
    held_by: str | None  # "keeper 1234: subreaper walk" ... what holds the tree
    reason: str  # why it is in this state
    waiting_for: list[str]
    status_text: str  # sd_notify STATUS=
    on_owner_loss: str
    log: LogStatus | None
    frozen: list[Frozen] = []  # who of it is stopped (SIGSTOP) and does nothing until `kill -CONT`
    step: str = "main"  # what its incarnation is: pre_start | main | post_stop
    reloading: bool = False  # its reload_command runs, or it said RELOADING=1 (sd_notify)
    next_run: float | None = None  # unix seconds; of one that waits for its schedule


class SupervisorStatus(msgspec.Struct, frozen=True):
    pid: int
    state: str  # adopting | running | stopping
    anchor_pid: int | None
    restarts: int
    uptime_seconds: float
    version: str
    config: str
    run_dir: str
    log_dir: str
    services: int
    last_event: int  # its seq
    found: int = 0  # services that were left by an earlier supervisor
    adopted: int = 0  # how many of them are looked after: taken over, or their end is known
    frozen: list[Frozen] = []  # the anchor, when it is stopped


class Left(msgspec.Struct, frozen=True):
    """Services that run on with nobody."""

    services: int
    kept: dict[str, str]  # of these, what `on_owner_loss` says where it is not `keep`: it does not come to that


class UpgradeStatus(msgspec.Struct, frozen=True):
    version: str
    next_version: str
    services: int  # that run
    last_event: int  # its seq: `upgraded` comes after it


class Outcome(msgspec.Struct, frozen=True):
    name: str
    outcome: str  # done | unchanged | gone | failed | timed_out | refused
    message: str
    service: ServiceStatus | None


class EventRecord(msgspec.Struct, frozen=True):
    seq: int
    time: float  # unix seconds
    service: str  # "" for the supervisor itself
    incarnation: int | None
    event: str  # starting, spawned, ready, exited, emptied, stopped, backoff, fatal, ...
    text: str


class StopSummary(msgspec.Struct, frozen=True):
    signal: str  # "SIGTERM"
    scope: str
    grace_seconds: float
    seconds: float  # until the tree was empty, or the stop gave up
    signalled: int
    killed: int
    survivors: list[str]  # "name (pid)"


class HistoryRecord(msgspec.Struct, frozen=True):
    service: str  # "" for the supervisor itself
    incarnation: int
    boot: str  # boot id: numbers begin anew with each
    pid: int | None
    why: str  # it was started
    started_at: float | None  # unix seconds, here and below
    ready_at: float | None
    ended_at: float | None  # its main process
    empty_at: float | None  # its tree
    asked: str  # why its end was asked for, and by whom; "": by nobody
    cause: str | None  # how it ended, in words; None: it runs
    code: int | None
    signal: str | None
    core: bool
    usage: dict[str, float] | None  # of the main process
    tree_usage: dict[str, float] | None  # summed over its tree
    stop: StopSummary | None
    adopted: int  # by so many supervisors that came later
    log_lost_bytes: int
    log_dropped_bytes: int
