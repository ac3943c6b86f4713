"""Who a process is and what it may do: each option seen from inside, and each that is refused, by its stage."""

from __future__ import annotations

import errno
import os
import resource
import sys

import pytest
from conftest import require
from helpers_identity import ALL_CPUS, NO_CPU, ONE_CPU, capabilities, look, own, parsed
from helpers_lib import NOBODY, WAYS, is_root, nobody_can_run_keeper, program, read, root_only, starter
from test_inheritance import reachable_python

import holdfast
from holdfast import PIPE, SpawnError
from holdfast.process.capabilities import NAMES, as_bits, capability_sets
from holdfast.process.more import CPUS_MAX, cpu_numbers, io_priority, pack_more

BIND, CHOWN, KILL = (1 << NAMES.index(name) for name in ("net_bind_service", "chown", "kill"))
NOBODY_ALONE = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
own_bounding = capabilities(own())["Bnd"]

with_ionice = pytest.fixture(autouse=True)(lambda: require("ionice"))


@pytest.fixture(params=WAYS)
def start(request):
    with starter(request.param) as start:
        yield start


# ---- seen from inside: as anybody


def test_it_is_as_we_are_where_nothing_is_given(start):
    seen, ours = look(start), own()
    for name in ("Uid", "Gid", "Groups", "Umask", "NoNewPrivs", "CapInh", "CapBnd", "CapAmb", "Cpus_allowed_list"):
        assert seen[name] == ours[name], name
    assert seen["oom_score_adj"] == ours["oom_score_adj"]


def test_no_new_privs(start):
    assert look(start)["NoNewPrivs"] == "0"
    assert look(start, no_new_privs=True)["NoNewPrivs"] == "1"


@pytest.mark.parametrize(("text", "seen"), [
    ("idle", "idle"), ("best-effort:0", "best-effort: prio 0"), ("best-effort:7", "best-effort: prio 7"),
    ("best-effort", "best-effort: prio 4"),
])  # fmt: skip
def test_io_priority(start, text, seen):
    assert look(start, ioprio=text)["ioprio"] == seen


def test_no_io_priority_of_its_own(start):
    """Then it follows from the niceness, and is not shown; what an owner has is taken away by it."""
    code = "import sys; from helpers_identity import look; import holdfast; print(look(holdfast.spawn, ioprio='none'))"
    assert "'ioprio': 'none: prio 0'" in program(f"import os; os.system(f'ionice -c 3 -p {{os.getpid()}}'); {code}")


def test_oom_score(start):
    higher = min(int(own()["oom_score_adj"]) + 321, 1000)
    assert look(start, oom_score_adj=higher)["oom_score_adj"] == str(higher)
    assert look(start, oom_score_adj=1000)["oom_score_adj"] == "1000"


def test_cpus(start):
    assert look(start, cpu_affinity=[ONE_CPU])["Cpus_allowed_list"] == str(ONE_CPU)
    assert look(start, cpu_affinity=str(ONE_CPU))["Cpus_allowed_list"] == str(ONE_CPU)
    assert look(start, cpu_affinity=ALL_CPUS)["Cpus_allowed_list"] == own()["Cpus_allowed_list"]


def test_umask_nice_and_limits(start):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    seen = look(start, umask=0o27, nice=3, rlimits={"nofile": (77, hard), "core": 0})
    assert (seen["Umask"], seen["nice"], seen["core"]) == ("0027", str(os.nice(0) + 3), "0 0")
    assert seen["nofile"].split()[0] == "77"


def test_no_descriptor_is_needed_for_what_is_set_before_the_limits(start):
    options = {"rlimits": {"nofile": (3, 64)}, "oom_score_adj": 1000, "no_new_privs": True}
    with start(["sh", "-c", "read x < /proc/self/oom_score_adj; echo $x"], stdout=PIPE, stderr=PIPE, **options) as p:
        assert p.stdout.read() == b""  # not even one of its own is left
        p.wait(30)


