"""Many services, run: replicas and names by group in commands and API, files of variables read at each start."""

from __future__ import annotations

import json

import pytest
from helpers_supervisor import Running
from helpers_wait import wait_for

from holdfast.client import Client, ClientError
from holdfast.daemon.names import UnknownService, matching, without_groups

NAMES = ["db", "db-2", "web-1", "web-2", "web-10"]
GROUPS = {"web": ("web-1", "web-2", "web-10"), "backend": ("db", "web-1"), "none": ()}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], NAMES),
        (["web:*"], ["web-1", "web-2", "web-10"]),
        (["web:1"], ["web-1"]),
        (["web:1*"], ["web-1", "web-10"]),
        (["web:web-2", "db"], ["db", "web-2"]),
        (["backend:*", "web:2"], ["db", "web-1", "web-2"]),
        (["backend:web-*"], ["web-1"]),
        (["web-?"], ["web-1", "web-2"]),
    ],
)
def test_names_that_clients_give(patterns, names):
    assert matching(NAMES, patterns, GROUPS) == names


@pytest.mark.parametrize(
    ("pattern", "message", "near"),
    [
        ("web", "no service is called 'web'", "web:*"),
        ("backend", "no service is called 'backend'", "backend:*"),
        ("bakend:*", "no group is called 'bakend'", "backend:*"),
        ("web:3", "no service is called 'web:3'", "web:web-1"),
        ("none:*", "no service matches 'none:*'", None),
        ("we*b", "no service matches 'we*b'", "db"),
    ],
)
def test_names_that_mean_nothing(pattern, message, near):
    with pytest.raises(UnknownService) as error:
        matching(NAMES, ["db", pattern], GROUPS)
    assert str(error.value) == message
    assert near is None or near in error.value.known
    if ":" not in pattern:
        assert without_groups([pattern], GROUPS) == [pattern]  # of the past: it may have been one
        return
    with pytest.raises(UnknownService) as error:
        without_groups([pattern], GROUPS)
    assert str(error.value) == message


def test_patterns_for_the_past():
    assert without_groups(["a*", "gone@3", "web:*@2", "backend:db"], GROUPS) == [
        "a*", "gone@3", "web-1@2", "web-2@2", "web-10@2", "db",
    ]  # fmt: skip


def lines(client: Client, name: str) -> list[str]:
    return [each["text"] for each in client.logs(name, lines=10)]


SERVICES = """
[defaults]
grace = "5s"
[service.web]
replicas = 3
shell = true
command = 'echo "{index} $WHO"; exec sleep infinity'
env_file = "web-{index}.env"
[service.none]
replicas = 0
command = "x"
"""
OTHERS = """
[service.db]
command = "sleep infinity"
[service.front]
command = "sleep infinity"
requires = ["web", "back:*"]
[group.back]
services = ["db", "web:1"]
"""


def test_replicas_groups_and_env_files_of_a_running_supervisor(tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/others.toml").write_text(OTHERS)
    for index in (1, 2, 3):
        (tmp_path / f"web-{index}.env").write_text(f"WHO=morning-{index}\n")

    def states(up: Running) -> dict[str, str]:
        with up.client() as client:
            return {each["name"]: each["state"] for each in client.services()}

    with Running(tmp_path, SERVICES) as up, up.client() as client:
        up.until("front", state="running")
        assert set(states(up)) == {"web-1", "web-2", "web-3", "db", "front"}
        accepted = json.loads((up.run_dir / "accepted.json").read_text())
        assert accepted["groups"] == {
            "web": ["web-1", "web-2", "web-3"], "none": [], "back": ["db", "web-1"]
        }  # fmt: skip
        assert "morning" not in json.dumps(accepted)  # what an env_file says is nobody's to keep
        # A change holds from the next start on, of that one alone.
        for index in (1, 2):
            (tmp_path / f"web-{index}.env").write_text(f"WHO=evening-{index}\n")
        up.holdfast("restart", "web:2")
        wait_for(lambda: "2 evening-2" in lines(client, "web-2"), what="what it read afresh")
        wait_for(lambda: "1 morning-1" in lines(client, "web-1"), what="what it read first")
        assert "1 evening-1" not in lines(client, "web-1")
        # A start without its file fails, and says why.
        (tmp_path / "web-3.env").unlink()
        up.holdfast("stop", "front", "web:*")
        assert states(up) == {"web-1": "stopped", "web-2": "stopped", "web-3": "stopped", "db": "running",
                              "front": "stopped"}  # fmt: skip
        done = up.holdfast("start", "web:*", check=1)
        assert f"env_file {tmp_path}/web-3.env: there is no such file" in done.stdout + done.stderr
        assert states(up)["web-3"] == "fatal"
        (tmp_path / "web-3.env").write_text("WHO='third' x\n")
        done = up.holdfast("start", "web:3", check=1)
        assert "web-3.env:1: something stands behind the quotation of WHO" in done.stdout + done.stderr
        (tmp_path / "web-3.env").write_text("WHO=third\n")
        up.holdfast("start", "web:3")
        # The group's names, wherever names are given.
        assert {each["name"] for each in client.services("back:*")} == {"db", "web-1"}
        rows = json.loads(up.holdfast("history", "web:2", "--json").stdout)
        assert {row["service"] for row in rows} == {"web-2"}
        assert len(rows) == 3
        for words, hint in (("stop web", "web:*"), ("status bakc:*", "back:*"), ("history bakc:*", "back:*")):
            done = up.holdfast(*words.split(), check=None)
            assert done.returncode
            assert hint in done.stdout + done.stderr
        with pytest.raises(ClientError, match="no group is called"):
            client.history("bakc:*")
        up.holdfast("down")
        assert up.process is not None
        up.process.wait(30)
        # Without a supervisor, too.
        rows = json.loads(up.holdfast("history", "web:2", "--json").stdout)
        assert {row["service"] for row in rows} == {"web-2"}


def test_what_is_over_what(tmp_path):
    """The supervisor's environment, the files in their order, and `env`; `PATH` finds the command, too."""
    (tmp_path / "a.env").write_text(f"A=a\nB=a\nC=a\nPATH={tmp_path}:/usr/bin:/bin\n")
    (tmp_path / "b.env").write_text("B=b\nC=b\n")
    (tmp_path / "show-it").write_text('#!/bin/sh\necho "$A $B $C $Z $HOLDFAST_SERVICE"\n')
    (tmp_path / "show-it").chmod(0o755)
    text = "[service.show]\ntype = 'oneshot'\ncommand = 'show-it'\nenv_file = ['a.env', 'b.env']\nenv = { C = 'env' }\n"
    with Running(tmp_path, text, A="ours", Z="ours") as up, up.client() as client:
        up.until("show", state="exited")
        wait_for(lambda: "a b env ours show" in lines(client, "show"), what="its line")


def test_supervisor_of_no_replicas_at_all(tmp_path):
    """Nothing runs until the file says more."""
    with Running(tmp_path, "[service.web]\nreplicas = 0\ncommand = 'x'\n") as up:
        with up.client() as client:
            assert client.services() == []
        assert up.stop() == 0
