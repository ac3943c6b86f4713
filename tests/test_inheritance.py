"""A child has what its owner has at the time of the spawn, exactly as with subprocess (done-when 7)."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_lib import NOBODY, WAYS, is_root, nobody_can_run_keeper, program, read, root_only, starter

import holdfast
from holdfast import DEVNULL, PIPE, STDOUT

# In a program of its own, which it changes: views() is what a child of subprocess and a child of each way
# of ours has.  Everything that may be out of reach later is opened before.
TABLE = """
import ctypes, fcntl, json, os, resource, signal, socket, subprocess, sys, termios, threading, time
import holdfast
from helpers_lib import descriptors, starter, read
from helpers_wait import eventually
holdfast.spawn, holdfast.run
probe = read(os.path.join(os.environ["PYTHONPATH"], "probe_state.py"))
python = os.environ.get("HOLDFAST_TEST_PYTHON", sys.executable)
libc = ctypes.CDLL(None, use_errno=True)

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

def parse(out):
    status, _, state = out.decode("utf-8", "surrogateescape").partition("\\n=\\n")
    view = json.loads(state) if state else {}
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key in ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff",
                   "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Cpus_allowed", "Mems_allowed", "THP_enabled"):
            view["cat " + key] = value.strip()
    return view

def views():
    # cat shows what exec handed over; the interpreter, which changes signals itself, shows the rest
    commands = [["/bin/cat", "/proc/self/status"], [python, "-ISE", "-c", probe]]
    def ask(popen):
        outs = []
        for command in commands:
            process = popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            out, _ = process.communicate()
            if isinstance(process, holdfast.Process):
                assert process.wait().ok, (command, process)
                process.close()
            else:
                assert process.returncode == 0, (command, process)
            outs.append(out)
        return parse(b"\\n=\\n".join(outs))
    result = {"popen": ask(subprocess.Popen)}
    for way in ("spawn", "direct"):
        with starter(way) as start:
            result[way] = ask(start)
    return result

def check(found):
    theirs = found["popen"]
    for way, view in found.items():
        assert view == theirs, (way, {key: (view[key], theirs[key]) for key in view if view[key] != theirs[key]})

before = views()
check(before)
"""
AFTER = """
after = views()
check(after)
changed = {key for key in after["spawn"] if after["spawn"][key] != before["spawn"][key]}
assert changed >= expected, (changed, expected)
"""

# name: (what of the view must have changed, needs root, the change)
CHANGES = {
    "cwd": ({"cwd"}, False, "os.chdir('/usr')"),
    "a removed cwd": ({"cwd"}, False, "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"),
    "umask": ({"cat Umask"}, False, "os.umask(0o123)"),
    "environment": ({"environ"}, False, "os.environ['HOLDFAST_NEW'] = 'x'; os.environ.pop('HOME', None)"),
    "rlimits": ({"limits"}, False, """
for which, soft in ((resource.RLIMIT_NOFILE, 77), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, 4 << 20)):
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))
resource.setrlimit(resource.RLIMIT_CPU, (1000, 2000))
"""),
    "hard limit of descriptors": ({"limits"}, False, "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))"),
    "nice": ({"nice", "priority"}, False, "os.nice(3)"),
    "batch scheduling": ({"policy"}, False, "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"),
    "idle scheduling": ({"policy"}, False, "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))"),
    "real-time scheduling": ({"policy", "rt_priority"}, True,
                             "os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(7))"),
    "scheduling reset on fork": (set(), True,
                                 "os.sched_setscheduler(0, os.SCHED_RR | 0x40000000, os.sched_param(7))"),
    "affinity": ({"cat Cpus_allowed"}, False, """
if len(os.sched_getaffinity(0)) < 2:
    raise SystemExit(0)
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
"""),
    "ignored signals": ({"cat SigIgn"}, False, """
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, 40):
    signal.signal(number, signal.SIG_IGN)
"""),
    "default signals": ({"cat SigIgn"}, False, """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = views()
signal.signal(signal.SIGHUP, signal.SIG_DFL); signal.signal(signal.SIGPIPE, signal.SIG_DFL)
"""),
    "handled signals": (set(), False, """
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, 40):
    signal.signal(number, lambda *_: None)
"""),
    "signal mask": ({"cat SigBlk"}, False,
                    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR2, 35})"),
    "session": ({"session", "pgrp"}, False, "os.setsid()"),
    "process group": ({"pgrp"}, False, "os.setpgid(0, 0)"),
    "controlling terminal": ({"tty", "session"}, False, """