def test_neither_we_nor_the_keeper_are_changed():
    """The child has our memory until it runs, and with it what belongs to all that share one."""
    before, mine = own(), sorted(os.sched_getaffinity(0))
    options = {"no_new_privs": True, "ioprio": "idle", "oom_score_adj": 1000, "cpu_affinity": [ONE_CPU], "nice": 2}
    if is_root:
        options |= {"capabilities": ["kill"], **NOBODY_ALONE, "umask": 0o77}
    with holdfast.spawn(["cat"], stdin=PIPE, **options) as process:
        keeper = parsed(read(f"/proc/{process.pid}/status"))["PPid"]
        assert read(f"/proc/{keeper}/oom_score_adj").strip() == before["oom_score_adj"]
        seen = parsed(read(f"/proc/{keeper}/status"))
        for name in ("CapBnd", "CapAmb", "CapInh", "NoNewPrivs", "Cpus_allowed_list", "Uid", "Umask"):
            assert seen[name] == before[name], name
    with holdfast.spawn(["cat"], stdin=PIPE, private=False, **options):
        after = own()
    for name in ("CapBnd", "CapAmb", "CapInh", "CapEff", "NoNewPrivs", "Cpus_allowed_list", "Uid", "oom_score_adj",
                 "ioprio"):  # fmt: skip
        assert after[name] == before[name], name
    assert sorted(os.sched_getaffinity(0)) == mine


# ---- seen from inside: root's to give


@root_only
def test_user_and_groups(start):
    seen = look(start, user=NOBODY, group=1, extra_groups=[7, 9])
    assert (seen["Uid"].split(), seen["Gid"].split()) == ([str(NOBODY)] * 4, ["1"] * 4)
    assert seen["Groups"] == "7 9"


@root_only
def test_capabilities_of_an_ordinary_user(start):
    seen = capabilities(look(start, capabilities=["net_bind_service", "CAP_KILL"], **NOBODY_ALONE))
    assert seen == dict.fromkeys(("Inh", "Prm", "Eff", "Bnd", "Amb"), BIND | KILL)


@root_only
def test_the_last_capability_that_there_is(start):
    last = own_bounding.bit_length() - 1  # in the second half of what the kernel takes them in, as a rule
    seen = capabilities(look(start, capabilities=[NAMES[last]], **NOBODY_ALONE))
    assert set(seen.values()) == {1 << last}


@root_only
def test_capabilities_of_root(start):
    assert set(capabilities(look(start, capabilities=["chown"])).values()) == {CHOWN}
    assert set(capabilities(look(start, capabilities=[])).values()) == {0}


@root_only
def test_one_set_alone(start):
    seen = capabilities(look(start, capabilities={"ambient": ["chown"]}, **NOBODY_ALONE))
    assert seen == {"Inh": CHOWN, "Prm": CHOWN, "Eff": CHOWN, "Bnd": own_bounding, "Amb": CHOWN}
    seen = capabilities(look(start, capabilities={"bounding": ["chown", "kill"]}, **NOBODY_ALONE))
    assert seen == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": CHOWN | KILL, "Amb": 0}
    seen = capabilities(look(start, capabilities={"bounding": ["chown", "kill"]}))
    assert (seen["Eff"], seen["Bnd"], seen["Amb"]) == (CHOWN | KILL, CHOWN | KILL, 0)
    seen = capabilities(look(start, capabilities={"bounding": ["chown", "kill"], "ambient": ["kill"]}, **NOBODY_ALONE))
    assert seen == {"Inh": KILL, "Prm": KILL, "Eff": KILL, "Bnd": CHOWN | KILL, "Amb": KILL}


NESTED = """
import sys
from helpers_identity import capabilities, look
from helpers_lib import starter
for way in ("spawn", "direct"):
    with starter(way) as start:
        print(capabilities(look(start, capabilities=eval(sys.argv[1]))))
"""


