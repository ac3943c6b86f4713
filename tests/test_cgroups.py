"""Cgroups below the services: starting inside, the kernel's tree kill, files of both versions, where they are made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys

import pytest
from helpers_config import loaded
from helpers_resources import OWN, directory, made, needs_v1, needs_v2, pids
from helpers_wait import wait_for

import holdfast
from holdfast.config.errors import ConfigError
from holdfast.config.model import Resources
from holdfast.daemon import cgroup_files, cgroups, history_file, oom
from holdfast.daemon.cgroup_files import Cgroups
from holdfast.process.options import make_plan
from holdfast.process.spawn import start

MIB = 1024 * 1024
NONE = "no limit"


def started(args, *directories, **options):
    private = options.get("private", True)
    return start(make_plan(args, cgroups=[str(each) for each in directories], **options), private, [])


@contextlib.contextmanager
def sleeper():
    """A process of ours that no keeper knows of."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


# ---- starting inside, and the kernel's kill


@needs_v2
@pytest.mark.parametrize("private", [True, False], ids=["kept", "direct"])
def test_a_process_is_inside_from_its_first_moment(private):
    with made(OWN[""]) as own, started(
        ["cat", "/proc/self/cgroup"], own, stdout=holdfast.PIPE, private=private
    ) as process:  # fmt: skip
        assert f"0::{process_path(own)}\n" in process.stdout.read().decode()
        assert process.wait(10).code == 0


@needs_v1
@pytest.mark.parametrize("private", [True, False], ids=["kept", "direct"])
def test_of_version_1_it_is_in_each_hierarchy_and_inherits_no_descriptor(private):
    with made(OWN["pids"]) as one, made(OWN["memory"]) as other:
        script = "cat /proc/self/cgroup; ls /proc/self/fd"
        with started(["sh", "-c", script], one, other, stdout=holdfast.PIPE, private=private) as process:
            out = process.stdout.read().decode()
            assert process.wait(10).code == 0
        assert f":pids:{process_path(one)}\n" in out
        assert f":memory:{process_path(other)}\n" in out
        assert set(out.split("\n")[-5:]) <= {"0", "1", "2", "3", ""}  # 3: the directory that ls reads


def process_path(path) -> str:
    """As /proc/PID/cgroup has it."""
    own = next(own for name, own in OWN.items() if path.parent == own)
    lines = (line.split(":", 2) for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines())
    name = next(name for name, each in OWN.items() if each == own)
    above = next(where for _, names, where in lines if name in names.split(","))
    return os.path.join(above, path.name)


WITHOUT_CLONE3 = """
import sys
import holdfast
from holdfast.process import _native
from holdfast.process.options import make_plan
from holdfast.process.spawn import start
_native.forbid_clone3()
directory, gone = sys.argv[1:]
plan = make_plan(["cat", "/proc/self/cgroup"], cgroups=[directory], private=False)
with start(plan, False, []) as process:
    assert process.wait(10).code == 0
assert not _native.has_clone3()
import os
os.mkdir(gone)
plan = make_plan(["true"], cgroups=[gone], private=False)
os.rmdir(gone)
try:
    start(plan, False, [])
except FileNotFoundError as error:
    assert error.stage == "cgroup"
"""


@needs_v2
def test_where_the_kernel_cannot_start_it_there_it_goes_by_itself():
    with made(OWN[""]) as own:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_CLONE3, own, own / "gone"], capture_output=True, text=True, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"0::{process_path(own)}\n" in done.stdout


@needs_v2
@pytest.mark.parametrize("private", [True, False], ids=["kept", "direct"])
def test_one_that_is_not_there_any_more_fails_the_start_at_its_stage(private):
    with made(OWN[""]) as own:
        gone = own / "gone"
        gone.mkdir()
        plan = make_plan(["true"], cgroups=[str(gone)], private=private)
        gone.rmdir()
        with pytest.raises(holdfast.SpawnError, match="cgroup") as failed:
            start(plan, private, [])
        assert failed.value.stage == "cgroup"
        assert isinstance(failed.value, FileNotFoundError)
        with pytest.raises(FileNotFoundError, match="cgroup"):
            make_plan(["true"], cgroups=[str(gone)])


@needs_v2
def test_kill_reaches_what_is_in_the_directory_and_not_below_the_keeper():
    """Which only cgroup.kill can: the walk does not know of it."""
    with made(OWN[""]) as own, sleeper() as other:
        script = "trap '' TERM; echo; while :; do sleep 1; done"
        with started(["sh", "-c", script], own, stdout=holdfast.PIPE) as process:
            process.stdout.readline()
            (own / "cgroup.procs").write_text(str(other.pid))
            report = process.stop(grace=0.05)
            assert report.empty
            assert other.wait(10) == -signal.SIGKILL
        wait_for(lambda: "populated 0" in (own / "cgroup.events").read_text())


