"""A keeper that outlives its owner: who may come next, what he is told, and what is left when nobody comes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import select
import signal
import socket
import stat

import pytest
import wire_golden as golden
from helpers_held import PATIENCE, Place, ended, first, freeze, kinds, place, until, until_adopted
from helpers_lib import NOBODY, kernel_tells_stolen_status, root_only
from helpers_trees import left_of
from helpers_wait import eventually
from helpers_wire import SPEC, RawKeeper, grown, raw_record

import holdfast
from holdfast.process import events, held, keeper
from holdfast.process.held import HeldTree, LogPlan, read_report

assert place  # a fixture


def wait_gone(tree: HeldTree) -> list:
    found = until(tree, "KeeperGone")
    assert tree.events() == []
    return found


def leave_and_wait(tree: HeldTree) -> None:
    """Close, and wait until the keeper has ended."""
    fd = os.pidfd_open(tree.keeper_pid)
    tree.close()
    assert ended(fd)
    os.close(fd)


# ---- the owner dies, the service lives


def test_the_owner_is_killed_and_the_next_one_gets_everything(place: Place):
    exit_gate, end_gate = place.gate("exit"), place.gate("end")
    owner = place.owner('(read y < "$2") & read code < "$1"; exit $code', "", exit_gate, end_gate)
    pid, _ = place.pids_of(owner)
    main = place.held_fd(pid)
    owner.kill()
    owner.wait()
    assert not ended(main, 0.1)

    second = place.attach()
    spawned = first(until(second, "Spawned"), "Spawned")
    assert spawned.pid == second.pid == pid and spawned.identity == second.identity
    with open(f"/proc/self/fdinfo/{second.pidfd}") as file:
        assert re.search(rf"^Pid:\t{pid}$", file.read(), re.M)
    assert not ended(second.pidfd, 0)
    second.close()

    place.open(exit_gate, "5")  # it ends while nobody is there, and something of its tree lives on
    assert ended(main)
    third = place.attach()
    found = until(third, "Exited")
    assert kinds(found)[0] == "Spawned" and first(found, "Spawned") == spawned
    assert first(found, "Exited").status.code == 5 and third.status.code == 5 and not third.empty
    assert ended(third.pidfd, 0)
    place.open(end_gate)
    assert first(until(third, "Empty"), "Empty").usage.max_rss_bytes > 0
    third.acknowledge(exited=True, empty=True)
    assert kinds(wait_gone(third)) == ["KeeperGone"]
    assert not os.path.exists(place.report)


def test_the_end_of_a_tree_that_nobody_saw_is_in_the_report_file(place: Place):
    gate = place.gate("exit")
    tree = place.start('read code < "$1"; exit $code', gate)
    spawned = first(until(tree, "Spawned"), "Spawned")
    keeper_pid, keeper_fd = tree.keeper_pid, place.held_fd(tree.keeper_pid)
    tree.close()
    place.open(gate, "7")
    assert ended(keeper_fd)
    found = read_report(place.report)
    assert kinds(found) == ["Spawned", "Exited", "Empty"]
    assert found[0] == spawned and found[1].status.code == 7
    assert found[1].status.started_at == spawned.started_at and 0 < found[1].status.elapsed < 1000
    assert stat.S_IMODE(os.stat(place.report).st_mode) == 0o600
    assert sorted(os.listdir(place.directory)) == ["1.report", "1.sock", "exit"]
    with open(place.report, "rb") as file:
        records = SPEC.decode(file.read())  # the tables read it as well
    assert [name for name, _ in records] == ["KEEPER_HELLO", "SPAWNED", "EXITED", "EMPTY"]
    assert records[0][1] == {"version": 1, "pid": keeper_pid}
    with pytest.raises(ConnectionRefusedError):
        HeldTree.attach(place.address)


def test_the_socket_is_the_owners_alone(place: Place):
    before = os.umask(0)
    try:
        tree = place.start("exit 0")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(place.address).st_mode) == 0o600
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)


@pytest.mark.parametrize("way", ["stopped", "copied"])
def test_the_death_of_an_owner_counts_and_not_his_socket(place: Place, way):
    """A frozen owner is an owner; a dead one is none, whoever holds a copy of his socket."""
    gate, hold = place.gate("exit"), place.gate("hold")
    fork = f"if os.fork() == 0:\n    open({hold!r}).read(1); os._exit(0)"
    owner = place.owner('read code < "$1"', fork if way == "copied" else "", gate)
    place.pids_of(owner)
    owner_fd = place.held_fd(owner.pid)
    if way == "stopped":
        freeze(owner_fd, owner.pid)
    assert kinds(wait_gone(place.attach())) == ["KeeperGone"]  # he is there
    owner.kill()
    owner.wait()
    tree = place.attach()
    assert kinds(until(tree, "Spawned")) == ["Spawned"]
    place.open(gate)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)
    place.open(hold)


# ---- acknowledgement


def test_what_is_not_acknowledged_is_told_again(place: Place):
    exit_gate, end_gate = place.gate("exit"), place.gate("end")
    tree = place.start('(read y < "$2") & read code < "$1"; exit $code', exit_gate, end_gate, stop_rest=False)
    until(tree, "Spawned")
    place.open(exit_gate, "3")
    told = first(until(tree, "Exited"), "Exited")
    tree.close()  # heard, and not written down
    again = place.attach()
    assert first(until(again, "Exited"), "Exited") == told
    again.acknowledge(exited=True)
    again.close()
    third = place.attach()
    third.query()
    assert "Exited" not in kinds(until(third, "Members")) and third.status is None
    stop_id = third.stop(signal.SIGTERM, "tree", 5)
    found = until(third, "Empty")
    assert kinds(found)[-2:] == ["StopReported", "Empty"]
    report = first(found, "StopReported")
    assert report.id == stop_id and report.report.signalled_count == 1
    third.query()  # its list of members takes the place that the report was made in
    until(third, "Members")
    third.acknowledge(exited=True)
    leave_and_wait(third)
    found = read_report(place.report)
    assert kinds(found) == ["Spawned", "Exited", "StopReported", "Empty"]
    assert first(found, "StopReported") == report and first(found, "Exited") == told


def test_an_owner_that_dies_with_the_last_word_unwritten_leaves_it_in_the_file(place: Place):
    owner = place.owner("exit 4", "while not tree.empty: select.select([tree], [], []); tree.events()")
    _, keeper_pid = place.pids_of(owner)
    keeper_fd = place.held_fd(keeper_pid)
    owner.kill()
    owner.wait()
    assert ended(keeper_fd)
    assert first(read_report(place.report), "Exited").status.code == 4


def test_adopted_members_are_told_to_every_owner(place: Place):
    gate = place.gate("exit")
    tree = place.start("(sleep 99 &); exec sh -c 'read code < \"$1\"' sh \"$1\"", gate)
    until(tree, "Spawned")
    for owner in (tree, place.attach):
        if owner is not tree:
            tree.close()
            tree = owner()
        found = until_adopted(tree)
        (adopted,) = [event.pid for event in found if isinstance(event, events.Adopted)]
        (members,) = [event.members for event in found if isinstance(event, events.Members)][-1:]
        assert adopted in [member.pid for member in members]
        assert list(tree.members) == [adopted] and not ended(tree.members[adopted], 0)
    place.open(gate)
    until(tree, "Empty")
    assert not tree.members
    tree.acknowledge(empty=True)
    wait_gone(tree)


# ---- who may come


def test_a_second_owner_meets_the_end_of_the_socket(place: Place):
    gate = place.gate("exit")
    tree = place.start('read code < "$1"', gate)
    until(tree, "Spawned")
    keeper_fd = place.held_fd(tree.keeper_pid)
    freeze(keeper_fd, tree.keeper_pid)
    clients = [raw_client(place.address) for _ in range(5)]
    for client in clients:
        client.send(golden.read("HELLO"))
    signal.pidfd_send_signal(keeper_fd, signal.SIGCONT)
    for client in reversed(clients):  # the last one's end comes after the others were closed
        assert client.recv(1000) == b""  # an end, and no reset
        client.close()
    assert kinds(wait_gone(place.attach())) == ["KeeperGone"]
    place.open(gate)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)


def test_who_comes_after_the_last_owner_has_left_is_taken(place: Place):
    """The keeper learns of both at once, and of the old owner's last requests."""
    tree = place.start("sleep 99")
    until(tree, "Spawned")
    keeper_pid, keeper_fd = tree.keeper_pid, place.held_fd(tree.keeper_pid)
    for _ in range(5):
        freeze(keeper_fd, keeper_pid)
        for _ in range(3):
            tree.query()
        tree.close()
        tree = place.attach()
        signal.pidfd_send_signal(keeper_fd, signal.SIGCONT)
        assert kinds(until(tree, "Spawned"))[0] == "Spawned"
    tree.stop(signal.SIGTERM, "tree", 5)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)


