"""The control socket: what the API answers, and that nothing which a client sends or leaves out stops it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import socket
import stat
import time
import uuid

import pytest
from helpers_control import LogWriter, Served, as_nobody, everything
from helpers_lib import root_only
from helpers_wait import eventually
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.control import server, streams
from holdfast.control.errors import STATUS
from holdfast.daemon.update import BadFile
from holdfast.daemon.upgrade import Refused


@pytest.fixture
def served(tmp_path):
    with Served(tmp_path) as served:
        yield served


def request(method, target, body=b"", *headers):
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(target, value):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return request("POST", target, body, "Content-Type: application/json")


def answers(data):
    """Every answer in what a connection gave: (status, headers, body)."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "content-length" in headers:
            size = int(headers["content-length"])
            body, data = data[:size], data[size:]
        else:
            body = b""
            while data:
                size, _, data = data.partition(b"\r\n")
                body += data[: int(size, 16)]
                data = data[int(size, 16) + 2 :]
                if int(size, 16) == 0:
                    break
        found.append((int(first.split()[1]), headers, body))
    return found


def ask(served, data):
    """The one answer to a request: status and JSON."""
    ((status, headers, body),) = answers(served.ask(data))
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)


def get(served, target):
    return ask(served, request("GET", target))


def refused(served, data, code):
    """The message and the hint of a refusal, which has to be this one."""
    status, value = ask(served, data)
    assert set(value) == {"error"}
    assert set(value["error"]) == {"code", "message", "hint"}
    assert (status, value["error"]["code"]) == (STATUS[code], code), value
    assert value["error"]["message"]
    return value["error"]["message"], value["error"]["hint"]


def alive(served):
    assert get(served, "/v1/services/web")[1]["name"] == "web"


@pytest.fixture(scope="module")
def long_served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp(uuid.uuid4().hex)) as served:
        with served.connect() as made:  # so that what is opened once is open
            made.sendall(request("GET", "/v1/services/web/logs?follow=1"))
            assert made.recv(12) == b"HTTP/1.1 200"
            assert eventually(lambda: served.server._watcher._fd >= 0)
        yield served


def limit(served, monkeypatch, name, value, module=server):
    assert hasattr(module, name)
    monkeypatch.setattr(module, name, value)


# ---- what it answers


def test_reading(served):
    assert get(served, "/v1/supervisor")[1]["pid"] == os.getpid()
    status, services = get(served, "/v1/services?name=w*&name=db")
    assert (status, [service["name"] for service in services]) == (200, ["db", "web", "web-admin"])
    web = get(served, "/v1/services/web")[1]
    assert web == services[1]
    promised = "name state ready pid incarnation uptime_seconds restarts last_exit tree held_by"
    assert set(promised.split(" ")) <= set(web)
    assert set(web["last_exit"]) == {"code", "signal", "cause"}
    assert set(web["tree"]) == {"processes", "cpu_seconds", "memory_bytes"}
    assert get(served, "/v1/services/web%2Dadmin")[1]["name"] == "web-admin"


def test_commands(served):
    me = (os.getpid(), os.geteuid())
    status, value = ask(served, post("/v1/stop", {"names": ["web*"], "wait": True, "timeout_seconds": 30}))
    assert (status, [result["outcome"] for result in value["results"]]) == (200, ["done", "done"])
    assert value["results"][0]["service"]["state"] == "stopped"
    ask(served, post("/v1/start", {"names": ["web@41"], "timeout_seconds": None}))
    ask(served, post("/v1/restart", {"names": ["db"], "wait": False}))
    ask(served, post("/v1/signal", {"names": ["db"], "signal": "HUP", "scope": "group"}))
    assert ask(served, post("/v1/shutdown", {})) == (200, {})
    assert served.supervisor.asked == [
        ("stop", ["web", "web-admin"], me), ("start", ["web"], me), ("restart", ["db"], me), ("signal", ["db"], me),
        ("shutdown", [], me),
    ]  # fmt: skip