@needs_v2
def test_a_stop_that_needs_no_kill_leaves_the_rest_of_the_directory_alone():
    with made(OWN[""]) as own, sleeper() as other:
        with started(["sleep", "1000"], own) as process:
            (own / "cgroup.procs").write_text(str(other.pid))
            assert process.stop(grace=10).killed_count == 0
        assert other.poll() is None


@needs_v2
def test_a_kill_after_its_directory_was_removed_is_that_of_any_tree():
    with made(OWN[""]) as own, made(OWN[""]) as other:
        (own / "inner").mkdir()
        with started(["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"], own / "inner",
                     stdout=holdfast.PIPE) as process:  # fmt: skip
            process.stdout.readline()
            for pid in wait_for(lambda: pids(own / "inner")):
                (other / "cgroup.procs").write_text(str(pid))
            for _ in range(100):  # its shell forks meanwhile
                for pid in pids(own / "inner"):
                    (other / "cgroup.procs").write_text(str(pid))
                if not pids(own / "inner"):
                    break
            (own / "inner").rmdir()
            assert process.stop(grace=0.05).empty


# ---- where they can be made


def test_a_trial_says_what_there_is_and_leaves_nothing(tmp_path):
    ground = cgroups.find(str(tmp_path), lambda: {os.getpid()}, trial=True)
    assert {*ground.places, *ground.why} == set(cgroup_files.LIMITS)
    assert not any(os.path.exists(parent) for parent in ground.parents)
    for name in cgroup_files.LIMITS:
        assert name in ground.places or ground.why[name]


@needs_v1
def test_what_is_found_is_made_and_can_be_used(tmp_path):
    ground = cgroups.find(str(tmp_path), lambda: {os.getpid()})
    try:
        assert {ground.places[name] for name in ("memory_max", "cpu_max", "cpu_weight", "pids_max")} == {1}
        assert ground.why["memory_high"] == "cgroup v1 has no such limit"
        assert [os.path.isdir(parent) for parent in ground.parents] == [True] * len(ground.parents)
        if "" in OWN:
            assert ground.parents[0] == str(directory("", tmp_path, "").parent / directory("", tmp_path, "").name)
        again = cgroups.find(str(tmp_path), lambda: {os.getpid()})
        assert (again.parents, again.places) == (ground.parents, ground.places)
    finally:
        for parent in ground.parents:
            cgroups.remove(parent)


@needs_v2
def test_who_is_ours_makes_room_and_others_are_not_moved():
    """Version 2 gives limits below a cgroup only when nobody is in it."""
    with made(OWN[""]) as own, sleeper() as first, sleeper() as second:
        for each in (first, second):
            (own / "cgroup.procs").write_text(str(each.pid))
        why = cgroups.make_room(str(own), lambda: {first.pid})
        assert why == f"others are in {own} with us, such as sleep {second.pid}"
        assert pids(own) == {first.pid, second.pid}
        assert cgroups.make_room(str(own), lambda: {first.pid, second.pid}) == ""
        assert pids(own) == set()
        assert pids(own / cgroups.SUPERVISORS) == {first.pid, second.pid}


# ---- the files


@pytest.mark.parametrize(
    ("name", "value", "v2", "v1"),
    [
        ("memory_max", 64 * MIB, "67108864", "67108864"),
        ("memory_max", None, "max", "-1"),
        ("cpu_max", 1.5, "150000 100000", "150000"),
        ("cpu_max", 0.01, "1000 100000", "1000"),
        ("cpu_max", None, "max 100000", "-1"),
        ("cpu_weight", 50, "50", "512"),
        ("cpu_weight", 1, "1", "10"),
        ("cpu_weight", None, "100", "1024"),
        ("io_weight", 10, "default 10", None),
        ("io_weight", None, "default 100", None),
        ("memory_high", MIB, "1048576", None),
        ("memory_high", None, "max", None),
        ("pids_max", 9, "9", "9"),
        ("pids_max", None, "max", "max"),
    ],
)
def test_a_limit_as_each_version_is_told(name, value, v2, v1):
    assert cgroup_files.text(name, value, 2) == v2
    assert bool(cgroup_files.LIMITS[name].v1) == (v1 is not None)
    if v1 is not None:
        assert cgroup_files.text(name, value, 1) == v1


