"""Sockets that the supervisor holds: what a service is given, and that nobody who connects is turned away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat

import pytest
from helpers_sockets import Load, ask, free_port, server
from helpers_supervisor import Running, kill, log_of, python
from helpers_wait import wait_for

from holdfast.client import ClientError
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


def test_stopped_and_started_at_once_it_has_its_addresses_again(tmp_path):
    """The anchor lets go of its copies a moment after the supervisor: that fails nothing."""
    services = f"""[service.web]
command = ["sleep", "1h"]
sockets = [{{ listen = "{free_port()}" }}, {{ listen = "{free_port()}", type = "datagram" }}]
"""
    with Running(tmp_path, services) as up, up.client() as client:
        for _ in range(20):
            client.stop("web")
            assert client.start("web")[0]["outcome"] == "done"


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


# ---- over the death of a supervisor


def test_sockets_outlive_their_supervisor(tmp_path):
    """The service is down in the meantime: only the anchor has the socket."""
    port, path = free_port(), str(tmp_path / "web.sock")
    services = f"""[service.web]
command = ["sh", "-c", "exit 1"]
sockets = [{{ listen = "127.0.0.1:{port}" }}, {{ listen = "{path}" }}]
backoff = {{ first = "1h", max = "1h" }}
[service.by-hand]
command = ["sleep", "1h"]
sockets = [{{ listen = "127.0.0.1:{free_port()}" }}]
"""
    with Running(tmp_path, services) as up:
        up.until("web", state="backoff")
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port)))]
            waiting.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            waiting[1].connect(path)
            for count in range(2):
                before = up.client().supervisor()
                kill(before["pid"])
                wait_for(lambda before=before: supervisor_after(up, before["pid"]))
                assert up.client().supervisor()["restarts"] == count + 1
                assert inodes(up.process.pid) == inodes(up.client().supervisor()["pid"]) != set()
            for each in waiting:  # still in the queue: nobody has closed what listens
                each.settimeout(0.0)
                with pytest.raises(BlockingIOError):
                    each.recv(1)
        up.holdfast("stop", "web", "by-hand")
        wait_for(lambda: not inodes(up.process.pid))


def test_an_upgrade_hands_them_over(tmp_path):
    port = free_port()
    services = f'[service.web]\ncommand = {server(tmp_path)}\nsockets = [{{ listen = "{port}" }}]\n'
    with Running(tmp_path, services) as up, Load(("127.0.0.1", port)) as load:
        up.holdfast("upgrade")
        up.holdfast("restart", "web")
    assert load.failed == [] and len(load.answered) >= 1


def test_what_is_configured_no_more_is_given_up(tmp_path):
    """The file of accepted services is another one when the next supervisor reads it."""
    port = free_port()
    services = f'[service.web]\ncommand = ["sleep", "1h"]\nsockets = [{{ listen = "{port}" }}]\n'
    with Running(tmp_path, services) as up:
        up.until("web", state="running")
        accepted = up.run_dir / "accepted.json"
        config = json.loads(accepted.read_text())
        config["services"]["web"]["sockets"] = []
        accepted.write_text(json.dumps(config))
        before = up.client().supervisor()["pid"]
        kill(before)
        wait_for(lambda: supervisor_after(up, before))
        wait_for(lambda: not inodes(up.process.pid))
        now = up.until("web", state="running", incarnation=2)  # its definition is another one
        assert inodes(now["pid"]) == set()


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_no_connection_fails_over_restarts_and_kills_of_the_supervisor(tmp_path, order):
    """Twelve restarts and three kills each: two while nothing is under way, one in the middle of a restart."""
    port = free_port()
    services = start_first(server(tmp_path), port).replace("start-first", order)
    with Running(tmp_path, services) as up:
        up.until("web", ready=True)
        with Load(("127.0.0.1", port)) as load:
            for each in range(12):
                before = up.client().supervisor()["pid"]
                up.client().restart("web", wait=each != 7)
                if each % 4 == 3:
                    kill(before)
                    wait_for(lambda before=before: supervisor_after(up, before))
                    up.until("web", lambda status: status["ready"] and "successor" not in status["reason"])
            last = up.until("web", ready=True)["pid"]
        assert up.client().supervisor()["restarts"] == 3
        assert ask(("127.0.0.1", port))[0] == last
        wait_for(lambda: up.of_service("web") == [last])
    assert load.failed == []
    assert len(load.answered) >= 4, load.answered  # each life may have answered, and most have


def supervisor_after(up: Running, before: int) -> bool:
    """Whether another one than this has come up."""
    with contextlib.suppress(ClientError):
        return up.client().supervisor()["pid"] != before and up.client().supervisor()["state"] == "running"
    return False


def inodes(pid: int) -> set[str]:
    """The sockets of a process that listen at an address."""
    listening = set()
    with open("/proc/net/tcp") as file:
        listening |= {line.split()[9] for line in file if line.split()[3] == "0A"}
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            if name.startswith("socket:[") and name[8:-1] in listening:
                found.add(name)
    return found


# ---- restart_order = "start-first"


def start_first(command: str, port: int, **more: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f"""[service.web]
type = "notify"
command = {command}
sockets = [{{ listen = "{port}" }}]
restart_order = "start-first"
{lines}"""


def test_the_successor_is_ready_before_the_old_one_is_stopped(tmp_path):
    """The gate holds the second one back: the first serves; once it is through, the first goes, with its tree."""
    os.mkfifo(tmp_path / "gate")
    text = f"""
