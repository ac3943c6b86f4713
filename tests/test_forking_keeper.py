"""Which process is main: the keeper's choice, in raw packets.  Who ends when is said by the tests, through pipes."""

from __future__ import annotations

import os
import signal
import struct

import pytest
from helpers_forking import ONCE, family, gates, name_of
from helpers_lib import identity_of
from helpers_wait import all_ended
from helpers_wire import KEEPER, SPEC, wait_until
from helpers_wire import RawKeeper as Raw

N = SPEC.numbers
FORKING, NEW_SESSION = N["FORKING"], N["NEW_SESSION"]
NAME, ONLY, SESSION, TOGETHER, ASKED = (N[f"RULE_{r}"] for r in ("NAME", "ONLY", "SESSION", "TOGETHER", "ASKED"))
ENV = [f"PATH={os.environ['PATH']}"]


class RawKeeper(Raw):
    def members(self) -> dict[str, int]:
        """Names and numbers; what was said meanwhile is still to be heard."""
        self.say("QUERY", id=1)
        found = self.wait_for("MEMBERS")[1]["members"]
        self.seen = self.passed + self.seen
        return {m["name"]: m["pid"] for m in found}

    def main_or_end(self) -> tuple[str, dict]:
        """MOVED, or main's EXITED."""
        while True:
            what, values = self.wait_for("MOVED", "EXITED")
            if what == "MOVED" or values["flags"]:
                return what, values

    def end_of(self, pid: int) -> dict:
        """The EXITED of one that is not main; nothing moves before it."""
        while True:
            what, values = self.wait_for("MOVED", "EXITED")
            assert what == "EXITED" and not values["flags"], (what, values)
            if values["pid"] == pid:
                return values


@pytest.fixture
def gate(tmp_path):
    with gates(tmp_path) as make:
        yield make


def more(main_name: str = "") -> bytes:
    return struct.pack("<IIiIQQII16s", 56, 0, 0, 0, 0, 0, 56, 0, main_name.encode())


def start(k: RawKeeper, *actions: list, main: str = "", options: int = FORKING | NEW_SESSION, hello: int = 0) -> int:
    """Start a family; the pid of the one that is started."""
    from holdfast.process import _native

    body = _native.spawn_body(
        family(*actions), dict(e.split("=", 1) for e in ENV), family()[0], None, options, 0, 0, 0, 0, 0, (), (), (), 7,
        0, 15, 1, 5000, more(main) if main else b"",
    )  # fmt: skip
    k.send(SPEC.record("HELLO", {"version": 1, "flags": hello}) + SPEC.record("SPAWN", body=body))
    answer = k.answer()
    assert answer["name"] == "SPAWNED", answer
    return answer["pid"]


def child(name: str, *actions: list) -> list:
    return ["start", *actions, ["name", name], ["up"], ["pause"]]


SETSID = ["setsid"]