def test_leaving(served):
    assert ask(served, post("/v1/shutdown", {"keep": True})) == (200, {"services": 4, "kept": {"db": "stop"}})
    status, value = ask(served, post("/v1/upgrade", {}))
    assert (status, value["version"], value["next_version"], value["services"]) == (200, "0.1.0", "0.2.0", 4)
    assert [verb for verb, _, _ in served.supervisor.asked] == ["leave", "upgrade"]
    served.supervisor.failing = Refused("the version that is installed now does not start: no such module")
    status, value = ask(served, post("/v1/upgrade", {}))
    assert (status, value["error"]["code"], value["error"]["hint"]) == (409, "refused", "nothing was changed")


def test_updating(served):
    status, value = ask(served, post("/v1/update", {"rollback": True, "timeout_seconds": 3}))
    assert (status, value["unchanged"], value["changes"][0]["outcome"]) == (200, 3, "done")
    ask(served, post("/v1/update", {"dry_run": True, "wait": False}))
    asked = [(verb, given) for verb, given, _ in served.supervisor.asked]
    assert asked == [("update", [False, True, True, 3.0]), ("update", [True, False, False, None])]
    served.supervisor.failing = BadFile("holdfast.toml:3: is no key")
    status, value = ask(served, post("/v1/update", {}))
    assert (status, value["error"]["code"], value["error"]["hint"]) == (422, "bad_config", "nothing was changed")


def test_streams_end_with_the_word_of_an_upgrade(served):
    with served.connect() as made:
        made.sendall(request("GET", "/v1/events"))
        assert made.recv(12) == b"HTTP/1.1 200"
        served.upgrading = True
        served.stop()
        assert re.search(rb'event: end\ndata: \{"code":"upgrading",.*\}\n\n\r\n0\r\n\r\n$', everything(made))