def test_files_of_version_2_are_read_and_written(tmp_path):
    """As they look where version 2 has the controllers, which is not so on each machine that this runs on."""
    files = {
        "cgroup.controllers": "cpu io memory pids\n", "cgroup.procs": "12\n0\n13\n", "memory.max": "max\n",
        "memory.current": "4096\n", "memory.peak": "8192\n", "pids.max": "max\n", "pids.current": "3\n",
        "cpu.stat": "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n",
        "memory.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.20 avg60=0 avg300=0 total=9\n",
    }  # fmt: skip
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    here = Cgroups((str(tmp_path), "/nowhere"))
    assert (here.memory(), here.memory_peak(), here.tasks(), here.cpu_seconds()) == (4096, 8192, 3, 1.5)
    assert (here.oom_kills(), here.hit_memory_max(), here.pids()) == (1, True, [12, 13])
    assert here.pressure() == {"memory": 1.5}
    assert [here.held(name, 1 * MIB) for name in ("memory_max", "pids_max", "cpu_max")] == ["", "", ""]
    here.set("memory_max", MIB + 1)
    assert (tmp_path / "memory.max").read_text() == "1048576"  # whole pages, which the kernel makes of it, too
    assert [here.held("memory_max", value) for value in (MIB + 1, 2 * MIB)] == ["cgroup v2", ""]
    with pytest.raises(FileNotFoundError):
        here.set("cpu_max", 1.0)


def test_of_a_cgroup_that_is_gone_nothing_is_known():
    gone = Cgroups(("/nowhere/web@1",))
    found = (gone.memory(), gone.memory_peak(), gone.tasks(), gone.cpu_seconds(), gone.oom_kills())
    assert found == (None, None, None, None, None)
    assert (gone.pids(), gone.pressure(), gone.hit_memory_max()) == ([], {}, False)


@needs_v2
def test_a_change_of_a_file_of_version_2_is_heard():
    """memory.events tells by the same notification as cgroup.events, which is there without a controller."""

    async def heard(own) -> list[tuple[str, int]]:
        looks: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        watch = oom.OomWatch(lambda *key: looks.put_nowait(key))
        try:
            watch.watch(("web", 1), os.open(own / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC))
            with started(["sleep", "1000"], own) as process:
                first = await asyncio.wait_for(looks.get(), 10)
                process.kill()
                process.wait(10)
            second = await asyncio.wait_for(looks.get(), 10)
            watch.drop(("web", 1))
            return [first, second]
        finally:
            watch.close()

    with made(OWN[""]) as own:
        assert asyncio.run(heard(own)) == [("web", 1)] * 2


# ---- the configuration


def read(tmp_path, resources: str) -> Resources | None:
    return loaded(tmp_path, f'[service.web]\ncommand = ["true"]\nresources = {resources}\n').services["web"].resources


def test_limits_are_read(tmp_path):
    assert read(tmp_path, "{}") == Resources()
    everything = (
        '{ memory_max = "64MiB", memory_high = "48MiB", cpu_max = "12.5%", cpu_weight = 1, io_weight = 10000, '
        "pids_max = 64, optional = true }"
    )
    assert read(tmp_path, everything) == Resources(64 * MIB, 48 * MIB, 0.125, 1, 10000, 64, True)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ('{ cpu_max = 150 }', '150 has no unit (of one processor: "150%")'),
        ('{ cpu_max = "1.5" }', '"1.5" is no percentage'),
        ('{ cpu_max = "-5%" }', '"-5%" is no percentage'),
        ('{ cpu_max = "0.5%" }', 'must be from 1% to 819200%, not "0.5%"'),
        ('{ cpu_max = true }', "must be a percentage"),
        ('{ memory_max = 64 }', "has no unit"),
        ('{ pids_max = 0 }', "must be at least 1"),
        ('{ cpu_weight = 10001 }', "must be at most 10000"),
        ('{ memory_max = "1MiB", memory_high = "1MiB" }', "memory_high is not below memory_max (1MiB)"),
        ('{ memroy_max = "1MiB" }', 'did you mean "memory_max"?'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, resources, message):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, resources)
    assert message in str(error.value)


def test_a_history_from_before_there_were_resources_is_read_and_written(tmp_path):
    path = str(tmp_path / "state" / "history.db")
    (tmp_path / "state").mkdir(mode=0o700)
    history_file.make(path)
    with sqlite3.connect(path) as db:
        db.executescript(history_file.SCHEMA.replace(", resources TEXT", ""))
        db.execute("INSERT INTO incarnations (boot, service, incarnation, cause) VALUES ('b', 'web', 1, 'x')")
        db.execute(f"PRAGMA user_version = {history_file.VERSION}")
    db.close()
    assert history_file.read(path, [], 9)[0].resources is None
    file = history_file.Database(path)
    file.write({("web", 2): {"new": True, "resources": '{"oom_kills": 1}'}}, None)
    file.close()
    assert [row.resources for row in history_file.read(path, [], 9)] == [None, {"oom_kills": 1}]
