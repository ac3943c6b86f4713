"""`holdfast run` as a program: options and wrong ones, exit codes, reports, signals, what is passed on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import require
from helpers_terminal import HOLDFAST, IN_SHELL, LIMIT, Marked, poll_until, signal_process, state

RUN = [HOLDFAST, "run"]


def run(*args, **kwargs):
    """The finished command; its tree is proved gone."""
    marked = Marked(**kwargs.pop("extra_env", {}))
    kwargs.setdefault("env", marked.env)
    kwargs.setdefault("stdout", subprocess.PIPE)
    kwargs.setdefault("stderr", subprocess.PIPE)
    done = subprocess.run([*RUN, *args], text=True, timeout=LIMIT, **kwargs)
    assert not marked.members()
    return done


@contextlib.contextmanager
def started(*args, wait_for="up\n", **kwargs):
    """A running `holdfast run`; what it prints first has been read."""
    marked = Marked()
    process = subprocess.Popen([*RUN, *args], env=marked.env, stdout=subprocess.PIPE, bufsize=0, **kwargs)
    process.marked = marked
    try:
        if wait_for:
            assert process.stdout.readline().decode() == wait_for
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(LIMIT)
        for pipe in (process.stdout, process.stderr, process.stdin):
            if pipe:
                pipe.close()
        marked.kill_all()


def main_of(process):
    """The pid of the command: the keeper's only child where there is no terminal."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        (pid,) = file.read().split()
    return int(pid)


# ---- exit codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 124, 125, 126, 127, 128, 130, 255])
def test_the_code_of_the_command(code):
    done = run("--", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "ABRT", "KILL", "USR1", "SEGV", "PIPE", "ALRM", "TERM", "SYS"])
def test_128_and_the_signal(name):
    done = run("--report", "--", "sh", "-c", f"ulimit -c 0; kill -{name} $$")
    assert done.returncode == 128 + getattr(signal, f"SIG{name}")
    assert f"ended by signal {name} after" in done.stderr
    assert f"(exit {done.returncode})" in done.stderr


def test_a_real_time_signal_has_a_number():
    done = run("--report", "--", "sh", "-c", "kill -40 $$")
    assert done.returncode == 168 and "ended by signal 40 after" in done.stderr


def test_124_timed_out():
    done = run("--timeout", "200ms", "--", "sleep", "60")
    assert done.returncode == 124
    assert done.stderr.startswith("holdfast: timed out after 0.2 s (exit 124); ended by signal TERM after ")
    assert "stop signal TERM to 1 (sleep[" in done.stderr and done.stderr.count("\n") == 1


def test_124_also_when_kill_was_needed():
    started_at = time.monotonic()
    done = run("--timeout=200ms", "--grace=300ms", "--", "sh", "-c", 'trap "" TERM; (setsid sleep 60 &); sleep 60; :')
    assert done.returncode == 124 and time.monotonic() - started_at >= 0.5
    assert "ended by signal KILL" in done.stderr and "KILL to 3 (" in done.stderr
    assert "outside the group" in done.stderr and "tree empty" in done.stderr


def test_124_also_when_the_command_exits_with_0_on_the_signal():
    done = run("--timeout", "1s", "--", "sh", "-c", "trap 'exit 0' TERM; sleep 60 & wait")
    assert done.returncode == 124 and "exited with code 0" in done.stderr


