"""The handle: giving up, letting go, and standard streams of owners that have none."""

import os
import select
import uuid

from helpers_lib import marked, program
from helpers_wait import eventually

import holdfast
from holdfast import PIPE


def test_release_is_obeyed_although_reports_are_unread():
    """What was asked before the end of the connection counts, whatever the keeper had still to say."""
    for _ in range(20):
        value = str(uuid.uuid4())
        reader, writer = os.pipe()
        # Orphans make reports (adopted, exited) that we do not read.
        script = "for i in 1 2 3 4 5 6 7 8; do (true & true &) ; done; echo ready; read line; exec cat >/dev/null"
        process = holdfast.spawn(["sh", "-c", script], env={**os.environ, "HOLDFAST_TEST": value},
                                 stdin=reader, stdout=PIPE, process_group=0, stop_signal="KILL", grace=0)  # fmt: skip
        os.close(reader)
        fd = os.pidfd_open(process.pid)
        assert process.stdout.readline() == b"ready\n"
        for _ in range(4):
            process.signal_tree("CONT")
        process.release()
        process.close()
        assert not select.select([fd], [], [], 0.02)[0], "released, and stopped all the same"
        os.write(writer, b"go\n")
        os.close(writer)
        assert select.select([fd], [], [], 30)[0]
        os.close(fd)
        assert eventually(lambda value=value: not marked(value))


def test_owner_without_standard_streams(tmp_path):
    """0-2 closed in the owner are closed in the child, also once other files have got their numbers."""
    program("""
        import os, sys, holdfast
        from helpers_lib import WAYS, read, starter
        say = os.dup(2)
        for closed in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0, closed
                continue
            try:
                for fd in closed:
                    os.close(fd)
                for way in WAYS:
                    with starter(way) as start:
                        # these take the low numbers
                        others = [start(["sleep", "99"], stdout=holdfast.PIPE) for _ in range(3)]
                        null, pipe = holdfast.DEVNULL, holdfast.PIPE
                        for options in ({}, {"stdin": null}, {"stdout": null}, {"stderr": null},
                                        {"stdin": pipe, "stderr": pipe}):
                            given = {"stdin": 0, "stdout": 1, "stderr": 2}
                            expected = {0, 1, 2} - set(closed) | {given[key] for key in options}
                            look = "for i in 0 1 2; do [ -e /proc/$$/fd/$i ] && printf $i >>$OUT; done; :"
                            with start(["sh", "-c", look], **options, env={"OUT": sys.argv[1]}) as process:
                                assert process.wait(30).ok, process.status
                            got = {int(digit) for digit in read(sys.argv[1])}
                            if got:
                                os.unlink(sys.argv[1])
                            assert got == expected, (way, closed, options, got)
                        for other in others:
                            other.stop(0); other.close()
                os._exit(0)
            except BaseException as error:
                os.write(say, repr(error).encode())
                os._exit(1)
    """, tmp_path / "out")  # fmt: skip
