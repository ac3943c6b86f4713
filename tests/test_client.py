"""holdfast.client against a real server, and against answers that no server of ours gives."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

import pytest
from helpers_control import LogWriter, Served, as_nobody
from helpers_lib import root_only
from helpers_supervisor import HOLDFAST
from helpers_wait import eventually

import holdfast
from holdfast.client import Client, ClientError, NoSupervisor
from holdfast.control.server import CONNECTIONS_MAX
from holdfast.daemon.names import StillAdopting


@pytest.fixture
def served(tmp_path):
    with Served(tmp_path) as served:
        yield served


@pytest.fixture
def client(served):
    with Client(served.run_dir) as client:
        yield client


# ---- what it gives


def test_reading(client):
    assert client.supervisor()["pid"] == os.getpid()
    assert [service["name"] for service in client.services()] == ["db", "web", "web-admin", "slow"]
    assert [service["name"] for service in client.services("web*", "db")] == ["db", "web", "web-admin"]
    assert client.service("web")["last_exit"] == {"code": None, "signal": "SIGKILL", "cause": "killed by SIGKILL"}


def test_commands(client, served):
    assert [(r["name"], r["outcome"]) for r in client.stop("web*")] == [("web", "done"), ("web-admin", "done")]
    assert client.service("web")["state"] == "stopped"
    assert client.start("web")[0]["service"]["state"] == "running"
    assert client.restart("db@41")[0]["outcome"] == "done"
    assert client.signal("db", signal="HUP", scope="tree")[0]["message"] == "SIGHUP was sent to its tree"
    assert client.signal("db", signal=1)[0]["message"] == "SIG1 was sent"
    assert client.shutdown() == {}
    verbs = [verb for verb, _, peer in served.supervisor.asked if peer == (os.getpid(), os.geteuid())]
    assert verbs == ["stop", "start", "restart", "signal", "signal", "shutdown"]


def test_refusals_are_exceptions(client):
    with pytest.raises(ClientError) as caught:
        client.service("wbe")
    error = caught.value
    assert (error.code, error.message, error.hint) == (
        "unknown_service", "no service is called 'wbe'", "did you mean web?",
    )  # fmt: skip
    assert str(error) == "no service is called 'wbe' (did you mean web?)"
    for call in (
        lambda: client.services("nothing*"),
        lambda: client.stop("nothing"),
        lambda: client.logs("nothing"),
        lambda: client.logs("nothing", follow=True),
    ):
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.code == "unknown_service"
    with pytest.raises(ClientError) as caught:
        client.start()
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("name", ["a/b", "..", "%2e", "ü", "a b", "a?b=c", "a#b", "a&name=web", "\x00", "\udcff"])
def test_odd_names_arrive_as_they_are(client, name):
    with pytest.raises(ClientError) as caught:
        client.services(name)
    assert caught.value.code == "unknown_service"
    if "\udcff" not in name:  # no text, which JSON must be
        assert repr(name) in caught.value.message
    with pytest.raises(ClientError) as caught:
        client.service(name)
    assert caught.value.code in ("unknown_service", "not_found")


def test_long_paths():
    with tempfile.TemporaryDirectory() as directory:
        deep = os.path.join(directory, "x" * 120)
        os.mkdir(deep)
        with Served(directory) as served:
            os.link(served.path, os.path.join(deep, "control"))
            with Client(deep) as client:
                assert len(client.path) > 107
                assert client.supervisor()["pid"] == os.getpid()


def test_answers_of_any_size(tmp_path):
    names = [f"service-{number:04}" for number in range(3000)]
    with Served(tmp_path, names=names) as served, Client(served.run_dir) as client:
        assert [service["name"] for service in client.services()] == names
        assert len(client.services(*names[:200])) == 200


# ---- streams


def test_events_from_now_on_and_from_before(client):
    client.stop("web")
    with client.events() as coming:
        client.start("web")
        assert next(coming)["event"] == "started"
    with client.events(after=0) as all_:
        first, second = next(all_), next(all_)
        assert [first["event"], second["event"]] == ["stoped", "started"]
        assert first["text"] == f"by pid {os.getpid()}, uid {os.geteuid()}"
    with client.events(after=first["seq"]) as later:
        assert next(later) == second
    with client.events(after=10**15) as ahead:  # a number of another time: everything is new
        assert next(ahead) == first


def test_events_end_with_the_supervisor(served, client):
    with client.events() as events:
        served.do(served.supervisor.events.add, "supervisor_ended", "bye")
        served.stop()
        assert [event["event"] for event in events] == ["supervisor_ended"]
    with pytest.raises(NoSupervisor):
        client.supervisor()


def test_logs(served, client, tmp_path):
    assert list(client.logs("web")) == []
    with LogWriter(tmp_path / "logs" / "web") as log, LogWriter(tmp_path / "logs" / "web", "stderr") as err:
        for number in range(12_000):  # more than one page
            log.write(b"line %d\n" % number)
            if number % 5000 == 0:
                log.rotate()
        err.write(b"oh\n")
        reading = client.logs("web", stream="stdout")
        assert [entry["text"] for entry in reading] == [f"line {number}" for number in range(12_000)]
        log.write(b"more\n")
        assert [entry["text"] for entry in client.logs("web", cursor=reading.cursor, stream="stdout")] == ["more"]
        assert [(e["stream"], e["text"]) for e in client.logs("web", lines=1)] == [("stdout", "more"), ("stderr", "oh")]
        assert list(client.logs("web", lines=1, stream="stderr")) == [{"stream": "stderr", "text": "oh"}]
        assert list(client.logs("web", lines=0)) == []
        with client.logs("web", lines=2, stream="stdout", follow=True) as following:
            assert [next(following)["text"], next(following)["text"]] == ["line 11999", "more"]
            log.rotate()
            log.write(b"and more\n")
            assert next(following)["text"] == "and more"
        assert list(client.logs("web", cursor=following.cursor, stream="stdout")) == []
        log.rotate(keep=1)
        old = client.logs("web", cursor="2:0", stream="stdout")
        assert [entry["text"] for entry in old] == ["and more"]
        assert old.missing_files == 3


def test_logs_of_several_services(served, client, tmp_path):
    with LogWriter(tmp_path / "logs" / "web") as web, LogWriter(tmp_path / "logs" / "db") as db:
        web.write(b"old\n")
        with client.logs_of({"web": None, "db": "1:0"}, stream="stdout") as logs:
            assert next(logs) == {"service": "web", "stream": "stdout", "text": "old"}
            db.write(b"one\n")
            assert next(logs) == {"service": "db", "stream": "stdout", "text": "one"}
            db.rotate()
            db.write(b"two\n")
            assert next(logs)["text"] == "two"
            assert logs.cursors == {"web": "1:4", "db": "2:4"}
        web.write(b"meanwhile\n")
        with client.logs_of(logs.cursors, stream="stdout") as logs:
            assert next(logs) == {"service": "web", "stream": "stdout", "text": "meanwhile"}
    (tmp_path / "logs" / "web-admin").write_text("no directory")
    for cursors, code in (
        ({}, "bad_request"), ({"web": "x"}, "bad_request"), ({"web": None, "wbe": None}, "unknown_service"),
        ({f"web{n}": None for n in range(251)}, "bad_request"),
    ):  # fmt: skip
        with pytest.raises(ClientError) as error:
            client.logs_of(cursors)
        assert error.value.code == code, cursors
    with client.logs_of({"web": "1:14,1:0", "web-admin": None}) as logs, pytest.raises(ClientError) as error:
        next(logs)
    assert error.value.code == "unavailable"


def test_more_logs_are_followed_than_there_may_be_connections(tmp_path):
    names = [f"s{number}" for number in range(CONNECTIONS_MAX + 44)]
    with Served(tmp_path, names=names), contextlib.ExitStack() as stack:
        logs = [stack.enter_context(LogWriter(tmp_path / "logs" / name)) for name in names]
        for log in logs:
            log.write(b"before\n")
        following = stack.enter_context(
            subprocess.Popen(
                [HOLDFAST, "logs", "-f", "--json"], env={**os.environ, "HOLDFAST_RUN_DIR": str(tmp_path)},
                stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        stack.callback(following.kill)
        guard = threading.Timer(60, following.kill)
        guard.start()
        stack.callback(guard.join)
        stack.callback(guard.cancel)
        for text in ("before", "after", "at last"):
            entries = [json.loads(following.stdout.readline()) for _ in names]
            assert {each["service"] for each in entries} == set(names)
            assert {each["text"] for each in entries} == {text}
            for log in logs:
                log.write({"before": b"after\n", "after": b"at last\n", "at last": b""}[text])


def test_a_stream_that_is_closed_by_another_thread_ends(client):
    events = client.events()
    seen = []
    reader = threading.Thread(target=lambda: seen.append(list(events)))
    reader.start()
    events.close()
    reader.join(30)
    assert seen == [[]]


def test_close_ends_all_streams(served):
    client = Client(served.run_dir)
    streams = [client.events(), client.logs("web", follow=True), client.logs("db", follow=True)]
    threads = [threading.Thread(target=list, args=(each,)) for each in streams]
    for thread in threads:
        thread.start()
    client.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_many_threads_share_a_client(client):
    wrong = []

    def ask(number):
        for _ in range(20):
            name = ("db", "web", "web-admin")[number % 3]
            if client.service(name)["name"] != name or client.restart(name)[0]["name"] != name:
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


# ---- nobody there, or nobody who answers


def test_no_supervisor(tmp_path):
    for run_dir in (tmp_path, tmp_path / "none", "/dev/null"):
        with Client(str(run_dir)) as client, pytest.raises(NoSupervisor) as caught:
            client.supervisor()
        assert caught.value.code == "no_supervisor"
        assert caught.value.hint == "start one with: holdfast up"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(tmp_path / "control"))
    left_behind.close()
    with pytest.raises(NoSupervisor):
        Client(str(tmp_path)).supervisor()


@root_only
def test_another_user_is_told():
    """The socket's own mode keeps it out; the client says why."""
    script = (
        "import sys, holdfast.client\n"
        "try: holdfast.client.Client(sys.argv[1]).supervisor()\n"
        "except holdfast.client.ClientError as error: print(error.code)\n"
    )
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o711)
        # A copy: the installation may lie where another user cannot read.
        shutil.copytree(pathlib.Path(holdfast.__file__).parent, os.path.join(place, "lib", "holdfast"))
        subprocess.run(["chmod", "-R", "a+rX", os.path.join(place, "lib")], check=True)
        with Served(place):
            done = as_nobody(["-c", script, place], env={"PYTHONPATH": os.path.join(place, "lib")})
        assert done.stdout == "not_permitted\n", done.stderr


