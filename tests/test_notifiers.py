"""The ladder: each rung does the same (ladder/rung_suite.py), which one is chosen, and a machine without pidfds."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers_lib import NO_KEEPER, program

from holdfast.process.notify import RUNGS

HERE = pathlib.Path(__file__).parent
FILTER = [sys.executable, str(HERE / "ladder" / "without_pidfds.py")]
RUNG = {"PYTHONPATH": str(HERE), "HOLDFAST_NOTIFIER": ""}


def pytest_inside(*args, before=(), env=None, timeout=100):
    """pytest in one process of its own, where the plugin has chosen the rung before there is a second thread."""
    command = [
        *before, sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-rs",
        "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:schemathesis", *args,
        "-p", "ladder.choose",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, **RUNG, **(env or {})}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("rung", [rung for rung in RUNGS if rung != "kqueue"])
def test_rung(rung):
    out = pytest_inside("ladder/rung_suite.py", env={"HOLDFAST_NOTIFIER": rung})
    assert "25 passed" in out, out


def test_kqueue_s_rung_over_a_stand_in():
    """There is no kqueue on Linux: this runs the code, and says nothing of the systems that have it."""
    out = pytest_inside("-p", "ladder.kqueue_on_pidfd", "ladder/rung_suite.py", env={"HOLDFAST_NOTIFIER": "kqueue"})
    assert "25 passed" in out, out


def test_a_signal_handler_may_ask_in_the_midst_of_the_same_question():
    """The hub's lock is held where a handler interrupts its thread."""
    program("""
        from helpers_wait import wait_for
        from holdfast.process.notify.hub import Hub

        class Child:
            looks = 0
            def look(self):
                self.looks += 1
                return True

        class Interrupted(Child):
            def __hash__(self):  # asked for while the lock is held
                if not self.looks:
                    hub.add(other)
                return 1

        hub, other = Hub(lambda age: None), Child()
        hub.add(child := Interrupted())
        wait_for(lambda: child.looks and other.looks)
    """, timeout=20)


@pytest.mark.parametrize("rung", ["pidfd", "selfpipe", "polling"])
def test_a_handle_that_is_there_at_the_interpreters_end(rung):
    """Then nothing can be imported any more, as wait4 does."""
    program("""
        import holdfast
        from helpers_wait import all_ended
        process = holdfast.spawn(["true"], private=False)
        assert all_ended([process.pid])
    """, env={"HOLDFAST_NOTIFIER": rung})


# ---- without pidfds

# Tests of the library that cannot pass there, each with its reason.
NOT_WITHOUT_PIDFDS = {
    "test_run_options": "they start a runner",
    "test_what_changed_between_two_spawns": "one of the two is a runner's",
    "test_time_limit_empties_a_tree_that_resists": "the group is stopped, not the tree",
    "test_no_new_privs": "the filter sets it",
}


def test_rung_without_pidfds():
    out = pytest_inside("ladder/rung_suite.py", before=FILTER, env={"HOLDFAST_NOTIFIER": "selfpipe"})
    assert "25 passed" in out, out


def test_the_library_without_pidfds():
    """Its tests with direct children and, as far as those can, with what `spawn` and `run` start there instead."""
    out = pytest_inside(
        "-W", NO_KEEPER,
        "-k", f"(direct or spawn or test_run) and not (runner or {' or '.join(NOT_WITHOUT_PIDFDS)})",
        *(f"test_{name}.py" for name in ("run", "handle", "status", "threads", "errors", "inheritance", "identity")),
        before=FILTER,
    )  # fmt: skip
    assert int(out.rpartition(" passed")[0].split()[-1]) > 100, out


def without_pidfds(code, *args):
    command = [*FILTER, sys.executable, "-W", NO_KEEPER, "-c", code, *args]
    return program(f"import os; os.execvp({command[0]!r}, {command!r})")


def test_a_process_without_a_keeper_says_so():
    out = without_pidfds("""if True:
        import warnings, holdfast
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(3):
                with holdfast.spawn(["true"], on_owner_loss="stop") as process:
                    assert not process.private
                    assert process.wait(20).code == 0
        print(len(told), told[0].category.__name__, told[0].message)
    """)
    assert out.startswith("1 RuntimeWarning no keeper can work here (pidfd_open: ")


@pytest.mark.parametrize("call", ["spawn(['true']).wait(20)", "run(['true'])", "capture(['true'])"])
def test_it_is_said_of_the_line_that_has_called_us(call):
    out = without_pidfds(f"""if True:
        import warnings, holdfast
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            holdfast.{call}
        print([each.filename for each in told])
    """)
    assert out == "['<string>']\n"


def test_popen_without_a_keeper():
    """The standard library's own start, held as a direct child, and it says so."""
    out = without_pidfds("""if True:
        import warnings, holdfast
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with holdfast.Popen(["sh", "-c", "cat; exit 3"], stdin=-1, stdout=-1, text=True) as process:
                print(process.communicate("hello"), process.wait(20))
            process = holdfast.Popen(["sleep", "99"])
            process.kill()
            print(process.wait(20))
        print(len(told), told[0].category.__name__, told[0].filename)
    """)
    assert out == "('hello', None) 3\n-9\n1 RuntimeWarning <string>\n"


