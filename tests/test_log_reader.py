"""daemon/logs.py: every line once and in order, across rotation, expiry, long lines, odd bytes; following."""

from __future__ import annotations

import asyncio
import os
import pathlib
import random
import shutil
import tempfile
from contextlib import aclosing

import pytest
from helpers_control import LogWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.daemon import logs
from holdfast.daemon.logs import BadCursor, LogReader
from holdfast.daemon.watch import Watcher

OUT = ("stdout",)


def read_all(reader, cursor=None, streams=OUT):
    """Every entry from cursor on, and the cursor behind them."""
    entries = []
    while True:
        page = reader.read(cursor, streams)
        entries += page.entries
        cursor = page.cursor
        if not page.more:
            return entries, cursor


def texts(entries):
    return [entry.text for entry in entries]


def joined(entries):
    """What the entries say of the bytes: a line's end after each that is not partial."""
    return "".join(entry.text + ("" if entry.partial else "\n") for entry in entries)


def in_loop(coroutine, limit=60):
    async def bounded():
        async with asyncio.timeout(limit):
            return await coroutine

    return asyncio.run(bounded())


# ---- addresses


def test_nothing_is_there(tmp_path):
    page = LogReader(str(tmp_path / "never")).read(None)
    assert (page.entries, page.cursor, page.more, page.missing_files) == ([], "1:0,1:0", False, 0)


def test_a_cursor_stays_true_when_its_file_is_rotated(tmp_path):
    reader = LogReader(str(tmp_path))
    with LogWriter(tmp_path) as log:
        log.write(b"one\ntwo\n")
        page = reader.read(None, OUT)
        assert page.cursor == "1:8"
        log.write(b"three\n")
        log.rotate()
        log.write(b"four\n")
        log.rotate()
        log.write(b"five\n")
        entries, cursor = read_all(reader, page.cursor)
        assert texts(entries) == ["three", "four", "five"]
        assert cursor == "3:5"
        assert reader.read(cursor, OUT).entries == []


def test_both_streams_have_addresses_of_their_own(tmp_path):
    reader = LogReader(str(tmp_path))
    with LogWriter(tmp_path) as out, LogWriter(tmp_path, "stderr") as err:
        out.write(b"out 1\n")
        out.rotate()
        out.write(b"out 2\n")
        err.write(b"err 1\n")
        entries, cursor = read_all(reader, None, logs.STREAMS)
        assert texts(e for e in entries if e.stream == "stdout") == ["out 1", "out 2"]
        assert texts(e for e in entries if e.stream == "stderr") == ["err 1"]
        assert cursor == "2:6,1:6"
        err.rotate()
        err.write(b"err 2\n")
        assert texts(read_all(reader, cursor, logs.STREAMS)[0]) == ["err 2"]
        assert texts(read_all(reader, None, ("stderr",))[0]) == ["err 1", "err 2"]


def test_files_that_expired_are_counted(tmp_path):
    reader = LogReader(str(tmp_path))
    with LogWriter(tmp_path) as log:
        log.write(b"a\n")
        cursor = reader.read(None, OUT).cursor
        for text in (b"b\n", b"c\n", b"d\n", b"e\n"):
            log.write(text)
            log.rotate(keep=2)
        log.write(b"f\n")
        page = reader.read(cursor, OUT)
        assert page.missing_files == 2
        assert texts(page.entries) == ["d"]
        rest, _ = read_all(reader, page.cursor)
        assert texts(rest) == ["e", "f"]
        assert reader.read(None, OUT).missing_files == 0  # who asks for the oldest misses nothing


def test_a_log_that_was_removed_begins_anew(tmp_path):
    reader = LogReader(str(tmp_path))
    with LogWriter(tmp_path) as log:
        log.write(b"fresh\n")
        assert texts(read_all(reader, "17:400")[0]) == ["fresh"]  # of a file that does not exist yet
        assert texts(read_all(reader, "1:400")[0]) == ["fresh"]  # behind the end


@pytest.mark.parametrize(
    "cursor", ["", "1", "1:", ":1", "1:2:3", "-1:0", "1:-1", "1:0,1:0", "x:0", "1:0 ", "\uff11:0", "9" * 16 + ":0"]
)
def test_bad_cursors(tmp_path, cursor):
    with pytest.raises(BadCursor):
        LogReader(str(tmp_path)).read(cursor, OUT)
    if cursor != "1:0,1:0":
        with pytest.raises(BadCursor):
            LogReader(str(tmp_path)).read(cursor)


