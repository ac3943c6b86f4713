"""A service that writes 1 MB/s while no supervisor and no anchor lives: its keeper takes it all."""

from __future__ import annotations

import json
import os
import struct

import pytest
from helpers_supervisor import Running, kill
from helpers_wait import all_ended, wait_for

from holdfast.client import NoSupervisor

SECONDS = int(os.environ.get("HOLDFAST_UNATTENDED_SECONDS", "8"))  # 60 is what was promised
LINE = 1000  # bytes
RATE = 1000  # lines a second
MARKER = b"--- holdfast: "

# Keeps to a schedule; notes the lines written, and the longest that a write has taken; rests while `rest` is there.
WRITER = f"""
import os, struct, sys, time
directory = sys.argv[1]
notes = os.open(directory + "/notes", os.O_WRONLY | os.O_CREAT)
count = longest = 0
due = time.monotonic()
while True:
    if os.path.exists(directory + "/rest"):
        due = time.monotonic()
    else:
        for _ in range({RATE // 100}):
            begun = time.monotonic()
            count += 1
            os.write(1, b"%0{LINE - 1}d\\n" % count)
            longest = max(longest, time.monotonic() - begun)
        os.pwrite(notes, struct.pack("<QQd", count, int(longest * 1e6), time.monotonic() - due), 0)
    due += 0.01
    time.sleep(max(0, due - time.monotonic()))
"""


def notes(tmp_path) -> tuple[int, float, float]:
    """Lines written, the longest write in seconds, and how far it is behind its schedule."""
    data = (tmp_path / "notes").read_bytes() if (tmp_path / "notes").exists() else b""
    count, longest, behind = struct.unpack("<QQd", data) if data else (0, 0, 0.0)
    return count, longest / 1e6, behind


def lines(directory) -> list[bytes]:
    names = sorted(name for name in os.listdir(directory) if name != "current")
    return b"".join((directory / name).read_bytes() for name in [*names, "current"]).splitlines()


@pytest.mark.timeout(2 * SECONDS + 120)
@pytest.mark.parametrize("cap_mb", [1000, 3])
def test_nothing_is_slowed_or_lost_unseen(tmp_path, cap_mb):
    (tmp_path / "writer.py").write_text(WRITER)
    command = json.dumps(["python3", "-I", "-S", str(tmp_path / "writer.py"), str(tmp_path)])
    log = f"log = {{ rotate = {{ size = '500KB', count = 1000 }}, cap = '{cap_mb}MB' }}\n"
    past_the_cap = cap_mb < SECONDS
    with Running(tmp_path, f"[service.web]\ncommand = {command}\n{log}") as up:
        pid, supervisor = up.until("web", ready=True)["pid"], up.client().supervisor()["pid"]
        kill(up.process.pid)
        up.process.wait()
        assert all_ended([supervisor])
        with pytest.raises(NoSupervisor):
            up.client().supervisor()
        begun = notes(tmp_path)[0]
        wait_for(lambda: notes(tmp_path)[0] >= begun + SECONDS * RATE, 2 * SECONDS + 60)
        _, longest, behind = notes(tmp_path)
        assert longest < 3 and behind < 3  # guards: who waits for a supervisor waits for ever
        with pytest.raises(NoSupervisor):
            up.client().supervisor()

        up.up()
        up.wait_for_socket()
        (tmp_path / "rest").touch()
        web = up.until("web", lambda status: bool(status["log"]["dropped_bytes"]) == past_the_cap)
        assert web["pid"] == pid

        def settled() -> bool:
            own = [line for line in lines(tmp_path / "log" / "web") if not line.startswith(MARKER)]
            dropped = up.client().service("web")["log"]["dropped_bytes"]
            return len(own) * LINE + dropped == notes(tmp_path)[0] * LINE

        wait_for(settled, 30, lambda: f"{notes(tmp_path)}, {up.client().service('web')}")
        own = [int(line) for line in lines(tmp_path / "log" / "web") if not line.startswith(MARKER)]
        assert own == list(range(1, len(own) + 1))
        files = os.listdir(tmp_path / "log" / "web")
        assert max(os.path.getsize(tmp_path / "log" / "web" / file) for file in files) <= 500_000
        assert sum(os.path.getsize(tmp_path / "log" / "web" / file) for file in files) <= cap_mb * 1_000_000
        assert ("log loss" in up.output.read_text()) == past_the_cap
        if not past_the_cap:
            assert len(own) == notes(tmp_path)[0]
            assert len(files) > SECONDS
