"""Sockets that the supervisor holds: what a service is given, and that nobody who connects is turned away."""

from __future__ import annotations

import os
import socket
import stat

import pytest
from helpers_sockets import ask, free_port, server
from helpers_supervisor import Running, log_of, python

from holdfast.config.load import ConfigError, load


def test_a_service_gets_its_sockets_in_their_order_with_its_own_pid(tmp_path):
    port, path = free_port(), str(tmp_path / "in" / "web.sock")
    services = f"""[service.web]
command = {server(tmp_path)}
type = "notify"
sockets = [{{ listen = "127.0.0.1:{port}" }}, {{ listen = "{path}", name = "local", mode = "0640" }}]
"""
    with Running(tmp_path, services) as up:
        pid = up.until("web", ready=True)["pid"]
        assert ask(("127.0.0.1", port)) == (pid, "web:local")
        assert ask(path) == (pid, "web:local")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
        with open(f"/proc/{pid}/environ", "rb") as file:  # where libraries read it: in the process from its start
            assert f"LISTEN_PID={pid}".encode() in file.read().split(b"\0")
        up.holdfast("restart", "web")
        again, _ = ask(path)
        assert again != pid
        up.holdfast("stop", "web")
        with pytest.raises(ConnectionRefusedError):
            ask(("127.0.0.1", port))
        assert not os.path.exists(path)
        up.holdfast("start", "web")
        assert ask(path)[0] == up.until("web", ready=True)["pid"]
    assert not os.path.exists(path)


def test_who_connects_while_it_restarts_waits_for_the_next_one(tmp_path):
    """The gate lets the second life accept only after the client has connected."""
    port = free_port()
    os.mkfifo(tmp_path / "gate")
    text = f"""
sock = socket.socket(fileno=3)
if os.environ["HOLDFAST_INCARNATION"] == "2":
    open({str(tmp_path / "gate")!r}).close()
while True:
    with sock.accept()[0] as connection:
        connection.recv(100)
        connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d " % os.getpid())
"""
    services = f'[service.web]\ncommand = {python(tmp_path, "late", text)}\nsockets = [{{ listen = "{port}" }}]\n'
    with Running(tmp_path, services) as up:
        first, _ = ask(("127.0.0.1", port))
        up.holdfast("restart", "web", "--no-wait")
        second = up.until("web", incarnation=2, state="running")["pid"]
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            sock.sendall(b"GET")
            open(tmp_path / "gate", "w").close()
            assert int(sock.recv(100).split()[-1]) == second != first


def test_an_address_that_is_taken_fails_its_service_alone_and_says_why(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        services = f"""[service.web]
command = ["sleep", "1h"]
sockets = [{{ listen = "{port}" }}]
[service.other]
command = ["sleep", "1h"]
"""
        with Running(tmp_path, services) as up:
            up.until("other", state="running")
            reason = up.until("web", state="fatal")["reason"]
            assert f"socket 127.0.0.1:{port}: Address already in use" in reason
            taken.close()
            up.holdfast("start", "web")
            up.until("web", state="running")
            socket.create_connection(("127.0.0.1", port), 30).close()


def test_a_file_in_the_way_is_left_and_a_dead_socket_is_replaced(tmp_path):
    path = tmp_path / "web.sock"
    path.write_text("mine")
    services = f'[service.web]\ncommand = ["sleep", "1h"]\nsockets = [{{ listen = "{path}" }}]\n'
    with Running(tmp_path, services) as up:
        assert "no socket" in up.until("web", state="fatal")["reason"]
        assert path.read_text() == "mine"
        path.unlink()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        up.holdfast("start", "web")
        up.until("web", state="running")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_datagram_is_kept_for_a_service_that_has_ended(tmp_path):
    port = free_port()
    text = """
sock = socket.socket(fileno=3)
print("got", sock.recv(100).decode(), flush=True)
sys.exit(1)
"""
    services = f"""[service.web]
command = {python(tmp_path, "udp", text)}
sockets = [{{ listen = "{port}", type = "datagram" }}]
backoff = {{ first = "200ms" }}
"""
    with Running(tmp_path, services) as up, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        up.until("web", state="running")
        for number in range(2):
            client.sendto(b"%d" % number, ("127.0.0.1", port))
        up.until("web", lambda status: status["restarts"] >= 2)
        assert [line for line in log_of(up, "web").splitlines() if line.startswith("got")] == ["got 0", "got 1"]


@pytest.mark.parametrize(
    ("sockets", "message"),
    [
        ('"8080"', "must be a list of tables"),
        ("[{ }]", "has no listen"),
        ('[{ listen = "0" }]', "is no address"),
        ('[{ listen = "localhost:80" }]', "names are not looked up"),
        ('[{ listen = "::1:80" }]', "names are not looked up"),
        ('[{ listen = "run/x.sock" }]', "must be absolute"),
        ('[{ listen = "80", name = "a:b" }]', "is no name"),
        ('[{ listen = "80", typ = "stream" }]', "is no key"),
        ('[{ listen = "80" }, { listen = "127.0.0.1:080" }]', "is listened at twice"),
    ],
)
def test_mistakes_in_sockets_are_told(tmp_path, sockets, message):
    path = tmp_path / "holdfast.toml"
    path.write_text(f'[service.web]\ncommand = "x"\nsockets = {sockets}\n')
    with pytest.raises(ConfigError) as caught:
        load(str(path), environ={})
    assert message in str(caught.value)
    assert caught.value.errors[0].line == 3


def test_addresses_have_one_form(tmp_path):
    path = tmp_path / "holdfast.toml"
    listen = ["8080", "[0::1]:80", "0.0.0.0:081", "/run/../run/x.sock"]
    tables = ", ".join(f"{{ listen = {each!r} }}" for each in listen)
    path.write_text(f'[service.web]\ncommand = "x"\nsockets = [{tables}]\n')
    sockets = load(str(path), environ={}).services["web"].sockets
    assert [each.listen for each in sockets] == ["127.0.0.1:8080", "[::1]:80", "0.0.0.0:81", "/run/x.sock"]
