"""`holdfast run` under job control on a real pseudo-terminal, beside the same command without it.

Each scenario is played twice, once with the prefix and once without, and must look the same: the shell's
exit code, its notices, the signals that the program heard and how often, the terminal afterwards.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys

import pytest
from conftest import require
from helpers_terminal import (
    COUNTER,
    HOLDFAST,
    IN_SHELL,
    LIMIT,
    PROMPT,
    Marked,
    Terminal,
    poll_until,
    signal_process,
    state,
)
from helpers_wait import wait_for

RUN = f"{IN_SHELL} run --grace 2s --"
PYTHON = shlex.quote(sys.executable)
BARRIER = 39  # a real-time signal: it is passed on after everything that came before
SHELLS = {"bash": ["bash", "--norc", "--noprofile", "--noediting", "-i"], "dash": ["dash", "-i"]}


@pytest.fixture(params=["bash", "dash"])
def shell(request):
    require(request.param)
    return request.param


def both(shell, scenario, tmp_path):
    """What the scenario shows without and with holdfast."""
    seen = []
    for prefix in ("", RUN + " "):
        with Terminal(SHELLS[shell]) as t:
            t.counter = Counter(t, tmp_path / f"control{len(seen)}")
            try:
                before = (t.foreground(), t.modes())
                seen.append(scenario(t, prefix))
                assert (t.foreground(), t.modes()) == before, "the terminal is not as it was"
            finally:
                t.counter.close()
    plain, held = seen
    assert held == plain
    return plain


class Counter:
    """The program that counts its signals, and how a test speaks with it."""

    def __init__(self, terminal, path):
        os.mkfifo(path)
        self.terminal = terminal
        self.control = os.open(path, os.O_RDWR)
        script = path.with_suffix(".py")
        script.write_text(COUNTER)
        self.command = f"{PYTHON} -S {shlex.quote(str(script))} {shlex.quote(str(path))}"

    def close(self):
        os.close(self.control)

    def heard_everything(self, leader):
        """All that was sent to the job until now has reached the program."""
        signal_process(leader, BARRIER)
        return self.terminal.expect(f"got {BARRIER}\n")

    def end(self):
        os.write(self.control, b"end\n")
        self.terminal.expect("counts ")
        return self.terminal.expect("\n")


def job_pid(t):
    """The pid of the last background job, as the shell has it."""
    t.catch_up()
    return int(re.search(r"pid (\d+)", t.run('echo "pid $!"')).group(1))


def finish_background(t):
    """End the counter in the background: its counts, and its exit code as the shell's wait has it."""
    t.catch_up()
    t.send("wait %1\n")
    counts = t.counter.end()
    t.prompt()
    return counts, t.code()


def until_stopped(t):
    poll_until(lambda: "Stopped" in t.run("jobs"), "the job does not stop")