def test_logs(served, tmp_path):
    with LogWriter(tmp_path / "logs" / "web") as log:
        log.write(b"one\ntwo\n")
        two = [{"stream": "stdout", "text": "two"}]
        expected = {"entries": two, "cursor": "1:8", "more": False, "missing_files": 0}
        assert get(served, "/v1/services/web/logs?lines=1&stream=stdout") == (200, expected)
        assert get(served, "/v1/services/web/logs?cursor=1:4&stream=stdout") == (200, expected)
        both = get(served, "/v1/services/web/logs")[1]
        assert ([entry["text"] for entry in both["entries"]], both["cursor"]) == (["one", "two"], "1:8,1:0")
        os.chmod(tmp_path / "logs" / "web" / "current", 0)
        os.rename(tmp_path / "logs" / "web" / "current", tmp_path / "aside")
        os.symlink(tmp_path / "aside", tmp_path / "logs" / "web" / "current")
        refused(served, request("GET", "/v1/services/web/logs"), "unavailable")
    (tmp_path / "logs" / "db").write_text("no directory")
    ((status, _, body),) = answers(served.ask_stream(request("GET", "/v1/services/db/logs?follow=1")))
    assert (status, body[:23]) == (200, b"retry: 1000\nevent: end\n")
    assert json.loads(body.partition(b"data: ")[2])["code"] == "unavailable"


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (request("GET", "/"), "not_found", "v1"),
        (request("GET", "/v2/services"), "not_found", "/v1/services"),
        (request("GET", "/v1/service"), "not_found", "/v1/services"),
        (request("GET", "/v1/services/"), "not_found", "/v1/services"),
        (request("GET", "/v1/services/web/log"), "not_found", ""),
        (request("GET", "*"), "not_found", ""),
        (request("GET", "http://x/v1/services"), "not_found", ""),
        (request("GET", "/v1/services/wbe"), "unknown_service", "web"),
        (request("GET", "/v1/services?name=x*"), "unknown_service", "x*"),
        (request("GET", "/v1/services/wbe/logs?follow=1"), "unknown_service", "web"),
        (post("/v1/stop", {"names": ["web", "wbe"]}), "unknown_service", "web"),
        (request("GET", "/v1/services?nmae=web"), "bad_request", "name"),
        (request("GET", "/v1/supervisor?x=1"), "bad_request", "x"),
        (request("GET", "/v1/events?after=1&after=2"), "bad_request", "twice"),
        (request("GET", "/v1/events?after=-1"), "bad_request", "after"),
        (request("GET", "/v1/events?after=1e3"), "bad_request", "after"),
        (request("GET", f"/v1/events?after={'9' * 30}"), "bad_request", "after"),
        (request("GET", "/v1/services/web/logs?lines=1000000"), "bad_request", "100000"),
        (request("GET", "/v1/services/web/logs?lines=1&cursor=1:0"), "bad_request", "exclude"),
        (request("GET", "/v1/services/web/logs?cursor=1:0"), "bad_request", "cursor"),
        (request("GET", "/v1/services/web/logs?cursor=x&follow=1"), "bad_request", "cursor"),
        (request("GET", "/v1/services/web/logs?stream=both"), "bad_request", "stderr"),
        (request("GET", "/v1/services/web/logs?follow=yes"), "bad_request", "follow"),
        (request("GET", "/v1/services?" + "&".join(["name=web"] * 1001)), "bad_request", "1000"),
        (post("/v1/stop", b""), "bad_request", "JSON"),
        (post("/v1/stop", b"{"), "bad_request", "JSON"),
        (post("/v1/stop", b"\xff\xfe"), "bad_request", "JSON"),
        (post("/v1/stop", b"[" * 60_000), "bad_request", ""),
        (post("/v1/stop", b'{"names":' + b"[" * 60_000), "bad_request", ""),
        (post("/v1/stop", b'{"names": ["web"], "x":' + b"[" * 60_000), "bad_request", ""),
        (post("/v1/stop", []), "bad_request", "object"),
        (post("/v1/stop", {}), "bad_request", "names"),
        (post("/v1/stop", {"names": []}), "bad_request", "names"),
        (post("/v1/stop", {"names": "web"}), "bad_request", "array"),
        (post("/v1/stop", {"names": [""]}), "bad_request", "names"),
        (post("/v1/stop", {"names": ["web"] * 1001}), "bad_request", "1000"),
        (post("/v1/stop", {"names": ["web"], "wiat": False}), "bad_request", "wait"),
        (post("/v1/stop", {"names": ["web"], "wait": 1}), "bad_request", "bool"),
        (post("/v1/stop", {"names": ["web"], "timeout_seconds": -1}), "bad_request", "timeout_seconds"),
        (post("/v1/stop", {"names": ["web"], "timeout_seconds": 1e300}), "bad_request", "timeout_seconds"),
        (post("/v1/stop", b'{"names": ["web"], "timeout_seconds": Infinity}'), "bad_request", ""),
        (post("/v1/signal", {"names": ["web"]}), "bad_request", "signal"),
        (post("/v1/signal", {"names": ["web"], "signal": "NONE"}), "bad_request", "NONE"),
        (post("/v1/signal", {"names": ["web"], "signal": "HUP", "scope": "all"}), "bad_request", "scope"),
        (post("/v1/shutdown", {"now": True}), "bad_request", "now"),
        (request("POST", "/v1/shutdown", b"{}"), "not_json", "Content-Type"),
        (request("POST", "/v1/shutdown", b"{}", "Content-Type: text/plain"), "not_json", "Content-Type"),
        (request("POST", "/v1/shutdown", b"a=b", "Content-Type: application/x-www-form-urlencoded"), "not_json", ""),
        (request("POST", "/v1/services"), "method_not_allowed", "GET"),
        (request("DELETE", "/v1/services/web"), "method_not_allowed", "GET"),
        (request("OPTIONS", "/v1/stop"), "method_not_allowed", "POST"),
        (request("BREW", "/v1/stop"), "method_not_allowed", "POST"),
        (request("CONNECT", "/v1/stop"), "method_not_allowed", "POST"),
        (b"nonsense\r\n\r\n", "bad_request", "HTTP"),
        (b"GET /v1/services HTTP/1.1\r\n\r\n", "bad_request", "Host"),
        (b"GET /v1/ser\xffvices HTTP/1.1\r\nHost: x\r\n\r\n", "bad_request", "HTTP"),
        (request("GET", "/v1/services", b"", "A B: c"), "bad_request", "HTTP"),
        (request("GET", "/" + "x" * 20_000), "too_large", "16384"),
        (request("GET", "/v1/services", b"", *["X: " + "y" * 100] * 300), "too_large", "16384"),
        (request("GET", "/v1/services", b"", *["X: " + "y" * 100] * 3000)[:-2], "too_large", "16384"),
        (request("POST", "/v1/stop", b"", "Content-Length: -1"), "bad_request", "HTTP"),
        (request("POST", "/v1/stop", b"", "Content-Length: 1", "Content-Length: 2"), "bad_request", "HTTP"),
        (request("POST", "/v1/stop", b"", "Content-Type: application/json", "Content-Length: 5",
                 "Transfer-Encoding: chunked") + b"0\r\n\r\n" + post("/v1/shutdown", {}), "bad_request", "not both"),
        (request("POST", "/v1/stop", b"", "Content-Type: application/json", "Content-Length: 70000"), "too_large", ""),
        (request("POST", "/v1/stop", b"", "Content-Type: application/json", "Content-Length: " + "9" * 19), "too_large",
         ""),
        (post("/v1/stop", b"[" + b" " * 65_536), "too_large", ""),
        (request("POST", "/v1/stop", b"", "Content-Type: application/json", "Transfer-Encoding: chunked")
         + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 6, "too_large", ""),
        (request("POST", "/v1/stop", b"", "Content-Type: application/json", "Transfer-Encoding: chunked") + b"zz\r\n",
         "bad_request", ""),
    ],
)  # fmt: skip
def test_refusals(long_served, data, code, says):
    served = long_served
    served.supervisor.asked.clear()
    message, hint = refused(served, data, code)
    assert says in message + hint
    assert not served.supervisor.asked
    alive(served)


