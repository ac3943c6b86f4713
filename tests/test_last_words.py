"""The end of a `with` while the pipes are in use: nothing holds it up, and a program may clean up in peace."""

from __future__ import annotations

import io
import os
import signal
import threading

import pytest
from helpers_lib import descriptors
from helpers_trees import hold_keeper
from helpers_wait import LIMIT, wait_for

import holdfast
from holdfast import PIPE
from holdfast.process import sink
from holdfast.process.handle import unbuffered

WORDY = "trap 'head -c 1000000 /dev/zero; echo >&2 bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done"


def waits_for_a_pipe(thread: threading.Thread) -> bool:
    """The thread waits in the kernel, for a pipe."""
    with open(f"/proc/self/task/{thread.native_id}/wchan") as wchan:
        place = wchan.read()
    with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S" and ("pipe" in place or place == "0")


@pytest.mark.parametrize("private", [True, False])
def test_what_it_writes_at_its_end_neither_kills_it_nor_blocks_it(private):
    with holdfast.spawn(["sh", "-c", WORDY], stdout=PIPE, stderr=PIPE, private=private, grace=LIMIT) as process:
        assert process.stdout.readline() == b"ready\n"
    assert process.status.code == 3
    assert process.report.killed_count == 0
    assert process.stdout.closed and process.stderr.closed


def test_a_program_that_heeds_only_the_end_of_its_input():
    script = "trap '' TERM; echo ready; read x; exit 4"
    with holdfast.spawn(["sh", "-c", script], stdin=PIPE, stdout=PIPE, grace=LIMIT) as process:
        assert process.stdout.readline() == b"ready\n"
    assert process.status.code == 4


def test_a_thread_that_reads_does_not_hold_it_up():
    before = descriptors()
    read = []
    with holdfast.spawn(["sleep", "99"], stdout=PIPE) as process:
        reader = threading.Thread(target=lambda: read.append(process.stdout.read()))
        reader.start()
        wait_for(lambda: waits_for_a_pipe(reader))
    reader.join(LIMIT)
    assert not reader.is_alive() and read in ([b""], [None])
    assert process.status.signal == signal.SIGTERM
    assert descriptors() == before


def test_a_thread_that_writes_does_not_hold_it_up():
    refused = []

    def write():
        try:
            process.stdin.write(bytes(1 << 20))
        except (BrokenPipeError, ValueError) as error:
            refused.append(error)

    with holdfast.spawn(["sleep", "99"], stdin=PIPE) as process:
        writer = threading.Thread(target=write)
        writer.start()
        wait_for(lambda: waits_for_a_pipe(writer))
    writer.join(LIMIT)
    assert not writer.is_alive() and refused
    assert process.status.signal == signal.SIGTERM


def test_input_that_nobody_reads_does_not_hold_it_up():
    with holdfast.spawn(["sleep", "99"], stdin=PIPE) as process:
        os.set_blocking(process.stdin.fileno(), False)
        while process.stdin.raw.write(bytes(4096)):
            pass
        os.set_blocking(process.stdin.fileno(), True)
        process.stdin.write(b"stays in the buffer")
    assert process.status.signal == signal.SIGTERM


def test_another_thread_that_hears_of_the_stop_first():
    with holdfast.spawn(["sh", "-c", WORDY], stdout=PIPE, stderr=PIPE, grace=LIMIT) as process:
        process.stdout.readline()
        waiting = [threading.Thread(target=call) for call in (process.wait, process.wait_empty)]
        for thread in waiting:
            thread.start()
    for thread in waiting:
        thread.join(LIMIT)
    assert process.status.code == 3


def test_files_that_somebody_else_has_taken():
    with holdfast.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        taken = io.TextIOWrapper(process.stdout.detach())
        given = process.stdin.detach()
    assert process.status.signal == signal.SIGTERM
    taken.close()
    given.close()


def test_a_file_that_a_thread_closes_at_that_moment(monkeypatch):
    def and_closed(file):
        found = unbuffered(file)
        if found is not None:
            found.close()
        return found

    monkeypatch.setattr(sink, "unbuffered", and_closed)
    with holdfast.spawn(["sleep", "99"], stdout=PIPE) as process:
        pass
    assert process.status.signal == signal.SIGTERM


def test_a_stop_under_a_frozen_keeper_does_not_spin():
    with holdfast.spawn(["cat"], stdin=PIPE, stdout=PIPE, grace=0.05) as process:
        fd = hold_keeper(process)
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
        os.close(fd)
        before = os.times()
    after = os.times()
    assert process.status is not None
    assert after.user + after.system - before.user - before.system < 1