def raw_client(address: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(PATIENCE)
    client.connect(address)
    return client


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "one byte": b"x",
    "another request": golden.read("STOP"),
    "a short hello": raw_record(1, b"\1\0\0\0"),
    "a report": golden.read("KEEPER_HELLO"),
    "nothing and the end": None,
}


def test_who_does_not_say_hello_is_kept_out_and_delays_nobody_for_long(place: Place):
    gate, end_gate = place.gate("exit"), place.gate("end")
    tree = place.start('(read y < "$2") & read code < "$1"; exit $code', gate, end_gate, stop_rest=False)
    until(tree, "Spawned")
    main = place.held_fd(tree.pid)
    tree.close()
    for name, data in GARBAGE.items():
        with raw_client(place.address) as client:
            if data is not None:
                client.send(data)
                assert client.recv(1000) == b"", name
    with raw_client(place.address) as silent:
        place.open(gate, "3")  # the keeper goes on reaping meanwhile
        assert ended(main)
        tree = place.attach()  # waits behind the silent one
        assert first(until(tree, "Exited"), "Exited").status.code == 3
        assert silent.recv(1000) == b""
    place.open(end_gate)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)


@root_only
def test_another_user_is_refused(place: Place):
    gate = place.gate("exit")
    tree = place.start('read code < "$1"', gate)
    until(tree, "Spawned")
    tree.close()
    os.chmod(place.directory, 0o755)
    os.chmod(place.address, 0o666)
    child = os.fork()
    if child == 0:  # no new program: ours may lie where that user cannot go
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            client = raw_client(place.address)
            with contextlib.suppress(BrokenPipeError):
                client.send(golden.read("HELLO"))
            os._exit(3 if client.recv(1000) == b"" else 4)
        finally:
            os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    tree = place.attach()
    assert kinds(until(tree, "Spawned")) == ["Spawned"]
    place.open(gate)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)


