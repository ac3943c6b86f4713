"""`holdfast upgrade`, `down --keep`, QUIT: a supervisor that goes, services that do not notice, clients that go on."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess

import pytest
from helpers_supervisor import HOLDFAST, Running, keeper_of, kill, log_of
from helpers_wait import all_ended, wait_for

import holdfast
from holdfast.client import ClientError
from holdfast.daemon.events import EventLog
from holdfast.process.held import HeldTree

OLD, NEW = holdfast.__version__, "99.1"
SLEEPER = '[service.web]\ncommand = ["sleep", "1000"]\n'
# Numbered lines, as fast as it is let.
WRITER = """[service.writer-{}]
command = ["sh", "-c", "i=0; while :; do i=$$((i+1)); echo line $$i; sleep 0.01; done"]
"""
STOP = '[service.stop]\ncommand = ["sleep", "1000"]\non_owner_loss = "stop"\n'
KILL = '[service.kill]\ncommand = ["sleep", "1000"]\non_owner_loss = "kill"\n'


class Installed(Running):
    """A supervisor on an installation of its own, which can be changed under it."""

    def __init__(self, directory: pathlib.Path, services: str, **environment: str) -> None:
        self.site = directory / "site"
        shutil.copytree(pathlib.Path(holdfast.__file__).parent, self.site / "holdfast")
        super().__init__(directory, services, PYTHONPATH=str(self.site), **environment)

    def change(self, module: str, pattern: str, new: str) -> None:
        path = self.site / "holdfast" / module
        text, count = re.subn(pattern, new, path.read_text(), count=1, flags=re.M)
        assert count == 1, (module, pattern)
        path.write_text(text)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()  # it may have the same size and second as what is compiled there

    def install_new(self) -> None:
        self.change("__init__.py", '^__version__ = .*$', f'__version__ = "{NEW}"')

    def start(self, *args: str) -> subprocess.Popen[str]:
        """A command that goes on while the test does."""
        return subprocess.Popen(
            [HOLDFAST, *args], env={**self.environment, "HOLDFAST_RUN_DIR": str(self.run_dir)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def pids(self) -> dict[str, tuple[int, int]]:
        return {s["name"]: (s["incarnation"], s["pid"]) for s in self.client().services()}


@contextlib.contextmanager
def following(up: Installed, *args: str):
    """A stream of JSON lines: a function that reads up to one that meets a condition; all of them."""
    process = up.start(*args, "--json")
    seen: list[dict] = []

    def read_until(condition) -> list[dict]:
        for line in process.stdout:
            seen.append(json.loads(line))
            if condition(seen[-1]):
                return seen
        raise AssertionError(f"{args} ended: {process.wait()} {process.stderr.read()}")

    try:
        yield read_until
    finally:
        process.kill()
        process.communicate()


def event(word: str):
    return lambda each: each.get("event") == word


def number(entry: dict) -> int:
    """0: a marker of the keeper's."""
    word, _, rest = entry["text"].partition(" ")
    return int(rest) if word == "line" else 0


def numbers(entries: list[dict]) -> list[int]:
    return list(filter(None, map(number, entries)))


def is_row(found: list[int]) -> bool:
    return bool(found) and found == list(range(found[0], found[0] + len(found)))


# ---- upgrade


def test_two_hundred_services_and_open_streams(tmp_path):
    """Services untouched, whatever their on_owner_loss; streams go on without a gap, and nothing comes twice."""
    services = STOP + KILL + "".join(WRITER.format(n) for n in range(2))
    services += "".join(SLEEPER.replace("web", f"s{n}") for n in range(196))
    with Installed(tmp_path, services) as up, following(up, "logs", "-f", "writer-0") as log:
        up.until("s195", ready=True)
        before, place = up.pids(), up.client().supervisor()
        assert len(before) == 200
        log(lambda _: True)
        with following(up, "events", "-f") as events:
            events(lambda each: each["seq"] == place["last_event"])
            up.install_new()
            said = up.holdfast("upgrade").stdout
            assert said.startswith(f"holdfast: upgraded from {OLD} to {NEW} in "), said
            assert said.endswith("; 200 services untouched\n")
            now = up.client().supervisor()
            assert (now["version"], now["pid"], now["anchor_pid"], now["restarts"]) == (
                NEW, place["pid"], place["anchor_pid"], 0,
            )  # fmt: skip
            assert up.pids() == before
            up.holdfast("restart", "s0")
            told = events(lambda each: (each["event"], each["service"], each["incarnation"]) == ("ready", "s0", 2))
            assert is_row([each["seq"] for each in told])
            words = [each["event"] for each in told]
            assert words.count("upgraded") == words.count("upgrading") == 1
            assert "gap" not in words
        last = int(log_of(up, "writer-0").split()[-1])
        assert is_row(numbers(log(lambda each: number(each) > last)))


