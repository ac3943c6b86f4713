"""What clients call services: names and globs to names; and when nobody can say yet what they mean."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

GLOB = "*?["


class UnknownService(ValueError):
    """A name that is no service's, or a pattern that matches none; `name` is what was given."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = list(known)
        super().__init__(f"no service matches {name!r}" if is_pattern(name) else f"no service is called {name!r}")


class StillAdopting(Exception):
    """Start-up is not through yet: what can be said of services now may be wrong a moment later."""

    def __init__(self, adopted: int, found: int) -> None:
        super().__init__(f"the supervisor has just started and is taking over what runs: {adopted} of {found} so far")


def is_pattern(text: str) -> bool:
    return any(c in GLOB for c in text)


def matching(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns, in the order of names; all without patterns.  UnknownService."""
    patterns = list(patterns)
    if not patterns:
        return list(names)
    wanted = set()
    for pattern in patterns:
        if is_pattern(pattern):
            hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        else:
            hits = [pattern] if pattern in names else []
        if not hits:
            raise UnknownService(pattern, names)
        wanted.update(hits)
    return [name for name in names if name in wanted]
