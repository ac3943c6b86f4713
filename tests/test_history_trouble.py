"""A history whose file is deleted, locked, damaged, cannot be written: it says so, and nothing else notices."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from helpers_supervisor import LIMIT, Running, kill
from helpers_wait import wait_for
from test_history import SLEEP, eventually_row, history, own, row_of

from holdfast.client import ClientError
from holdfast.daemon import history as writer
from holdfast.daemon import history_file
from holdfast.daemon.history import History
from holdfast.daemon.history_file import Unreadable, read


def file_of(up) -> pathlib.Path:
    return pathlib.Path(history_file.path_of(str(up.directory / "state"), str(up.run_dir)))


@contextlib.contextmanager
def locked(path):
    """Nobody else can write."""
    path.parent.mkdir(0o700, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("ROLLBACK")
    finally:
        db.close()


def said(up, words):
    """An event of the history with these words; they may be on their way."""

    def there():
        last = up.client().supervisor()["last_event"]
        with up.client().events(after=0) as events:
            for event in events:
                if event["event"] == "history" and words in event["text"]:
                    return True
                if event["seq"] >= last:
                    return False
        return False

    wait_for(there, LIMIT, up.output.read_text)


def spoil(path):
    """The file, and the log of writes, which would mend it."""
    with open(path, "r+b") as file:
        file.write(b"x" * 8192)
    os.truncate(f"{path}-wal", 0)


# ---- a real supervisor


def test_deleted_while_it_runs_it_is_made_anew_with_what_lives(tmp_path):
    with Running(tmp_path, SLEEP + '[service.db]\ncommand = ["sleep", "1000"]\n') as up:
        web = up.until("web", state="running")
        up.until("db", state="running")
        history(up)  # everything is written
        for path in file_of(up).parent.iterdir():
            path.unlink()
        up.client().restart("db")
        wait_for(lambda: [row["why"] for row in history(up, "web")] == ["with the supervisor"], LIMIT)
        row = row_of(up, "web@1")
        assert (row["pid"], row["cause"]) == (web["pid"], None)
        assert row["started_at"]
        assert row_of(up, "db@1")["cause"] == "killed by SIGTERM"
        assert row_of(up, "db@2")["cause"] is None
        assert own(up)[0]["pid"] == up.client().supervisor()["pid"]
        kill(up.client().supervisor()["pid"])
        up.wait_for_socket()
        for path in file_of(up).parent.iterdir():  # and between two supervisors
            path.unlink(missing_ok=True)
        up.client().restart("db")
        wait_for(lambda: [row["why"] for row in history(up, "web")] == ["with the supervisor"], LIMIT)


def test_locked_at_start_nothing_waits_and_nothing_is_lost(tmp_path):
    up = Running(tmp_path, SLEEP)
    with contextlib.ExitStack() as lock:
        lock.enter_context(locked(file_of(up)))
        with up:
            up.until("web", state="running")
            said(up, "database is locked; it is tried again")
            up.client().restart("web")
            lock.close()
            said(up, "is written again")
            assert [row["cause"] for row in history(up, "web")] == ["killed by SIGTERM", None]


def test_what_was_not_written_is_completed_from_the_record(tmp_path):
    """The supervisor is killed while its history is locked: of the last incarnation the record knows the end."""
    with Running(tmp_path, SLEEP + SLEEP.replace("web", "db")) as up:
        up.until("web", state="running")
        up.until("db", state="running")
        history(up)
        with locked(file_of(up)):
            up.client().stop("web")
            up.client().restart("db")
            kill(up.client().supervisor()["pid"])
            up.wait_for_socket()
        row = eventually_row(up, "web@1", lambda row: row["cause"])
        assert (row["cause"], row["signal"], row["ended_at"]) == ("killed by SIGTERM", "SIGTERM", None)
        row = eventually_row(up, "db@1", lambda row: row["cause"])
        assert row["cause"] == "killed by SIGTERM"  # of which the record of its successor tells
        row = eventually_row(up, "db@2", lambda row: row["why"])
        assert (row["cause"], row["adopted"]) == (None, 1)
        assert row["why"].startswith("asked to restart (pid ")


@pytest.mark.parametrize("what", ["garbage", "a cut off file", "other tables", "a later version"])
def test_damaged_it_is_moved_aside_and_begun_anew(tmp_path, what):
    with Running(tmp_path, SLEEP) as up:
        up.until("web", state="running")
        path = file_of(up)
        up.stop()
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA journal_mode = DELETE")
            if what == "other tables":
                db.execute("ALTER TABLE incarnations DROP COLUMN why")
            elif what == "a later version":
                db.execute("PRAGMA user_version = 99")
        db.close()
        if what == "garbage":
            path.write_bytes(b"no database at all\n" * 1000)
        elif what == "a cut off file":
            os.truncate(path, 5000)
        damaged = path.read_bytes()
        up.up()
        up.wait_for_socket()
        web = up.until("web", state="running")
        said(up, "was damaged (")
        wait_for(lambda: [row["pid"] for row in history(up, "web")][-1:] == [web["pid"]], LIMIT)
        (aside,) = path.parent.glob("history-*.db.corrupt-*Z")
        if what != "other tables":  # which is noticed when it is written
            assert aside.read_bytes() == damaged


def test_damaged_while_it_runs(tmp_path):
    with Running(tmp_path, SLEEP) as up:
        web = up.until("web", state="running")
        history(up)
        spoil(file_of(up))
        # Who reads notices it; what lives is written into the new one.
        wait_for(lambda: [row["pid"] for row in history(up, "web")] == [web["pid"]], LIMIT, up.output.read_text)
        said(up, "was damaged (")
        up.client().restart("web")
        assert [row["cause"] for row in history(up, "web")] == ["killed by SIGTERM", None]


@pytest.mark.parametrize("place", ["no directory", "writable by others", "not ours"])
def test_where_it_cannot_be_the_services_run_all_the_same(tmp_path, place):
    state = tmp_path / "state"
    if place == "no directory":
        state.write_text("")
    elif place == "writable by others":
        state.mkdir()
        state.chmod(0o777)
    elif os.geteuid() == 0:
        state.mkdir()
        os.chown(state, 65534, 65534)
    else:
        pytest.skip("only root can make a directory that is somebody else's")
    with Running(tmp_path, SLEEP) as up:
        up.until("web", state="running")
        said(up, "cannot be written")
        up.client().restart("web")
        if place == "no directory":
            assert history(up) == []
            state.unlink()  # and when it can be, it is
            said(up, "is written again")
            assert [row["cause"] for row in history(up, "web")] == ["killed by SIGTERM", None]


def test_locked_for_readers_too_the_question_is_answered_with_no(tmp_path, monkeypatch):
    with Running(tmp_path, SLEEP) as up:
        up.until("web", state="running")
        history(up)
        up.stop()
        db = sqlite3.connect(file_of(up), isolation_level=None)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        done = up.holdfast("history", check=1)
        assert "cannot be read" in done.stderr
        assert "locked" in done.stderr
        up.up()
        up.wait_for_socket()
        with pytest.raises(ClientError, match="cannot be read") as refused:
            up.client().history()
        assert refused.value.code == "unavailable"
        assert up.client().service("web")["state"] == "running"
        db.close()


def test_rows_of_an_earlier_boot_are_closed(tmp_path):
    with Running(tmp_path, SLEEP) as up:
        up.until("web", state="running")
        history(up)
        up.process.send_signal(19)  # nobody writes
        with sqlite3.connect(file_of(up)) as db:
            db.execute("UPDATE incarnations SET boot = 'another'")
        db.close()
        up.process.send_signal(18)
        kill(up.client().supervisor()["pid"])
        up.wait_for_socket()
        wait_for(lambda: len(history(up, "web")) == 2, LIMIT)
        first, second = history(up, "web")
        assert (first["cause"], first["ended_at"]) == ("the machine went down", None)
        assert (second["incarnation"], second["cause"], second["why"]) == (1, None, "with the supervisor")


# ---- the writer alone


class Told:
    def __init__(self):
        self.words = []
        self.more = threading.Condition()

    def __call__(self, text):
        with self.more:
            self.words.append(text)
            self.more.notify_all()

    def wait(self, count=1):
        with self.more:
            assert self.more.wait_for(lambda: len(self.words) >= count, LIMIT)
        return self.words


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def made(tmp_path, told):
    path = tmp_path / "state" / "history.db"
    history = History(str(path), told, lambda: None)
    yield history
    history.close()


def rows(history, *names):
    history.flush(LIMIT)
    return read(history.path, names, 10**9)


def test_what_is_known_first_stays_and_adoptions_add_up(made):
    made.note(("web", 1), new=True, why="first", started_at=1.0)
    made.note(("web", 1), asked="one", adopted=1)
    (row,) = rows(made)
    assert (row.why, row.asked, row.adopted) == ("first", "one", 1)
    made.note(("web", 1), why="second", asked="two", adopted=1, started_at=2.0)
    made.note(("web", 1), why="third")
    (row,) = rows(made)
    assert (row.why, row.asked, row.adopted, row.started_at) == ("first", "one", 2, 2.0)


def test_a_number_that_begins_anew_is_another_row(made):
    """A service was forgotten and is configured again."""
    made.note(("web", 1), new=True, why="before")
    made.note(("web", 1), cause="ended")
    rows(made)
    made.note(("web", 1), new=True, why="again")
    assert [(row.why, row.cause) for row in rows(made)] == [("before", "ended"), ("again", None)]
    made.note(("web", 1), cause="ended, too")
    assert [row.cause for row in rows(made)] == ["ended", "ended, too"]


def test_old_rows_go_those_that_live_and_the_newest_stay(made, monkeypatch):
    monkeypatch.setattr(history_file, "SERVICE_ROWS_MAX", 100)
    monkeypatch.setattr(history_file, "ROWS_MAX", 700)
    made.note(("lives", 1), new=True)
    for number in range(1, history_file.PRUNE_EACH):
        made.note((f"s{number % 8}", number), new=True, cause="ended")
    kept = rows(made)
    assert kept[0].service == "lives"
    assert len(kept) == 701  # 700 and the one that lives
    assert kept[-1].incarnation == history_file.PRUNE_EACH - 1


def test_of_one_service_so_many(made, monkeypatch):
    monkeypatch.setattr(history_file, "SERVICE_ROWS_MAX", 100)
    for number in range(1, history_file.PRUNE_EACH + 1):
        made.note(("loop", number), new=True, cause="ended")
    each = history_file.PRUNE_EACH
    assert [row.incarnation for row in rows(made)] == list(range(each - 99, each + 1))


def test_locked_it_is_merged_in_memory_and_what_is_too_much_is_counted(made, told, monkeypatch):
    monkeypatch.setattr(writer, "WAITING_MAX", 50)
    made.note(("first", 1), new=True)
    rows(made)
    with locked(pathlib.Path(made.path)):
        made.note(("first", 1), cause="ended")
        assert "database is locked" in told.wait()[0]
        for number in range(1, 100):
            for _ in range(3):  # the same one costs nothing more
                made.note(("web", number), code=number)
    assert told.wait(2)[1].startswith("is written again; lost meanwhile: ")
    assert len(told.words) == 2
    kept = rows(made, "web")
    assert 49 <= len(kept) <= 50  # the first one waits, too, unless the writer is just trying it
    assert [row.code for row in kept] == list(range(1, len(kept) + 1))
    assert int(told.words[1].rpartition(": ")[2].split()[0]) == 3 * (99 - len(kept))
    assert rows(made, "first")[0].cause == "ended"


def test_who_notes_never_waits_and_the_end_is_bounded(made, told):
    made.note(("web", 1), new=True)
    rows(made)
    with locked(pathlib.Path(made.path)):
        began = time.monotonic()
        for number in range(2000):
            made.note(("web", number), code=number)
        made.close()
        assert time.monotonic() - began < 15  # a hang guard: the lock is held for ever


def test_damaged_files_that_are_kept_are_few(made, told, monkeypatch):
    names = iter(f"2026112{day}T000000Z" for day in range(1, 9))
    monkeypatch.setattr(history_file.time, "strftime", lambda *_: next(names))
    for _ in range(5):
        made.note(("web", 1), new=True)
        rows(made)
        spoil(made.path)
        made.doubt()
        made.note(("web", 2), new=True)
        rows(made)
    asides = sorted(path.name for path in pathlib.Path(made.path).parent.glob("*.corrupt-*Z"))
    assert len(asides) == history_file.ASIDE_MAX
    assert len([text for text in told.words if "was damaged" in text]) == 5
    assert asides[-1].endswith("20261125T000000Z")


def test_another_program_reads_while_it_is_written(made):
    for number in range(50):
        made.note(("web", number), new=True, cause="ended")
    rows(made)
    with contextlib.closing(sqlite3.connect(f"file:{made.path}?mode=ro", uri=True)) as db:
        cursor = db.execute("SELECT id FROM incarnations")
        cursor.fetchone()
        made.note(("web", 50), new=True)
        assert len(rows(made)) == 51


def test_no_database_is_an_error_for_who_reads(tmp_path):
    path = tmp_path / "history.db"
    path.write_text("something else\n" * 100)
    with pytest.raises(Unreadable, match="not a database"):
        read(str(path), [], 10)
    assert path.read_text() == "something else\n" * 100


NO_THREADS = """
import os, resource, sqlite3, tempfile
from holdfast.daemon.history import History
from holdfast.daemon.history_file import read
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)  # root may have as many as it likes
with tempfile.TemporaryDirectory() as directory:
    path = directory + "/history.db"
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    history = History(path, print, lambda: None)
    history.note(("web", 1), new=True, why="one")
    assert not os.path.exists(path)
    resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    history.note(("web", 2), new=True, why="two")
    assert history.flush(30)
    print(*(row.why for row in read(path, [], 10)))
    history.close()
"""


def test_without_a_thread_it_waits_until_there_can_be_one():
    done = subprocess.run([sys.executable, "-c", NO_THREADS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "one two\n"), done.stderr


FULL = """
import resource, sys, threading
from holdfast.daemon.history import History
from holdfast.daemon.history_file import read
said = []
more = threading.Condition()
def tell(text):
    with more:
        said.append(text)
        more.notify_all()
def wait(count):
    with more:
        assert more.wait_for(lambda: len(said) >= count, 30), said
history = History(sys.argv[1], tell, lambda: None)
history.note(("web", 0), new=True)
history.flush(30)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # EFBIG, as a full disk's ENOSPC
for number in range(1, 2000):
    history.note(("web", number), new=True, why="x" * 100)
wait(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
wait(2)
history.flush(30)
print(len(read(sys.argv[1], [], 10**6)), *said, sep="\\n")
history.close()
"""


def test_a_full_disk_is_waited_out(tmp_path):
    path = tmp_path / "state" / "history.db"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    count, first, second = done.stdout.splitlines()
    assert int(count) == 2000
    assert "cannot be written" in first
    assert second == "is written again"
