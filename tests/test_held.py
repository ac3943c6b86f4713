"""Held: no tree outlives its owner unless it was asked to, whatever becomes of owner and keeper."""

import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers_lib import kernel_tells_stolen_status
from helpers_trees import (
    LIMIT,
    Tree,
    build_tree_program,
    copy_package,
    hold_keeper,
    keepers,
    kill_marked,
    left_of,
    make_tree,
    marked,
    state,
    tree_program,  # noqa: F401  (a fixture)
    wait_for,
)

import holdfast

__all__ = ["make_tree"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def package(tmp_path):
    """A copy of the package; `package.keeper` is the executable of its keepers and of no others."""

    class Package:
        path = str(tmp_path)
        keeper = copy_package(str(tmp_path))

        def start(self, script, *args, **options):
            environment = {**os.environ, "PYTHONPATH": self.path, "PYTHONWARNINGS": "ignore"}
            return subprocess.Popen(
                [sys.executable, "-c", script, *map(str, args)], env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options,
            )  # fmt: skip

    package = Package()
    yield package
    wait_for(lambda: not keepers(package.keeper), what="the keepers to end")


def finish(owner, send=b""):
    """What the owner printed, as JSON; it must end by itself and well."""
    out, _ = owner.communicate(send, timeout=60)
    assert owner.returncode == 0, out
    return json.loads(out)


# ---- the owner is killed

KILLED_OWNERS = """
import os, random, select, signal, sys, time, holdfast
program, mark, seed, count, log = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
null = os.open("/dev/null", os.O_WRONLY)
rng = random.Random(seed)
env = {"HF_MARK": mark}

def polite(shape):  # these end when they are told, and log it
    return dict(args=[program, str(log), shape, "x", "2"], env=env, pass_fds=[log], grace=30.0, new_session=True)

def rude(shape):
    return dict(args=[program, str(null), shape, "i", "2"], env=env, pass_fds=[null], grace=0.2)

def run(runner, **options):
    try:
        runner.run(timeout=0.01, **options)
    except holdfast.TimeoutExpired:
        pass

def own(rng):
    held, runner = [], None
    while True:
        options = rng.choice([polite, rude])(rng.choice(["plain", "daemons", "sessions"]))
        what = rng.randrange(6)
        if what == 0:
            held.append(holdfast.spawn(**options))
        elif what == 1:
            run(holdfast, **options)
        elif what == 2:
            holdfast.run(["true"], env=env)
        elif what == 3:
            with holdfast.spawn(**options) as process:
                process.stop()
        elif what == 4:
            runner = runner or holdfast.Runner()
            held.append(runner.spawn(**options))
        else:
            runner = runner or holdfast.Runner()
            run(runner, **options)
        if len(held) > 4:
            held.pop().close()

holdfast.run(["true"], timeout=5.0, capture_output=True)  # imports everything
with holdfast.Runner() as runner:
    runner.run(["true"])
for number in range(count):
    own_rng = random.Random(rng.random())
    pid = os.fork()
    if pid == 0:
        try:
            own(own_rng)
        finally:
            os._exit(1)
    select.select([], [], [], rng.random() * rng.choice([0.002, 0.01, 0.05]))
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
print(count)
"""


def test_owners_killed_at_random_moments_leave_nothing(package, make_tree):
    tree = make_tree("plain")  # its log and its mark serve all
    drivers = [
        package.start(KILLED_OWNERS, tree.args[0], tree.mark, seed, 50, tree.writer, pass_fds=[tree.writer])
        for seed in (1, 2, 3, 4)
    ]
    os.close(tree.writer)
    tree.writer = -1
    assert [finish(driver) for driver in drivers] == [50] * 4
    began = time.monotonic()
    wait_for(lambda: not marked(tree.mark) and not keepers(package.keeper), 10.0, "the trees and keepers to end")
    took = time.monotonic() - began
    tree.read_to_the_end()
    # Whoever was ready was told before it ended.  (A number may have come twice.)
    ready, told = tree.counts("M"), tree.counts("T")
    assert ready and not ready - told, f"{ready - told} ended untold; all were gone after {took:.3f} s"


OWNER = """
import json, os, sys, time, holdfast
program, mark, log, mode, what = sys.argv[1:6]
options = json.loads(sys.argv[6])
process = holdfast.spawn([program, log, "plain", mode, "2"], env={"HF_MARK": mark}, pass_fds=[int(log)],
                         stdin=holdfast.DEVNULL, stdout=holdfast.DEVNULL, **options)
"""


def start_owner(package, tree, what="linger", mode="l", script="", **options):
    owner = package.start(
        OWNER + (script or 'print("up", flush=True)\nsys.stdin.read()\n'),
        tree.args[0], tree.mark, tree.writer, mode, what, json.dumps(options), pass_fds=[tree.writer],
    )  # fmt: skip
    os.close(tree.writer)
    tree.writer = -1
    tree.wait_for("M")
    return owner


def end(owner):
    owner.kill()
    owner.communicate()


def test_a_killed_owner_means_term_and_kill_after_the_grace(package, make_tree):
    tree = make_tree("plain")
    owner = start_owner(package, tree, grace=0.3)
    assert len(marked(tree.mark)) == 3 and len(keepers(package.keeper)) == 1
    end(owner)
    wait_for(lambda: not marked(tree.mark), 10.0)
    tree.read_to_the_end()
    assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)


