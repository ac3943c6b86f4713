"""What changes where the kernel reaps by itself (Linux 7.1): direct children, and keepers.

`make kernels` runs this there.  Where the kernel cannot, what is left to test is that this is seen and nothing lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
import textwrap

import pytest
from helpers_lib import program

import holdfast
from holdfast import SpawnError
from holdfast.process import _native

reaps = pytest.mark.skipif(not _native.has_autoreap(), reason="the kernel has no CLONE_AUTOREAP (before Linux 7.1)")

CLONE_AUTOREAP, CLONE_INTO_CGROUP = 1 << 34, 1 << 33
EBADF = 9


def test_what_is_found_is_what_the_kernel_says():
    """Asked with another wrong descriptor, and through the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    args = (ctypes.c_uint64 * 11)(CLONE_AUTOREAP | CLONE_INTO_CGROUP, *[0] * 9, 0x7FFFFFFE)
    if libc.syscall(435, args, ctypes.sizeof(args)) == 0:
        os._exit(99)  # a child was made
    assert _native.has_autoreap() == (ctypes.get_errno() == EBADF)


def test_without_clone3_direct_children_are_waited_for():
    program("""
        import holdfast
        from holdfast.process import _native
        _native.forbid_clone3()
        assert not _native.has_autoreap()
        status = holdfast.run(["sh", "-c", "exit 7"], private=False).status
        assert status.code == 7 and status.usage is not None
    """)


@reaps
def test_direct_children_leave_nothing_to_wait_for():
    """No SIGCHLD, no zombie, and the status is there for whoever has the handle, however often it is asked."""
    program("""
        import os, select, signal, holdfast
        from helpers_wait import eventually
        called = []
        signal.signal(signal.SIGCHLD, lambda *_: called.append(1))
        for i in range(200):
            script, code = ("kill -KILL $$", -9) if i % 10 == 9 else (f"exit {i}", i)
            process = holdfast.spawn(["sh", "-c", script], private=False)
            select.select([process], [], [])
            if i % 2:  # nobody has asked for the status yet
                def no_zombie():
                    with open(f"/proc/self/task/{os.getpid()}/children") as file:
                        return file.read() == ""
                assert eventually(no_zombie)
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    pass
                else:
                    raise AssertionError("there was something to wait for")
            status = process.poll()
            assert status.returncode == code and status.usage is None, (i, status)
            assert process.wait() is status
            process.close()
        assert not called
    """)


@reaps
def test_a_start_that_fails_leaves_nothing():
    for _ in range(20):
        with pytest.raises(SpawnError):
            holdfast.spawn(["/nonexistent"], private=False)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@reaps
def test_children_of_a_direct_child_are_its_own_to_wait_for():
    """The flag is not inherited: a shell goes on to see its own children."""
    done = holdfast.run(["sh", "-c", "sh -c 'exit 3'; echo $?"], private=False, capture_output=True)
    assert done.stdout == b"3\n"


@reaps
def test_stop_of_a_direct_child_that_leads_a_group():
    with holdfast.spawn(["sh", "-c", "sleep 99 & wait"], private=False, process_group=0) as process:
        report = process.stop()
    assert report.empty and process.status.signal == 15


@reaps
@pytest.mark.parametrize("role", ["subreaper", "init"])
def test_keepers_that_come_back_to_their_owner_are_reaped_by_the_kernel(role):
    """The owner adopts its keepers, never waits for any, hears of none, and has none left."""
    if role == "init" and os.geteuid():
        pytest.skip("needs root")
    script = """
        import ctypes, os, signal, sys, holdfast
        from helpers_wait import eventually
        called = []
        signal.signal(signal.SIGCHLD, lambda *_: called.append(1))
        if sys.argv[1] == "subreaper":
            assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
        else:
            assert os.getpid() == 1
        def children():
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                return file.read()
        for i in range(50):
            process = holdfast.spawn(["sh", "-c", f"read line; exit {i}"], stdin=holdfast.PIPE)
            assert children()  # the keeper is ours
            process.stdin.close()
            assert process.wait(60).code == i
            process.wait_empty(60)
            process.close()
        assert eventually(lambda: not children()), children()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        else:
            raise AssertionError("a keeper could be waited for")
        assert not called
    """
    if role == "subreaper":
        program(script, role)
    else:
        program(f"""
            import os, subprocess, sys, textwrap
            command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c"]
            script = textwrap.dedent({script!r})
            sys.exit(subprocess.run([*command, script, "init"], timeout=50).returncode)
        """)


