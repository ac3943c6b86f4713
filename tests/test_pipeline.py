"""`capture` and `pipeline`: statuses of all, backpressure, early close, one time limit, and nothing left of any."""

from __future__ import annotations

import hashlib
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import uuid

import pytest
from helpers_lib import marked, program
from helpers_readme import blocks
from helpers_wait import LIMIT, all_ended, wait_for

import holdfast
from holdfast import DEVNULL, PIPE, STDOUT, capture, pipeline

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "pipelines.md").read_text()
BOTH = ["sh", "-c", "echo out; echo err >&2; exit 3"]


@pytest.fixture
def mark():
    """For the environment of the commands; in the end nothing may be left of them."""
    name = f"HF_PIPELINE={uuid.uuid4().hex}"
    yield name
    wait_for(lambda: not marked(name), what=lambda: marked(name))


def with_mark(mark):
    name, _, value = mark.partition("=")
    return {**os.environ, name: value}


def sh(code):
    return ["sh", "-c", code]


def codes(done):
    return [status.returncode for status in done.statuses]


# ---- capture


def test_capture():
    out, err, status = capture(BOTH)
    assert (out, err, status.code) == (b"out\n", b"err\n", 3)
    assert isinstance(status, holdfast.ExitStatus)
    out, err, status = capture(["tr", "a", "b"], input="banana\n", text=True)
    assert (out, err, status.ok) == ("bbnbnb\n", "", True)


def test_capture_of_both_in_one():
    out, err, status = capture(BOTH, stderr=STDOUT)
    assert (out, err, status.code) == (b"out\nerr\n", None, 3)


def test_capture_at_its_time_limit(mark):
    with pytest.raises(holdfast.TimeoutExpired) as caught:
        capture(sh("echo so far; sleep 100 & sleep 100"), timeout=0.3, env=with_mark(mark))
    assert caught.value.stdout == b"so far\n"


def test_capture_of_what_is_not_there():
    with pytest.raises(FileNotFoundError) as caught:
        capture(["/nowhere/at/all"])
    assert isinstance(caught.value, holdfast.SpawnError)


# ---- what comes out


def test_statuses_of_all():
    done = pipeline([sh("exit 1"), sh("cat; exit 2"), sh("cat; kill -9 $$"), sh("cat; exit 0")])
    assert codes(done) == [1, 2, -9, 0]
    assert (done.stdout, done.stderr, done.reports) == (None, None, (None,) * 4)
    assert all(status.usage for status in done.statuses)
    assert repr(done).endswith("returncodes=[1, 2, -9, 0])")


def test_the_last_that_failed_counts():
    commands = [sh("exit 1"), sh("cat; exit 2"), sh("cat")]
    assert pipeline(commands).returncode == 2
    with pytest.raises(holdfast.CalledProcessError) as caught:
        pipeline(commands, check=True, capture_output=True)
    error = caught.value
    assert (error.returncode, error.cmd, error.status.code, error.stdout) == (2, commands[1], 2, b"")


def test_sigpipe_is_a_failure_of_the_last_alone():
    pipe = "kill -PIPE $$"
    done = pipeline([sh(pipe), sh(pipe), ["cat"]], check=True)
    assert codes(done) == [-13, -13, 0] and done.returncode == 0
    done = pipeline([sh("exit 1"), sh("cat;" + pipe)])
    assert done.returncode == -13
    with pytest.raises(holdfast.CalledProcessError):
        done.check_returncode()


def test_one_command_is_a_pipeline():
    done = pipeline([BOTH], capture_output=True, text=True)
    assert (done.stdout, done.stderr, codes(done)) == ("out\n", "err\n", [3])


def test_many_commands():
    done = pipeline([["cat"]] * 100, input=b"through all", capture_output=True)
    assert done.stdout == b"through all" and codes(done) == [0] * 100


def test_every_byte_arrives():
    data = os.urandom(1 << 20) * 16
    done = pipeline([["cat"], ["cat"], ["cat"]], input=data, stdout=PIPE)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_stderr_of_all_in_one_pipe():
    done = pipeline([sh("echo one >&2; echo through"), sh("cat; echo two >&2")], capture_output=True, text=True)
    assert done.stdout == "through\n"
    assert sorted(done.stderr.split()) == ["one", "two"]