def test_kill_on_owner_loss(package, make_tree):
    tree = make_tree("plain")
    end(start_owner(package, tree, on_owner_loss="kill", grace=600))
    wait_for(lambda: not marked(tree.mark), 10.0)
    tree.read_to_the_end()
    assert tree.lines("T") == []


def test_keep_on_owner_loss(package, make_tree):
    tree = make_tree("plain")
    end(start_owner(package, tree, on_owner_loss="keep", grace=0.1))
    with pytest.raises(AssertionError):
        wait_for(lambda: len(marked(tree.mark)) != 3, 0.5)
    assert tree.lines("T") == [] and len(keepers(package.keeper)) == 1
    kill_marked(tree.mark)  # the keeper ends with its tree


@pytest.mark.parametrize("how", ["exit", "_exit", "raise", "exec"])
def test_every_end_of_the_owner_is_its_loss(package, make_tree, how):
    script = {
        "exit": "sys.stdin.readline()",
        "_exit": "sys.stdin.readline(); os._exit(0)",
        "raise": "sys.stdin.readline(); sys.stderr = open(os.devnull, 'w'); raise RuntimeError",
        "exec": "sys.stdin.readline(); os.execv('/bin/sh', ['sh', '-c', 'read x'])",
    }[how]
    tree = make_tree("plain")
    owner = start_owner(package, tree, script=script, grace=0.2)
    owner.stdin.write(b"\n")
    owner.stdin.flush()
    wait_for(lambda: not marked(tree.mark), 10.0)
    if how == "exec":
        assert owner.poll() is None  # the same process, another program
    owner.communicate(b"\n", timeout=LIMIT)
    tree.read_to_the_end()
    assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)


FORKS = {
    "os.fork": "pid = os.fork()\nif pid == 0:\n    child()",
    "multiprocessing": (
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=child).start()"
    ),
}
FORKED = """
def child():
    os.write(1, b"x")
    select.select([], [], [], 60)  # holds copies of everything that was open
    os._exit(0)
import select
"""


@pytest.mark.parametrize("how", FORKS)
@pytest.mark.parametrize("end_of_handle", ["killed", "dropped"])
def test_a_forked_copy_of_the_owner_does_not_keep_the_tree(package, make_tree, how, end_of_handle):
    after = "del process\n" if end_of_handle == "dropped" else ""
    tree = make_tree("plain")
    owner = start_forking_owner(package, tree, FORKED + FORKS[how], after)
    try:
        assert owner.stdout.read(1) == b"x"
        if end_of_handle == "killed":
            owner.kill()
        else:
            owner.stdin.write(b"\n")
            owner.stdin.flush()
        wait_for(lambda: not marked(tree.mark), 10.0)  # the log is still open in the copy
        assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)
    finally:
        os.killpg(owner.pid, signal.SIGKILL)  # unreaped, so the number is still its group's
        owner.communicate()


