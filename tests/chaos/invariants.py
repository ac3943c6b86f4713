"""What must hold whatever was killed.  Each is one function of the facts, and gives a line for each violation."""

from __future__ import annotations

import re
from collections import Counter

from .facts import Facts, log_lines

STEADY = {"writer", "forker", "notify", "stubborn", "hider"}  # they end only if somebody ends them
MORTAL = {"crasher", "oneshot"}
LEAVERS = {"leaver"}  # on_owner_loss is not "keep": they end with the supervisor
LINE = re.compile(r"^(\S+) (\d+) (\d+) (\.*)$")
MARKER = "--- holdfast: "


def never_two_copies(facts: Facts) -> list[str]:
    """No copy has found anything of an earlier one alive, no incarnation was used twice, one at most is alive."""
    found = [f"{line}: part of an earlier copy was alive" for line in facts.doubles]
    for name, born in facts.births.items():
        # Its record could not be written on a full disk: the number that this one had may be given again.
        numbers = [birth.incarnation for birth in born if (name, birth.incarnation) not in facts.disk_full]
        if numbers != sorted(set(numbers)):
            found.append(f"{name}: incarnations were used twice or out of order: {numbers[-20:]}")
    found += [f"{name}: {len(alive)} copies live: {alive}" for name, alive in facts.alive.items() if len(alive) > 1]
    return found


def ends_have_a_cause(facts: Facts) -> list[str]:
    """Each end of a copy is its own doing, or follows what was done to it, its keeper, or by its `on_owner_loss`."""
    found = []
    for name, born in facts.births.items():
        kind = facts.kinds[name]
        excused = facts.commands[name] + facts.ended
        if kind in LEAVERS:
            excused += facts.owner_lost
        for birth in born:
            how = facts.ends.get((name, birth.incarnation))
            if birth in facts.alive.get(name, ()) or (name, birth.incarnation) in facts.killed:
                continue
            if how and how.startswith("exit") and kind in MORTAL:
                continue
            excused -= 1
            if excused < 0:
                found.append(f"{name}@{birth.incarnation}, pid {birth.pid}: ended ({how or 'killed'}) without a cause")
    return found


def logs_are_whole(facts: Facts) -> list[str]:
    """Each line that was written is in the files once and in order; of a lost keeper's, the last may be missing."""
    found: list[str] = []
    for name, paths in facts.logs.items():
        found += _log_is_whole(facts, name, paths)
    return found


def _log_is_whole(facts: Facts, name: str, paths: list[str]) -> list[str]:
    found = []
    last: dict[int, int] = {}  # incarnation -> its last line
    current, torn = 0, []
    counted_loss = False  # a marker says that something is missing here: only after a full disk
    cut = {number for (service, number), what in facts.killed.items() if service == name and what == "keeper"}
    full = {number for service, number in facts.disk_full if service == name}
    born = Counter(birth.incarnation for birth in facts.births.get(name, ()))
    twice = {number for number in full if born[number] > 1}  # see never_two_copies: whose line is whose nobody can say
    for line in log_lines(paths):
        if line.startswith(MARKER):
            counted_loss |= " bytes lost: " in line
            continue
        match = LINE.match(line)
        if not match or match[1] != name:
            torn.append(line[:60])
            continue
        incarnation, number = int(match[2]), int(match[3])
        if incarnation in twice:
            continue
        if incarnation < current:
            found.append(f"{name}@{incarnation}: line {number} after lines of incarnation {current}")
        before = last.get(incarnation, 0)
        if number != before + 1 and not (counted_loss and incarnation in full and number > before):
            found.append(f"{name}@{incarnation}: line {number} after line {before}")
        current, last[incarnation], counted_loss = incarnation, number, False
    if len(torn) > len(cut) + facts.disks_filled:
        found.append(f"{name}: {len(torn)} torn lines: {torn[:5]}")
    for (service, incarnation), count in facts.counts.items():
        written = last.get(incarnation, 0)
        # One more than counted: it was killed between the two.
        short = incarnation in cut | full and written < count
        if service == name and incarnation not in twice and not short and written not in (count, count + 1):
            found.append(f"{name}@{incarnation}: {count} lines were written, {written} are in the files")
    return found


def exits_are_accounted(facts: Facts) -> list[str]:
    """The history tells every end of a copy, and as what it was."""
    found = []
    for name, born in facts.births.items():
        for birth in born:
            life = name, birth.incarnation
            if facts.killed.get(life) == "keeper" or birth in facts.alive.get(name, ()):
                continue
            if life in facts.disk_full:  # there was no room for its row
                continue
            how = facts.ends.get(life)
            code = how.split()[1] if how and how.startswith("exit") else "0"
            expected = f"exited with code {code}" if how else "killed by SIGKILL"
            if expected not in facts.told.get(life, ""):
                found.append(f"{name}@{birth.incarnation}: {expected}, told as {facts.told.get(life, 'nothing')!r}")
    return found


def lost_keepers_are_told(facts: Facts) -> list[str]:
    """History says why a service was started anew: its keeper was lost, or it had ended before that."""
    found = []
    for (name, number), what in facts.killed.items():
        told = facts.told.get((name, number), "nothing")
        if what == "keeper" and not re.search("keeper|exited with|killed by", told):
            found.append(f"{name}@{number}: its keeper was killed, told as {told!r}")
    return found


def status_is_true(facts: Facts) -> list[str]:
    """The supervisor's answer names the living copy, by pid and incarnation, and nothing else."""
    found = []
    for name, status in facts.status.items():
        alive = [(birth.pid, birth.incarnation) for birth in facts.alive.get(name, ())]
        if facts.kinds[name] in STEADY and alive != [(status["pid"], status["incarnation"])]:
            found.append(f"{name}: status says pid {status['pid']}@{status['incarnation']}, alive is {alive}")
    return found


def nothing_is_left(facts: Facts) -> list[str]:
    """After `down` no process of any service, keeper, supervisor or anchor is left."""
    return [f"left behind: {each}" for each in facts.left]


def run_directory_is_tidy(facts: Facts) -> list[str]:
    """After `down` there is a record of each service, and nothing of any incarnation."""
    return [f"{name}: left in its directory: {files}" for name, files in facts.files.items() if files != ["record"]]


ALWAYS = (never_two_copies, ends_have_a_cause, status_is_true)  # also in between
AT_THE_END = (
    never_two_copies, ends_have_a_cause, logs_are_whole, exits_are_accounted, lost_keepers_are_told, nothing_is_left,
    run_directory_is_tidy,
)  # fmt: skip


def check(facts: Facts, invariants: tuple, counter: Counter[str]) -> list[str]:
    found = []
    for invariant in invariants:
        counter[invariant.__name__] += 1
        found += [f"{invariant.__name__}: {each}" for each in invariant(facts)]
    return found