# ---- the end


def test_the_end_of_main_stops_the_rest_without_an_owner(place: Place):
    gate = place.gate("exit")
    script = "(trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 99; sleep 98' &) ; read code < \"$1\"; exit $code"
    tree = place.start(script, gate, grace=0.2, stop_signal="HUP")
    until(tree, "Spawned")
    keeper_fd = place.held_fd(tree.keeper_pid)
    tree.close()
    place.open(gate, "6")
    assert ended(keeper_fd)
    assert not left_of(place.mark)
    found = read_report(place.report)
    assert kinds(found) == ["Spawned", "Exited", "StopReported", "Empty"]
    stop = first(found, "StopReported")
    assert stop.id == 0 and stop.report.signal == signal.SIGHUP and stop.report.scope == "tree"
    assert stop.report.empty and stop.report.signalled_count >= 1 and first(found, "Exited").status.code == 6


def test_without_stop_rest_the_rest_lives(place: Place):
    gate = place.gate("end")
    tree = place.start('(read y < "$1") & exit 0', gate, stop_rest=False)
    until(tree, "Exited")
    tree.query()
    assert len(first(until(tree, "Members"), "Members").members) == 1
    place.open(gate)
    assert "StopReported" not in kinds(until(tree, "Empty"))
    tree.acknowledge(exited=True, empty=True)
    wait_gone(tree)


