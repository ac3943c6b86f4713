"""The API over TCP: a token, a Host that is us, no foreign Origin; the rest as usual."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress

import pytest
from helpers_api import TOKEN, Events, ServedTcp, ask_tcp, free_port, write_token
from helpers_config import problems
from helpers_supervisor import PLACES, Running, kill
from helpers_wait import wait_for

from holdfast.config.load import load
from holdfast.control import server

GOOD = '[service.web]\ncommand = ["sleep", "1000"]\n'


@pytest.fixture
def served(tmp_path):
    with ServedTcp(tmp_path) as served:
        yield served


def code(answer):
    return answer[0], answer[2]["error"]["code"]


# ---- who may


def test_with_the_token_everything_is_there(served):
    assert served.ask_tcp("GET", "/v1/services/web")[2]["name"] == "web"
    status, _, value = served.ask_tcp("POST", "/v1/stop", {"names": ["web"]})
    assert (status, value["results"][0]["outcome"]) == (200, "done")
    with served.connect_tcp() as made:
        stream = Events(made, "/v1/events?after=0", Authorization=f"Bearer {TOKEN}")
        assert stream.next()[1]["event"] == "stoped"
    # Who it was is told: there is no user, but where it came from.
    who = str(served.supervisor.asked[0][2])
    assert who.startswith("127.0.0.1:")
    assert who.endswith(", over TCP")


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}",
     f"Basic {TOKEN}", TOKEN, f"Bearer{TOKEN}", f"Bearer {TOKEN} {TOKEN}", "Bearer \xe4\xf6\xfc"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "target"), [("GET", "/v1/services"), ("POST", "/v1/shutdown"), ("GET", "/")])
def test_without_the_token_nothing_is(served, given, method, target):
    body = {} if method == "POST" else None
    answer = served.ask_tcp(method, target, body, authorization=given)
    assert code(answer) == (401, "no_token")
    assert answer[1]["www-authenticate"] == "Bearer"
    assert TOKEN not in str(answer)
    assert not served.supervisor.asked


def test_two_tokens_are_none(served):
    with served.connect_tcp() as made:
        line = f"Authorization: Bearer {TOKEN}\r\n"
        made.sendall(f"GET /v1/services HTTP/1.1\r\nHost: localhost\r\n{line}{line}\r\n".encode())
        assert made.recv(12) == b"HTTP/1.1 401"


@pytest.mark.parametrize("host", ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:9001", "[::1]", "[::1]:9001"])
def test_names_of_this_machine(served, host):
    assert served.ask_tcp("GET", "/v1/supervisor", host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9001", "localhost.evil.example", "localhost.", "127.0.0.1.evil.example", "", ":80",
     "127.0.0.2", "localhost:x", "user@localhost", "localhost, evil.example", "xlocalhost"],
)  # fmt: skip
def test_a_name_that_leads_here_and_is_not_ours(served, host):
    """DNS rebinding: the page's own name resolves to 127.0.0.1, and it may even know the token."""
    assert code(served.ask_tcp("GET", "/v1/supervisor", host=host)) == (403, "not_permitted")


def test_http_1_0_without_a_host(served):
    with served.connect_tcp() as made:
        made.sendall(f"GET /v1/supervisor HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert made.recv(12) == b"HTTP/1.1 403"


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "http://localhost:3000", "https://localhost", "http://localhost", "file://", "",
     "http://localhost:9001.evil.example", "moz-extension://x"],
)  # fmt: skip
def test_pages_of_others(served, origin):
    """Another program of this machine that serves pages is another origin, too."""
    answer = served.ask_tcp("POST", "/v1/shutdown", {}, host="localhost:9001", origin=origin)
    assert code(answer) == (403, "not_permitted")
    assert not served.supervisor.asked


def test_our_own_pages(served):
    for origin in ("http://localhost:9001", "https://LOCALHOST:9001"):
        assert served.ask_tcp("GET", "/v1/services", host="localhost:9001", origin=origin)[0] == 200


def test_a_form_of_a_page_is_refused_even_with_everything_else(served):
    with served.connect_tcp() as made:
        made.sendall(
            b"POST /v1/shutdown HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n"
            + f"Authorization: Bearer {TOKEN}\r\n\r\n{{}}".encode()
        )
        assert made.recv(12) == b"HTTP/1.1 415"
    assert not served.supervisor.asked


def test_names_of_a_proxy(tmp_path):
    class Proxied(ServedTcp):
        hosts = ("Ops.Example.org",)

    with Proxied(tmp_path) as served:
        named = {"host": "ops.example.org", "origin": "https://ops.example.org"}
        assert served.ask_tcp("GET", "/v1/services", **named)[0] == 200
        assert code(served.ask_tcp("GET", "/v1/services", host="example.org")) == (403, "not_permitted")


