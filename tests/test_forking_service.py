"""Services of `type = "forking"`: a whole supervisor, and small programs that fork in every way that daemons do."""

from __future__ import annotations

import os
import signal

from helpers_forking import TWICE, fork
from helpers_supervisor import Running


def name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def test_a_daemon_that_forks_twice_is_ready_restarted_and_stopped(tmp_path):
    services = f"""
[service.d]
type = "forking"
command = {fork(TWICE)}
[service.after]
command = ["sleep", "1000"]
requires = ["d"]
"""
    with Running(tmp_path, services) as up:
        up.until("after", state="running")
        first = up.until("d", lambda s: s["pid"] and name_of(s["pid"]) == "twice", state="running", ready=True)
        assert first["main"]["rule"] in ("only", "session") and first["main"]["moved"] >= 1
        os.kill(first["pid"], signal.SIGKILL)
        second = up.until("d", lambda s: s["restarts"] == 1, state="running", ready=True)
        assert second["last_exit"]["cause"] == "killed by SIGKILL"
        assert second["incarnation"] > first["incarnation"]
