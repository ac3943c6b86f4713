"""Refusals: what is wrong with a request, in words for a program (code) and for people (message, hint)."""

from __future__ import annotations

import logging
from typing import Annotated

import msgspec

from holdfast.daemon import upgrade
from holdfast.daemon.names import StillAdopting, UnknownService
from holdfast.daemon.status import means

log = logging.getLogger("holdfast.control")


class Problem(msgspec.Struct):
    """What is wrong."""

    code: Annotated[str, means("for programs")]
    message: Annotated[str, means("for people; may change")]
    hint: Annotated[str, means('what to do about it; "" where there is nothing to say')]


class ErrorAnswer(msgspec.Struct):
    """The answer to a request that is refused."""

    error: Problem


class Refusal(Exception):
    """Becomes the answer.  `code` is a word of docs/api.md and decides the HTTP status; `allow`: methods there are."""

    def __init__(self, code: str, message: str, hint: str = "", *, allow: str = "") -> None:
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint
        self.allow = allow

    @property
    def status(self) -> int:
        return STATUS[self.code]

    @property
    def headers(self) -> dict[str, str]:
        found = {"allow": self.allow} if self.allow else {}
        if self.code == "adopting":
            found["retry-after"] = "1"
        if self.code == "no_token":
            found["www-authenticate"] = "Bearer"
        return found

    @property
    def problem(self) -> Problem:
        return Problem(self.code, self.message, self.hint)

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(ErrorAnswer(self.problem)) + b"\n"

    @property
    def end(self) -> bytes:
        """The same as the last event of a stream."""
        return b"event: end\ndata: " + msgspec.json.encode(self.problem) + b"\n\n"


STATUS = {
    "bad_request": 400,
    "no_token": 401,
    "not_permitted": 403,
    "unknown_service": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "too_large": 413,
    "not_json": 415,
    "refused": 409,
    "internal": 500,
    "adopting": 503,
    "busy": 503,
    "stopping": 503,
    "upgrading": 503,
    "unavailable": 503,
}


def explain(error: Exception) -> Refusal:
    """What an exception means to the client.  Those that nobody has foreseen are logged, and the daemon goes on."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UnknownService):
        return Refusal("unknown_service", str(error), did_you_mean(error.name, error.known))
    if isinstance(error, StillAdopting):
        return Refusal("adopting", str(error), "ask again in a moment")
    if isinstance(error, upgrade.Refused):
        return Refusal("refused", str(error), "nothing was changed")
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return Refusal("bad_request", str(error))
    if isinstance(error, OSError):
        return Refusal("unavailable", str(error))
    log.error("a request failed", exc_info=error)
    return Refusal("internal", "an error of the supervisor", "its log says more")


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint, or "" where nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else ""
