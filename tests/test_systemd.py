"""holdfast as somebody's service: what it says to a manager (a real socket, real datagrams), and its systemd units."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import time
from typing import NamedTuple, Self

import pytest
from conftest import require
from helpers_supervisor import HOLDFAST, LIMIT, Running, kill
from helpers_wait import eventually

ROOT = pathlib.Path(__file__).resolve().parent.parent
UNITS = {
    "system": ROOT / "packaging/systemd/holdfast.service",
    "user": ROOT / "packaging/systemd/user/holdfast.service",
}
WEB = '[service.web]\ncommand = ["sleep", "1000"]\n'
DB = '[service.db]\ncommand = ["sleep", "1000"]\n'
WATCHED = "200000"  # microseconds
# WATCHDOG_PID is the unit's main process, which is what `up` becomes.
FOR_ITSELF = ("sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh")


class Word(NamedTuple):
    pid: int
    fields: dict[str, str]


class FakeManager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address.replace("@", "\0", 1))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.settimeout(LIMIT)
        self.heard: list[Word] = []

    def listen(self) -> Word:
        data, ancillary, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(12))
        pid, _, _ = struct.unpack("3i", ancillary[0][2])
        word = Word(pid, dict(line.split("=", 1) for line in data.decode().splitlines()))
        self.heard.append(word)
        return word

    def until(self, **fields: str) -> Word:
        """The next message that says this."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            word = self.listen()
            if fields.items() <= word.fields.items():
                return word
        raise AssertionError(f"not heard: {fields}; heard: {self.heard}")

    def waiting(self) -> list[Word]:
        """What has been said already."""
        found = []
        while select.select([self.sock], [], [], 0)[0]:
            found.append(self.listen())
        return found

    def is_silent(self, seconds: float) -> bool:
        return not select.select([self.sock], [], [], seconds)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()


@pytest.fixture
def manager(tmp_path):
    with FakeManager(str(tmp_path / "m")) as manager:
        yield manager


def under(manager: FakeManager, directory: pathlib.Path, services: str = WEB, **more) -> Running:
    return Running(directory, services, NOTIFY_SOCKET=manager.address, **more)


# ---- what it says


def test_ready_status_stopping(tmp_path, manager):
    with under(manager, tmp_path, WEB + DB) as up:
        first = manager.until(READY="1")
        assert first.pid == up.client().supervisor()["pid"] != up.process.pid
        assert first.fields["STATUS"].startswith("services: ")
        if first.fields["STATUS"] != "services: 2 running":
            manager.until(STATUS="services: 2 running")
        up.holdfast("stop", "db")
        manager.until(STATUS="services: 1 stopped, 1 running")
        assert up.stop() == 0
        said = manager.waiting()
    assert said[0].fields == {"STOPPING": "1"}
    assert [word.fields for word in said if "READY" in word.fields or "STOPPING" in word.fields] == [{"STOPPING": "1"}]


def test_ready_is_said_when_what_runs_has_been_taken_over(tmp_path, manager):
    """Not before: a status of services that are not known yet would be wrong."""
    with under(manager, tmp_path, WEB + DB) as up:
        pids = {up.until(name, state="running")["pid"] for name in ("web", "db")}
        before = manager.until(READY="1").pid
        kill(before)
        after = manager.until(READY="1")
        assert after.pid != before
        assert after.fields["STATUS"] == "services: 2 running"
        assert {service["pid"] for service in up.client().services()} == pids


def test_services_do_not_get_what_was_meant_for_us(tmp_path, manager):
    file = tmp_path / "environment"
    with under(manager, tmp_path, f"[service.web]\ncommand = ['sh', '-c', 'env >{file}.new; mv {file}.new {file}; "
               "sleep 1000']\n", WATCHDOG_USEC="60000000"):  # fmt: skip
        eventually(file.exists, LIMIT)
        names = {line.partition("=")[0] for line in file.read_text().splitlines()}
    assert "HOLDFAST_SERVICE" in names
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & names


