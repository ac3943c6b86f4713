"""Writing configurations for tests, and TOML of arbitrary values."""

from __future__ import annotations

import datetime
import json
import math
import pathlib

from holdfast.config.load import Config, ConfigError, Problem, load


def toml(value: object) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    assert isinstance(value, dict)
    return "{" + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + "}"


def document(data: dict[str, object]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in data.items())


def loaded(directory: pathlib.Path, text: str, **environ: str) -> Config:
    path = directory / "holdfast.toml"
    path.write_bytes(text.encode())
    return load(str(path), environ=environ)


def problems(directory: pathlib.Path, text: str | bytes, **environ: str) -> list[Problem]:
    path = directory / "holdfast.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(str(path), environ=environ)
    except ConfigError as error:
        assert error.errors
        return error.errors
    return []
