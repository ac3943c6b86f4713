"""Who stands on whom: `requires` and `after` of all services, both ways, and the order that follows.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..config.model import Service


class Graph:
    """`requires[x]`: what x stands on; `after[x]`: what only comes before x; `required_by` and `before`:
    the same edges from the other end.  `order`: each name after all that it requires or comes after, else as given;
    the order of stopping is its reverse."""

    def __init__(self, specs: Mapping[str, Service]) -> None:
        """ValueError: an unknown name, or a cycle, with its path."""
        self.requires: dict[str, tuple[str, ...]] = {}
        self.after: dict[str, tuple[str, ...]] = {}
        self.required_by: dict[str, list[str]] = {name: [] for name in specs}
        self.before: dict[str, list[str]] = {name: [] for name in specs}
        for name, spec in specs.items():
            requires = tuple(dict.fromkeys(spec.requires))
            after = tuple(each for each in dict.fromkeys(spec.after) if each not in requires)
            for other in (*requires, *after):
                if other not in specs:
                    raise ValueError(f"{name} needs {other}, which is unknown")
            self.requires[name], self.after[name] = requires, after
            for other in requires:
                self.required_by[other].append(name)
            for other in after:
                self.before[other].append(name)
        self.order = self._sorted()
        self._place = {name: place for place, name in enumerate(self.order)}

    def add(self, name: str) -> None:
        """A service that nobody knows: it stands alone, last."""
        self.requires[name] = self.after[name] = ()
        self.required_by[name], self.before[name] = [], []
        self._place[name] = len(self.order)
        self.order.append(name)

    def remove(self, name: str) -> None:
        """Take one away, and what leads to it."""
        for there, back in ((self.requires, self.required_by), (self.after, self.before)):
            for other in there[name]:
                back[other].remove(name)
            for other in back[name]:
                there[other] = tuple(each for each in there[other] if each != name)
        self.order.remove(name)
        for each in (self.requires, self.after, self.required_by, self.before, self._place):
            del each[name]

    def below(self, names: Iterable[str]) -> list[str]:
        """The names and all that they require, what is required first."""
        return self._reach(names, self.requires.__getitem__)

    def above(self, names: Iterable[str]) -> list[str]:
        """The names and all that require them, the last to start first."""
        return self._reach(names, self.required_by.__getitem__)[::-1]

    def _reach(self, names: Iterable[str], edges: Callable[[str], Iterable[str]]) -> list[str]:
        found = dict.fromkeys(names)
        todo = list(found)
        while todo:
            for other in edges(todo.pop()):
                if other not in found:
                    found[other] = None
                    todo.append(other)
        return sorted(found, key=self._place.__getitem__)

    def _sorted(self) -> list[str]:
        """Depth first, without recursion: a chain may be longer than Python's stack."""
        order: list[str] = []
        done: set[str] = set()
        for root in self.requires:
            path: dict[str, None] = {}  # what is being looked at, from the root on
            todo: list[tuple[str, bool]] = [(root, False)]
            while todo:
                name, leaving = todo.pop()
                if leaving:
                    del path[name]
                    done.add(name)
                    order.append(name)
                elif name in path:
                    names = list(path)
                    cycle = [*names[names.index(name):], name]  # fmt: skip
                    raise ValueError(f"a cycle: {' -> '.join(cycle)}")
                elif name not in done:
                    path[name] = None
                    todo.append((name, True))
                    todo += [(other, False) for other in reversed((*self.requires[name], *self.after[name]))]
        return order
