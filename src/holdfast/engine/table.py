"""The transition table: what each input does to a service in each phase.

A phase is a state as users see it, told apart by what is awaited.  An input is an event, a command as it concerns one
service, or what the engine finds about the others (`CLEARED`, `WITHHELD`, `RATIONED`).  Each pair is either in TABLE,
with the action (a function of actions.py) and the phases that it may lead to, or in IGNORED, with the reason.
The diagram and the tables of docs/engine.md are made from here.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class State(enum.StrEnum):
    """What users see."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    EXITED = "exited"
    FATAL = "fatal"


class Phase(enum.Enum):
    """(state, what it is about)."""

    STOPPED = State.STOPPED, "stopped by hand, or with the supervisor"
    BLOCKED = State.STOPPED, "wanted, but something it requires is down and not on its way up"
    WAITING = State.STARTING, "waits for what it requires or comes after; nothing was started"
    SPAWNING = State.STARTING, "the start is under way"
    UNREADY = State.STARTING, "its program runs, but is not ready (`ready`) or not done (`oneshot`, `pre_start`)"
    RUNNING = State.RUNNING, "its program runs and is ready"
    REPLACING = State.RUNNING, "its successor is being started (`start-first`); it serves until that is ready"
    BACKOFF = State.BACKOFF, "waits for the end of its back-off"
    QUEUED = State.BACKOFF, "waits for the start budget"
    CANCELLED = State.STOPPING, "asked to stop while the start is under way: the answer is awaited"
    HOLDING = State.STOPPING, "asked to stop; waits until what stands on it has stopped"
    ENDING = State.STOPPING, "its end is under way, until its tree is empty"
    CLEANING = State.STOPPING, "its tree is empty; its `post_stop` runs"
    STUCK = State.FATAL, "its tree could not be ended by KILL; nothing is started beside it"
    SCHEDULED = State.STOPPED, "waits for a time of its schedule"
    EXITED = State.EXITED, "it has ended for good; or completed (`oneshot`)"
    FATAL = State.FATAL, "the start limit is reached, or it cannot be started"

    def __init__(self, state: State, about: str) -> None:
        self.state = state
        self.about = about


class Input(enum.Enum):
    START = "asked to start"
    RESTART = "asked to restart"
    STOP = "asked to stop"
    HALT = "is to stop with what it requires"
    CLOSE = "the supervisor ends"
    CLEARED = "nothing is left to wait for"
    WITHHELD = "something it requires is down"
    RATIONED = "no restart is left in the budget"
    DUE = "its time has come"
    SPAWNED = "Spawned"
    SPAWN_FAILED = "SpawnFailed"
    READY = "BecameReady"
    NOT_YET = "NotReadyYet"
    UNHEALTHY = "BecameUnhealthy"
    EXTENDED = "TimeExtended"
    EXITED = "Exited"
    LOST = "KeeperLost"
    EMPTIED = "Emptied"
    ELAPSED = "ScheduleDue"
    REPLACE = "asked to restart, `start-first`"
    NEXT_READY = "its successor is ready"
    NEXT_FAILED = "its successor has failed"


class Row(NamedTuple):
    action: str
    to: tuple[Phase, ...]


P, I = Phase, Input  # noqa: E741

DOWN = (P.STOPPED, P.BLOCKED, P.SCHEDULED, P.EXITED, P.FATAL)
COMING = (P.WAITING, P.BACKOFF, P.QUEUED)  # on its way up, with no tree
UP = (P.UNREADY, P.RUNNING)
LEAVING = (P.CANCELLED, P.HOLDING, P.ENDING, P.CLEANING)
LIVE = (P.SPAWNING, *UP, P.REPLACING, *LEAVING, P.STUCK)  # a tree of the incarnation may exist
# What an end can lead to: asked for, or by policy.
AFTER = (P.STOPPED, P.WAITING, P.BACKOFF, P.EXITED, P.FATAL, P.SCHEDULED)