def test_connecting_while_it_ends_gives_events_or_the_report_never_both_never_none(place: Place):
    """Early, late and in between: 200 rounds."""
    gate = place.gate("exit")
    chance = random.Random(1)
    told = {"socket": 0, "report": 0}
    for number in range(200):
        place.address, place.report = (os.path.join(place.directory, f"{number}.{end}") for end in ("sock", "report"))
        plan = place.plan("read code < \"$1\"; exit $code", gate)
        tree = HeldTree.start(plan, address=place.address, report=place.report)
        until(tree, "Spawned")
        keeper_fd = os.pidfd_open(tree.keeper_pid)
        tree.close()
        expected = None
        tree = None
        if number % 10 == 0:
            expected = "socket"
            tree = HeldTree.attach(place.address)
        place.open(gate, "9")
        if number % 10 == 1:
            expected = "report"
            assert ended(keeper_fd)
        for _ in range(chance.randrange(20_000)):  # up to about a millisecond, on the processor
            pass
        try:
            tree = tree or HeldTree.attach(place.address)
        except ConnectionRefusedError:
            pass
        found = []
        if tree:
            while "Empty" not in kinds(found) and "KeeperGone" not in kinds(found):
                assert ended(tree.fileno())
                found += tree.events()
            if tree.empty:
                tree.acknowledge(exited=True, empty=True)
                wait_gone(tree)
            tree.close()
        way = "socket" if "Empty" in kinds(found) else "report"
        if way == "socket":
            assert first(found, "Exited").status.code == 9
            assert ended(keeper_fd)
            assert not os.path.exists(place.report)
        else:
            assert kinds(found) in ([], ["KeeperGone"])
            assert first(read_report(place.report), "Exited").status.code == 9  # it is there already
        assert expected in (None, way)
        told[way] += 1
        os.close(keeper_fd)
    assert told["socket"] >= 20 and told["report"] >= 20


def test_a_report_that_cannot_be_written_waits_for_an_owner(place: Place):
    os.mkdir(place.report)  # no file can get this name
    tree = place.start("exit 8")
    until(tree, "Empty")
    tree.close()
    tree = place.attach()
    assert first(until(tree, "Empty"), "Exited").status.code == 8
    tree.acknowledge(empty=True)
    wait_gone(tree)
    assert sorted(os.listdir(place.directory)) == ["1.report", "1.sock"]


def test_a_report_is_written_when_it_can_be(place: Place):
    os.mkdir(place.report)
    tree = place.start("exit 8")
    until(tree, "Empty")
    keeper_fd = place.held_fd(tree.keeper_pid)
    tree.close()
    assert not ended(keeper_fd, 0.3)
    os.rmdir(place.report)
    assert ended(keeper_fd)
    assert first(read_report(place.report), "Exited").status.code == 8


def test_two_keepers_that_end_at_one_address_do_not_write_into_one_file(place: Place):
    """A start that was undone late may end beside the one after it: readers saw a report of mixed bytes."""
    watch = held._native.watch_open()
    held._native.watch_add(watch, place.directory)
    for code in ("3", "4"):
        tree = place.start("exit $1", code)
        until(tree, "Empty")
        leave_and_wait(tree)
        os.unlink(place.address)  # as of one that was undone
        assert first(read_report(place.report), "Exited").status.code == int(code)
    names = re.findall(rb"\.1\.report\.\d+", os.read(watch, 65536))
    os.close(watch)
    assert len(set(names)) == 2
    assert os.listdir(place.directory) == ["1.report"]


def test_a_keeper_whose_directory_is_gone_does_not_wait_for_ever(place: Place):
    gate = place.gate("exit")
    run = os.path.join(place.directory, "run")
    os.mkdir(run)
    place.address, place.report = os.path.join(run, "sock"), os.path.join(run, "report")
    tree = place.start('read code < "$1"', gate)
    until(tree, "Spawned")
    keeper_fd = place.held_fd(tree.keeper_pid)
    tree.close()
    os.unlink(place.address)
    os.rmdir(run)
    place.open(gate)
    assert ended(keeper_fd)


@pytest.mark.parametrize("bad", ["empty", "text", "cut", "no hello"])
def test_what_is_no_report_is_a_value_error(place: Place, bad):
    data = {"empty": b"", "text": b"hello\n", "cut": golden.read("EMPTY")[:-8], "no hello": golden.read("EMPTY")}[bad]
    with open(place.report, "wb") as file:
        file.write(data)
    with pytest.raises(ValueError):
        read_report(place.report)


# ---- starting


def test_a_start_that_fails_later_is_told_and_acknowledged_as_empty(place: Place):
    tree = place.start("", executable="/nonexistent/program")
    assert until(tree, "Failed")[-1] == events.Failed("exec", errno.ENOENT)
    tree.acknowledge(empty=True)
    wait_gone(tree)
    assert not os.path.exists(place.report)
    os.unlink(place.address)
    tree = place.start("", cwd="/nonexistent")
    until(tree, "Failed")
    leave_and_wait(tree)  # not acknowledged: as if nobody had heard it
    assert read_report(place.report) == [events.Failed("chdir", errno.ENOENT)]