import subprocess
child = subprocess.Popen(["sleep", "1h"])
if os.environ["HOLDFAST_INCARNATION"] == "2":
    open({str(tmp_path / "gate")!r}).close()
tell("READY=1")
while True:
    with socket.socket(fileno=os.dup(3)).accept()[0] as connection:
        connection.recv(100)
        connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d " % os.getpid())
"""
    port = free_port()
    with Running(tmp_path, start_first(python(tmp_path, "gated", text), port)) as up:
        first = up.until("web", ready=True)["pid"]
        up.holdfast("restart", "web", "--no-wait")
        wait_for(lambda: len(up.of_service("web")) == 4)  # each has its child
        status = up.client().service("web")
        assert (status["pid"], status["state"], status["incarnation"]) == (first, "running", 1)
        assert "successor" in status["reason"]
        open(tmp_path / "gate", "w").close()
        second = up.until("web", incarnation=2, ready=True)["pid"]
        wait_for(lambda: second in (left := up.of_service("web")) and len(left) == 2)


def test_a_successor_that_fails_leaves_the_old_one_in_service(tmp_path):
    text = """
if os.environ["HOLDFAST_INCARNATION"] == "2":
    sys.exit(7)
if os.environ["HOLDFAST_INCARNATION"] == "3":
    os.rename(sys.argv[0], sys.argv[0] + ".gone")
tell("READY=1")
signal.pause()
"""
    command = python(tmp_path, "failing", "import signal\n" + text)
    with Running(tmp_path, start_first(command, free_port())) as up:
        first = up.until("web", ready=True)["pid"]
        said = up.holdfast("restart", "web", check=1).stdout
        assert "exited with code 7" in said
        status = up.client().service("web")
        assert (status["pid"], status["incarnation"], status["ready"]) == (first, 1, True)
        wait_for(lambda: up.of_service("web") == [first])
        assert "kept" in [each["event"] for each in events_of(up)]
        up.holdfast("restart", "web")  # 3 is good, and takes over: numbers are not used again
        assert up.until("web", ready=True)["incarnation"] == 3
        up.holdfast("restart", "web", check=1)  # its file is gone
        assert up.client().service("web")["incarnation"] == 3


def test_stop_while_the_successor_is_started_ends_both(tmp_path):
    os.mkfifo(tmp_path / "gate")
    text = f"""
if os.environ["HOLDFAST_INCARNATION"] == "2":
    open({str(tmp_path / "gate")!r}).close()
tell("READY=1")
import signal
signal.pause()
"""
    with Running(tmp_path, start_first(python(tmp_path, "gated", text), free_port())) as up:
        up.until("web", ready=True)
        up.holdfast("restart", "web", "--no-wait")
        wait_for(lambda: len(up.of_service("web")) == 2)
        up.holdfast("stop", "web")
        assert up.of_service("web") == []
        assert up.client().service("web")["state"] == "stopped"


@pytest.mark.parametrize("drains", [True, False])
def test_a_supervisor_killed_in_the_middle_is_followed_by_one_that_ends_the_older(tmp_path, drains):
    """The older one gets its stop signal and its grace; or has ended by then."""
    os.mkfifo(tmp_path / "gate")
    text = f"""
