"""What cannot start says why, at which stage, and leaves nothing behind (done-when 6)."""

import errno
import io
import os
import pickle
import resource
import subprocess
import sys
import uuid

import pytest
from helpers_lib import (
    WAYS,
    descriptors,
    keepers,
    marked,
    nobody_can_run_keeper,
    program,
    root_only,
    starter,
)  # fmt: skip
from helpers_wait import eventually

import holdfast
from holdfast import DEVNULL, PIPE, STDOUT, SpawnError


@pytest.fixture(params=WAYS)
def start(request):
    with starter(request.param) as start:
        yield start


@pytest.fixture
def place(tmp_path):
    """Things that cannot be run."""
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "plain").chmod(0o644)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad-interpreter").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bad-interpreter").chmod(0o755)
    (tmp_path / "garbage").write_bytes(b"\x7fELF is a lie")
    (tmp_path / "garbage").chmod(0o755)
    return tmp_path


def refused(start, error, stage, *args, filename=None, **options):
    with pytest.raises(SpawnError) as caught:
        start(*args, **options)
    e = caught.value
    assert type(e).__name__ == "SpawnError" and (e.errno, e.stage) == (error, stage), e
    if filename is not None:
        assert e.filename == filename and repr(filename) in str(e)
    assert os.strerror(error) in str(e) and f"stage: {stage}" in str(e)
    return e


CASES = {
    "missing": (errno.ENOENT, "exec"),
    "plain": (errno.EACCES, "exec"),
    "folder": (errno.EACCES, "exec"),
    "bad-interpreter": (errno.ENOENT, "exec"),
    "garbage": (errno.ENOEXEC, "exec"),
    "plain/below": (errno.ENOTDIR, "exec"),
    "x" * 300: (errno.ENAMETOOLONG, "exec"),
}


@pytest.mark.parametrize("name", CASES)
def test_programs_that_cannot_run(start, place, name):
    error, stage = CASES[name]
    path = str(place / name)
    refused(start, error, stage, [path], filename=path)
    with pytest.raises(OSError) as theirs:
        subprocess.Popen([path])
    assert theirs.value.errno == error


def test_programs_looked_up_along_the_path(start, place):
    refused(start, errno.ENOENT, "exec", ["no-such-program-anywhere"], filename="no-such-program-anywhere")
    refused(start, errno.ENOENT, "exec", [""])
    refused(start, errno.EACCES, "exec", ["plain"], env={"PATH": f"/nowhere:{place}"}, filename="plain")
    refused(start, errno.ENOENT, "exec", ["true"], env={"PATH": "/nowhere"})
    refused(start, errno.ENOENT, "exec", ["true"], executable="/no/such", filename="/no/such")
    refused(start, errno.ENOENT, "exec", [b"/no/such/bytes"], filename=b"/no/such/bytes")
    refused(start, errno.ENOENT, "exec", "true", shell=True, executable="/no/shell", filename="/no/shell")
    # An empty entry means the current directory, no PATH at all the system's default: as for execvp.
    with start(["true"], env={}) as process:
        assert process.wait(30).ok


def test_working_directories(start, place):
    missing = str(place / "missing")
    refused(start, errno.ENOENT, "chdir", ["true"], cwd=missing, filename=missing)
    plain = str(place / "plain")
    refused(start, errno.ENOTDIR, "chdir", ["true"], cwd=plain, filename=plain)
    e = refused(start, errno.ENOENT, "chdir", ["no-such-program"], cwd=place / "missing")
    assert e.filename == place / "missing"


def test_descriptors_that_are_closed(start):
    fd = 900  # high enough that no pipe of ours takes the number
    refused(start, errno.EBADF, "descriptors", ["true"], stdin=fd)
    refused(start, errno.EBADF, "descriptors", ["true"], stdout=PIPE, stderr=fd)
    refused(start, errno.EBADF, "descriptors", ["true"], pass_fds=[fd], stdin=PIPE)
    with open("/dev/null") as file:
        pass
    with pytest.raises(ValueError, match="closed"):
        start(["true"], stdin=file)
    with pytest.raises(io.UnsupportedOperation):
        start(["true"], stdin=io.BytesIO())


