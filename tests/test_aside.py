"""A command beside a service: what it inherits, how it is bounded, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid

import pytest
from helpers_wait import all_ended, wait_for

from holdfast.config.model import Service
from holdfast.daemon.aside import TAIL_BYTES, run_aside
from holdfast.daemon.plan import Surroundings


def aside(command, *, timeout=30.0, env=(), own=(), **keys):
    spec = Service(**{"name": "web", "command": ("true",), "cwd": os.getcwd(), "env": dict(own), **keys})

    async def main():
        around = Surroundings(os.environ, "/nonexistent")
        return await run_aside(spec, command, env=dict(env), timeout=timeout, around=around)

    return asyncio.run(main())


def marked(mark: str) -> list[int]:
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if f"TEST_MARK={mark}".encode() in file.read().split(b"\0") and int(entry) != os.getpid():
                    found.append(int(entry))
        except OSError:
            continue
    return found


def test_words_a_text_for_a_shell_and_how_it_ended():
    result = aside(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.status.code, result.timed_out, result.tail) == (3, False, "out\nerr")
    assert aside("echo $((6 * 7)) | cat").tail == "42"
    assert aside("kill -9 $$").status.signal == signal.SIGKILL
    assert aside(["true"]).tail == ""


def test_it_has_what_the_service_has(tmp_path):
    text = 'echo "$PWD $A $B $HOLDFAST_SERVICE $(umask) $(ulimit -n) ${HOLDFAST_INCARNATION-none}"; ps -o sid= -p $$'
    own = {"A": "1", "B": "x"}
    result = aside(text, env={"B": "2"}, own=own, cwd=str(tmp_path), umask=0o27, rlimits={"nofile": (60, 64)})
    words = result.tail.split()
    assert words[:6] == [str(tmp_path), "1", "2", "web", "0027", "60"]
    assert words[6] == "none"
    assert int(words[7]) != os.getsid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may choose a user")
def test_it_runs_as_the_service_s_user():
    assert aside("id -un; id -Gn; echo $HOME", user="nobody", cwd="/").tail.split()[0] == "nobody"


def test_what_cannot_be_started_says_why():
    result = aside(["/no/such/program"])
    assert result.status is None
    assert not result.timed_out
    assert "No such file" in result.tail
    assert "gone-away" in aside(["true"], user="gone-away").tail


def test_one_that_hangs_is_stopped_with_all_that_it_has_started():
    mark = uuid.uuid4().hex
    text = "trap '' TERM; sleep 1000 & setsid sleep 1000 & echo started; wait"
    result = aside(text, timeout=0.5, env={"TEST_MARK": mark})
    assert (result.status, result.timed_out) == (None, True)
    assert result.tail == "started"
    assert marked(mark) == []


def test_what_a_command_leaves_is_stopped_and_does_not_hold_the_answer_up():
    mark = uuid.uuid4().hex
    result = aside("setsid sleep 1000 & echo done", env={"TEST_MARK": mark})
    assert (result.status.code, result.tail) == (0, "done")
    assert marked(mark) == []


def test_endless_output_is_bounded_and_only_its_end_is_kept():
    result = aside("yes | head -c 3000000; printf '\\033[2Jend'")
    assert result.status.code == 0
    assert result.tail.endswith("y\n?[2Jend")
    assert len(result.tail) <= TAIL_BYTES
    assert aside(["yes"], timeout=0.5).timed_out


def test_many_at_once_and_the_loop_goes_on():
    async def main():
        spec = Service(name="web", command=("true",), cwd="/")
        around = Surroundings(os.environ, "/nonexistent")
        runs = [run_aside(spec, f"sleep 0.2; echo {n}", env={}, timeout=30, around=around) for n in range(20)]
        ticks = 0
        everything = asyncio.gather(*runs)
        while not everything.done():
            await asyncio.wait([everything], timeout=0.01)
            ticks += 1
        return [each.tail for each in everything.result()], ticks

    tails, ticks = asyncio.run(main())
    assert tails == [str(n) for n in range(20)]
    assert ticks > 5


@pytest.mark.parametrize("early", [True, False])
def test_a_cancelled_one_is_ended(early):
    mark = uuid.uuid4().hex

    async def main():
        spec = Service(name="web", command=("true",), cwd="/")
        around = Surroundings(os.environ, "/nonexistent")
        work = run_aside(spec, ["sleep", "1000"], env={"TEST_MARK": mark}, timeout=100, around=around)
        task = asyncio.create_task(work)
        if early:
            await asyncio.sleep(0)  # its start is under way
        else:
            assert await asyncio.to_thread(wait_for, lambda: marked(mark))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_for(lambda: not marked(mark))


DIES = """
import asyncio, os, sys
from holdfast.config.model import Service
from holdfast.daemon.aside import run_aside
from holdfast.daemon.plan import Surroundings
spec = Service(name="web", command=("true",), cwd="/")
asyncio.run(run_aside(spec, "trap '' TERM; sleep 1000 & wait", env={}, timeout=100,
    around=Surroundings(os.environ, "/nonexistent")))
"""


def test_it_is_killed_when_we_are():
    mark = uuid.uuid4().hex
    with subprocess.Popen([sys.executable, "-c", DIES], env={**os.environ, "TEST_MARK": mark}) as owner:
        wait_for(lambda: len(marked(mark)) >= 3)  # its owner, the shell, the sleep
        everybody = marked(mark)
        owner.kill()
    assert all_ended(everybody)
