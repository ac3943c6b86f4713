"""A `holdfast.toml` to a Config: every mistake of the file at once, each with its place and what was meant.

Comes in: a path and an environment.  Goes out: specs, or a ConfigError with all Problems.  Changes nothing, starts
nothing.  Nothing that a file contains leads to any other exception.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from . import places, positions, units
from .daemon_forms import DAEMON_FORMS, wrong_daemon
from .errors import ConfigError, Problem, Wrong, one_line
from .forms import FORMS as PLAIN_FORMS
from .forms import Around, Several, did_you_mean, kind
from .hints import LATER, OTHER_WORDS, TABLES
from .identity_forms import IDENTITY_FORMS
from .links import Links
from .model import NAME_LENGTH_MAX, SERVICE_NAME, Config, Group, Key, Keys, Log, Schedule, Service, Supervisor, keys_of
from .places import find
from .probe_forms import PROBE_FORMS, wrong_probes
from .resource_forms import RESOURCE_FORMS, wrong_resources
from .socket_forms import SOCKET_FORMS, twice, wrong_sockets
from .sources import DIRECTORY, At, Source, read_all
from .tables import INDEX, NO_DEFAULTS, default_keys, merged, with_index, words_in_braces
from .tcp import HOW_TO_MAKE_ONE

FORMS = {**PLAIN_FORMS, **PROBE_FORMS, **SOCKET_FORMS, **IDENTITY_FORMS, **DAEMON_FORMS, **RESOURCE_FORMS}
RESERVED = ("holdfast.log", "holdfast.log.1")  # files in log_dir, where each service has a directory
TABLES_OF_MAIN = ("supervisor", "defaults", "service", "group")
TABLES_OF_OTHERS = ("service", "group")  # in conf.d

__all__ = ["ConfigError", "Problem", "find", "load"]


def load(path: str, *, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a file, and those in conf.d beside it.  ConfigError has everything that is wrong.  Any thread.

    `environ` is where `${VAR}` is looked up.
    """
    sources, problems = read_all(path)
    if not sources:
        raise ConfigError(problems)
    return _Files(sources, problems, environ).config()