Rows = tuple[tuple[Input, tuple[Phase, ...], str, tuple[Phase, ...]], ...]
ROWS: Rows = (
    (I.START, (*DOWN, *COMING), "come", (P.WAITING,)),
    (I.START, (*LEAVING, P.STUCK), "want", ()),
    (I.RESTART, (*DOWN, *COMING), "come", (P.WAITING,)),
    (I.RESTART, (P.SPAWNING,), "renew", (P.CANCELLED,)),
    (I.RESTART, UP, "renew", (P.HOLDING,)),
    (I.RESTART, (*LEAVING, P.STUCK), "want", ()),
    (I.STOP, (*DOWN[1:], *COMING), "give_up", (P.STOPPED,)),
    (I.STOP, (P.SPAWNING,), "resign", (P.CANCELLED,)),
    (I.STOP, UP, "resign", (P.HOLDING,)),
    (I.STOP, (*LEAVING, P.STUCK), "unwant", ()),
    (I.HALT, (P.BACKOFF, P.QUEUED), "wait", (P.WAITING,)),
    (I.HALT, (P.EXITED,), "redo", (P.WAITING, P.EXITED)),
    (I.HALT, (P.SPAWNING,), "yield_", (P.CANCELLED,)),
    (I.HALT, UP, "yield_", (P.HOLDING,)),
    (I.CLOSE, (P.BLOCKED, P.SCHEDULED, *COMING), "rest", (P.STOPPED,)),
    (I.CLOSE, (P.SPAWNING,), "yield_", (P.CANCELLED,)),
    (I.CLOSE, UP, "yield_", (P.HOLDING,)),
    (I.CLEARED, (P.BLOCKED,), "wait", (P.WAITING,)),
    (I.CLEARED, (P.WAITING,), "spawn", (P.SPAWNING,)),
    (I.CLEARED, (P.HOLDING,), "stop", (P.ENDING,)),
    (I.WITHHELD, (P.WAITING,), "block", (P.BLOCKED,)),
    (I.RATIONED, (P.WAITING,), "queue", (P.QUEUED,)),
    (I.DUE, (P.BACKOFF, P.QUEUED), "wait", (P.WAITING,)),
    (I.DUE, (P.UNREADY,), "time_out", (P.ENDING,)),
    (I.SPAWNED, (P.SPAWNING,), "run", UP),
    (I.SPAWNED, (P.CANCELLED,), "hold", (P.HOLDING,)),
    # Up or leaving, too: a supervisor that was not there took the start for done.
    (I.SPAWN_FAILED, (P.SPAWNING, *UP), "fail", (P.WAITING, P.BACKOFF, P.FATAL, P.CLEANING, P.SCHEDULED)),
    (I.SPAWN_FAILED, (P.CANCELLED, P.HOLDING), "fail", (P.WAITING, P.STOPPED, P.CLEANING)),
    (I.SPAWN_FAILED, (P.ENDING,), "fail", (*AFTER, P.CLEANING)),
    (I.READY, (P.SPAWNING,), "note_ready", ()),
    (I.READY, (P.UNREADY,), "be_ready", (P.RUNNING, P.UNREADY)),
    (I.EXTENDED, (P.UNREADY,), "extend", ()),
    (I.EXITED, (P.SPAWNING, *UP, P.CANCELLED, P.HOLDING), "end", (P.ENDING,)),
    (I.EXITED, (P.ENDING, P.STUCK), "note_exit", ()),
    (I.LOST, (P.SPAWNING, *UP, P.CANCELLED, P.HOLDING), "lose", (P.ENDING,)),
    (I.LOST, (P.ENDING,), "note_loss", ()),
    (I.EMPTIED, (P.ENDING, P.STUCK), "settle", (*AFTER, P.STUCK, P.CLEANING)),
    (I.NOT_YET, (P.UNREADY,), "doubt", ()),
    (I.UNHEALTHY, (P.RUNNING,), "condemn", (P.ENDING,)),
    # The step after main.
    (I.SPAWNED, (P.CLEANING,), "clean", ()),
    (I.SPAWN_FAILED, (P.CLEANING,), "skip_cleaning", (*AFTER, P.CLEANING)),
    (I.DUE, (P.CLEANING,), "time_out", (P.ENDING,)),
    (I.EXITED, (P.CLEANING,), "end", (P.ENDING,)),
    (I.LOST, (P.CLEANING,), "lose", (P.ENDING,)),
    # A oneshot with a schedule.
    (I.ELAPSED, (*DOWN[1:], *COMING), "come", (P.WAITING,)),
    (I.ELAPSED, (P.SPAWNING,), "overlap", (P.SPAWNING, P.CANCELLED)),
    (I.ELAPSED, (P.UNREADY,), "overlap", (P.UNREADY, P.HOLDING)),
    (I.ELAPSED, LEAVING, "overlap", ()),
    # With two trees.  Those before the present one that are on their way out are no matter of phases (beside.py).
    (I.REPLACE, (P.RUNNING,), "replace_", (P.RUNNING, P.REPLACING)),
    (I.REPLACE, (P.REPLACING,), "replace_anew", (P.RUNNING, P.REPLACING)),
    (I.NEXT_READY, (P.REPLACING,), "hand_over", (P.RUNNING,)),
    (I.NEXT_FAILED, (P.REPLACING,), "serve_on", (P.RUNNING,)),
    (I.DUE, (P.REPLACING,), "dismiss_next", (P.RUNNING,)),
    (I.RESTART, (P.REPLACING,), "renew", (P.HOLDING,)),
    (I.STOP, (P.REPLACING,), "resign", (P.HOLDING,)),
    (I.HALT, (P.REPLACING,), "yield_", (P.HOLDING,)),
    (I.CLOSE, (P.REPLACING,), "yield_", (P.HOLDING,)),
    (I.EXITED, (P.REPLACING,), "succeed", (P.SPAWNING, P.UNREADY)),
    (I.LOST, (P.REPLACING,), "succeed", (P.SPAWNING, P.UNREADY)),
    (I.SPAWN_FAILED, (P.REPLACING,), "succeed", (P.SPAWNING, P.UNREADY)),
    (I.UNHEALTHY, (P.REPLACING,), "succeed", (P.SPAWNING, P.UNREADY)),
)

