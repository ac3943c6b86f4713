"""What differs between two configurations, and what that means for services that run.  Pure.

A key is either taken over at once (APPLIED) or at the next start.  Of the latter an incarnation keeps what it was
started with; `definition` is their digest, by which a later supervisor knows a tree that was started otherwise.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, Literal, TypeAlias

import msgspec

from .model import Service

# Keys of a service that need no new process.  A key that is not here restarts what runs when it changes.
APPLIED = frozenset((
    "restart", "backoff", "start_limit", "success_exit_codes", "requires", "after", "stop_signal", "stop_scope",
    "grace", "essential", "on_owner_loss", "ready_timeout",
))  # fmt: skip

Meaning: TypeAlias = Literal["start", "stop", "restart", "apply"]


def applied(running: Service, wanted: Service) -> Service:
    """What holds for an incarnation of `running` once `wanted` was accepted: its own, but for the keys of APPLIED."""
    return msgspec.structs.replace(running, **{key: getattr(wanted, key) for key in APPLIED})


def definition(spec: Service) -> str:
    """Digest of what an incarnation is started with.  What has its default is left out, so that a key of a later
    version changes nothing for those that do not use it."""
    told = {key: value for key, value in _told(spec).items() if key not in APPLIED}
    return hashlib.blake2b(msgspec.json.encode(told, order="deterministic"), digest_size=12).hexdigest()


def _told(struct: msgspec.Struct) -> dict[str, Any]:
    values = ((key, default, getattr(struct, key)) for key, default in _defaults(type(struct)))
    return {
        key: _told(value) if isinstance(value, msgspec.Struct) else value
        for key, default, value in values if value != default
    }  # fmt: skip


@functools.cache
def _defaults(struct: type[msgspec.Struct]) -> list[tuple[str, object]]:
    return [
        (field.name, field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
        for field in msgspec.structs.fields(struct)
    ]
