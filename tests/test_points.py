"""Supervisors that die at one point of their start-up, by their own hand (chaos/points): what the next one finds."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from helpers_supervisor import Running, kill
from helpers_wait import all_ended, wait_for

from holdfast.daemon.store import Store, write_by_rename

POINTS = str(pathlib.Path(__file__).parent / "chaos" / "points")


def ended_unheard(up: Running, tmp_path: pathlib.Path) -> None:
    """The service has ended, and its keeper has written that down: neither supervisor nor anchor live."""
    up.until("web", ready=True)
    supervisor = up.client().supervisor()["pid"]
    kill(up.process.pid)
    up.process.wait()
    assert all_ended([supervisor])
    with open(tmp_path / "gate", "w") as gate:
        gate.write("go\n")
    wait_for((up.run_dir / "services" / "web" / "1.report").exists)


def test_an_exit_is_not_lost_by_a_supervisor_that_dies_before_it_has_recorded_it(tmp_path):
    """Start-up removed a keeper's report before what it said was on record, so the next supervisor took the service
    for one that had never come to be."""
    os.mkfifo(tmp_path / "gate")
    command = json.dumps(["sh", "-c", f"read x < {tmp_path}/gate; exit 5"])
    services = f'[service.web]\ncommand = {command}\nrestart = "never"\n'
    point = tmp_path / "point"
    with Running(tmp_path, services, PYTHONPATH=POINTS, CHAOS_POINT=str(point)) as up:
        ended_unheard(up, tmp_path)
        point.write_text("open record.new 0\n")
        up.up()
        up.wait_for_socket()  # that of the second
        assert up.client().supervisor()["restarts"] == 1 and not point.exists()
        web = up.client().service("web")
        assert (web["state"], web["incarnation"], web["last_exit"]["code"]) == ("exited", 1, 5)
        assert os.listdir(up.run_dir / "services" / "web") == ["record"]


def test_an_exit_is_in_history_though_its_successor_was_on_record_before_it(tmp_path):
    """The record was a start further than the history at the kill: the row said "unknown"."""
    os.mkfifo(tmp_path / "gate")
    command = json.dumps(["sh", "-c", f"read x < {tmp_path}/gate; exit 5"])
    services = f'[service.web]\ncommand = {command}\nrestart = "always"\n'
    point = tmp_path / "point"
    with Running(tmp_path, services, PYTHONPATH=POINTS, CHAOS_POINT=str(point)) as up:
        up.until("web", ready=True)
        wait_for(lambda: up.client().history("web"))
        ended_unheard(up, tmp_path)
        point.write_text("socket.bind .sock 0\n")
        up.up()
        up.wait_for_socket()  # that of the second
        assert up.client().supervisor()["restarts"] == 1 and not point.exists()

        def told() -> dict | None:
            rows = {row["incarnation"]: row for row in up.client().history("web")}
            return rows[1] if rows.get(1, {}).get("cause") else None

        row = wait_for(told)
        assert row["code"] == 5, (row, up.output.read_text())


@pytest.mark.parametrize("half", [".3.report.4711", "3.members.new"])
def test_a_half_goes_with_its_incarnation(tmp_path, half):
    """A keeper killed as it wrote its report left that for ever; so did a supervisor with who is who in the tree."""
    (tmp_path / "services" / "web").mkdir(parents=True)
    (tmp_path / "services" / "web" / half).touch()
    Store(str(tmp_path)).forget_incarnation("web", 3)
    assert os.listdir(tmp_path / "services" / "web") == []


def test_what_could_not_be_written_whole_leaves_nothing(tmp_path):
    """A full disk left the half of it: where it can be written, and not be put in its place."""
    (tmp_path / "record").mkdir()
    with pytest.raises(IsADirectoryError):
        write_by_rename(str(tmp_path / "record"), b"whole")
    assert os.listdir(tmp_path) == ["record"]
