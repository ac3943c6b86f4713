"""Who holds a run directory, and whether they are stopped: looked at from outside, by those who get no answer.

In: the run directory.  Out: numbers and words for people.  The lock says a number; it is believed only as far as a
living anchor of this very directory has it, while a pidfd is held.  Nothing is signalled by it.
"""

from __future__ import annotations

import json
import os
import select
from typing import NamedTuple

STOPPED = ("T", "t")  # by a signal; by a debugger


class Holder(NamedTuple):
    """An anchor and its supervisor (0: none lives)."""

    anchor: int
    anchor_stopped: bool
    supervisor: int
    supervisor_stopped: bool

    @property
    def silent(self) -> bool:
        """Nobody will answer until somebody is let go on."""
        return self.supervisor_stopped or (self.anchor_stopped and not self.supervisor)

    @property
    def words(self) -> str:
        """Who is stopped; "" when nobody is."""
        anchor, supervisor = f"the anchor (pid {self.anchor})", f"the supervisor (pid {self.supervisor})"
        if self.anchor_stopped and not self.supervisor:
            return f"{anchor} is stopped, and no supervisor runs below it"
        if self.anchor_stopped and self.supervisor_stopped:
            return f"{supervisor} and {anchor} are stopped"
        return f"{supervisor} is stopped" if self.supervisor_stopped else f"{anchor} is stopped" * self.anchor_stopped

    @property
    def remedy(self) -> str:
        """The command that mends it; "" when there is nothing to mend."""
        stopped = [(self.supervisor, self.supervisor_stopped), (self.anchor, self.anchor_stopped)]
        pids = " ".join(str(pid) for pid, is_stopped in stopped if is_stopped)
        return f"let it go on: kill -CONT {pids}" if pids else ""


def holder(run_dir: str) -> Holder | None:
    """None: nobody holds it, or it cannot be seen who."""
    try:
        with open(os.path.join(run_dir, "lock"), "rb") as file:
            anchor = int(json.loads(file.read(65536))["anchor"])
        pidfd = os.pidfd_open(anchor)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    try:
        words = _command(anchor)
        if words[:2] != [b"holdfast-keeper", b"anchor"] or b"--run-dir" not in words:
            return None
        if not os.path.samefile(words[words.index(b"--run-dir") + 1], run_dir):
            return None
        supervisor, state = _supervisor_of(anchor)
        found = Holder(anchor, _stat(anchor)[0] in STOPPED, supervisor, state in STOPPED)
        # It has not ended until now: so the number was its own all the time.
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        return None if ended.poll(0) else found
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(pidfd)


def _supervisor_of(anchor: int) -> tuple[int, str]:
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            state, parent = _stat(int(entry))
            if parent == anchor and b"holdfast.cli.supervise" in _command(int(entry)):
                return int(entry), state
        except OSError:
            continue  # gone meanwhile
    return 0, ""


def _stat(pid: int) -> tuple[str, int]:
    """State and parent."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        state, parent = file.read().rpartition(")")[2].split()[:2]
    return state, int(parent)


def _command(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")
