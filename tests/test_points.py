"""Supervisors that die at one point of their start-up, by their own hand (chaos/points): what the next one finds."""

from __future__ import annotations

import json
import os
import pathlib

from helpers_supervisor import Running, kill
from helpers_wait import all_ended, wait_for

POINTS = str(pathlib.Path(__file__).parent / "chaos" / "points")


def test_an_exit_is_not_lost_by_a_supervisor_that_dies_before_it_has_recorded_it(tmp_path):
    """Start-up removed a keeper's report before what it said was on record, so the next supervisor took the service
    for one that had never come to be."""
    os.mkfifo(tmp_path / "gate")
    command = json.dumps(["sh", "-c", f"read x < {tmp_path}/gate; exit 5"])
    services = f'[service.web]\ncommand = {command}\nrestart = "never"\n'
    point = tmp_path / "point"
    with Running(tmp_path, services, PYTHONPATH=POINTS, CHAOS_POINT=str(point)) as up:
        up.until("web", ready=True)
        supervisor = up.client().supervisor()["pid"]
        kill(up.process.pid)
        up.process.wait()
        assert all_ended([supervisor])
        with open(tmp_path / "gate", "w") as gate:
            gate.write("go\n")
        wait_for((up.run_dir / "services" / "web" / "1.report").exists)
        point.write_text("open record.new 0\n")
        up.up()
        up.wait_for_socket()  # that of the second
        assert up.client().supervisor()["restarts"] == 1 and not point.exists()
        web = up.client().service("web")
        assert (web["state"], web["incarnation"], web["last_exit"]["code"]) == ("exited", 1, 5)
        assert os.listdir(up.run_dir / "services" / "web") == ["record"]