def test_a_version_that_does_not_start_is_refused(tmp_path):
    with Installed(tmp_path, SLEEPER + STOP) as up:
        up.until("web", ready=True)
        before = up.pids()
        up.change("control/server.py", "^import logging$", "import logging, no_such_module")
        done = up.holdfast("upgrade", check=1)
        assert "No module named 'no_such_module'" in done.stderr
        assert "nothing was changed" in done.stderr
        assert up.pids() == before
        kinds = [each["event"] for each in up_events(up)]
        assert kinds.count("started") == 1
        assert kinds[-1] == "refused"
        assert up_events(up)[-1]["text"] == "to upgrade: ModuleNotFoundError: No module named 'no_such_module'"
        up.change("control/server.py", ", no_such_module", "")
        accepted = up.run_dir / "accepted.json"
        accepted.rename(tmp_path / "away")
        said = up.holdfast("upgrade", check=1).stderr
        assert said.count("\n") == 1 and f"{accepted}: " in said
        (tmp_path / "away").rename(accepted)
        up.holdfast("upgrade")
        assert up.pids() == before


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def up_events(up: Installed) -> list[dict]:
    return [json.loads(line) for line in up.holdfast("events", "--json").stdout.splitlines()]


def test_a_version_that_breaks_later_is_started_again_until_it_is_mended(tmp_path):
    with Installed(tmp_path, SLEEPER + STOP + WRITER.format(0)) as up:
        for name in ("web", "stop", "writer-0"):
            up.until(name, ready=True)
        before = up.pids()
        up.install_new()
        up.change("daemon/store.py", "^    def begin(.*)$", r'    def begin\1\n        raise RuntimeError("broken")')
        with following(up, "logs", "-f", "writer-0") as log:
            log(lambda _: True)
            upgrade = up.start("upgrade")
            wait_for(lambda: up.output.read_text().count("RuntimeError: broken") >= 2, limit=30)
            up.change("daemon/store.py", '^        raise RuntimeError."broken".\n', "")
            out, error = upgrade.communicate(timeout=60)
            assert (upgrade.returncode, out) == (1, ""), error
            assert f"version {NEW} died, and its anchor started it again" in error
            assert up.pids() == before
            assert up.client().supervisor()["restarts"] >= 2
            last = int(log_of(up, "writer-0").split()[-1])
            assert is_row(numbers(log(lambda each: number(each) > last)))


def test_a_version_that_never_comes_up_is_not_waited_for_without_end(tmp_path):
    with Installed(tmp_path, SLEEPER) as up:
        before = up.until("web", ready=True)
        up.change("client.py", "^ANSWER_LIMIT: Seconds = 30.0", "ANSWER_LIMIT: Seconds = 2.0")
        up.change("cli/supervise.py", "^    anchor = Anchor.find", "    sys.exit(3)\n    anchor = Anchor.find")
        said = up.holdfast("upgrade", check=1).stderr
        assert said.startswith(f"holdfast: version {OLD} was to take over; services run on, but the supervisor did not")
        up.change("cli/supervise.py", "^    sys.exit.3.\n", "")
        assert up.until("web", ready=True)["pid"] == before["pid"]


@pytest.mark.parametrize("moment", ["asked", "upgrading", "started", "upgraded"])
def test_an_end_that_is_asked_for_meanwhile_is_not_forgotten(tmp_path, moment):
    """TERM at any moment of an upgrade: everything is stopped, by whoever is there."""
    with Installed(tmp_path, SLEEPER + STOP) as up:
        up.until("web", ready=True)
        with following(up, "events", "-f") as events:
            events(lambda each: each["seq"] == up.client().supervisor()["last_event"])
            upgrade = up.start("upgrade")
            with contextlib.suppress(AssertionError):  # the last words may come when we have ended already
                events(event(moment))
            assert up.stop() == 0
            upgrade.communicate(timeout=60)
        assert up.marked() == {} or all_ended(up.marked())


