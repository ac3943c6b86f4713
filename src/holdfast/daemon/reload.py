"""`reload`: a service's reload_command beside it, one at a time, and then what the service says of it (RELOADING=1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from holdfast.config.model import Service

from .aside import run_aside
from .copy import Copy
from .mains import exit_of

if TYPE_CHECKING:
    from .supervisor import Supervisor

AT_ONCE = 16  # reload commands that run side by side; the others wait


class Reloads:
    """The reloads of one supervisor.  For its loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._slots = asyncio.Semaphore(AT_ONCE)

    def refusal(self, name: str) -> str:
        """Why it cannot be reloaded now; "" when it can."""
        supervisor = self._supervisor
        view, copy = supervisor.engine.view(name), supervisor.copies.get(name)
        spec = supervisor.config.services.get(name)
        if spec is None or not spec.reload_command:
            return "it has no reload_command; `holdfast signal NAME HUP` asks most programs to reload"
        if copy is None or not view.ready:
            return f"it is not running: it is {view.state}"
        return "a reload is under way" if copy.reload_runs else ""

    async def reload(self, name: str) -> tuple[bool, str]:
        """Whether that went well, and what is to be said of it.  When it is cancelled only the waiting ends."""
        supervisor = self._supervisor
        answer: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()
        copy = supervisor.copies[name]
        copy.reload_runs = True
        supervisor.run_task(self._reload(copy, supervisor.config.services[name], answer))
        return await answer

    async def _reload(self, copy: Copy, spec: Service, answer: asyncio.Future[tuple[bool, str]]) -> None:
        good, text = False, "the supervisor ends"
        try:
            async with self._slots:
                good, text = await self._run(copy, spec)
            if good:
                self._supervisor.events.add("reloaded", text, copy.name, copy.incarnation)
            else:
                self._supervisor.events.add("reload_failed", text, copy.name, copy.incarnation)
        finally:
            copy.reload_runs = False
            if not answer.done():
                answer.set_result((good, text))

    async def _run(self, copy: Copy, spec: Service) -> tuple[bool, str]:
        assert spec.reload_command
        command = spec.reload_command[0] if spec.shell else spec.reload_command
        env = {"MAINPID": str(copy.pid or "")}
        limit = spec.ready_timeout
        try:
            async with asyncio.timeout(limit) as left:
                done = await run_aside(spec, command, env=env, timeout=limit, around=self._supervisor.around)
                tail = f": {done.tail.splitlines()[-1]}" if done.tail else ""
                if done.timed_out:
                    return False, f"reload_command took longer than {limit:g}s{tail}"
                if done.status is None:
                    return False, f"reload_command could not be run{tail}"
                ended = exit_of(done.status)
                if not ended.succeeded((0,)):
                    return False, f"reload_command {ended.words}{tail}"
                while copy.reloading and not copy.closed:  # it says itself when it is done
                    await self._supervisor.changed()
                supervisor = self._supervisor
                if supervisor.copies.get(copy.name) is not copy or not supervisor.engine.view(copy.name).ready:
                    return False, f"reload_command {ended.words}{tail}; but the service has ended meanwhile"
        except TimeoutError:
            if not left.expired():
                raise
            return False, f"it did not say READY=1 again within {limit:g}s"
        return True, f"reload_command {ended.words}{tail}"