os.setsid()
master, slave = os.openpty()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
"""),
    "inheritable descriptors": (set(), False, """
for fd in (os.dup(2), os.open("/", os.O_RDONLY), os.openpty()[0]):
    os.set_inheritable(fd, True)
os.dup2(2, 200)
"""),
    "oom_score_adj": ({"oom_score_adj"}, False, "write('/proc/self/oom_score_adj', '321')"),
    "coredump_filter": ({"coredump_filter"}, False, "write('/proc/self/coredump_filter', '0x7')"),
    "no_new_privs": ({"cat NoNewPrivs"}, False, "assert libc.prctl(38, 1, 0, 0, 0) == 0"),
    "personality": ({"personality"}, False, "assert libc.personality(0x0040000) >= 0"),
    "timer slack": ({"timerslack_ns"}, False, "assert libc.prctl(29, 123456, 0, 0, 0) == 0"),
    "huge pages": ({"cat THP_enabled"}, False, "assert libc.prctl(41, 1, 0, 0, 0) == 0"),
    "io priority": ({"ioprio"}, False, "assert libc.syscall(251, 1, 0, (2 << 13) | 7) == 0"),
    "groups": ({"cat Groups"}, True, "os.setgroups([7, 70000])"),
    "group": ({"cat Gid"}, True, "os.setresgid(65534, 65534, 65534)"),
    "user": ({"cat Uid", "cat CapEff"}, True, "os.setresuid(65534, 65534, 65534)"),
    "effective user": ({"cat Uid"}, True, "os.seteuid(65534)"),
    "real user": ({"cat Uid"}, True, "os.setresuid(65534, 0, 0)"),
    "bounding set": ({"cat CapBnd", "cat CapEff"}, True, "assert libc.prctl(24, 21, 0, 0, 0) == 0"),  # SYS_ADMIN
    "securebits": ({"securebits"}, True, "assert libc.prctl(28, 1 | 4, 0, 0, 0) == 0"),
    "ambient capabilities": ({"cat CapAmb", "cat CapEff", "cat Uid"}, True, """
# keep NET_BIND_SERVICE (10) over the change of ids, then make it inheritable and ambient
assert libc.prctl(8, 1, 0, 0, 0) == 0
os.setresuid(65534, 65534, 65534)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)(1 << 10, 1 << 10, 1 << 10, 0, 0, 0)
assert libc.capset(header, data) == 0
assert libc.prctl(47, 2, 10, 0, 0) == 0
"""),
    "namespaces": ({"namespaces"}, True, "assert libc.unshare(0x04000000 | 0x08000000) == 0"),  # UTS, IPC
    "seccomp": ({"cat Seccomp", "cat NoNewPrivs"}, False, """
assert libc.prctl(38, 1, 0, 0, 0) == 0
program = ctypes.create_string_buffer(bytes([6, 0, 0, 0, 0, 0, 0xff, 0x7f]))  # return ALLOW
class Prog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
prog = Prog(1, ctypes.addressof(program))
assert libc.prctl(22, 2, ctypes.byref(prog), 0, 0) == 0
"""),
}


def reachable_python():
    """An interpreter that other users can run too, for after a change of user; else None."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path):
            options = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if is_root else {}
            try:
                done = subprocess.run([path, "-ISE", "-c", "import json, ctypes"], **options, check=False,
                                      stderr=subprocess.DEVNULL)  # fmt: skip
            except OSError:
                continue
            if done.returncode == 0:
                return path
    return None


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_between_two_spawns(name, tmp_path):
    expected, needs_root, change = CHANGES[name]
    if needs_root and not is_root:
        pytest.skip("needs root")
    if "io priority" in name and os.uname().machine != "x86_64":
        pytest.skip("system call number known for x86-64 only")
    other_user = "65534" in change
    python = reachable_python() if other_user else sys.executable
    if other_user and not (python and nobody_can_run_keeper()):
        pytest.skip("no interpreter, or no keeper, that another user can reach")
    if name == "oom_score_adj" and int(read("/proc/self/oom_score_adj", "0")) >= 321:
        pytest.skip("oom_score_adj is high already")
    program(f"{TABLE}\nexpected = {expected!r}\n{change}\n{AFTER}", cwd=tmp_path,
            env={"HOLDFAST_TEST_PYTHON": python})  # fmt: skip