def test_stderr_down_the_line():
    done = pipeline([sh("echo one >&2"), sh("tr a-z A-Z; echo two >&2")], stdout=PIPE, stderr=STDOUT, text=True)
    assert (done.stdout, done.stderr) == ("ONE\ntwo\n", None)


def test_files_at_the_ends(tmp_path):
    (tmp_path / "in").write_text("b\na\n")
    with open(tmp_path / "in") as source, open(tmp_path / "out", "w") as target:
        done = pipeline([["sort"], sh("cat; echo end")], stdin=source, stdout=target, stderr=DEVNULL)
    assert (tmp_path / "out").read_text() == "a\nb\nend\n"
    assert (done.stdout, done.stderr) == (None, None)


def test_text_and_lines():
    done = pipeline([["cat"], ["cat"]], input="grün\r\n", encoding="latin-1", stdout=PIPE)
    assert done.stdout == "grün\n"
    assert pipeline([["cat"]], input="grün", encoding="utf-8", stdout=PIPE).stdout == "grün"


def test_direct_children():
    done = pipeline([["echo", "x"], ["cat"]], private=False, stdout=PIPE)
    assert done.stdout == b"x\n" and codes(done) == [0, 0]


def test_the_shell_in_every_place():
    assert pipeline(["echo $((1 + 1))", "tr 2 3"], shell=True, stdout=PIPE).stdout == b"3\n"


@pytest.mark.parametrize(
    ("commands", "options", "kind"),
    [
        ([], {}, ValueError),
        ("ls | wc", {"shell": True}, ValueError),
        ([["cat"]], {"input": b"", "stdin": DEVNULL}, ValueError),
        ([["cat"]], {"input": "text"}, TypeError),
        ([["/not/started"]], {"input": 5}, TypeError),
        ([["cat"]], {"capture_output": True, "stdout": DEVNULL}, ValueError),
        ([["cat"]], {"timeout": -1}, ValueError),
        ([["cat"]] * 251, {}, ValueError),
        ([["cat"]], {"forking": True}, ValueError),
        ([["cat"]], {"address": "/tmp/x"}, ValueError),
        ([["cat"], ["cat"]], {"no_such": 1}, TypeError),
    ],
)
def test_misuse(commands, options, kind):
    with pytest.raises(kind):
        pipeline(commands, **options)


# ---- bytes between the commands

COUNTING = """
import os, sys
written, block = 0, bytes(4096)
try:
    while True:
        written += os.write(1, block)
except BrokenPipeError:
    os.write(2, b"%d" % written)
"""


def test_a_writer_waits_for_its_reader():
    """The reader takes a million bytes and ends: nothing but its pipe can have swallowed more."""
    taken = 1_000_000
    reader = [sys.executable, "-c", f"import os\nleft = {taken}\nwhile left: left -= len(os.read(0, min(left, 4096)))"]
    done = pipeline([[sys.executable, "-c", COUNTING], reader], capture_output=True)
    assert codes(done) == [0, 0]
    assert taken <= int(done.stderr) <= taken + 65536 + 4096


def test_who_has_read_enough_ends_the_line():
    done = pipeline([["yes"], ["cat"], ["head", "-n", "1"]], stdout=PIPE, check=True)
    assert done.stdout == b"y\n" and codes(done) == [-13, -13, 0]


def test_input_that_nobody_reads():
    done = pipeline([["true"], ["cat"]], input=bytes(1 << 22), stdout=PIPE, check=True)
    assert done.stdout == b""


def test_what_a_command_leaves_does_not_hold_the_next(mark):
    """The background process has the pipe and would keep cat waiting; it is stopped with its command's end."""
    done = pipeline([sh("echo x; setsid sleep 100 & sleep 100 &"), ["cat"]], stdout=PIPE, env=with_mark(mark))
    assert done.stdout == b"x\n" and codes(done) == [0, 0]
    assert done.reports[0].empty and done.reports[1] is None
    assert {member.name for member in done.reports[0].signalled} <= {"sleep", "setsid", "sh"}


