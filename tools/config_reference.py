"""Writes the tables of docs/configuration.md from the model; with --check only compares (exit code 1: they differ).

Run it after a change of src/holdfast/config/model.py, with the interpreter that holdfast is installed for.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import get_args

from holdfast.config import model, units
from holdfast.config.forms import BYTE_LIMITS, COUNT_LIMITS, TIME_LIMITS
from holdfast.config.model import Key, Keys, keys_of
from holdfast.config.schema import default_text
from holdfast.config.tables import NO_DEFAULTS

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/configuration.md"
WORDS = {
    "duration": "duration",
    "size": "size",
    "boolean": "true or false",
    "command": "string or list",
    "path": "path",
    "paths": "path or list of paths",
    "env": "table of strings",
    "user": "name or number",
    "group": "name or number",
    "groups": "list of names or numbers",
    "capabilities": "list of names or table",
    "ioprio": "string",
    "cpus": "list of integers or string",
    "umask": "string",
    "rlimits": "table",
    "codes": "list of integers",
    "names": "list of [names](#names)",
    "address": "address",
    "url": "URL",
    "regex": "regular expression",
    "cron": "five fields",
    "zone": "name",
    "signal": "signal's name",
    "listen": "address",
    "fd_name": "string",
    "process_name": "string",
    "loopback": "address and port",
    "token_file": "path",
    "hosts": "list of names",
    "percent": "percentage",
    "integer": "integer",
    "number": "number",
}


def default(key: Key) -> str:
    if key.about.without:
        return key.about.without
    value = default_text(key)
    return "must be given" if value is None else f"`{json.dumps(value)}`"


def type_words(key: Key) -> str:
    low, high, form = key.about.low, key.about.high, key.about.form
    if form == "choice":
        return ", ".join(f'`"{each}"`' for each in get_args(key.type))
    if low is None or high is None:
        return WORDS[form]
    shows = {"duration": units.duration_text, "size": units.size_text, "percent": units.percent_text}
    show = shows.get(form, lambda n: f"{n:,}")
    return f"{WORDS[form]}, {show(low)} to {show(high)}"


def rows(keys: Keys, prefix: str = "") -> list[str]:
    result = []
    for name, key in keys.items():
        if isinstance(key, dict):
            result += rows(key, f"{prefix}{name}.")
        elif key.about.form == "table":
            assert isinstance(key.type, type)
            result += rows(keys_of(key.type), f"{prefix}{name}.")
        elif key.about.form == "tables":
            result.append(f"| `{prefix}{name}` | list of tables | `[]` | {key.about.text} |")
            result += rows(keys_of(get_args(key.type)[0]), f"{prefix}{name}[].")
        else:
            result.append(f"| `{prefix}{name}` | {type_words(key)} | {default(key)} | {key.about.text} |")
    return result


def table(struct: type) -> str:
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows(keys_of(struct))])


def parts() -> dict[str, str]:
    def words(names: object) -> str:
        return ", ".join(f"`{name}`" for name in sorted(names))  # type: ignore[call-overload]

    return {
        "supervisor": table(model.Supervisor),
        "service": table(model.Service),
        "defaults": f"any key of a service but {words(NO_DEFAULTS)}.",
        "group": table(model.Group),
        "rlimits": f"sizes: {words(BYTE_LIMITS)}; durations: {words(TIME_LIMITS)}; integers: {words(COUNT_LIMITS)}.",
    }


def main() -> int:
    page = PAGE.read_text()
    wanted = page
    for name, text in parts().items():
        pattern = rf"(<!-- {name}: made by tools/config_reference.py -->\n).*?(<!-- end -->)"
        wanted, found = re.subn(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", wanted, flags=re.S)  # noqa: B023
        assert found == 1, name
    if "--check" in sys.argv:
        if page != wanted:
            print("docs/configuration.md is not what the model says: run tools/config_reference.py")
        return int(page != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