def test_a_start_that_fails_at_once_leaves_nothing(place: Place, monkeypatch):
    def refused(error, **changes):
        options = {"address": place.address, "report": place.report} | changes
        before = os.listdir(place.directory)
        with pytest.raises(error) as info:
            HeldTree.start(place.plan("sleep 99"), **options)
        assert os.listdir(place.directory) == before
        return info.value

    log = held.LogPlan(place.directory, 1 << 20, 3, 1 << 30, False, True, "x" * 160)
    refused(ValueError, report=place.directory + "/")
    refused(ValueError, report=place.report + "x" * 60)
    refused(ValueError, log=log)
    refused(FileNotFoundError, report="/nonexistent/report")
    refused(FileNotFoundError, log=log._replace(label="x", directory="/nonexistent"))
    refused(FileNotFoundError, address="/nonexistent/sock")
    monkeypatch.setattr(keeper, "KEEPER", os.path.join(place.directory, "no-keeper"))
    assert refused(holdfast.SpawnError).stage == "launch"
    with open(place.address, "w") as file:
        file.write("mine")
    assert refused(OSError).errno == errno.EADDRINUSE
    with open(place.address) as file:
        assert file.read() == "mine"


def test_a_large_environment_travels_as_well(place: Place):
    tree = place.start("exit $((${#BIG} % 251))", env=place.env | {"BIG": "x" * 100_003})
    assert first(until(tree, "Empty"), "Exited").status.code == 100_003 % 251
    tree.acknowledge(empty=True)
    wait_gone(tree)


def test_paths_longer_than_an_address(place: Place):
    long = os.path.join(place.directory, "d" * 150, "e" * 150)
    os.makedirs(long)
    place.address, place.report = os.path.join(long, "1.sock"), os.path.join(long, "1.report")
    gate = place.gate("exit")
    tree = place.start('read code < "$1"', gate)
    until(tree, "Spawned")
    tree.close()
    tree = place.attach()
    until(tree, "Spawned")
    place.open(gate)
    until(tree, "Empty")
    leave_and_wait(tree)
    assert kinds(read_report(place.report)) == ["Spawned", "Exited", "Empty"]
    with pytest.raises(ConnectionRefusedError):
        place.attach()


def test_signals_and_sessions(place: Place):
    tree = place.start("trap 'exit 12' USR1; kill -STOP $$; while :; do sleep 0.01; done")
    until(tree, "Spawned", "Stopped")
    assert os.getsid(tree.keeper_pid) == tree.keeper_pid != os.getsid(0)
    assert os.getsid(tree.pid) == tree.pid
    tree.signal(signal.SIGCONT, "group")
    until(tree, "Continued")
    tree.signal(signal.SIGUSR1, "main")
    assert first(until(tree, "Empty"), "Exited").status.code == 12
    tree.signal(signal.SIGUSR1, "main")  # nothing to signal any more
    tree.acknowledge(empty=True)
    wait_gone(tree)
    tree.signal(signal.SIGUSR1, "tree")
    tree.stop(15, "main", 0)


def test_on_owner_loss_stop_holds_for_held_trees_as_well(place: Place):
    tree = place.start("sleep 99", on_owner_loss="stop")
    until(tree, "Spawned")
    leave_and_wait(tree)
    found = read_report(place.report)
    assert first(found, "Exited").status.signal == signal.SIGTERM
    assert first(found, "StopReported").id == 0


# ---- keepers in a bad state


def test_a_killed_keeper_is_told_and_its_tree_is_still_held(place: Place):
    tree = place.start("(sleep 99 &); exec sleep 98")
    until(tree, "Spawned")
    until_adopted(tree)
    (member,) = tree.members.values()
    tree.kill_keeper()
    assert kinds(wait_gone(tree)) == ["KeeperGone"]
    assert not tree.empty and not ended(tree.pidfd, 0.1) and not ended(member, 0)
    assert tree.recover_status() is None
    tree.stop(15, "tree", 1)  # nobody hears it, nothing happens
    tree.kill_held()
    assert ended(tree.pidfd) and ended(member)
    if kernel_tells_stolen_status():
        assert eventually(tree.recover_status, PATIENCE).signal == signal.SIGKILL
    with pytest.raises(ConnectionRefusedError):
        HeldTree.attach(place.address)


