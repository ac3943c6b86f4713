"""One test per mended bug that has no better home; each names what went wrong."""

import os
import pickle
import select

import pytest

import holdfast


def test_spawn_error_is_the_oserror_that_subprocess_would_raise():
    for command, kind in ((["/nonexistent"], FileNotFoundError), (["/etc/passwd"], PermissionError)):
        with pytest.raises(kind) as caught:
            holdfast.spawn(command)
        error = caught.value
        assert isinstance(error, holdfast.SpawnError) and error.stage == "exec" and error.filename == command[0]
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and (again.errno, again.stage) == (error.errno, "exec")
    with pytest.raises(NotADirectoryError) as caught:
        holdfast.spawn(["true"], cwd="/etc/passwd")
    assert caught.value.stage == "chdir"


def test_a_character_cut_by_the_time_limit_is_not_a_second_error():
    with pytest.raises(holdfast.TimeoutExpired) as caught:
        holdfast.run(
            ["sh", "-c", r"printf 'a\303'; exec sleep 99"],
            capture_output=True, text=True, encoding="utf-8", timeout=0.3,
        )  # fmt: skip
    assert caught.value.stdout == "a\N{REPLACEMENT CHARACTER}"


def test_a_runner_that_cannot_start_leaves_nothing(monkeypatch):
    monkeypatch.setattr("holdfast.process.keeper._KEEPER", b"/nonexistent/keeper")
    with pytest.raises(holdfast.SpawnError) as caught:
        holdfast.Runner()
    assert caught.value.stage == "launch"


def test_an_idle_keeper_that_was_killed_costs_its_runner_nothing():
    """The first start after it failed with EPIPE, although nothing had been started."""
    with holdfast.Runner() as runner:
        runner.run(["true"])
        (idle,) = runner._idle
        idle.kill()
        assert select.select([idle._pidfd], [], [], 10)[0]
        assert runner.run(["true"]).status.ok


def test_a_runner_closed_under_its_processes_leaves_them_to_their_keepers():
    """Their handles said KeeperLost and killed at once; TERM and the grace are the keepers' to give."""
    reader, writer = os.pipe()
    with holdfast.Runner() as runner:
        process = runner.spawn(
            ["sh", "-c", "trap 'echo term; exit' TERM; echo ready; while :; do sleep 0.01; done"], stdout=writer
        )
        assert os.read(reader, 100) == b"ready\n"
    os.close(writer)
    with pytest.raises(RuntimeError, match="runner is closed"):
        process.wait()
    process.close()
    assert os.read(reader, 100) == b"term\n"
    assert os.read(reader, 100) == b""
    os.close(reader)
