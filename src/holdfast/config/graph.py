"""The order in which services start, and the cycles that make one impossible."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from .model import Service

CYCLES_MAX = 100  # named at once; more are found when these are gone


def _edges(services: Mapping[str, Service]) -> dict[str, list[str]]:
    """name -> what starts before it.  Unknown names and a service itself are other mistakes: left out."""
    return {
        name: [each for each in dict.fromkeys((*spec.requires, *spec.after)) if each in services and each != name]
        for name, spec in services.items()
    }


def start_order(services: Mapping[str, Service]) -> list[str]:
    """Every service after what it requires and comes after; else in the order given.  CycleError: there is none."""
    return list(TopologicalSorter(_edges(services)).static_order())


def cycles(services: Mapping[str, Service]) -> list[list[str]]:
    """Each cycle as a path that ends where it begins: `["a", "b", "a"]`, a being the first one given."""
    edges = _edges(services)
    place = {name: at for at, name in enumerate(services)}
    found: list[list[str]] = []
    while len(found) < CYCLES_MAX:
        try:
            TopologicalSorter(edges).prepare()
            return found
        except CycleError as error:
            cycle = error.args[1][:0:-1]  # each requires the next; once around
        first = min(range(len(cycle)), key=lambda at: place[cycle[at]])
        cycle = cycle[first:] + cycle[:first]
        found.append([*cycle, cycle[0]])
        edges[cycle[-1]].remove(cycle[0])  # the other cycles remain
    return found