def test_settings_that_the_kernel_refuses(start):
    refused(start, errno.EINVAL, "rlimit", ["true"], rlimits={999: 1})
    refused(start, errno.EINVAL, "rlimit", ["true"], rlimits={"nofile": (100, 10)})
    refused(start, errno.EPERM, "setpgid", ["true"], process_group=2**22 + 1)


@root_only
def test_users_that_the_kernel_refuses(start):
    # Without the right to change ids: EPERM at the first of them, never a child with the old identity.
    program("""
        import errno, os, sys, holdfast
        from helpers_lib import starter
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        for options, stage in (({"user": 0}, "setuid"), ({"group": 0}, "setgid"), ({"extra_groups": [0]}, "setgroups"),
                               ({"user": 1, "group": 1, "extra_groups": []}, "setgroups"), ({"nice": -5}, "nice")):
            with starter(sys.argv[1]) as start:
                try:
                    start(["true"], **options)
                except holdfast.SpawnError as e:
                    assert e.stage == stage and e.errno in (errno.EPERM, errno.EACCES), (e, stage)
                else:
                    raise AssertionError(options)
    """, "spawn") if nobody_can_run_keeper() else pytest.skip("the keeper is out of nobody's reach")  # fmt: skip


# ---- misuse: refused before anything is started

MISUSE = [
    (TypeError, ("true",), {}),
    (TypeError, (b"true",), {}),
    (TypeError, (["true"],), {"shell": True}),
    (TypeError, (["true", 1],), {}),
    (TypeError, (["true", None],), {}),
    (TypeError, (7,), {}),
    (ValueError, ([],), {}),
    (ValueError, (["tr\0ue"],), {}),
    (ValueError, (["true", "a\0b"],), {}),
    (ValueError, (["true"],), {"cwd": "a\0b"}),
    (TypeError, (["true"],), {"cwd": 3}),
    (ValueError, (["true"],), {"executable": "a\0b"}),
    (ValueError, (["true"],), {"env": {"A": "a\0b"}}),
    (ValueError, (["true"],), {"env": {"A\0B": "a"}}),
    (ValueError, (["true"],), {"env": {"A=B": "a"}}),
    (ValueError, (["true"],), {"env": {"=A": "a"}}),
    (ValueError, (["true"],), {"env": {"": "a"}}),
    (TypeError, (["true"],), {"env": {"A": 1}}),
    (TypeError, (["true"],), {"env": {1: "a"}}),
    (TypeError, (["true"],), {"env": ["A=a"]}),
    (TypeError, (["true"],), {"env": []}),
    (TypeError, (["true"],), {"stdin": "x"}),
    (ValueError, (["true"],), {"stdin": -4}),
    (ValueError, (["true"],), {"stdin": STDOUT}),
    (ValueError, (["true"],), {"stdout": STDOUT}),
    (ValueError, (["true"],), {"stdin": True}),
    ((TypeError, AttributeError), (["true"],), {"stdout": "file"}),
    (ValueError, (["true"],), {"pass_fds": [-1]}),
    (ValueError, (["true"],), {"pass_fds": ["3"]}),
    (ValueError, (["true"],), {"pass_fds": range(3, 300)}),
    (ValueError, (["true"],), {"new_session": True, "process_group": 0}),
    (ValueError, (["true"],), {"process_group": -1}),
    (TypeError, (["true"],), {"process_group": "0"}),
    (ValueError, (["true"],), {"process_group": 2**40}),
    (ValueError, (["true"],), {"umask": 0o1000}),
    (ValueError, (["true"],), {"umask": -1}),
    (TypeError, (["true"],), {"umask": "022"}),
    (ValueError, (["true"],), {"user": "no-such-user-here"}),
    (ValueError, (["true"],), {"group": "no-such-group-here"}),
    (ValueError, (["true"],), {"extra_groups": ["no-such-group-here"]}),
    (ValueError, (["true"],), {"extra_groups": range(2000)}),
    (ValueError, (["true"],), {"user": -1}),
    (ValueError, (["true"],), {"user": 2**32 - 1}),
    (ValueError, (["true"],), {"group": 2**40}),
    (TypeError, (["true"],), {"user": 1.5}),
    (TypeError, (["true"],), {"user": True}),
    (TypeError, (["true"],), {"nice": "5"}),
    (ValueError, (["true"],), {"nice": 2**40}),
    (ValueError, (["true"],), {"rlimits": {"no-such-limit": 1}}),
    (ValueError, (["true"],), {"rlimits": {"nofile": (1, 2, 3)}}),
    (TypeError, (["true"],), {"rlimits": {"nofile": "5"}}),
    (TypeError, (["true"],), {"rlimits": {"nofile": 1.5}}),
    (ValueError, (["true"],), {"stop_signal": 0}),
    (ValueError, (["true"],), {"stop_signal": 65}),
    (ValueError, (["true"],), {"stop_signal": "SIGNOTHING"}),
    (ValueError, (["true"],), {"stop_scope": "all"}),
    (ValueError, (["true"],), {"grace": -1}),
    (ValueError, (["true"],), {"grace": float("nan")}),
    (ValueError, (["true"],), {"grace": float("inf")}),
    (TypeError, (["true"],), {"grace": "10s"}),
    (TypeError, (["true"],), {"grace": None}),
    (TypeError, (["true"],), {"no_such_option": 1}),
]


