"""What names name: services, the replicas of one, and names by group: `backend:*`, `backend:web-*`, `web:3`."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping

from .errors import Wrong, one_line
from .forms import did_you_mean

Groups = Mapping[str, tuple[str, ...]]
GLOB = "*?["
SHOWN = 8  # names in a message


def is_pattern(text: str) -> bool:
    """Whether it is a glob, rather than a name."""
    return any(c in GLOB for c in text)


def matching(names: Iterable[str], *patterns: str) -> list[str]:
    """The names that one of the globs matches."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def in_group(text: str, groups: Groups) -> list[str] | None:
    """The names that `GROUP:PATTERN` means; None when there is no such group.

    The pattern is one of whole names; of `web-3` in the group `web` what follows the group's name will do: `web:3`.
    """
    group, _, pattern = text.partition(":")
    return matching(groups[group], pattern, f"{group}-{pattern}") if group in groups else None


def meant(text: str, services: Collection[str], replicas: Groups, groups: Groups, hints: bool = True) -> list[str]:
    """The services that a word of the file means: one, all replicas of one, those that match, those of a group that do.

    `replicas` are those of `groups` that replicas form.  Wrong: it names nothing; without `hints`, which take time, no
    near name is looked for.
    """
    if text in services:
        return [text]
    if text in replicas:
        return list(replicas[text])
    if found := matching(services, text) if is_pattern(text) else []:
        return found
    group, colon, pattern = text.partition(":")
    of_it = in_group(text, groups)
    if colon and of_it is not None:
        if of_it or not groups[group]:  # of 0 replicas all are meant
            return of_it
        shown = ", ".join(groups[group][:SHOWN])
        raise Wrong(f"no service of the group {one_line(group)} matches {one_line(pattern)}", f"in it: {shown}")
    if group in groups:
        raise Wrong(f"there is no service {one_line(text)}", f'"{group}:*" are the services of that group')
    what, known = ("group", list(groups)) if colon else ("service", [*services, *replicas])
    near = did_you_mean(group, known) if hints else ""
    raise Wrong(f"there is no {what} {one_line(group)}", near or f"there is {', '.join(known[:SHOWN]) or 'no other'}")