def start_forking_owner(package, tree, fork, after):
    owner = package.start(
        OWNER + fork + "\nsys.stdin.readline()\n" + after + "sys.stdin.readline()\n",
        tree.args[0], tree.mark, tree.writer, "l", "", json.dumps({"grace": 0.2}),
        pass_fds=[tree.writer], process_group=0,
    )  # fmt: skip
    os.close(tree.writer)
    tree.writer = -1
    tree.wait_for("M")
    return owner


def test_a_handle_is_inert_in_a_forked_child(make_tree):
    tree = make_tree("plain", "l", 1)
    with tree.spawn(grace=0) as process:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = []
            try:
                calls = (process.wait, process.poll, process.stop, process.kill, process.fileno, process.wait_empty)
                for call in calls:
                    try:
                        call()
                        said.append("nothing")
                    except BaseException as error:
                        said.append(type(error).__name__)
                os.write(writer, " ".join(said).encode())
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(pid, 0)
        with open(reader) as file:
            said = file.read().split()
        assert said[0] == said[1] == said[2] == said[4] == said[5] == "ValueError", said
        assert process.poll() is None and len(marked(tree.mark)) == 2 and tree.lines("T") == []


# ---- the handle is given up


def test_release(make_tree):
    tree = make_tree("plain", "l", 2)
    process = tree.spawn(grace=0.1)
    process.release()
    with pytest.raises(AssertionError):
        wait_for(lambda: len(marked(tree.mark)) != 3, 0.4)
    assert tree.lines("T") == []
    with pytest.raises(ValueError):
        process.fileno()
    process.close()
    kill_marked(tree.mark)


def test_a_release_is_the_last_word(package, make_tree):
    # Requests and the loss of the owner come together, with reports that the owner never read.
    script = """
for _ in range(25):
    other = holdfast.spawn([program, log, "orphans", "l", "1"], env={"HF_MARK": mark}, pass_fds=[int(log)],
                           stdin=holdfast.DEVNULL, stdout=holdfast.DEVNULL, grace=0)
    select.select([other], [], [], 10)  # the exit is reported and not read
    other.signal_tree("WINCH")
    other.signal_tree("WINCH")
    other.release()
process.signal_tree("WINCH")
process.signal_tree("WINCH")
process.release()
os._exit(0)
"""
    tree = make_tree("plain")
    owner = start_owner(package, tree, script="import select\n" + script, grace=0)
    owner.communicate(timeout=LIMIT)
    tree.wait_for("M", 26)
    with pytest.raises(AssertionError):
        wait_for(lambda: len(marked(tree.mark)) != 25 + 3, 0.5)
    assert tree.lines("T") == []
    kill_marked(tree.mark)


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_dropped_handle_warns_and_does_not_wait(make_tree, in_a_cycle):
    tree = make_tree("plain", "l", 2)
    process = tree.spawn(grace=1.0)
    cycle = [process]
    if in_a_cycle:
        cycle.append(cycle)
    with pytest.warns(ResourceWarning, match="dropped"):
        del process, cycle
        gc.collect()
    assert len(marked(tree.mark)) == 3  # in its grace still
    wait_for(lambda: not marked(tree.mark), 10.0)
    tree.read_to_the_end()
    assert tree.counts("T") == dict.fromkeys(tree.lines("R"), 1)


def test_a_handle_of_a_runner_that_is_dropped_in_the_runners_own_work_does_not_deadlock():
    # The collector may run anywhere: also while the runner looks for a keeper.
    with holdfast.Runner() as runner:

        class Dropping(list):
            """Drops a handle when the runner looks for an idle keeper."""

            def __bool__(self):
                if dropped:
                    dropped.pop()
                return list.__len__(self) > 0

        process = runner.spawn(["true"])
        process.wait_empty(LIMIT)
        runner._idle = Dropping(runner._idle)
        dropped = [process]
        del process
        done = threading.Event()
        thread = threading.Thread(target=lambda: (runner.run(["true"]), done.set()), daemon=True)
        thread.start()
        assert done.wait(LIMIT)
        thread.join()


