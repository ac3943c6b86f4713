"""The README as a script: its fenced blocks are done in order, and what they print is compared with what it shows.

A `toml` block is written to ./holdfast.toml; in a `console` block each line after `$ ` is a command, and what follows
is its whole output, stderr included.  What cannot be the same twice is compared by rule:

* times of day, amounts of time and sizes (`2026-11-21 04:42:42`, `1.5 s`, `19 MiB`) stand for any other;
* a whole number of two or more digits (a pid, a port) stands for another one, but everywhere for the same one: what
  has pid 4642 before the supervisor is killed has to have it afterwards.  In a command it is replaced in the same way;
* the directory that the README calls /home/me/demo is the one in which this runs; spaces in a row count as one.

Everything else is exact: single digits, exit codes (`code 12`, `exit 12`, the number that `echo $?` prints), words.
Commands that only look (status, events, logs) are repeated until they show it: a reader is slower than a service.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

from helpers_wait import eventually

SHOWN_DIRECTORY = "/home/me/demo"
LOOKING = re.compile(r"holdfast (status|events|logs)\b(?!.*(-f|--follow))")
COMMAND_LIMIT = 60.0

# In this order; the names of groups are what is compared.
RULES = re.compile(
    r"(?P<DATE>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?)"
    r"|(?P<EXACT>\b(code|exit) \d+|^\d+$)"
    r"|(?P<SIZE>\b\d+(\.\d+)? (B|KiB|MiB|GiB)\b)"
    r"|(?P<TIME>\b\d+(\.\d+)? ?(ms|s|m|h|d)( \d+[smh])?\b)"
    r"|(?P<NUMBER>\d{2,})",
    re.MULTILINE,
)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and body of every fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.S | re.M)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """("toml", file) or (command, output), in order."""
    for language, body in blocks(text):
        if language == "toml":
            yield "toml", body
        elif language == "console":
            assert body.startswith("$ "), f"a console block begins with a command: {body!r}"
            for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
                command, _, output = part.partition("\n")
                yield command, output


class Numbers:
    """Which number of the README stands for which here."""

    def __init__(self) -> None:
        self.here: dict[str, str] = {}

    def same(self, shown: str, real: str) -> bool:
        """Whether real is what shown stands for; what is learnt of numbers is kept."""
        form, numbers = _form(shown)
        real_form, real_numbers = _form(real)
        if form != real_form:
            return False
        learnt = dict(self.here)
        for number, real_number in zip(numbers, real_numbers, strict=True):
            if learnt.setdefault(number, real_number) != real_number:
                return False
        if len(set(learnt.values())) != len(learnt):
            return False  # two of the README's are one here
        self.here = learnt
        return True

    def in_command(self, command: str) -> str:
        return re.sub(r"\b\d{2,}\b", lambda found: self.here.get(found[0], found[0]), command)


def _form(text: str) -> tuple[str, list[str]]:
    numbers: list[str] = []

    def form(found: re.Match[str]) -> str:
        kind = found.lastgroup if found.lastgroup in RULES.groupindex else None
        kind = kind or next(name for name in RULES.groupindex if found[name] is not None)
        if kind == "NUMBER":
            numbers.append(found[0])
        return found[0] if kind == "EXACT" else f"<{kind}>"

    return re.sub(r" +", " ", RULES.sub(form, text)), numbers


class Player:
    """Does the steps in a directory and remembers what was printed."""

    def __init__(
        self, directory: pathlib.Path, environment: dict[str, str], *, patience: float, may_kill: Callable[[int], bool]
    ) -> None:
        self.directory = directory
        self.environment = environment
        self.patience = patience
        self.may_kill = may_kill
        self.numbers = Numbers()
        self.printed: list[str] = []
        self._status = 0

    def play(self, text: str) -> None:
        """AssertionError where something else is printed."""
        for command, shown in steps(text):
            if command == "toml":
                (self.directory / "holdfast.toml").write_text(shown)
                self.printed.append("")
                continue
            before, tries = self._status, [""]
            patience = self.patience if LOOKING.match(command) else 0.0
            eventually(partial(self._try, command, before, shown, tries), patience)
            real = tries[-1]
            assert self.numbers.same(shown, real), f"$ {command}\n--- the README shows\n{shown}--- printed\n{real}"
            self.printed.append(real)

    def _try(self, command: str, status_before: int, shown: str, tries: list[str]) -> bool:
        tries.append(self._run(command, status_before))
        return self.numbers.same(shown, tries[-1])

    def _run(self, command: str, status_before: int) -> str:
        here = self.numbers.in_command(command)
        for pid in re.findall(r"^kill .*?(\d+)$", here):
            assert self.may_kill(int(pid)), f"{command}: {pid} is not ours"
        done = subprocess.run(
            ["sh", "-c", f"(exit {status_before})\n{here}"], cwd=self.directory, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=COMMAND_LIMIT,
        )  # fmt: skip
        self._status = done.returncode
        return done.stdout.replace(str(self.directory), SHOWN_DIRECTORY)