import signal
number = os.environ["HOLDFAST_INCARNATION"]
def end(*_):
    print("drained", number, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
if number == "2":
    open({str(tmp_path / "gate")!r}).close()
tell("READY=1")
signal.pause()
"""
    with Running(tmp_path, start_first(python(tmp_path, "gated", text), free_port())) as up:
        first = up.until("web", ready=True)["pid"]
        up.holdfast("restart", "web", "--no-wait")
        wait_for(lambda: len(up.of_service("web")) == 2)
        before = up.client().supervisor()["pid"]
        if not drains:
            kill(up.process.pid, signal.SIGSTOP)  # the next supervisor comes when the first has ended
        kill(before)
        if not drains:
            kill(first)
            kill(up.process.pid, signal.SIGCONT)
        wait_for(lambda: supervisor_after(up, before))
        wait_for(lambda: first not in up.of_service("web"))
        open(tmp_path / "gate", "w").close()
        assert up.until("web", ready=True)["incarnation"] == 2
        assert ("drained 1" in log_of(up, "web")) == drains
        wait_for(lambda: len(up.of_service("web")) == 1)


def events_of(up: Running) -> list:
    with up.client().events(after=0) as events:
        last = up.client().supervisor()["last_event"]
        found = []
        for each in events:
            found.append(each)
            if each["seq"] >= last:
                return found
    return found


# ---- the descriptor store

STORING = """
import array, signal
def send(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(sock, [text.encode()], list(fds))
def given():
    names = os.environ.get("LISTEN_FDNAMES", "")
    assert not names or os.environ["LISTEN_PID"] == str(os.getpid())
    assert int(os.environ.get("LISTEN_FDS", 0)) == len(names.split(":") if names else [])
    return {}.fromkeys([]) if not names else dict(zip(names.split(":"), range(3, 300)))
def memory(text):
    fd = os.memfd_create("x")
    os.write(fd, text.encode())
    return fd
def text(fd):
    return os.pread(fd, 100, 0).decode()
number = os.environ["HOLDFAST_INCARNATION"]
"""


def storing(directory, program: str, **more: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in more.items())
    command = python(directory, "storing", STORING + program)
    return f'[service.web]\ntype = "notify"\ncommand = {command}\n{lines}'


def test_what_is_stored_comes_back_over_restarts_and_supervisors_and_goes_with_a_stop(tmp_path):
    program = """
print(number, sorted((name, "socket" if name == "web" else text(fd)) for name, fd in given().items()), flush=True)
if number == "1":
    send("FDSTORE=1\\nFDNAME=state", memory("one"))
    send("FDSTORE=1\\nFDNAME=bad:name", memory("two"))
    send("FDSTORE=1\\nFDNAME=gone", memory("three"))
    send("FDSTOREREMOVE=1\\nFDNAME=gone")
send("READY=1")
signal.pause()
"""
    services = storing(tmp_path, program, fd_store_max="4", sockets=f'[{{ listen = "{free_port()}" }}]')
    with Running(tmp_path, services) as up:
        up.until("web", ready=True)
        up.holdfast("restart", "web")
        before = up.client().supervisor()["pid"]
        kill(before)
        wait_for(lambda: supervisor_after(up, before))
        up.holdfast("restart", "web")
        up.holdfast("upgrade")
        up.holdfast("restart", "web")
        up.holdfast("stop", "web")
        up.holdfast("start", "web")
        lines = [line for line in log_of(up, "web").splitlines() if line.endswith("]")]
        kept = "[('state', 'one'), ('stored', 'two'), ('web', 'socket')]"
        assert lines == ["1 [('web', 'socket')]", f"2 {kept}", f"3 {kept}", f"4 {kept}", "5 [('web', 'socket')]"]


def test_no_more_is_stored_than_was_asked_for_and_nothing_twice(tmp_path):
    program = """
print(number, sorted(given()), flush=True)
if number == "1":
    fd = memory("one")
    for each in range(3):
        send("FDSTORE=1\\nFDNAME=a", fd)
    send("FDSTORE=1\\nFDNAME=b", memory("two"))
    for each in range(20):
        send("FDSTORE=1\\nFDNAME=c", memory("three"))
send("READY=1")
signal.pause()
"""
    with Running(tmp_path, storing(tmp_path, program, fd_store_max="2")) as up:
        up.until("web", ready=True)
        up.holdfast("restart", "web")
        assert "2 ['a', 'b']" in log_of(up, "web")
        refused = [each["text"] for each in events_of(up) if each["event"] == "refused"]
        assert refused == ["to store a descriptor: fd_store_max is 2"]
        supervisor = up.client().supervisor()["pid"]
        wait_for(lambda: memfds(supervisor) == memfds(up.process.pid) == 2)


def test_who_did_not_ask_for_a_store_has_none(tmp_path):
    program = """
send("FDSTORE=1\\nFDNAME=a", memory("one"))
print(number, sorted(given()), flush=True)
send("READY=1")
signal.pause()
"""
    with Running(tmp_path, storing(tmp_path, program)) as up:
        up.until("web", ready=True)
        up.holdfast("restart", "web")
        assert "2 []" in log_of(up, "web")
        wait_for(lambda: memfds(up.client().supervisor()["pid"]) == memfds(up.process.pid) == 0)


def test_a_stored_descriptor_whose_other_end_is_closed_is_dropped(tmp_path):
    """All but one with FDPOLL=0; the service keeps a copy, by which epoll would go on telling."""
    program = """
print(number, sorted(given()), flush=True)
if number == "1":
    for name, more in (("dead", ""), ("kept", "\\nFDPOLL=0")):
        one, other = socket.socketpair()
        send(f"FDSTORE=1\\nFDNAME={name}" + more, one.fileno())
        other.close()
        globals()[name] = one
    one, other = socket.socketpair()
    send("FDSTORE=1\\nFDNAME=alive", one.fileno())
send("READY=1")
signal.pause()
"""
    with Running(tmp_path, storing(tmp_path, program, fd_store_max="9", restart_order='"start-first"')) as up:
        up.until("web", ready=True)
        up.holdfast("restart", "web")
        assert "2 ['alive', 'kept']" in log_of(up, "web")


def memfds(pid: int) -> int:
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/memfd:x")
    return found