def test_a_keeper_that_is_killed_before_it_was_heard(place: Place):
    # Of what runs nobody has told us, and it may be on the way to its exec: PDEATHSIG alone finds it there.
    # (exec: what a shell may have started by then is not the keeper's child, and nothing would tell it.)
    tree = place.start("exec sleep 99", on_owner_loss="stop")
    tree.kill_keeper()  # its pidfd was never asked for
    found = wait_gone(tree)
    assert kinds(found)[-1] == "KeeperGone" and tree.keeper_pidfd >= 0
    assert eventually(lambda: not left_of(place.mark), 5)


def test_a_frozen_keeper_is_thawed_by_its_next_owner(place: Place):
    tree = place.start("sleep 99")
    until(tree, "Spawned")
    keeper_pid, keeper_fd = tree.keeper_pid, place.held_fd(tree.keeper_pid)
    tree.close()
    freeze(keeper_fd, keeper_pid)
    tree = place.attach()
    assert tree.keeper_pid == keeper_pid and tree.keeper_pidfd >= 0
    assert not select.select([tree], [], [], 0.1)[0] and tree.events() == []
    with pytest.raises(BlockingIOError):
        for _ in range(10_000):
            tree.query()
    with pytest.raises(BlockingIOError):
        for _ in range(20):
            place.attach()
    tree.thaw()
    until(tree, "Spawned", "Members")
    tree.stop(15, "tree", 1)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)


# ---- the wire


def held_socket(place: Place) -> tuple[socket.socket, int]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(place.address)
    place.fds.append(os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY))
    return sock, place.fds[-1]


@pytest.mark.parametrize("form", [golden.read, grown])
def test_golden_held_and_ack_and_no_state_spins(place: Place, form):
    place.report = os.path.join(place.directory, "41.report")  # as the golden bytes have it
    gate = place.gate("exit")
    sock, directory = held_socket(place)
    with sock, RawKeeper() as k:
        k.send(form("HELD"), [sock.fileno(), directory])
        started = k.spawn("/bin/sh", "-c", 'read x < "$0"; exit 5', gate, on_owner_loss=2)
        k.sock.close()
        k.assert_idle()  # nobody is there
        with raw_client(place.address) as k.sock:
            k.assert_idle()  # somebody who says nothing, for a second
        k.sock = raw_client(place.address)
        k.send(golden.read("HELLO"))
        again = k.answer()
        assert again == started and k.passed[-1] == ("KEEPER_HELLO", {"version": 1, "pid": k.pid})
        place.open(gate)
        k.wait_for("EMPTY")
        k.assert_idle()  # everything is told and nothing acknowledged
        k.send(form("ACK"))  # main's end, and the report of a stop
        k.assert_idle()
        k.say("ACK", what=2)
        assert k.rest() == [] and k.code == 0
    assert not os.path.exists(place.report)


def test_the_library_writes_golden_held_log_and_ack(place: Place, monkeypatch):
    packets: list[bytes] = []
    send_fds = socket.send_fds
    monkeypatch.setattr(socket, "send_fds", lambda *args: packets.append(args[1][0]) or send_fds(*args))
    report = os.path.join(place.directory, "41.report")
    log = LogPlan(place.directory, 16 << 20, 8, 2**40, True, True, "web@41")
    plan = place.plan("exit 0")
    tree = HeldTree.start(plan, address=place.address, report=report, stop_rest=True, log=log)
    place.trees.append(tree)
    assert packets == [SPEC.record("HELLO", {"version": 1, "flags": 0}) + golden.read("HELD"), golden.read("LOG")]
    until(tree, "Empty")
    tree.acknowledge(exited=True, empty=True)
    wait_gone(tree)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        other = HeldTree(ours, 0, -1)
        other.acknowledge(exited=True, stopped=True)
        assert theirs.recv(100) == golden.read("ACK")
        other.close()