def cgroup_place():
    with open("/proc/self/cgroup") as file:
        own = next((line.split(":", 2)[2].strip() for line in file if line.startswith("0::")), None)
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if own is not None and os.path.exists(f"{root}{own}/cgroup.procs"):
            return f"{root}{own}".rstrip("/")
    return None


@root_only
def test_cgroup():
    place = cgroup_place()
    if place is None:
        pytest.skip("no cgroup v2 here")
    path = f"{place}/holdfast-test-{os.getpid()}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        program(f"""{TABLE}
with open({path + "/cgroup.procs"!r}, "w") as file:
    file.write("0")
expected = {{"cgroup"}}
{AFTER}
# A runner that was created elsewhere goes on elsewhere.
with holdfast.Runner() as runner:
    with open({place + "/cgroup.procs"!r}, "w") as file:
        file.write("0")
    show = ["cat", "/proc/self/cgroup"]
    assert {os.path.basename(path)!r} in runner.run(show, capture_output=True, text=True).stdout
    assert {os.path.basename(path)!r} not in holdfast.run(show, capture_output=True, text=True).stdout
""")
    finally:
        for _ in range(200):  # the kernel takes a moment over the last exit
            try:
                os.rmdir(path)
                break
            except OSError:
                subprocess.run(["sleep", "0.02"], check=True)
        else:
            pytest.fail("the cgroup could not be removed")


# ---- rights that were given up stay given up


@root_only
def test_an_owner_that_dropped_its_rights_never_gets_a_child_that_has_them():
    if not nobody_can_run_keeper():
        pytest.skip("the keeper is out of nobody's reach")
    program("""
        import locale, os, holdfast
        holdfast.run(["true"])
        runner = holdfast.Runner()
        assert runner.run(["true"]).status.ok  # an idle keeper with root's rights waits
        held = runner.spawn(["sleep", "99"])
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        command = ["sh", "-c", "id -u; id -ru; id -g; id -G; grep CapEff /proc/self/status"]
        for private in (True, False):
            out = holdfast.run(command, capture_output=True, text=True, private=private).stdout.split()
            assert out == ["65534"] * 4 + ["CapEff:", "0000000000000000"], out
        for call in (runner.run, runner.spawn):
            try:
                call(["id"])
            except RuntimeError as error:
                assert "have changed" in str(error), error
            else:
                raise AssertionError("a runner from before started a process")
        # A new one is fine, and its children are nobody's.
        with holdfast.Runner() as own:
            out = own.run(command, capture_output=True, text=True).stdout.split()
            assert out == ["65534"] * 4 + ["CapEff:", "0000000000000000"], out
        # What ran before can still be stopped: its keeper has the rights for that.
        assert held.stop(grace=5).empty and held.wait().signal == 15
        held.close()
        runner.close()
    """)


RUNNER_CHANGES = {
    "effective user": "os.seteuid(65534)",
    "groups": "os.setgroups([7])",
    "group": "os.setegid(65534)",
    "no_new_privs": "assert libc.prctl(38, 1, 0, 0, 0) == 0",
    "bounding set": "assert libc.prctl(24, 21, 0, 0, 0) == 0",
    "capabilities": """
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21, 0, 0, 0, 0)
assert libc.capset(header, data) == 0
""",
    "mount namespace": "assert libc.unshare(0x00020000) == 0",
    "network namespace": "assert libc.unshare(0x40000000) == 0",
    "uts namespace": "assert libc.unshare(0x04000000) == 0",
    "ipc namespace": "assert libc.unshare(0x08000000) == 0",
    "cgroup namespace": "assert libc.unshare(0x02000000) == 0",
    "pid namespace for children": "assert libc.unshare(0x20000000) == 0",
}


@root_only
@pytest.mark.parametrize("name", RUNNER_CHANGES)
def test_a_runner_refuses_after_a_change_of(name):
    program(f"""
import ctypes, os, holdfast
libc = ctypes.CDLL(None)
with holdfast.Runner() as runner:
    assert runner.run(["true"]).status.ok
    {RUNNER_CHANGES[name].strip().replace(chr(10), chr(10) + "    ")}
    try:
        runner.run(["true"])
    except RuntimeError as error:
        assert "have changed" in str(error), error
    else:
        raise AssertionError("started")
