"""The file of a history: its tables, how it is opened, made anew, written in one go, pruned, and read.

Nothing in here may be used in the loop's thread, for all of it waits for the disk.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .show import signal_name
from .status import HistoryRecord, StopSummary
from .store import BOOT_ID

if TYPE_CHECKING:
    import sqlite3  # imported when it is needed: start-up does not wait for it

Key = tuple[str, int]  # service ("": the supervisor itself) and incarnation
Row = dict[str, Any]  # column -> value

BUSY_LIMIT = 0.5  # seconds for another's lock, in who writes
READ_LIMIT = 2.0  # the same in who reads
SERVICE_ROWS_MAX = 1000  # kept of one service
ROWS_MAX = 100_000  # kept of all
PRUNE_EACH = 1000  # rows that are written between two looks at that
ASIDE_MAX = 3  # damaged files that are kept
CACHE_KIB = 256  # of pages in memory; the library's own choice is 2 MiB

VERSION = 1
SCHEMA = """
CREATE TABLE incarnations (
    id INTEGER PRIMARY KEY, boot TEXT NOT NULL, service TEXT NOT NULL, incarnation INTEGER NOT NULL,
    pid INTEGER, why TEXT, started_at REAL, ready_at REAL, ended_at REAL, empty_at REAL, asked TEXT,
    cause TEXT, code INTEGER, signal INTEGER, core INTEGER, adopted INTEGER NOT NULL DEFAULT 0,
    log_lost INTEGER, log_dropped INTEGER, usage TEXT, tree_usage TEXT, stop TEXT, resources TEXT
);
CREATE INDEX incarnations_of ON incarnations (service, incarnation);
"""
LATER_COLUMNS = {"resources"}
# What is known first stays.  All others are what was heard last, and adoptions are counted.
FIRST = {"why", "asked", "ready_at", "ended_at", "empty_at"}
NEWEST = "SELECT max(id) FROM incarnations WHERE service = ? AND incarnation = ? AND boot = ?"

UNKNOWN = "unknown: it ended while nobody could write it down"
REBOOT = "the machine went down"
KILLED = "killed, or crashed"  # a supervisor, which would have said it otherwise


def path_of(state_dir: str, run_dir: str) -> str:
    """Where the history of a run directory lies: supervisors may share a state directory."""
    name = f"history-{zlib.crc32(os.fsencode(os.path.realpath(run_dir))):08x}.db"
    return os.path.join(state_dir, name)


class Unreadable(OSError):
    """The database is locked for too long, or damaged; or it cannot be used as what it is."""


def merge(row: Row, newer: Row) -> Row:
    """Into `row` what was heard later."""
    for column, value in newer.items():
        if column not in FIRST or row.get(column) is None:
            row[column] = value
    return row


class Database:
    """One open file.  For the writer's thread.  OSError, sqlite3.Error."""

    def __init__(self, path: str) -> None:
        import sqlite3

        self._path = path
        self._boot = _boot()
        self.made = make(path)
        self._file = os.stat(path)
        self._db = sqlite3.connect(path, timeout=BUSY_LIMIT, isolation_level=None)
        try:
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):  # looked at before anything is changed
                raise Unreadable(f"it is of version {version}, and this is {VERSION}")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            if not version:
                self._db.execute("BEGIN IMMEDIATE")
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
                self._db.execute("COMMIT")
            self._add_columns()
        except BaseException:
            self._db.close()
            raise

    def _add_columns(self) -> None:
        """Those that a file has not that was made before there were any; who does not know them passes them over."""
        have = {row[1] for row in self._db.execute("PRAGMA table_info(incarnations)")}
        for column in LATER_COLUMNS - have:
            self._db.execute(f"ALTER TABLE incarnations ADD COLUMN {column} TEXT")

    def in_place(self) -> bool:
        try:
            return os.path.samestat(self._file, os.stat(self._path))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Unreadable: it is damaged.  Reads all of it."""
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise Unreadable(found)

    def close(self) -> None:
        try:
            self._db.close()
        except Exception:
            pass  # its file is damaged, or the disk is full: what could be written is

    def write(self, rows: Mapping[Key, Row], settle: tuple[set[Key], Mapping[Key, Row]] | None) -> None:
        """All of it, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if settle is not None:  # first: some of the rows have begun since
                self._close_open_rows(*settle)
            inserted = [self._write_row(key, dict(row)) for key, row in rows.items()]
            if any(number % PRUNE_EACH == 0 for number in inserted if number):
                self._prune()
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _write_row(self, key: Key, row: Row) -> int | None:
        """The number of the row, if it is a new one."""
        if row.pop("new", False):
            if not key[0]:
                self._close_own_rows()
        else:
            sets = ", ".join(map(_set, row))
            found = self._db.execute(
                f"UPDATE incarnations SET {sets} WHERE id = ({NEWEST})", (*row.values(), *key, self._boot)
            )
            if found.rowcount:
                return None
        row.update(service=key[0], incarnation=key[1], boot=self._boot)
        marks = ", ".join("?" * len(row))
        done = self._db.execute(f"INSERT INTO incarnations ({', '.join(row)}) VALUES ({marks})", (*row.values(),))
        return done.lastrowid

    def _close_own_rows(self) -> None:
        """Another supervisor begins: those before it have ended, and had no time to say how."""
        self._db.execute(
            "UPDATE incarnations SET cause = CASE boot WHEN ? THEN ? ELSE ? END WHERE service = '' AND cause IS NULL",
            (self._boot, KILLED, REBOOT),
        )

    def _close_open_rows(self, live: set[Key], ended: Mapping[Key, Row]) -> None:
        open_rows = self._db.execute(
            "SELECT id, boot, service, incarnation FROM incarnations WHERE cause IS NULL AND service != '' ORDER BY id"
        ).fetchall()
        newest = {(service, incarnation): number for number, _, service, incarnation in open_rows}
        for number, boot, *key in open_rows:
            service, incarnation = key
            here = boot == self._boot
            if here and (service, incarnation) in live and newest[service, incarnation] == number:
                continue
            row = {"cause": REBOOT}
            if here:
                row = {"cause": UNKNOWN} | ended.get((service, incarnation), {})
            sets = ", ".join(map(_set, row))
            self._db.execute(f"UPDATE incarnations SET {sets} WHERE id = ?", (*row.values(), number))

    def _prune(self) -> None:
        """What has ended goes, oldest first."""
        numbered = "SELECT id, row_number() OVER (PARTITION BY service ORDER BY id DESC) AS n FROM incarnations"
        self._db.execute(
            f"DELETE FROM incarnations WHERE cause IS NOT NULL AND (id <= "
            f"(SELECT id FROM incarnations ORDER BY id DESC LIMIT 1 OFFSET {ROWS_MAX}) "
            f"OR id IN (SELECT id FROM ({numbered}) WHERE n > {SERVICE_ROWS_MAX}))"
        )


