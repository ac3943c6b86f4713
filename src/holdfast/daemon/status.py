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