class _Files:
    """The files of one configuration while they are being checked."""

    def __init__(self, sources: list[Source], unread: list[Problem], environ: Mapping[str, str]) -> None:
        self.sources = sources
        self.main = sources[0]
        self.unread = unread
        self.path = os.path.abspath(self.main.path)
        self.around = Around(os.path.dirname(self.path), environ)
        self.wrongs: list[tuple[At, str, str]] = []
        self.defaults: dict[str, Any] | None = None  # until they are known to be right
        self.places: dict[str, At] = {}  # service: its table; of replicas, the one that they are made of
        self.replicas: dict[str, tuple[str, ...]] = {}  # the names of those that a table has made
        self.groups: dict[str, tuple[str, ...]] = {}

    def wrong(self, at: At, message: str, hint: str = "") -> None:
        self.wrongs.append((at, message, hint))

    def config(self) -> Config:
        for source in self.sources:
            self.check_tables(source)
        supervisor = self.supervisor(self.main.data.get("supervisor", {}))
        self.check_defaults(self.main.data.get("defaults", {}))
        services = self.services()
        if not self.unread:  # else nobody knows what there is to be named
            links = Links(services, self.replicas, self.places, self.wrong)
            self.read_groups(links)
            services = links.resolved({**self.replicas, **self.groups})
            for name, message, hint in twice(filter(None, services.values())):
                self.wrong(self.places[name] / "sockets", message, hint)
        if self.wrongs or self.unread:
            raise ConfigError(self.problems())
        specs = {name: spec for name, spec in services.items() if spec}
        files = tuple(os.path.abspath(source.path) for source in self.sources)
        return Config(self.path, supervisor, specs, {**self.replicas, **self.groups}, files)

    def problems(self) -> list[Problem]:
        """File by file in the order of the lines, which are only looked up now."""
        found = dict.fromkeys(self.problem(*each) for each in self.wrongs)  # replicas share their mistakes
        return sorted((*self.unread, *found), key=lambda each: (each.file != self.main.path, each.file, each.line))

    def problem(self, at: At, message: str, hint: str) -> Problem:
        source, path = at.source, at.path
        if at.service and path not in source.lines:
            default = ("defaults", *path[2:])
            if len(path) > 2 and default in self.main.lines:
                source, path = self.main, default
        return Problem(source.path, positions.line_of(source.lines, path), at.service, at.key, message, hint)

    # -- tables

    def supervisor(self, table: object) -> Supervisor:
        environ = self.around.environ
        values: dict[str, Any] = {
            "run_dir": places.default_run_dir(environ),
            "log_dir": places.default_log_dir(environ),
            "state_dir": places.default_state_dir(environ),
        }
        at = At(self.main, ("supervisor",))
        values.update(self.table(Supervisor, table, at, self.around))
        spec = Supervisor(**values)
        if isinstance(table, dict):
            self.check_http(table.get("http", {}), at / "http")
        return spec

    def check_tables(self, source: Source) -> None:
        known = TABLES_OF_MAIN if source.is_main else TABLES_OF_OTHERS
        for name in source.data:
            if name in known:
                continue
            if name in TABLES_OF_MAIN:
                at = At(source, (name,))
                self.wrong(at, f"is no table of a file in {DIRECTORY}", f"it stands in {self.main.path}")
            else:
                self.unknown(At(source, (name,)), TABLES, known)

    def check_defaults(self, table: object) -> None:
        """Once for all services, who have them only when nothing is wrong with them: else each would say it again."""
        at = At(self.main, ("defaults",))
        before = len(self.wrongs)
        if isinstance(table, dict):
            for name in filter(NO_DEFAULTS.__contains__, table):
                self.wrong(at / name, "has no default", "give it in each service")
            self.keys(default_keys(), {name: table[name] for name in table if name not in NO_DEFAULTS}, at, self.around)
            for path, word in words_in_braces(table):
                if f"{{{word}}}" == INDEX:
                    self.wrong(at._replace(path=(*at.path, *path)), f"{INDEX} is replaced in services alone", "move it")
        else:
            self.wrong(at, f"must be a table, not {kind(table)}")
        if len(self.wrongs) == before:
            self.defaults = table  # type: ignore[assignment]

    def services(self) -> dict[str, Service | None]:
        """Every name that is there; None for one that cannot be used."""
        found: dict[str, Service | None] = {}
        tables: dict[str, At] = {}
        for at, table in self.named("service", "a table of services", "[service.NAME]"):
            if at.service in tables:
                self.wrong(at, "is defined twice", f"also in {tables[at.service].where}")
                continue
            tables[at.service] = at
            made = self.made_by(at, table)
            if twice := [name for name in made if name in found]:
                hint = f"also in {self.places[twice[0]].where}"
                self.wrong(at, f"makes {one_line(twice[0])}, which is defined twice", hint)
            self.places.update(dict.fromkeys(made, at))
            found.update(made)
        if not tables and not self.wrongs:
            hint = "`[service.NAME]` begins one; `holdfast init` writes an example"
            self.wrong(At(self.main, ()), "has no service", hint)
        return found

    def named(self, what: str, must_be: str, hint: str) -> Iterator[tuple[At, object]]:
        """The tables of services, or of groups, of all files."""
        for source in self.sources:
            tables = source.data.get(what, {})
            if not isinstance(tables, dict):
                self.wrong(At(source, (what,)), f"must be {must_be}, not {kind(tables)}", hint)
                continue
            for name, table in tables.items():
                yield At(source, (what, name), name if what == "service" else ""), table

    def made_by(self, at: At, table: object) -> dict[str, Service | None]:
        """The services that a table makes: one of its name, or as many as it says."""
        name, before = at.service, len(self.wrongs)
        self.check_name(name, at, "a service")
        if not isinstance(table, dict):
            hint = "a table is missing: [service.NAME]" if name in keys_of(Service) else f"[service.{name}]"
            self.wrong(at, f"must be a table, not {kind(table)}", hint)
            return {name: None}
        if "replicas" not in table:
            return {name: self.service(name, table, at)}
        own = {key: value for key, value in table.items() if key != "replicas"}
        names = self.replicas[name] = self.replica_names(table["replicas"], own, at)
        first = self.service(f"{name}-1", with_index(own, 1), at)  # of none at all, too: for its mistakes
        if len(self.wrongs) > before:
            return {name: first, **dict.fromkeys(names)}  # the others have the same mistakes
        made = {each: self.service(each, with_index(own, index), at) for index, each in enumerate(names[1:], 2)}
        return ({names[0]: first} if names else {}) | made

    def replica_names(self, replicas: object, own: dict[str, Any], at: At) -> tuple[str, ...]:
        count = {"replicas": 0}
        key = keys_of(Service)["replicas"]
        assert isinstance(key, Key)
        self.value(key, replicas, at / "replicas", self.around, count)
        for path, word in words_in_braces(own):
            if f"{{{word}}}" != INDEX:
                hint = f"{INDEX} is; write {{{{{word}}}}} for the text itself"
                self.wrong(at._replace(path=(*at.path, *path)), f"{{{word}}} is not replaced", hint)
        names = tuple(f"{at.service}-{index}" for index in range(1, count["replicas"] + 1))
        if names and len(names[-1]) > NAME_LENGTH_MAX >= len(at.service):
            self.check_name(names[-1], at / "replicas", "a service")
        return names

    def service(self, name: str, own: dict[str, Any], at: At) -> Service | None:
        before = len(self.wrongs)
        table = merged(self.defaults or {}, own, keys_of(Service))
        values = self.table(Service, table, at, self.around._replace(shell=table.get("shell") is True))
        if "command" not in table:
            self.wrong(at, "has no command", 'such as command = ["sleep", "1h"]')
        values.setdefault("cwd", self.around.directory)
        spec = Service(**{"name": name, "command": ("",), **values})
        if len(self.wrongs) == before and self.defaults is not None:
            self.check_together(spec, table, at)
        return spec

    def table(self, struct: type[msgspec.Struct], table: object, at: At, around: Around) -> dict[str, Any]:
        """The fields that the table gives, each checked; what is wrong is noted and left out."""
        if not isinstance(table, dict):
            self.wrong(at, f"must be a table, not {kind(table)}")
            return {}
        return self.keys(keys_of(struct), table, at, around)

    def keys(self, known: Keys, table: dict[str, Any], at: At, around: Around) -> dict[str, Any]:
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
                if isinstance(value, str) and key.about.short:
                    value = {key.about.short: value}
                inner = around._replace(shell=False)  # it speaks of the service's own command alone
                values[key.field] = key.type(**self.table(key.type, value, at / name, inner))
            elif key.about.form == "tables":
                values[key.field] = self.tables(key, value, at / name, around._replace(shell=False))
            else:
                self.value(key, value, at / name, around, values)
        return values

    def tables(self, key: Key, value: object, at: At, around: Around) -> tuple[msgspec.Struct, ...]:
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

    def value(self, key: Key, value: object, at: At, around: Around, values: dict[str, Any]) -> None:
        try:
            values[key.field] = FORMS[key.about.form](value, key, around)
        except Wrong as wrong:
            self.wrong(at, wrong.message, wrong.hint)
        except Several as several:
            for name, each in several.wrongs:
                self.wrong(at / name, each.message, each.hint)

    def unknown(self, at: At, later: Mapping[str, str], known: Any) -> None:
        name = at.path[-1]
        if name in later:
            self.wrong(at, "is not in this version", later[name])
        else:
            ours = OTHER_WORDS.get(name.lower().replace("-", "_"))
            hint = f'did you mean "{ours}"?' if ours in known else did_you_mean(name, known)
            what = "is no table of this file" if len(at.path) == 1 else "is no key"
            self.wrong(at, what, hint or f"known: {', '.join(known)}")

    # -- what one value alone does not show

    def check_name(self, name: str, at: At, whose: str) -> None:
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
            why = "a colon stands between a group and a pattern of names"
        self.wrong(at, f"{one_line(name)} cannot be the name of {whose}", why)

    def check_together(self, spec: Service, table: dict[str, Any], at: At) -> None:
        backoff = spec.backoff
        for field in ("first", "then"):
            if getattr(backoff, field) > backoff.max:
                self.wrong(at / "backoff" / field, "is longer than backoff.max", "make max longer, or this shorter")
        self.check_log(spec.log, table.get("log", {}), at / "log" / "cap")
        wrongs = (*wrong_probes(spec), *wrong_sockets(spec), *wrong_daemon(spec), *wrong_resources(spec))
        for key, message, hint in wrongs:
            self.wrong(at / key, message, hint)
        if spec.pty and spec.stdin == "pipe":
            self.wrong(at / "stdin", "is the terminal's where pty = true", "leave `stdin` out")
        if spec.pty and not spec.log.merge:
            self.wrong(at / "log" / "merge", "cannot be false where pty = true", "a terminal has one stream")
        if spec.type == "oneshot" and spec.restart in ("always", "unless-stopped"):
            hint = '"on-failure" repeats it until it succeeds; a program that runs all the time is type "simple"'
            self.wrong(at / "restart", f'"{spec.restart}" would run a oneshot again and again', hint)

        self.check_schedule(spec, table.get("schedule"), at / "schedule")

    def check_schedule(self, spec: Service, given: object, at: At) -> None:
        schedule = spec.schedule
        if not schedule.given:
            if given and schedule != Schedule():
                self.wrong(at, "has neither cron nor every", 'such as cron = "0 3 * * *" or every = "5m"')
            return
        if schedule.cron and schedule.every:
            self.wrong(at, "has both cron and every", "leave one of them out")
        if schedule.every and schedule.timezone:
            self.wrong(at / "timezone", "means nothing to every", "it goes with cron")
        if spec.type != "oneshot":
            hint = 'type = "oneshot"; what runs all the time needs no time to be started at'
            self.wrong(at, f'is for services of type "oneshot", and this is "{spec.type}"', hint)
        if spec.essential:
            self.wrong(at, "cannot go with essential", "the supervisor would end with its first run")

    def check_http(self, given: object, at: At) -> None:
        if not isinstance(given, dict):
            return
        if "listen" in given and "token_file" not in given:
            hint = 'such as token_file = "/etc/holdfast/token"; ' + HOW_TO_MAKE_ONE.format(path="/etc/holdfast/token")
            self.wrong(at, "has no token_file, and whoever can connect could command everything", hint)
        if any(given.values()) and "listen" not in given:
            self.wrong(at, "does not say where to listen", 'such as listen = "127.0.0.1:9001"')

    def check_log(self, log: Log, given: Mapping[str, Any], at: At) -> None:
        cap, size = units.size_text(log.cap), units.size_text(log.rotate_size)
        kept = log.rotate_size * (log.rotate_count + 1) * (1 if log.merge else 2)
        if log.cap < log.rotate_size:
            self.wrong(at, f"{cap} is smaller than one file: log.rotate.size is {size}")
        elif log.cap < kept and not ("cap" in given and "rotate" in given):
            # Who gives both may mean it; a default must not be what silences a service.
            message = f"{cap} is less than what rotation keeps ({units.size_text(kept)}): new lines would be dropped"
            self.wrong(at, message, "give log.cap and log.rotate numbers that fit together")

    # -- what names name

    def read_groups(self, links: Links) -> None:
        """[group.NAME], beside those that replicas form."""
        tables = list(self.named("group", "a table of groups", "[group.NAME]"))
        declared = {at.path[1] for at, _ in tables}
        places: dict[str, At] = {}
        for at, table in tables:
            name = at.path[1]
            self.check_name(name, at, "a group")
            given = self.table(Group, table, at, self.around).get("services", ())
            if isinstance(table, dict) and "services" not in table:
                self.wrong(at, "has no services", 'such as services = ["web", "db*"]')
            if name in places:
                self.wrong(at, f"{one_line(name)} is defined twice", f"also in {places[name].where}")
            elif name in self.replicas:
                self.wrong(at, f"{one_line(name)} is the group of the replicas of that service", "give it another name")
            places.setdefault(name, at)
            nested = [word for word in given if ":" in word and word.partition(":")[0] in declared]
            for word in nested:
                self.wrong(at / "services", f"{one_line(word)} names a group", "a group has services: name them")
            words = [word for word in given if word not in nested]
            self.groups[name] = links.named_by(words, self.replicas, at / "services")
