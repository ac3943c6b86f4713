"""Streams of the API that were cut off go on: Last-Event-ID, `retry`, and what is told where something is missing."""

from __future__ import annotations

import json

import pytest
from helpers_api import Events, connect
from helpers_control import LogWriter, Served
from helpers_supervisor import Running, kill

SLEEPER = '[service.web]\ncommand = ["sleep", "1000"]\n'


@pytest.fixture
def served(tmp_path):
    with Served(tmp_path) as served:
        yield served


def events(served, target="/v1/events", **headers):
    return Events(served.connect(), target, **headers)


def refused(served, target, value):
    answer = served.ask(f"GET {target} HTTP/1.0\r\nHost: x\r\nLast-Event-ID: {value}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_events_go_on_behind_the_last_one(served):
    for number in range(5):
        served.do(served.supervisor.events.add, "made", f"number {number}")
    first = events(served, "/v1/events?after=2")
    with first.made:
        assert first.next()[1]["seq"] == 3
        assert first.retry == 1000
        assert first.last_id == "3"
    # As a browser does: the same address, and the header.  It was ahead of the query's number, or behind it.
    for query in ("?after=2", "?after=5", "?after=0", ""):
        again = events(served, "/v1/events" + query, Last_Event_ID=first.last_id)
        with again.made:
            assert [again.next()[1]["seq"] for _ in range(2)] == [4, 5], query


def test_an_empty_last_id_says_nothing(served):
    served.do(served.supervisor.events.add, "old", "")
    stream = events(served, Last_Event_ID="")
    with stream.made:
        served.do(served.supervisor.events.add, "new", "")
        assert stream.next()[1]["event"] == "new"


@pytest.mark.parametrize("value", ["x", "-1", "1e3", "9" * 19, "1:5", "%31"])
def test_a_last_id_that_is_none_is_refused(served, value):
    error = refused(served, "/v1/events", value)
    assert (error["code"], "Last-Event-ID" in error["message"]) == ("bad_request", True)


def test_logs_go_on_behind_the_last_piece(served, tmp_path):
    with LogWriter(tmp_path / "logs" / "web") as log:
        log.write(b"one\ntwo\n")
        first = events(served, "/v1/services/web/logs?lines=1&follow=1&stream=stdout")
        with first.made:
            assert [entry["text"] for entry in first.next()[1]["entries"]] == ["two"]
        log.write(b"three\n")
        log.rotate()
        log.write(b"four\n")
        # `lines` and `cursor` stand in the address still.
        for query in ("lines=1", "cursor=1:0", ""):
            again = events(
                served, f"/v1/services/web/logs?{query}&follow=1&stream=stdout", Last_Event_ID=first.last_id
            )
            with again.made:
                seen = []
                while len(seen) < 2:
                    seen += [entry["text"] for entry in again.next()[1]["entries"]]
            assert seen == ["three", "four"], query
        assert "cursor" in refused(served, "/v1/services/web/logs?follow=1", "nonsense")["message"]


def test_without_follow_there_is_no_last_id(served, tmp_path):
    with LogWriter(tmp_path / "logs" / "web") as log:
        log.write(b"one\n")
        head = b"GET /v1/services/web/logs?stream=stdout HTTP/1.0\r\nHost: x\r\nLast-Event-ID: x\r\n\r\n"
        assert b'"text":"one"' in served.ask(head)


def test_the_end_says_when_to_come_back(served):
    stream = events(served)
    with stream.made:
        served.stop()
        kind, data = stream.next()
        assert (kind, data["code"], stream.retry, stream.last_id) == ("end", "stopping", 1000, "")
        assert stream.next() is None


def test_a_client_goes_on_over_a_kill_of_the_supervisor(tmp_path):
    """The next supervisor does not know what the killed one knew: a gap says so, and its id is one to go on from."""
    with Running(tmp_path, SLEEPER) as up:
        up.until("web", state="running")
        first = Events(connect(up.run_dir / "control"), "/v1/events?after=0")
        with first.made:
            while first.next()[1]["event"] != "spawned":
                pass
            kill(up.client().supervisor()["pid"])
            while first.next() is not None:
                pass
        up.wait_for_socket()
        again = Events(connect(up.run_dir / "control"), "/v1/events?after=0", Last_Event_ID=first.last_id)
        with again.made:
            told = [again.next()[1]]
            while told[-1]["event"] != "adopted":
                told.append(again.next()[1])
        assert all(int(first.last_id) < each["seq"] for each in told)
        assert [each["seq"] for each in told] == sorted({each["seq"] for each in told})
        assert told[0]["event"] == "gap"
