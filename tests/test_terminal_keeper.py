"""The keeper and terminals: what the process finds, what the log gets, and the clients of docs/wire.md."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import socket

import pytest
from helpers_client import HAS_INPUT, HAS_TERMINAL, INPUT, TERMINAL, TerminalKeeper, writable
from helpers_held import Place, kinds, until
from helpers_log import output, text, wait_for_text
from helpers_wait import wait_for
from helpers_wire import SPEC, raw_record


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "log"
    path.mkdir()
    return path


# ---- what the process finds, and what the log gets

LOOK = """
import fcntl, os, termios
tty = os.open("/dev/tty", os.O_RDWR)
same = len({os.ttyname(fd) for fd in (0, 1, 2)}) == 1
print(all(map(os.isatty, (0, 1, 2))), same, os.getsid(0) == os.getpid() == os.tcgetpgrp(tty), os.get_terminal_size(tty))
"""


def tty_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[4])


def test_the_process_has_a_terminal_and_its_session_is_that_ones(directory):
    with TerminalKeeper(directory) as k:
        k.python(LOOK + "input()\n")
        wait_for_text(directory / "current", b"lines=24)\n")
        assert tty_of(k.pid) == 0  # it is not the keeper's
        with k.attach() as client:
            client.type(b"\r")
            k.ended()
    assert output(directory) == b"True True True os.terminal_size(columns=80, lines=24)\n\n"


def test_a_user_of_its_own_can_open_its_terminal_by_name(directory):
    if os.geteuid() != 0:
        pytest.skip("only root starts processes of another user")
    with TerminalKeeper(directory) as k:
        n = SPEC.numbers
        head = {"options": n["NEW_SESSION"] | n["SET_UID"] | n["SET_GID"] | n["SET_GROUPS"], "uid": 65534, "gid": 65534}
        k.start("/bin/sh", "-c", 'echo there > "$(tty)"', flags=TERMINAL, head=head)
        assert k.ended()["status"] == 0
    assert output(directory) == b"there\n"


def test_a_program_that_holds_its_output_back_does_not_in_a_terminal(directory):
    script = "import sys\nprint('at once')\nsys.stdin.readline()\n"
    with TerminalKeeper(directory) as k:
        k.python(script, env=[f"PATH={os.environ['PATH']}"])
        wait_for_text(directory / "current", b"at once\n")  # it waits, and has not been told to flush


@pytest.mark.parametrize("timestamps", [False, True])
def test_newlines_of_a_terminal_are_newlines_in_the_log(directory, timestamps):
    script = r"printf 'a\rb\nc'; sleep 0.3; printf '\n\n\033[1md\033[m\n\r\nend'"
    with TerminalKeeper(directory) as k:
        k.sh(script, timestamps=timestamps)
        k.ended()
    lines = output(directory)
    if timestamps:
        stamp = lines.index(b" ") + 1
        lines = b"".join(line[stamp:] if line[:2] == b"20" else line for line in lines.splitlines(keepends=True))
    # What a program ends with \r\n itself, the terminal makes \r\r\n of.
    assert lines == b"a\rb\nc\n\n\x1b[1md\x1b[m\n\r\nend\n"


def test_everything_is_in_the_log_before_the_end_is_told(directory):
    wanted = b"".join(b"%d\n" % i for i in range(1, 30001))
    for _ in range(3):
        with TerminalKeeper(directory) as k:
            k.sh("seq 30000; exit 3", label="web@1")
            assert k.ended()["status"] == 3
            said = text(directory)
            assert said.endswith(b"30000\n--- holdfast: web@1 exited with code 3\n")
            assert wanted in said
        os.unlink(directory / "current")


def test_output_of_what_runs_on_after_main(directory):
    """The end of the session's leader hangs up nothing but the foreground group."""
    gate = os.path.join(directory.parent, "gate")
    os.mkfifo(gate)
    with TerminalKeeper(directory) as k:
        k.sh(f"trap '' HUP; (read x < {gate}; echo later) & exit 0")
        k.ended()
        with open(gate, "w") as file:
            file.write("\n")
        k.wait_for("EMPTY")
    assert output(directory) == b"later\n"