def nested(outer, inner, **options):
    """The sets of a process started with `inner` by one that was started with `outer`."""
    env = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", NESTED, repr(inner)]
    done = holdfast.run(command, env=env, capabilities=outer, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    kept, direct = map(eval, done.stdout.splitlines())
    assert kept == direct
    return kept


@root_only
def test_what_we_have_as_inheritable_or_ambient_is_bounded_too():
    seen = nested({"ambient": ["chown", "kill"]}, {"bounding": ["kill"]})
    assert seen == dict.fromkeys(("Inh", "Prm", "Eff", "Bnd", "Amb"), KILL)
    seen = nested({"ambient": ["chown", "kill"]}, {"bounding": []})
    assert set(seen.values()) == {0}


@root_only
def test_ambient_is_exactly_what_was_given():
    assert nested({"ambient": ["chown", "kill"]}, {"ambient": ["chown"]})["Amb"] == CHOWN
    assert nested({"ambient": ["chown", "kill"]}, {"ambient": []})["Amb"] == 0
    assert nested({"ambient": ["chown", "kill"]}, {})["Amb"] == CHOWN | KILL


@root_only
@pytest.mark.skipif(not is_root or not reachable_python(), reason="needs a Python that others can run")
def test_the_death_of_the_keeper_still_takes_it_along():
    """A change of identity forgets PDEATHSIG: it is set after all of them, and an exec with ambient ones keeps it."""
    ask = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    for more in ({}, {"capabilities": ["kill"]}, {"capabilities": {"ambient": ["kill"]}, "no_new_privs": True}):
        done = holdfast.run([reachable_python(), "-ISE", "-c", ask], capture_output=True, **NOBODY_ALONE, **more)
        assert done.stdout == b"9\n", more


# ---- refused


def refused(start, number, stage, **options):
    with pytest.raises(SpawnError) as caught:
        start(["true"], **options)
    assert (caught.value.errno, caught.value.stage) == (number, stage), caught.value
    assert f"stage: {stage}" in str(caught.value)


def test_cpus_that_are_not_there(start):
    """The kernel would take the others in silence."""
    refused(start, errno.EINVAL, "cpu_affinity", cpu_affinity=[NO_CPU])
    refused(start, errno.EINVAL, "cpu_affinity", cpu_affinity=[ONE_CPU, NO_CPU])
    refused(start, errno.EINVAL, "cpu_affinity", cpu_affinity=[ONE_CPU, max(ALL_CPUS) + 1])


@root_only
def test_a_bounding_set_that_would_have_less_than_was_said():
    code = """if True:
        import errno, holdfast
        from helpers_lib import starter
        from test_identity import refused
        for way in ("spawn", "runner", "direct"):
            with starter(way) as start:
                for given in (["kill"], {"bounding": ["chown", "kill"]}, {"ambient": ["kill"]}):
                    refused(start, errno.EPERM, "capabilities", capabilities=given)
                start(["true"], capabilities=["chown"]).close()
    """
    env = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    bounding = [name for name in NAMES if own_bounding >> NAMES.index(name) & 1 and name != "kill"]
    command = [sys.executable, "-c", code]
    done = holdfast.run(command, env=env, capabilities={"bounding": bounding}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


ORDINARY = """
import errno, os, resource, sys, holdfast, holdfast.process.more
from helpers_lib import starter
from test_identity import refused
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
hard = resource.getrlimit(resource.RLIMIT_NICE)[1]
with starter(sys.argv[1]) as start:
    for number, stage, options in (
        (errno.EPERM, "setuid", {"user": 0}),
        (errno.EPERM, "setgid", {"group": 0}),
        (errno.EPERM, "setgroups", {"extra_groups": [0]}),
        (errno.EPERM, "capabilities", {"capabilities": ["kill"]}),
        (errno.EPERM, "capabilities", {"capabilities": []}),
        (errno.EPERM, "capabilities", {"capabilities": {"ambient": ["kill"]}}),
        (errno.EPERM, "capabilities", {"capabilities": {"bounding": ["kill"]}}),
        (errno.EACCES, "nice", {"nice": -5}),
        (errno.EPERM, "ioprio", {"ioprio": "realtime:0"}),
        (errno.EACCES, "oom_score_adj", {"oom_score_adj": -1000}),
        (errno.EPERM, "rlimit", {"rlimits": {"nice": hard + 1}}),
        (errno.EINVAL, "cpu_affinity", {"cpu_affinity": [8191]}),
    ):
        refused(start, number, stage, **options)
"""


@pytest.mark.parametrize("way", WAYS)
def test_each_that_an_ordinary_user_may_not_set(way):
    if is_root and not nobody_can_run_keeper():
        pytest.skip("the keeper is out of nobody's reach")
    program(ORDINARY, way)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter is written for x86_64")
def test_no_new_privs_that_a_filter_refuses():
    """Nothing else refuses it."""
    program("""
        import ctypes, errno, struct, sys, holdfast
        from helpers_lib import starter
        from test_identity import refused
        starters = [starter(way) for way in ("spawn", "direct")]
        libc = ctypes.CDLL(None)
        PRCTL, NO_NEW_PRIVS = 157, 38
        filter = b"".join(struct.pack("=HBBI", *each) for each in (
            (0x20, 0, 0, 0), (0x15, 0, 3, PRCTL), (0x20, 0, 0, 16), (0x15, 0, 1, NO_NEW_PRIVS),
            (0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7fff0000)))
        text = ctypes.create_string_buffer(filter)
        head = ctypes.create_string_buffer(struct.pack("@HP", len(filter) // 8, ctypes.addressof(text)))
        assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, head, 0, 0) == 0
        for each in starters:
            with each as start:
                refused(start, errno.EPERM, "no_new_privs", no_new_privs=True)
                start(["true"]).close()
    """)


# ---- misuse


@pytest.mark.parametrize(("kind", "options", "word"), [
    (ValueError, {"capabilities": ["net_bindservice"]}, "no such capability: 'net_bindservice'"),
    (ValueError, {"capabilities": {"effective": ["kill"]}}, "not 'effective'"),
    (ValueError, {"capabilities": {"ambient": ["kill", "chown"], "bounding": ["chown"]}}, "bounding has not: kill"),
    (TypeError, {"capabilities": "kill"}, "list of names"),
    (TypeError, {"capabilities": {"ambient": "kill"}}, "list of names"),
    (TypeError, {"capabilities": [5]}, "a name, not 5"),
    (TypeError, {"no_new_privs": "yes"}, "no_new_privs"),
    (ValueError, {"ioprio": "best-effort:8"}, "no such ioprio: 'best-effort:8'"),
    (ValueError, {"ioprio": "idle:1"}, "no such ioprio"),
    (TypeError, {"ioprio": 3}, "must be a string"),
    (ValueError, {"oom_score_adj": 1001}, "between -1000 and 1000, not 1001"),
    (TypeError, {"oom_score_adj": 1.5}, "oom_score_adj must be a number"),
    (TypeError, {"oom_score_adj": True}, "oom_score_adj must be a number"),
    (ValueError, {"cpu_affinity": []}, "no CPU"),
    (ValueError, {"cpu_affinity": [-1]}, "from 0 to 8191"),
    (ValueError, {"cpu_affinity": [CPUS_MAX]}, "from 0 to 8191"),
    (ValueError, {"cpu_affinity": "0-999999999"}, "from 0 to 8191"),
    (ValueError, {"cpu_affinity": "999999998-999999999"}, "from 0 to 8191"),
    (ValueError, {"cpu_affinity": "3-1"}, "not CPUs: '3-1'"),
    (ValueError, {"cpu_affinity": "all"}, "not CPUs"),
    (ValueError, {"cpu_affinity": ""}, "not CPUs"),
    (TypeError, {"cpu_affinity": ["0"]}, "a CPU is a number"),
    (TypeError, {"cpu_affinity": [True]}, "a CPU is a number"),
])  # fmt: skip
def test_misuse_is_found_before_anything_is_started(kind, options, word):
    with pytest.raises(kind) as caught:
        holdfast.spawn(["true"], **options)
    assert word in str(caught.value)
    assert not isinstance(caught.value, SpawnError)


def test_what_the_words_mean():
    assert capability_sets(["CAP_KILL", "kill", "BPF"]) == {"ambient": ("kill", "bpf"), "bounding": ("kill", "bpf")}
    assert capability_sets({}) == {}
    assert as_bits(NAMES) == (1 << len(NAMES)) - 1
    assert [io_priority(text) for text in ("none", "realtime:0", "best-effort:7", "idle")] == [0, 8192, 16391, 24576]
    assert cpu_numbers("0-3, 5,4") == (0, 1, 2, 3, 4, 5)
    assert cpu_numbers(iter([7, 1, 7])) == (1, 7)
    assert pack_more() == b""
    assert len(pack_more(cpus=[8191])) == 56 + 1024
    assert len(pack_more(cpus=[0])) == 56 + 8


def test_every_capability_of_this_kernel_has_its_name():
    """The last one that the kernel knows, and the numbers of a few, from capabilities(7)."""
    assert len(NAMES) == len(set(NAMES)) > int(read("/proc/sys/kernel/cap_last_cap"))
    assert [NAMES.index(name) for name in ("chown", "kill", "sys_admin", "setfcap", "bpf")] == [0, 5, 21, 31, 39]