def comm(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def all_stopped(t):
    """Every process of the job; the witness only watches (and is nobody before its first step)."""
    left = [pid for pid in t.marked.members() if pid != t.process.pid and comm(pid) != "hf-witness"]
    return {state(pid) for pid in left} == {"T"}


def notices(text):
    """The shell's words about a job without its command line and number."""
    return re.findall(r"Stopped(?: \([a-z ]+\))?|Terminated|Killed|Hangup|Exit \d+|Done(?:\(\d+\))?", text)


# ---- keys ------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_command(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"{prefix}sh -c 'echo up; exec sleep 99'\n")
        t.expect("up\n")
        t.send("\x03")
        t.prompt()
        return t.code()

    assert both(shell, scenario, tmp_path) == 130


@pytest.mark.parametrize(("key", "name"), [("\x03", "INT"), ("\x1c", "QUIT")])
def test_a_key_is_heard_once(shell, tmp_path, key, name):
    def scenario(t, prefix):
        t.send(f"{prefix}{t.counter.command}\n")
        t.expect("up\n")
        for _ in range(3):
            t.send(key)
            t.expect(f"got {name}\n")
            t.counter.heard_everything(t.foreground())
        counts = t.counter.end()
        t.prompt()
        return counts, t.code()

    assert both(shell, scenario, tmp_path) == (f"[('{name}', 3)]", 7)


def test_ctrl_c_leaves_a_loop(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"for i in 1 2 3; do {prefix}sh -c 'echo up; exec sleep 99'; done; echo went on\n")
        t.expect("up\n")
        t.send("\x03")
        return "up" in t.prompt(), t.code()

    assert both(shell, scenario, tmp_path) == (False, 130)


def test_ctrl_c_leaves_a_script(shell, tmp_path):
    """The script's shell is in the same group and asks how its command ended before it ends itself."""

    def scenario(t, prefix):
        script = tmp_path / f"script{len(prefix)}"
        script.write_text(f"{prefix}sh -c 'echo up; exec sleep 99'\necho went on\n")
        t.send(f"{shell} {shlex.quote(str(script))}\n")
        t.expect("up\n")
        t.send("\x03")
        return "went on" in t.prompt(), t.code()

    assert both(shell, scenario, tmp_path) == (False, 130)


def test_ctrl_c_that_the_command_catches_leaves_the_script_alone(shell, tmp_path):
    def scenario(t, prefix):
        script = tmp_path / f"script{len(prefix)}"
        script.write_text(f"trap 'echo script' INT\n{prefix}{t.counter.command}\necho code $?\n")
        t.send(f"{shell} {shlex.quote(str(script))}\n")
        t.expect("up\n")
        t.send("\x03")
        t.expect("got INT\n")
        counts = t.counter.end()
        return counts, re.findall(r"code \d+", t.prompt())

    assert both(shell, scenario, tmp_path) == ("[('INT', 1)]", ["code 7"])


def test_ctrl_z_and_fg(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"{prefix}{t.counter.command}\n")
        t.expect("up\n")
        seen = []
        for _ in range(2):
            t.send("\x1a")
            seen += notices(t.prompt())[:1]
            seen.append(t.code())
            seen += notices(t.run("jobs"))
            poll_until(lambda: all_stopped(t))
            t.send("fg\n")
            t.expect("got CONT\n")
            t.counter.heard_everything(t.foreground())
        counts = t.counter.end()
        t.prompt()
        return [*seen, counts, t.code()]

    seen = both(shell, scenario, tmp_path)
    assert seen[-2:] == ["[]", 7]
    assert "Stopped" in seen and 148 in seen


def test_ctrl_z_and_bg(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"{prefix}{t.counter.command}\n")
        t.expect("up\n")
        leader = t.foreground()
        t.send("\x1a")
        t.prompt()
        t.send("bg\n")
        t.expect("got CONT\n")
        t.counter.heard_everything(leader)
        assert t.foreground() == t.process.pid  # the shell has its terminal
        return finish_background(t)

    assert both(shell, scenario, tmp_path) == ("[]", 7)


def test_ctrl_z_that_the_command_ignores(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"""{prefix}sh -c 'trap "" TSTP; echo up; read x; echo read $x; exit 5'\n""")
        t.expect("up\n")
        t.send("\x1a")
        t.send("line\n")
        t.expect("read line\n")
        t.prompt()
        return t.code()

    assert both(shell, scenario, tmp_path) == 5


def test_a_command_that_stops_itself(shell, tmp_path):
    """As an editor does on Ctrl-Z: it alone, not its group."""

    def scenario(t, prefix):
        t.send(f"{prefix}sh -c 'kill -TSTP $$; echo went on; exit 6'\n")
        seen = notices(t.prompt())[:1]
        t.send("fg\n")
        t.expect("went on\n")
        t.prompt()
        return seen, t.code()

    assert both(shell, scenario, tmp_path) == (["Stopped"], 6)


# ---- background ------------------------------------------------------------------------------------


def test_background_read(shell, tmp_path):
    def scenario(t, prefix):
        t.run(f"{prefix}sh -c 'read x; echo read $x; exit 4' &")
        until_stopped(t)
        seen = notices(t.run("jobs"))
        t.send("fg\n")
        poll_until(lambda: t.foreground() != t.process.pid)
        t.send("line\n")
        t.expect("read line\n")
        t.prompt()
        return seen, t.code()

    both(shell, scenario, tmp_path)


def test_background_write_to_a_terminal_that_forbids_it(shell, tmp_path):
    def scenario(t, prefix):
        t.run("stty tostop")
        t.run(f"{prefix}sh -c 'echo written; exit 4' &")
        until_stopped(t)
        seen = notices(t.run("jobs"))
        t.send("fg\n")
        t.expect("written\n")
        t.prompt()
        code = t.code()
        t.run("stty -tostop")
        return seen, code

    assert both(shell, scenario, tmp_path)[1] == 4


def test_kill_of_a_job_is_heard_once(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"{prefix}{t.counter.command} &\n")
        t.expect("up\n")
        leader = job_pid(t)
        for how in ("kill %1", "kill -USR1 %1", f"/bin/kill -HUP -- -{leader}", "kill %1"):
            t.send(how + "\n")
            t.expect("got (TERM|USR1|HUP)\n")
            t.counter.heard_everything(leader)
        return finish_background(t)

    assert both(shell, scenario, tmp_path) == ("[('HUP', 1), ('TERM', 2), ('USR1', 1)]", 7)


def test_kill_of_the_process_alone_is_heard_once(shell, tmp_path):
    """`kill PID` from the job's own shell looks just like `kill %1`, but only holdfast has got it."""

    def scenario(t, prefix):
        t.send(f"{prefix}{t.counter.command} &\n")
        t.expect("up\n")
        leader = job_pid(t)
        for how in ("kill $!", "kill %1", "kill $!", "kill -INT $!", f"/bin/kill -TERM {leader}"):
            t.send(how + "\n")
            t.expect("got (TERM|INT)\n")
            t.counter.heard_everything(leader)
        return finish_background(t)

    assert both(shell, scenario, tmp_path) == ("[('INT', 1), ('TERM', 4)]", 7)


def test_a_program_that_terminates_its_command(shell, tmp_path):
    """A caller in the same session and group, whose command has the terminal as its stdin."""

    def scenario(t, prefix):
        caller = tmp_path / f"caller{len(prefix)}.py"
        caller.write_text(
            "import subprocess\n"
            f"p = subprocess.Popen({shlex.split(prefix + t.counter.command)!r}, stdout=subprocess.PIPE, bufsize=0)\n"
            "lines = [p.stdout.readline()]\n"
            "for _ in range(2):\n"
            "    p.terminate()\n"
            "    lines.append(p.stdout.readline())\n"
            "    p.send_signal(39)\n"
            "    lines.append(p.stdout.readline())\n"
            "print(lines, flush=True)\n"
            "print(p.communicate()[0], p.returncode)\n"
        )
        t.send(f"{PYTHON} {shlex.quote(str(caller))}\n")
        lines = t.expect("]\n")
        os.write(t.counter.control, b"end\n")
        return lines, t.prompt()

    _, end = both(shell, scenario, tmp_path)
    assert "counts [('TERM', 2)]" in end and end.endswith(" 7\n")


def test_kill_ends_a_stopped_job(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"{prefix}sh -c 'echo up; exec sleep 99'\n")
        t.expect("up\n")
        t.send("\x1a")
        t.prompt()
        t.run("kill %1")
        if shell == "dash":  # bash sends a CONT along; what it says of the job then may be out of date
            t.run("fg")
            return t.code()
        return poll_until(lambda: set(t.marked.members()) == {t.process.pid})

    assert both(shell, scenario, tmp_path) == (143 if shell == "dash" else True)


def test_notices_of_a_job_that_was_killed(shell, tmp_path):
    def scenario(t, prefix):
        seen = []
        for name in ("TERM", "KILL", "HUP"):
            t.send(f"{prefix}sh -c 'echo up; exec sleep 99' &\n")
            t.expect("up\n")
            t.catch_up()
            said = t.run(f"kill -{name} %1") + t.run("wait %1")
            seen.append((notices(said + t.run("true"))[:1], name))
        return seen

    both(shell, scenario, tmp_path)


# ---- pipelines and the terminal's modes ------------------------------------------------------------


def test_ctrl_z_in_a_pipeline(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"{prefix}sh -c 'echo up; read x < /dev/tty; echo read $x; exit 3' | {prefix}cat\n")
        t.expect("up\n")
        t.send("\x1a")
        seen = notices(t.prompt())[:1]
        poll_until(lambda: all_stopped(t))
        t.send("fg\n")
        poll_until(lambda: t.foreground() != t.process.pid)
        t.send("line\n")
        t.expect("read line\n")
        t.prompt()
        return seen, t.code()

    assert both(shell, scenario, tmp_path) == (["Stopped"], 0)


def test_modes_that_a_command_leaves(shell, tmp_path):
    def scenario(t, prefix):
        t.run(f"{prefix}stty -icanon min 3 -isig")
        modes = t.modes()
        t.run(f"{prefix}stty sane -echo -onlcr")
        t.run(f"{prefix}stty {BEFORE}")
        return modes

    BEFORE = "-iutf8"
    seen = []
    for prefix in ("", RUN + " "):
        with Terminal(SHELLS[shell]) as t:
            seen.append((scenario(t, prefix), t.modes()))
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][1]


