"""What clients may send: bodies and query strings, a struct each.  Whatever is wrong with them is a Refusal."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, inspect
from starlette.requests import ClientDisconnect, Request

from holdfast.daemon.status import Outcome, means

from .errors import Refusal, did_you_mean

BODY_MAX = 65536  # bytes
NAMES_MAX = 1000  # in one command
FOLLOWED_MAX = 250  # logs in one stream: each has a page that waits for a client that is slow
LINES_MAX = 100000  # that the last ones of a log may be
SECONDS_MAX = 1000000000
HISTORY_ROWS = 100  # without a `limit`
_SEQ = 10**18  # more than any event's number
_ROWS = 10**9  # more than any history keeps

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Some = Annotated[
    list[Name],
    Meta(
        min_length=1, max_length=NAMES_MAX,
        description="names, patterns, or `NAME@INCARNATION`, which does nothing when that incarnation is gone",
    ),
]  # fmt: skip


# ---- bodies


class Command(Struct, forbid_unknown_fields=True):
    """start, stop, restart."""

    names: Some
    wait: Annotated[
        bool, means("answer when it is so: started and ready, or stopped with nothing left of the tree; else at once")
    ] = True
    timeout_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=SECONDS_MAX)] | None,
        means("answer then, however far it is; what was asked for goes on"),
    ] = None


class Signal(Struct, forbid_unknown_fields=True):
    """signal."""

    names: Some
    signal: Annotated[str | int, means("a name with or without SIG, or a number")]
    scope: Annotated[
        Literal["main", "group", "tree"], means("the main process, its process group, or everything it has started")
    ] = "main"


class Reload(Struct, forbid_unknown_fields=True):
    """reload."""

    names: Some


class Shutdown(Struct, forbid_unknown_fields=True):
    """shutdown."""

    keep: Annotated[bool, means("the supervisor ends, and the services run on")] = False


class Update(Struct, forbid_unknown_fields=True):
    """update."""

    dry_run: Annotated[bool, means("only say what would be done")] = False
    rollback: Annotated[bool, means("put services back that do not come up with their new definition")] = False
    wait: Annotated[bool, means("answer when all of it is up, gone, or has failed; else at once")] = True
    timeout_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=SECONDS_MAX)] | None,
        means("answer then, however far it is; the update goes on"),
    ] = None


class Cursors(Struct, forbid_unknown_fields=True):
    """Which logs, and from where on."""

    cursors: Annotated[
        dict[Name, str | None],
        Meta(
            min_length=1, max_length=FOLLOWED_MAX,
            description="for each service where an earlier answer ended; null: from the oldest line that is left",
        ),
    ]  # fmt: skip
    stream: Annotated[
        Literal["stdout", "stderr"] | None,
        means("only this one; where both go to one file (`merge = true`, the default) that is `stdout`"),
    ] = None


class Nothing(Struct, forbid_unknown_fields=True):
    """Without particulars."""


# ---- answers that are only the API's


class Results(Struct):
    """The outcome for each service that was named."""

    results: list[Outcome]


# ---- queries: whole numbers, 1 or 0 for a boolean, a list for a key that may be repeated


class Names(Struct, forbid_unknown_fields=True):
    """Which services."""

    name: Annotated[list[str], means("a name or a pattern (`web*`); may be repeated")] = []


class AfterSeq(Struct, forbid_unknown_fields=True):
    """From where on."""

    after: Annotated[
        Annotated[int, Meta(ge=0, le=_SEQ)] | None,
        means("first what is remembered with a `seq` above this; 0: everything"),
    ] = None


class HistoryPart(Struct, forbid_unknown_fields=True):
    """Which rows."""

    limit: Annotated[int, Meta(ge=0, le=_ROWS, description="the last so many")] = HISTORY_ROWS
    name: Annotated[list[str], means("`web*` or `web@41`; may be repeated")] = []


class LogPart(Struct, forbid_unknown_fields=True):
    """Which lines."""

    lines: Annotated[
        Annotated[int, Meta(ge=0, le=LINES_MAX)] | None, means("begin with the last so many lines")
    ] = None
    cursor: Annotated[str | None, means("begin where an earlier answer ended; not together with `lines`")] = None
    stream: Annotated[
        Literal["stdout", "stderr"] | None,
        means("only this one; where both go to one file (`merge = true`, the default) that is `stdout`"),
    ] = None
    follow: Annotated[bool, means("1: a stream that goes on with what is written")] = False


T = TypeVar("T", bound=Struct)


async def body_of(request: Request, kind: type[T]) -> T:
    """The body, as this kind.  `application/json` has to be said: no web page can say so to a foreign server."""
    query_of(request, Nothing)
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


def query_of(request: Request, kind: type[T]) -> T:
    """The query string, as this kind: every key known, given once unless it is a list."""
    pairs = request.query_params.multi_items()
    if len(pairs) > NAMES_MAX:
        raise Refusal("bad_request", f"the query may have {NAMES_MAX} parameters")
    known = query_forms(kind)
    values: dict[str, Any] = {}
    for key, text in pairs:
        form = known.get(key)
        if form is None:
            raise Refusal("bad_request", f"unknown parameter {key!r}", did_you_mean(key, list(known)))
        if isinstance(form, inspect.ListType):
            values.setdefault(key, []).append(text)
        elif key in values:
            raise Refusal("bad_request", f"{key} is given twice")
        else:
            values[key] = value_of(key, text, form)
    return kind(**values)


def last_event_id(request: Request) -> str | None:
    """What a client says that comes back to a stream.  Nothing is said by an empty one."""
    return request.headers.get("last-event-id") or None


@functools.cache
def query_forms(kind: type[Struct]) -> dict[str, inspect.Type]:
    """The type of each key, without the None of one that may be left out."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return {field.name: _form(field.type) for field in info.fields}


def _form(form: inspect.Type) -> inspect.Type:
    if isinstance(form, inspect.Metadata):
        return _form(form.type)
    if isinstance(form, inspect.UnionType):
        return next(_form(each) for each in form.types if not isinstance(each, inspect.NoneType))
    return form


def value_of(key: str, text: str, form: inspect.Type) -> Any:
    """One value of a query string, or of a header that takes its place."""
    if isinstance(form, inspect.IntType):
        if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > (form.le or 0):
            raise Refusal("bad_request", f"{key} must be a whole number from 0 to {form.le}, not {text[:40]!r}")
        return int(text)
    if isinstance(form, inspect.BoolType):
        if text not in ("0", "1"):
            raise Refusal("bad_request", f"{key} must be 1 or 0, not {text[:40]!r}")
        return text == "1"
    if isinstance(form, inspect.LiteralType) and text not in form.values:
        raise Refusal("bad_request", f"{key} must be {' or '.join(map(str, form.values))}, not {text[:40]!r}")
    return text
