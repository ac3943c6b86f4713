"""The proc connector and what is made of it: a kernel that is played, and the real one with real processes."""

from __future__ import annotations

import itertools
import os
import random
import select
import subprocess
import time
from collections import Counter

import pytest
from helpers_lineage import build_program, needs_connector, nobody_listens, orphans, somebody_listens
from helpers_wait import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.daemon.lineage import _glance, _seen
from holdfast.daemon.processes import Table, look
from holdfast.process.connector import COMM, COREDUMP, EXEC, EXIT, FORK, GID, SID, UID, Connector
from holdfast.process.lineage import ADOPTED, FORKED, STARTED, UNKNOWN, Change, Family, Seen

ROOT = 10
STEP_NS = 100_000_000  # so that a number does not come back within half a second


# ---- a kernel that is played


class Task:
    def __init__(self, pid, parent, born_ns, name="keeper"):
        self.pid, self.parent, self.born_ns, self.name = pid, parent, born_ns, name
        self.tids = {pid}


class Kernel:
    """Processes below ROOT and beside it, whose messages may be late, out of order where the kernel's are, or lost."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 10**9
        self.tasks = {ROOT: Task(ROOT, 1, 0), 5: Task(5, 1, 0, "stranger")}
        self.queue = []
        self.full = False
        self.lost = 0
        self.numbers = itertools.cycle(range(100, 140))
        self.forks, self.exits, self.adoptions = [], [], []

    def tell(self, what, *numbers):
        if self.full:
            self.lost += 1
        else:
            self.queue.append((what, self.now, *numbers, *[0] * (6 - len(numbers))))

    def number(self):
        return next(number for number in self.numbers if number not in self.used())

    def used(self):
        return {*self.tasks, *(tid for task in self.tasks.values() for tid in task.tids)}

    def below(self, pid):
        while pid in self.tasks and pid != ROOT:
            pid = self.tasks[pid].parent
        return pid == ROOT

    def members(self):
        return sorted(pid for pid in self.tasks if pid != ROOT and self.below(pid))

    def fork(self, parent):
        pid = self.number()
        self.tasks[pid] = Task(pid, parent, self.now, self.tasks[parent].name)
        self.tell(FORK, parent, parent, pid, pid)
        if self.below(pid):
            self.forks.append((pid, parent))

    def thread(self, pid):
        tid = self.number()
        self.tasks[pid].tids.add(tid)
        self.tell(FORK, self.tasks[pid].parent, self.tasks[pid].parent, tid, pid)

    def execute(self, pid):
        task = self.tasks[pid]
        for tid in sorted(task.tids)[:-1]:  # who calls it has, or takes, the first one's number
            self.tell(EXIT, tid, pid, 0, 17, task.parent, task.parent)
        task.tids = {pid}
        task.name = f"program{self.random.randrange(9)}"
        self.tell(EXEC, pid, pid)

    def exit(self, pid):
        task, status = self.tasks[pid], self.random.choice([0, 256, 9])
        tid = self.random.choice(sorted(task.tids))
        task.tids.discard(tid)
        if task.tids:
            self.tell(EXIT, tid, pid, status, 17, task.parent, task.parent)
            return
        own = self.below(pid)
        reaper = ROOT if own else 1
        orphans = sorted(each.pid for each in self.tasks.values() if each.parent == pid)
        for each in orphans:
            self.tasks[each].parent = reaper
        del self.tasks[pid]
        # Orphans are given away first, and may end before this is told.
        hasty = [each for each in orphans if len(self.tasks[each].tids) == 1 and self.random.random() < 0.2]
        if own:
            self.adoptions += [(each, pid) for each in orphans]
        for each in hasty:
            parent = self.tasks[each].parent
            grand = [other for other in self.tasks.values() if other.parent == each]
            if not grand:
                (last,) = self.tasks.pop(each).tids
                self.tell(EXIT, last, each, 0, 17, parent, parent)
                if own:
                    self.exits.append((each, 0))
        parent = task.parent if self.random.random() < 0.8 else 0  # reaped already
        self.tell(EXIT, tid, pid, status, 17, parent, parent)
        if own:
            self.exits.append((pid, status))

    def seen(self):
        return [
            Seen(pid, task.parent, task.name, task.born_ns, tuple(sorted(task.tids)))
            for pid, task in self.tasks.items()
            if pid in set(self.members())
        ]

    def glance(self, pid):
        return (self.tasks[pid].parent, self.tasks[pid].name) if pid in self.tasks else None


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["fork"] * 4 + ["exit"] * 3 + ["thread", "execute", "stranger", "read"]), st.integers(0, 99)
    ),
    max_size=60,
)


def play(kernel, operations, family, changes):
    """Let it happen; in between some of it is read."""
    for operation, number in operations:
        kernel.now += STEP_NS
        if operation == "read":
            for _ in range(min(number, len(kernel.queue))):
                changes += family.take_in(kernel.queue.pop(0))
            continue
        members = kernel.members()
        if operation in ("fork", "thread", "stranger") and len(kernel.used()) > 30:
            continue  # that numbers come back, but not at once
        if operation == "fork":
            kernel.fork([ROOT, *members][number % (len(members) + 1)])
        elif operation == "stranger":
            strangers = [pid for pid in kernel.tasks if pid != ROOT and pid not in members]
            pid = strangers[number % len(strangers)]
            kernel.fork(pid) if number % 2 or pid == 5 else kernel.exit(pid)
        elif members:
            getattr(kernel, operation)(members[number % len(members)])


def drain(kernel, family, changes):
    while kernel.queue:
        changes += family.take_in(kernel.queue.pop(0))


def agrees(kernel, family):
    assert {kin.pid: (kin.parent, kin.tids or {kin.pid}) for kin in family.kin.values()} == {
        pid: (kernel.tasks[pid].parent, kernel.tasks[pid].tids) for pid in kernel.members()
    }


@settings(max_examples=400, deadline=None)
@given(OPERATIONS, st.integers(0, 2**32))
def test_without_a_loss_all_is_known(operations, seed):
    kernel, changes = Kernel(seed), []
    family = Family(kernel.glance)
    family.watch(ROOT)
    play(kernel, operations, family, changes)
    drain(kernel, family, changes)
    agrees(kernel, family)
    told = {event: [(c.pid, c.number) for c in changes if c.event == event] for event in {c.event for c in changes}}
    assert told.get(FORKED, []) + told.get(STARTED, []) == sorted(kernel.forks, key=lambda fork: fork[1] == ROOT)
    assert Counter(told.get("exited", [])) == Counter(kernel.exits)
    assert Counter(told.get(ADOPTED, [])) == Counter(kernel.adoptions)
    for kin in family.kin.values():
        assert kin.how == (STARTED if (kin.pid, ROOT) in kernel.forks else kin.how)
        assert kin.how in (STARTED, FORKED, ADOPTED)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, OPERATIONS, OPERATIONS, st.integers(0, 2**32))
def test_after_a_loss_a_look_heals(before, missed, after, seed):
    """What is told after the loss and read after the look is partly of before the look: both together are the truth."""
    kernel, changes = Kernel(seed), []
    family = Family(kernel.glance)
    family.watch(ROOT)
    play(kernel, before, family, changes)
    drain(kernel, family, changes)
    kernel.full = True
    play(kernel, missed, family, changes)
    kernel.full = False
    play(kernel, [each for each in after if each[0] != "read"], family, changes)
    changes += family.look(ROOT, 0, kernel.seen(), kernel.now + 1)
    play(kernel, before, family, changes)
    drain(kernel, family, changes)
    agrees(kernel, family)
    born = dict(kernel.forks)
    for kin in family.kin.values():
        if kin.how == FORKED:
            assert kin.by == born[kin.pid]
    # Every adoption whose previous parent is named was one.
    named = [(c.pid, c.number) for c in changes if c.event == ADOPTED and c.number is not None]
    assert not Counter(named) - Counter(kernel.adoptions)


def test_other_messages():
    family = Family(lambda pid: (ROOT, "sh"))
    family.watch(ROOT)
    assert family.take_in((FORK, 1, ROOT, ROOT, 20, 20, 0, 0)) == (Change(ROOT, STARTED, 1, 20, "sh", ROOT),)
    assert family.take_in((SID, 2, 20, 20, 0, 0, 0, 0)) == (Change(ROOT, "session", 2, 20, "sh"),)
    assert family.take_in((UID, 3, 20, 20, 33, 34, 0, 0)) == (Change(ROOT, "user", 3, 20, "sh", 34),)
    assert family.take_in((GID, 4, 20, 20, 35, 36, 0, 0)) == (Change(ROOT, "group", 4, 20, "sh", 36),)
    words = [int.from_bytes(b"nginx: master\0\0\0"[at : at + 4], "little") for at in range(0, 16, 4)]
    assert family.take_in((COMM, 5, 20, 20, *words)) == (Change(ROOT, "named", 5, 20, "nginx: master"),)
    assert family.take_in((COMM, 6, 20, 20, *words)) == ()  # it is called so already
    assert family.take_in((COREDUMP, 7, 20, 20, 0, 0, 0, 0)) == (Change(ROOT, "dumped", 7, 20, "nginx: master"),)
    assert family.take_in((0x100, 8, 20, 20, 0, 0, 0, 0)) == ()  # traced
    assert family.take_in((SID, 9, 21, 21, 0, 0, 0, 0)) == ()  # nobody of ours
    family.forget(ROOT)
    assert not family.kin and family.take_in((EXIT, 10, 20, 20, 0, 17, ROOT, ROOT)) == ()


def test_a_look_at_who_was_there_before():
    family = Family(lambda pid: None)
    family.watch(ROOT)
    second = 10**9
    seen = [Seen(pid, parent, "x", second, (pid,)) for pid, parent in ((20, ROOT), (21, ROOT), (22, 20))]
    changes = family.look(ROOT, 20, seen, 9 * second)
    assert [(c.event, c.pid, c.number) for c in changes] == [("found", each.pid, each.parent) for each in seen]
    assert [(family.kin[pid].how, family.kin[pid].by) for pid in (20, 21, 22)] == [
        (STARTED, ROOT), (ADOPTED, None), (UNKNOWN, None),
    ]  # fmt: skip
    # A message from before the look: of this process, by the time; and one of who had the number earlier.
    assert family.take_in((FORK, second // 4, 5, 5, 22, 22, 0, 0)) == ()
    assert family.take_in((EXIT, second - 10, 22, 22, 0, 17, 5, 5)) == ()
    (late,) = family.take_in((FORK, second + 5, 20, 20, 22, 22, 0, 0))
    assert late == Change(ROOT, FORKED, second + 5, 22, "x", 20)
    assert (family.kin[22].how, family.kin[22].by) == (FORKED, 20)
    (gone,) = family.look(ROOT, 20, seen[:2], 10 * second)
    assert (gone.event, gone.pid, gone.number) == ("exited", 22, None)


# ---- the real one


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build_program(tmp_path_factory.mktemp("lineage"))


class Program:
    """lineage.c in a round for each byte, as the root of what it forks."""

    def __init__(self, program, *arguments):
        self.process = subprocess.Popen([program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.root = self.process.pid

    def round(self):
        self.process.stdin.write(b"x")
        self.process.stdin.flush()
        self.done()

    def done(self):
        assert select.select([self.process.stdout], [], [], 30)[0]
        assert os.read(self.process.stdout.fileno(), 1) == b"."

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(30) in (0, 3)


def read_all(connector, family):
    """Everything that has come; and how many were lost."""
    changes, lost = [], 0
    while True:
        happenings, missing = connector.read(1000)
        lost += missing
        for happening in happenings:
            changes += family.take_in(happening)
        if not happenings:
            return changes, lost


@pytest.fixture
def connector():
    needs_connector()
    made = Connector()
    yield made
    made.close()


def test_every_process_of_a_burst_is_told(tmp_path, program, connector):
    if os.geteuid() != 0:
        pytest.skip("for an ordinary user there is room for 256 messages")
    family = Family(_glance)
    with Program(program, "rounds", 500, tmp_path / "file") as top:
        family.watch(top.root)
        top.round()
        changes, lost = read_all(connector, family)
    assert lost == 0
    known = orphans(tmp_path / "file")
    assert len(known) == 500
    told = {c.pid: c.number for c in changes if c.event == ADOPTED}
    assert told == known
    counts = Counter(c.event for c in changes)
    assert counts[STARTED] == counts[FORKED] == counts["session"] == counts["executed"] == 500
    assert counts["exited"] == 1000
    status = Counter((c.pid in known, c.number) for c in changes if c.event == "exited")
    assert status == {(True, 0): 500, (False, 7 << 8): 500}
    assert not family.kin


def test_what_is_lost_is_counted_and_healed(tmp_path, program):
    needs_connector()
    small = Connector(4096)
    family = Family(_glance)
    try:
        with Program(program, "rounds", 20, tmp_path / "file") as top:
            family.watch(os.getpid())
            top.round()
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as late:  # of whom nobody tells us
                changes, lost = read_all(small, family)
                assert lost > 20
                assert len(changes) < 100 and late.pid not in family.kin
                changes = family.look(os.getpid(), 0, _seen(Table(), os.getpid()), time.monotonic_ns())
                assert [c.event for c in changes if c.pid == late.pid] == ["found"]
                assert family.kin[late.pid].parent == os.getpid() and top.root in family.kin
            changes, lost = read_all(small, family)
            assert ("exited", late.pid, 0) in [(c.event, c.pid, c.number) for c in changes] or lost
            assert len([c for c in changes if c.event == "exited" and c.number is None]) == 0
    finally:
        small.close()


def test_who_is_being_reaped_has_no_parent():
    """/proc shows 0 for it, as it does for process 1; once an adoption was told "from 0"."""
    assert _glance(1) is None
    assert _glance(os.getpid()) == (os.getppid(), _glance(os.getpid())[1])


def test_the_last_thread_is_the_end(tmp_path, program, connector):
    family = Family(_glance)
    family.watch(os.getpid())
    top = Program(program, "threads", tmp_path / "file")
    with top:
        top.done()
        wait_for(lambda: look(top.root).state == "Z", what="its first thread ends")
        changes, lost = read_all(connector, family)
        assert "exited" not in [c.event for c in changes if c.pid == top.root]
        assert top.root in family.kin
        assert [seen.pid for seen in _seen(Table(), os.getpid()) if seen.pid == top.root]
        top.process.stdin.write(b"x")
        top.process.stdin.flush()
        top.process.wait(30)
        known = wait_for(lambda: orphans(tmp_path / "file"))
        more, lost_then = read_all(connector, family)
        changes += more
    if not lost + lost_then:
        assert [c.number for c in changes if c.pid == top.root and c.event == "exited"] == [3 << 8]
        assert [(c.pid, c.number) for c in changes if c.event == ADOPTED] == list(known.items()) != []


def test_nobody_is_left_listening():
    needs_connector()
    if not nobody_listens(1):
        pytest.skip("somebody else listens on this machine")
    first = Connector()
    second = Connector.of(os.dup(first.fileno()))  # as one that an anchor has kept
    assert somebody_listens()
    second.leave()
    assert somebody_listens()
    first.close()
    assert nobody_listens()