def test_without_a_session_of_its_own_there_is_no_terminal(directory):
    with TerminalKeeper(directory) as k:
        failed = k.start("/bin/true", flags=TERMINAL)
        assert (failed["name"], failed["error"]) == ("FAILED", errno.EBADMSG)


# ---- clients


def test_a_client_sees_the_last_lines_and_then_what_comes(directory):
    with TerminalKeeper(directory) as k:
        started = k.sh("seq 2000; printf 'name: '; read x; echo hello $x; read y")
        wait_for_text(directory / "current", b"name: ")
        with k.attach() as client:
            assert client.attached == {"flags": HAS_TERMINAL | HAS_INPUT, "pid": started["pid"]}
            name, recent = client.next()
            assert name == "RECENT" and len(recent) <= 4096 and recent.endswith(b"\n1999\n2000\nname: ")
            assert recent[0:1].isdigit() and len(recent) > 4000
            client.type(b"wor")
            client.type(b"ld\r")
            client.until(b"world\r\nhello world\r\n")
            client.type(b"\x04")  # Ctrl-D: the terminal makes an end of file of it
            assert client.rest() == [("ENDED", {"code": 1, "status": 1})]
        k.ended()
    assert output(directory).endswith(b"name: world\nhello world\n")


def test_ctrl_c_is_a_signal_to_the_foreground(directory):
    with TerminalKeeper(directory) as k:
        k.sh("echo up; exec sleep 99")
        with k.attach() as client:
            wait_for_text(directory / "current", b"up\n")
            client.type(b"\x03")
            assert client.rest()[-1] == ("ENDED", {"code": 2, "status": signal.SIGINT})


def test_a_client_that_stops_the_output_and_leaves_holds_nobody_up(directory):
    """Ctrl-S is the terminal's: what is written then waits for Ctrl-Q, or for the last client's end."""
    with TerminalKeeper(directory) as k:
        k.sh(f"while read x; do : > '{directory.parent}/heard-'$x; echo said $x; done")
        with k.attach() as one, k.attach() as other:
            one.type(b"\x13")
            one.type(b"a\r")
            one.leave()
            assert [name for name, _ in one.rest()] == ["RECENT"]
            other.type(b"\x11")  # and until here nothing has gone on: it comes behind
            other.until(b"said a\r\n")
            other.type(b"\x13b\r")
            wait_for((directory.parent / "heard-b").exists)  # and so has the terminal heard what stands before
            other.leave()
            other.rest()
        wait_for_text(directory / "current", b"said b\n")


def test_the_size_of_the_window_is_passed_on(directory):
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b'%s\\n' % str(os.get_terminal_size()).encode()))\n"
        "print('up', flush=True)\nwhile True: signal.pause()\n"
    )
    with TerminalKeeper(directory) as k:
        k.python(script)
        wait_for_text(directory / "current", b"up\n")
        with k.attach() as client:
            client.say("WINDOW", rows=51, columns=131)
            client.until(b"os.terminal_size(columns=131, lines=51)\r\n")
            client.say("WINDOW", rows=65536, columns=1)  # no terminal is so large: nothing happens
            client.say("WINDOW", rows=10, columns=20)
            client.until(b"os.terminal_size(columns=20, lines=10)\r\n")


def test_several_clients_and_one_too_many(directory):
    with TerminalKeeper(directory) as k:
        k.sh("while read x; do echo said $x; done")
        clients = [k.attach() for _ in range(4)]
        with k.ask() as late:
            assert late.next() == ("REFUSED", {"error": errno.EBUSY})
            assert late.next() == ("", {})
        clients[1].type(b"one\r")
        for client in clients:
            client.until(b"said one\r\n")
        clients[2].leave()
        assert clients[2].rest() == []  # hung up, and nobody else
        with k.attach() as another:
            another.type(b"two\r")
            for client in (clients[0], clients[1], clients[3], another):
                client.until(b"said two\r\n")
        for client in clients:
            client.close()
        k.assert_idle()  # of four that have gone without a word nothing is left