def test_methods(served):
    """HEAD is GET without the body; what is there for other methods stands in Allow."""
    ((_, _, body),) = answers(served.ask(request("GET", "/v1/services")))
    head = served.ask(request("HEAD", "/v1/services"))
    assert head.endswith(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    stream = served.ask(request("HEAD", "/v1/events"))
    assert (stream[:15], stream[-4:]) == (b"HTTP/1.1 200 OK", b"\r\n\r\n")
    for method, target, allow in (
        ("OPTIONS", "/v1/services", "GET, HEAD"), ("PUT", "/v1/stop", "POST"), ("HEAD", "/v1/stop", "POST")
    ):  # fmt: skip
        assert f"\r\nallow: {allow}\r\n".encode() in served.ask(request(method, target)).lower().replace(
            allow.lower().encode(), allow.encode()
        )


def test_an_error_inside_is_an_answer(served, caplog):
    """The supervisor behind it fails: the client hears that, the log says more, the next request is answered."""
    served.supervisor.failing = RuntimeError("a bug")
    message, hint = refused(served, request("GET", "/v1/supervisor"), "internal")
    assert "a bug" not in message + hint
    assert "a bug" in caplog.text
    served.supervisor.failing = None
    alive(served)


# ---- connections


def test_many_requests_on_one_connection(served):
    with served.connect() as made:
        for size in (1, 7, 1000):  # whatever way the bytes come
            data = request("GET", "/v1/services/web") + post("/v1/stop", {"names": ["db"]})
            for at in range(0, len(data), size):
                made.sendall(data[at : at + size])
        data = b""
        while data.count(b"HTTP/1.1 200") < 6 or not data.endswith(b"}\n"):
            data += made.recv(65536)
    assert [status for status, _, _ in answers(data)] == [200] * 6
    assert len(served.supervisor.asked) == 3


def test_pipelined(served):
    """All at once, the answers in order; a broken one ends it there."""
    names = ["db", "web", "slow", "web-admin"] * 50
    data = b"".join(request("GET", f"/v1/services/{name}") for name in names)
    found = answers(served.ask(data + b"broken\r\n\r\n" + request("GET", "/v1/services/db")))
    assert [json.loads(body).get("name") for _, _, body in found] == [*names, None]
    assert found[-1][0] == 400
    alive(served)


def test_half_open(served):
    """The client has shut down its half: it gets the answer to what was whole, and the connection ends."""
    assert get(served, "/v1/services/db")[0] == 200  # `ask` does that
    assert served.ask(b"") == b""
    assert served.ask(b"GET /v1/serv") == b""
    assert served.ask(post("/v1/stop", {"names": ["web"]})[:-1]) == b""
    assert ask(served, post("/v1/start", {"names": ["slow"], "timeout_seconds": 0.05}))[1]["results"][0]["outcome"]
    assert served.do(lambda: len(served.server._connections)) == 0


def test_a_client_that_goes_in_between(served):
    """At every byte of a request, and while it is answered."""
    data = post("/v1/restart", {"names": ["web"]})
    for at in range(len(data) + 1):
        with served.connect() as made:
            made.sendall(data[:at])
    for target in ("/v1/events", "/v1/services/web/logs?follow=1"):
        with served.connect() as made:
            made.sendall(request("GET", target))
            assert made.recv(12) == b"HTTP/1.1 200"
    # A stream's client that has half-closed, or asked for more behind it: its end is seen all the same.
    for tail in (b"", request("GET", "/v1/services/web") * 3, b"x" * 100_000):
        for at_once in (True, False):
            with served.connect() as made:
                made.sendall(request("GET", "/v1/events") + (tail if at_once else b""))
                assert made.recv(12) == b"HTTP/1.1 200"
                made.sendall(b"" if at_once else tail)
    for pause in (False, True):
        with served.connect() as made:
            made.sendall(request("GET", "/v1/events"))
            if pause:
                assert made.recv(12) == b"HTTP/1.1 200"
            made.shutdown(socket.SHUT_WR)
            everything(made)  # the server ends it: a stream has no other end
    with served.connect() as made:
        made.sendall(post("/v1/start", {"names": ["slow"]}))
        assert eventually(lambda: served.supervisor.waiting == 1)
    assert eventually(lambda: served.supervisor.waiting == 0)
    assert eventually(lambda: served.do(lambda: len(served.server._connections)) == 0)
    assert served.do(lambda: len(served.server._state.tasks)) == 0
    alive(served)


@pytest.mark.parametrize(
    "data",
    [b"", b"GET", request("GET", "/v1/services")[:-1], request("POST", "/v1/stop", b"", "Content-Length: 5") + b"12",
     post("/v1/stop", b" " * 100)[:-1]],
    ids=["nothing", "line", "headers", "unasked body", "body"],
)  # fmt: skip
def test_slow_requests_are_closed(served, monkeypatch, data):
    limit(served, monkeypatch, "REQUEST_LIMIT", 0.3)
    with served.connect() as made:
        made.sendall(data)
        found = answers(everything(made))
        assert found[-1][0] in (408, 415)
    alive(served)


def test_trickling_does_not_help(served, monkeypatch):
    limit(served, monkeypatch, "REQUEST_LIMIT", 0.3)
    with served.connect() as made:
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            made.sendall(b"GET /v1/services HTTP/1.1\r\nHost: x\r\n")
            while not select.select([made], [], [], 0.02)[0]:
                made.sendall(b"X: y\r\n")
                assert time.monotonic() < began + 30
        ((status, _, body),) = answers(everything(made))
        assert (status, json.loads(body)["error"]["code"]) == (408, "too_slow")


def test_idle_connections_are_closed(served, monkeypatch):
    """After an answer the client may think for a while, not for ever."""
    served.do(setattr, served.server._config, "timeout_keep_alive", 0.2)
    limit(served, monkeypatch, "REQUEST_LIMIT", 0.2)
    with served.connect() as made:
        made.sendall(request("GET", "/v1/services/web") * 2)
        assert len(answers(everything(made))) == 2


def test_long_waits_are_no_slowness(served, monkeypatch):
    """The limit is the request's: neither a command that waits nor a stream is cut by it."""
    limit(served, monkeypatch, "REQUEST_LIMIT", 0.1)
    limit(served, monkeypatch, "UNREAD_LIMIT", 0.1)
    with served.connect() as made:
        made.sendall(request("GET", "/v1/events"))
        result = ask(served, post("/v1/start", {"names": ["slow"], "timeout_seconds": 0.5}))
        assert result[1]["results"][0]["outcome"] == "timed_out"
        served.do(served.supervisor.events.add, "late", "but there")
        data = b""
        while b"but there" not in data:
            data += made.recv(65536)


def test_answers_that_nobody_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "UNREAD_LIMIT", 0.3)
    with Served(tmp_path, names=[f"service-{number:04}" for number in range(3000)]) as served:
        with served.connect() as made:
            made.sendall(request("GET", "/v1/services") * 20)
            assert made.recv(1) == b"H"
            assert eventually(lambda: served.do(lambda: len(served.server._connections)) == 0)
            with contextlib.suppress(ConnectionResetError):
                while made.recv(65536):
                    pass
        assert len(get(served, "/v1/services")[1]) == 3000