# ---- owners that get their keepers back

REAPER = """
import ctypes, json, os, select, sys, threading, time, holdfast
thief = sys.argv[1] == "thief"
if os.getpid() != 1:
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
over = threading.Event()
def steal():
    while not over.is_set():
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        over.wait(0.0002)
thread = threading.Thread(target=steal)
if thief:
    thread.start()
def zombies():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return len(file.read().split())
codes, most = [], 0
for number in range(60):
    with holdfast.spawn(["sh", "-c", f"exit {number}"]) as process:
        codes.append(process.wait().code)
    most = max(most, zombies())
with holdfast.Runner() as runner:
    for number in range(60, 90):
        codes.append(runner.run(["sh", "-c", f"exit {number}"]).returncode)
for number in range(90, 100):
    codes.append(holdfast.run(["sh", "-c", f"(sleep 9 &); exit {number}"], grace=0).returncode)
holdfast.run(["true"])
over.set()
if thief:
    thread.join()
print(json.dumps({"right": codes == list(range(100)), "most": most, "left": zombies(), "pid": os.getpid()}))
"""


@pytest.mark.parametrize("thief", ["alone", "thief"])
def test_a_subreaper_has_no_zombies(package, thief):
    said = finish(package.start(REAPER, thief))
    assert said["right"] and said["most"] <= 1 and said["left"] == 0


@needs_root
def test_pid_1_has_no_zombies(package):
    owner = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child", "timeout", "--foreground", "60",
         sys.executable, "-c", "import os, sys; os.getpid() == 2 or sys.exit(3)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    owner.communicate(timeout=60)
    if owner.returncode != 0:
        pytest.skip("namespaces cannot be made here")
    owner = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child",
         sys.executable, "-c", REAPER, "alone"],
        env={**os.environ, "PYTHONPATH": package.path}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    said = finish(owner, None)
    assert said["pid"] == 1
    assert said["right"] and said["most"] <= 1 and said["left"] == 0


# ---- last words


@pytest.mark.parametrize("act", ["stop", "signal_tree", "release"])
def test_a_request_at_the_moment_of_the_end_does_not_cost_the_status(act):
    # The keeper ends with our request unread: the kernel then reports an error ahead of its last words.
    rng = random.Random(3)
    for _ in range(300):
        with holdfast.spawn(["true"]) as process:
            select.select([process], [], [], rng.uniform(0, 0.002))
            if act == "stop":
                assert process.stop().empty
            elif act == "signal_tree":
                process.signal_tree("WINCH")
                process.signal_tree("WINCH")
            else:
                process.release()
                continue
            assert process.wait().code in (0, None)
            process.wait_empty(LIMIT)


# ---- the keeper is killed


def signal_by(fd, signo):
    try:
        signal.pidfd_send_signal(fd, signo)
    except ProcessLookupError:
        pass


@pytest.mark.parametrize("call", ["wait", "stop", "close", "poll"])
def test_a_killed_keeper_is_told_and_main_is_dead(make_tree, call):
    tree = make_tree("plain", "l", 2)
    process = tree.spawn()
    keeper = hold_keeper(process)
    signal_by(keeper, signal.SIGKILL)
    assert select.select([keeper], [], [], LIMIT)[0]
    os.close(keeper)
    with pytest.raises(holdfast.KeeperLost) as caught:
        getattr(process, call)()
    assert state(process.pid) in ("", "Z")
    assert caught.value.pid == process.pid and caught.value.survivors == ()
    with pytest.raises(holdfast.KeeperLost):
        process.wait_empty()
    if call != "close":
        with pytest.raises(holdfast.KeeperLost):
            process.close()
    process.close()
    kill_marked(tree.mark)  # unknown to the owner: they were never adopted
    assert "unknown" in str(caught.value)


