"""A `holdfast.toml` to a Config: every mistake of the file at once, each with its place and what was meant.

Comes in: a path and an environment.  Goes out: specs, or a ConfigError with all Problems.  Changes nothing, starts
nothing.  Nothing that a file contains leads to any other exception.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import msgspec

from . import graph, places, positions, units
from .errors import ConfigError, Problem, Wrong, one_line
from .files import Untrusted, read
from .forms import FORMS, Around, Several, did_you_mean, kind
from .hints import LATER, OTHER_WORDS, TABLES
from .model import NAME_LENGTH_MAX, SERVICE_NAME, SOCKETS_MAX, Config, Key, Keys, Log, Service, Supervisor, keys_of
from .places import find
from .socket_forms import fd_name, listen

READ = {**FORMS, "listen": listen, "fd_name": fd_name}
RESERVED = ("holdfast.log", "holdfast.log.1")  # files in log_dir, where each service has a directory
HINTS_MAX = 200  # mistakes; a search among thousands of names for each of thousands would take minutes

__all__ = ["ConfigError", "Problem", "find", "load"]


def load(path: str, *, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a file.  ConfigError has everything that is wrong with it.  Any thread.

    `environ` is where `${VAR}` is looked up.
    """
    data, text = {}, ""
    try:
        text = read(path).decode("utf-8-sig")
        data = tomllib.loads(text)
    except (OSError, Untrusted, ValueError, RecursionError) as error:
        raise ConfigError([_unreadable(path, text, error)]) from None
    return _File(path, text, environ).config(data)


def _unreadable(path: str, text: str, error: Exception) -> Problem:
    line, message, hint = 0, str(error), ""
    if isinstance(error, FileNotFoundError):
        message, hint = "there is no such file", "`holdfast init` writes one"
    elif isinstance(error, OSError):
        message = f"cannot be read: {error.strerror or error}"
    elif isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        message = f"is not UTF-8: byte 0x{error.object[error.start]:02x}"
    elif isinstance(error, RecursionError):
        message = "is nested too deeply"
    elif isinstance(error, ValueError):
        if found := re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message):
            line = int(found[1] or text.count("\n") + (not text.endswith("\n")))
            message = message[: found.start()] if found[1] else message[: found.start()] + " at the end of the file"
        if "twice" in message or "overwrite" in message:
            hint = "a table or a key of this name stands above"
        elif (
            line > 1 and (above := text.splitlines()[line - 2 : line - 1]) and above[0].count("{") > above[0].count("}")
        ):
            hint = "an inline table { … } stands on one line"
        message = f"is not TOML: {message[:1].lower()}{message[1:]}"
    return Problem(path, line, "", "", message, hint)


class _At(NamedTuple):
    """A place in the file: the tables and keys that lead to it."""

    path: tuple[str, ...]
    service: str = ""

    def __truediv__(self, key: str) -> _At:
        return _At((*self.path, key), self.service)

    @property
    def key(self) -> str:
        return ".".join(self.path[2:] if self.service else self.path)