def test_policies_hold_again_after_an_upgrade(tmp_path):
    with Installed(tmp_path, SLEEPER + STOP + KILL) as up:
        for name in ("web", "stop", "kill"):
            up.until(name, ready=True)
        before = up.pids()
        up.holdfast("upgrade")
        assert up.pids() == before
        kill(up.client().supervisor()["pid"])
        for name, ended in (("stop", "SIGTERM"), ("kill", "SIGKILL")):
            status = up.until(name, lambda s: s["incarnation"] == 2 and s["ready"])
            assert status["last_exit"]["signal"] == ended
        assert up.pids()["web"] == before["web"]


def test_what_the_next_version_inherits_is_what_the_first_one_did(tmp_path):
    """Its descriptors are as many, its services get the same limits, environment and mask."""
    looks = "cat /proc/self/limits /proc/self/environ /proc/self/status | tr '\\\\0' '\\\\n'; exec sleep 1000"
    with Installed(tmp_path, f'[service.web]\ncommand = ["sh", "-c", "{looks}"]\n') as up:

        def inherited() -> list[str]:
            found = re.findall(r"^(?:Max .*|Sig(?:Blk|Ign|Cgt).*|\w+=.*)$", log_of(up, "web"), flags=re.M)
            return sorted(line for line in found if not line.startswith("HOLDFAST_INCARNATION"))

        def descriptors() -> int:
            return len(os.listdir(f"/proc/{up.client().supervisor()['pid']}/fd"))

        up.until("web", ready=True)
        wait_for(lambda: "SigCgt" in log_of(up, "web"))
        first, open_before = inherited(), descriptors()
        assert any(line.startswith("Max open files") for line in first)
        for _ in range(3):
            up.holdfast("upgrade")
        wait_for(lambda: descriptors() == open_before)
        log = tmp_path / "log" / "web" / "current"
        log.write_text("")
        up.holdfast("restart", "web")
        wait_for(lambda: "SigCgt" in log_of(up, "web"))
        assert inherited() == first
        assert not (up.run_dir / "events.handed").exists()


def test_up_detach_waits_through_an_upgrade(tmp_path):
    os.mkfifo(tmp_path / "gate")
    program = tmp_path / "slow.py"
    program.write_text(
        f"import os, signal, socket\nopen({str(tmp_path / 'gate')!r}).readline()\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.connect(os.environ['NOTIFY_SOCKET'])\n"
        "s.send(b'READY=1')\nsignal.pause()\n"
    )
    slow = f'[service.slow]\ntype = "notify"\ncommand = ["python3", {json.dumps(str(program))}]\n'
    up = Installed(tmp_path, slow + STOP)
    try:
        starting = up.up("--detach")
        with open(tmp_path / "gate", "r+b", buffering=0) as gate:
            up.wait_for_socket()
            up.until("slow", lambda s: s["pid"])
            up.holdfast("upgrade")
            assert starting.poll() is None
            gate.write(b"go\n")
            assert starting.wait(30) == 0, up.output.read_text()
        assert 'stop ends with the supervisor: on_owner_loss = "stop"' in up.output.read_text()
    finally:
        up.process = None
        up.holdfast("down", check=None)
    assert up.marked() == {}