def _set(column: str) -> str:
    if column == "adopted":
        return "adopted = adopted + ?"
    return f"{column} = coalesce({column}, ?)" if column in FIRST else f"{column} = ?"


def _boot() -> str:
    with open(BOOT_ID, encoding="utf-8") as file:
        return file.read().strip()


def make(path: str) -> bool:
    """Make the file, readable for us alone; False: it is there.  In a directory where others could put another in its
    place it is refused."""
    directory = os.path.dirname(path)
    os.makedirs(directory, 0o700, exist_ok=True)
    found = os.stat(directory)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{directory} belongs to somebody else, or others can write it")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def is_damaged(error: Exception) -> bool:
    """No database, a damaged one, or with other tables than ours: it will not become better by waiting."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, Unreadable) or code in (1, 11, 26)  # SQLITE_ERROR, SQLITE_CORRUPT, SQLITE_NOTADB


def move_aside(path: str) -> None:
    aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    os.rename(path, aside)
    for end in ("-wal", "-shm"):
        if os.path.exists(path + end):
            os.rename(path + end, aside + end)
    for old in sorted(glob.glob(glob.escape(path) + ".corrupt-*Z"))[:-ASIDE_MAX]:
        for end in ("", "-wal", "-shm"):
            if os.path.exists(old + end):
                os.unlink(old + end)


# ---- reading


def read(path: str, patterns: Sequence[str], limit: int) -> list[HistoryRecord]:
    """The newest `limit` rows of the services that match (all, without patterns), oldest first; none where there is no
    file.  Unreadable; ValueError: a pattern that is none.  Any thread; waits for the disk."""
    import sqlite3

    wanted = _wanted(patterns) if patterns else None
    if not os.path.exists(path):
        return []
    try:
        db = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=READ_LIMIT)
        try:
            return _read(db, wanted, limit)
        finally:
            db.close()
    except sqlite3.Error as error:
        raise Unreadable(f"the history cannot be read: {path}: {error}") from None


def _wanted(patterns: Iterable[str]) -> Callable[[str, int], bool]:
    """Whether one of the patterns, `web*` or `web@41`, means an incarnation."""
    asked: list[tuple[str, int | None]] = []
    for text in patterns:
        pattern, at, number = text.partition("@")
        if at and not (number.isascii() and number.isdecimal()):
            raise ValueError(f"{text!r}: after the @ stands the number of an incarnation, as history shows it")
        asked.append((pattern, int(number) if at else None))

    @functools.cache
    def numbers(service: str) -> list[int | None]:
        return [number for pattern, number in asked if fnmatch.fnmatchcase(service, pattern)]

    return lambda service, incarnation: any(each is None or each == incarnation for each in numbers(service))


def _read(db: sqlite3.Connection, wanted: Callable[[str, int], bool] | None, limit: int) -> list[HistoryRecord]:
    if wanted is not None:
        db.create_function("wanted", 2, wanted, deterministic=True)
    where = "" if wanted is None else "WHERE wanted(service, incarnation)"
    db.row_factory = lambda cursor, row: {c[0]: value for c, value in zip(cursor.description, row, strict=True)}
    rows = db.execute(f"SELECT * FROM incarnations {where} ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
    return [_record(row) for row in reversed(rows)]


def _record(row: Row) -> HistoryRecord:
    stop = json.loads(row["stop"]) if row["stop"] else None
    return HistoryRecord(
        service=row["service"],
        incarnation=row["incarnation"],
        boot=row["boot"],
        pid=row["pid"],
        why=row["why"] or "",
        started_at=row["started_at"],
        ready_at=row["ready_at"],
        ended_at=row["ended_at"],
        empty_at=row["empty_at"],
        asked=row["asked"] or "",
        cause=row["cause"],
        code=row["code"],
        signal=None if row["signal"] is None else signal_name(row["signal"]),
        core=bool(row["core"]),
        usage=json.loads(row["usage"]) if row["usage"] else None,
        tree_usage=json.loads(row["tree_usage"]) if row["tree_usage"] else None,
        resources=json.loads(row["resources"]) if row.get("resources") else None,
        stop=StopSummary(**stop) if stop else None,
        adopted=row["adopted"],
        log_lost_bytes=row["log_lost"] or 0,
        log_dropped_bytes=row["log_dropped"] or 0,
    )