def test_ipv6(tmp_path):
    class Six(ServedTcp):
        host = "::1"

    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with Six(tmp_path) as served:
        assert served.ask_tcp("GET", "/v1/services")[0] == 200
        assert served.ask_tcp("POST", "/v1/stop", {"names": ["web"]})[0] == 200
        assert str(served.supervisor.asked[0][2]).startswith("[::1]:")


def test_the_unix_socket_needs_none_of_it(served):
    head = b"GET /v1/services HTTP/1.0\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n"
    assert served.ask(head).startswith(b"HTTP/1.1 200")


# ---- the token's file


def test_a_new_token_holds_at_once(served):
    other = "f" * 40
    write_token(served.token_file, other)
    assert code(served.ask_tcp("GET", "/v1/services")) == (401, "no_token")
    assert served.ask_tcp("GET", "/v1/services", authorization=f"bearer  {other}")[0] == 200


@pytest.mark.parametrize("change", ["mode", "gone", "short", "empty", "directory", "words"])
def test_a_file_that_holds_no_secret_lets_nobody_in(served, change):
    if change == "mode":
        os.chmod(served.token_file, 0o640)
    elif change == "directory":
        os.unlink(served.token_file)
        os.mkdir(served.token_file)
    elif change == "gone":
        os.unlink(served.token_file)
    else:
        write_token(served.token_file, {"short": "x" * 31, "empty": "", "words": "a" * 20 + " " + "b" * 20}[change])
    for given in (f"Bearer {TOKEN}", "Bearer " + "x" * 31, "Bearer ", f"Bearer {'a' * 20} {'b' * 20}"):
        assert code(served.ask_tcp("GET", "/v1/services", authorization=given)) == (503, "unavailable")
    assert served.ask(b"GET /v1/services HTTP/1.0\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")


# ---- manners


def test_strangers_leave_places_for_those_at_the_unix_socket(served, monkeypatch):
    monkeypatch.setattr(server, "TCP_CONNECTIONS_MAX", 3)
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    made = [served.connect_tcp() for _ in range(3)]
    try:
        assert code(served.ask_tcp("GET", "/v1/services")) == (503, "busy")
        for _ in range(3):
            assert served.ask(b"GET /v1/services HTTP/1.0\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")
    finally:
        for each in made:
            each.close()
    assert wait_for(lambda: not served.do(lambda: len(served.server._connections)))
    assert served.ask_tcp("GET", "/v1/services")[0] == 200