TABLE: dict[tuple[Phase, Input], Row] = {
    (phase, given): Row(action, to or (phase,)) for given, phases, action, to in ROWS for phase in phases
}

IDLE = (*DOWN, *COMING)
IGNORED_ROWS: tuple[tuple[Input, tuple[Phase, ...], str], ...] = (
    (I.START, (P.SPAWNING, *UP), "it is up, or coming up"),
    (I.STOP, (P.STOPPED,), "it is stopped"),
    (I.HALT, (P.STOPPED, P.BLOCKED, P.SCHEDULED, P.FATAL), "it is down"),
    (I.ELAPSED, (P.STOPPED,), "it was stopped by hand, and its schedule with it"),
    (I.ELAPSED, (P.RUNNING, P.REPLACING), "no oneshot is ever there"),
    (I.ELAPSED, (P.STUCK,), "nothing is started beside what is left of it"),
    (I.HALT, (P.WAITING,), "it waits for what it requires, and follows that"),
    (I.HALT, (*LEAVING, P.STUCK), "its end is under way; it starts again only when what it requires is ready"),
    (I.CLOSE, (P.STOPPED, P.EXITED, P.FATAL), "it is down"),
    (I.CLOSE, (*LEAVING, P.STUCK), "its end is under way, and nothing starts once the supervisor ends"),
    (I.CLEARED, tuple(p for p in P if p not in (P.BLOCKED, P.WAITING, P.HOLDING)), "it waits for nobody"),
    (I.WITHHELD, tuple(p for p in P if p is not P.WAITING), "nothing is about to be started"),
    (I.RATIONED, tuple(p for p in P if p is not P.WAITING), "nothing is about to be started"),
    (
        I.DUE, tuple(p for p in P if p not in (P.BACKOFF, P.QUEUED, P.UNREADY, P.CLEANING, P.REPLACING)),
        "it waits for no time",
    ),
    (I.SPAWNED, (*UP, P.HOLDING, P.ENDING, P.STUCK), "that is known"),
    (I.SPAWN_FAILED, (P.STUCK,), "there is something of it"),
    (I.READY, (P.RUNNING,), "that is known"),
    (I.READY, (*LEAVING, P.STUCK), "its end is under way"),
    (I.EXTENDED, (P.SPAWNING,), "its time to become ready has not begun"),
    (I.EXTENDED, (P.RUNNING,), "it is ready"),
    (I.EXTENDED, (*LEAVING, P.STUCK), "the grace is fixed"),
    (I.LOST, (P.STUCK,), "what is left of it is awaited"),
    (I.EMPTIED, (P.SPAWNING, *UP, *LEAVING[:2], P.CLEANING), "its end was missed: it is taken as Exited before"),
    *((given, IDLE, "nothing of that incarnation is left") for given in (I.SPAWNED, I.SPAWN_FAILED, I.READY)),
    *((given, IDLE, "nothing of that incarnation is left") for given in (I.EXTENDED, I.EXITED, I.LOST, I.EMPTIED)),
    *((given, IDLE, "nothing of that incarnation is left") for given in (I.NOT_YET, I.UNHEALTHY)),
    (I.NOT_YET, (P.SPAWNING, P.RUNNING, P.REPLACING), "it is too early, or too late, to matter"),
    (I.UNHEALTHY, (P.SPAWNING, P.UNREADY), "its health matters when it is ready"),
    *((given, (*LEAVING, P.STUCK), "its end is under way") for given in (I.NOT_YET, I.UNHEALTHY)),
    (I.START, (P.REPLACING,), "it is up"),
    *((given, (P.REPLACING,), "that is known") for given in (I.SPAWNED, I.READY)),
    (I.EXTENDED, (P.REPLACING,), "it is ready"),
    (I.EMPTIED, (P.REPLACING,), "its end was missed: the engine takes it as Exited before"),
    (I.REPLACE, tuple(p for p in P if p not in (P.RUNNING, P.REPLACING)), "asked to restart, it stops first"),
    *(
        (given, tuple(p for p in P if p is not P.REPLACING), "it has no successor")
        for given in (I.NEXT_READY, I.NEXT_FAILED)
    ),
)
IGNORED: dict[tuple[Phase, Input], str] = {
    (phase, given): why for given, phases, why in IGNORED_ROWS for phase in phases
}


