"""Streams that outlive the supervisor they come from: connected again, where they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from holdfast.client import Client, Stream

# The supervisor was killed, makes way for its next version, or has given us up because we did not read.
AGAIN = {"lost", "upgrading", "too_slow", "no_answer"}
FOLLOWED_MAX = 250  # logs in one stream
PAUSE_FIRST = 0.1  # seconds before the second try in a row that brought nothing
PAUSE_LIMIT = 5.0  # as the anchor's


def events_from(client: Client, after: int) -> Iterator[dict[str, Any]]:
    """Every event with a larger number, over the ends of supervisors, until one ends in order."""

    def seen(_stream: Stream, event: dict[str, Any]) -> None:
        nonlocal after
        after = event["seq"]

    yield from _followed(lambda: client.events(after=after), seen, threading.Event())


def lineage_from(client: Client, name: str) -> Iterator[dict[str, Any]]:
    """Every record of a service's lineage from now on, in the same way."""
    after: int | None = None

    def seen(_stream: Stream, record: dict[str, Any]) -> None:
        nonlocal after
        after = record["seq"]

    yield from _followed(lambda: client.lineage(name, after), seen, threading.Event())


def logs_from(
    client: Client, cursors: dict[str, str | None], stream: str | None, over: threading.Event
) -> Iterator[dict[str, Any]]:
    """Every entry of the logs of services after their cursors, in the same way; until `over`, where others follow
    besides."""

    def seen(source: Stream, _entry: dict[str, Any]) -> None:
        cursors.update(source.cursors)  # of whole pages: a stream is lost only when each has been given to the end

    yield from _followed(lambda: client.logs_of(cursors, stream=stream), seen, over)


def _followed(
    begin: Callable[[], Stream], seen: Callable[[Stream, dict[str, Any]], None], over: threading.Event
) -> Iterator[dict[str, Any]]:
    """Where nobody listens any more, NoSupervisor ends it: the socket is kept open by the anchor, so that a connection
    waits there for the next supervisor; pauses are for those that fail again and again."""
    from holdfast.client import ClientError

    pause = 0.0
    began = told = False
    while not over.is_set():
        try:
            with begin() as source:
                began = True
                for each in source:
                    seen(source, each)
                    pause, told = 0.0, False
                    yield each
            return
        except ClientError as error:
            if error.code not in AGAIN or (error.code == "no_answer" and not began):
                raise
            if error.code == "no_answer" and not told:
                told = True
                click.echo(f"holdfast: {error}; still waiting", err=True)
        over.wait(pause)
        pause = min(max(PAUSE_FIRST, pause * 2), PAUSE_LIMIT)