""")


def test_a_runner_s_children_have_the_runner_s_state(tmp_path):
    """Created, then the owner changes everything that it may: the children have what was there at creation."""
    program("""
        import ctypes, json, os, resource, signal, sys, holdfast
        from helpers_lib import read
        probe = read(os.path.join(os.environ["PYTHONPATH"], "probe_state.py"))
        def view(start):
            out = start([sys.executable, "-ISE", "-c", probe], capture_output=True).stdout
            state = json.loads(out)
            state["signals"] = [line for line in start(["cat", "/proc/self/status"], capture_output=True, text=True)
                                .stdout.splitlines() if line.startswith("SigIgn")]
            return state
        own = dict(os.environ)
        with holdfast.Runner() as runner:
            before = view(runner.run)
            assert before == view(holdfast.run)
            os.setsid()
            os.chdir("/usr"); os.umask(0o77); os.nice(2)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")
            assert view(runner.run) == before
            changed = view(holdfast.run)
            assert {k for k in changed if changed[k] != before[k]} >= {"cwd", "Umask", "nice", "limits", "session",
                                                                       "signals", "oom_score_adj"}, changed
            # The environment and the signal mask are the caller's at each spawn.
            os.environ["HOLDFAST_NEW"] = "1"
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            now = view(runner.run)
            assert {k for k in now if now[k] != before[k]} == {"environ", "SigBlk"}, now
            assert "HOLDFAST_NEW=1" in now["environ"]
    """, cwd=tmp_path, start_new_session=False)  # fmt: skip


def test_no_trace_of_the_previous_tenant(tmp_path):
    """Whatever one process was given, and whatever it did, the next one of the same keeper has nothing of it."""
    program("""
        import json, os, signal, subprocess, sys, holdfast
        from helpers_lib import keepers, read
        from helpers_wait import eventually
        probe = read(os.path.join(os.environ["PYTHONPATH"], "probe_state.py"))
        def view(run, **options):
            return json.loads(run([sys.executable, "-ISE", "-c", probe], capture_output=True, **options).stdout)
        with holdfast.Runner() as runner:
            clean = view(runner.run)
            assert clean == view(holdfast.run)
            extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
            options = dict(env={"SECRET": "x" * 100_000}, cwd="/usr", umask=0o777, pass_fds=extra, new_session=True,
                           nice=1, rlimits={"core": 0, "nofile": 33, "stack": 4 << 20}, on_owner_loss="keep",
                           stop_signal="KILL", stop_scope="tree", grace=0.5)
            if os.geteuid() == 0:
                options.update(user=65534, group=65534, extra_groups=[7])
                options["cwd"] = "/"
            with runner.spawn(["sh", "-c", "trap '' HUP INT TERM USR1; ulimit -n 20; umask 000; cd /; exit 3"],
                              **options) as tenant:
                assert tenant.wait().code == 3
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            # A tenant that leaves orphans behind, which are stopped, and one that did not start.
            runner.run(["sh", "-c", "trap '' TERM; (setsid sleep 99 &); exit 0"], grace=0.1)
            for bad in ({"cwd": "/no/such"}, {"rlimits": {999: 1}}, {"executable": "/no/such"}, {"pass_fds": [900]}):
                try:
                    runner.run(["true"], **bad, umask=0)
                except holdfast.SpawnError:
                    pass
            for fd in extra:
                os.close(fd)
            assert eventually(lambda: len(keepers()) == 2), keepers()  # the template, and one keeper for all of them
            assert view(runner.run) == clean
            # The secret is not in the keeper's memory either.
            keeper = [pid for pid in keepers() if b"x" * 5000 in memory(pid)] if os.geteuid() == 0 else []
            assert not keeper
    """.replace("        probe = read", """        def memory(pid):
            found = b""
            with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
                for line in maps:
                    if " rw" in line:
                        low, high = (int(n, 16) for n in line.split()[0].split("-"))
                        mem.seek(low)
                        found += mem.read(high - low)
            return found
        probe = read""", 1), cwd=tmp_path)  # fmt: skip


# ---- what each option changes


@pytest.fixture(params=WAYS)
def run(request):
    """Start a shell command with options; its stdout as text."""
    with starter(request.param) as start:

        def run(script, *args, **options):
            options.setdefault("stdout", PIPE)
            with start(["sh", "-c", script, "sh", *map(str, args)], **options) as process:
                out, _ = process.communicate(timeout=60)
                assert process.wait(60).ok, process.status
            return out.decode()

        yield run


def test_cwd_env_and_umask(run, tmp_path):
    assert run("pwd -P", cwd=tmp_path) == f"{os.path.realpath(tmp_path)}\n"
    assert run("pwd -P", cwd=os.fsencode(tmp_path)) == f"{os.path.realpath(tmp_path)}\n"
    assert run("umask", umask=0o027) == "0027\n"
    assert run("umask", umask=0) == "0000\n"
    environ = run("exec cat /proc/self/environ", env={b"B": b"\xc3\xa4", b"PATH": b"/bin:/usr/bin"}).split("\0")
    assert {each for each in environ if each[:4] != "PWD="} == {"B=ä", "PATH=/bin:/usr/bin", ""}


def test_standard_streams(run, tmp_path):
    with open(tmp_path / "in", "w+") as file:
        file.write("from a file\n")
        file.flush()
        file.seek(0)
        assert run("cat", stdin=file) == "from a file\n"
        file.seek(0)
        assert run("cat", stdin=file.fileno()) == "from a file\n"
    assert run("cat", stdin=DEVNULL) == ""
    assert run("echo a; echo b >&2", stderr=STDOUT) == "a\nb\n"
    with open(tmp_path / "out", "w+") as file:
        assert run("echo a; echo b >&2", stdout=file, stderr=STDOUT) == ""
        assert run("echo c; echo d >&2", stdout=DEVNULL, stderr=file) == ""
        file.seek(0)
        assert file.read() == "a\nb\nd\n"
    reader, writer = os.pipe()
    assert run("echo into a pipe", stdout=writer) == ""
    os.close(writer)
    assert os.read(reader, 100) == b"into a pipe\n"
    os.close(reader)


def test_crossed_streams():
    """stdout on our 2 and stderr on our 1: neither may overwrite the other on the way."""
    for way in WAYS:
        code = f"""
        import os, holdfast
        from helpers_lib import starter
        with starter({way!r}) as start:
            with start(["sh", "-c", "echo to out; echo to err >&2"], stdout=2, stderr=1) as process:
                assert process.wait(30).ok
            with start(["sh", "-c", "echo again >&2"], stdin=2, stdout=0, stderr=1) as process:
                assert process.wait(30).ok
        os.dup2(1, 2)
        """
        assert program(code) == "to err\nagain\n"


def test_pass_fds(run):
    pairs = [os.pipe() for _ in range(6)]
    fds = [fd for pair in pairs for fd in pair]
    script = 'for fd in /proc/self/fd/*; do echo ${fd##*/}; done; exec ls -l /proc/$$/fd'
    plain = run(script)
    listing = run(script, pass_fds=[*fds, fds[0]])
    for fd in fds:
        link = os.readlink(f"/proc/self/fd/{fd}")
        assert f" {fd} -> {link}" in listing and f" {fd} -> {link}" not in plain
        assert not os.get_inheritable(fd)
    # Numbers below 3 are there anyway; the order does not matter.
    assert run("echo ok", pass_fds=[2, 1, 0, *reversed(fds)]) == "ok\n"
    for fd in fds:
        os.close(fd)


def test_as_many_pass_fds_as_there_may_be(run):
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(237)]
    listing = run("ls /proc/self/fd | wc -l", pass_fds=fds)
    assert 237 + 3 <= int(listing) <= 237 + 5
    for fd in fds:
        os.close(fd)


def test_pass_fds_with_high_and_overlapping_numbers(run):
    """Sources and targets share numbers, and some lie where the child's own steps would put theirs."""
    pairs = {}
    low = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    for fd in (low[0], low[1], 100, 101, 255, 700):
        memory = os.memfd_create(f"number-{fd}", 0)
        os.dup2(memory, fd)
        if memory != fd:
            os.close(memory)
        pairs[fd] = f"number-{fd}"
    listing = run("exec ls -l /proc/self/fd", pass_fds=list(pairs), stdin=low[1], stderr=low[0])
    for fd, name in pairs.items():
        assert f" {fd} -> /memfd:{name}" in listing
    assert f" 0 -> /memfd:number-{low[1]}" in listing and f" 2 -> /memfd:number-{low[0]}" in listing
    for fd in {*pairs, *low}:
        os.close(fd)


