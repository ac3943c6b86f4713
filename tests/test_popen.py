"""`holdfast.Popen` and `holdfast.subprocess`: what they have over the standard library's.

That they are like those is for the standard library's own tests, which test_stdlib_subprocess.py runs.
"""

from __future__ import annotations

import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import threading
import uuid
import warnings
from contextlib import contextmanager

import pytest
from helpers_lib import descriptors, kernel_tells_stolen_status, program
from helpers_readme import blocks
from helpers_trees import kill_marked, left_of, marked
from helpers_wait import all_ended, eventually, wait_for

import holdfast
import holdfast.subprocess
from holdfast.process.options import FDS_MAX

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "subprocess.md").read_text()
# Says that it runs, and leaves a background process in a session of its own.
BACKGROUND = "setsid sleep 100 >/dev/null 2>&1 & echo started"


@pytest.fixture
def mark():
    """For the environment of a tree; in the end nothing may be left of it."""
    name = uuid.uuid4().hex
    yield name
    left = left_of(name)
    end(name)
    assert not left


def end(mark):
    """Kill what a test has left on purpose."""
    kill_marked(mark)
    wait_for(lambda: not marked(mark))


def lives_on(mark):
    """What still runs when whoever would stop it has long had the time to."""
    pids = wait_for(lambda: marked(mark))  # just after its exec an environment cannot be read yet
    return [] if all_ended(pids, 0.3) else pids


def with_mark(mark):
    return {**os.environ, "HF_MARK": mark}


@contextmanager
def handler(signo, action):
    before = signal.signal(signo, action)
    try:
        yield
    finally:
        signal.signal(signo, before)


# ---- private


def test_nobody_else_sees_it():
    seen = []
    with handler(signal.SIGCHLD, lambda *_: seen.append(1)):
        process = holdfast.Popen(["sh", "-c", "exit 7"])
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        with pytest.raises(ChildProcessError):
            os.waitpid(process.pid, 0)
        assert process.wait() == process.returncode == process.poll() == 7
    assert not seen


def test_status_is_right_where_sigchld_is_ignored():
    """The standard library's says 0 there."""
    with handler(signal.SIGCHLD, signal.SIG_IGN):
        assert holdfast.subprocess.call(["sh", "-c", "exit 7"]) == 7


def test_threads_that_wait_get_the_same_answer():
    process = holdfast.Popen(["cat"], stdin=holdfast.PIPE)
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(process.wait(timeout=60))) for _ in range(8)]
    for thread in threads:
        thread.start()
    process.terminate()
    for thread in threads:
        thread.join()
    process.stdin.close()
    assert codes == [-signal.SIGTERM] * 8


def test_time_limit_costs_no_looking():
    """The standard library's wakes up 20 times a second."""
    with holdfast.Popen(["cat"], stdin=holdfast.PIPE) as process:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        with pytest.raises(subprocess.TimeoutExpired, match=r"\['cat'\].* 0.7 seconds"):
            process.wait(0.7)
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 8


def test_ended_ones_hold_no_descriptors():
    before = descriptors()
    processes = [holdfast.Popen(["true"]) for _ in range(20)]
    for process in processes:
        process.wait()
    assert descriptors() == before
    assert [process.poll() for process in processes] == [0] * 20


# ---- contained


def test_end_of_with_ends_the_tree(mark):
    with holdfast.Popen(BACKGROUND, shell=True, stdout=holdfast.PIPE, env=with_mark(mark)) as process:
        assert process.stdout.read() == b"started\n"
        assert process.wait() == 0
        assert wait_for(lambda: len(marked(mark)) == 1)
    assert not left_of(mark)


@pytest.mark.parametrize("name", ["run", "call", "check_call", "check_output"])
def test_functions_leave_nothing(mark, name):
    getattr(holdfast.subprocess, name)(BACKGROUND, shell=True, env=with_mark(mark))
    assert not left_of(mark)


def test_time_limit_of_run_leaves_nothing(mark):
    """The background process holds the pipe: the standard library's run hangs where only the shell is killed."""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        holdfast.subprocess.run(
            "sleep 100 & echo started; wait", shell=True, capture_output=True, env=with_mark(mark), timeout=1
        )
    assert caught.value.stdout == b"started\n"
    assert not left_of(mark)


def test_interrupted_with_ends_the_tree(mark):
    with pytest.raises(KeyboardInterrupt), holdfast.Popen(["sleep", "100"], env=with_mark(mark)) as process:
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGTERM
    assert not left_of(mark)


