"""What services say of each other: the words of `requires` and `after` become names, and these must make an order.

Comes in: all services of a configuration.  Goes out: the same with names for words; what is wrong is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from . import graph
from .errors import Wrong, one_line
from .groups import Groups, meant
from .model import Service
from .sources import At

HINTS_MAX = 200  # words that mean nothing; a search among thousands of names for each of thousands would take minutes

Services = dict[str, Service | None]  # None: one that cannot be used
_Known = dict[str, list[str] | Wrong]  # word -> what it means: many services say the same


class Links:
    """Of the services of one configuration; `places` is where they are defined, `wrong` notes a mistake."""

    def __init__(
        self, services: Services, replicas: Groups, places: Mapping[str, At], wrong: Callable[[At, str, str], None]
    ) -> None:
        self._services = services
        self._replicas = replicas
        self._places = places
        self._wrong = wrong
        self._hints = HINTS_MAX

    def named_by(
        self, words: Iterable[str], groups: Groups, at: At, itself: str = "", known: _Known | None = None
    ) -> tuple[str, ...]:
        """All that the words name.  `itself` is who says so: a pattern or a group names the others."""
        known = {} if known is None else known
        found: dict[str, None] = {}
        for word in words:
            if word not in known:
                known[word] = self._meant(word, groups)
            names = known[word]
            if isinstance(names, Wrong):
                self._wrong(at, names.message, names.hint)
                continue
            if word == itself or (word in self._replicas and itself in names):
                self._wrong(at, "names the service itself", f"leave {one_line(word)} out")
            found.update(dict.fromkeys(name for name in names if name != itself))
        return tuple(found)

    def _meant(self, word: str, groups: Groups) -> list[str] | Wrong:
        try:
            return meant(word, self._services, self._replicas, groups, self._hints > 0)
        except Wrong as wrong:
            self._hints -= 1
            return wrong

    def resolved(self, groups: Groups) -> Services:
        """The services with the names that their words mean; circles are noted."""
        result = dict(self._services)
        known: _Known = {}
        for name, spec in self._services.items():
            if spec and (spec.requires or spec.after):
                at = self._places[name]
                requires = self.named_by(spec.requires, groups, at / "requires", name, known)
                after = self.named_by(spec.after, groups, at / "after", name, known)
                result[name] = msgspec.structs.replace(spec, requires=requires, after=after)
        specs = {name: spec for name, spec in result.items() if spec}
        for cycle in graph.cycles(specs):
            key = "requires" if cycle[1] in specs[cycle[0]].requires else "after"
            at = self._places[cycle[0]] / key
            self._wrong(at, f"nothing could start first: {' -> '.join(cycle)}", "leave one of them out")
        return result
