"""`holdfast.run`: bounded, contained, reported."""

import pytest

import holdfast


def test_output_status_and_code():
    done = holdfast.run(["sh", "-c", "echo out; echo err >&2; exit 7"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert done.status.code == 7 and done.status.signal is None and not done.status.ok
    assert done.report is None


def test_time_limit_empties_a_tree_that_resists():
    with pytest.raises(holdfast.TimeoutExpired) as caught:
        holdfast.run(
            ["sh", "-c", 'trap "" TERM; (setsid sleep 99 &); echo so far; sleep 99'],
            capture_output=True, timeout=0.3, grace=0.2,
        )  # fmt: skip
    error = caught.value
    assert error.stdout == b"so far\n"
    assert error.report.empty and error.report.killed_count == 3
    assert [m.name for m in error.report.left_group] == ["sleep"]
    assert error.status.signal == 9