def test_two_upgrades_at_once(tmp_path):
    """One after the other, or one of them is refused: never anything else."""
    with Installed(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        before = up.pids()
        both = [up.start("upgrade") for _ in range(2)]
        said = [each.communicate(timeout=60) for each in both]
        codes = sorted(each.returncode for each in both)
        assert codes in ([0, 0], [0, 1]), said
        assert up.pids() == before
        assert up.client().supervisor()["restarts"] == 0


def test_who_asks_and_does_not_wait_gets_no_upgrade(tmp_path):
    """Nothing is changed, and the events say so."""
    with Installed(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        up.change("control/server.py", "^import logging$", f"import logging; open({str(gate)!r}).close()")
        asking = up.start("upgrade")
        with gate.open("w"):  # it is being tried: it has opened the other end
            asking.send_signal(signal.SIGINT)
            asking.communicate(timeout=30)
            wait_for(lambda: up_events(up)[-1]["event"] == "refused")
        assert up_events(up)[-1]["text"] == "to upgrade: given up while the next version was tried"
        assert "upgrading" not in [each["event"] for each in up_events(up)]


def test_a_stopped_anchor_and_a_stopped_keeper_stay_so_and_are_counted(tmp_path):
    """Trying the next version does not thaw the anchor; who cannot be asked counts as alive."""
    installed = Installed(tmp_path, SLEEPER + STOP)
    installed.through = ("setsid",)  # as with --detach: in a group of its own, which nobody's terminal keeps together
    with installed as up:
        pid = up.until("web", ready=True)["pid"]
        up.until("stop", ready=True)
        anchor, keeper = up.client().supervisor()["anchor_pid"], keeper_of(pid)
        frozen = [{"what": "anchor", "pid": anchor}]
        kill(anchor, signal.SIGSTOP)
        kill(keeper, signal.SIGSTOP)
        try:
            wait_for(lambda: up.client().supervisor()["frozen"] == frozen)
            assert "; 2 services untouched" in up.holdfast("upgrade").stdout
            assert up.client().supervisor()["frozen"] == frozen
            kinds = [(each["event"], each["text"]) for each in up_events(up)]
            assert "refused" not in dict(kinds)  # HUP
            assert dict(kinds)["upgraded"].endswith("services that run on: 2")
            with up.client() as client:
                assert client.leave() == {"services": 2, "kept": {"stop": "stop"}}
        finally:
            kill(anchor, signal.SIGCONT)
            kill(keeper, signal.SIGCONT)
        assert up.process is not None and up.process.wait(30) == 0
        up.up()
        up.wait_for_socket()
        assert up.client().service("web")["pid"] == pid


def test_an_upgrade_after_a_kill_knows_its_anchor(tmp_path):
    with Installed(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        first = up.client().supervisor()
        kill(first["pid"])
        wait_for(lambda: up.client().supervisor()["restarts"] == 1, limit=30)
        up.holdfast("upgrade")
        now = up.client().supervisor()
        assert (now["restarts"], now["anchor_pid"]) == (1, first["anchor_pid"])
        kill(now["pid"])
        wait_for(lambda: up.client().supervisor()["restarts"] == 2, limit=30)


# ---- streams over a death


def test_streams_go_on_over_the_death_of_a_supervisor(tmp_path):
    """Of a log nothing is lost: it is files.  Of events what only the dead one knew: that is said."""
    with Installed(tmp_path, WRITER.format(0)) as up, following(up, "logs", "-f", "-n", "0", "writer-0") as log:
        log(lambda _: True)
        with following(up, "events", "-f") as events:
            events(event("ready"))
            for word in ("gap", "adopted") * 2:
                if word == "gap":
                    kill(up.client().supervisor()["pid"])
                seen = events(event(word))
            assert [each["event"] for each in seen].count("gap") == 2
            assert all(a["seq"] < b["seq"] for a, b in itertools.pairwise(seen))
        last = int(log_of(up, "writer-0").split()[-1])
        assert is_row(numbers(log(lambda each: number(each) > last)))


@pytest.mark.parametrize(("signo", "code"), [(signal.SIGQUIT, 0), (signal.SIGKILL, 69)])
def test_streams_end_with_the_anchor(tmp_path, signo, code):
    """In order: so do they.  Killed: nobody will come back by himself, and they say so."""
    with Installed(tmp_path, SLEEPER) as up:
        up.until("web", ready=True)
        streams = [up.start("events", "-f"), up.start("logs", "-f", "web")]
        for each in streams:
            assert each.stdout.readline()
        assert up.process is not None
        up.process.send_signal(signo)
        up.process.wait(30)
        ends = [each.communicate(timeout=30) and each.returncode for each in streams]
        assert ends in ([code, code], [code, 69])  # a log that is just about to be followed finds nobody
        up.up()
        up.wait_for_socket()


# ---- down --keep, QUIT


@pytest.mark.parametrize("how", ["down --keep", "QUIT"])
def test_services_are_left_running(tmp_path, how):
    with Installed(tmp_path, SLEEPER + STOP + KILL) as up:
        for name in ("web", "stop", "kill"):
            up.until(name, ready=True)
        shown = up.holdfast("status").stdout
        assert re.search("^stop .*; on owner loss: stop", shown, flags=re.M)
        assert not re.search("^web .*on owner loss", shown, flags=re.M)
        assert re.search("services: 3; on owner loss: (kill kill|stop stop), (kill|stop)", up.output.read_text())
        before = up.pids()
        if how == "QUIT":
            assert up.stop(signal.SIGQUIT) == 0
        else:
            said = up.holdfast("down", "--keep").stdout.splitlines()
            assert said[0] == "holdfast: 3 services left running, without a supervisor until `holdfast up`"
            assert sorted(said[1:]) == [
                '  kill, although it has on_owner_loss = "kill"', '  stop, although it has on_owner_loss = "stop"',
            ]  # fmt: skip
            assert up.process is not None and up.process.wait(30) == 0
        # What would end them has been told them before: they would have, by the time that the next one asks.
        up.up()
        up.wait_for_socket()
        assert up.pids() == before
        kill(up.client().supervisor()["pid"])
        for name in ("stop", "kill"):
            up.until(name, lambda s: s["incarnation"] == 2 and s["ready"])
        assert up.pids()["web"] == before["web"]


def test_a_keeper_that_cannot_be_told_is_a_refusal(tmp_path):
    """Frozen, with its socket full: it would end its service as soon as it goes on."""
    with Installed(tmp_path, STOP) as up:
        pid = up.until("stop", ready=True)["pid"]
        keeper = keeper_of(pid)
        kill(keeper, signal.SIGSTOP)
        try:
            with up.client() as client:
                for _ in range(5000):
                    if client.signal("stop", signal="CONT", scope="tree")[0]["outcome"] == "refused":
                        break
                for leave in (client.leave, client.upgrade):
                    with pytest.raises(ClientError) as caught:
                        leave()
                    assert caught.value.code == "refused"
                    assert "the keeper of stop does not answer" in caught.value.message
                open_before = descriptors(client.supervisor()["pid"])
                with pytest.raises(ClientError):
                    client.upgrade()
                assert not (up.run_dir / "events.handed").exists()
                wait_for(lambda: descriptors(client.supervisor()["pid"]) == open_before)
        finally:
            kill(keeper, signal.SIGCONT)
        assert up.until("stop", ready=True)["pid"] == pid
        assert up.holdfast("upgrade")
        assert up.until("stop", ready=True)["pid"] == pid


# ---- versions of the wire


def record(tag: int, body: bytes) -> bytes:
    return struct.pack("<HHI", tag, 0, len(body)) + body


def test_a_keeper_takes_a_newer_owner(tmp_path):
    with Installed(tmp_path, SLEEPER) as up:
        pid = up.until("web", ready=True)["pid"]
        assert up.stop(signal.SIGQUIT) == 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as owner:
            owner.settimeout(30)
            owner.connect(str(up.run_dir / "services" / "web" / "1.sock"))
            owner.send(record(1, struct.pack("<IIQ", 7, 0, 0)) + record(60, b"of 7!..."))  # longer, and unknown
            said = owner.recv(65536)
        assert struct.unpack_from("<HHIIi", said)[:4] == (64, 0, 8, 1)
        assert struct.pack("<HHIi", 65, 0, 32, pid) in said
        up.up()
        up.wait_for_socket()
        assert up.until("web", ready=True)["pid"] == pid


def test_an_owner_takes_a_newer_keeper(tmp_path):
    address = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.bind(address)
        keeper.listen(1)
        tree = HeldTree.attach(address)
        peer, _ = keeper.accept()
        with peer, contextlib.closing(tree):
            assert struct.unpack("<HHIII", peer.recv(64)) == (1, 0, 8, 1, 0)
            hello = record(64, struct.pack("<IiQ", 7, os.getpid(), 0))
            spawned = record(65, struct.pack("<iIQQQQ", 42, 0, 0, 1, 2, 3))
            peer.send(hello + record(120, b"of 7!...") + spawned)
            events = wait_for(tree.events)
            assert [(type(each).__name__, each.pid) for each in events] == [("Spawned", 42)]


# ---- the numbers of events


def texts(records) -> list[str]:
    return [record.text if record.event != "gap" else "gap" for record in records]


def test_events_go_on_with_the_numbers_of_an_earlier_log():
    first, second = EventLog(), EventLog()
    for n in range(3):
        first.add("x", str(n))
    second.resume(first.after(0))
    second.add("x", "3")
    cursor = first.last
    assert texts(second.after(cursor)) == ["3"]
    assert texts(second.after(0)) == ["0", "1", "2", "3"]
    assert texts(second.after(cursor - 3)) == ["0", "1", "2", "3"]
    assert texts(second.after(cursor - 4)) == ["gap", "0", "1", "2", "3"]
    assert second.after(cursor - 4)[0].seq == cursor - 3


def test_what_is_forgotten_is_said_once():
    log = EventLog()
    log.add("x", "0")
    one = log.last
    for n in range(1, 8200):
        log.add("x", str(n))
    late = log.after(one)
    assert texts(late[:2]) == ["gap", "8"]
    assert late[0].seq == late[1].seq - 1
    assert texts(log.after(late[0].seq)[:1]) == ["8"]
    assert texts(log.after(-1)[:1]) == ["gap"]  # a number that is none of ours
    assert texts(log.after(0)[:1]) == ["8"]