def test_reload(tmp_path, manager):
    """RELOADING with a time that is neither before the signal nor after the message, then READY."""
    with under(manager, tmp_path) as up:
        manager.until(READY="1")
        sent = time.monotonic_ns() // 1000
        up.process.send_signal(signal.SIGHUP)
        word = manager.until(RELOADING="1")
        assert sent <= int(word.fields["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert manager.until(READY="1").pid == word.pid


def test_who_leaves_the_services_running_stops_too(tmp_path, manager):
    with under(manager, tmp_path) as up:
        manager.until(READY="1")
        up.holdfast("down", "--keep")
        assert up.process.wait(LIMIT) == 0
        assert {"STOPPING": "1"} in [word.fields for word in manager.waiting()]
        up.up()
        up.wait_for_socket()


def test_an_upgrade_is_no_end(tmp_path, manager):
    with under(manager, tmp_path) as up:
        first = manager.until(READY="1")
        up.holdfast("upgrade")
        assert manager.until(READY="1").pid == first.pid
        assert not any("STOPPING" in word.fields for word in manager.heard)


def test_the_end_by_an_essential_service(tmp_path, manager):
    text = "[service.all]\ncommand = ['sh', '-c', 'read x <go; exit 3']\nessential = true\nrestart = 'never'\n"
    os.mkfifo(tmp_path / "go")
    with under(manager, tmp_path, WEB + text) as up:
        manager.until(READY="1")
        (tmp_path / "go").write_text("\n")
        manager.until(STOPPING="1")
        assert up.process.wait(LIMIT) == 3


# ---- the watchdog


def test_watchdog_is_fed_by_the_loop_alone(tmp_path, manager):
    with under(manager, tmp_path, through=FOR_ITSELF, WATCHDOG_USEC=WATCHED) as up:
        pid = manager.until(WATCHDOG="1").pid
        manager.until(READY="1")
        for _ in range(5):
            assert manager.until(WATCHDOG="1").pid == pid
        kill(pid, signal.SIGSTOP)
        eventually(lambda: manager.is_silent(1.0) or (manager.waiting() and False), LIMIT)
        kill(pid, signal.SIGCONT)
        manager.until(WATCHDOG="1")
        kill(pid)  # the anchor's next supervisor goes on with it
        assert manager.until(READY="1").pid != pid
        assert manager.until(WATCHDOG="1").pid == up.client().supervisor()["pid"]


@pytest.mark.parametrize("wanted", [{"WATCHDOG_USEC": WATCHED, "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"},
                                    {"WATCHDOG_USEC": "0"}, {}])  # fmt: skip
def test_a_watchdog_of_somebody_else_is_not_fed(tmp_path, manager, wanted):
    with under(manager, tmp_path, **wanted) as up:
        up.stop()
        assert {"READY", "STOPPING"} <= {key for word in manager.waiting() for key in word.fields}
    assert not any("WATCHDOG" in word.fields for word in manager.heard)


# ---- a manager that is not as it should be


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path, manager):
    """Its socket is full: services come up all the same, and it hears what counts when it reads again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuffing:
        stuffing.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10**6):
                stuffing.sendto(b"STUFFED=1", manager.address)
    with under(manager, tmp_path, WATCHDOG_USEC=WATCHED) as up:
        up.until("web", state="running")
        assert select.select([manager.sock], [], [], 0)[0]
        manager.until(READY="1")
        manager.until(WATCHDOG="1")
        up.holdfast("stop", "web")
        manager.until(STATUS="services: 1 stopped")


def test_an_abstract_address(tmp_path):
    with FakeManager(f"@holdfast-test-{os.getpid()}") as manager, under(manager, tmp_path):
        manager.until(READY="1")


@pytest.mark.parametrize("address", ["/nowhere/at/all", "vsock:2:1234", "notify", ""])
def test_a_manager_that_is_not_there(tmp_path, address):
    with Running(tmp_path, WEB, NOTIFY_SOCKET=address, WATCHDOG_USEC=WATCHED) as up:
        up.until("web", state="running")
        assert up.stop() == 0


# ---- the units


def verify(kind: str, text: str, directory: pathlib.Path) -> list[str]:
    """What systemd-analyze has to say of a unit.  Its exit code means little: 0 after a line that it has ignored in
    one version, 1 in another."""
    require("systemd-analyze")
    directory.mkdir(mode=0o700)
    unit = directory / "holdfast.service"
    unit.write_text(re.sub("^ExecStart=holdfast ", f"ExecStart={HOLDFAST} ", text, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--{kind}", str(unit)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT + 30,
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory), "LC_ALL": "C"},
    )  # fmt: skip
    return done.stdout.splitlines()


def known(line: str) -> bool:
    """Before version 253 the type that the next line names is not there, and the line is passed over."""
    return line.endswith(": Failed to parse service type, ignoring: notify-reload")


@pytest.mark.parametrize("kind", UNITS)
def test_systemd_understands_every_line(tmp_path, kind):
    text = UNITS[kind].read_text()
    assert not [line for line in verify(kind, text, tmp_path / "shipped") if not known(line)]
    # Also what is proposed in comments; and a unit that is wrong is found out.
    proposed = re.sub("^#(?=[A-Z][A-Za-z]+=)", "", text, flags=re.M)
    assert not [line for line in verify(kind, proposed, tmp_path / "proposed") if not known(line)]
    wrong = text.replace("KillMode=process", "KillMode=processes").replace("Delegate=yes", "Delegates=yes")
    assert len([line for line in verify(kind, wrong, tmp_path / "wrong") if not known(line)]) == 2


@pytest.mark.parametrize("kind", UNITS)
def test_what_the_units_must_say(kind):
    """Each of these is a promise of docs/systemd.md; the last of several counts."""
    lines = [line.partition("=")[::2] for line in UNITS[kind].read_text().splitlines() if re.match("[A-Z]", line)]
    settings = dict(lines)
    wanted = {
        "Type": "notify-reload", "NotifyAccess": "all", "KillMode": "process", "Restart": "on-failure",
        "WatchdogSec": "30s", "WatchdogSignal": "SIGKILL", "Delegate": "yes", "OOMPolicy": "continue",
        "TasksMax": "infinity", "RestartPreventExitStatus": "78",
    }  # fmt: skip
    if kind == "system":
        wanted |= {"RuntimeDirectory": "holdfast", "RuntimeDirectoryPreserve": "yes", "LimitNOFILE": "1024:524288"}
    assert wanted.items() <= settings.items()
    assert lines.index(("Type", "notify")) < lines.index(("Type", "notify-reload"))
    assert not {"ExecStop", "ExecReload", "User", "RemainAfterExit"} & settings.keys()


def test_the_page_names_every_line_of_the_units():
    page = (ROOT / "docs/systemd.md").read_text()
    for unit in UNITS.values():
        for name in set(re.findall("^([A-Z][A-Za-z]+)=", unit.read_text(), flags=re.M)) - {"Description"}:
            assert f"`{name}" in page, name


def test_what_kills_an_anchor_keeps_the_services(tmp_path, manager):
    """KillMode=process, WatchdogSignal=SIGKILL and Restart= as systemd does them: the main process alone, and again."""
    with under(manager, tmp_path) as up:
        pid = up.until("web", state="running")["pid"]
        supervisor = os.pidfd_open(manager.until(READY="1").pid)
        signal.pidfd_send_signal(supervisor, signal.SIGSTOP)  # it hangs
        up.process.kill()
        up.process.wait()
        assert select.select([supervisor], [], [], LIMIT)[0]
        os.close(supervisor)
        up.up()
        assert manager.until(READY="1").fields["STATUS"] == "services: 1 running"
        assert up.until("web")["pid"] == pid