def test_slow_and_large_requests_end_as_on_the_unix_socket(served, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_LIMIT", 0.2)
    with served.connect_tcp() as made:
        made.sendall(b"GET /v1")
        assert made.recv(12) == b"HTTP/1.1 408"
    assert code(served.ask_tcp("GET", "/v1/" + "x" * 20000)) == (413, "too_large")


def test_a_client_that_goes_is_not_waited_for(served):
    body = b'{"names": ["slow"]}'
    with served.connect_tcp() as made:
        made.sendall(
            b"POST /v1/start HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_for(lambda: served.do(lambda: served.supervisor.waiting) == 1)
    wait_for(lambda: served.do(lambda: served.supervisor.waiting) == 0)


# ---- the configuration


def tcp_places(directory, port, **more):
    write_token(directory / "token")
    keys = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'{PLACES}[supervisor.http]\nlisten = "127.0.0.1:{port}"\ntoken_file = "token"\n{keys}'


@pytest.mark.parametrize(
    ("keys", "key", "message", "hint"),
    [
        ("listen = '127.0.0.1:9001'", "supervisor.http", "has no token_file", "umask 077"),
        ("token_file = 'token'", "supervisor.http", "does not say where to listen", "127.0.0.1:9001"),
        ("listen = '0.0.0.0:9001'\ntoken_file = 'token'", "supervisor.http.listen", "from other machines", "ssh -L"),
        ("listen = '192.0.2.1:1'\ntoken_file = 'token'", "supervisor.http.listen", "from other machines", "ssh -L"),
        ("listen = '[::]:9001'\ntoken_file = 'token'", "supervisor.http.listen", "from other machines", ""),
        ("listen = '127.0.0.1'\ntoken_file = 'token'", "supervisor.http.listen", "no address and port", "[::1]:9001"),
        ("listen = '127.0.0.1:0'\ntoken_file = 'token'", "supervisor.http.listen", "no address and port", ""),
        ("listen = '127.0.0.1:65536'\ntoken_file = 'token'", "supervisor.http.listen", "no address and port", ""),
        ("listen = '::1:80'\ntoken_file = 'token'", "supervisor.http.listen", "no address and port", ""),
        ("listen = 'ops.example.org:80'\ntoken_file = 'token'", "supervisor.http.listen", "no address and port", ""),
        ("listen = 9001\ntoken_file = 'token'", "supervisor.http.listen", "must be a string", ""),
        ("listen = '9001'\ntoken_file = 'none'", "supervisor.http.token_file", "No such file", "umask 077"),
        ("listen = '9001'\ntoken_file = 'open'", "supervisor.http.token_file", "mode 0644", "chmod 600"),
        ("listen = '9001'\ntoken_file = 'short'", "supervisor.http.token_file", "at least 32", "base64"),
        ("listen = '9001'\ntoken_file = '/'", "supervisor.http.token_file", "no regular file", ""),
        ("listen = '9001'\ntoken_file = 'token'\nallowed_hosts = ['http://x']", "supervisor.http.allowed_hosts",
         "no name of a host", "without scheme"),
        ("listen = '9001'\ntoken_file = 'token'\nallowed_hosts = 'x'", "supervisor.http.allowed_hosts",
         "must be a list", ""),
        ("address = '9001'\ntoken_file = 'token'\nlisten = '9001'", "supervisor.http.address", "is no key", ""),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, keys, key, message, hint):
    for name, text, mode in (("token", TOKEN, 0o600), ("open", TOKEN, 0o644), ("short", "x" * 31, 0o600)):
        write_token(tmp_path / name, text)
        os.chmod(tmp_path / name, mode)
    (found,) = problems(tmp_path, f"[supervisor.http]\n{keys}\n{GOOD}")
    assert (found.key, message in found.message) == (key, True), found
    assert hint in found.hint or hint in found.message


@pytest.mark.parametrize(
    ("listen", "address"),
    [("9001", "127.0.0.1:9001"), ("localhost:80", "127.0.0.1:80"), ("[::1]:80", "[::1]:80"), ("127.9.9.9:1",) * 2],
)
def test_addresses(tmp_path, listen, address):
    (tmp_path / "holdfast.toml").write_text(tcp_places(tmp_path, 1).replace("127.0.0.1:1", listen) + GOOD)
    http = load(str(tmp_path / "holdfast.toml"), environ={}).supervisor.http
    assert (http.listen, http.token_file) == (address, str(tmp_path / "token"))


# ---- a whole supervisor


def ask(port, method, target, body=None, **headers):
    return ask_tcp(("127.0.0.1", port), method, target, body, **headers)


def test_over_kills_and_upgrades_of_the_supervisor(tmp_path):
    """The anchor has the socket: clients wait in its queue while there is no supervisor."""
    port = free_port()
    with Running(tmp_path, GOOD, places=tcp_places(tmp_path, port)) as up:
        web = up.until("web", state="running")
        assert ask(port, "GET", "/v1/services/web")[2]["pid"] == web["pid"]
        assert code(ask(port, "GET", "/v1/services/web", authorization=None)) == (401, "no_token")
        wait_for(lambda: f"http://127.0.0.1:{port}, with the token in" in up.output.read_text())
        pid = up.client().supervisor()["pid"]
        kill(pid)
        answer = ask(port, "GET", "/v1/supervisor")
        assert (answer[0], answer[2]["pid"] != pid) == (200, True)
        up.wait_for_socket()
        up.client().upgrade()
        assert ask(port, "GET", "/v1/supervisor")[0] == 200
        up.wait_for_socket()
        result = ask(port, "POST", "/v1/restart", {"names": ["web"]})[2]["results"][0]
        assert (result["outcome"], result["service"]["pid"] != web["pid"]) == ("done", True)
        # What a service is started with has nothing of it.
        new = result["service"]["pid"]
        assert not [fd for fd in os.listdir(f"/proc/{new}/fd") if int(fd) > 2]
        assert ask(port, "POST", "/v1/shutdown", {})[:1] == (200,)
        up.process.wait(30)
    with pytest.raises(ConnectionRefusedError):
        ask(port, "GET", "/v1/supervisor")


def test_what_only_another_anchor_can_give_is_said(tmp_path):
    with Running(tmp_path, GOOD) as up:
        web = up.until("web", state="running")
        accepted = up.run_dir / "accepted.json"
        config = json.loads(accepted.read_text())
        write_token(tmp_path / "token")
        config["supervisor"]["http"] = {"listen": "127.0.0.1:9", "token_file": str(tmp_path / "token")}
        accepted.write_text(json.dumps(config))
        kill(up.client().supervisor()["pid"])
        up.wait_for_socket()
        wait_for(lambda: "nobody listens on 127.0.0.1:9: `holdfast down --keep` and `up`" in up.output.read_text())
        assert up.client().service("web")["pid"] == web["pid"]


def test_up_says_when_the_port_is_taken(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        up = Running(tmp_path, GOOD, places=tcp_places(tmp_path, port))
        assert up.up().wait(30) == 1
        assert f"cannot listen on 127.0.0.1:{port} (supervisor.http.listen): Address already in use" in (
            up.output.read_text()
        )
        up.process = None


def test_a_supervisor_without_it_has_no_port(tmp_path):
    with Running(tmp_path, GOOD) as up:
        pid = up.client().supervisor()["pid"]
        inodes = set()
        for name in ("tcp", "tcp6"):
            with open(f"/proc/{pid}/net/{name}") as file:
                inodes |= {f"socket:[{line.split()[9]}]" for line in file.readlines()[1:]}
        ours = set()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                ours.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        assert not ours & inodes