RAW = (
    "import os, signal, sys, termios, tty\n"
    "old = termios.tcgetattr(0); tty.setraw(0); os.write(1, b'raw\\n'); key = os.read(0, 1)\n"
    "if key == b'z':\n"  # what an editor does on its Ctrl-Z key
    "    termios.tcsetattr(0, termios.TCSANOW, old); os.kill(0, signal.SIGTSTP)\n"
    "    tty.setraw(0); os.write(1, b'raw\\n'); key = os.read(0, 1)\n"
    "termios.tcsetattr(0, termios.TCSANOW, old); print('key', key); sys.exit(9)\n"
)


@pytest.mark.parametrize("keys", ["x", "\x03", "\x1a"], ids=["plain", "ctrl-c", "ctrl-z"])
def test_raw_mode_takes_the_keys(shell, tmp_path, keys):
    def scenario(t, prefix):
        t.send(f"{prefix}{PYTHON} -c {shlex.quote(RAW)}\n")
        t.expect("raw\n")
        t.send(keys)
        return t.prompt(), t.code()

    assert both(shell, scenario, tmp_path)[1] == 9


def test_a_raw_program_that_stops_itself(shell, tmp_path):
    def scenario(t, prefix):
        t.send(f"{prefix}{PYTHON} -c {shlex.quote(RAW)}\n")
        t.expect("raw\n")
        t.send("z")
        seen = notices(t.prompt())[:1]
        t.send("fg\n")
        t.expect("raw\n")
        t.send("q")
        return seen, t.prompt(), t.code()

    seen = both(shell, scenario, tmp_path)
    assert seen[0] == ["Stopped"] and seen[2] == 9