def test_keepers_killed_at_random_moments(make_tree):
    rng = random.Random(5)

    def lose(tree, before, moment):
        """One tree whose keeper is killed around a stop: was it noticed?"""
        process = tree.spawn(grace=0.01)
        keeper = hold_keeper(process)

        def kill():
            select.select([], [], [], moment)
            signal_by(keeper, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        select.select([], [], [], before)
        lost = False
        try:
            process.stop()
            assert left_of(tree.mark) == []
        except holdfast.KeeperLost as error:
            lost = True
            assert error.survivors == ()
        wait_for(lambda: state(process.pid) in ("", "Z"), what="main to be dead")
        killer.join()
        os.close(keeper)
        try:
            process.close()
            assert not lost
        except holdfast.KeeperLost:
            assert lost
        kill_marked(tree.mark)
        return lost

    # At once, because whoever adopts a dead main process may take its time to reap it.
    with ThreadPoolExecutor(10) as pool:
        work = [
            pool.submit(lose, make_tree("plain", "l", 1), rng.uniform(0, 0.01), rng.uniform(0, 0.03)) for _ in range(40)
        ]
        lost = [one.result(60) for one in work]
        assert any(lost)


def adopting(make_tree, **options):
    """A tree with two daemons of which the owner knows: (process, tree)."""
    tree = make_tree("orphans", "l", 2)
    # An orphan that ends is what makes the keeper look at its other children.
    script = '"$0" "$1" orphans l 2; (sh -c : &); exec sleep 99'
    args = ["sh", "-c", script, tree.args[0], str(tree.writer)]
    process = holdfast.spawn(args, env=tree.env | {"PATH": os.environ["PATH"]}, pass_fds=[tree.writer], **options)
    wait_for(lambda: process.poll() or len(process._tree._adopted) >= 2, what="the adoption to be reported")
    os.close(tree.writer)
    tree.writer = -1
    return process, tree


def lose_keeper(process):
    keeper = hold_keeper(process)
    signal_by(keeper, signal.SIGKILL)
    os.close(keeper)
    with pytest.raises(holdfast.KeeperLost) as caught:
        process.wait(LIMIT)
    with pytest.raises(holdfast.KeeperLost):
        process.close()
    return caught.value


def test_adopted_members_die_with_the_keeper(make_tree):
    process, tree = adopting(make_tree)
    error = lose_keeper(process)
    assert error.survivors == ()
    if kernel_tells_stolen_status():
        assert error.status is not None and error.status.signal == 9
    assert left_of(tree.mark) == []


def test_with_keep_everybody_survives_the_keeper(make_tree):
    process, tree = adopting(make_tree, on_owner_loss="keep")
    daemons = {pid for pid in tree.lines("R") if state(pid)}
    error = lose_keeper(process)
    assert error.status is None
    assert {m.pid for m in error.survivors} == {process.pid, *daemons} == set(marked(tree.mark))
    assert all(m.survived for m in error.survivors)
    assert {m.name for m in error.survivors} == {"tree", "sleep"}
    kill_marked(tree.mark)


LOSING_OWNER = """
import json, os, select, signal, sys, time, holdfast
holdfast.spawn(["true"]).close()
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
program, log, mark = sys.argv[1:4]
script = '"$0" "$1" orphans l 2; (sh -c : &); exec sleep 99'
process = holdfast.spawn(
    ["sh", "-c", script, program, log], env={"HF_MARK": mark, "PATH": "/usr/bin:/bin"}, pass_fds=[int(log)],
    stdin=holdfast.DEVNULL, stdout=holdfast.DEVNULL, stderr=holdfast.DEVNULL,
)
end = time.monotonic() + 15
while len(process._tree._adopted) < 2 and time.monotonic() < end:
    process.poll()
    select.select([], [], [], 0.002)
with open(f"/proc/{process.pid}/stat") as file:
    keeper = os.pidfd_open(int(file.read().rpartition(")")[2].split()[1]))
signal.pidfd_send_signal(keeper, signal.SIGKILL)
try:
    process.wait()
except holdfast.KeeperLost as error:
    print(json.dumps([[m.pid, m.name] for m in error.survivors]))
"""


@needs_root
def test_members_that_cannot_be_killed_are_named_when_the_keeper_is_lost(tmp_path_factory):
    import shutil
    import tempfile

    directory = tempfile.mkdtemp(prefix="holdfast-")
    os.chmod(directory, 0o755)
    program = build_tree_program(directory)
    os.chmod(program, 0o4755)
    copy_package(directory)
    tree = Tree(program, "orphans", "l", 2)
    try:
        owner = subprocess.Popen(
            [sys.executable, "-c", LOSING_OWNER, program, str(tree.writer), tree.mark], cwd="/",
            env={"PYTHONPATH": directory}, pass_fds=[tree.writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        said = finish(owner)
        alive = {pid for pid in tree.lines("R") if state(pid) not in ("", "Z")}
        assert len(alive) == 2 and {pid for pid, _ in said} == alive and {name for _, name in said} == {"tree"}
    finally:
        kill_marked(tree.mark)
        tree.close()
        shutil.rmtree(directory)
    assert left_of(tree.mark) == []


# ---- the keeper is frozen


@pytest.fixture
def frozen(make_tree):
    """A tree whose keeper is stopped by SIGSTOP; (process, keeper's pidfd, tree)."""
    made = []

    def make(mode="l", **options):
        tree = make_tree("plain", mode, 1)
        process = tree.spawn(grace=0.1, **options)
        keeper = hold_keeper(process)
        made.append((process, keeper, tree))
        return process, keeper, tree

    yield make
    for process, keeper, tree in made:
        signal_by(keeper, signal.SIGCONT)
        os.close(keeper)
        try:
            process.close()
        except holdfast.KeeperLost:
            kill_marked(tree.mark)


def freeze(process, keeper):
    signal_by(keeper, signal.SIGSTOP)
    with open(f"/proc/self/fdinfo/{keeper}") as file:
        pid = int(next(line for line in file if line.startswith("Pid:")).split()[1])
    wait_for(lambda: state(pid) == "T", what="the keeper to be stopped")


def test_a_frozen_keeper_does_not_hang_wait(frozen):
    process, keeper, _ = frozen()
    freeze(process, keeper)
    with pytest.raises(holdfast.TimeoutExpired):
        process.wait(0.1)
    with pytest.raises(holdfast.TimeoutExpired):
        process.wait(1.3)  # longer than a silence is taken for health
    assert process.poll() is None
    process.kill()
    assert process.wait().signal == 9  # it was thawed to tell


def test_a_frozen_keeper_does_not_hang_two_waits(frozen):
    # One thread waits for the tree, one for the process: the end of the process is noticed all the same.
    process, keeper, _ = frozen()
    freeze(process, keeper)
    waiter = threading.Thread(target=lambda: process.wait_empty(60))
    waiter.start()
    process.kill()
    assert process.wait(LIMIT).signal == 9
    process.stop(grace=0)
    waiter.join(LIMIT)
    assert not waiter.is_alive()


def test_a_frozen_keeper_does_not_hang_stop(frozen):
    process, keeper, _ = frozen()
    freeze(process, keeper)
    report = process.stop(grace=0.1)
    assert report.empty and len(report.killed) == 2
    assert process.wait(0).signal == 9


def test_a_keeper_that_is_frozen_again_and_again_is_given_up(frozen):
    process, keeper, tree = frozen()
    freeze(process, keeper)
    over = threading.Event()

    def hold_down():
        while not over.wait(0.0005):
            signal_by(keeper, signal.SIGSTOP)

    holder = threading.Thread(target=hold_down)
    holder.start()
    try:
        process.stop(grace=0.1)
    except holdfast.KeeperLost as error:
        assert error.pid == process.pid
    else:
        assert left_of(tree.mark) == []  # it was quicker than the holder, which is as good
    finally:
        over.set()
        holder.join()
    wait_for(lambda: state(process.pid) in ("", "Z"), what="main to be dead")


def test_a_keeper_frozen_in_the_middle_of_a_stop(frozen):
    process, keeper, tree = frozen()
    results = []
    stopper = threading.Thread(target=lambda: results.append(process.stop(grace=0.5)))
    stopper.start()
    tree.wait_for("T", 2)
    freeze(process, keeper)
    stopper.join(30)
    assert not stopper.is_alive()
    assert results and results[0].empty and process.wait(0).signal == 9


def test_a_frozen_keeper_with_a_full_socket_does_not_fail_a_stop(frozen):
    process, keeper, _ = frozen()
    freeze(process, keeper)
    try:
        for _ in range(5000):
            process.signal_tree("WINCH")
    except BlockingIOError:
        pass
    report = process.stop(grace=0.1)
    assert report.empty and process.wait(0).signal == 9


# ---- interrupted

INTERRUPTED = """
import faulthandler, gc, json, os, random, signal, sys, holdfast
faulthandler.dump_traceback_later(45)
program, mark, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
null = os.open("/dev/null", os.O_WRONLY)
sys.unraisablehook = lambda *_: None  # an interruption in a destructor is printed, not raised
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
args = [program, str(null), "plain", "x", "1"]
options = dict(env={"HF_MARK": mark}, pass_fds=[null], grace=5.0)

def short(via):
    with via.spawn(["true"], **options) as process:
        process.wait()

def long(via):
    with via.spawn(args, **options) as process:
        process.wait()

def run(via):
    via.run(args, timeout=0.003, capture_output=True, **options)

def wait_for_status(via):
    # Whatever was interrupted, the status comes at last.
    process = via.spawn(["sh", "-c", "exit 7"], **options)
    with process:
        try:
            process.wait()
        except KeyboardInterrupt:
            assert process.wait(20).code == 7, process.status
            raise

def fds():
    return len(os.listdir("/proc/self/fd"))

rng = random.Random(seed)
with holdfast.Runner() as runner:  # imports everything
    for via in (holdfast, runner):
        short(via)
        via.run(["true"], timeout=5.0, capture_output=True)
before = fds()
runner = holdfast.Runner()
count = wrong = 0
for number in range(int(sys.argv[4])):
    try:
        try:
            # Once more later, for the first may strike in a destructor, where it is printed and forgotten.
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, rng.choice([0.0004, 0.002, 0.005])), 0.5)
            rng.choice([short, long, run, wait_for_status])(rng.choice([holdfast, runner]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        count += 1
    except holdfast.TimeoutExpired:
        pass
signal.signal(signal.SIGALRM, signal.SIG_IGN)
runner.close()
del runner
gc.collect()
print(json.dumps({"interrupted": count, "descriptors": fds() - before}))
sys.stdout.flush()
sys.stdin.readline()  # alive: what ends now did not need our death
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_an_interruption_at_any_moment_leaves_nothing(package, make_tree, seed):
    tree = make_tree("plain")
    owner = package.start(INTERRUPTED, tree.args[0], tree.mark, seed, 400)
    try:
        assert select.select([owner.stdout], [], [], 60)[0], "it hangs"
        said = json.loads(owner.stdout.readline() or b"{}")
        assert said["interrupted"] > 50
        wait_for(lambda: not marked(tree.mark) and not keepers(package.keeper), 10.0, "the trees and keepers to end")
        # A pipe is lost when it strikes between the kernel and the next line; no more than now and then.
        assert said["descriptors"] <= said["interrupted"] // 10
    finally:
        end(owner)


def test_an_interrupted_wait_leaves_the_process_alone(make_tree):
    tree = make_tree("plain", "l", 0)
    with tree.spawn(grace=0) as process:

        def interrupt(*_):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                process.wait()
        finally:
            signal.signal(signal.SIGALRM, before)
        assert process.poll() is None and len(marked(tree.mark)) == 1
        process.kill()
        assert process.wait(LIMIT).signal == 9


def test_no_warning_comes_from_closed_handles(make_tree):
    tree = make_tree("plain", "x", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tree.spawn() as process:
            process.stop()
        del process
        gc.collect()
