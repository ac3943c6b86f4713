"""Snapshots: what the engine, the keepers and /proc know of a service, put together."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from holdfast.engine.events import Exit

from .processes import Table, is_stopped
from .status import Frozen, LastExit, LogStatus, MainStatus, ServiceStatus, SupervisorStatus, TreeStatus

if TYPE_CHECKING:
    from .supervisor import Supervisor


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def last_exit(ended: Exit | None) -> LastExit | None:
    if ended is None:
        return None
    return LastExit(ended.code, None if ended.signal is None else signal_name(ended.signal), ended.words)


def service_status(supervisor: Supervisor, name: str, table: Table) -> ServiceStatus:
    view = supervisor.engine.view(name)
    spec = supervisor.config.services.get(name)
    copy = supervisor.copies.get(name)
    tree = log = uptime = pid = None
    held_by = supervisor.unreached.get(name)
    if copy is not None:
        pids = table.below(copy.tree.keeper_pid) if copy.tree.keeper_pid else []
        cpu, memory = table.usage(pids)
        tree = TreeStatus(len(pids), round(cpu, 2), memory)
        held_by = f"keeper {copy.tree.keeper_pid}, as subreaper"
        log = LogStatus(
            os.path.join(copy.log_path, "current"), copy.lost, copy.dropped,
            os.strerror(copy.log_error) if copy.log_error else None,
        )  # fmt: skip
        if copy.tree.pid and copy.tree.status is None:
            pid = copy.pid
            uptime = round(max(0.0, time.time() - copy.tree.started_at), 3)
    keeper_pid = copy.tree.keeper_pid if copy else 0
    frozen = [Frozen(what, n) for what, n in (("keeper", keeper_pid), ("main", pid)) if n and table.stopped(n)]
    return ServiceStatus(
        name=name,
        state=view.state.value,
        ready=view.ready,
        pid=pid,
        incarnation=view.incarnation,
        uptime_seconds=uptime,
        restarts=view.restarts,
        last_exit=last_exit(view.last_exit),
        tree=tree,
        held_by=held_by,
        reason=view.reason,
        waiting_for=list(view.waiting_for),
        status_text=copy.status_text if copy else "",
        on_owner_loss=spec.on_owner_loss if spec else "keep",
        log=log,
        frozen=frozen,
        health=supervisor.probes.health(name, view.incarnation),
        step=view.step,
        reloading=copy is not None and (copy.reloading or copy.reload_runs),
        main=MainStatus(copy.tree.rule, copy.tree.moves, copy.refused) if copy and copy.tree.moves else None,
        next_run=supervisor.scheduler.next_run(name) if view.due else None,
        resources=supervisor.resources.status(name, copy.incarnation) if copy else None,
    )


def supervisor_status(supervisor: Supervisor) -> SupervisorStatus:
    places = supervisor.config.supervisor
    anchor = supervisor.anchor_pid
    return SupervisorStatus(
        pid=os.getpid(),
        state=supervisor.state,
        anchor_pid=anchor,
        restarts=supervisor.restarts,
        uptime_seconds=round(time.monotonic() - supervisor.started, 3),
        version=supervisor.version,
        config=supervisor.config.path,
        run_dir=places.run_dir,
        log_dir=places.log_dir,
        services=len(supervisor.engine.order),
        last_event=supervisor.events.last,
        found=supervisor.found,
        adopted=supervisor.adopted,
        frozen=[Frozen("anchor", anchor)] if anchor and is_stopped(anchor) else [],
    )
