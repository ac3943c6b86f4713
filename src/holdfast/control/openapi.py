"""The OpenAPI 3.1 document, from the table of routes and the structs that it names.

Committed as docs/openapi.json, and given by GET /v1/openapi.json.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from .errors import STATUS, ErrorAnswer, Problem
from .routes import ANYWHERE, ROUTES, Route

JSON = dict[str, Any]

TITLE = "holdfast"
VERSION = "1"  # of the API, not of holdfast: it changes where what is said here does not hold any more
ABOUT = (
    "A process supervisor. Spoken over the unix socket `control` in its run directory, and, where `[supervisor.http]` "
    "is configured, over TCP with a token. Fields and routes may be added to this version: ignore what you do not know."
)
REFERENCE = "#/components/schemas/{name}"
REFUSED = {"application/json": {"schema": {"$ref": REFERENCE.format(name="ErrorAnswer")}}}
NAME = {
    "name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1},
    "description": "of a service",
}  # fmt: skip
LAST_EVENT_ID = {
    "name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"},
    "description": "the `id` of the last event that came, when a stream was cut off: it goes on behind it, whatever "
    "the query says",
}  # fmt: skip


@functools.cache
def document() -> JSON:
    """The whole document.  The same object each time: not to be changed."""
    kinds = [kind for route in ROUTES for kind in _kinds(route)]
    named = list(dict.fromkeys([*kinds, *(route.takes for route in ROUTES), ErrorAnswer, Problem]))
    schemas, components = msgspec.json.schema_components(named, ref_template=REFERENCE)
    schema_of = dict(zip(map(str, named), schemas, strict=True))
    paths: JSON = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, components)
    bodies = {route.takes for route in ROUTES if route.method == "POST"}
    for query in {route.takes for route in ROUTES} - bodies - set(kinds):
        components.pop(query.__name__)  # has become parameters
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": VERSION, "description": ABOUT},
        "servers": [{"url": "http://localhost", "description": "the Host header means nothing on the unix socket"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "responses": {
                name: {"description": name.replace("-", ", "), "content": REFUSED}
                for name in sorted({name for route in ROUTES for name in _refusals(route).values()})
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "over TCP alone"}},
        },
    }


def _kinds(route: Route) -> tuple[Any, ...]:
    """What its answers are made of."""
    gives = route.gives if isinstance(route.gives, tuple) else (route.gives,)
    return tuple(each for each in (*gives, route.streams) if each is not None)


def _operation(route: Route, schema_of: JSON, components: JSON) -> JSON:
    operation: JSON = {"operationId": route.handler.__name__, "summary": route.summary}
    parameters = [NAME] if "{name}" in route.path else []
    if route.method == "GET":
        parameters += [_parameter(*each) for each in components[route.takes.__name__]["properties"].items()]
    if route.streams is not None and route.method == "GET":
        parameters.append(LAST_EVENT_ID)
    if parameters:
        operation["parameters"] = parameters
    if route.method == "POST":
        content = {"application/json": {"schema": schema_of[str(route.takes)]}}
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = {
        "200": _answer(route, schema_of),
        **{str(status): {"$ref": f"#/components/responses/{name}"} for status, name in _refusals(route).items()},
    }
    return operation


def _parameter(name: str, schema: JSON) -> JSON:
    """A key of a query.  null is to leave it out, and a boolean is 1 or 0."""
    schema = dict(schema)
    about = schema.pop("description", "")
    choices = [each for each in schema.pop("anyOf", []) if each != {"type": "null"}]
    if choices:
        schema.update(choices[0])
    if "enum" in schema:
        schema["enum"] = [each for each in schema["enum"] if each is not None]
    if schema.get("default", "") is None:
        del schema["default"]
    if schema.get("type") == "boolean":
        schema = {"type": "integer", "enum": [0, 1], "default": int(schema["default"])}
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": about}


def _answer(route: Route, schema_of: JSON) -> JSON:
    content: JSON = {}
    if isinstance(route.gives, tuple):
        content["application/json"] = {"schema": {"anyOf": [schema_of[str(each)] for each in route.gives]}}
    elif route.gives is not None:
        content["application/json"] = {"schema": schema_of[str(route.gives)]}
    if route.streams is not None:
        data = schema_of[str(route.streams)]
        name = re.sub(r".*/", "", data["$ref"])
        has_id = "`id`, and " if route.method == "GET" else ""
        about = f"server-sent events: {has_id}`data` with a {name}; the last one, `event: end`, has a Problem"
        content["text/event-stream"] = {"schema": {"type": "string", "description": about}, "x-data": data}
    return {"description": "as asked", "content": content}


def refusals(route: Route) -> list[str]:
    """Every code that it may be answered with."""
    codes = {*ANYWHERE, *route.refuses, *(["not_json"] if route.method == "POST" else [])}
    return [code for code in STATUS if code in codes]


def _refusals(route: Route) -> dict[int, str]:
    """The codes of each status, as the name of the response that stands for them."""
    statuses: dict[int, list[str]] = {}
    for code in refusals(route):
        statuses.setdefault(STATUS[code], []).append(code)
    return {status: "-".join(codes) for status, codes in sorted(statuses.items())}