@pytest.mark.parametrize("i", range(len(MISUSE)))
def test_misuse(i):
    error, args, options = MISUSE[i]
    fds = descriptors()
    with holdfast.Runner() as runner:
        runner_fds = descriptors()
        for start in (holdfast.spawn, runner.spawn, lambda *a, **k: holdfast.spawn(*a, private=False, **k)):
            with pytest.raises(error) as caught:
                start(*args, stderr=PIPE, **options)
            assert not isinstance(caught.value, OSError) and str(caught.value)
        assert descriptors() == runner_fds
    assert descriptors() == fds


def test_an_option_that_there_is_not_is_one_of_spawn():
    for start in (holdfast.spawn, holdfast.run, holdfast.capture):
        with pytest.raises(TypeError, match=r"^spawn\(\) got an unexpected keyword argument 'colour'"):
            start(["true"], colour="red")


def test_misuse_of_loss_options():
    with pytest.raises(ValueError, match="on_owner_loss"):
        holdfast.spawn(["true"], on_owner_loss="linger")
    for policy in ("stop", "keep"):  # "kill" the kernel can do: test_auto_reap.py
        with pytest.raises(ValueError, match="private=False"):
            holdfast.spawn(["true"], private=False, on_owner_loss=policy)
    with holdfast.Runner() as runner, pytest.raises(ValueError, match="private"):
        runner.spawn(["true"], private=False)


def test_misuse_of_run():
    for run in (holdfast.run,):
        with pytest.raises(ValueError, match="capture_output"):
            run(["true"], capture_output=True, stdout=PIPE)
        with pytest.raises(ValueError, match="stdin and input"):
            run(["true"], stdin=PIPE, input=b"")
        with pytest.raises(TypeError, match="text=True"):
            run(["cat"], input="text")
        with pytest.raises(ValueError, match="negative"):
            run(["true"], timeout=-1)
        with pytest.raises(ValueError, match="negative"):
            run(["true"], timeout=float("nan"))


def test_misuse_of_a_handle(start):
    with start(["cat"], stdin=PIPE) as process:
        for signal in (0, 65, -1, "SIGNOTHING", ""):
            with pytest.raises(ValueError, match="signal"):
                process.send_signal(signal)
            with pytest.raises(ValueError, match="signal"):
                process.stop(signal=signal)
        for grace in (-1, float("nan")):
            with pytest.raises(ValueError, match="grace"):
                process.stop(grace)
        with pytest.raises(TypeError):
            process.send_signal(None)
        assert process.poll() is None
    process.close()  # again: nothing
    with pytest.raises(ValueError, match="closed"):
        process.fileno()
    process.send_signal("TERM")  # it has ended: nothing happens
    assert process.stop().empty


# ---- the exception itself


def test_spawn_error_pickles(start):
    e = refused(start, errno.ENOENT, "exec", ["/no/such/program"])
    again = pickle.loads(pickle.dumps(e))
    assert isinstance(again, SpawnError) and type(again).__name__ == "SpawnError" and str(again) == str(e)
    assert (again.errno, again.strerror, again.stage, again.filename) == (e.errno, e.strerror, e.stage, e.filename)
    assert str(e) == "[Errno 2] No such file or directory: '/no/such/program' (stage: exec)"
    e = refused(start, errno.EINVAL, "rlimit", ["true"], rlimits={999: 1})
    again = pickle.loads(pickle.dumps(e))
    assert str(again) == str(e) == "[Errno 22] Invalid argument (stage: rlimit)" and again.filename is None


