"""JSON Schema of the text of a `holdfast.toml`, for editors: made from the model's table and the forms of its values.

Two dialects: 2020-12, and draft 4, which is what editors built on Taplo read.  A schema sees one value at a time; what
takes two to see (cycles, unknown services, variables) only `holdfast check` finds.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from holdfast.process.capabilities import NAMES, SETS
from holdfast.process.more import CPUS_MAX

from . import model, units
from .forms import BYTE_LIMITS, HOST, LIMITS, SIGNALS, TIME_LIMITS, UNABLE, UNLIMITED
from .model import Key, Keys, keys_of
from .tables import default_keys

Schema = dict[str, Any]

_NUMBER = r"[0-9]+\.?[0-9]*"
_STRING: Schema = {"type": "string", "minLength": 1}
_DURATION: Schema = {"type": "string", "pattern": f"^{_NUMBER}({'|'.join(units.UNITS)})$"}
_SIZE: Schema = {"type": "string", "pattern": f"^{_NUMBER}({'|'.join(units.SIZES)})$"}
_SIGNALS = [name for name in SIGNALS if name not in UNABLE]
_UPPER = "|".join(map(str.upper, NAMES))
_CAPABILITY = rf"^(cap_({'|'.join(NAMES)})|(CAP_)?({_UPPER})|\$\{{.*)$"
_CAPABILITIES: Schema = {
    "type": "array",
    "items": {"anyOf": [{"enum": list(NAMES)}, {"type": "string", "pattern": _CAPABILITY}]},
}
_NAME = f"^{model.SERVICE_NAME}$"


def _limit(name: str) -> Schema:
    plain: Schema = {"type": "integer", "minimum": 0}
    if name in BYTE_LIMITS:
        plain = _SIZE
    elif name in TIME_LIMITS:
        plain = _DURATION
    one = [plain, {"enum": [UNLIMITED]}]
    return {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}, "minItems": 2, "maxItems": 2}]}


# form -> schema; those that depend on the key are in _of_key.
_FORMS: dict[str, Schema] = {
    "duration": _DURATION,
    "size": _SIZE,
    "percent": {"type": "string", "pattern": f"^{_NUMBER}%$"},
    "boolean": {"type": "boolean"},
    "command": {"anyOf": [_STRING, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
    "path": _STRING,
    "cron": _STRING,
    "zone": _STRING,
    "paths": {"anyOf": [_STRING, {"type": "array", "items": _STRING}]},
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
    "user": {"anyOf": [_STRING, {"type": "integer", "minimum": 0}]},
    "group": {"anyOf": [_STRING, {"type": "integer", "minimum": 0}]},
    "groups": {"type": "array", "items": {"anyOf": [_STRING, {"type": "integer", "minimum": 0}]}},
    "capabilities": {
        "anyOf": [
            _CAPABILITIES,
            {"type": "object", "properties": dict.fromkeys(SETS, _CAPABILITIES), "additionalProperties": False},
        ]
    },
    "ioprio": {"type": "string", "pattern": r"^((best-effort|realtime)(:[0-7])?|idle|none|\$\{.*)$"},
    "cpus": {
        "anyOf": [
            {"type": "string", "pattern": r"^([0-9, -]+|\$\{.*)$"},
            {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": CPUS_MAX - 1}, "minItems": 1},
        ]
    },
    "umask": {"type": "string", "pattern": r"^(0?[0-7]{1,3}|\$\{.*)$"},
    "rlimits": {
        "type": "object",
        "properties": {name: _limit(name) for name in LIMITS},
        "additionalProperties": False,
    },
    "address": _STRING,
    "url": {"type": "string", "pattern": r"^(http://|\$\{)"},
    "regex": _STRING,
    "listen": _STRING,
    "fd_name": _STRING,
    "process_name": _STRING,
    "names": {"type": "array", "items": {"type": "string", "pattern": r"^[A-Za-z0-9_*?\[][][A-Za-z0-9._*?!:-]*$"}},
    "loopback": {"type": "string", "pattern": r"^(.*:)?[0-9]{1,5}$"},
    "token_file": _STRING,
    "hosts": {"type": "array", "items": {"type": "string", "pattern": f"^({HOST})$"}},
    "signal": {
        "anyOf": [
            {"enum": _SIGNALS},
            {"type": "string", "pattern": rf"^(SIG({'|'.join(_SIGNALS)})|(SIG)?RTMIN\+[0-9]{{1,2}})$"},
        ]
    },
}


def default_text(key: Key) -> object:
    """The default as the file would have it; None where it is no constant."""
    value, form = key.default, key.about.form
    if value is None or value == "" or value is msgspec.NODEFAULT:
        return None
    if isinstance(value, msgspec.Struct):
        return {}
    if form == "duration":
        assert isinstance(value, float)
        return units.duration_text(value)
    if form == "size":
        assert isinstance(value, int)
        return units.size_text(value)
    if form == "umask":
        return f"{value:04o}"
    if form == "number":
        assert isinstance(value, float)
        return int(value) if value.is_integer() else value
    if form == "signal":
        return next(name for name, number in SIGNALS.items() if number == value)
    return list(value) if isinstance(value, tuple) else value


def _of_key(key: Key) -> Schema:
    form, about = key.about.form, key.about
    if form == "choice":
        return {"enum": list(get_args(key.type))}
    if form in ("integer", "number", "codes"):
        plain: Schema = {"type": "number" if form == "number" else "integer"}
        plain.update({word: n for word, n in (("minimum", about.low), ("maximum", about.high)) if n is not None})
        return {"type": "array", "items": plain, "minItems": 1} if form == "codes" else plain
    return dict(_FORMS[form])


def _table(keys: Keys, definitions: dict[str, Schema]) -> Schema:
    properties: dict[str, Schema] = {}
    required = []
    for name, key in keys.items():
        if isinstance(key, dict):
            properties[name] = _table(key, definitions)
            continue
        if key.about.form == "table":
            assert isinstance(key.type, type)
            reference = _reference(key.type, definitions)
            properties[name] = {"anyOf": [_STRING, reference]} if key.about.short else {"allOf": [reference]}
        elif key.about.form == "tables":
            properties[name] = {"type": "array", "items": _reference(get_args(key.type)[0], definitions)}
        else:
            properties[name] = _of_key(key)
        properties[name]["description"] = key.about.text
        if (default := default_text(key)) is not None:
            properties[name]["default"] = default
        if key.default is msgspec.NODEFAULT and not key.about.without:
            required.append(name)
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _reference(struct: type[msgspec.Struct], definitions: dict[str, Schema]) -> Schema:
    if struct.__name__ not in definitions:
        definitions[struct.__name__] = {}  # its place: in the order of their mention
        definitions[struct.__name__] = {
            "description": (struct.__doc__ or "").strip(),
            **_table(keys_of(struct), definitions),
        }
        if struct is model.Health:
            definitions[struct.__name__]["anyOf"] = [{"required": [kind]} for kind in model.PROBE_KINDS]
    return {"$ref": f"#/$defs/{struct.__name__}"}


def _named(text: str, struct: type[msgspec.Struct], definitions: dict[str, Schema]) -> Schema:
    each = {_NAME: _reference(struct, definitions)}
    return {"description": text, "type": "object", "patternProperties": each, "additionalProperties": False}


def json_schema() -> Schema:
    """JSON Schema 2020-12 of a file.  Any thread."""
    definitions: dict[str, Schema] = {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "holdfast.toml",
        "type": "object",
        "properties": {
            "supervisor": _reference(model.Supervisor, definitions),
            "service": _named("The services: one table `[service.NAME]` each.", model.Service, definitions),
            "group": _named("Names for several services: one table `[group.NAME]` each.", model.Group, definitions),
            "defaults": {
                "description": "Keys for all services that do not give them.",
                **_table(default_keys(), definitions),
            },
        },
        "additionalProperties": False,
        "$defs": definitions,
    }


def json_schema_draft4() -> Schema:
    """The same in draft 4, which Taplo reads.  Any thread."""
    old: Schema = _older(json_schema())
    old["$schema"] = "http://json-schema.org/draft-04/schema#"
    old["definitions"] = old.pop("$defs")
    return old


def _older(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _older(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_older(each) for each in value]
    return value.replace("#/$defs/", "#/definitions/") if isinstance(value, str) else value