def test_session_and_group(run):
    script = "cut -d' ' -f1,5,6 /proc/$$/stat"

    def ids(**options):
        return [int(n) for n in run(script, **options).split()]

    pid, group, session = ids()
    assert (group, session) == (os.getpgrp(), os.getsid(0)) and pid != group
    pid, group, session = ids(new_session=True)
    assert pid == group == session
    pid, group, session = ids(process_group=0)
    assert pid == group and session == os.getsid(0)
    leader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=0)
    assert ids(process_group=leader.pid)[1] == leader.pid
    leader.communicate()


def test_nice_and_rlimits(run):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert run("cut -d' ' -f19 /proc/$$/stat", nice=4) == f"{min(own + 4, 19)}\n"
    assert run("ulimit -n; ulimit -Hn", rlimits={"nofile": 99}) == "99\n99\n"
    assert run("ulimit -n; ulimit -Hn", rlimits={"NOFILE": (50, 99)}) == "50\n99\n"
    assert run("ulimit -c; ulimit -s", rlimits={"core": 0, resource.RLIMIT_STACK: 1 << 20}) == "0\n1024\n"
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY:
        assert run("ulimit -t", rlimits={"cpu": -1}) == "unlimited\n"


@root_only
def test_user_group_and_extra_groups(run):
    script = "id -u; id -ru; id -g; id -rg; id -G; grep -E '^(Uid|Gid)' /proc/$$/status"
    out = run(script, user=65534, group=65533, extra_groups=[7, 8]).splitlines()
    assert out[:4] == ["65534", "65534", "65533", "65533"] and set(out[4].split()) == {"65533", "7", "8"}
    assert out[5].split()[1:] == ["65534"] * 4 and out[6].split()[1:] == ["65533"] * 4
    assert run("id -u; id -G", user="nobody", extra_groups=[]).split()[0] == "65534"
    assert run("id -G", extra_groups=range(1000, 1500)).count(" ") >= 499
    assert run("id -un", user="daemon", group="daemon", extra_groups=["daemon"]) == "daemon\n"


