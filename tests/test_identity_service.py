"""Who a service is and what it may do: each key seen from inside it, and from inside what runs beside it."""

from __future__ import annotations

import grp
import os
import pwd
import resource

import pytest
from conftest import require
from helpers_identity import LOOK, NO_CPU, ONE_CPU, capabilities, own, parsed
from helpers_lib import is_root, root_only
from helpers_supervisor import Running, log_of
from test_aside import aside

from holdfast.process.capabilities import NAMES

NOBODY = "65534"
BIND, KILL = (1 << NAMES.index(name) for name in ("net_bind_service", "kill"))
TO_GIVE_UP = ("kill", "sys_nice", "sys_admin", "sys_resource")  # rights that root may lack, as others do
KEYS = f"""
umask = "027"
nice = 3
ioprio = "best-effort:6"
oom_score_adj = 1000
cpu_affinity = [{ONE_CPU}]
no_new_privs = true
rlimits = {{ nofile = 77, core = "0KB" }}
"""

pytestmark = pytest.mark.usefixtures("ionice")


@pytest.fixture
def ionice():
    require("ionice")


def service(name: str, keys: str, command: str = "command") -> str:
    """One that runs LOOK as its `command`, or as what else is said."""
    first = "" if command == "command" else 'command = ["true"]\n'
    look = f"{command} = ['sh', '-c', 'eval \"$$LOOK\"']"
    return f'[service.{name}]\ntype = "oneshot"\nrestart = "never"\ncwd = "/"\n{first}{look}\n{keys}\n'


def seen_of(up: Running, name: str) -> dict[str, str]:
    up.until(name, state="exited", ready=True)
    return parsed(log_of(up, name))


def is_what_keys_say(seen: dict[str, str]) -> bool:
    found = {name: seen[name] for name in ("Umask", "nice", "ioprio", "oom_score_adj", "NoNewPrivs", "nofile", "core")}
    assert found == {
        "Umask": "0027", "nice": str(os.nice(0) + 3), "ioprio": "best-effort: prio 6", "oom_score_adj": "1000",
        "NoNewPrivs": "1", "nofile": "77 77", "core": "0 0",
    }  # fmt: skip
    assert seen["Cpus_allowed_list"] == str(ONE_CPU)
    return True


def test_what_anybody_may_set(tmp_path):
    services = service("plain", "") + service("all", KEYS)
    services += service("before", KEYS, "pre_start") + service("after", KEYS, "post_stop")
    with Running(tmp_path, services, LOOK=LOOK) as up:
        seen, ours = seen_of(up, "plain"), own()
        for name in ("Uid", "Groups", "Umask", "NoNewPrivs", "CapBnd", "CapAmb", "Cpus_allowed_list", "oom_score_adj"):
            assert seen[name] == ours[name], name
        assert all(is_what_keys_say(seen_of(up, name)) for name in ("all", "before", "after"))


def test_a_command_beside_it_has_the_same():
    keys = {"umask": 0o27, "nice": 3, "ioprio": "best-effort:6", "oom_score_adj": 1000, "cpu_affinity": (ONE_CPU,)}
    keys |= {"no_new_privs": True, "rlimits": {"nofile": (77, 77), "core": (0, 0)}}
    assert is_what_keys_say(parsed(aside(LOOK, **keys).tail))
    assert "cpu_affinity" in aside(["true"], cpu_affinity=(NO_CPU,)).tail


@root_only
def test_what_root_may_set(tmp_path):
    user = "user = 65534\ngroup = 65534\n"
    services = service("groups", f"{user}extra_groups = [7, 'daemon']")
    services += service("none", f"{user}extra_groups = []")
    services += service("own", "user = 'nobody'")
    services += service("bind", f"{user}capabilities = ['net_bind_service']\n")
    services += service("root", "capabilities = []")
    services += service("has", f"{user}capabilities = {{ ambient = ['kill'] }}\nno_new_privs = true")
    services += service("bound", "capabilities = { bounding = ['kill'] }")
    with Running(tmp_path, services, LOOK=LOOK) as up:
        assert seen_of(up, "groups")["Groups"].split() == [*map(str, sorted([7, grp.getgrnam("daemon").gr_gid]))]
        assert seen_of(up, "groups")["Uid"].split() == [NOBODY] * 4
        assert seen_of(up, "none")["Groups"] == ""
        its_own = os.getgrouplist("nobody", pwd.getpwnam("nobody").pw_gid)
        assert seen_of(up, "own")["Groups"].split() == [*map(str, sorted(its_own))]
        sets = capabilities(seen_of(up, "bind"))
        assert sets == dict.fromkeys(("Inh", "Prm", "Eff", "Bnd", "Amb"), BIND)
        assert seen_of(up, "bind")["Uid"].split() == [NOBODY] * 4
        assert set(capabilities(seen_of(up, "root")).values()) == {0}
        sets = capabilities(seen_of(up, "has"))
        assert sets == {"Inh": KILL, "Prm": KILL, "Eff": KILL, "Bnd": capabilities(own())["Bnd"], "Amb": KILL}
        assert capabilities(seen_of(up, "bound")) == {"Inh": 0, "Prm": KILL, "Eff": KILL, "Bnd": KILL, "Amb": 0}


REFUSED = {
    "capabilities": "capabilities = ['kill']",
    "capabilities ambient": "capabilities = { ambient = ['kill'] }",
    "capabilities bounding": "capabilities = { bounding = ['kill'] }",
    "nice": "nice = -20",
    "ioprio": "ioprio = 'realtime:0'",
    "oom_score_adj": "oom_score_adj = -1000",
    "cpu_affinity": f"cpu_affinity = [{ONE_CPU}, {NO_CPU}]",
    "rlimit": f"rlimits = {{ nice = {resource.getrlimit(resource.RLIMIT_NICE)[1] + 1} }}",
}


def test_each_that_is_refused_fails_the_start_and_says_at_which_step(tmp_path):
    """Without the rights that it takes; the service is not started as anything else, nor again and again."""
    services = "".join(
        f'[service.{stage.replace(" ", "-")}]\ncommand = ["touch", "{tmp_path}/started"]\n{keys}\n'
        for stage, keys in REFUSED.items()
    )
    rights = ",".join(f"-{name}" for name in TO_GIVE_UP)
    if is_root:
        require("setpriv")
    through = ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}") if is_root else ()
    with Running(tmp_path, services, through=through) as up:
        for stage in REFUSED:
            status = up.until(stage.replace(" ", "-"), state="fatal")
            assert f"could not start: {stage.split()[0]}: " in status["reason"], status
            assert status["restarts"] == 0
    assert not (tmp_path / "started").exists()