def test_what_needs_a_keeper_is_refused(tmp_path):
    without_pidfds("""if True:
        import errno, sys, holdfast
        for start in (
            lambda: holdfast.spawn(["true"], address=sys.argv[1]),
            lambda: holdfast.spawn(["true"], forking=True),
            holdfast.Runner,
        ):
            try:
                start()
            except holdfast.SpawnError as error:
                assert error.errno == errno.ENOSYS and "needs a keeper" in str(error), error
            else:
                raise AssertionError(start)
        for options in ({"on_owner_loss": "never"}, {"stop_scope": "all"}):
            try:
                holdfast.spawn(["true"], **options)
            except ValueError:
                pass
            else:
                raise AssertionError(options)
    """, str(tmp_path / "socket"))


def test_doctor_without_pidfds():
    done = subprocess.run(
        [*FILTER, sys.executable, "-W", "error", "-m", "holdfast", "doctor", "--json"], capture_output=True, text=True
    )
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr, document["healthy"]) == (1, "", False)
    assert document["means"]["processes"].startswith("direct children alone: pidfd_open")
    assert document["means"]["notifier"] == "selfpipe"
    assert document["means"]["start"] == "clone"


# ---- other systems

ELSEWHERE = """[binaries]
python = {python!r}
[host_machine]
system = 'freebsd'
cpu_family = 'x86_64'
cpu = 'x86_64'
endian = 'little'
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The package as it is built for another system: nothing compiled, and no keeper."""
    base = tmp_path_factory.mktemp("elsewhere")
    (base / "machine").write_text(ELSEWHERE.format(python=sys.executable))
    meson = [sys.executable, "-m", "mesonbuild.mesonmain"]
    machine = ["--cross-file", base / "machine", "-Dpython.platlibdir=/lib"]
    for command in (
        [*meson, "setup", "--prefix", "/", *machine, base / "build"],
        [*meson, "install", "--quiet", "-C", base / "build", "--destdir", base / "root"],
    ):
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (base / "root/lib/holdfast/process/_native.py").exists()
    assert not list((base / "root").rglob("*.so")) and not list((base / "root").rglob("holdfast-keeper"))
    return base / "root/lib"


def test_rung_on_another_system(elsewhere):
    """Run here, so what is tested is the library without its C half, not the other system."""
    env = {"HOLDFAST_NOTIFIER": "polling", "PYTHONPATH": f"{elsewhere}:{HERE}"}
    out = pytest_inside("ladder/rung_suite.py", env=env)
    assert "25 passed" in out, out


def test_the_library_on_another_system(elsewhere):
    out = pytest_inside(
        "-W", NO_KEEPER,
        "-k", f"(direct or test_run) and not (runner or {' or '.join(NOT_WITHOUT_PIDFDS)})",
        *(f"test_{name}.py" for name in ("run", "handle", "status", "threads", "inheritance")),
        env={"PYTHONPATH": f"{elsewhere}:{HERE}"},
    )  # fmt: skip
    assert int(out.rpartition(" passed")[0].split()[-1]) > 25, out


# ---- the choice

CHOICE = "from holdfast.process import notify; print(notify.choice())"


def test_the_best_rung_that_works_is_chosen():
    assert program(CHOICE) == "pidfd\n"
    assert without_pidfds(CHOICE) == "selfpipe\n"
    assert without_pidfds("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); " + CHOICE) == "polling\n"
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD]); "
    assert without_pidfds(blocked + CHOICE) == "signalfd\n"


def test_the_variable_decides():
    for rung in ("signalfd", "selfpipe", "polling", "pidfd"):
        assert program(CHOICE, env={"HOLDFAST_NOTIFIER": rung}) == f"{rung}\n"


@pytest.mark.parametrize(
    ("rung", "prepare", "error"),
    [
        ("waitpid", "", "ValueError: HOLDFAST_NOTIFIER must be one of pidfd, kqueue, signalfd, selfpipe, polling"),
        ("kqueue", "", "HOLDFAST_NOTIFIER=kqueue: not on this system (stage: notifier)"),
        ("signalfd", "import threading; e = threading.Event(); t = threading.Thread(target=e.wait); t.start()",
         "HOLDFAST_NOTIFIER=signalfd: SIGCHLD is not blocked in every thread (stage: notifier)"),
        ("selfpipe", "import signal; e = None; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])",
         "HOLDFAST_NOTIFIER=selfpipe: SIGCHLD is blocked in every thread (stage: notifier)"),
    ],
)  # fmt: skip
def test_a_rung_that_is_not_here_is_refused(rung, prepare, error):
    out = program(f"""if True:
        import os, holdfast
        e = None
        {prepare}
        try:
            holdfast.spawn(["true"], private=False)
        except (ValueError, holdfast.SpawnError) as error:
            print(type(error).__name__ + ": " + str(error))
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("nothing started")
        if e:
            e.set()
    """, env={"HOLDFAST_NOTIFIER": rung})
    assert error in out
    assert "nothing started" in out


def test_private_processes_do_not_mind_the_variable():
    program("""
        import holdfast
        with holdfast.spawn(["sh", "-c", "exit 4"]) as process:
            assert process.private and process.wait(20).code == 4
    """, env={"HOLDFAST_NOTIFIER": "polling"})