def test_small_answers_that_nobody_reads(tmp_path, monkeypatch):
    """What is left over when the kernel's buffer is full may be a few bytes: they count, too."""
    monkeypatch.setattr(server, "UNREAD_LIMIT", 0.3)
    names = [f"service-{number:04}" for number in range(850)]
    with Served(tmp_path, names=names) as served, contextlib.ExitStack() as stack:
        served.do(setattr, served.server._config, "timeout_keep_alive", 0.1)
        for count in range(400, 850, 50):  # steps of 17 KB, up to more than the kernel takes
            made = stack.enter_context(served.connect())
            made.sendall(request("GET", "/v1/services?" + "&".join(f"name={name}" for name in names[:count])))
            assert made.recv(1) == b"H"
        assert eventually(lambda: served.do(lambda: len(served.server._connections)) == 0)


def test_a_stream_that_nobody_reads_is_told_so(served, monkeypatch):
    """What it has not taken is bounded; then the last event says why; read late, it is still there."""
    limit(served, monkeypatch, "STALL_LIMIT", 0.3, streams)
    with served.connect() as made:
        made.sendall(request("GET", "/v1/events?after=0"))
        assert made.recv(1) == b"H"
        for _ in range(400):
            served.do(served.supervisor.events.add, "big", "x" * 4096)
        assert eventually(lambda: not served.do(lambda: len(served.server._state.tasks)))
        data = b"H" + everything(made)
    body = answers(data)[0][2].removeprefix(b"retry: 1000\n")
    assert len(body) < 400 * 4096
    *events, last = body.removesuffix(b"\n\n").split(b"\n\n")
    assert [int(event.split(b"\n")[0][4:]) for event in events] == list(range(1, len(events) + 1))
    name, told = last.split(b"\n")
    assert (name, json.loads(told[6:])["code"]) == (b"event: end", "too_slow")