def test_shell_executable_and_arguments():
    for way in WAYS:
        with starter(way) as start:

            def out(*args, start=start, **options):
                with start(*args, stdout=PIPE, **options) as process:
                    return process.communicate(timeout=60)[0]

            assert out("echo $0 $((1 + 1))", shell=True) == b"/bin/sh 2\n"
            assert out(b"echo bytes", shell=True) == b"bytes\n"
            assert out(["not-this", "-c", "echo $0"], executable="/bin/sh") == b"not-this\n"
            assert out(["echo", b"b\xff", "s\udcfe", Path("/p")]) == b"b\xff s\xfe /p\n"
            assert out(("printf", "%s,", "", " ", "*", "'")) == b", ,*,',"
            assert out(Path("/bin/pwd"), cwd="/usr") == b"/usr\n"


@pytest.mark.parametrize("way", ["module", "runner", "direct"])
def test_run_options(way):
    with holdfast.Runner() as runner:
        run = runner.run if way == "runner" else holdfast.run
        more = {"private": False} if way == "direct" else {}
        done = run(["cat"], input="zwölf\n", capture_output=True, encoding="utf-8", **more)
        assert (done.stdout, done.stderr, done.returncode) == ("zwölf\n", "", 0)
        assert run(["cat"], input=b"\xff", capture_output=True, **more).stdout == b"\xff"
        lax = {"encoding": "ascii", "errors": "replace"}
        assert run(["cat"], input=b"\xff", capture_output=True, **lax, **more).stdout == "\ufffd"
        assert run(["printf", r"a\r\nb\rc\n"], capture_output=True, text=True, **more).stdout == "a\nb\nc\n"
        assert run(["cat"], input=b"", stdout=PIPE, **more).stdout == b""
        assert run(["true"], **more).stdout is None
        with pytest.raises(UnicodeDecodeError):
            run(["printf", r"\377"], capture_output=True, encoding="utf-8", **more)
        with pytest.raises(holdfast.CalledProcessError) as caught:
            run(["sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True, text=True, check=True, **more)
        error = caught.value
        assert (error.returncode, error.stdout, error.stderr, error.output) == (3, "out\n", "err\n", "out\n")
        assert error.cmd[0] == "sh" and error.status.code == 3 and "exit code 3" in str(error)
        with pytest.raises(holdfast.CalledProcessError, match="signal 9"):
            run(["sh", "-c", "kill -9 $$"], check=True, **more)
        with pytest.raises(holdfast.CalledProcessError):
            run(["false"], **more).check_returncode()
        run(["true"], check=True, **more).check_returncode()
        with pytest.raises(holdfast.TimeoutExpired) as caught:
            run(["sh", "-c", "echo so far; exec sleep 99"], capture_output=True, text=True, timeout=0.2, **more)
        assert caught.value.stdout == "so far\n" and caught.value.report.empty