@pytest.mark.parametrize(
    ("actions", "main", "name", "rule"),
    [
        ([child("a")], "", "a", ONLY),
        ([child("a", SETSID)], "", "a", ONLY),
        ([child("a", child("b"), child("c"))], "", "a", ONLY),
        ([child("a", child("b"))], "b", "a", ONLY),  # below a: no child of the keeper
        ([child("a"), child("b", SETSID)], "", "b", SESSION),
        ([child("a"), child("b", SETSID), child("c", SETSID)], "", "b", SESSION),
        ([child("a"), ["fork", SETSID, child("b")], ["wait"]], "", "b", SESSION),  # its session's leader has gone
        ([child("a"), child("b")], "", "a", TOGETHER),
        ([child("a"), child("b"), child("c", SETSID)], "b", "b", NAME),
        ([child("b"), child("a"), child("a")], "a", "a", NAME),
        ([child("a" * 15)], "a" * 15, "a" * 15, NAME),
        ([child("a"), child("b", SETSID)], "nobody", "b", SESSION),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_who_is_main(actions, main, name, rule):
    with RawKeeper() as k:
        starter = start(k, *actions, ["exit", 0], main=main)
        moved = k.wait_for("MOVED")[1]
        assert (name_of(moved["pid"]), moved["rule"]) == (name, rule)
        assert (moved["old_pid"], moved["count"]) == (starter, 1)
        assert moved["identity"] == identity_of(k.fds[-1])
        said = [*k.passed, *k.seen]
        ends = [(values["pid"], values["status"]) for what, values in said if what == "EXITED" and not values["flags"]]
        assert (starter, 0) in ends
        k.say("SIGNAL", signo=9, scope=N["SCOPE_MAIN"])
        if rule == TOGETHER:
            assert name_of(k.wait_for("MOVED")[1]["pid"]) == "b"
            k.say("SIGNAL", signo=9, scope=N["SCOPE_MAIN"])
        what, values = k.main_or_end()
        assert (what, values["status"]) == ("EXITED", 9)


def test_the_oldest_counts_and_not_who_was_adopted_first(gate):
    """The younger one is the keeper's child before; starts are told apart in clock ticks, so two lie between these."""
    with RawKeeper() as k:
        old = ["start", child("old", SETSID), ["up"], ["gate", gate("end")], ["exit", 0]]
        young = ["fork", child("young", SETSID)]
        start(k, old, ["gate", gate("tick")], young, ["wait"], ["name", "done"], ["gate", gate("go")], ["exit", 0])
        began = uptime()
        wait_until(lambda: uptime() > began + 0.03)
        gate.open("tick")
        wait_until(lambda: "done" in k.members())  # the parent of the younger one has gone
        gate.open("end")
        wait_until(lambda: list(k.members().values()) and parent_of(k.members()["old"]) == k.pid)
        gate.open("go")
        assert name_of(k.wait_for("MOVED")[1]["pid"]) == "old"


def uptime() -> float:
    with open("/proc/uptime") as file:
        return float(file.read().split()[0])


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("actions", "code", "status"),
    [
        ([["exit", 3]], 1, 3),
        ([child("a"), ["exit", 3]], 1, 3),
        ([child("a"), ["die", 9]], 2, 9),
        ([["exit", 0]], 1, 0),
        ([["fork", ["exit", 0]], ["wait"], ["exit", 0]], 1, 0),
    ],
)
def test_no_daemon_came_of_it(actions, code, status):
    with RawKeeper() as k:
        starter = start(k, *actions)
        what, values = k.main_or_end()
        assert (what, values["pid"], values["code"], values["status"]) == ("EXITED", starter, code, status)


@pytest.mark.parametrize(("how", "code", "status"), [(["exit", 3], 1, 3), (["die", 9], 2, 9), (["exit", 0], 1, 0)])
def test_a_daemon_that_ends_before_its_keeper_has_looked(gate, how, code, status):
    """Both are dead when the keeper comes to reap: how the daemon ended is told, and it never was main."""
    with RawKeeper() as k:
        daemon = ["start", ["name", "daemon"], ["up"], ["gate", gate("daemon")], how]
        starter = start(k, daemon, ["gate", gate("starter")], ["exit", 0])
        wait_until(lambda: "daemon" in k.members())
        pid = k.members()["daemon"]
        held = [os.pidfd_open(starter), os.pidfd_open(pid)]
        try:
            os.kill(k.pid, signal.SIGSTOP)  # our child
            gate.open("starter")
            assert all_ended([starter])
            gate.open("daemon")
            assert all_ended([pid])
        finally:
            os.kill(k.pid, signal.SIGCONT)
            for fd in held:
                os.close(fd)
        said = k.rest()
        assert "MOVED" not in [what for what, _ in said]
        (main,) = (values for what, values in said if what == "EXITED" and values["flags"])
        assert (main["pid"], main["code"], main["status"]) == (pid if status else starter, code, status)
        assert said[-1][0] == "EMPTY"
        assert said[-1][1]["reaped"] == 2


def end_adopted(k: RawKeeper, gate, name: str) -> None:
    """Let the member of that name end, whose gate has the same, and wait until the keeper has reaped it."""
    wait_until(lambda: name in k.members())
    pid = k.members()[name]
    gate.open(name)
    while k.wait_for("EXITED")[1]["pid"] != pid:
        pass


@pytest.mark.parametrize(("how", "code", "status"), [(["exit", 3], 1, 3), (["die", 9], 2, 9), (["exit", 0], 1, 0)])
def test_a_daemon_that_ends_before_the_one_that_was_started(gate, how, code, status):
    """It is reaped, as a member like any other, before anybody can know what it was."""
    with RawKeeper() as k:
        daemon = ["fork", ["start", ["name", "daemon"], ["up"], ["gate", gate("daemon")], how]]
        starter = start(k, daemon, ["wait"], ["gate", gate("starter")], ["exit", 0])
        end_adopted(k, gate, "daemon")
        gate.open("starter")
        what, values = k.main_or_end()
        assert (what, values["pid"], values["code"], values["status"]) == ("EXITED", starter, code, status)


def test_a_failure_before_a_daemon_came_is_not_its_own(gate):
    with RawKeeper() as k:
        helper = ["fork", ["start", ["name", "helper"], ["up"], ["gate", gate("helper")], ["exit", 3]]]
        daemon = ["start", ["name", "daemon"], ["up"], ["gate", gate("daemon")], ["exit", 0]]
        start(k, helper, ["wait"], ["gate", gate("starter")], daemon, ["exit", 0])
        end_adopted(k, gate, "helper")
        gate.open("starter")
        assert name_of(k.wait_for("MOVED")[1]["pid"]) == "daemon"
        gate.open("daemon")
        what, values = k.main_or_end()
        assert (what, values["code"], values["status"]) == ("EXITED", 1, 0)


def test_it_is_followed_as_long_as_it_ends_well_and_leaves_somebody(gate):
    with RawKeeper() as k:
        third = ["start", ["name", "third"], ["up"], ["gate", gate("3")], ["exit", 7]]
        second = ["start", ["name", "second"], third, ["up"], ["gate", gate("2")], ["exit", 0]]
        first = ["start", ["name", "first"], second, ["up"], ["gate", gate("1")], ["exit", 0]]
        pids = [start(k, first, ["exit", 0])]
        for count, name in enumerate(("first", "second", "third"), 1):
            moved = k.wait_for("MOVED")[1]
            assert (name_of(moved["pid"]), moved["count"], moved["old_pid"]) == (name, count, pids[-1])
            pids.append(moved["pid"])
            gate.open(str(count))
        said = k.rest()
        assert [(v["pid"], v["status"]) for what, v in said if what == "EXITED" and v["flags"]] == [(pids[-1], 7)]


def test_another_end_of_main_is_the_end(gate):
    with RawKeeper() as k:
        start(k, child("a", child("b")), ["exit", 0])
        os.kill(k.wait_for("MOVED")[1]["pid"], signal.SIGTERM)
        what, values = k.main_or_end()
        assert (what, values["status"]) == ("EXITED", 15)


def test_those_that_are_main_together_live_as_long_as_one_of_them(gate):
    with RawKeeper() as k:
        start(k, child("a"), child("b"), child("c"), ["exit", 0])
        seen = []
        for rule in (TOGETHER, TOGETHER, ONLY):
            moved = k.wait_for("MOVED")[1]
            seen.append(name_of(moved["pid"]))
            assert moved["rule"] == rule
            os.kill(moved["pid"], signal.SIGKILL)
        assert seen == ["a", "b", "c"]
        assert [v["status"] for what, v in k.rest() if what == "EXITED" and v["flags"]] == [9]


@pytest.mark.parametrize("how", ["later", "takes"])
def test_the_name_is_looked_for_until_it_is_there(gate, how):
    with RawKeeper() as k:
        late = [["up"], ["gate", gate("gate")], ["name", "wanted"], ["pause"]]
        others = [child("a", SETSID)] if how == "later" else []
        start(k, *others, ["start", *late], ["exit", 0], main="wanted")
        first = k.wait_for("MOVED")[1]
        assert first["rule"] == (SESSION if how == "later" else ONLY)
        gate.open("gate")
        # It looks when it is asked, before it lists: who is in the list may have come in between.
        wait_until(lambda: k.members() and "MOVED" in [what for what, _ in k.seen])
        moved = k.wait_for("MOVED")[1]
        assert (name_of(moved["pid"]), moved["rule"]) == ("wanted", NAME)
        assert (moved["pid"] == first["pid"]) == (how == "takes")
        assert moved["count"] == (2 if how == "later" else 1)


def test_nothing_moves_during_a_stop(gate):
    with RawKeeper() as k:
        leave = ["on", 15, ["exit", 0]]
        starter = start(k, child("a", ["on", 15, ["pause"]]), leave, ["name", "starter"], ["pause"])
        wait_until(lambda: {"starter", "a"} <= {*k.members()})
        k.say("STOP", id=1, signo=15, scope=N["SCOPE_MAIN"], grace_ms=300)
        said = k.rest()
        assert "MOVED" not in [what for what, _ in said]
        (main,) = (values for what, values in said if what == "EXITED" and values["flags"])
        assert (main["pid"], main["code"], main["status"]) == (starter, 1, 0)


def test_a_stop_reaches_the_daemon_and_its_group(gate):
    with RawKeeper() as k:
        start(k, child("a", SETSID, child("b")), child("c"), ["exit", 0])
        moved = k.wait_for("MOVED")[1]
        assert name_of(moved["pid"]) == "a"
        k.say("STOP", id=1, signo=15, scope=N["SCOPE_GROUP"], grace_ms=20_000)
        report = k.wait_for("STOP_REPORT")[1]
        named = {m["name"]: m["flags"] for m in report["members"]}
        assert named["a"] == N["IS_MAIN"] | N["SIGNALLED"] and named["b"] == N["SIGNALLED"]
        assert named["c"] == N["SIGNALLED"] | N["LEFT_GROUP"]
        assert report["killed"] == 0


def test_the_owner_names_main(gate):
    with RawKeeper() as k:
        start(k, child("a"), child("b", child("below")), ["exit", 0])
        first = k.wait_for("MOVED")[1]
        by_name = k.members()
        for pid in (0, -1, 1, os.getpid(), k.pid, by_name["below"], first["old_pid"], 2**31 - 1):
            k.say("MAIN", pid=pid)
        k.members()
        assert "MOVED" not in [what for what, _ in k.seen]
        k.say("MAIN", pid=by_name["b"])
        moved = k.wait_for("MOVED")[1]
        assert moved == {**moved, "old_pid": first["pid"], "pid": by_name["b"], "rule": ASKED, "count": 2}
        k.say("MAIN", pid=by_name["a"])
        assert k.wait_for("MOVED")[1]["pid"] == by_name["a"]
        os.kill(by_name["b"], signal.SIGKILL)  # one of the others now
        k.end_of(by_name["b"])
        os.kill(by_name["a"], signal.SIGKILL)
        assert k.main_or_end()[0] == "EXITED"


def test_the_owner_confirms_main():
    with RawKeeper() as k:
        start(k, child("a"), child("b"), ["exit", 0])
        first = k.wait_for("MOVED")[1]
        k.say("MAIN", pid=first["pid"])
        again = k.wait_for("MOVED")[1]
        assert again == {**first, "old_pid": first["pid"], "rule": ASKED}
        k.say("MAIN", pid=first["pid"])  # known
        k.members()
        assert "MOVED" not in [what for what, _ in k.seen]
        os.kill(first["pid"], signal.SIGKILL)  # it is no more one of several
        assert k.main_or_end()[0] == "EXITED"


def test_main_is_not_named_before_the_start_is_over(gate):
    with RawKeeper() as k:
        starter = start(k, child("a"), ["fork", child("b")], ["wait"], ["name", "ready"], ["gate", gate("end")])
        wait_until(lambda: "ready" in k.members())
        by_name = k.members()
        k.say("MAIN", pid=by_name["b"])
        k.members()
        assert "MOVED" not in [what for what, _ in k.seen]
        gate.open("end")
        assert k.wait_for("MOVED")[1]["old_pid"] == starter


def test_an_adoption_without_a_descriptor_does_not_take_that_of_main(gate):
    """More than 64 adopted ones have none; the last of them is the one whose name was looked for."""
    with RawKeeper() as k:
        parent = [["name", "parent"], ["gate", gate("go")], ["fork", child("m")], ["wait"], ["name", "done"], ["pause"]]
        many = [["fork", ["pause"]] for _ in range(70)]
        start(k, *many, ["start", ["up"], *parent], ["exit", 0], main="m")
        k.wait_for("MOVED")
        pid = k.members()["parent"]
        gate.open("go")
        wait_until(lambda: name_of(pid) == "done")
        k.seen.clear()
        k.say("QUERY", id=2)
        packet: list[str] = []
        while "MOVED" not in packet:
            k.receive()
            packet = [what for what, _ in SPEC.decode(k.last)]
        said = dict(k.seen)
        assert said["ADOPTED"]["pid"] == said["MOVED"]["pid"] and said["ADOPTED"]["identity"] == 0
        assert "ADOPTED" not in packet


def test_main_is_found_where_descriptors_are_few():
    """All that it leaves would take more than there are."""
    with RawKeeper(argv=["/bin/sh", "-c", f"ulimit -n 24; exec {KEEPER}"]) as k:
        start(k, *[["fork", ["pause"]] for _ in range(40)], child("a", SETSID), ["exit", 0])
        what, values = k.main_or_end()
        assert what == "MOVED" and name_of(values["pid"]) == "a"


def test_what_is_not_forking_is_not_followed():
    with RawKeeper() as k:
        start(k, *ONCE, options=NEW_SESSION)
        what, values = k.main_or_end()
        assert (what, values["status"]) == ("EXITED", 0)


def test_a_keeper_that_is_used_again_knows_nothing_of_the_last_daemon(gate):
    with RawKeeper() as k:
        reused = N["KEEPER_REUSED"]
        start(k, child("a"), child("b"), ["exit", 0], main="b", hello=reused)
        assert k.wait_for("MOVED")[1]["rule"] == NAME
        k.say("STOP", id=1, signo=9, scope=N["SCOPE_TREE"], grace_ms=0)
        k.wait_for("EMPTY")
        start(k, child("a"), child("b"), ["exit", 0], hello=reused)
        moved = k.wait_for("MOVED")[1]
        assert (moved["rule"], moved["count"]) == (TOGETHER, 1)
        k.say("STOP", id=2, signo=9, scope=N["SCOPE_TREE"], grace_ms=0)
        k.wait_for("EMPTY")
        start(k, child("a"), ["exit", 0], hello=reused, options=NEW_SESSION)
        assert k.main_or_end()[0] == "EXITED"


def test_an_owner_that_does_not_read_is_told_the_last_move_and_no_less(gate):
    """Its socket is full: of many moves the last one waits, and goes ahead of the end."""
    with RawKeeper(sndbuf=1) as k:
        chain = child("last")
        for number in range(20):
            chain = ["start", ["name", f"n{number}"], chain, ["up"], ["gate", gate(str(number))], ["exit", 0]]
        start(k, chain, ["exit", 0])
        assert name_of(k.wait_for("MOVED")[1]["pid"]) == "n19"
        by_name = k.members()
        for number in reversed(range(20)):
            gate.open(str(number))
            wait_until(lambda: not os.path.exists(f"/proc/{by_name[f'n{number}']}"))  # noqa: B023
        moved = k.wait_for("MOVED")[1]
        while moved["pid"] != by_name["last"]:
            assert moved["count"] < 21
            moved = k.wait_for("MOVED")[1]
        assert 10 < moved["count"] <= 21  # one that ends while the keeper looks is passed over
        os.kill(moved["pid"], signal.SIGKILL)
        what, values = k.main_or_end()
        assert (what, values["pid"]) == ("EXITED", moved["pid"])
