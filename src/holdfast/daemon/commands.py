"""What clients ask for: names and patterns to services, a request to the engine, an answer when it is done."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Literal

from holdfast.engine import events as ev
from holdfast.engine.outcome import outcome
from holdfast.engine.service import ServiceView
from holdfast.process.options import signal_number

from .processes import Table
from .show import service_status
from .status import Outcome
from .supervisor import Supervisor

Verb = Literal["start", "stop", "restart"]
ASKED: dict[Verb, type[ev.Command]] = {"start": ev.StartAsked, "stop": ev.StopAsked, "restart": ev.RestartAsked}
GLOB = "*?["


class UnknownService(ValueError):
    """A name that is no service's, or a pattern that matches none; `name` is what was given."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = list(known)
        super().__init__(f"no service matches {name!r}" if is_pattern(name) else f"no service is called {name!r}")


def is_pattern(text: str) -> bool:
    return any(c in GLOB for c in text)


def matching(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns, in the order of names; all without patterns.  UnknownService."""
    patterns = list(patterns)
    if not patterns:
        return list(names)
    wanted = set()
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)] if is_pattern(pattern) else (
            [pattern] if pattern in names else []
        )
        if not hits:
            raise UnknownService(pattern, names)
        wanted.update(hits)
    return [name for name in names if name in wanted]


def resolve(supervisor: Supervisor, given: Sequence[str]) -> list[tuple[str, int | None]]:
    """`web`, `web*`, `web@41` to names and the incarnations that are meant.  UnknownService, ValueError."""
    meant: dict[str, int | None] = {}
    for text in given:
        pattern, at, number = text.partition("@")
        if at and (not number.isascii() or not number.isdecimal()):
            raise ValueError(f"{text!r}: after the @ stands the number of an incarnation, as status shows it")
        for name in matching(supervisor.engine.order, [pattern]):
            meant[name] = int(number) if at else None
    return [(name, meant[name]) for name in supervisor.engine.order if name in meant]


async def command(
    supervisor: Supervisor, verb: Verb, names: Sequence[str], *, wait: bool = True, timeout: float | None = None
) -> list[Outcome]:
    """start, stop or restart services; with wait, return when each has got there or cannot, or at the timeout.

    UnknownService, ValueError: nothing was done.  May be cancelled: what was asked for goes on.
    """
    meant = resolve(supervisor, names)
    engine = supervisor.engine
    before = {name: engine.view(name) for name, _ in meant}
    gone = {
        name: incarnation
        for name, incarnation in meant
        if incarnation is not None and engine.view(name).incarnation != incarnation
    }
    asked = tuple((name, incarnation) for name, incarnation in meant if name not in gone)
    if asked:
        supervisor.post(ASKED[verb](asked))
    late: set[str] = set()
    if wait:
        late = await _wait(supervisor, verb, [name for name, _ in asked], before, timeout)
    table = Table()
    answers = []
    for name, _ in meant:
        status = service_status(supervisor, name, table)
        if name in gone:
            text, message = "gone", f"incarnation {gone[name]} is gone: it is {status.incarnation} now"
        elif name in late:
            text, message = "timed_out", f"still {status.state}: {status.reason}"
        else:
            text = outcome(verb, before[name], engine.view(name)) or ("asked" if not wait else "failed")
            message = status.reason
        answers.append(Outcome(name, text, message, status))
    return answers


async def _wait(
    supervisor: Supervisor, verb: Verb, names: list[str], before: dict[str, ServiceView], timeout: float | None
) -> set[str]:
    """Those that were not done at the timeout."""
    open_ = set(names)

    def look() -> None:
        open_.difference_update(
            [name for name in open_ if outcome(verb, before[name], supervisor.engine.view(name)) is not None]
        )

    look()
    try:
        async with asyncio.timeout(timeout):
            while open_:
                await supervisor.changed()
                look()
    except TimeoutError:
        pass
    return open_


def send_signal(supervisor: Supervisor, names: Sequence[str], signal: int | str, scope: str) -> list[Outcome]:
    """Send a signal to services that run.  UnknownService, ValueError: nothing was done."""
    signo = signal_number(signal)
    if scope not in ("main", "group", "tree"):
        raise ValueError(f"scope must be main, group or tree, not {scope!r}")
    meant = resolve(supervisor, names)
    table = Table()
    answers = []
    for name, incarnation in meant:
        copy = supervisor.copies.get(name)
        status = service_status(supervisor, name, table)
        if incarnation is not None and status.incarnation != incarnation:
            message = f"incarnation {incarnation} is gone: it is {status.incarnation} now"
            answers.append(Outcome(name, "gone", message, status))
        elif copy is None:
            answers.append(Outcome(name, "refused", f"nothing of it runs: it is {status.state}", status))
        else:
            copy.tree.signal(signo, scope)
            supervisor.events.add("signal", f"signal {signo} to its {scope}", name, copy.incarnation)
            answers.append(Outcome(name, "done", f"signal {signo} sent", status))
    return answers