def diagram() -> str:
    """The states and what leads from one to another, as text for mermaid."""
    edges: dict[tuple[State, State], list[str]] = {}
    for given, phases, _, to in ROWS:
        for phase in phases:
            for target in to:
                if phase.state is not target.state:
                    labels = edges.setdefault((phase.state, target.state), [])
                    if given.value not in labels:
                        labels.append(given.value)
    lines = ["stateDiagram-v2", f"    [*] --> {State.STOPPED}"]
    lines += [f"    {a} --> {b}: {'<br/>'.join(labels)}" for (a, b), labels in sorted(edges.items())]
    return "\n".join(lines) + "\n"


def tables() -> str:
    """Phases, transitions and what is ignored, as Markdown."""

    def names(phases: tuple[Phase, ...]) -> str:
        return ", ".join(f"`{phase.name.lower()}`" for phase in phases)

    lines = ["| phase | state | |", "|---|---|---|"]
    lines += [f"| `{phase.name.lower()}` | {phase.state} | {phase.about} |" for phase in Phase]
    lines += ["", "| when | in | does | and leads to |", "|---|---|---|---|"]
    lines += [
        f"| {given.value} | {names(phases)} | {action.strip('_').replace('_', ' ')} | {names(to) or 'the same'} |"
        for given, phases, action, to in ROWS
    ]
    lines += ["", "| when | in | does nothing, because |", "|---|---|---|"]
    lines += [f"| {given.value} | {names(phases)} | {why} |" for given, phases, why in IGNORED_ROWS]
    return "\n".join(lines) + "\n"
