"""What clients call services: names, globs and names by group; and when nobody can say yet what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.config import groups as by_group
from holdfast.config.groups import Groups, is_pattern


class UnknownService(ValueError):
    """A name that is no service's, or a pattern that matches none; `name` is what was given, `known` what could be."""

    def __init__(self, name: str, known: Sequence[str], groups: Groups) -> None:
        self.name = name
        group, colon, pattern = name.partition(":")
        what = f"no service {'matches' if is_pattern(name) else 'is called'} {name!r}"
        if colon and group in groups:
            known = [f"{group}:{each}" for each in groups[group]]
        elif colon:
            what, known = f"no group is called {group!r}", [f"{each}:{pattern}" for each in groups]
        elif name in groups:
            known = [f"{name}:*"]
        self.known = list(known)
        super().__init__(what)


class StillAdopting(Exception):
    """Start-up is not through yet: what can be said of services now may be wrong a moment later."""

    def __init__(self, adopted: int, found: int) -> None:
        super().__init__(f"the supervisor has just started and is taking over what runs: {adopted} of {found} so far")


def without_groups(patterns: Iterable[str], groups: Groups) -> list[str]:
    """The same patterns with names in the place of groups, for what is about past services, too.  UnknownService."""
    result = []
    for text in patterns:
        pattern, at, number = text.partition("@")
        if ":" not in pattern:
            result.append(text)
        elif hits := by_group.in_group(pattern, groups):
            result += [f"{name}{at}{number}" for name in hits]
        else:
            raise UnknownService(pattern, (), groups)
    return result


def matching(names: Sequence[str], patterns: Iterable[str], groups: Groups) -> list[str]:
    """The names that match one of the patterns, in the order of names; all without patterns.  UnknownService.

    A pattern is a name, a glob, or `GROUP:PATTERN`.
    """
    patterns = list(patterns)
    if not patterns:
        return list(names)
    wanted = set()
    for pattern in patterns:
        if ":" in pattern:
            hits = by_group.in_group(pattern, groups) or []
        elif is_pattern(pattern):
            hits = by_group.matching(names, pattern)
        else:
            hits = [pattern] if pattern in names else []
        if not hits:
            raise UnknownService(pattern, names, groups)
        wanted.update(hits)
    return [name for name in names if name in wanted]