class Odd:
    """Answers the first connection with given bytes, then closes it; holds it open without any."""

    def __init__(self, directory, answer):
        self.run_dir = str(directory)
        self.answer = answer
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.path.join(self.run_dir, "control"))
        self.listener.listen(1)
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.serve)

    def serve(self):
        made, _ = self.listener.accept()
        with made, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            made.recv(65536)
            if self.answer is None:
                self.done.wait(60)
            for byte in self.answer or b"":
                made.sendall(bytes([byte]))  # one at a time: every boundary of a read

    def __enter__(self):
        self.thread.start()
        return Client(self.run_dir, timeout=10)

    def __exit__(self, *exc):
        self.done.set()
        self.thread.join(30)
        self.listener.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b'Content-Length: 8\r\n\r\n{"a": 1}',
        HEAD + b'content-length: 8\r\nX: y\r\n\r\n{"a": 1}trailing',
        HEAD + b'\r\n{"a": 1}',
        HEAD + b'Transfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n5;x=y\r\n": 1}\r\n0\r\n\r\n',
    ],
    ids=["length", "trailing", "to the end", "chunked"],
)
def test_framings(tmp_path, answer):
    with Odd(tmp_path, answer) as client:
        assert client.supervisor() == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "lost"),
        (b"HTTP/1.1 200 OK\r\n", "lost"),
        (HEAD + b"Content-Length: 8\r\n\r\n{", "lost"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "lost"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "bad_answer"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", "bad_answer"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n", "bad_answer"),
        (HEAD + b"Content-Length: eight\r\n\r\n{}", "bad_answer"),
        (HEAD + b"Content-Length: -8\r\n\r\n{}", "bad_answer"),
        (HEAD + b"Content-Length: 2\r\n\r\n{]", "bad_answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_answer"),
        (b"HTTP/1.1 OK\r\n\r\n", "bad_answer"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", "bad_answer"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n[]", "bad_answer"),
        (b"HTTP/1.1 200 " + b"x" * 70_000, "bad_answer"),
    ],
)
def test_answers_that_are_none(tmp_path, answer, code):
    with Odd(tmp_path, answer) as client, pytest.raises(ClientError) as caught:
        client.supervisor()
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (HEAD + b"\r\n", "lost"),
        (HEAD + b"\r\nid: 1\ndata: {", "lost"),
        (HEAD + b"\r\nid: 1\ndata: {\n\n", "bad_answer"),
        (HEAD + b"\r\nevent: end\ndata: {}\n\n", "bad_answer"),
        (HEAD + b"\r\nevent: end\ndata: []\n\n", "bad_answer"),
        (HEAD + b'\r\nevent: end\ndata: {"code": "too_slow", "message": "m", "hint": "h"}\n\n', "too_slow"),
        (b'HTTP/1.1 503 X\r\n\r\n{"error": {"code": "busy", "message": "m", "hint": "h"}}', "busy"),
    ],
)
def test_streams_that_end_badly(tmp_path, answer, code):
    with Odd(tmp_path, answer) as client, pytest.raises(ClientError) as caught:
        list(client.events())
    assert caught.value.code == code
    assert not client._streams