def test_the_number_of_connections_is_limited(served, monkeypatch):
    limit(served, monkeypatch, "CONNECTIONS_MAX", 5)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(served.connect()) for _ in range(8)]
        late = [answers(everything(each)) for each in made[5:]]
        assert [json.loads(body)["error"]["code"] for ((_, _, body),) in late] == ["busy"] * 3
        for each in made[:5]:
            each.sendall(request("GET", "/v1/services/web"))
            assert each.recv(12) == b"HTTP/1.1 200"
    assert eventually(lambda: served.do(lambda: len(served.server._connections)) == 0)
    alive(served)


def test_a_storm_of_connections(served):
    """More than may be there at a time, and all of them gone again at once."""
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                client = stack.enter_context(served.connect())
                with contextlib.suppress(BrokenPipeError):  # one too many, and closed already
                    client.sendall(b"GET /v1/services HTTP/1.1\r\n")
    assert eventually(lambda: served.do(lambda: len(served.server._connections)) == 0)
    alive(served)


# ---- who


def test_the_mode_of_the_socket_stays(served):
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


@root_only
def test_other_users_are_refused_even_where_the_mode_would_let_them_in(tmp_path_factory):
    import tempfile

    script = (  # what it sends is never read: a reset follows the answer
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "r = b'GET /v1/services HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n';"
        "from contextlib import suppress\nwith suppress(BrokenPipeError): s.sendall(r)\n"
        "with suppress(ConnectionResetError):\n  while d := s.recv(4096): print(d.decode(), end='')"
    )
    with tempfile.TemporaryDirectory() as place, Served(place) as served:
        os.chmod(place, 0o711)
        os.chmod(served.path, 0o666)
        done = as_nobody(["-c", script, served.path])
        assert done.stdout.startswith("HTTP/1.1 403 "), done.stderr
        assert json.loads(done.stdout.partition("\n\n")[2])["error"]["code"] == "not_permitted"
        alive(served)


# ---- the end