GUARDED = {"private": False, "on_owner_loss": "kill"}


@pytest.mark.skipif(_native.has_autoreap(), reason="the kernel can")
def test_where_the_kernel_cannot_kill_it_says_so_and_starts_nothing():
    with pytest.raises(SpawnError, match="needs Linux 7") as caught:
        holdfast.spawn(["sleep", "99"], **GUARDED)
    assert (caught.value.stage, caught.value.errno) == ("clone", errno.ENOSYS)


@reaps
@pytest.mark.parametrize("end", ["close", "drop", "exit", "kill"])
def test_the_kernel_kills_a_guarded_child_when_its_last_descriptor_closes(end):
    """Of the owner, whatever becomes of it.  What the child has started is not guarded, so it waits for this pipe."""
    reader, writer = os.pipe()
    owner = textwrap.dedent("""
        import os, signal, sys, warnings, holdfast
        warnings.simplefilter("ignore")
        writer, end = int(sys.argv[1]), sys.argv[2]
        process = holdfast.spawn(["sleep", "99"], private=False, on_owner_loss="kill", pass_fds=[writer])
        os.close(writer)
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif end == "exit":
            os._exit(0)
        elif end == "drop":
            del process
            signal.pause()
        else:
            with process:
                pass
            assert process.status.signal == 15
            signal.pause()
    """)
    command = [sys.executable, "-c", owner, str(writer), end]
    with holdfast.spawn(command, pass_fds=[writer], on_owner_loss="kill", stop_scope="main") as process:
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert select.select([pipe], [], [], 30)[0] and pipe.read() == b""  # nobody has the other end any more
        if end in ("exit", "kill"):
            assert process.wait(30).returncode == (-9 if end == "kill" else 0)


@reaps
def test_a_guarded_child_cannot_be_released():
    with holdfast.spawn(["sleep", "99"], **GUARDED) as process:
        with pytest.raises(ValueError, match="cannot be left to itself"):
            process.release()
        assert process.poll() is None
    assert process.status.signal == 15


@reaps
def test_an_ordinary_user_needs_no_new_privs():
    if os.geteuid():
        pytest.skip("needs root")
    program("""
        import os, holdfast
        from holdfast import SpawnError
        status = dict(args=["cat", "/proc/self/status"], private=False, on_owner_loss="kill", capture_output=True)
        for given in {}, {"no_new_privs": True}:  # also imports everything, which another user may not
            done = holdfast.run(**status, **given)
            assert b"NoNewPrivs:\\t%d" % len(given) in done.stdout
        os.setgid(65534); os.setuid(65534)
        try:
            holdfast.run(**status)
        except SpawnError as error:
            assert (error.errno, error.stage) == (1, "clone") and "no_new_privs" in str(error), error
        else:
            raise AssertionError("started")
        assert b"NoNewPrivs:\\t1" in holdfast.run(**status, no_new_privs=True).stdout
        assert holdfast.run(["true"], private=False).status.code == 0  # clone3 is not given up for that
    """)


@reaps
@pytest.mark.parametrize("how", ["spawn", "run"])
def test_what_a_main_process_leaves_to_the_kernel_is_waited_for(how):
    """The keeper adopts direct children whose ends nobody hears of: the tree is empty when the last has ended."""
    reader, writer = os.pipe()
    leave = textwrap.dedent("""
        import os, sys, holdfast
        for seconds in 0.01, 0.3, 0.1:
            holdfast.spawn(["sleep", str(seconds)], private=False, pass_fds=[int(sys.argv[1])])
        os._exit(0)
    """)
    command = [sys.executable, "-c", leave, str(writer)]
    if how == "run":
        shell = ["sh", "-c", 'trap "" TERM; "$@"', "sh"]
        command = [os.path.join(sys.prefix, "bin", "holdfast"), "run", "--grace=100s", "--", *shell, *command]
    with holdfast.spawn(command, pass_fds=[writer], grace=100) as process:
        os.close(writer)
        process.wait_empty(30)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""


@reaps
def test_a_stop_ends_what_a_main_process_leaves_to_the_kernel():
    leave = textwrap.dedent("""
        import os, holdfast
        for _ in range(3):
            holdfast.spawn(["sh", "-c", "trap '' TERM; echo; sleep 99 & wait; wait"], private=False)
        os._exit(0)
    """)
    with holdfast.spawn([sys.executable, "-c", leave], stdout=holdfast.PIPE, grace=0.1) as process:
        assert process.wait(30).code == 0
        assert process.stop().empty
