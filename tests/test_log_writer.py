"""The keeper writes the log: names, rotation, markers, time stamps, ends, cost.  Trouble is in test_log_trouble.py."""

from __future__ import annotations

import calendar
import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
import wire_golden as golden
from helpers_log import STAMP, LogKeeper, compile_writer, files, numbered, output, size_of, text, wait_for_text
from helpers_wire import SPEC, RawKeeper, grown, wait_until
from hypothesis import example, given, settings
from hypothesis import strategies as st

MIB = 1 << 20


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> str:
    return compile_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture
def fast(tmp_path):
    """A directory in memory where there is room for one."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 3000 * MIB
    where = shm / f"hf-log-{os.getpid()}-{os.urandom(4).hex()}" if roomy else tmp_path / "fast"
    where.mkdir()
    yield where
    shutil.rmtree(where)


def stripped(line: bytes) -> bytes:
    """A line without its time stamp, which it must have."""
    found = STAMP.match(line)
    assert found, line
    return line[found.end() :]


# ---- names, streams, markers


def test_one_file_with_markers(tmp_path):
    with LogKeeper(tmp_path) as k:
        pid = k.shell("echo out; echo err >&2; echo out again; exit 3")["pid"]
        k.rest()
    assert os.listdir(tmp_path) == ["current"]
    assert (tmp_path / "current").read_text() == (
        f"--- holdfast: web@41 started, pid {pid}\nout\nerr\nout again\n--- holdfast: web@41 exited with code 3\n"
    )
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "current").stat().st_mode) == 0o640 & ~umask


def test_streams_apart(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.shell("echo out; echo err >&2; kill -9 $$", merge=False, label="x@1")
        k.rest()
    assert sorted(os.listdir(tmp_path)) == ["current", "stderr"]
    started, out, killed = (tmp_path / "current").read_bytes().splitlines()
    assert started.startswith(b"--- holdfast: x@1 started, pid ")
    assert (out, killed) == (b"out", b"--- holdfast: x@1 killed by signal 9")
    assert (tmp_path / "stderr").read_bytes() == b"err\n"


def test_the_next_incarnation_goes_on_in_the_same_files(tmp_path):
    for script in ("printf 'no end'; printf 'nor here' >&2", "echo second; echo error >&2"):
        with LogKeeper(tmp_path) as k:
            k.shell(script, merge=False)
            k.rest()
    (tmp_path / "current").write_bytes((tmp_path / "current").read_bytes() + b"cut short")
    with LogKeeper(tmp_path) as k:
        k.shell("echo third", merge=False)
        k.rest()
    lines = (tmp_path / "current").read_bytes().splitlines()
    assert [line for line in lines if b"---" not in line] == [b"no end", b"second", b"cut short", b"third"]
    assert [b"started" in line for line in lines if b"---" in line] == [True, False] * 3
    assert (tmp_path / "stderr").read_bytes() == b"nor here\nerror\n"


def test_a_marker_starts_on_a_fresh_line_and_so_does_what_follows(tmp_path):
    """Main ends in the middle of a line, and its child goes on after it."""
    with LogKeeper(tmp_path) as k:
        read, write = os.pipe()
        script = "exec 3<&0; (read x <&3; echo child) & printf main"
        k.start("/bin/sh", "-c", script, fds=[read], head={"fd_targets": (0,)}, timestamps=True)
        os.close(read)
        wait_for_text(tmp_path / "current", b"exited with code 0")
        os.write(write, b"go\n")
        os.close(write)
        k.rest()
    lines = [stripped(line) for line in (tmp_path / "current").read_bytes().splitlines(keepends=True)]
    assert lines[1:] == [b"main\n", b"--- holdfast: web@41 exited with code 0\n", b"child\n"]


def test_a_prompt_is_seen_and_its_answer_ends_the_line(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat(timestamps=True)
        k.feed(b"one\nname? ")
        wait_for_text(tmp_path / "current", b"name? ")
        k.assert_idle()
        k.feed(b"Ada\ntwo\n")
        k.finish()
    lines = (tmp_path / "current").read_bytes().splitlines(keepends=True)
    assert [stripped(line) for line in lines[1:-1]] == [b"one\n", b"name? Ada\n", b"two\n"]


def test_time_stamps_are_now(tmp_path):
    before = time.time()
    with LogKeeper(tmp_path) as k:
        k.shell("echo first; sleep 1.1; echo; echo last", timestamps=True)
        k.rest()
    after = time.time()
    times = []
    for line in (tmp_path / "current").read_bytes().splitlines(keepends=True):
        stripped(line)
        when, fraction = line[:19].decode(), float(b"0" + line[19:26])
        times.append(calendar.timegm(time.strptime(when, "%Y-%m-%dT%H:%M:%S")) + fraction)
    assert len(times) == 5
    assert times == sorted(times)
    assert before - 0.001 <= times[0] <= times[-1] <= after + 0.001
    assert times[2] - times[1] > 1


# ---- what the process gets


def test_the_plans_descriptors_for_output_are_replaced_and_others_are_not(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    with open(tmp_path / "other", "wb") as other, LogKeeper(logs) as k:
        fd = other.fileno()
        k.start("/bin/sh", "-c", "echo out; echo err >&2; echo five >&5; echo six >&6", fds=[fd] * 4,
                head={"fd_targets": (1, 5, 2, 6), "closed_std": 1})  # fmt: skip
        k.rest()
    assert output(logs) == b"out\nerr\n"
    assert (tmp_path / "other").read_bytes() == b"five\nsix\n"


def test_closed_output_is_opened(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.start("/bin/sh", "-c", "echo out; echo err >&2", head={"closed_std": 7})
        k.rest()
    assert output(tmp_path) == b"out\nerr\n"


def test_another_user_opens_its_own_stdout_by_name(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may start as another user")
    head = {"options": SPEC.numbers["SET_UID"] | SPEC.numbers["SET_GID"], "uid": 65534, "gid": 65534}
    with LogKeeper(tmp_path) as k:
        k.start("/bin/sh", "-c", "echo 1 > /dev/stdout; echo 2 > /dev/stderr", head=head)
        k.rest()
    assert output(tmp_path) == b"1\n2\n"


@pytest.mark.parametrize("form", [golden.read, grown])
def test_golden_log(tmp_path, form):
    where = os.open(tmp_path, os.O_RDONLY)
    with RawKeeper() as k:
        k.send(form("LOG"), [where])
        pid = k.spawn("/bin/sh", "-c", "echo out; echo err >&2")["pid"]
        k.rest()
    os.close(where)
    lines = [stripped(line) for line in (tmp_path / "current").read_bytes().splitlines()]
    assert lines[:3] == [b"--- holdfast: web@41 started, pid %d" % pid, b"out", b"err"]
    assert os.listdir(tmp_path) == ["current"]


@pytest.mark.parametrize("bad", ["short", "no directory", "two", "endless label"])
def test_a_log_that_is_wrong_makes_the_start_fail(tmp_path, bad):
    body = {"flags": 0, "rotate_count": 1, "rotate_size": 0, "cap": 0, "label": b"x" * (160 if bad[0] == "e" else 9)}
    record = SPEC.record("LOG", body)
    if bad == "short":
        record = record[:4] + (8).to_bytes(4, "little") + record[8:16]
    where = os.open(tmp_path, os.O_RDONLY)
    with RawKeeper() as k:
        k.send(record, [where] * {"no directory": 0, "two": 2}.get(bad, 1))
        answer = k.spawn("/bin/echo", "x")
        assert (answer["name"], answer["stage"]) == ("FAILED", SPEC.numbers["STAGE_RECEIVE"])
        assert answer["error"] == errno.EBADMSG
        assert k.rest() == []
    os.close(where)
    assert os.listdir(tmp_path) == []


def test_a_start_that_fails_leaves_no_file(tmp_path):
    with LogKeeper(tmp_path) as k:
        assert k.start("/nonexistent")["name"] == "FAILED"
        k.rest()
    assert os.listdir(tmp_path) == []


def test_a_log_is_for_one_start(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with LogKeeper(tmp_path / "a") as k:
        fds = len(os.listdir(f"/proc/{k.pid}/fd"))
        k.start("/bin/sh", "-c", "echo first", head={"hello": SPEC.numbers["KEEPER_REUSED"]}, merge=False)
        k.wait_for("EMPTY")
        k.spawn("/bin/echo", "second", hello=1)
        k.wait_for("EMPTY")
        k.directory = tmp_path / "b"
        k.start("/bin/echo", "third", head={"hello": 1})
        k.log(label="too late, or in time")  # the third may have ended or not: it changes nothing of it
        k.wait_for("EMPTY")
        wait_until(lambda: len(os.listdir(f"/proc/{k.pid}/fd")) <= fds + 2)  # main's pidfd, and at most that directory
    assert output(tmp_path / "a") == b"first\n"
    assert sorted(os.listdir(tmp_path / "a")) == ["current", "stderr"]
    assert output(tmp_path / "b") == b"third\n"


# ---- rotation


def test_rotation_counts_on_and_keeps_so_many(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat(size=1000, count=3)
        for i in range(30):
            k.feed(b"%099d\n" % i)
        k.finish()
    assert [p.name for p in numbered(tmp_path)] == ["00000001", "00000002", "00000003"]
    (tmp_path / "00000001").rename(tmp_path / "00000041.gz")  # taken, though it is not ours to remove
    (tmp_path / "00000002x").write_bytes(b"")
    (tmp_path / "stderr.00000099").write_bytes(b"")
    with LogKeeper(tmp_path) as k:
        k.cat(size=1000, count=2)
        for i in range(30, 60):
            k.feed(b"%099d\n" % i)
        k.finish()
    assert [p.name for p in numbered(tmp_path)] == ["00000043", "00000044"]
    assert {"00000041.gz", "00000002x", "stderr.00000099", "current"} < set(os.listdir(tmp_path))
    assert all(size <= 1000 for size in (p.stat().st_size for p in files(tmp_path)))


def test_a_smaller_count_removes_the_rest_step_by_step(tmp_path):
    for i in range(1, 201):
        (tmp_path / f"{i:08}").write_bytes(b"old\n")
    with LogKeeper(tmp_path) as k:
        k.cat(size=100, count=0)
        for i in range(10):
            k.feed(b"%079d\n" % i)
        k.finish()
    assert numbered(tmp_path) == []
    assert b"exited with code 0" in (tmp_path / "current").read_bytes()


def test_stderr_is_rotated_by_itself(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat(to=2, merge=False, size=500, count=20)
        for i in range(40):
            k.feed(b"%099d\n" % i)
        k.finish()
    assert [p.name for p in numbered(tmp_path, "stderr.")] == [f"stderr.{i:08}" for i in range(1, 8)]
    assert numbered(tmp_path) == []
    assert output(tmp_path, "stderr") == b"".join(b"%099d\n" % i for i in range(40))


def model(lines: list[bytes], limit: int, stamp: int) -> list[bytes]:
    """The rule of docs/logs.md, line by line."""
    done, current = [], b""
    for line in lines:
        line = b"T" * stamp + line
        if current and len(current) + len(line) > limit:
            done.append(current)
            current = b""
        while len(line) > 2 * limit:
            done.append(line[: 2 * limit])
            line = line[2 * limit :]
        current += line
        if not current.endswith(b"\n"):  # what comes next starts on a fresh line
            if len(current) == 2 * limit:
                done.append(current)
                current = b""
            else:
                current += b"\n"
    return [*done, current]


lengths = st.lists(
    st.one_of(st.integers(0, 40), st.integers(0, 400), st.integers(300, 3000)), max_size=60
).filter(lambda sizes: sum(sizes) < 30000)  # fmt: skip


@settings(max_examples=120, deadline=None, database=None)
@example([100] * 300, 1000, False, True)
@example([10, 2000 - 1], 1000, False, False)
@example([10, 4000 - 1], 1000, False, False)
@example([999, 1000, 1001, 1999, 2000, 2001, 4000, 4001, 7000], 1000, True, False)
@given(lengths, st.integers(130, 1500), st.booleans(), st.booleans())
def test_files_are_what_the_rule_says(tmp_path_factory, sizes, limit, timestamps, ended):
    """One write, so that no line comes in two pieces: then the files are exactly those of the model."""
    where = tmp_path_factory.mktemp("model")
    lines = [(b"%d." % i + b"x" * size)[:size] + b"\n" for i, size in enumerate(sizes)]
    if lines and not ended:
        lines[-1] = lines[-1][:-1] or b"?"
    with LogKeeper(where) as k:
        k.cat(size=limit, count=1000, timestamps=timestamps)
        pid = int(re.search(rb"pid (\d+)", (where / "current").read_bytes())[1])
        if lines:
            k.feed(b"".join(lines))
        k.finish()
    started = b"--- holdfast: web@41 started, pid %d\n" % pid
    every = [started, *lines, b"--- holdfast: web@41 exited with code 0\n"]
    expected = model(every, limit, 28 * timestamps)
    found = [path.read_bytes() for path in files(where)]
    assert [len(part) for part in found] == [len(part) for part in expected]
    whole = b"".join(found)
    if timestamps:  # stamps at line starts; a digit or an x cannot look like one
        whole = re.sub(rb"(?m)^" + STAMP.pattern, b"T" * 28, whole)
    assert whole == b"".join(expected)
    shutil.rmtree(where)


@settings(max_examples=40, deadline=None, database=None)
@given(
    st.lists(st.binary(min_size=1, max_size=3000).map(lambda b: b.replace(b"-", b"\n")), min_size=1, max_size=30),
    st.integers(100, 5000),
)
def test_nothing_is_lost_whatever_the_chunks(tmp_path_factory, chunks, limit):
    """Any bytes in any pieces: together they are what was written, and a file ends where the rule allows it."""
    where = tmp_path_factory.mktemp("chunks")
    with LogKeeper(where) as k:
        k.cat(size=limit, count=1000)
        for chunk in chunks:
            k.feed(chunk)
        k.finish()
    said = b"".join(chunks)
    said += b"" if said.endswith(b"\n") else b"\n"
    parts = [path.read_bytes() for path in files(where)]
    first, rest = b"".join(parts).split(b"\n", 1)
    assert first.startswith(b"--- holdfast: web@41 started")
    assert rest == said + b"--- holdfast: web@41 exited with code 0\n"
    for part, after in itertools.pairwise(parts):
        begun = len(part) - len(part.rstrip(b"\n").rpartition(b"\n")[2]) - part.endswith(b"\n")
        assert part.endswith(b"\n") or len(part) == 2 * limit
        assert len(part) <= limit or begun < limit  # its last line began within the limit
        assert len(part) + len(after.split(b"\n")[0]) + 1 > limit  # not too early
    shutil.rmtree(where)


def test_a_line_longer_than_any_buffer(tmp_path):
    long = b"L" * 900_000 + b"\n"
    with LogKeeper(tmp_path) as k:
        k.cat(size=500_000, count=9)
        k.feed(b"before\n" + long + b"after\n")
        k.finish()
    assert output(tmp_path) == b"before\n" + long + b"after\n"
    assert (tmp_path / "00000001").read_bytes().endswith(b"before\n" + long)  # it had begun there
    assert (tmp_path / "current").read_bytes().startswith(b"after\n")
    assert len(numbered(tmp_path)) == 1


def test_a_line_without_end_is_split_at_twice_the_limit(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat(size=100_000, count=99)
        k.feed(b"L" * 1_000_000)
        k.finish()
    first, *parts = numbered(tmp_path)
    assert b"L" not in first.read_bytes()
    assert [p.read_bytes() for p in parts] == [b"L" * 200_000] * 5
    assert (tmp_path / "current").read_bytes() == b"--- holdfast: web@41 exited with code 0\n"


CHECKER = r"""
#include <stdio.h>
#include <string.h>
int main(int n, char **v) /* STAMPED LIMIT FILE...: the first line, or -1, then the number after the last */
{
    static char line[4096];
    long first = -1, next = -1, limit;
    sscanf(v[2], "%ld", &limit);
    for (int i = 3; i < n; i++) {
        FILE *f = fopen(v[i], "r");
        long size = 0;
        if (!f) return 2;
        while (fgets(line, sizeof line, f)) {
            size_t length = strlen(line);
            char *text = line + (v[1][0] == '1' ? 28 : 0);
            long number;
            size += (long)length;
            if (line[length - 1] != '\n') return 3;
            if (text > line && (length < 29 || line[10] != 'T' || memcmp(line + 26, "Z ", 2))) return 4;
            if (memcmp(text, "--- holdfast: ", 14) == 0) continue;
            if (strlen(text) != 100 || strspn(text, "0123456789") != 10 || strspn(text + 10, "x") != 89) return 5;
            sscanf(text, "%10ld", &number);
            if (next >= 0 && number != next) return 6;
            if (first < 0) first = number;
            next = number + 1;
        }
        fclose(f);
        if (size > limit) return 7;
    }
    printf("%ld %ld\n", first, next);
    return 0;
}
"""


@pytest.fixture(scope="module")
def checker(tmp_path_factory) -> str:
    program = str(tmp_path_factory.mktemp("checker") / "checker")
    subprocess.run(["gcc", "-O2", "-w", "-x", "c", "-", "-o", program], input=CHECKER, text=True, check=True)
    return program


def check(checker: str, where: Path, limit: int, stamped: bool) -> list[int]:
    done = subprocess.run([checker, str(int(stamped)), str(limit), *files(where)], capture_output=True, text=True)
    assert done.returncode == 0, done.returncode
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("timestamps", [False, True], ids=["plain", "stamped"])
def test_a_gibibyte_of_lines(fast, writer, checker, timestamps):
    """Every one of 10,737,418 lines is there, whole, in order, in files that end within the limit."""
    lines = (1 << 30) // 100
    with LogKeeper(fast) as k:
        k.start(writer, str(lines), size=16 * MIB, count=1000, timestamps=timestamps)
        state = k.finish()
    assert "LOG_STATE" not in state  # nothing was lost: nothing to tell
    assert len(files(fast)) == 64 * (128 if timestamps else 100) // 100 + 1
    assert check(checker, fast, 16 * MIB, timestamps) == [0, lines]


@pytest.mark.parametrize("block", [100, 4096, 1000003])
def test_writes_of_any_size_and_files_that_go(fast, writer, checker, block):
    with LogKeeper(fast) as k:
        k.start(writer, "300000", "7", str(block), size=1 * MIB, count=5)
        k.finish()
    first, after = check(checker, fast, 1 * MIB, False)
    assert after == 300007
    assert len(numbered(fast)) == 5
    assert 5 * (MIB // 100) <= after - first <= 6 * (MIB // 100)  # five full files, and the rest


# ---- the end


def test_everything_written_before_the_end_is_there(tmp_path):
    """A full pipe when main ends, and one that is filled by what is left of the tree."""
    with LogKeeper(tmp_path) as k:
        k.shell("full() { head -c 60000 /dev/zero | tr '\\0' $1; }; (full a; sleep 0.2; echo; echo late) & full b")
        k.rest()
    whole = text(tmp_path)
    assert whole.count(b"a") >= 60000 and whole.count(b"b") >= 60000 + 1
    assert whole.index(b"exited with code 0") < whole.index(b"late\n")


def test_a_stranger_who_holds_the_pipe_does_not_keep_the_keeper(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.cat()
        k.feed(b"own\n")
        wait_for_text(tmp_path / "current", b"own\n")
        pid = int(re.search(rb"pid (\d+)", (tmp_path / "current").read_bytes())[1])
        fd = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
        os.write(fd, b"by a stranger\n")
        k.finish()
        assert k.wait() == 0
        with pytest.raises(BrokenPipeError):
            os.write(fd, b"nobody reads this\n")
        os.close(fd)
    assert output(tmp_path) == b"own\nby a stranger\n"


def test_a_service_that_closes_its_output_is_no_work(tmp_path):
    with LogKeeper(tmp_path) as k:
        k.shell("echo bye; exec sleep 60 >&- 2>&-", merge=False)
        wait_for_text(tmp_path / "current", b"bye")
        k.assert_idle()
        k.say("STOP", id=1, signo=15, scope=0, grace_ms=5000)
        k.rest()
    assert b"killed by signal 15" in text(tmp_path)


def test_a_stop_is_prompt_in_a_flood(fast, writer):
    with LogKeeper(fast) as k:
        k.start("/bin/sh", "-c", f"trap '' TERM; while :; do {writer} 100000000; done", size=MIB, count=2)
        wait_until(lambda: len(numbered(fast)) == 2)
        began = time.monotonic()
        k.say("STOP", id=1, signo=15, scope=2, grace_ms=100)
        report = k.wait_for("STOP_REPORT")[1]
        assert time.monotonic() - began < 10
        k.rest()
    assert report["survivors"] == 0
    assert b"--- holdfast: web@41 " in (fast / "current").read_bytes()


# ---- what it costs


def test_idle_and_small_again_after_a_flood(fast):
    def private(k) -> int:
        with open(f"/proc/{k.pid}/smaps") as file:
            areas = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", file.read())
        # Without the program's own pages, which count as dirty right after it was installed.
        # And without its stack: where that starts in a page is chance.
        return sum(int(re.search(r"Anonymous:\s+(\d+)", a)[1]) for a in areas if a and "[stack]" not in a)

    with LogKeeper(fast) as k:
        k.spawn("/bin/sleep", "60")
        without = private(k)
        k.say("STOP", id=1, signo=9, scope=2, grace_ms=0)
        k.rest()
    for timestamps in (False, True):
        with LogKeeper(fast) as k:
            k.cat(size=MIB, count=2, timestamps=timestamps)
            k.feed(b"line\n" * 400000)
            wait_for_text(fast / "current", b"line\n")
            k.assert_idle()
            wait_until(lambda k=k: private(k) <= without, "the buffers are not given back")
            k.finish()


def test_a_pipe_grows_in_a_flood_and_shrinks_again(fast):
    with LogKeeper(fast) as k:
        k.cat(size=MIB, count=2)
        wait_for_text(fast / "current", b"started")
        pid = int(re.search(rb"pid (\d+)", (fast / "current").read_bytes())[1])
        fd = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
        sizes = set()
        for _ in range(2000):
            os.write(fd, b"x" * 65535 + b"\n")
            sizes.add(fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ))
            if MIB in sizes:
                break
        assert MIB in sizes
        wait_until(lambda: fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == 65536)
        os.close(fd)
        k.finish()
    assert size_of(fast) < 4 * MIB
