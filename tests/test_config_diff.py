"""What differs between two files, in words; and the digest of what an incarnation is started with."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from helpers_config import loaded
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import diff
from holdfast.config.model import Backoff, Health, Log, Ready, Resources, Schedule, Service, Socket, keys_of

BASE = Service(name="web", command=("serve", "--port 80"), cwd="/")
OTHER = {
    "command": ("serve",), "shell": True, "cwd": "/tmp", "env": {"A": "1"}, "user": "www", "group": 7, "umask": 0o27,
    "nice": 5, "rlimits": {"nofile": (1, 2)}, "type": "oneshot", "restart": "never", "backoff": Backoff(max=5.0),
    "start_limit": 3, "success_exit_codes": (0, 3), "requires": ("db",), "after": ("db",), "stop_signal": 2,
    "stop_scope": "main", "grace": 1.5, "log": Log(cap=10_000_000), "essential": True, "on_owner_loss": "stop",
    "ready": Ready(tcp="80"), "health": Health(tcp="80"), "watchdog": 3.0, "replicas": 3, "env_file": ("/x.env",),
    "schedule": Schedule(cron="0 3 * * *"), "pre_start": ("prepare",), "post_stop": ("clean",),
    "reload_command": ("reload",), "sockets": (Socket("127.0.0.1:80"),), "fd_store_max": 2,
    "restart_order": "start-first", "stdin": "pipe", "pty": True, "lineage": True,
    "resources": Resources(pids_max=9),
    "extra_groups": (7, "audio"), "capabilities": {"bounding": ("kill",)}, "no_new_privs": True, "ioprio": "idle",
    "oom_score_adj": 9, "cpu_affinity": (0,),
    "main": "web", "pid_file": "/run/web.pid",
}  # fmt: skip


def test_each_key_is_tried():
    assert {"name", *OTHER} == set(Service.__struct_fields__)
    assert set(OTHER) > diff.APPLIED


@pytest.mark.parametrize("key", OTHER)
def test_a_key_is_applied_or_belongs_to_the_definition(key):
    other = msgspec.structs.replace(BASE, **{key: OTHER[key]})
    assert (diff.definition(other) == diff.definition(BASE)) == (key in diff.APPLIED)
    assert (diff.applied(BASE, other) == other) == (key in diff.APPLIED)


@pytest.mark.parametrize(
    ("running", "wanted", "needs"),
    [
        ({}, {"health": Health(notify=True)}, True),
        ({}, {"health": Health(fd=4)}, True),
        ({"health": Health(fd=4)}, {"health": Health(fd=5)}, True),
        ({"health": Health(fd=4)}, {"health": Health(fd=4, interval=3.0)}, False),
        ({"health": Health(notify=True)}, {"health": Health(notify=True, failures=9)}, False),
        ({"type": "notify"}, {"type": "notify", "health": Health(notify=True)}, False),
        ({"watchdog": 3.0}, {"watchdog": 3.0, "health": Health(notify=True)}, False),
        ({}, {"health": Health(log="x")}, False),
    ],
)
def test_a_health_that_has_to_be_given_something_needs_a_start(running, wanted, needs):
    first, second = (msgspec.structs.replace(BASE, **keys) for keys in (running, wanted))
    assert (diff.definition(first) != diff.definition(second)) == needs
    assert (diff.applied(first, second) != second) == needs
    assert diff.definition(diff.applied(first, second)) == diff.definition(first)


@pytest.mark.parametrize(
    ("running", "wanted", "needs"),
    [
        (Resources(), Resources(pids_max=9, cpu_max=0.5), False),  # the files of its cgroup are written
        (Resources(pids_max=9), None, True),
        (Resources(pids_max=9), Resources(pids_max=9, optional=True), True),
        (Resources(pids_max=9, optional=True), Resources(pids_max=8, optional=True), True),  # it may have no cgroup
    ],
)
def test_limits_of_a_cgroup_need_no_start(running, wanted, needs):
    first, second = (msgspec.structs.replace(BASE, resources=each) for each in (running, wanted))
    assert (diff.definition(first) != diff.definition(second)) == needs
    assert (diff.applied(first, second) != second) == needs
    assert diff.definition(diff.applied(first, second)) == diff.definition(first)


@given(st.sets(st.sampled_from(sorted(OTHER))), st.sets(st.sampled_from(sorted(OTHER))))
def test_two_definitions_are_one_where_nothing_needs_a_new_process(one, two):
    first, second = (msgspec.structs.replace(BASE, **{key: OTHER[key] for key in keys}) for keys in (one, two))
    needs = (one ^ two) - diff.APPLIED
    assert (diff.definition(first) == diff.definition(second)) == (not needs)
    assert (diff.applied(first, second) == second) == (not needs)
    assert diff.definition(diff.applied(first, second)) == diff.definition(first)


def test_the_order_of_variables_is_no_change():
    orders = [dict(each) for each in itertools.permutations({"A": "1", "B": "2", "C": "3"}.items())]
    assert len({diff.definition(msgspec.structs.replace(BASE, env=env)) for env in orders}) == 1


def test_a_digest_outlives_its_version():
    """What it is of one definition shall not change: an upgrade would restart every service."""
    assert diff.definition(BASE) == "7f9639f57f83d794a5cbb5e8"


TEXT = """
[supervisor]
run_dir = "run"
log_dir = "log"
state_dir = "state"
[service.db]
command = "db"
[service.web]
command = "serve"
"""


def words(tmp_path, text):
    return [str(each) for each in diff.changes(loaded(tmp_path, TEXT), loaded(tmp_path, text))]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("", []),
        ("grace = '10s'  # the default", []),
        ("grace = '1500ms'", ["changed web: grace 10s -> 1500ms (applies)"]),
        ("umask = '027'", ["changed web: umask unset -> 027 (restarts)"]),
        ("stop_signal = 'INT'", ["changed web: stop_signal SIGTERM -> SIGINT (applies)"]),
        ("requires = ['db']", ['changed web: requires "" -> "db" (applies)']),
        ("env = { TOKEN = 'secret' }", ["changed web: env.TOKEN added (restarts)"]),
        ("log.rotate.size = '1MiB'", ["changed web: log.rotate.size 16MiB -> 1MiB (restarts)"]),
        ("backoff = { max = '5s' }", ["changed web: backoff.max 60s -> 5s (applies)"]),
        ("health = { tcp = '80', interval = '3s' }",
         ['changed web: health unset -> { tcp = "80", interval = 3s } (applies)']),
        ("health.notify = true", ["changed web: health unset -> { notify = true } (restarts)"]),
        ("capabilities = { bounding = ['kill', 'chown'], ambient = ['kill'] }",
         ['changed web: capabilities unset -> { bounding = "kill chown", ambient = "kill" } (restarts)']),
        ("rlimits = { nofile = 64 }", ["changed web: rlimits {} -> { nofile = (64, 64) } (restarts)"]),
        ("type = 'notify'", ['changed web: type "simple" -> "notify" (restarts)']),
    ],
)
def test_a_change_in_words(tmp_path, line, shown):
    assert words(tmp_path, TEXT + line) == shown


def test_services_come_and_go(tmp_path):
    text = TEXT.replace("[service.db]", "[service.cache]")
    assert words(tmp_path, text) == ["removed db (stops)", "added cache (starts)"]


def test_of_the_supervisor_only_the_budget_can_change(tmp_path):
    old = loaded(tmp_path, TEXT)
    budget = loaded(tmp_path, TEXT.replace('"state"', '"state"\nstart_budget = { at_once = 3 }'))
    assert [str(each) for each in diff.changes(old, budget)] == [
        "changed supervisor.start_budget.at_once 50 -> 3 (applies)"
    ]
    assert diff.fixed(old, budget) == []
    moved = loaded(tmp_path, TEXT.replace('"log"', '"elsewhere"'))
    assert [each.partition(" ")[0] for each in diff.fixed(old, moved)] == ["supervisor.log_dir"]


def test_groups_are_no_services(tmp_path):
    group = "[group.all]\nservices = ['*']\n"
    assert words(tmp_path, TEXT + group) == ['changed group.all unset -> "db web" (applies)']


def test_another_replica_is_no_change_of_those_that_there_are(tmp_path):
    two, three = (loaded(tmp_path, TEXT + f"replicas = {number}\n") for number in (2, 3))
    assert [str(each) for each in diff.changes(two, three)] == ["added web-3 (starts)"]


def test_every_key_has_words(tmp_path):
    """A key that comes later, too: none is passed over in silence."""
    for name in keys_of(Service):
        if name not in ("log", "backoff"):
            other = msgspec.structs.replace(BASE, **{name: OTHER[name]})
            old = loaded(tmp_path, TEXT)
            a, b = (msgspec.structs.replace(old, services={"web": each}) for each in (BASE, other))
            (change,) = diff.changes(a, b)
            assert change.keys and change.keys[0].startswith(name)