def test_modes_after_a_raw_program_was_killed(shell, tmp_path):
    """bash puts the terminal right when its command *died*; dash does not.  Either does what it does."""
    seen = []
    for prefix in ("", RUN + " "):
        with Terminal(SHELLS[shell]) as t:
            before = t.modes()
            t.send(f"{prefix}sh -c 'stty raw; echo up; kill -KILL $$'\n")
            t.expect("up")
            t.prompt()
            seen.append(t.modes() == before)
    assert seen[0] == seen[1] == (shell == "bash")


# ---- the time limit and the caller -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["ctrl-z", "SIGSTOP to the group"])
def test_a_deadline_that_passes_while_stopped(shell, how):
    with Terminal(SHELLS[shell]) as t:
        before = (t.foreground(), t.modes())
        t.send(f"{IN_SHELL} run --timeout 1500ms --grace 300ms -- sh -c '(setsid sleep 99 &) ; echo up; exec sleep 99'")
        t.send("\n" if how == "ctrl-z" else " &\n")
        t.expect("up\n")
        if how == "ctrl-z":
            t.send("\x1a")
            assert notices(t.prompt())[:1] == ["Stopped"]
        else:
            t.catch_up()
            t.run("kill -STOP %1")
        poll_until(lambda: set(t.marked.members()) == {t.process.pid}, lambda: f"left: {t.marked.members()}")
        t.run("wait %1")
        assert t.code() == 124
        t.send("\n")
        t.prompt()
        assert "timed out after 1.5 s (exit 124)" in t.log
        assert (t.foreground(), t.modes()) == before