def test_a_client_that_does_not_read_misses_what_it_is_told_and_nobody_waits(directory):
    total = sum(len(b"%d\r\n" % i) for i in range(1, 100001))
    with TerminalKeeper(directory) as k:
        k.sh("read x; seq 100000; read y; echo more; read z")
        with k.attach() as slow, k.attach(narrow=True) as narrow:
            slow.type(b"\r")
            wait_for_text(directory / "current", b"\n100000\n")
            k.assert_idle()  # two who do not read are no work
            for client in (slow, narrow):
                seen = 0
                while not client.skipped:
                    name, data = client.next()
                    assert name, "it was hung up on"
                    seen += len(data) if name == "OUTPUT" else 0
                assert seen + client.skipped == total + 2, (seen, client.skipped)  # and the typed end of line
            slow.type(b"\r")
            for client in (slow, narrow):
                client.until(b"more\r\n")
    assert output(directory) == b"\n" + b"".join(b"%d\n" % i for i in range(1, 100001)) + b"\nmore\n"


# ---- a pipe for stdin


def test_a_socket_too_narrow_for_a_packet_is_told_what_it_misses(directory):
    with TerminalKeeper(directory) as k:
        k.cat()
        with k.attach(narrow=True) as client:
            k.feed(b"x" * 30000 + b"\n")  # as a rule one read of the keeper's; a packet has 16,384 bytes of it
            while len(client.shown) + client.skipped < 30001:
                assert client.next()[0] in ("RECENT", "OUTPUT", "SKIPPED")
            assert client.skipped
            k.feed(b"end\n")
            client.until(b"end\n")
        k.finish()


def test_what_is_typed_goes_into_the_pipe_and_waits_for_the_service(directory):
    fifo = os.path.join(directory.parent, "gate")
    os.mkfifo(fifo)
    lines = [b"%07d" % i * 500 for i in range(200)]  # 3,500 bytes each: 700 KB, and the pipe has room for 64 KiB
    script = f"open({fifo!r}).read()\nimport hashlib, sys\nprint(sys.stdin.isatty(), sys.stdout.isatty())\n"
    script += f"print(hashlib.sha256(sys.stdin.buffer.read({sum(map(len, lines))})).hexdigest())\n"
    with TerminalKeeper(directory) as k:
        k.python(script, flags=INPUT, merge=False)
        with k.attach() as client, k.attach() as other:
            assert client.attached["flags"] == HAS_INPUT
            sent = 0
            while writable(client.sock) and sent < len(lines):
                client.type(lines[sent])
                sent += 1
            assert sent < len(lines)  # what is sent is in the pipe and in his own socket
            k.assert_idle()
            os.close(os.open(fifo, os.O_WRONLY))
            for line in lines[sent:]:
                client.type(line)
            client.leave()
            client.rest()
            assert other.rest()[-1] == ("ENDED", {"code": 1, "status": 0})
    wanted = hashlib.sha256(b"".join(lines)).hexdigest()
    assert output(directory) == f"False False\n{wanted}\n".encode()


def test_clients_that_wait_for_room_get_it_in_turn(directory):
    fifo = os.path.join(directory.parent, "gate")
    os.mkfifo(fifo)
    with TerminalKeeper(directory) as k:
        k.sh(f"read x < {fifo}; dd bs=4000 count=26 iflag=fullblock 2>/dev/null | tr -s ab", flags=INPUT)
        with k.attach() as a, k.attach() as b:
            for client, letter, times in ((a, b"a", 21), (b, b"b", 5)):  # 16 fill the pipe
                for _ in range(times):
                    client.type(letter * 4000)
            os.close(os.open(fifo, os.O_WRONLY))
            k.ended()
    said = output(directory).strip()
    assert said.startswith(b"a") and said.count(b"b") > 1  # not all of one before the other


def test_a_service_that_closes_its_stdin(directory):
    with TerminalKeeper(directory) as k:
        k.sh("exec <&-; echo closed; exec sleep 99", flags=INPUT)
        wait_for_text(directory / "current", b"closed\n")
        with k.attach() as client:
            assert client.attached["flags"] == HAS_INPUT  # nobody has written yet
            client.type(b"to nobody\n")
            client.leave()
            assert client.rest() in ([], [("RECENT", client.recent)])
        with k.attach() as client:
            assert client.attached["flags"] == 0
        k.assert_idle()