class _File:
    """One file while it is being checked."""

    def __init__(self, path: str, text: str, environ: Mapping[str, str]) -> None:
        self.path = path
        self.text = text
        self.around = Around(os.path.dirname(os.path.abspath(path)), environ)
        self.wrongs: list[tuple[_At, str, str]] = []
        self.listening: dict[tuple[str, str], str] = {}  # address and type -> the service

    def wrong(self, at: _At, message: str, hint: str = "") -> None:
        self.wrongs.append((at, message, hint))

    def config(self, data: dict[str, Any]) -> Config:
        for name in data:
            if name not in ("supervisor", "service"):
                self.unknown(_At((name,)), TABLES, ("supervisor", "service"))
        supervisor = self.supervisor(data.get("supervisor", {}))
        services = self.services(data.get("service", {}))
        self.check_graph(services)
        if not services and not self.wrongs:
            self.wrong(_At(()), "has no service", "`[service.NAME]` begins one; `holdfast init` writes an example")
        if self.wrongs:
            raise ConfigError(self.problems())
        return Config(os.path.abspath(self.path), supervisor, {name: spec for name, spec in services.items() if spec})

    def problems(self) -> list[Problem]:
        """In the order of the lines, which are only looked up now."""
        lines = positions.lines(self.text)
        found = [
            Problem(self.path, positions.line_of(lines, at.path), at.service, at.key, message, hint)
            for at, message, hint in self.wrongs
        ]
        return sorted(found, key=lambda problem: problem.line)

    # -- tables

    def supervisor(self, table: object) -> Supervisor:
        environ = self.around.environ
        values: dict[str, Any] = {
            "run_dir": places.default_run_dir(environ),
            "log_dir": places.default_log_dir(environ),
            "state_dir": places.default_state_dir(environ),
        }
        values.update(self.table(Supervisor, table, _At(("supervisor",)), self.around))
        return Supervisor(**values)

    def services(self, tables: object) -> dict[str, Service | None]:
        """Every name that is there; None for one that cannot be used."""
        if not isinstance(tables, dict):
            self.wrong(_At(("service",)), f"must be a table of services, not {kind(tables)}", "[service.NAME]")
            return {}
        return {name: self.service(name, table) for name, table in tables.items()}

    def service(self, name: str, table: object) -> Service | None:
        at = _At(("service", name), name)
        before = len(self.wrongs)
        self.check_name(name, at)
        if not isinstance(table, dict):
            hint = "a table is missing: [service.NAME]" if name in keys_of(Service) else f"[service.{name}]"
            self.wrong(at, f"must be a table, not {kind(table)}", hint)
            return None
        values = self.table(Service, table, at, self.around._replace(shell=table.get("shell") is True))
        if "command" not in table:
            self.wrong(at, "has no command", 'such as command = ["sleep", "1h"]')
        values.setdefault("cwd", self.around.directory)
        spec = Service(**{"name": name, "command": ("",), **values})
        if len(self.wrongs) == before:
            self.check_together(spec, table, at)
        return spec

    def table(self, struct: type[msgspec.Struct], table: object, at: _At, around: Around) -> dict[str, Any]:
        """The fields that the table gives, each checked; what is wrong is noted and left out."""
        if not isinstance(table, dict):
            self.wrong(at, f"must be a table, not {kind(table)}")
            return {}
        return self.keys(keys_of(struct), table, at, around)

    def keys(self, known: Keys, table: dict[str, Any], at: _At, around: Around) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in table.items():
            key = known.get(name)
            if key is None:
                self.unknown(at / name, LATER, known)
            elif isinstance(key, dict):
                if isinstance(value, dict):
                    values.update(self.keys(key, value, at / name, around))
                else:
                    self.wrong(at / name, f"must be a table, not {kind(value)}", f"its keys: {', '.join(key)}")
            elif key.about.form == "table":
                assert isinstance(key.type, type)
                values[key.field] = key.type(**self.table(key.type, value, at / name, around))
            elif key.about.form == "tables":
                values[key.field] = self.tables(key, value, at / name, around)
            else:
                self.value(key, value, at / name, around, values)
        return values

    def tables(self, key: Key, value: object, at: _At, around: Around) -> tuple[msgspec.Struct, ...]:
        """A list of tables; one that lacks what must be given is left out."""
        if not isinstance(value, list):
            self.wrong(at, f"must be a list of tables, not {kind(value)}", "[{ … }]")
            return ()
        struct = get_args(key.type)[0]
        result = []
        for index, each in enumerate(value):
            before = len(self.wrongs)
            fields = self.table(struct, each, at / str(index + 1), around)
            for field in msgspec.structs.fields(struct):
                if field.required and len(self.wrongs) == before and field.name not in fields:
                    self.wrong(at / str(index + 1), f"has no {field.name}")
            if len(self.wrongs) == before:
                result.append(struct(**fields))
        return tuple(result)

    def value(self, key: Key, value: object, at: _At, around: Around, values: dict[str, Any]) -> None:
        try:
            values[key.field] = READ[key.about.form](value, key, around)
        except Wrong as wrong:
            self.wrong(at, wrong.message, wrong.hint)
        except Several as several:
            for name, each in several.wrongs:
                self.wrong(at / name, each.message, each.hint)

    def unknown(self, at: _At, later: Mapping[str, str], known: Any) -> None:
        name = at.path[-1]
        if name in later:
            self.wrong(at, "is not in this version", later[name])
        else:
            meant = OTHER_WORDS.get(name.lower().replace("-", "_"))
            hint = f'did you mean "{meant}"?' if meant in known else did_you_mean(name, known)
            what = "is no table of this file" if len(at.path) == 1 else "is no key"
            self.wrong(at, what, hint or f"known: {', '.join(known)}")

    # -- what one value alone does not show

    def check_name(self, name: str, at: _At) -> None:
        if re.fullmatch(SERVICE_NAME, name) and name not in RESERVED:
            return
        why = "letters, digits and . _ - are allowed"
        if len(name) > NAME_LENGTH_MAX:
            why = f"it has {len(name)} characters, {NAME_LENGTH_MAX} are allowed"
        elif name.startswith((".", "-")):
            why = "it would look like a hidden file or an option: begin with a letter, a digit or _"
        elif "@" in name:
            why = "what follows an @ is the number of an incarnation: web@41"
        elif set(name) & set("*?["):
            why = "commands take * ? [ for patterns of names"
        elif name in RESERVED:
            why = "the supervisor's own log has this place in log_dir"
        elif ":" in name:
            why = "a colon is kept for groups of services"
        self.wrong(at, f"{one_line(name)} cannot be the name of a service", why)

    def check_together(self, spec: Service, table: dict[str, Any], at: _At) -> None:
        backoff = spec.backoff
        for field in ("first", "then"):
            if getattr(backoff, field) > backoff.max:
                self.wrong(at / "backoff" / field, "is longer than backoff.max", "make max longer, or this shorter")
        self.check_log(spec.log, table.get("log", {}), at / "log" / "cap")
        if spec.type == "oneshot" and spec.restart_order == "start-first":
            self.wrong(at / "restart_order", "a oneshot has no successor that could be ready before it ends")
        self.check_sockets(spec, at / "sockets")
        if spec.type == "oneshot" and spec.restart in ("always", "unless-stopped"):
            hint = '"on-failure" repeats it until it succeeds; a program that runs all the time is type "simple"'
            self.wrong(at / "restart", f'"{spec.restart}" would run a oneshot again and again', hint)

    def check_sockets(self, spec: Service, at: _At) -> None:
        if len(spec.sockets) > SOCKETS_MAX:
            self.wrong(at, f"are {len(spec.sockets)}, {SOCKETS_MAX} are allowed")
        for each in spec.sockets:
            if other := self.listening.get((each.listen, each.type)):
                self.wrong(at, f"{each.listen} is listened at twice", f"service {other} has it, too")
            self.listening[each.listen, each.type] = spec.name

    def check_log(self, log: Log, given: Mapping[str, Any], at: _At) -> None:
        cap, size = units.size_text(log.cap), units.size_text(log.rotate_size)
        kept = log.rotate_size * (log.rotate_count + 1) * (1 if log.merge else 2)
        if log.cap < log.rotate_size:
            self.wrong(at, f"{cap} is smaller than one file: log.rotate.size is {size}")
        elif log.cap < kept and not ("cap" in given and "rotate" in given):
            # Who gives both may mean it; a default must not be what silences a service.
            message = f"{cap} is less than what rotation keeps ({units.size_text(kept)}): new lines would be dropped"
            self.wrong(at, message, "give log.cap and log.rotate numbers that fit together")

    def check_graph(self, services: dict[str, Service | None]) -> None:
        specs = {name: spec for name, spec in services.items() if spec}
        for name, spec in specs.items():
            at = _At(("service", name), name)
            for key in ("requires", "after"):
                for other in getattr(spec, key):
                    if other == name:
                        self.wrong(at / key, "names the service itself", f"leave {one_line(name)} out")
                    elif other not in services:
                        others = [each for each in services if each != name]
                        near = did_you_mean(other, others) if len(self.wrongs) < HINTS_MAX else ""
                        hint = near or f"there is {', '.join(others[:8]) or 'no other'}"
                        self.wrong(at / key, f"there is no service {one_line(other)}", hint)
        for cycle in graph.cycles(specs):
            key = "requires" if cycle[1] in specs[cycle[0]].requires else "after"
            at = _At(("service", cycle[0], key), cycle[0])
            self.wrong(at, f"nothing could start first: {' -> '.join(cycle)}", "leave one of them out")