def test_a_stop_during_the_grace_does_not_hold_it_up(shell):
    with Terminal(SHELLS[shell]) as t:
        t.send(f"""{IN_SHELL} run --timeout 300ms --grace 500ms -- sh -c 'trap "echo asked" TERM; echo up; """)
        t.send("""while :; do read x; done'\n""")
        t.expect("asked\n")
        t.send("\x1a")
        t.expect(re.escape("timed out after 0.3 s (exit 124)"))
        t.prompt()
        assert t.code() == 124


def test_die_with_parent_while_stopped(shell):
    with Terminal(SHELLS[shell]) as t:
        t.send(f"""{IN_SHELL} run --die-with-parent --grace 300ms -- sh -c 'trap "" HUP; echo up; exec sleep 99'\n""")
        t.expect("up\n")
        t.send("\x1a")
        t.prompt()
        t.process.kill()
        t.process.wait(LIMIT)
        t.marked.assert_empty()


def test_the_terminal_is_closed(shell):
    """HUP goes to the session's leader alone, and that is holdfast here, as in `xterm -e holdfast run`."""
    t = Terminal([HOLDFAST, "run", "--grace", "5s", "--", shell, "-c", "echo up; sleep 99"], expect="up\n")
    with t:
        t.hang_up()
        assert t.process.wait(LIMIT) == 128 + signal.SIGHUP
        t.marked.assert_empty()


def test_an_interactive_shell_as_the_command(shell):
    """It takes the terminal for a group of its own, and gives it back."""
    with Terminal(SHELLS[shell]) as t:
        outer = t.foreground()
        t.run(f"{RUN} {' '.join(SHELLS[shell])}")
        assert t.foreground() not in (outer, -1)
        t.send("sh -c 'echo up; exec sleep 99'\n")
        t.expect("up\n")
        t.send("\x1a")
        assert notices(t.prompt())[:1] == ["Stopped"]
        t.send("fg\n")
        poll_until(lambda: any("sleep" in line and state(pid) != "T" for pid, line in t.marked.members().items()))
        t.send("\x03")
        t.prompt()
        t.run("exit 11")
        assert t.code() == 11
        assert t.foreground() == outer


# ---- the witness -----------------------------------------------------------------------------------


def test_a_witness_lives_only_beside_a_terminal():
    """What stays resident elsewhere is the keeper alone."""
    require("dash")
    with Terminal(SHELLS["dash"]) as t:
        t.send(f"{RUN} sh -c 'echo up; exec sleep 99'\n")
        t.expect("up\n")
        members = t.marked.members()
        assert len(members) == 4, members  # the shell, the keeper, its witness, the command
        keeper = t.foreground()
        signal_process(keeper, signal.SIGKILL)  # nothing of it may stay, whoever ends it
        t.prompt()
        poll_until(lambda: set(t.marked.members()) == {t.process.pid}, lambda: f"left: {t.marked.members()}")


def test_without_the_witness_the_command_is_still_told():
    require("dash")
    with Terminal(SHELLS["dash"]) as t:
        t.send(f"{RUN} sh -c 'echo up; exec sleep 99'\n")
        t.expect("up\n")
        # It takes its name when the command may run already.
        witness = wait_for(lambda: [pid for pid in t.marked.members() if comm(pid) == "hf-witness"])
        signal_process(witness[0], signal.SIGKILL)
        poll_until(lambda: witness[0] not in t.marked.members())
        signal_process(t.foreground(), signal.SIGTERM)
        t.prompt()
        assert t.code() == 143


def test_the_marker_finds_what_it_should():
    """The proof of emptiness above can fail."""
    import subprocess

    marked = Marked()
    process = subprocess.Popen(["sleep", "60"], env=marked.env)
    try:
        poll_until(lambda: process.pid in marked.members())
        assert PROMPT not in marked.marker
    finally:
        process.kill()
        process.wait()
    marked.assert_empty()
