"""`spawn(address=)` and `attach`: a process that outlives its owner, and the next owner who takes it over.

Owners are killed with SIGKILL at every point of their work; whoever comes next finds the same process, or how it ended.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading

import pytest
from conftest import require
from helpers_attach import LIMIT, PRELUDE, Place, end_by, keeper_of, parent, place
from helpers_held import freeze
from helpers_lib import NOBODY, nobody_can_run_keeper, program, root_only
from helpers_trees import marked
from helpers_wait import all_ended, wait_for

import holdfast
from holdfast.process import addressed, keeper
from holdfast.process.held import HeldTree
from holdfast.process.options import make_plan

assert place  # a fixture


def shut(process: holdfast.Process) -> None:
    """The last owner: what became of it is known, nothing of it is left, and the address is free."""
    process.wait_empty(LIMIT)
    process.close()
    with pytest.raises(FileNotFoundError):
        holdfast.attach(process._tree.address)


# ---- one owner after another


def test_a_released_process_is_taken_over(place: Place):
    first = place.spawn("trap 'exit 7' USR1; echo up; read x; while :; do sleep 99 & wait; done",
                        stdin=holdfast.PIPE, stdout=holdfast.PIPE)  # fmt: skip
    assert first.stdout and first.stdout.readline() == b"up\n"
    pid, began = first.pid, first.started_at
    first.release()
    second = holdfast.attach(place.address)
    assert (second.pid, second.started_at, second.status, second.args) == (pid, began, None, place.address)
    assert second.poll() is None and not select.select([second], [], [], 0)[0]
    assert second.stdin is second.stdout is None
    with pytest.raises(holdfast.TimeoutExpired):
        second.wait(0.01)
    second.send_signal("USR1")
    status = second.wait(LIMIT)
    assert (status.code, status.started_at) == (7, began) and status.usage is not None
    assert select.select([second], [], [], 0)[0]
    second.stop(grace=0)  # the rest of it
    second.close()
    assert place.files() == []


def test_closing_a_handle_that_attached_stops_the_tree(place: Place):
    place.spawn("sleep 99 & sleep 99").release()
    with holdfast.attach(place.address) as process:
        pass
    assert process.status and process.status.signal == 15 and process.report and process.report.empty
    assert place.files() == [] and not marked(place.mark)


def test_an_address_of_any_kind(place: Place, monkeypatch):
    deep = os.path.join(place.directory, "d" * 120)
    os.mkdir(deep, 0o700)
    longest = os.path.join(deep, "n" * 56)
    monkeypatch.chdir(place.directory)
    for address in (longest, longest.encode(), pathlib.Path(longest), "app", "./app"):
        place.spawn("exit 3", address=address).release()
        monkeypatch.chdir("/")  # it was made absolute
        full = address if os.fsencode(address).startswith(b"/") else os.path.join(place.directory, address)
        process = holdfast.attach(full)
        assert process.wait(LIMIT).code == 3
        shut(process)
        monkeypatch.chdir(place.directory)
    assert os.listdir(deep) == []


def test_the_socket_is_for_us_alone(place: Place):
    with place.spawn("sleep 99"):
        assert os.stat(place.address).st_mode & 0o777 == 0o600


def test_it_has_a_session_of_its_own(place: Place):
    with place.spawn("sleep 99") as process:
        assert os.getsid(process.pid) == process.pid
    with place.spawn("sleep 99", process_group=0) as process:
        assert os.getpgid(process.pid) == process.pid and os.getsid(process.pid) == os.getsid(keeper_pid(process))


def keeper_pid(process: holdfast.Process) -> int:
    pid, fd = keeper_of(process)
    os.close(fd)
    return pid


# ---- nothing is started where it could not be found, or by whom it must not

REFUSED = {
    "no directory": (FileNotFoundError, lambda place: os.path.join(place.directory, "none", "app")),
    "a file": (NotADirectoryError, lambda place: os.path.join(__file__, "app")),
    "a long name": (ValueError, lambda place: os.path.join(place.directory, "n" * 57)),
    "a hidden name": (ValueError, lambda place: os.path.join(place.directory, ".app")),
    "no name": (ValueError, lambda place: "/"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_address_is_refused(place: Place, case):
    error, address = REFUSED[case]
    with pytest.raises(error):
        place.spawn("sleep 99", address=address(place))
    assert not marked(place.mark) and place.files() == []


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_may_write_is_refused(place: Place, mode):
    os.chmod(place.directory, mode)
    with pytest.raises(PermissionError, match="writable by nobody else"):
        place.spawn("sleep 99")
    assert not marked(place.mark) and place.files() == []


@root_only
def test_a_directory_of_another_user_is_refused(place: Place):
    os.chown(place.directory, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="must be ours"):
        place.spawn("sleep 99")
    assert not marked(place.mark) and place.files() == []


def test_options_that_contradict_an_address(place: Place):
    with pytest.raises(ValueError, match="private"):
        place.spawn("sleep 99", private=False, on_owner_loss=None)
    with pytest.raises(ValueError, match="session of its own"):
        place.spawn("sleep 99", process_group=os.getpgrp())
    with holdfast.Runner() as runner, pytest.raises(ValueError, match="no address"):
        runner.spawn(["true"], address=place.address)
    assert place.files() == []


def test_an_address_with_a_living_keeper_is_refused(place: Place):
    with place.spawn("exec sleep 99") as process:
        with pytest.raises(FileExistsError, match="taken"):
            place.spawn("sleep 99")
        wait_for(lambda: marked(place.mark) == [process.pid])  # on its way through exec it has no environment
        assert process.poll() is None


def test_an_end_that_nobody_has_heard_of_keeps_the_address(place: Place):
    place.spawn("exit 4").release()
    place.until_reported()
    os.unlink(place.address)  # the report alone counts
    with pytest.raises(FileExistsError, match="taken"):
        place.spawn("sleep 99")
    assert not marked(place.mark)
    process = holdfast.attach(place.address)
    assert process.wait().code == 4
    shut(process)


def test_what_a_keeper_left_that_was_killed_as_it_wrote_goes_with_the_report(place: Place):
    place.spawn("exit 4").release()
    place.until_reported()
    for name in (".app.report.4711", ".app.report.old", ".application.report.4711"):
        open(os.path.join(place.directory, name), "x").close()
    shut(holdfast.attach(place.address))
    assert place.files() == [".app.report.old", ".application.report.4711"]


def test_a_socket_without_a_keeper_is_not_replaced(place: Place):
    # Its keeper was killed, and what that had held may be alive: the one who decides is a human, or his program.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(place.address)
    with pytest.raises(holdfast.KeeperLost, match="was lost") as caught:
        holdfast.attach(place.address)
    assert (caught.value.address, caught.value.pid, caught.value.survivors) == (place.address, 0, ())
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(FileExistsError, match="taken"):
        place.spawn("sleep 99")
    assert not marked(place.mark)
    os.unlink(place.address)
    place.spawn("sleep 99").close()


def test_a_start_that_fails_leaves_the_address_free(place: Place):
    for options in ({"executable": "/nonexistent"}, {"cwd": "/nonexistent"}):
        with pytest.raises(FileNotFoundError) as caught:
            place.spawn("sleep 99", **options)
        assert isinstance(caught.value, holdfast.SpawnError) and place.files() == []
    place.spawn("sleep 99").close()


@pytest.mark.parametrize("policy", ["keep", "stop", "kill"])
def test_a_keeper_killed_before_it_has_said_what_it_started(place: Place, monkeypatch, policy):
    """With "keep" nothing takes the process along: the address of one that may run is not free for a second."""
    monkeypatch.setattr(keeper, "KEEPER", "/bin/true")  # it ends without a word
    lost = policy == "keep"
    with pytest.raises(holdfast.KeeperLost if lost else holdfast.SpawnError) as caught:
        place.spawn("sleep 99", on_owner_loss=policy)
    assert getattr(caught.value, "address", None) == (place.address if lost else None)
    assert place.files() == (["app"] if lost else [])


def test_a_start_that_is_under_way_is_not_a_lost_keeper(place: Place, monkeypatch):
    """A socket has its name a moment before anybody listens: who was told "lost" then might remove it."""
    owner = place.owner(
        "from holdfast.process import address as module\n"
        "class Socket(module.socket.socket):\n"
        "    def listen(self, queue):\n"
        "        say('bound'), sys.stdin.readline(), super().listen(queue)\n"
        "module.socket.socket = Socket\n"
        "process = start('sleep 99'); say('started'); sys.stdin.read()"
    )
    assert place.hear(owner) == ["bound"]

    def look_again(pause: float) -> None:
        assert owner.stdin
        owner.stdin.write("go\n")
        owner.stdin.flush()
        assert place.hear(owner) == ["started"]

    monkeypatch.setattr(addressed, "sleep", look_again)
    with pytest.raises(BlockingIOError) as caught:
        holdfast.attach(place.address)
    assert caught.value.errno == errno.EALREADY
    owner.kill()
    owner.wait()
    holdfast.attach(place.address).close()


# ---- the owner is killed

MOMENTS = {
    # Where in its work the owner is killed; what the next one finds: the exit code, None while it runs.
    "before spawn is answered": ("addressed._HeldKeeper.hear = die; start('read x <$1; exit 5', gate)", None),
    "running": ("start('read x <$1; exit 5', gate); die()", None),
    "main has exited": ("start('{ read x <$1; } & exit 5', gate).wait(); die()", 5),
    "main has exited, unheard": ("select.select([start('{ read x <$1; } & exit 5', gate)], [], []); die()", 5),
    "the tree is empty": ("p = start('exit 5'); p.wait(); p.wait_empty(); die()", 5),
    "in close, before it frees": ("addressed.remove = die; p = start('exit 5'); p.wait_empty(); p.close()", 5),
    "in close, half-way": ("addressed._HeldKeeper.acknowledge = die\n"
                           "p = start('exit 5'); p.wait_empty(); p.close()", 5),
    "during a stop": ("addressed._HeldTree.finish_stop = die\n"
                      "p = start('trap \"\" TERM; echo >$2; read x <$1; exit 5', gate, up)\n"
                      "open(up).readline(); p.stop(grace=300)", None),
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_owner_killed_at_any_moment_has_lost_nothing(place: Place, moment):
    source, code = MOMENTS[moment]
    gate = place.gate("gate")
    owner = place.owner("import select\ngate, up = sys.argv[3:]\n" + source, gate, place.gate("up"))
    assert owner.wait(LIMIT) == -9
    if moment == "in close, half-way":
        place.until_reported()  # the address is free already, and the report about to be written
    process = holdfast.attach(place.address)
    assert process.pid and process.started_at
    if code is None:
        assert process.poll() is None and marked(place.mark)
        place.open(gate)
    assert process.wait(LIMIT).code == 5
    if code is not None:
        place.open(gate)
    shut(process)
    assert place.files() == []


def test_an_owner_killed_before_there_was_a_keeper(place: Place):
    assert place.owner("_native.launch_on = die; start('sleep 99')").wait(LIMIT) == -9
    with pytest.raises(holdfast.KeeperLost, match="never came to be"):
        holdfast.attach(place.address)
    assert not marked(place.mark)


def test_a_start_that_failed_and_nobody_knew(place: Place):
    for frees in (True, False):
        source = "addressed._HeldKeeper.hear = die; start('exit 0', executable='/nonexistent')"
        assert place.owner(source).wait(LIMIT) == -9
        if frees:
            place.until_reported()
        with pytest.raises(FileNotFoundError, match="stage: exec") as caught:
            holdfast.attach(place.address)
        assert isinstance(caught.value, holdfast.SpawnError) and place.files() == []


def test_the_status_outlives_three_owners(place: Place):
    gate = place.gate("gate")
    assert place.owner("start('read x <$1; exit 6', sys.argv[3]); die()", gate).wait(LIMIT) == -9
    knows = "p = holdfast.attach(address); p.wait_empty(); say(p.status.code); die()"
    second = place.owner("p = holdfast.attach(address); say('it runs'); p.wait_empty(); say(p.status.code); die()")
    assert place.hear(second) == ["it", "runs"]
    place.open(gate)
    assert place.hear(second) == ["6"] and second.wait(LIMIT) == -9
    for _ in range(2):  # from the keeper or from its report, whichever it is now
        owner = place.owner(knows)
        assert place.hear(owner) == ["6"] and owner.wait(LIMIT) == -9
    process = holdfast.attach(place.address)
    assert process.status and process.status.code == 6 and process.returncode == 6
    shut(process)


def test_a_handle_that_is_dropped_has_not_taken_the_status(place: Place):
    process = place.spawn("exit 9")
    process.wait_empty(LIMIT)
    del process
    place.until_reported()
    process = holdfast.attach(place.address)
    del process
    assert place.files() == ["app", "app.report"]
    process = holdfast.attach(place.address)
    assert process.status and process.status.code == 9
    process.release()  # neither has he: it is the next one's
    assert place.files() == ["app", "app.report"]
    process = holdfast.attach(place.address)
    process.close()
    assert process.status and process.status.code == 9 and place.files() == []


def test_the_report_of_a_stop_that_the_next_owner_missed(place: Place):
    source = "p = start('trap \"\" TERM; echo >$1; while :; do sleep 99; done', up, grace=0.3, on_owner_loss='stop')\n"
    owner = place.owner("up = sys.argv[3]\n" + source + "open(up).readline(); die()", place.gate("up"))
    assert owner.wait(LIMIT) == -9
    place.until_reported()
    process = holdfast.attach(place.address)
    assert process.status and process.status.signal == 9
    assert process.report and process.report.grace == 0.3 and process.report.killed_count >= 1
    assert process.stop().empty and select.select([process], [], [], 0)[0]
    process.kill()
    shut(process)


def test_what_ends_at_its_owners_loss_can_be_taken_over_in_its_grace(place: Place):
    source = "p = start('trap \"echo TERM >$2\" TERM; echo up >$1; while :; do sleep 99 & wait; done', *sys.argv[3:]," \
             " grace=300, on_owner_loss='stop'); open(sys.argv[3]).readline(); die()"  # fmt: skip
    up, told = place.gate("up"), place.gate("told")
    assert place.owner(source, up, told).wait(LIMIT) == -9
    with open(told) as said:
        assert said.readline() == "TERM\n"
    process = holdfast.attach(place.address)
    assert process.poll() is None
    assert process.stop(grace=0).empty and process.wait().signal == 9
    shut(process)


# ---- several owners, strangers, frozen and killed keepers

CANDIDATE = """
say("here")
sys.stdin.readline()
try:
    process = holdfast.attach(address)
    say("got", process.pid)