def test_silence_has_a_limit(tmp_path):
    with Odd(tmp_path, None) as client:
        client.timeout = 0.2
        with pytest.raises(ClientError) as caught:
            client.supervisor()
        assert caught.value.code == "no_answer"


def test_a_full_queue_has_a_limit(tmp_path):
    """Nobody accepts: the connect itself waits."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control"))
    listener.listen(0)
    waiting = []
    try:
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(tmp_path / "control"))
    except BlockingIOError:
        pass
    with pytest.raises(ClientError) as caught:
        Client(str(tmp_path), timeout=0.1).supervisor()
    assert caught.value.code == "no_answer"
    for each in (*waiting, listener):
        each.close()


def test_commands_that_wait_have_a_limit(client, served):
    (result,) = client.start("slow", timeout=0.1)
    assert (result["outcome"], served.supervisor.waiting) == ("timed_out", 0)
    assert client.stop("slow", wait=False)[0]["outcome"] == "done"


def test_a_client_that_goes_ends_its_waiting(client, served):
    """The supervisor need not wait for whom nobody waits."""
    client.timeout = 0.2
    with pytest.raises(ClientError):
        client._post("/v1/start", {"names": ["slow"]}, 0.2)
    assert eventually(lambda: served.supervisor.waiting == 0)


# ---- what it costs


def test_it_imports_little():
    package = str(pathlib.Path(holdfast.__file__).parent.parent)
    script = (
        "import sys; known = set(sys.modules); sys.path.insert(0, sys.argv[1]); import holdfast.client;"
        "print(*sorted(set(sys.modules) - known))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, package], capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert "holdfast.client" in names
    tops = {name.partition(".")[0] for name in names}
    assert tops <= sys.stdlib_module_names | {"holdfast"}
    assert not {"asyncio", "http", "urllib", "email", "ssl", "subprocess", "dataclasses", "typing", "logging"} & tops
    ours = {name for name in names if name.startswith("holdfast.")}
    assert ours == {"holdfast.client", "holdfast.connection", "holdfast.process", "holdfast.process.socket_path"}


# ---- a supervisor that has just started


def test_it_asks_again_while_the_supervisor_adopts(client, served, monkeypatch):
    asked, overview = [], served.supervisor.overview

    def adopting_at_first():
        asked.append(1)
        if len(asked) < 4:
            raise StillAdopting(1, 2)
        return overview()

    monkeypatch.setattr(served.supervisor, "overview", adopting_at_first)
    assert client.supervisor()["state"] == "running"
    assert len(asked) == 4


def test_asking_again_ends_at_the_limit(served):
    served.supervisor.failing = StillAdopting(1, 2)
    with Client(served.run_dir, timeout=0.3) as client, pytest.raises(ClientError) as caught:
        client.supervisor()
    assert caught.value.code == "adopting"
    assert "1 of 2" in caught.value.message
