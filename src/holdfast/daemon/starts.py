"""Starts: from the engine's word to a copy that is held, or to the reason why there is none.  For the loop's thread."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

from holdfast.config.model import Service
from holdfast.engine import effects as fx
from holdfast.engine import events as ev
from holdfast.process import events as told
from holdfast.process.held import HeldTree, LogPlan, LowNumbers

from .copy import Copy
from .plan import command_of, make_service_plan
from .sockets import NOTHING

if TYPE_CHECKING:
    from .supervisor import Supervisor

# Starts that may go well a moment later: the machine was full, not the definition wrong.
TEMPORARY = {"EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EINTR", "ETXTBSY", "EIO", "ETIMEDOUT"}
DESCRIPTORS_OF_ONE = 3  # its keeper's socket, and of keeper and main process each one
SPARE_DESCRIPTORS = 48  # that starts leave to clients, and to ourselves


class Starts:
    """Starts the incarnations of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._low = LowNumbers()
        self._below_anchor = False  # keepers that we start have come to be: where one does, all do

    def start(self, effect: fx.Spawn) -> ev.SpawnFailed | None:
        """Start a keeper with the process, and hold it; or say why not."""
        supervisor = self._supervisor
        name, incarnation, step = effect.name, effect.incarnation, effect.step
        spec = supervisor.config.services[name]
        log_path = supervisor.log_path(name)
        try:
            before = supervisor.copies.get(name)  # one that has ended is let go as soon as this is done
            more = before is None or before.tree.status is None
            self.keep_spare_descriptors(len(supervisor.copies) + len(supervisor.beside) + more)
            if not os.path.isdir(log_path):
                os.makedirs(log_path, 0o750, exist_ok=True)
            given = supervisor.sockets.give(spec) if step == "main" else NOTHING
            last_exit = supervisor.engine.units[name].last_exit
            spec, cgroups = supervisor.resources.prepare(spec, incarnation)
            plan = make_service_plan(spec, incarnation, supervisor.around, step, last_exit, given, cgroups)
            if step == "main":
                supervisor.probes.prepare(spec, incarnation, log_path, plan)
            tree = HeldTree.start(
                plan,
                address=supervisor.store.address(name, incarnation),
                report=supervisor.store.report(name, incarnation),
                log=LogPlan(
                    log_path, spec.log.rotate_size, spec.log.rotate_count, spec.log.cap, spec.log.timestamps,
                    spec.log.merge, f"{name}@{incarnation}" + (f" {step}" if step != "main" else ""), spec.pty,
                    spec.stdin == "pipe",
                ),
                low=self._low,
            )  # fmt: skip
        except Exception as error:  # whatever it is: the start has failed, and the engine has to know
            supervisor.clean(name, incarnation)
            return ev.SpawnFailed(name, incarnation, str(error), is_temporary(getattr(error, "errno", None)))
        copy = Copy(name, incarnation, tree, log_path)
        copy.below_anchor = self._below_anchor = self._below_anchor or supervisor.is_below_anchor(copy)
        supervisor.hold(copy)
        return None

    def close(self) -> None:
        self._low.close()

    def keep_spare_descriptors(self, copies: int) -> None:
        """OSError when so many copies would take what clients need: who cannot be asked cannot be helped."""
        supervisor = self._supervisor
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        others = len(supervisor.sockets) + len(supervisor.stored) + len(supervisor.resources)
        if copies * DESCRIPTORS_OF_ONE + others > limit - SPARE_DESCRIPTORS:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def is_temporary(number: int | None) -> bool:
    return errno.errorcode.get(number or 0, "") in TEMPORARY


def why_not(spec: Service | None, step: fx.Step, event: told.Failed) -> str:
    """The step of the start that failed, what it was about, and why."""
    about = ""
    if spec is not None and event.stage == "exec":
        about = " /bin/sh" if spec.shell else f" {command_of(spec, step)[0]}"
    elif spec is not None and event.stage == "chdir":
        about = f" {spec.cwd}"
    return f"{event.stage}{about}: {os.strerror(event.errno)}"
