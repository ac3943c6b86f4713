"""Writes docs/openapi.json and the reference in docs/api.md from the table of routes; with --check only compares
(exit code 1: they differ).

Run it after a change of src/holdfast/control/routes.py or of a struct that is named there, with the interpreter that
holdfast is installed for.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import Any

from holdfast.control.openapi import document, refusals
from holdfast.control.routes import ANYWHERE, ROUTES

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
JSON = dict[str, Any]


def type_words(schema: JSON) -> str:
    """What a value is, for a reader."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(type_words(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    if schema.get("type") == "array":
        items = type_words(schema["items"])
        return f"array of {items}{'' if items.startswith('[') else 's'}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        values = type_words(schema["additionalProperties"])
        return f"object of {values}s" if values else "object"
    primitive = "whole number" if schema.get("type") == "integer" else schema.get("type", "")
    low, high = (schema.get(word) for word in ("minimum", "maximum"))
    return primitive if high is None else f"{primitive} from {low:,} to {high:,}"


def default_words(schema: JSON, required: bool) -> str:
    if required:
        return "must be given"
    return f"`{json.dumps(schema['default'])}`" if schema.get("default") not in (None, []) else ""


def fields(schema: JSON) -> list[str]:
    """The table of what is in an object: of an answer with two columns, of a body with its defaults."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    body = "additionalProperties" in schema
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"] if body else []
    rows = rows or ["| field | type | meaning |", "|---|---|---|"]
    for name, each in properties.items():
        cells = [f"`{name}`", type_words(each), each.get("description", "")]
        if body:
            cells.insert(2, default_words(each, name in required))
        rows.append(f"| {' | '.join(cells)} |")
    return rows if properties else []


def answers(operation: JSON) -> str:
    content = operation["responses"]["200"]["content"]
    found = []
    if "application/json" in content:
        found.append(type_words(content["application/json"]["schema"]) or "an object")
    if "text/event-stream" in content:
        found.append(f"a [stream](#streams) of {type_words(content['text/event-stream']['x-data'])}")
    return " or ".join(found)


def routes() -> str:
    schemas = document()["components"]["schemas"]
    lines = []
    for route in ROUTES:
        operation = document()["paths"][route.path][route.method.lower()]
        lines += [f"### {route.method} {route.path.replace('{name}', 'NAME')}", "", route.summary, ""]
        queries = [each for each in operation.get("parameters", []) if each["in"] == "query"]
        if queries:
            lines += ["| parameter | value | default | meaning |", "|---|---|---|---|"]
            for each in queries:
                words = [type_words(each["schema"]), default_words(each["schema"], False), each["description"]]
                lines.append(f"| `{each['name']}` | {' | '.join(words)} |")
            lines.append("")
        if "requestBody" in operation:
            body = fields(schemas[route.takes.__name__])
            lines += [*body, ""] if body else ["The body: `{}`.", ""]
        special = [f"`{code}`" for code in refusals(route) if code not in ANYWHERE and code != "not_json"]
        besides = f" May refuse: {', '.join(special)}." if special else ""
        lines += [f"Answer: {answers(operation)}.{besides}", ""]
    return "\n".join(lines).strip()


def things() -> str:
    taken = {route.takes.__name__ for route in ROUTES}
    lines = []
    for name, schema in document()["components"]["schemas"].items():
        if name not in taken or name == "Nothing":
            lines += [f"### {name}", "", schema["description"], "", *fields(schema), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def page() -> str:
    text = (DOCS / "api.md").read_text()
    for name, part in {"routes": routes(), "things": things()}.items():
        pattern = rf"(<!-- {name}: made by tools/api_reference.py -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda match: f"{match[1]}\n{part}\n\n{match[2]}", text, flags=re.S)  # noqa: B023
        assert found == 1, name
    return text


def main() -> int:
    wanted = {
        DOCS / "openapi.json": json.dumps(document(), indent=1, ensure_ascii=False) + "\n",
        DOCS / "api.md": page(),
    }
    differ = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in differ:
        if "--check" in sys.argv:
            print(f"docs/{path.name} is not what the table of routes says: run tools/api_reference.py")
        else:
            path.write_text(wanted[path])
    return int(bool(differ) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