def test_126_cannot_be_run(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("text")
    for what in (plain, tmp_path):
        done = run("--", str(what))
        assert done.returncode == 126
        assert done.stderr == f"holdfast: cannot run {what}: Permission denied\n"


def test_127_not_found(tmp_path):
    for what in (str(tmp_path / "nothing"), "no-such-program-anywhere", ""):
        done = run("--", what)
        assert (done.returncode, done.stderr) == (127, f"holdfast: cannot run {what}: No such file or directory\n")


def test_path_is_the_environments(tmp_path):
    (tmp_path / "only-here").write_text("#!/bin/sh\nexit 42\n")
    os.chmod(tmp_path / "only-here", 0o755)
    assert run("--", "only-here", extra_env={"PATH": f"{tmp_path}:/usr/bin:/bin"}).returncode == 42


WRONG = {
    "no command": ([], "no command given"),
    "no command after --": (["--"], "no command given"),
    "bare timeout": (["--timeout", "10", "--", "true"], "--timeout: '10' has no unit: write 10s or 10ms"),
    "bare grace": (["--grace=1.5", "--", "true"], "--grace: '1.5' has no unit: write 1.5s or 1.5ms"),
    "bad unit": (["--timeout", "5d", "--", "true"], "'5d' is not a duration"),
    "negative": (["--timeout", "-5s", "--", "true"], "'-5s' is not a duration"),
    "no number": (["--timeout", "s", "--", "true"], "'s' is not a duration"),
    "empty": (["--timeout", "", "--", "true"], "'' is not a duration"),
    "not a number": (["--grace", "nans", "--", "true"], "'nans' is not a duration"),
    "a digit of no use": (["--timeout", "²s", "--", "true"], "'²s' is not a duration"),
    "endless": (["--timeout", "9" * 400 + "h", "--", "true"], "is longer than a hundred years"),
    "too long for the clock": (["--grace", "99999999999h", "--", "true"], "is longer than a hundred years"),
    "no time at all": (["--timeout", "0s", "--", "true"], "must be longer than 0"),
    "timeout without value": (["--timeout"], "--timeout needs a value"),
    "signal name": (["--signal", "TREM", "--", "true"], "'TREM' is not a signal"),
    "signal 0": (["--signal", "0", "--", "true"], "'0' is not a signal"),
    "signal 65": (["--signal", "65", "--", "true"], "'65' is not a signal"),
    "signal disposition": (["--signal", "_IGN", "--", "true"], "'_IGN' is not a signal"),
    "signal digit": (["--signal", "²", "--", "true"], "'²' is not a signal"),
    "signal empty": (["--signal", "", "--", "true"], "'' is not a signal"),
    "report file": (["--report-json=", "--", "true"], "--report-json needs a file name"),
    "unknown": (["--timeuot", "5s", "--", "true"], "unknown option --timeuot"),
    "short": (["-t", "5s", "true"], "unknown option -t"),
    "value for a flag": (["--report=yes", "--", "true"], "unknown option --report"),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_125_wrong_input(case):
    args, message = WRONG[case]
    done = run(*args)
    assert done.returncode == 125
    assert message in done.stderr and "Try 'holdfast run --help'." in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "args", [["--timeout", "1.5s"], ["--timeout", "1m"], ["--timeout=2h"], ["--grace", "0ms"], ["--signal", "sigint"],
             ["--signal=9"], ["--signal", "RTMIN"], ["--report", "--verbose"]],
    ids=" ".join,
)  # fmt: skip
def test_right_input(args):
    assert run(*args, "--", "sh", "-c", "exit 3").returncode == 3
    assert run(*args, "sh", "-c", "exit 3").returncode == 3  # the first word that is no option begins the command


def test_the_commands_own_options_are_its_own():
    assert run("printf", "%s,", "--timeout", "--", "-x").stdout == "--timeout,--,-x,"
    assert run("--", "printf", "%s,", "--", "--help").stdout == "--,--help,"


def test_the_signal_that_is_asked_for():
    done = run("--timeout", "500ms", "--signal", "USR1", "--", "sh", "-c", "trap 'exit 0' USR1; sleep 60 & wait")
    assert done.returncode == 124 and "exited with code 0" in done.stderr and "stop signal USR1 to 2" in done.stderr


def test_no_grace_is_kill_at_once():
    done = run("--timeout", "100ms", "--grace", "0s", "--", "sleep", "60")
    assert done.returncode == 124 and "ended by signal KILL" in done.stderr and "stop signal" not in done.stderr


# ---- reports ---------------------------------------------------------------------------------------


def test_the_report_line():
    done = run("--report", "--", "sh", "-c", "exit 5")
    assert re.fullmatch(r"holdfast: exited with code 5 after [0-9.]+ s\n", done.stderr)
    done = run("--report", "--", "sh", "-c", "sleep 60 & exit 5")
    assert re.match(r"holdfast: exited with code 5 after [0-9.]+ s; stop signal TERM to 1 \(\w+\[\d+\]\); tree empty ",
                    done.stderr)  # fmt: skip


def test_names_cannot_play_with_the_terminal(tmp_path):
    script = "import ctypes, signal; ctypes.CDLL(None).prctl(15, b'\\x1b[2J\\n\\x7fx'); signal.pause()"
    done = run("--timeout", "2s", "--", sys.executable, "-S", "-c", script)
    assert "(?[2J??x[" in done.stderr and done.stderr.count("\n") == 1 and "\x1b" not in done.stderr
    assert run("--", "/no/such\x1b[2J").stderr == "holdfast: cannot run /no/such?[2J: No such file or directory\n"


def test_verbose():
    done = run("--verbose", "--timeout", "200ms", "--grace", "200ms", "--", "sh", "-c", 'trap "" TERM; sleep 60; :')
    for words in ("started pid ", "time limit reached, stopping pid ", "command ended, pid ", "timed out after 0.2 s"):
        assert f"holdfast: {words}" in done.stderr


def report_of(path, *args, code):
    assert run("--report-json", str(path), *args).returncode == code
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def test_report_json_of_a_plain_command(tmp_path):
    report = report_of(tmp_path / "r", "--", "sh", "-c", "exit 3", code=3)
    assert report["version"] == 1 and report["command"] == ["sh", "-c", "exit 3"]
    assert (report["exit_code"], report["timed_out"], report["stop"]) == (3, False, None)
    assert 0 <= report["elapsed_seconds"] < LIMIT
    status = report["status"]
    assert (status["code"], status["signal"], status["core_dumped"]) == (3, None, False) and status["pid"] > 1
    assert status["usage"] == report["tree"]["usage"] and report["tree"]["reaped"] == 1
    assert set(status["usage"]) == {
        "user_seconds", "system_seconds", "max_rss_bytes", "minor_faults", "major_faults", "blocks_in", "blocks_out",
        "voluntary_switches", "involuntary_switches",
    }  # fmt: skip
    assert status["usage"]["max_rss_bytes"] > 100_000 and status["usage"]["minor_faults"] > 10


def test_report_json_of_a_tree_that_resists(tmp_path):
    script = 'trap "" TERM; setsid sleep 61 & sleep 62; :'
    report = report_of(tmp_path / "r", "--timeout", "300ms", "--grace", "200ms", "--", "sh", "-c", script, code=124)
    assert report["timed_out"] and report["status"]["signal"] == 9 and report["status"]["code"] is None
    stop = report["stop"]
    assert (stop["signal"], stop["scope"], stop["grace_seconds"]) == (15, "group", 0.2)
    assert (stop["killed"], stop["left_group"], stop["survivors"], stop["unlisted"]) == (3, 1, 0, 0)
    assert stop["duration_seconds"] >= 0.2 and report["tree"]["reaped"] in (2, 3)  # sh may reap one
    members = {m["name"] + ("-main" if m["main"] else "-out" if m["left_group"] else ""): m for m in stop["members"]}
    assert set(members) == {"sh-main", "sleep", "sleep-out"}
    assert all(m["killed"] and not m["survived"] and not m["denied"] for m in members.values())
    assert members["sh-main"]["signalled"] and members["sh-main"]["pid"] == report["status"]["pid"]


def test_report_json_of_the_whole_trees_resources(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    script = f"'{sys.executable}' -S -c '{burn}' & '{sys.executable}' -S -c '{burn}'; wait"
    report = report_of(tmp_path / "r", "--", "sh", "-c", script, code=0)
    usage = report["tree"]["usage"]
    assert usage["user_seconds"] + usage["system_seconds"] >= 0.38


ODD = {
    "quotes": ['"', "\\", '\\"', "a\"b\\c/'"],
    "control characters": ["".join(map(chr, range(1, 32))), "\x7f", "\n", "\t"],
    "not ASCII": ["é", "日本語", "\U0001f600", "\u2028", "a\u0301"],
    "not UTF-8": ["\udcff", "é\udce9", "\udcc3", "\udced\udca0\udc80", "\udcf5\udc80\udc80\udc80", "\udcc0\udc80"],
    "empty": ["", "", ""],
    "long": ["x" * 100_000, "é" * 50_000, "\x01" * 60_000, '"\\' * 30_000, "\udcff" * 60_000],
    "many": ["word"] * 20_000,
}


@pytest.mark.parametrize("case", ODD, ids=str)
def test_report_json_of_odd_arguments(tmp_path, case):
    report = report_of(tmp_path / "r", "--", "true", *ODD[case], code=0)
    assert report["command"] == ["true", *ODD[case]]


def test_report_json_of_arguments_around_the_buffers_end(tmp_path):
    for length in range(16384 - 40, 16384, 3):
        argument = "x" * length + '"\x01é\udcff'
        assert report_of(tmp_path / "r", "--", "true", argument, code=0)["command"][1] == argument


def test_report_json_where_nothing_could_be_run(tmp_path):
    report = report_of(tmp_path / "r", "--", "/no/such/program", code=127)
    assert (report["exit_code"], report["status"], report["stop"]) == (127, None, None)
    assert report_of(tmp_path / "r", "--", str(tmp_path), code=126)["exit_code"] == 126


def test_report_json_that_cannot_be_written(tmp_path):
    proof = tmp_path / "proof"
    for path in (tmp_path, tmp_path / "missing" / "file"):
        done = run("--report-json", str(path), "--", "touch", str(proof))
        assert done.returncode == 125 and done.stderr.startswith(f"holdfast: cannot write the report to {path}: ")
    assert not proof.exists()  # nothing was started


def test_report_json_on_a_full_disk():
    done = run("--report-json", "/dev/full", "--", "sh", "-c", "exit 6")
    assert done.returncode == 6
    assert done.stderr == "holdfast: cannot write the report to /dev/full: No space left on device\n"


def test_ctrl_c_while_the_report_waits_for_its_reader(tmp_path):
    """Opening a FIFO blocks; that must not swallow the signal that ends it."""
    os.mkfifo(tmp_path / "fifo")
    with started("--report-json", str(tmp_path / "fifo"), "--", "true", wait_for="") as process:
        poll_until(lambda: keeper_sleeps_in_open(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == -signal.SIGINT


def keeper_sleeps_in_open(pid):
    return "holdfast-keeper" in os.readlink(f"/proc/{pid}/exe") and state(pid) == "S"


def test_standard_descriptors_that_are_closed(tmp_path):
    """What holdfast opens must not become the command's or its own stdin, stdout or stderr."""
    for closed in ([0], [1], [2], [0, 1, 2]):
        path, seen = tmp_path / "report", tmp_path / "seen"
        redirects = " ".join(f"{fd}>&-" for fd in closed)
        command = f'sh -c "ls -l /proc/self/fd >{seen}; exit 7" {redirects}'
        script = f"{IN_SHELL} run --report --report-json {path} -- {command}"
        assert subprocess.run(["sh", "-c", script], timeout=LIMIT, capture_output=True).returncode == 7
        with open(path) as file:
            assert json.load(file)["exit_code"] == 7
        assert "report" not in seen.read_text()


def test_nobody_reads_stderr():
    """A full pipe must not hold up the time limit, nor the end."""
    read_fd, write_fd = os.pipe()
    try:
        os.set_blocking(write_fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write_fd, b"x" * 4096)
        os.set_blocking(write_fd, True)
        done = run("--verbose", "--timeout", "300ms", "--", "sleep", "60", stderr=write_fd)
        assert done.returncode == 124
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_closed_stderr_does_not_end_the_command():
    """The SIGPIPE of holdfast's own writes is not the command's."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done = run("--verbose", "--", "sh", "-c", "exit 8", stderr=write_fd)
    os.close(write_fd)
    assert done.returncode == 8


# ---- signals ---------------------------------------------------------------------------------------

LISTENER = """\
import os, signal, sys
r, w = os.pipe(); os.set_blocking(w, False)
signal.set_wakeup_fd(w)
for s in range(1, 65):
    if s not in (9, 19, 17, 32, 33): signal.signal(s, lambda *_: None)
os.write(1, b'up\\n')
while True:
    for n in os.read(r, 1):
        os.write(1, b'%d\\n' % n)
        if n == 40: sys.exit(4)
"""


def test_signals_are_passed_on():
    wanted = [1, 2, 3, 10, 12, 13, 14, 15, 21, 22, 23, 28, 34, 39, 50, 64]
    wanted = [n for n in wanted if n not in (signal.SIGTTIN, signal.SIGTTOU)]
    with started("--", sys.executable, "-S", "-c", LISTENER) as process:
        for n in [*wanted, 40]:
            process.send_signal(n)
            assert process.stdout.readline() == b"%d\n" % n
        assert process.wait(LIMIT) == 4
        assert process.stdout.read() == b""


def test_what_stops_and_continues_is_not_passed_on():
    with started("--", sys.executable, "-S", "-c", LISTENER) as process:
        for n in (signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD):
            process.send_signal(n)
        process.send_signal(40)
        assert process.stdout.read() == b"40\n"
        assert process.wait(LIMIT) == 4


def test_an_alarm_of_the_caller_reaches_the_command():
    """`alarm` outlives exec: as without holdfast, the program that was exec'd gets the signal."""
    code = f"import os, signal; signal.alarm(1); os.execv({HOLDFAST!r}, ['holdfast', 'run', '--', 'sleep', '60'])"
    done = subprocess.run([sys.executable, "-c", code], timeout=LIMIT)
    assert done.returncode == 128 + signal.SIGALRM


def test_a_stop_of_the_command_without_a_terminal():
    """Nobody would continue holdfast: it goes on, and its time limit with it."""
    with started("--timeout", "700ms", "--grace", "200ms", "--", "sh", "-c", "echo up; kill -TSTP $$; sleep 60",
                 stderr=subprocess.PIPE) as process:  # fmt: skip
        assert process.wait(LIMIT) == 124
        assert not process.marked.members()


def test_a_stopped_holdfast_keeps_its_deadline():
    with started("--timeout", "700ms", "--", "sh", "-c", "echo up; exec sleep 60", stderr=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        assert process.wait(LIMIT) == 124


# ---- the caller ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True])
def test_die_with_parent(stopped):
    marked = Marked()
    script = f"{IN_SHELL} run --die-with-parent --grace 300ms -- sh -c '(setsid sleep 60 &); echo up; exec sleep 60'; :"
    parent = subprocess.Popen(["sh", "-c", script], env=marked.env, stdout=subprocess.PIPE, bufsize=0)
    try:
        assert parent.stdout.readline() == b"up\n"
        if stopped:
            for pid, line in marked.members().items():
                if line.startswith("holdfast-keeper"):
                    signal_process(pid, signal.SIGSTOP)
                    poll_until(lambda pid=pid: state(pid) == "T")
        parent.kill()
        parent.wait(LIMIT)
        marked.assert_empty()
    finally:
        marked.kill_all()
        parent.wait(LIMIT)
        parent.stdout.close()


def test_without_die_with_parent_it_lives_on():
    marked = Marked()
    script = f"{IN_SHELL} run -- sh -c 'echo up; exec sleep 60'; :"
    parent = subprocess.Popen(["sh", "-c", script], env=marked.env, stdout=subprocess.PIPE, bufsize=0)
    try:
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
        parent.wait(LIMIT)
        keeper = [pid for pid, line in marked.members().items() if line.startswith("holdfast-keeper")]
        assert len(keeper) == 1
        signal_process(keeper[0], signal.SIGTERM)
        marked.assert_empty()
    finally:
        marked.kill_all()
        parent.wait(LIMIT)
        parent.stdout.close()


def test_die_with_parent_that_is_out_of_sight():
    if os.geteuid() != 0:
        pytest.skip("needs root, for a pid namespace")
    require("unshare")
    command = ["unshare", "--pid", "--fork", "--kill-child", HOLDFAST, "run", "--die-with-parent", "--", "true"]
    done = subprocess.run(command, timeout=LIMIT, capture_output=True, text=True)
    assert done.returncode == 125 and "outside this pid namespace" in done.stderr


def test_a_killed_keeper_takes_the_command_along():
    with started("--", "sh", "-c", "echo up; exec sleep 60") as process:
        main = main_of(process)
        process.kill()
        assert process.wait(LIMIT) == -9
        poll_until(lambda: main not in process.marked.members())


# ---- what is passed on -----------------------------------------------------------------------------


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LANG": "C.UTF-8"}], ids=["none", "C", "UTF-8"])
def test_the_environment_is_exactly_the_callers(locale):
    env = {**locale, "PATH": "/usr/bin:/bin", "EMPTY": "", "ODD": "a=b\n\udcff", "PYTHONHOME_NOT": "1"}
    plain = subprocess.run(["cat", "/proc/self/environ"], env=env, stdout=subprocess.PIPE).stdout
    held = subprocess.run([*RUN, "--", "cat", "/proc/self/environ"], env=env, stdout=subprocess.PIPE).stdout
    assert held == plain


def test_names_that_come_twice_are_passed_on():
    code = (
        "import os\nclass E:\n"
        "    def __len__(self): return 3\n    def __getitem__(self, k): return b''\n"
        "    def keys(self): return [b'A', b'B', b'A']\n    def values(self): return [b'1', b'2', b'3']\n"
        f"os.execve({HOLDFAST!r}, ['holdfast', 'run', '--', '/bin/cat', '/proc/self/environ'], E())"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout == b"A=1\0B=2\0A=3\0"


def test_ignored_and_blocked_signals():
    def look(prefix):
        def ignore():
            for n in (signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGTTOU):
                signal.signal(n, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, 40])

        command = [*prefix, "cat", "/proc/self/status"]
        done = subprocess.run(command, preexec_fn=ignore, stdout=subprocess.PIPE, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith(("SigIgn", "SigBlk", "SigCgt"))]

    assert look([*RUN, "--"]) == look([])


def test_sigpipe_and_sigxfsz_are_default():
    done = run("--", "cat", "/proc/self/status")
    ignored = int(re.search(r"SigIgn:\s*(\w+)", done.stdout).group(1), 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_limits_and_directory_and_mask(tmp_path):
    def look(prefix):
        def change():
            os.chdir(tmp_path)
            os.umask(0o027)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

        script = "pwd; umask; ulimit -n; ulimit -H -n; ps -o pgid= -o sid= -p $$ | wc -w"
        return subprocess.run([*prefix, "sh", "-c", script], preexec_fn=change, capture_output=True, check=True).stdout

    assert look([*RUN, "--"]) == look([])


def test_group_and_session_are_the_callers():
    with started("--", "sh", "-c", "echo up; exec sleep 60") as process:
        main = main_of(process)
        assert os.getpgid(main) == os.getpgid(process.pid) == os.getpgrp()
        assert os.getsid(main) == os.getsid(0)
        process.terminate()
        assert process.wait(LIMIT) == 143


def test_inherited_descriptors_reach_the_command(tmp_path):
    (tmp_path / "file").write_text("content")
    redirects = f"exec 7<{tmp_path}/file 9>{tmp_path}/out"
    command = "sh -c 'cat <&7; echo nine >&9; ls /proc/self/fd'"
    scripts = (f"{redirects}; {IN_SHELL} run -- {command}", f"{redirects}; {command}")
    held, bare = (subprocess.run(["sh", "-c", s], capture_output=True, text=True).stdout for s in scripts)
    assert held == bare and "content" in held
    assert (tmp_path / "out").read_text() == "nine\n"


def test_the_keeper_holds_no_pipe_of_the_command_open():
    other_read, other_write = os.pipe()
    script = f"import os, signal; os.write(1, b'up\\n'); os.close(1); os.close({other_write}); signal.pause()"
    with started("--timeout", "60s", "--", sys.executable, "-c", script, pass_fds=[other_write]) as process:
        os.close(other_write)
        assert process.stdout.read() == b""  # the end, while the command runs on
        assert select.select([other_read], [], [], LIMIT)[0] and os.read(other_read, 1) == b""
        assert process.poll() is None
        assert {os.readlink(f"/proc/{process.pid}/fd/{n}") for n in "01"} == {"/dev/null"}
        process.terminate()
        assert process.wait(LIMIT) == 143
    os.close(other_read)


def test_what_stays_is_the_keeper_alone():
    with started("--timeout", "60s", "--", "sh", "-c", "echo up; exec sleep 60") as process:
        main = main_of(process)
        poll_until(lambda: os.readlink(f"/proc/{main}/exe").endswith("/sleep"))
        assert set(process.marked.members()) == {process.pid, main}
        assert os.path.basename(os.readlink(f"/proc/{process.pid}/exe")) == "holdfast-keeper"
        with open(f"/proc/{process.pid}/smaps_rollup") as file:
            rollup = dict(re.findall(r"(\w+):\s+(\d+) kB", file.read()))
        private = int(rollup["Private_Clean"]) + int(rollup["Private_Dirty"])
        limit = 100 if b"/ld-" not in open_head(os.readlink(f"/proc/{process.pid}/exe")) else 1000
        assert private <= limit, rollup
        process.terminate()
        process.wait(LIMIT)


def open_head(path):
    with open(path, "rb") as file:
        return file.read(4096)


# ---- strangers -------------------------------------------------------------------------------------


def test_a_process_substitution_is_left_alone(tmp_path):
    require("bash")
    log = tmp_path / "log"
    for limit, code in (("60s", 3), ("500ms", 124)):
        command = f"echo text; {'exit 3' if code == 3 else 'exec sleep 60'}"
        script = f"{IN_SHELL} run --timeout {limit} -- sh -c '{command}' > >(tee {log}); echo code $?"
        marked = Marked()
        done = subprocess.run(["bash", "-c", script], env=marked.env, capture_output=True, text=True, timeout=LIMIT)
        assert f"code {code}" in done.stdout, done
        poll_until(lambda: log.read_text() == "text\n")
        marked.assert_empty()


@pytest.mark.parametrize(("n", "limit"), [(1, None), (100, None), (3, "400ms")], ids=["one", "many", "time limit"])
def test_children_of_the_caller_are_left_alone(n, limit):
    """Neither signalled nor waited for: they hold a pipe open and end when the test closes theirs."""
    marked = Marked()
    code = (
        "import os, sys, subprocess\n"
        f"for _ in range({n}): subprocess.Popen(['cat'], stdout=2, start_new_session=False)\n"
        f"os.execv({HOLDFAST!r}, {['holdfast', 'run', *(['--timeout', limit] if limit else []), '--']!r}"
        f" + ['sh', '-c', {'setsid sleep 60 & exec sleep 60' if limit else 'sleep 60 & exit 5'!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=marked.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.wait(LIMIT) == (124 if limit else 5)
        left = marked.members()
        assert len(left) == n and set(left.values()) == {"cat "}
        process.stdin.close()
        marked.assert_empty()
    finally:
        marked.kill_all()
        process.wait(LIMIT)
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def test_too_many_children_of_the_caller():
    """They cannot all be remembered: refused, rather than taken for the command's."""
    code = (
        "import os\nr, w = os.pipe()\n"
        "for _ in range(1025):\n"
        "    if os.fork() == 0: os.close(w); os.read(r, 1); os._exit(0)\n"
        f"os.set_inheritable(w, True)\nos.execv({HOLDFAST!r}, ['holdfast', 'run', '--', 'echo', 'started'])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (125, "") and "too many children" in done.stderr


# ---- the rest of the command line ------------------------------------------------------------------


def test_help_and_version():
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for option in ("--timeout", "--grace", "--signal", "--die-with-parent", "--report", "--report-json", "--verbose"):
        assert option in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    top = subprocess.run([HOLDFAST, "--help"], capture_output=True, text=True, timeout=LIMIT)
    assert top.returncode == 0 and "doctor" in top.stdout and "run" in top.stdout
    version = subprocess.run([HOLDFAST, "--version"], capture_output=True, text=True, timeout=LIMIT)
    assert re.fullmatch(r"holdfast \d+\.\d+\.\d+\S*\n", version.stdout) and version.returncode == 0
    wrong = subprocess.run([HOLDFAST, "no-such-verb"], capture_output=True, text=True, timeout=LIMIT)
    assert wrong.returncode == 2 and "no-such-verb" in wrong.stderr


def test_as_a_module():
    command = [sys.executable, "-m", "holdfast", "run", "--timeout", "200ms", "--", "sleep", "60"]
    assert subprocess.run(command, capture_output=True, timeout=LIMIT).returncode == 124


AS_NOBODY = """\
import contextlib, io, os, pwd, sys
sys.path.insert(0, sys.argv[1])
from holdfast.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(['holdfast', *sys.argv[2:]])
user = pwd.getpwnam('nobody')
os.setgroups([]); os.setresgid(*[user.pw_gid] * 3); os.setresuid(*[user.pw_uid] * 3)
main(['holdfast', *sys.argv[2:]])
"""


@pytest.fixture
def for_everybody():
    """`holdfast` as nobody, from a copy of the package that any user may read.  The interpreter may lie where
    nobody can read it, so a first run as root imports what the one as nobody needs."""
    import holdfast

    folder = tempfile.mkdtemp()
    try:
        shutil.copytree(os.path.dirname(holdfast.__file__), os.path.join(folder, "holdfast"))
        os.chmod(folder, 0o755)
        yield [sys.executable, "-c", AS_NOBODY, folder]
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("user", [None, "nobody"])
def test_doctor(user, for_everybody):
    command, kwargs = [HOLDFAST], {}
    if user:
        if os.geteuid() != 0:
            pytest.skip("needs root, to become nobody")
        command, kwargs = for_everybody, {"cwd": "/"}
    text = subprocess.run([*command, "doctor"], capture_output=True, text=True, timeout=LIMIT, **kwargs)
    assert text.returncode == 0, text.stderr
    assert "\x1b" not in text.stdout and "Everything needed is there." in text.stdout
    as_json = subprocess.run([*command, "doctor", "--json"], capture_output=True, text=True, timeout=LIMIT, **kwargs)
    report = json.loads(as_json.stdout)
    assert as_json.returncode == 0 and report["healthy"] is True and as_json.stderr == ""
    findings = {f["name"]: f for f in report["findings"]}
    assert {"keeper", "pidfd", "P_PIDFD", "PIDFD_GET_INFO exit", "clone3", "subreaper", "children files", "cgroup v2",
            "proc connector"} <= set(findings)  # fmt: skip
    for finding in findings.values():
        assert set(finding) == {"name", "available", "detail", "without"} and finding["without"]
        assert finding["name"] in text.stdout
    assert findings["keeper"]["detail"].split(",")[0].startswith(("static", "dynamic"))
    assert {"start", "notifier", "tree kill", "group handle"} <= set(report["means"])
