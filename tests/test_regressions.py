"""One test per mended bug that has no better home; each names what went wrong."""

import pickle

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
