"""What tables are made of."""

from __future__ import annotations

from itertools import groupby

Table = tuple[str, list[str], list[list[str]]]  # title, head, lines


def figure(value, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def times(value) -> str:
    return "" if value is None else f"{value:.2f} x" if value >= 0.1 else f"{value:.4f} x"


def grouped(rows: list[dict], *keys: str):
    def key(row):
        return [row[k] for k in keys]

    for values, group in groupby(rows, key):
        yield values, list(group)
