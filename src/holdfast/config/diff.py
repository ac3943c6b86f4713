"""What differs between two configurations, and what that means for services that run.  Pure.

A key is either taken over at once (APPLIED) or at the next start.  Of the latter an incarnation keeps what it was
started with; `definition` is their digest, by which a later supervisor knows a tree that was started otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import shlex
import signal
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from .errors import one_line
from .model import Config, Key, Keys, Service, Supervisor, keys_of
from .units import duration_text, percent_text, size_text

# Keys of a service that need no new process (but see `_given_health`).  Any other restarts what runs when it changes,
# but for `resources` (see `_given_resources`).
APPLIED = frozenset((
    "restart", "backoff", "start_limit", "success_exit_codes", "requires", "after", "stop_signal", "stop_scope",
    "grace", "essential", "on_owner_loss", "health", "schedule", "pre_start", "post_stop", "reload_command",
    "restart_order", "fd_store_max", "pid_file", "lineage",
))  # fmt: skip

def applied(running: Service, wanted: Service) -> Service:
    """What holds for an incarnation of `running` once `wanted` was accepted: its own, but for the keys of APPLIED."""
    spec = msgspec.structs.replace(running, **{key: getattr(wanted, key) for key in APPLIED})
    if _given_health(spec) != _given_health(running):
        spec = msgspec.structs.replace(spec, health=running.health)
    if _given_resources(wanted) == _given_resources(running):
        spec = msgspec.structs.replace(spec, resources=wanted.resources)
    return spec


def definition(spec: Service) -> str:
    """Digest of what an incarnation is started with.  What has its default is left out, so that a key of a later
    version changes nothing for those that do not use it."""
    told = {key: value for key, value in _told(spec).items() if key not in APPLIED and key != "resources"}
    told |= _given_health(spec) | _given_resources(spec)
    return hashlib.blake2b(msgspec.json.encode(told, order="deterministic"), digest_size=12).hexdigest()


def _given_health(spec: Service) -> dict[str, object]:
    """What `health` needs that can only be given at a start: its descriptor, or the socket of sd_notify, where it is
    what brings that.  Who was started without cannot say that it is well."""
    health = spec.health
    if health is None or not (health.notify or health.fd is not None):
        return {}
    if health.notify and msgspec.structs.replace(spec, health=None).speaks:
        return {}
    return {"health": "notify" if health.notify else health.fd}


def _given_resources(spec: Service) -> dict[str, object]:
    """What `resources` needs that can only be given at a start: a cgroup, whose limits can be changed.  Where it may do
    without, nobody knows from here how they are held."""
    asked = spec.resources
    if asked is None:
        return {}
    return {"resources": _told(asked) if asked.optional else "cgroup"}


Effect = Literal["starts", "stops", "restarts", "applies"]


class Change(NamedTuple):
    """What differs of one service, or of all that is none (`service` is "")."""

    service: str
    change: Literal["added", "removed", "changed"]
    effect: Effect
    keys: tuple[str, ...]  # in words: 'command "a" -> "b"'; values of environment variables are not shown

    def __str__(self) -> str:
        what = ": ".join(filter(None, (self.service, ", ".join(self.keys))))
        return f"{self.change} {what} ({self.effect})"


def changes(old: Config, new: Config) -> list[Change]:
    """Removed ones first, the others in the order of the new file."""
    found = []
    keys = tuple(_differing(keys_of(Supervisor), old.supervisor, new.supervisor, "supervisor."))
    if keys := keys + tuple(_groups(old.groups, new.groups)):
        found.append(Change("", "changed", "applies", keys))
    found += [Change(name, "removed", "stops", ()) for name in old.services if name not in new.services]
    for name, spec in new.services.items():
        before = old.services.get(name)
        if before is None:
            found.append(Change(name, "added", "starts", ()))
        elif before != spec:
            effect: Effect = "applies" if applied(before, spec) == spec else "restarts"
            if effect == "applies" and before.schedule.given and not spec.schedule.given:
                effect = "starts"  # it has waited for its time
            found.append(Change(name, "changed", effect, tuple(_differing(keys_of(Service), before, spec, ""))))
    return found


def fixed(old: Config, new: Config) -> list[str]:
    """What differs and cannot change while a supervisor runs, in words."""
    budget = new.supervisor.start_budget  # all but this
    kept = msgspec.structs.replace(old.supervisor, start_budget=budget)
    return list(_differing(keys_of(Supervisor), kept, new.supervisor, "supervisor."))


def _groups(old: Mapping[str, tuple[str, ...]], new: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Names by group; that replicas are more or fewer is shown by their services."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        made = all(each.startswith(f"{name}-") for each in (*(before or ()), *(after or ())))
        if before != after and not made:
            yield f"group.{name} {_words(before, '')} -> {_words(after, '')}"


def _differing(keys: Keys, old: msgspec.Struct, new: msgspec.Struct, prefix: str) -> Iterator[str]:
    for name, key in keys.items():
        path = f"{prefix}{name}"
        if isinstance(key, dict):
            yield from _differing(key, old, new, f"{path}.")
            continue
        before, after = getattr(old, key.field), getattr(new, key.field)
        if before == after:
            continue
        if isinstance(before, msgspec.Struct) and type(before) is type(after):
            yield from _differing(keys_of(type(before)), before, after, f"{path}.")
        elif key.about.form == "env":
            for each in sorted({*before, *after}):
                if before.get(each) != after.get(each):
                    how = "changed" if each in before and each in after else "added" if each in after else "removed"
                    yield f"{path}.{each} {how}"
        else:
            yield f"{path} {_words(before, key.about.form)} -> {_words(after, key.about.form)}"


def _words(value: object, form: str) -> str:
    if value is None:
        return "unset"
    if isinstance(value, msgspec.Struct):  # a table that was not there, or is not any more
        told = _told(value)
        keys = [key for name, key in keys_of(type(value)).items() if isinstance(key, Key) and name in told]
        words = (f"{key.field} = {_words(getattr(value, key.field), key.about.form)}" for key in keys)
        return f"{{ {', '.join(words)} }}"
    if form == "duration" and isinstance(value, float):
        return duration_text(value)
    if form == "size" and isinstance(value, int):
        return size_text(value)
    if form == "percent" and isinstance(value, float):
        return percent_text(value)
    if form == "signal" and isinstance(value, int):
        return signal.Signals(value).name
    if form == "umask" and isinstance(value, int):
        return f"{value:03o}"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_words(each, form)}' for key, each in value.items())} }}" if value else "{}"
    if isinstance(value, tuple) and all(isinstance(each, str) for each in value):
        return one_line(value[0] if form == "command" and len(value) == 1 else shlex.join(value))
    return one_line(value)


def _told(struct: msgspec.Struct) -> dict[str, Any]:
    given = _defaults(type(struct))
    return {key: _plain(value) for key, default in given if (value := getattr(struct, key)) != default}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return _told(value) if isinstance(value, msgspec.Struct) else value


@functools.cache
def _defaults(struct: type[msgspec.Struct]) -> list[tuple[str, object]]:
    return [
        (field.name, field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
        for field in msgspec.structs.fields(struct)
    ]