def test_held_requests_that_are_wrong(place: Place):
    sock, directory = held_socket(place)
    good = golden.read("HELD")
    with sock, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream, open(os.devnull) as null:
        unbound, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        named = {name: SPEC.record("HELD", {"flags": 0, "report": name}) for name in (b"", b"..", b"a/b", b"x" * 64)}
        cases = [
            (good, []), (good, [sock.fileno()]), (good, [directory, sock.fileno()]),
            (good, [stream.fileno(), directory]), (good, [sock.fileno(), null.fileno()]),
            (good, [sock.fileno(), directory, directory]),
            (raw_record(SPEC.records["HELD"].tag, b"\0" * 8), [sock.fileno(), directory]),
            *((data, [sock.fileno(), directory]) for data in named.values()),
        ]  # fmt: skip
        for number, (data, fds) in enumerate(cases):
            with RawKeeper() as k:
                k.send(data, fds)
                assert k.answer() == {"name": "FAILED", "stage": 2, "error": errno.EBADMSG}, number
                assert k.rest() == []
        with RawKeeper() as k:  # not bound: nobody could come
            k.send(good, [unbound.fileno(), directory])
            assert k.answer()["error"] == errno.EINVAL
        unbound.close()
        theirs.close()
        with RawKeeper() as k:  # too late
            k.spawn("/bin/sleep", "99")
            k.send(good, [sock.fileno(), directory])
            assert k.answer()["error"] == errno.EBUSY
        with RawKeeper() as k:  # a second one, and a second process
            k.send(good, [sock.fileno(), directory])
            k.spawn("/bin/true")
            k.wait_for("EMPTY")
            k.send(good, [sock.fileno(), directory])
            assert k.answer()["error"] == errno.EBUSY
            assert k.spawn("/bin/true")["error"] == errno.EBUSY
            k.say("ACK", what=2)
            k.rest()


def test_ack_to_an_ordinary_keeper_changes_nothing():
    with RawKeeper() as k:
        k.spawn("/bin/sleep", "99")
        k.send(SPEC.record("ACK", {"what": 7}) * 3)
        k.say("SIGNAL", signo=9, scope=0)
        assert k.wait_for("EXITED")[1]["status"] == 9
        k.wait_for("EMPTY")
        assert k.rest() == []


def test_python_constants_are_those_of_the_tables():
    for module in (events, held):
        names = {name for name in vars(module) if name in SPEC.records}
        for name in names:
            assert getattr(module, name) == SPEC.records[name].tag, name
        for name in SPEC.numbers:
            if name.startswith(("HELD_", "LOG_", "ACK_")) and hasattr(module, name):
                assert getattr(module, name) == SPEC.numbers[name], name
    assert {name for name, record in SPEC.records.items() if record.tag >= 64} <= set(vars(events))


@pytest.mark.parametrize("name", golden.REPORTS)
def test_golden_reports_become_events(name):
    (record,) = held._native.wire_decode(golden.read(name))
    account = events.Account()
    event = account.take_in(record)
    if name == "KEEPER_HELLO":
        assert event is None and account.keeper_pid == 4242
    elif name == "LAUNCHED":
        assert event is None
    else:
        assert event is not None
    assert account.take_in((250, 1, 2)) is None  # a later version's


# ---- what it costs


def private(pid: int) -> dict[bool, int]:
    """KiB of anonymous memory on the stack (True) and elsewhere."""
    with open(keeper.KEEPER, "rb") as file:
        if b"/ld-" in file.read(4096):
            pytest.skip("the keeper is not a static program")
    found = {True: 0, False: 0}
    stack = False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-", line):
                stack = "[stack]" in line
            elif line.startswith("Anonymous:"):
                found[stack] += int(line.split()[1])
    return found


def test_an_idle_held_keeper_has_as_little_of_its_own_as_any_keeper(place: Place):
    """Two pages of data; and one to three of stack, as it happens to lie."""
    tree = place.start("sleep 99")
    until(tree, "Spawned")

    def little() -> bool:  # it gives back what the start needed
        now = private(tree.keeper_pid)
        return now[False] <= 8 and now[True] <= 12

    assert eventually(little, 5), private(tree.keeper_pid)
    tree.stop(9, "tree", 0)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)


def test_a_held_keeper_gives_back_what_questions_members_and_owners_needed(place: Place):
    """One page more than at the start: which adopted members have been told."""
    tree = place.start("(sleep 98 &) ; trap '' TERM; sleep 99; sleep 99")
    until_adopted(tree)
    tree.signal(signal.SIGSTOP, "main")
    until(tree, "Stopped")
    tree.signal(signal.SIGCONT, "main")
    until(tree, "Continued")
    tree.close()
    tree = place.attach()
    until(tree, "Spawned", "Adopted")
    tree.query()
    until(tree, "Members")
    assert eventually(lambda: private(tree.keeper_pid)[False] <= 12, 5), private(tree.keeper_pid)
    tree.stop(9, "tree", 0)
    until(tree, "Empty")
    tree.acknowledge(empty=True)
    wait_gone(tree)