def test_bytes_move_while_one_is_stopped():
    """What is left of the first command writes more than the pipes hold before it gives way to TERM."""
    left = "trap 'head -c 1000000 /dev/zero; exit' TERM; echo >ready; while :; do sleep 0.01; done"
    code = f"d=$(mktemp -d); cd $d; mkfifo ready; ({left}) & read x <ready; rm -r $d"
    done = pipeline([sh(code), ["cat"]], stdout=PIPE, timeout=LIMIT)
    assert len(done.stdout) == 1_000_000
    assert done.reports[0].killed_count == 0


# ---- all of it ends


def test_a_time_limit_for_the_whole(mark):
    resists = "trap '' TERM; echo so far; while :; do sleep 100; done"
    commands = [["sleep", "100"], sh(resists), sh("cat; sleep 100 & wait")]
    with pytest.raises(holdfast.TimeoutExpired) as caught:
        pipeline(commands, capture_output=True, text=True, timeout=0.4, grace=0.3, env=with_mark(mark))
    error = caught.value
    assert (error.cmd, error.timeout, error.stdout, error.stderr) == (commands, 0.4, "so far\n", "")
    assert error.status.signal == 15 and error.report.empty
    assert [status.signal for status in error.statuses] == [15, 9, 15]  # the second resists
    assert error.statuses[-1] is error.status and error.reports[-1] is error.report
    assert [report.killed_count > 0 for report in error.reports] == [False, True, False]
    assert not marked(mark)


def test_at_the_limit_all_are_stopped_side_by_side(tmp_path, mark):
    """Each ends at TERM only when the other one has had it, too."""

    def waits(own, other):
        code = f"touch {own}; until [ -e {other} ]; do sleep 0.01; done; echo {own} >&2; exit"
        return sh(f"trap '{code}' TERM; while :; do sleep 0.01; done")

    with pytest.raises(holdfast.TimeoutExpired) as caught:
        commands = [waits("a", "b"), waits("b", "a")]
        pipeline(commands, stderr=PIPE, text=True, timeout=1, stop_scope="main", cwd=tmp_path, env=with_mark(mark))
    assert sorted(caught.value.stderr.split()) == ["a", "b"]


def test_a_limit_that_is_not_reached():
    assert codes(pipeline([["true"], ["true"]], timeout=LIMIT)) == [0, 0]
    assert codes(pipeline([["true"], ["true"]], timeout=float("inf"))) == [0, 0]


def test_one_that_cannot_be_started(mark, tmp_path):
    with pytest.raises(FileNotFoundError, match="not-there") as caught:
        pipeline([["sleep", "100"], sh("sleep 100 & wait"), [tmp_path / "not-there"]], stderr=PIPE, env=with_mark(mark))
    assert caught.value.stage == "exec"
    assert not marked(mark)


