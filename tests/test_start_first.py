"""`restart_order = "start-first"` together with what else there is: `ready`, `health`, `update`, errors of the file."""

from __future__ import annotations

import json
import os

import pytest
from helpers_supervisor import PLACES, Running, python
from helpers_wait import wait_for

from holdfast.config.errors import ConfigError
from holdfast.config.load import load

PROGRAM = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
number = os.environ["HOLDFAST_INCARNATION"]
number == "1" or open("gate").readline()
HOW
while True: signal.pause()
"""
WAYS = {
    "notify": (
        "{ notify = true }",
        's = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])',
    ),
    "fd": ("{ fd = 9 }", 'os.write(9, b"\\n")'),
    "tcp": (
        '{ tcp = "unix:web.sock", interval = "20ms" }',
        'number == "1" or os.unlink("web.sock"); s = socket.socket(socket.AF_UNIX); s.bind("web.sock"); s.listen()',
    ),
    "command": (
        '{ command = ["sh", "-c", "test -e ready.$$MAINPID"], interval = "20ms" }', 'open(f"ready.{os.getpid()}", "w")',
    ),
}  # fmt: skip


def service(tmp_path, how: str, *lines: str) -> str:
    ready, text = WAYS[how]
    program = python(tmp_path, "web", PROGRAM.replace("HOW", text))
    order = 'restart_order = "start-first"'
    return "\n".join(("[service.web]", f"command = {program}", f"ready = {ready}", order, *lines))


@pytest.fixture
def gate(tmp_path):
    """Each call lets one successor go on."""
    os.mkfifo(tmp_path / "gate")
    fd = os.open(tmp_path / "gate", os.O_RDWR)
    yield lambda: os.write(fd, b"\n")
    os.close(fd)


@pytest.mark.parametrize("how", [how for how in WAYS if how != "tcp"])
def test_its_successor_is_ready_as_ready_says(tmp_path, how, gate):
    with Running(tmp_path, service(tmp_path, how)) as up:
        first = up.until("web", state="running")["pid"]
        up.holdfast("restart", "web", "--no-wait")
        wait_for(lambda: "web@2 spawned" in up.output.read_text())
        now = up.client().service("web")
        assert (now["pid"], now["incarnation"], now["state"]) == (first, 1, "running")
        gate()
        assert up.until("web", incarnation=2, state="running")["pid"] != first
        wait_for(lambda: "web@1 emptied" in up.output.read_text())


def test_who_answers_at_its_address_may_be_the_old_one(tmp_path, gate):
    """As the page says: a question to an address is answered by whoever is there."""
    with Running(tmp_path, service(tmp_path, "tcp")) as up:
        up.until("web", state="running")
        up.holdfast("restart", "web")
        up.until("web", incarnation=2, state="running")


def test_one_that_is_not_well_makes_way_for_its_successor(tmp_path, gate):
    health = 'health = { command = ["sh", "-c", "test ! -e ill"], interval = "20ms", failures = 1 }'
    with Running(tmp_path, service(tmp_path, "notify", health)) as up:
        up.until("web", state="running")
        up.holdfast("restart", "web", "--no-wait")
        wait_for(lambda: "web@2 spawned" in up.output.read_text())
        (tmp_path / "ill").touch()
        status = up.until("web", incarnation=2, state="starting")
        assert "unhealthy" in json.dumps(status["last_exit"])
        wait_for(lambda: "web@1 emptied" in up.output.read_text())
        (tmp_path / "ill").unlink()
        gate()
        up.until("web", incarnation=2, state="running")


def test_an_update_starts_first_and_what_is_not_ready_is_put_back(tmp_path, gate):
    text = service(tmp_path, "notify")
    with Running(tmp_path, text) as up:
        first = up.until("web", state="running")["pid"]
        up.file.write_text(PLACES + text + "\nnice = 1\n")
        gate()
        answer = up.client().update()
        assert answer["changes"][0]["outcome"] == "done"
        second = up.client().service("web")
        assert second["incarnation"] == 2 and second["pid"] != first
        said = up.output.read_text()
        assert said.index("web@2 ready") < said.index("web@1 stopping")
        failing = text.replace("notify = true", 'notify = true, timeout = "300ms"')
        up.file.write_text(PLACES + failing + "\nnice = 2\n")
        answer = up.client().update(rollback=True)
        assert answer["changes"][0]["outcome"] == "rolled_back", json.dumps(answer)
        now = up.client().service("web")
        assert (now["pid"], now["state"]) == (second["pid"], "running")
        wait_for(lambda: "web@3 emptied" in up.output.read_text())
        assert json.loads((up.run_dir / "accepted.json").read_text())["services"]["web"]["nice"] == 1


def problems_of(tmp_path, text: str) -> str:
    path = tmp_path / "holdfast.toml"
    path.write_text(text)
    try:
        load(str(path), environ={})
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('restart_order = "start-first"\npre_start = "true"', "start-first cannot go with pre_start"),
        ('restart_order = "start-first"\npost_stop = "true"', "start-first cannot go with post_stop"),
        ('restart_order = "start-first"\ntype = "oneshot"', "a oneshot has no successor"),
        ('restart_order = "start-first"\nready = { log = "up" }', "could be of the process that still serves"),
        ('sockets = [{ listen = "80" }]\nready = { fd = 3 }', "its descriptor 3 is one that"),
        ('fd_store_max = 2\nhealth = { fd = 4 }', "3 to 4"),
        ('sockets = [{ listen = "80", type = "datagram", backlog = 5 }]', "datagrams have no connections"),
        ('sockets = [{ listen = "80", mode = "0660" }]', "only a unix socket has a file"),
        ('replicas = 2\nsockets = [{ listen = "80" }]', "is listened at twice"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(tmp_path, lines, message):
    assert message in problems_of(tmp_path, f'[service.web]\ncommand = "true"\n{lines}\n')


def test_what_goes_together(tmp_path):
    lines = 'sockets = [{ listen = "80{index}" }]\nfd_store_max = 2\nready = { fd = 6 }\nreplicas = 2'
    assert problems_of(tmp_path, f'[service.web]\ncommand = "true"\n{lines}\n') == ""
