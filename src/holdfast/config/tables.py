"""What becomes of the tables of services before their values are read: defaults below them, `{index}` in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .model import PROBE_KINDS, Keys, Service, keys_of

# Keys that say which service it is, and what it needs: nobody means them for all.
NO_DEFAULTS = ("command", "replicas", "requires", "after")
MERGED = ("table", "env", "rlimits")  # forms whose tables merge by key; any other value is one
# Of these keys a table has one, so a service's own takes the place of whichever the defaults have.
ONE_OF = {"ready": PROBE_KINDS, "health": PROBE_KINDS, "schedule": ("cron", "every")}

INDEX = "{index}"
# `${index}` is a variable.  In two pairs of braces stands what is meant as text.
_IN_BRACES = re.compile(r"(?<!\$)\{(?:\{(?P<text>[A-Za-z_]\w*)\}|(?P<name>[A-Za-z_]\w*))\}")


def default_keys() -> Keys:
    """The keys of [defaults]."""
    return {name: key for name, key in keys_of(Service).items() if name not in NO_DEFAULTS}


def merged(defaults: Mapping[str, Any], own: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """A service's table with what it does not say itself."""
    result = {**defaults, **own}
    for name in defaults.keys() & own.keys():
        below, above, key = defaults[name], own[name], keys.get(name)
        if isinstance(below, dict) and isinstance(above, dict):
            if key is None or isinstance(key, dict):  # `rotate` in `log`, or what is in such a table
                result[name] = merged(below, above, key or {})
            elif key.about.form in MERGED:
                if set(ONE_OF.get(name, ())) & above.keys():
                    below = {word: value for word, value in below.items() if word not in ONE_OF[name]}
                result[name] = merged(below, above, {})
    return result


def with_index(value: Any, index: int) -> Any:
    """The value with `{index}` replaced in all its strings."""
    if isinstance(value, str):
        return _IN_BRACES.sub(lambda found: f"{{{found['text']}}}" if found["text"] else str(index), value)
    if isinstance(value, dict):
        return {key: with_index(each, index) for key, each in value.items()}
    return [with_index(each, index) for each in value] if isinstance(value, list) else value


def words_in_braces(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each `{word}` that `with_index` would replace, with the keys that lead to it."""
    if isinstance(value, str):
        for found in _IN_BRACES.finditer(value):
            if found["name"]:
                yield path, found["name"]
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from words_in_braces(each, (*path, key))
    elif isinstance(value, list):
        for each in value:
            yield from words_in_braces(each, path)