def test_stop_is_prompt_and_says_so(tmp_path):
    """Streams get a last event, commands that wait an answer, idle and unfinished ones are closed."""
    with Served(tmp_path) as served:
        asked = [
            request("GET", "/v1/events"),
            request("GET", "/v1/services/web/logs?follow=1"),
            post("/v1/start", {"names": ["slow"]}),
            request("GET", "/v1/services/web"),
            b"GET /v1/serv",
            b"",
        ]
        made = [served.connect() for _ in asked]
        for each, data in zip(made, asked, strict=True):
            each.sendall(data)
        assert made[3].recv(12) == b"HTTP/1.1 200"
        for each in made[:2]:
            assert each.recv(12) == b"HTTP/1.1 200"
        assert eventually(lambda: served.supervisor.waiting == 1)
        began = time.monotonic()
        served.stop()
        assert time.monotonic() - began < 10  # a hang guard; nothing of this waits
        ends = [everything(each) for each in made]
        for each in made:
            each.close()
        for end in ends[:2]:
            assert re.search(rb'event: end\ndata: \{"code":"stopping",.*\}\n\n\r\n0\r\n\r\n$', end)
        ((status, _, body),) = answers(ends[2])
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
        assert ends[4:] == [b"", b""]
        with pytest.raises(ConnectionRefusedError):
            served.connect()


def test_stop_does_not_wait_for_who_does_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "STOP_LIMIT", 0.2)
    with Served(tmp_path, names=[f"service-{number:04}" for number in range(3000)]) as served:
        made = served.connect()
        made.sendall(request("GET", "/v1/services") * 5)
        stream = served.connect()
        stream.sendall(request("GET", "/v1/events?after=0"))
        for _ in range(200):
            served.do(served.supervisor.events.add, "big", "x" * 4096)
        served.stop()
        made.close()
        stream.close()


def test_it_does_nothing_while_nothing_is_asked(served):
    """No timer runs, no matter how many streams are open: the loop sleeps until somebody speaks."""
    with contextlib.ExitStack() as stack:
        for target in ("/v1/events", "/v1/services/web/logs?follow=1", "/v1/services/db/logs?follow=1") * 5:
            made = stack.enter_context(served.connect())
            made.sendall(request("GET", target))
            assert made.recv(12) == b"HTTP/1.1 200"
        assert served.do(lambda: len(served.server._connections)) == 15

        def timers():
            return [each for each in asyncio.get_running_loop()._scheduled if not each.cancelled()]

        assert eventually(lambda: served.do(timers) == [])


def test_the_server_leaves_signals_alone(served):
    import signal

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


# ---- a thousand things that are no requests

WORDS = [
    b"GET ", b"POST ", b"HEAD ", b"/v1/services", b"/v1/stop", b"/v1/events", b"/v1/services/web/logs?follow=1",
    b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r\n\r\n", b"Host: x", b"Content-Length: 10", b"Content-Length: 0",
    b"Transfer-Encoding: chunked", b"Content-Type: application/json", b"Expect: 100-continue", b"Connection: close",
    b"Connection: Upgrade", b"Upgrade: websocket", b"0\r\n\r\n", b"5\r\nabcde\r\n", b'{"names": ["web"]}', b"%00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01", b"A" * 5000, b"?lines=1", b"&cursor=9:9", b"..", b"%ff%fe",
]  # fmt: skip
BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=10)), max_size=15).map(b"".join),
    st.builds(
        lambda method, target, headers, body: b"\r\n".join(
            [method + target + b" HTTP/1.1", b"Host: x", *headers, b"", body]
        ),
        st.sampled_from(WORDS[:3]),
        st.one_of(st.sampled_from(WORDS[3:7]), st.binary(max_size=20)),
        st.lists(st.sampled_from(WORDS), max_size=4),
        st.one_of(st.binary(max_size=100), st.just(b'{"names": ["web"]}')),
    ),
)


@given(data=BYTES, cut=st.integers(0, 400), how=st.sampled_from(["whole", "pieces", "gone", "reset"]))
@example(data=request("GET", "/v1/events") + request("GET", "/v1/services"), cut=0, how="whole")
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(long_served, data, cut, how):
    """Whatever comes, in one piece or two, from a client that waits or one that goes: the next one is served."""
    served = long_served
    made = served.connect()
    try:
        made.sendall(data[:cut] if how != "whole" else data)
        if how == "pieces":
            made.sendall(data[cut:])
        if how in ("whole", "pieces"):
            made.shutdown(socket.SHUT_WR)
            if b"/v1/events" not in data and b"follow" not in data:
                first = everything(made)[:9]
                assert first in (b"", b"HTTP/1.1 ")
    except BrokenPipeError:
        pass
    finally:
        made.close()
    alive(served)
    assert not served.errors
