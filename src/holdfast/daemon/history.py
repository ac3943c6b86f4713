"""History: a row for every incarnation of every service, in an SQLite file that nothing else depends on.

In: what became known of an incarnation, from the loop's thread, which never waits for the disk.  Out: the file.  A
thread writes.  What waits for it is merged by incarnation, so a database that is locked, or a disk that is full, costs
a little memory for each incarnation, is said once, and is tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from .history_file import Database, Key, Row, is_damaged, merge, move_aside

# Seconds from the first thing that waits to its transaction: an end and the restart that follows go into one, and that
# begins when the restart is over.  Who is killed loses what waits, so they are few.
BATCH_DELAY = 0.02
RETRY_PAUSE = 1.0  # seconds until a database that cannot be written is tried again
WAITING_MAX = 10_000  # incarnations that wait to be written; what is not of them then is counted as lost
CLOSE_LIMIT = 1.0  # seconds for what waits at the end


class History:
    """The writer of one file.  `note` and `settle` are for the loop's thread; `flush` for any other.

    `tell` gets, in the writer's thread, a few words whenever it cannot write, and when it can again; `made_anew` is
    called there when the file was made.  Without a first `note` there is neither thread nor file.
    """

    def __init__(self, path: str, tell: Callable[[str], None], made_anew: Callable[[], None]) -> None:
        self.path = path
        self._tell = tell
        self._made_anew = made_anew
        self._changed = threading.Condition()
        self._waiting: dict[Key, Row] = {}
        self._settle: tuple[set[Key], Mapping[Key, Row]] | None = None
        self._given = self._written = 0  # calls of note and settle; of them, those in the file
        self._lost = 0
        self._doubted = False
        self._idle = False  # the writer waits for work
        self._closing = False
        self._trouble = ""
        self._database: Database | None = None
        self._writer = threading.Thread(target=self._write_all, name="history", daemon=True)

    def note(self, key: Key, *, new: bool = False, **columns: Any) -> None:
        """What became known of an incarnation; `new`: it begins now, whatever there is of that number."""
        with self._changed:
            row = self._waiting.get(key)
            if row is None or new:
                if row is None and len(self._waiting) >= WAITING_MAX:
                    self._lost += 1
                    return
                row = self._waiting[key] = {"new": True} if new else {}
            merge(row, columns)
            self._has_work()

    def settle(self, live: set[Key], ended: Mapping[Key, Row]) -> None:
        """Start-up knows what lives: close every other row that is open, with what is known of its end."""
        with self._changed:
            self._settle = live, ended
            self._has_work()

    def doubt(self) -> None:
        """Somebody could not read it: look at all of it, and begin anew if it is damaged."""
        with self._changed:
            self._doubted = True
            self._has_work()

    def _has_work(self) -> None:
        self._given += 1
        if not self._writer.ident:
            try:
                self._writer.start()
            except RuntimeError:
                return  # no more threads for now: services go first, and the next call tries again
        if self._idle:  # not otherwise: to be woken for each call would cost more than all the writing
            self._changed.notify_all()

    def flush(self, limit: float) -> bool:
        """Return when all that was noted is in the file, or after `limit` seconds (False)."""
        with self._changed:
            given = self._given
            return self._changed.wait_for(lambda: self._written >= given, limit)

    def close(self) -> None:
        """Write what waits, within CLOSE_LIMIT."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._writer.ident:
            self._writer.join(CLOSE_LIMIT)

    # ---- the writer's thread

    def _write_all(self) -> None:
        pause = BATCH_DELAY
        while True:
            with self._changed:
                self._idle = True
                self._changed.wait_for(lambda: self._closing or self._given > self._written)
                self._idle = False
                self._changed.wait_for(lambda: self._closing, pause)
                rows, self._waiting = self._waiting, {}
                settle, self._settle = self._settle, None
                given = self._given
            if given > self._written:
                written = self._try_to_write(rows, settle, given)
                pause = BATCH_DELAY if written else RETRY_PAUSE
            with self._changed:
                if self._closing and (self._given == self._written or pause == RETRY_PAUSE):
                    break
        self._drop()

    def _try_to_write(self, rows: dict[Key, Row], settle: Any, given: int) -> bool:
        try:
            try:
                self._current().write(rows, settle)
            except Exception as error:
                if not is_damaged(error):
                    raise
                self._begin_anew(error)
                self._current().write(rows, settle)
        except Exception as error:  # of SQLite, of the disk: the services go on, and so does everything else
            self._say(f"cannot be written: {self.path}: {error}; it is tried again")
            with self._changed:
                for key, newer in self._waiting.items():
                    rows[key] = newer if newer.get("new") else merge(rows.get(key, {}), newer)
                self._waiting = rows
                self._settle = self._settle or settle
            return False
        with self._changed:
            self._written = given
            lost, self._lost = self._lost, 0
            self._changed.notify_all()
        if self._trouble:
            self._say("")
            self._tell("is written again" + (f"; lost meanwhile: {lost} things" if lost else ""))
        return True

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self._tell(trouble)
        self._trouble = trouble

    def _current(self) -> Database:
        """The open database, while its file is the one at the path; opened or made anew otherwise."""
        if self._database is not None and (self._doubted or not self._database.in_place()):
            self._drop()
        if self._database is None:
            self._database = Database(self.path)
            if self._database.made:
                self._made_anew()
        if self._doubted:
            self._database.check()
            self._doubted = False
        return self._database

    def _drop(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _begin_anew(self, error: Exception) -> None:
        self._drop()
        move_aside(self.path)
        self._doubted = False
        self._tell(f"was damaged ({error}) and is begun anew; what there was: {self.path}.corrupt-*")