except BlockingIOError as error:
    say("busy", error.errno)
sys.stdin.readline()
die()
"""


@pytest.mark.parametrize("ended", [False, True])
def test_of_several_candidates_exactly_one_gets_it(place: Place, ended):
    process = place.spawn("exit 0" if ended else "sleep 99")
    pid = process.pid
    process.release()
    if ended:
        place.until_reported()
    candidates = [place.owner(CANDIDATE) for _ in range(4)]
    for go in (False, True):
        for each in candidates:
            if go:
                assert each.stdin
                each.stdin.write("\n")
                each.stdin.flush()
            else:
                assert place.hear(each) == ["here"]
    said = sorted(place.hear(each) for each in candidates)
    assert said == [["busy", str(errno.EALREADY)]] * 3 + [["got", str(pid)]]
    for each in candidates:
        each.kill()
        each.wait()
    with holdfast.attach(place.address) as process:
        assert process.pid == pid


def test_an_owner_is_not_disturbed_by_who_is_turned_away(place: Place):
    with place.spawn("exec sleep 99") as process:
        for _ in range(20):
            with pytest.raises(BlockingIOError, match="another owner"):
                holdfast.attach(place.address)
        process.terminate()
        assert process.wait(LIMIT).signal == 15


@root_only
def test_another_user_is_refused(place: Place):
    if not nobody_can_run_keeper():
        pytest.skip("the keeper cannot be reached by another user here")
    place.spawn("sleep 99").release()
    nobody = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    owner = place.owner(nobody + "try:\n holdfast.attach(address)\nexcept PermissionError:\n say('refused')")
    assert place.hear(owner) == ["refused"]
    holdfast.attach(place.address).close()
    os.chown(place.directory, NOBODY, NOBODY)
    assert place.hear(place.owner(nobody + "start('exec sleep 99').release(); say('released')")) == ["released"]
    with pytest.raises(PermissionError, match="another user"):  # not even root: the keeper takes its own user
        holdfast.attach(place.address)
    assert place.hear(place.owner(nobody + "holdfast.attach(address).kill(); say('killed')")) == ["killed"]
    place.until_reported()
    with pytest.raises(PermissionError, match="another user"):
        holdfast.attach(place.address)


def test_a_frozen_keeper_is_named_within_the_limit(place: Place):
    process = place.spawn("exec sleep 99")
    pid, keeper_fd = keeper_of(process)
    place.fds.append(keeper_fd)
    process.release()
    freeze(keeper_fd, pid)
    with pytest.raises(BlockingIOError, match=rf"pid {pid}\) is stopped: kill -CONT {pid}") as caught:
        holdfast.attach(place.address)
    assert caught.value.errno == errno.EAGAIN and caught.value.filename == place.address
    end_by(keeper_fd, signal.SIGCONT)
    with holdfast.attach(place.address) as process:
        assert process.poll() is None  # nothing has come of it
    assert process.status and process.status.signal == 15


def test_too_many_wait_for_a_frozen_keeper(place: Place):
    process = place.spawn("sleep 99")
    pid, keeper_fd = keeper_of(process)
    place.fds.append(keeper_fd)
    process.release()
    freeze(keeper_fd, pid)
    waiting = []
    try:
        with pytest.raises(BlockingIOError):
            for _ in range(64):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                waiting.append(sock)
                sock.setblocking(False)
                sock.connect(place.address)
        with pytest.raises(BlockingIOError, match="others wait for it already"):
            holdfast.attach(place.address)
    finally:
        for sock in waiting:
            sock.close()
    end_by(keeper_fd, signal.SIGCONT)

    def attached() -> holdfast.Process | None:  # when it has sent away those who have gone
        try:
            return holdfast.attach(place.address)
        except BlockingIOError:
            return None

    wait_for(attached, LIMIT).close()


@pytest.mark.parametrize("attached", [False, True])
def test_a_killed_keeper_that_took_its_process_along_frees_the_address(place: Place, attached):
    process = place.spawn("exec sleep 99", on_owner_loss="stop")
    if attached:
        process.release()
        process = holdfast.attach(place.address)
    _, keeper_fd = keeper_of(process)
    place.fds.append(keeper_fd)
    end_by(keeper_fd)
    with pytest.raises(holdfast.KeeperLost) as caught:
        process.wait(LIMIT)
    assert caught.value.survivors == () and caught.value.pid == process.pid
    with pytest.raises(holdfast.KeeperLost):
        process.close()
    assert place.files() == []


def test_a_killed_keeper_whose_process_lives_keeps_the_address(place: Place):
    process = place.spawn("exec sleep 99")
    main_fd, (_, keeper_fd) = os.pidfd_open(process.pid), keeper_of(process)
    place.fds += [main_fd, keeper_fd]
    end_by(keeper_fd)
    with pytest.raises(holdfast.KeeperLost) as caught:
        process.wait(LIMIT)
    assert [member.pid for member in caught.value.survivors] == [process.pid]
    with pytest.raises(holdfast.KeeperLost):
        process.close()
    with pytest.raises(holdfast.KeeperLost):
        holdfast.attach(place.address)
    with pytest.raises(FileExistsError):  # never a second copy while the first is known to live
        place.spawn("sleep 99")
    end_by(main_fd)
    assert select.select([main_fd], [], [], LIMIT)[0]


def test_what_lies_at_the_address_and_is_no_keeper(place: Place):
    open(place.address, "w").close()
    with pytest.raises(OSError, match="not a socket"):
        holdfast.attach(place.address)
    os.unlink(place.address)
    with open(place.address + ".report", "wb") as file:
        file.write(b"what is this?")
    with pytest.raises(ValueError, match="malformed"):
        holdfast.attach(place.address)


# ---- as any other handle


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_report_holds_nobody_up(place: Place):
    os.mkfifo(place.address + ".report")
    with pytest.raises(ValueError, match="not a report"):
        holdfast.attach(place.address)


@root_only
def test_a_keeper_in_another_pid_namespace_is_itself_and_no_stranger(place: Place):
    """Its own number is a stranger's here: he would have been continued, or killed, in its place."""
    require("unshare")
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c"]
    source = PRELUDE + "start('exec sleep 99').release(); say('up'); sys.stdin.read()"
    with subprocess.Popen([*command, source, place.address, place.mark], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as inside:  # fmt: skip
        try:
            assert inside.stdout and inside.stdout.readline() == b"up\n"
            process = holdfast.attach(place.address)
            assert pid_of(process._tree.held._pidfd) == parent(pid_of(process.fileno()))
            process.release()
            tree = HeldTree.attach(place.address)
            assert select.select([tree], [], [], LIMIT)[0] and tree.events()
            assert pid_of(tree.keeper_pidfd) == parent(pid_of(tree.pidfd))
            tree.close()
        finally:
            inside.kill()


def pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def test_both_faces_of_a_held_tree_meet_at_the_same_address(place: Place):
    plan = make_plan(["sleep", "99"], env=place.env, new_session=True, on_owner_loss="keep")
    tree = HeldTree.start(plan, address=place.address, report=place.address + ".report")
    tree.close()
    process = holdfast.attach(place.address)
    pid = process.pid
    process.release()
    tree = HeldTree.attach(place.address)
    assert select.select([tree], [], [], LIMIT)[0]
    tree.events()
    assert tree.pid == pid
    tree.close()
    holdfast.attach(place.address).close()


def test_any_thread_may_wait_for_what_was_attached(place: Place):
    place.spawn("exec sleep 99").release()
    with holdfast.attach(place.address) as process:
        seen: list[holdfast.ExitStatus] = []
        threads = [threading.Thread(target=lambda: seen.append(process.wait(LIMIT))) for _ in range(4)]
        for thread in threads:
            thread.start()
        process.signal_tree("INT")
        for thread in threads:
            thread.join()
        assert [status.signal for status in seen] == [2] * 4


def test_a_forked_copy_of_the_owner_frees_nothing(place: Place):
    process = place.spawn("exit 0")
    process.wait_empty(LIMIT)
    pid = os.fork()
    if pid == 0:
        try:
            process.close()
            process.release()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert place.files() == ["app"]
    process.close()
    assert place.files() == []


def test_a_copy_of_a_report_in_other_hands_keeps_nobody_out(place: Place):
    """A fork of another thread's has one until its exec."""
    place.spawn("exit 3").release()
    place.until_reported()
    process = holdfast.attach(place.address)
    copy = os.dup(process._tree.held.end.fileno())
    with pytest.raises(BlockingIOError):
        holdfast.attach(place.address)
    process.release()
    try:
        shut(holdfast.attach(place.address))
    finally:
        os.close(copy)


def test_run_with_an_address(place: Place):
    done = holdfast.run(["sh", "-c", "echo hello"], address=place.address, capture_output=True, text=True)
    assert done.stdout == "hello\n" and place.files() == []


def test_a_subreaper_reaps_the_keepers_that_come_back():
    program("""
        import ctypes, os, tempfile, holdfast
        from helpers_wait import wait_for
        from holdfast.process.keeper import reap_retired
        assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
        with tempfile.TemporaryDirectory() as directory:
            address = directory + "/app"
            for number in range(20):
                holdfast.spawn(["sh", "-c", f"exit {number}"], address=address, on_owner_loss="keep").release()
                with holdfast.attach(address) as process:
                    assert process.wait(30).code == number
        def reaped():  # every start does this
            reap_retired()
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                return not file.read()
        wait_for(reaped)
    """)


INTERRUPTED = """
import json, random, signal
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
rng = random.Random(int(sys.argv[3]))
def cycle(script):
    with start(script, grace=0):
        pass
def handed_on(script):
    start(script, grace=0).release()
    holdfast.attach(address).close()
def clean_up():
    while True:
        try:
            process = holdfast.attach(address)
            process.stop(grace=0)
            process.close()
        except FileNotFoundError:
            return
        except BlockingIOError:
            gc.collect()
        except holdfast.SpawnError:
            pass
import gc
cycle("exit 0")
handed_on("exit 0")
before, count = len(os.listdir("/proc/self/fd")), 0
for number in range(150):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, rng.choice([0.0004, 0.002, 0.005])))
            rng.choice([cycle, handed_on])(rng.choice(["exit 0", "sleep 99"]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        count += 1
    except FileExistsError:
        pass  # the report of an earlier one, whose close was cut off half-way, has come meanwhile
    clean_up()
gc.collect()
say(json.dumps({"interrupted": count, "left": os.listdir(os.path.dirname(address)),
                "descriptors": len(os.listdir("/proc/self/fd")) - before}))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_an_interruption_leaves_at_most_what_can_be_attached(place: Place, seed):
    owner = place.owner(INTERRUPTED, str(seed))
    assert owner.stdout and select.select([owner.stdout], [], [], 60)[0], "it hangs"
    said = json.loads(owner.stdout.readline() or "{}")
    assert said["interrupted"] > 20 and set(said["left"]) <= {"app.report"}
    # Some in a hundred remain: a handler may raise between a system call and the assignment of its result.
    assert said["descriptors"] <= 3 + said["interrupted"] // 10
    wait_for(lambda: not marked(place.mark), LIMIT, "the trees to end")


def test_the_page_about_it_runs(place: Place):
    page = pathlib.Path(__file__).parent.parent.joinpath("docs/attach.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    assert blocks
    for block in blocks:
        code = block.replace("/run/app/worker", place.address).replace('["./worker"]', '["sleep", "99"]')
        scope = {"__name__": "page"}
        exec(code, scope)
        process = scope["process"]
        assert isinstance(process, holdfast.Process)
        pids = [process.pid]
        process.stop()
        process.close()
        assert all_ended(pids) and place.files() == []