# ---- too large


def largest(fits, low, high):
    """The largest n for which fits(n), by halving; fits(low) and not fits(high)."""
    assert fits(low) and not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits(start, **options):
    try:
        process = start(["/bin/true", *options.pop("more", ())], **options)
    except OSError as error:
        assert error.errno == errno.E2BIG, error
        assert not isinstance(error, SpawnError) or error.stage == "exec"
        return False
    assert process.wait() is not None
    if isinstance(process, holdfast.Process):
        process.close()
    return True


def filled(size):
    """An environment of `size` bytes, as the kernel counts them without pointers."""
    env, block = {}, 100_000
    for i in range(size // block + 1):
        length = min(block, size - i * block)
        env[f"V{i:03}"] = "x" * max(0, length - 6)  # name, "=", NUL
    return env


def test_e2big_of_the_environment_comes_where_subprocess_has_it(start):
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    top = 8 << 20 if stack == resource.RLIM_INFINITY else max(stack // 4, 128 << 10)
    want = largest(lambda n: fits(subprocess.Popen, env=filled(n)), 1000, top + 100_000)
    assert fits(start, env=filled(want)) and not fits(start, env=filled(want + 1))
    assert want > 1 << 20 or stack < 8 << 20


def test_e2big_of_arguments_comes_where_subprocess_has_it(start):
    want = largest(lambda n: fits(subprocess.Popen, more=["x" * n]), 1000, 1 << 20)
    assert fits(start, more=["x" * want]) and not fits(start, more=["x" * (want + 1)])
    many = largest(lambda n: fits(subprocess.Popen, more=["x"] * n, env={}), 1000, 1 << 21)
    assert fits(start, more=["x"] * many, env={}) and not fits(start, more=["x"] * (many + 1), env={})


def test_an_environment_of_a_megabyte_and_a_half_starts_and_arrives(start):
    env = {f"V{i:03}": "x" * 99_995 for i in range(16)}
    code = "import os; e = os.environ; print(sum(len(k) + len(v) + 2 for k, v in e.items() if k[0] == 'V'))"
    with start([sys.executable, "-ISE", "-c", code], env=env, stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert int(out) > 1.5 * (1 << 20)


# ---- nothing is left


@pytest.mark.parametrize("way", WAYS)
def test_a_thousand_failures_leave_nothing(way, place):
    marker = f"HOLDFAST_TEST={uuid.uuid4()}"
    env = {**os.environ, "HOLDFAST_TEST": marker.partition("=")[2]}
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    attempts = [
        ({"args": ["/no/such/program"]}, "exec"),
        ({"args": [str(place / "plain")], "stdin": PIPE, "stdout": PIPE, "stderr": PIPE}, "exec"),
        ({"args": ["true"], "cwd": "/no/such/directory", "stdin": DEVNULL}, "chdir"),
        ({"args": ["true"], "stdin": fd + 500, "stdout": PIPE}, "descriptors"),
        ({"args": ["true"], "rlimits": {999: 1}, "stderr": PIPE}, "rlimit"),
    ]
    with starter(way) as start:
        start(["true"]).close()
        before = descriptors()
        for i in range(1000):
            options, stage = attempts[i % len(attempts)]
            with pytest.raises(SpawnError) as caught:
                start(**options, env=env)
            assert caught.value.stage == stage
        assert descriptors() == before
        with start(["sh", "-c", "exit 5"]) as process:
            assert process.wait(30).code == 5
        if way == "runner":
            assert eventually(lambda: len(keepers()) <= 2)  # the template and one that is used again and again
    assert eventually(lambda: not keepers())
    assert not marked(marker)


def test_large_requests_that_fail_leave_nothing(start):
    start(["true"]).close()
    before = descriptors()
    for _ in range(5):
        with pytest.raises(SpawnError):
            start(["/no/such/program"], env=filled(1_000_000), stdin=PIPE, stdout=PIPE)
        with pytest.raises(SpawnError) as caught:
            start(["/bin/true"], env=filled(16 << 20), stdin=PIPE)
        assert caught.value.errno == errno.E2BIG
    assert descriptors() == before


# ---- the machine's limits

TABLE_FULL = """
import errno, os, resource, sys, holdfast
from helpers_lib import descriptors, keepers, starter
from helpers_wait import eventually

def exhaust(free, hog):
    # all but `free` numbers of the table are taken
    try:
        while True:
            hog.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE
    for _ in range(free):
        os.close(hog.pop())

options = {
    "plain": {},
    "pipes": {"stdin": holdfast.PIPE, "stdout": holdfast.PIPE, "stderr": holdfast.PIPE},
    "null": {"stdin": holdfast.DEVNULL, "stdout": holdfast.DEVNULL},
    "large": {"env": {f"V{i}": "x" * 100_000 for i in range(3)}},
}[sys.argv[2]]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
outcomes = []
for idle in ((False, True) if sys.argv[1] == "runner" else (False,)):
    with starter(sys.argv[1]) as start:
        if idle:
            start(["true"]).close()  # a keeper that waits for the next process
        for free in range(0, 20):
            hog = []
            exhaust(free, hog)
            try:
                process = start(["sh", "-c", "exit 3"], **options)
            except holdfast.SpawnError as error:
                assert error.errno == errno.EMFILE and str(error), error
                process = None
            while hog:
                os.close(hog.pop())
            if process is not None:
                assert process.wait(30).code == 3
                process.close()
            outcomes.append(process is not None)
            # whatever happened, the next one starts
            with start(["sh", "-c", "exit 4"]) as process:
                assert process.wait(30).code == 4
assert outcomes[0] is False and outcomes[-1] is True, outcomes
assert eventually(lambda: not keepers())
print(outcomes)
"""


@pytest.mark.parametrize("kind", ["plain", "pipes", "null", "large"])
@pytest.mark.parametrize("way", WAYS)
def test_a_full_descriptor_table(way, kind):
    program(TABLE_FULL, way, kind)


PROCESS_LIMIT = """
import ctypes, errno, os, resource, sys, holdfast
from helpers_lib import descriptors, keepers, starter
from helpers_wait import eventually
way, user = sys.argv[1], int(sys.argv[2])
holdfast.spawn  # load what the other user may not be able to read
# Keepers that have ended come to us and are reaped at once: with an init that takes its time their
# zombies would count against the limit.
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
stages, started = set(), []
for room in range(1, 8):
    # the runner's children have the limit that the runner was created with; we count ourselves
    resource.setrlimit(resource.RLIMIT_NPROC, (room, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
    before = descriptors()
    try:
        with starter(way) as start:
            for _ in range(10):
                process = start(["true"], stdout=holdfast.PIPE)
                assert process.wait(30).ok
                process.close()
                started.append(room)
    except holdfast.SpawnError as error:
        assert error.errno == errno.EAGAIN, error
        stages.add(error.stage)
    assert eventually(lambda: descriptors() == before), [os.readlink(f"/proc/self/fd/{fd}") for fd in descriptors()]
    assert eventually(lambda: not keepers())
assert stages and stages <= {"launch", "clone"}, stages
assert 1 not in started and started.count(7) == 10, started
"""


@root_only
@pytest.mark.parametrize("way", WAYS)
def test_the_process_limit_of_a_user(way):
    if not nobody_can_run_keeper():
        pytest.skip("the keeper is out of another user's reach")
    program(PROCESS_LIMIT, way, 3_000_000_000 + uuid.uuid4().int % 1_000_000_000)  # an id that nobody else uses


def test_a_keeper_that_cannot_be_run_is_named(tmp_path):
    """A wheel unpacked without its permissions, or on a file system mounted noexec."""
    program("""
        import os, shutil, sys, holdfast
        from holdfast.process import keeper
        broken = os.path.join(sys.argv[1], "holdfast-keeper")
        for prepare, number, word in ((lambda: None, 2, "No such file"),
                                      (lambda: shutil.copy(keeper.KEEPER, broken), 13, "chmod +x")):
            prepare()
            if os.path.exists(broken):
                os.chmod(broken, 0o644)
            keeper.KEEPER, was = broken, keeper.KEEPER
            keeper._KEEPER = os.fsencode(broken)
            for start in (lambda: holdfast.spawn(["true"]), holdfast.Runner):
                try:
                    start()
                except holdfast.SpawnError as error:
                    assert (error.errno, error.stage, error.filename) == (number, "launch", broken), error
                    assert word in str(error), error
                else:
                    raise AssertionError("it started")
            keeper.KEEPER = was
    """, tmp_path)  # fmt: skip