def test_a_handler_that_raises(mark):
    """An exception from a signal handler, at a moment when all the commands run."""
    reader, writer = os.pipe()

    def interrupt():
        with open(reader, "rb", buffering=0) as ready:
            for _ in range(2):
                if select.select([ready], [], [], LIMIT)[0]:
                    ready.read(1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def raising(*_):
        raise InterruptedError("by the test")

    before = signal.signal(signal.SIGUSR1, raising)
    thread = threading.Thread(target=interrupt)
    thread.start()
    command = sh(f"printf x >/dev/fd/{writer}; sleep 100 & sleep 100")
    try:
        with pytest.raises(InterruptedError):
            pipeline([command, command], env=with_mark(mark), pass_fds=[writer], capture_output=True)
        assert not marked(mark)
    finally:
        os.close(writer)
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("private", [True, False])
def test_what_has_been_started_has_its_grace_side_by_side(private):
    """Six who ignore TERM and the seventh that cannot be started: one grace, not six."""
    assert program("""
        import signal, sys, time, holdfast

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        began = time.monotonic()
        try:
            holdfast.pipeline([["sleep", "100"]] * 6 + [["/not/there"]], private=sys.argv[1] == "True", grace=2)
        except FileNotFoundError:
            print(time.monotonic() - began < 10)
    """, private) == "True\n"


EVERYWHERE = """
    import os, sys
    import holdfast
    from helpers_lib import marked

    class Raised(BaseException):
        pass

    def interrupted(call, count):
        "Raise where a signal handler can: on the way into a function of ours, or out of one of C.  Whether it was."
        fired = False

        def look(frame, event, _):
            nonlocal count, fired
            if "/holdfast/" not in frame.f_code.co_filename or event not in ("call", "c_return"):
                return
            count -= 1
            fired = count == 0
            if fired or frame.f_code.co_name in ("_until", "_run_with_pipes"):  # all run
                sys.setprofile(None)
            if fired:
                raise Raised

        sys.setprofile(look)
        try:
            call()
        except (Raised, holdfast.TimeoutExpired) as error:
            sys.setprofile(None)
            left = marked(mark)  # now, while the exception and with it all frames are there
            assert not left, (count, left, error)
        return fired

    mark = "HF_PIPELINE=" + sys.argv[2]
    sys.unraisablehook = lambda *_: None  # it may have been on the way into a __del__
    command = ["sleep", "100"]
    options = {"capture_output": True, "timeout": 0, "env": dict(os.environ, HF_PIPELINE=sys.argv[2])}
    with holdfast.Runner() as runner:
        call = {
            "pipeline": lambda: holdfast.pipeline([command, command], **options),
            "keep": lambda: holdfast.pipeline([command], on_owner_loss="keep", **options),
            "direct": lambda: holdfast.pipeline([command], private=False, **options),
            "run": lambda: holdfast.run(command, **options),
            "runner": lambda: runner.run(command, **options),
        }[sys.argv[1]]
        count = 1
        while interrupted(call, count):
            count += 1
    print(count)
"""


@pytest.mark.parametrize("way", ["pipeline", "keep", "direct", "run", "runner"])
def test_an_exception_anywhere_in_the_start(way, mark):
    """Whatever has been started is gone when it arrives: an undone start was left to its keeper, who took its time."""
    assert int(program(EVERYWHERE, way, mark.partition("=")[2])) > 20


def test_the_program_is_killed(mark):
    reader, writer = os.pipe()
    code = f"""
        import holdfast
        command = ["sh", "-c", "setsid sleep 100 & printf x >/dev/fd/{writer}; sleep 100"]
        holdfast.pipeline([command, command], pass_fds=[{writer}])
    """
    owner = subprocess.Popen([sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())],
                             env=with_mark(mark), pass_fds=[writer])  # fmt: skip
    os.close(writer)
    with open(reader, "rb", buffering=0) as ready, owner:
        try:
            for _ in range(2):
                assert select.select([ready], [], [], LIMIT)[0] and ready.read(1) == b"x"
            left = [pid for pid in marked(mark) if pid != owner.pid]
            assert len(left) >= 4
        finally:
            owner.kill()
    assert all_ended(left)


def test_a_keeper_is_killed(mark):
    """KeeperLost says so, and the other commands are stopped all the same."""
    reader, writer = os.pipe()

    def kill():
        with open(reader, "rb", buffering=0) as ready:
            said = b""
            while said.count(b"\n") < 2:  # the last one runs, too: the start of the middle one is over
                if not select.select([ready], [], [], LIMIT)[0]:
                    return
                said += ready.read(100)
        main = next(int(line) for line in said.split() if line.isdigit())
        parent = int(pathlib.Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[1])
        keeper = os.pidfd_open(parent)
        if pathlib.Path(f"/proc/{parent}/comm").read_text() == "holdfast-keeper\n":
            signal.pidfd_send_signal(keeper, signal.SIGKILL)
        os.close(keeper)

    thread = threading.Thread(target=kill)
    thread.start()
    middle = sh(f"echo $$ >/dev/fd/{writer}; exec sleep 100")
    last = sh(f"echo last >/dev/fd/{writer}; exec cat")
    try:
        with pytest.raises(holdfast.KeeperLost):
            pipeline([["sleep", "100"], middle, last], env=with_mark(mark), pass_fds=[writer], timeout=LIMIT)
    finally:
        os.close(writer)
        thread.join()


def test_threads():
    results = []

    def work(i):
        results.append(pipeline([["cat"], ["cat"]], input=b"%d" % i, stdout=PIPE).stdout)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [b"%d" % i for i in range(8)]


# ---- its page


@pytest.mark.parametrize("code", [body for language, body in blocks(PAGE) if language == "python"])
def test_what_the_page_shows(code):
    assert program(code) == ""