OWNER = """
    import os, signal, sys
    import holdfast
    env = {**os.environ, "HF_MARK": sys.argv[1]}
    process = holdfast.Popen(["sleep", "100"], stdout=holdfast.DEVNULL, stderr=holdfast.DEVNULL, env=env)
    if sys.argv[2] == "with":
        process.__enter__()
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["with", "plain"])
def test_killed_owner(mark, way):
    """Inside a `with` the tree ends; outside it is as in the standard library."""
    with pytest.raises(AssertionError, match=r"^status -9\n\d+\n"):
        program(OWNER, mark, way)
    if way == "with":
        assert eventually(lambda: not marked(mark))
    else:
        assert lives_on(mark)
        end(mark)


def test_dropped_object_leaves_its_process_and_keeps_nothing(mark):
    before = descriptors()
    process = holdfast.Popen(["sleep", "100"], env=with_mark(mark))
    pid = process.pid
    with pytest.warns(ResourceWarning, match=f"subprocess {pid} is still running"):
        del process
    assert descriptors() == before
    assert lives_on(mark) == [pid]
    end(mark)


def test_dropped_object_leaves_the_background(mark):
    process = holdfast.Popen(BACKGROUND, shell=True, stdout=holdfast.DEVNULL, env=with_mark(mark))
    assert process.wait() == 0
    assert wait_for(lambda: len(marked(mark)) == 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del process
    assert lives_on(mark)
    end(mark)


def test_forked_copy_ends_nothing():
    with holdfast.Popen(["cat"], stdin=holdfast.PIPE) as process:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                try:
                    process.poll()
                except ValueError:
                    code = 0
                process.__del__()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert process.poll() is None
    assert process.returncode == 0


# ---- the standard library's face


def test_it_is_a_popen_and_its_errors_are_the_standard_librarys():
    with holdfast.Popen(["sh", "-c", "exit 3"], text=True) as process:
        assert isinstance(process, subprocess.Popen)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        holdfast.subprocess.check_call(["sh", "-c", "exit 3"])
    assert (caught.value.returncode, caught.value.cmd) == (3, ["sh", "-c", "exit 3"])
    with pytest.raises(FileNotFoundError) as missing:
        holdfast.Popen(["holdfast-no-such-program"])
    assert (missing.value.filename, missing.value.stage) == ("holdfast-no-such-program", "exec")
    with pytest.raises(NotADirectoryError) as no_directory:
        holdfast.Popen(["true"], cwd=__file__)
    assert (no_directory.value.filename, no_directory.value.stage) == (__file__, "chdir")


def test_module_has_every_name():
    assert set(holdfast.subprocess.__all__) == set(subprocess.__all__)
    for name in ("CalledProcessError", "CompletedProcess", "PIPE", "SubprocessError", "TimeoutExpired", "list2cmdline"):
        assert getattr(holdfast.subprocess, name) is getattr(subprocess, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        holdfast.subprocess.no_such_name  # noqa: B018


def test_standard_functions_over_it(monkeypatch, mark):
    """Where only `subprocess.Popen` is replaced."""
    monkeypatch.setattr(subprocess, "Popen", holdfast.Popen)
    assert subprocess.check_output(BACKGROUND, shell=True, text=True, env=with_mark(mark)) == "started\n"
    assert not left_of(mark)


def test_refusals_are_the_standard_librarys():
    for wrong in (
        {"input": b"", "stdin": holdfast.PIPE},
        {"capture_output": True, "stdout": holdfast.PIPE},
        {"capture_output": True, "stderr": holdfast.STDOUT},
    ):
        with pytest.raises(ValueError):
            holdfast.subprocess.run(["true"], **wrong)
    with pytest.raises(TypeError):
        holdfast.Popen(pathlib.Path("true"), shell=True)
    with pytest.raises(ValueError, match="environment"):
        holdfast.Popen(["true"], env={"a=b": "c"})


def test_descriptors_are_whatever_int_makes_of_them():
    """As they are passed on in old programs: the standard library asks no more of them."""
    with holdfast.Popen(["cat"], stdin=False, stdout=True, stderr=subprocess.DEVNULL, pass_fds=iter(["1"])) as process:
        process.kill()
    with pytest.raises(TypeError):
        holdfast.Popen(["true"], pass_fds=[sys.stdin])
    with holdfast.Popen(["cat"], stdin=-1) as process, pytest.raises(subprocess.TimeoutExpired, match="after 0 sec"):
        process.wait(0)


def test_shell_functions():
    assert holdfast.subprocess.getstatusoutput("echo out; echo err >&2; exit 3") == (3, "out\nerr")
    assert holdfast.subprocess.getoutput("printf 'one\n\n'") == "one\n"
    assert holdfast.subprocess.check_output(["cat"], input=None) == b""
    assert holdfast.subprocess.check_output(["cat"], input=None, text=True) == ""


def test_much_both_ways_with_a_time_limit_in_between():
    data = os.urandom(1 << 22)
    with holdfast.Popen(["sh", "-c", "head -c 100000; kill -STOP $$; cat"], stdin=-1, stdout=-1, stderr=-1) as process:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.communicate(data, timeout=1)
        assert data.startswith(caught.value.output) and caught.value.stderr is None
        with pytest.raises(ValueError, match="Cannot send input"):
            process.communicate(b"more")
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60) == (data, b"")
        assert process.communicate() == (data, b"")


def test_text_with_every_kind_of_newline():
    with holdfast.Popen(["cat"], stdin=-1, stdout=-1, stderr=-1, encoding="utf-16", errors="replace") as process:
        assert process.communicate("a\r\nb\rc\n\N{SNOWMAN}" * 30000)[0] == "a\nb\nc\n\N{SNOWMAN}" * 30000


@pytest.mark.parametrize("close_fds", [True, False])
def test_close_fds(close_fds):
    shown, hidden = os.dup(0), os.dup(0)
    os.set_inheritable(shown, True)
    try:
        text = holdfast.subprocess.check_output(["ls", "/proc/self/fd"], close_fds=close_fds, text=True)
    finally:
        os.close(shown)
        os.close(hidden)
    assert (str(shown) in text.split()) is not close_fds
    assert str(hidden) not in text.split() or hidden == 3  # which is the listing's own


def test_more_to_inherit_than_a_keeper_passes_on():
    many = [os.dup(0) for _ in range(FDS_MAX)]
    try:
        for fd in many:
            os.set_inheritable(fd, True)
        with holdfast.Popen(["ls", "/proc/self/fd"], close_fds=False, stdout=holdfast.PIPE) as process:
            assert {str(fd) for fd in many} <= set(process.stdout.read().decode().split())
            assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a direct child
        assert process.returncode == 0
    finally:
        for fd in many:
            os.close(fd)


def test_ignored_signals_are_restored_or_not():
    """Python ignores SIGPIPE, which is 13."""
    for restore in (True, False):
        with open("/proc/self/status") as file:
            assert int(file.read().partition("SigIgn:")[2].split()[0], 16) >> 12 & 1, "the test's own assumption"
        status = holdfast.subprocess.check_output(["cat", "/proc/self/status"], restore_signals=restore, text=True)
        assert (int(status.partition("SigIgn:")[2].split()[0], 16) >> 12 & 1) is int(not restore)


# ---- preexec_fn


def test_preexec_fn_runs_in_the_child_and_its_error_comes_back():
    read, write = os.pipe()
    command, tell = ["sh", "-c", "exit 4"], lambda: os.write(write, str(os.getpid()).encode())
    with holdfast.Popen(command, preexec_fn=tell) as process:
        assert int(os.read(read, 20)) == process.pid
    assert process.returncode == 4
    os.close(read)
    os.close(write)
    with pytest.raises(subprocess.SubprocessError, match="preexec_fn"):
        holdfast.Popen(["true"], preexec_fn=lambda: 1 / 0)
    with pytest.raises(FileNotFoundError):
        holdfast.Popen(["holdfast-no-such-program"], preexec_fn=lambda: None)


def test_preexec_fn_waits_and_signals_like_the_rest():
    before = descriptors()
    with holdfast.Popen(["cat"], stdin=holdfast.PIPE, preexec_fn=lambda: None) as process:
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        process.kill()
    assert descriptors() == before


def test_status_of_preexec_fn_is_taken_back_from_a_thief():
    process = holdfast.Popen(["sh", "-c", "exit 5"], preexec_fn=lambda: None)
    os.waitpid(process.pid, 0)
    assert process.wait() == (5 if kernel_tells_stolen_status() else 0)


def test_dropped_one_with_preexec_fn_is_reaped_by_the_next():
    process = holdfast.Popen(["sleep", "100"], preexec_fn=lambda: None)
    pid = process.pid
    fd = os.pidfd_open(pid)
    with pytest.warns(ResourceWarning, match=f"subprocess {pid} is still running"):
        del process
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert select.select([fd], [], [], 60)[0]
    os.close(fd)
    with holdfast.Popen(["true"]):
        pass
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


# ---- the worst case, and the documentation


def test_lost_keeper_is_told():
    process = holdfast.Popen(["sleep", "100"])
    with pytest.raises(holdfast.KeeperLost), process:  # at the end once more: nothing is proved
        process._process._tree.keeper.kill()
        with pytest.raises(holdfast.KeeperLost):
            process.wait(60)
    assert all_ended([process.pid])
    if kernel_tells_stolen_status():
        assert process.wait(60) == -signal.SIGKILL


def test_examples_of_the_page_run():
    examples = [body for language, body in blocks(PAGE) if language == "python"]
    assert len(examples) == 3
    program("\n".join(examples))


def test_import_of_the_package_alone_does_not_load_it():
    program("import sys, holdfast; holdfast.run(['true']); assert 'subprocess' not in sys.modules")
    assert sys.modules["subprocess"] is subprocess  # and nothing here has replaced it
