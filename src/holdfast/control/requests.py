"""What clients may send: bodies and query strings, checked.  Whatever is wrong with them is a Refusal."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from .errors import Refusal, did_you_mean

BODY_MAX = 65536  # bytes
NAMES_MAX = 1000  # in one command
LINES_MAX = 100000  # that the last ones of a log may be
SECONDS_MAX = 1000000000
HISTORY_ROWS = 100  # without a `limit`

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Names = Annotated[list[Name], msgspec.Meta(min_length=1, max_length=NAMES_MAX)]


class Command(msgspec.Struct, forbid_unknown_fields=True):
    """start, stop, restart."""

    names: Names
    wait: bool = True
    timeout_seconds: Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)] | None = None


class Signal(msgspec.Struct, forbid_unknown_fields=True):
    """signal."""

    names: Names
    signal: str | int
    scope: Literal["main", "group", "tree"] = "main"


class Reload(msgspec.Struct, forbid_unknown_fields=True):
    """reload."""

    names: Names


class Shutdown(msgspec.Struct, forbid_unknown_fields=True):
    """shutdown."""

    keep: bool = False


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """A command without particulars."""


T = TypeVar("T", bound=msgspec.Struct)


async def body_of(request: Request, kind: type[T]) -> T:
    """The body, as this kind.  `application/json` has to be said: no web page can say so to a foreign server."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal("not_json", "the body must be JSON", "send the header Content-Type: application/json")
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    try:
        if len(declared) > 9 or int(declared) > BODY_MAX:
            raise Refusal("too_large", f"the body may have {BODY_MAX} bytes")
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_MAX:
                raise Refusal("too_large", f"the body may have {BODY_MAX} bytes")
    except ClientDisconnect:
        raise Refusal("bad_request", "the body is not complete") from None
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except msgspec.ValidationError as error:
        unknown = re.search(r"unknown field `(.*?)`", str(error))
        hint = did_you_mean(unknown[1], list(kind.__struct_fields__)) if unknown else ""
        raise Refusal("bad_request", f"the body: {error}", hint) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("bad_request", f"the body is not JSON: {error}") from None


class Query:
    """The query string: every key known, given once unless it is `many`."""

    def __init__(self, request: Request, known: tuple[str, ...], many: tuple[str, ...] = ()) -> None:
        self._pairs = request.query_params.multi_items()
        if len(self._pairs) > NAMES_MAX:
            raise Refusal("bad_request", f"the query may have {NAMES_MAX} parameters")
        seen = set()
        for key, _ in self._pairs:
            if key not in known and key not in many:
                hint = did_you_mean(key, [*known, *many])
                raise Refusal("bad_request", f"unknown parameter {key!r}", hint)
            if key in seen and key not in many:
                raise Refusal("bad_request", f"{key} is given twice")
            seen.add(key)

    def many(self, key: str) -> list[str]:
        return [value for each, value in self._pairs if each == key]

    def get(self, key: str) -> str | None:
        return next(iter(self.many(key)), None)

    def number(self, key: str, largest: int) -> int | None:
        text = self.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) > largest:
            raise Refusal("bad_request", f"{key} must be a whole number from 0 to {largest}, not {text[:40]!r}")
        return int(text)

    def flag(self, key: str) -> bool:
        text = self.get(key) or "0"
        if text not in ("0", "1"):
            raise Refusal("bad_request", f"{key} must be 1 or 0, not {text[:40]!r}")
        return text == "1"

    def choice(self, key: str, choices: tuple[str, ...]) -> str | None:
        text = self.get(key)
        if text is not None and text not in choices:
            raise Refusal("bad_request", f"{key} must be {' or '.join(choices)}, not {text[:40]!r}")
        return text