def test_other_files_and_links_are_none_of_ours(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    logs_dir = tmp_path / "web"
    with LogWriter(logs_dir) as log:
        log.write(b"mine\n")
        for name in ("1", "holdfast.log", "current.gz", "0000000x", "stderr.x"):
            (logs_dir / name).write_text("noise\n")
        assert texts(read_all(LogReader(str(logs_dir)), None, logs.STREAMS)[0]) == ["mine"]
    os.unlink(logs_dir / "current")
    os.symlink(secret, logs_dir / "current")
    with pytest.raises(OSError):
        LogReader(str(logs_dir)).read(None, OUT)


# ---- lines


def test_a_line_without_an_end_waits_until_it_is_quiet(tmp_path):
    reader = LogReader(str(tmp_path))
    with LogWriter(tmp_path) as log:
        log.write(b"one\nname: ")
        page = reader.read(None, OUT)
        if len(page.entries) == 1:  # else this machine stood still for a second
            assert page.cursor == "1:4"
        log.age()
        entries, cursor = read_all(reader, page.cursor)
        assert [(e.text, e.partial) for e in entries][-1] == ("name: ", True)
        log.write(b"holdfast\n")
        assert [(e.text, e.partial) for e in reader.read(cursor, OUT).entries] == [("holdfast", False)]
        log.write(b"last words")
        log.rotate()  # complete now, however fresh
        log.write(b"next\n")
        entries, _ = read_all(reader, "1:19")
        assert [(e.text, e.partial) for e in entries] == [("last words", True), ("next", False)]


@pytest.mark.parametrize("size", [65535, 65536, 65537, 131072, 200_000, 700_000])
def test_long_lines_come_in_pieces(tmp_path, size):
    reader = LogReader(str(tmp_path))
    with LogWriter(tmp_path) as log:
        line = bytes(random.Random(size).choices(b"abcdefgh", k=size))
        log.write(b"before\n" + line + b"\nafter\n")
        entries, _ = read_all(reader)
        assert joined(entries) == "before\n" + line.decode() + "\nafter\n"
        assert next(e.text for e in entries if not e.partial) == "before"
        assert max(len(e.text) for e in entries) <= logs.LINE_MAX
        pieces = -(-size // logs.LINE_MAX)
        assert len(entries) == 2 + pieces


def test_pieces_do_not_cut_characters(tmp_path):
    with LogWriter(tmp_path) as log:
        text = "x" + "€" * 50_000
        log.write(text.encode() + b"\n")
        entries, _ = read_all(LogReader(str(tmp_path)))
        assert len(entries) == 3
        assert joined(entries) == text + "\n"


def test_bytes_that_are_no_text_are_shown(tmp_path):
    with LogWriter(tmp_path) as log:
        log.write(b"caf\xe9 \xff\x00\r\n\n")
        assert texts(read_all(LogReader(str(tmp_path)))[0]) == ["caf\\xe9 \\xff\x00\r", ""]


def test_a_page_has_a_limit(tmp_path):
    with LogWriter(tmp_path) as log:
        log.write(b"\n" * (2 * logs.PAGE_LINES_MAX + 1))
        reader = LogReader(str(tmp_path))
        page = reader.read(None, OUT)
        assert (len(page.entries), page.more) == (logs.PAGE_LINES_MAX, True)
        assert len(read_all(reader)[0]) == 2 * logs.PAGE_LINES_MAX + 1


# ---- the last lines


@given(
    sizes=st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=4),
    long=st.booleans(),
    lines=st.integers(0, 12),
    rest=st.sampled_from([b"", b"prompt"]),
)
@settings(max_examples=150, deadline=None)
def test_tail_is_the_end_of_the_whole(sizes, long, lines, rest):
    """Compared with the last lines of everything that was written, whatever file they lie in."""
    with tempfile.TemporaryDirectory() as directory, LogWriter(directory) as log:
        whole = []
        for index, each in enumerate(sizes):
            if index:
                log.rotate()
            for size in each:
                line = str(size) * (size * (20_000 if long else 1))
                log.write(line.encode() + b"\n")
                whole.append(line)
        log.write(rest)
        log.age()
        whole += [rest.decode()] if rest else []
        reader = LogReader(directory)
        entries, _ = read_all(reader, reader.tail(lines, OUT))
        if lines == 0:  # what has no end yet is still to come
            lines = len(rest[:1])
        expected = whole[max(0, len(whole) - lines) :]
        assert joined(entries) == "".join(line + "\n" for line in expected).removesuffix("\n" if rest else "")


def test_tail_does_not_look_back_for_ever(tmp_path):
    with LogWriter(tmp_path) as log:
        for _ in range(9):
            log.write((b"x" * 1023 + b"\n") * 2048)
            log.rotate()
        reader = LogReader(str(tmp_path))
        cursor = reader.tail(10**6, OUT)
        entries, _ = read_all(reader, cursor)
        assert logs.TAIL_BYTES_MAX - 65536 <= 1024 * len(entries) <= logs.TAIL_BYTES_MAX + 65536
        assert {len(text) for text in texts(entries)} == {1023}


# ---- writer against reader

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 400), st.integers(1, 300)),
        st.tuples(st.just("rotate"), st.just(0), st.just(0)),
        st.tuples(st.just("read"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(steps=STEPS, seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_each_line_once_and_in_order(steps, seed):
    """A writer that appends pieces of lines and rotates at their ends, a reader in between."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory, LogWriter(directory) as log:
        reader = LogReader(directory)
        written, got, cursor, waiting = bytearray(), [], None, b""
        for what, lines, size in steps:
            if what == "write":
                for _ in range(lines):
                    line = waiting or bytes(dice.choices(b"abc \xc3\xa9", k=dice.randrange(size))) + b"\n"
                    cut = dice.randrange(1, len(line) + 1) if dice.random() < 0.1 else len(line)
                    log.write(line[:cut])
                    written += line[:cut]
                    waiting = line[cut:]
            elif what == "rotate" and not waiting:
                log.rotate()
            elif what == "read":
                page = reader.read(cursor, OUT)
                got += page.entries
                cursor = page.cursor
        if waiting:
            log.write(waiting)
            written += waiting
        entries, _ = read_all(reader, cursor)
        got += entries
        assert joined(got) == bytes(written).decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("keep", [1000, 1])
def test_rotation_while_a_file_is_being_opened(tmp_path, monkeypatch, when, keep):
    """Between the list of files and the opening of one, and between that and what is looked at after it."""
    opening = logs._Files._open
    with LogWriter(tmp_path) as log:
        log.write(b"0\n")
        number = 1
        turns = 0

        def rotating(self, name):
            nonlocal number, turns
            turns += 1
            if turns % 3 == 0:
                return opening(self, name)

            def rotate():
                nonlocal number
                log.rotate(keep)
                log.write(b"%d\n" % number)
                number += 1

            if when == "before":
                rotate()
                return opening(self, name)
            fd = opening(self, name)
            rotate()
            return fd

        monkeypatch.setattr(logs._Files, "_open", rotating)
        reader = LogReader(str(tmp_path))
        got, missing, cursor = [], 0, None
        for _ in range(30):
            page = reader.read(cursor, OUT)
            got += [int(text) for text in texts(page.entries)]
            missing += page.missing_files
            cursor = page.cursor
        monkeypatch.setattr(logs._Files, "_open", opening)
        entries, _ = read_all(reader, cursor)
        got += [int(text) for text in texts(entries)]
    assert got == sorted(set(got))
    assert got[-1] == number - 1
    if keep == 1000:
        assert got == list(range(number))
        assert missing == 0


def test_follower_beside_a_writer_in_another_thread(tmp_path):
    """The races of listing, opening and rotation, for real: 20,000 lines, a rotation every few."""
    count = 20_000
    dice = random.Random(3)

    def write():
        with LogWriter(tmp_path) as log:
            at = 0
            while at < count:
                step = dice.randrange(1, 40)
                block = b"".join(b"line %d\n" % number for number in range(at, min(count, at + step)))
                cut = dice.randrange(len(block))
                log.write(block[:cut])
                log.write(block[cut:])
                at += step
                if dice.random() < 0.3:
                    log.rotate()

    async def follow():
        watcher = Watcher()
        reader = LogReader(str(tmp_path))
        entries = []
        writing = asyncio.get_running_loop().run_in_executor(None, write)
        async with aclosing(reader.follow(None, watcher, OUT)) as pages:
            async for page in pages:
                assert page.missing_files == 0
                entries += page.entries
                if entries[-1].text == f"line {count - 1}":
                    break
        await writing
        watcher.close()
        await asyncio.get_running_loop().shutdown_default_executor()
        return entries

    entries = in_loop(follow())
    assert joined(entries) == "".join(f"line {number}\n" for number in range(count))


def test_follower_that_is_too_late_says_what_is_missing(tmp_path):
    """Files expire under it: it goes on with the oldest that is left, in order, and counts."""

    async def follow():
        watcher = Watcher()
        reader = LogReader(str(tmp_path))
        got, missing = [], 0
        with LogWriter(tmp_path) as log:
            async with aclosing(reader.follow(None, watcher, OUT)) as pages:
                log.write(b"0\n")
                number = 1
                async for page in pages:
                    got += [int(text) for text in texts(page.entries)]
                    missing += page.missing_files
                    if got[-1] >= 200:
                        break
                    for _ in range(5):  # faster than it reads
                        log.rotate(keep=2)
                        log.write(b"%d\n" % number)
                        number += 1
        watcher.close()
        return got, missing

    got, missing = in_loop(follow())
    assert got == sorted(set(got))
    assert missing > 0
    assert len(got) + missing >= got[-1]


# ---- following


def test_follower_waits_without_reading(tmp_path):
    """Nothing is looked at while nothing happens; a line that is written wakes it."""

    class Counting(LogReader):
        pages = 0

        def _page(self, *args):
            self.pages += 1
            return super()._page(*args)

    async def follow():
        watcher = Watcher()
        reader = Counting(str(tmp_path))
        with LogWriter(tmp_path) as log:
            async with aclosing(reader.follow(None, watcher)) as pages:
                coming = asyncio.ensure_future(anext(pages))
                for _ in range(1000):
                    await asyncio.sleep(0)
                looked = reader.pages
                log.write(b"hello\n")
                page = await coming
                assert texts(page.entries) == ["hello"]
                # The quiet time of a line without an end is waited for, then it is given.
                log.write(b"and?")
                page = await anext(pages)
                assert [(e.text, e.partial) for e in page.entries] == [("and?", True)]
                # After that it sleeps again: it does not look again.
                looked_then = reader.pages
                coming = asyncio.ensure_future(anext(pages))
                await asyncio.wait({coming}, timeout=0.2)
                looked_then = reader.pages - looked_then
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        watcher.close()
        return looked, looked_then

    assert in_loop(follow()) == (1, 0)


def test_follower_survives_the_removal_of_the_directory(tmp_path):
    directory = tmp_path / "logs" / "web"

    async def follow():
        watcher = Watcher()
        reader = LogReader(str(directory))
        seen = []
        async with aclosing(reader.follow(None, watcher, OUT)) as pages:
            for turn in range(5):
                coming = asyncio.ensure_future(anext(pages))  # it makes the directory, and may wait before that
                while not directory.exists():
                    await asyncio.sleep(0)
                with LogWriter(directory) as log:
                    log.write(b"turn %d\n" % turn)
                    seen += texts((await coming).entries)
                shutil.rmtree(directory)
        watcher.close()
        return seen

    assert in_loop(follow()) == [f"turn {turn}" for turn in range(5)]


def test_many_followers_share_one_descriptor(tmp_path):
    async def follow():
        watcher = Watcher()
        before = len(os.listdir("/proc/self/fd"))
        writers = [LogWriter(tmp_path / str(number)) for number in range(200)]
        readers = [LogReader(writer.directory) for writer in writers for _ in range(2)]
        following = [reader.follow(None, watcher, OUT) for reader in readers]
        coming = [asyncio.ensure_future(anext(pages)) for pages in following]
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before + len(writers) + 1
        for number, writer in enumerate(writers):
            writer.write(b"for %d\n" % number)
        pages = await asyncio.gather(*coming)
        assert [page.entries[0].text for page in pages] == [f"for {number // 2}" for number in range(400)]
        for each in following:
            await each.aclose()
        for writer in writers:
            writer.close()
        info = pathlib.Path(f"/proc/self/fdinfo/{watcher._fd}").read_text()
        assert "inotify wd" not in info  # every watch was given back
        watcher.close()

    in_loop(follow())


def test_more_changes_than_the_kernel_keeps(tmp_path):
    """The queue runs over: everybody looks, for anything may have changed."""
    room = int(pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if room > 50_000:
        pytest.skip("the queue is too long to fill it quickly")

    async def overrun():
        watcher = Watcher()
        busy, quiet = tmp_path / "busy", tmp_path / "quiet"
        busy.mkdir()
        quiet.mkdir()
        with watcher.watching(str(busy)) as first, watcher.watching(str(quiet)) as second:
            files = [os.open(busy / name, os.O_WRONLY | os.O_CREAT) for name in "ab"]
            for number in range(room):  # by turns, for equal ones become one; the loop does not run meanwhile
                os.pwrite(files[number % 2], b"x", 0)
            for fd in files:
                os.close(fd)
            (quiet / "file").write_text("lost")
            await first.wait()
            await second.wait()
        watcher.close()

    in_loop(overrun())


def test_watching_what_is_no_directory(tmp_path):
    async def watch():
        watcher = Watcher()
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError), watcher.watching(str(tmp_path / "file")):
            pass
        with pytest.raises(FileNotFoundError), watcher.watching(str(tmp_path / "none")):
            pass
        watcher.close()
        watcher.close()

    in_loop(watch())