def test_output_alone(directory):
    with TerminalKeeper(directory) as k:
        k.cat()
        with k.attach() as client:
            assert client.attached["flags"] == 0
            client.type(b"to nobody\n")
            client.say("WINDOW", rows=1, columns=1)
            k.feed(b"fed\n")
            client.until(b"fed\n")
        k.finish()
    assert output(directory) == b"fed\n"


# ---- ends, and clients that are none


def test_the_end_is_told_to_those_who_are_there_and_refused_to_others(directory):
    with TerminalKeeper(directory) as k:
        k.sh("trap '' HUP; sleep 99 & read x; echo bye; kill -9 $$")
        with k.attach() as client:
            client.type(b"\r")
            records = client.rest()
            assert records[-1] == ("ENDED", {"code": 2, "status": 9})
            assert client.shown.endswith(b"bye\r\n")
        k.ended()
        with k.ask() as late:
            assert late.next() == ("REFUSED", {"error": errno.ESRCH})
        k.say("STOP", id=1, signo=9, scope=2, grace_ms=0)
        k.wait_for("EMPTY")


def test_without_a_log_there_is_nothing_to_attach_to(directory):
    with TerminalKeeper(directory) as k:
        k.spawn("/bin/sleep", "99")
        with k.ask() as client:
            assert client.next() == ("REFUSED", {"error": errno.ESRCH})


def test_clients_that_talk_nonsense_are_hung_up_on(directory):
    with TerminalKeeper(directory) as k:
        k.sh("while read x; do echo said $x; done")
        for packet in (b"x", raw_record(40, b"abc", 4000), raw_record(40, b"x" * 4097), raw_record(63) * 1000):
            with k.attach() as client:
                client.sock.send(packet)
                assert client.rest() in ([], [("RECENT", client.recent)]), packet[:20]
        with k.attach() as client:
            for packet in (raw_record(63, b"of a later version"), raw_record(41, b"short"), raw_record(40)):
                client.sock.send(packet)
            client.type(b"sense\r")
            client.until(b"said sense\r\n")


def test_attach_without_a_socket_of_the_right_kind_is_skipped(directory):
    with TerminalKeeper(directory) as k:
        k.sh("echo up; read x")
        pipe = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram, socket.socket() as tcp:
            for fds in ([], [pipe[0]], [datagram.fileno()], [tcp.fileno()], list(pipe)):
                k.send(SPEC.record("ATTACH"), fds)
        for fd in pipe:
            os.close(fd)
        with k.attach() as client:
            client.type(b"\r")
            client.rest()


def test_clients_outlive_the_owner(directory):
    with TerminalKeeper(directory) as k:
        k.sh("while read x; do echo said $x; done", label="web@1")
        k.say("ON_OWNER_LOSS", on_owner_loss=2)
        with k.attach() as client:
            client.type(b"one\r")
            client.until(b"said one\r\n")
            k.sock.close()
            client.type(b"two\r")
            client.until(b"said two\r\n")
            client.type(b"\x04")
            assert client.rest() == [("ENDED", {"code": 1, "status": 0})]
        assert k.wait() == 0


def test_a_held_keeper_without_room_for_descriptors_fails_no_start(tmp_path):
    """FAILED would mean that the process has never been: its supervisor would start another."""
    place = Place(str(tmp_path))
    tree = place.start("exec sleep 99")
    until(tree, "Spawned")
    used = max(map(int, os.listdir(f"/proc/{tree.keeper_pid}/fd"))) + 1
    soft, hard = resource.prlimit(tree.keeper_pid, resource.RLIMIT_NOFILE)
    resource.prlimit(tree.keeper_pid, resource.RLIMIT_NOFILE, (used, hard))
    with open(os.devnull) as null:
        socket.send_fds(tree._sock, [SPEC.record("ATTACH")], [null.fileno()] * 40)
    tree.query()
    assert "Failed" not in kinds(until(tree, "Members"))
    resource.prlimit(tree.keeper_pid, resource.RLIMIT_NOFILE, (soft, hard))
    tree.stop(signal.SIGKILL, "tree", 0)
    until(tree, "Empty")
    tree.acknowledge(exited=True, stopped=True, empty=True)
    place.close()
