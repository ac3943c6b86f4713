"""Restarts by the numbers, in virtual time: back-off, reset, start limit, jitter, policies and the start budget."""

from __future__ import annotations

import itertools
import os
import pathlib
import random
import subprocess
import sys

import pytest
from sim import KILLED, SUCCESS, Life, Sim, service, services

from holdfast.config.model import Backoff, StartBudget
from holdfast.engine import restart
from holdfast.engine.events import Exit, SpawnFailed, Woken

FAILED = Exit(1, None)
EXACT = Backoff(jitter=0.0)
PLENTY = StartBudget(at_once=1_000_000, per_second=1_000_000)


def starts(spec, script, until, **options):
    sim = Sim(services(spec), script, **options)
    sim.begin()
    sim.run(until=until)
    return sim, sim.spawned_at(spec.name)


def gaps(times):
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# ---- back-off


def test_the_waits_are_first_then_and_its_multiples_up_to_max():
    spec = service("x", start_limit=0, backoff=EXACT)
    _, times = starts(spec, lambda *_: Life(lives=0.0, exit=FAILED), until=230)
    expected = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    assert gaps(times) == pytest.approx(expected)


def test_the_wait_counts_from_the_empty_tree():
    spec = service("x", start_limit=0, backoff=Backoff(first=2.0, jitter=0.0))
    _, times = starts(spec, lambda *_: Life(spawn=0.25, lives=0.25, exit=FAILED, rest=3.0), until=12)
    assert gaps(times) == pytest.approx([5.5, 3.6])


def test_other_numbers():
    backoff = Backoff(first=1.0, then=2.0, factor=3.0, max=10.0, jitter=0.0)
    _, times = starts(service("x", start_limit=6, backoff=backoff), lambda *_: Life(lives=0.0, exit=FAILED), until=1e9)
    assert gaps(times) == [1.0, 2.0, 6.0, 10.0, 10.0]


def test_first_is_capped_too_and_a_constant_wait_stays():
    backoff = Backoff(first=5.0, then=1.0, factor=1.0, max=2.0, jitter=0.0)
    _, times = starts(service("x", start_limit=5, backoff=backoff), lambda *_: Life(lives=0.0, exit=FAILED), until=1e9)
    assert gaps(times) == [2.0, 1.0, 1.0, 1.0]


def test_a_streak_of_any_length_has_a_wait():
    rng = random.Random(0)
    assert restart.delay(Backoff(jitter=0.0), 10**6, rng) == 60.0
    assert restart.delay(Backoff(jitter=0.0, factor=100.0), 10**6, rng) == 60.0
    assert restart.delay(Backoff(jitter=0.0, then=0.0), 10**6, rng) == 0.0
    assert restart.delay(Backoff(jitter=0.0, factor=1.0), 10**6, rng) == 0.1


def test_no_wait_at_all_is_bounded_by_limit_and_budget():
    spec = service("x", start_limit=0, backoff=Backoff(then=0.0))
    budget = StartBudget(at_once=5, per_second=2.0)
    sim, times = starts(spec, lambda *_: Life(lives=0.0, exit=FAILED), until=3, budget=budget)
    assert times == pytest.approx([0.0] * 6 + [0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert sim.view("x").reason == "start budget"


# ---- jitter


def test_jitter_is_exactly_the_seeds():
    spec = service("x", start_limit=0, backoff=Backoff(first=1.0, jitter=0.25))
    _, times = starts(spec, lambda *_: Life(lives=0.0, exit=FAILED), until=200, seed=42)
    rng = random.Random(42)
    nominal = [1.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0, 60.0][: len(times) - 1]
    assert gaps(times) == pytest.approx([wait * (1 + rng.uniform(-0.25, 0.25)) for wait in nominal])


def test_jitter_spreads_evenly_over_its_range():
    rng = random.Random(1)
    waits = [restart.delay(Backoff(jitter=0.1), 20, rng) for _ in range(10_000)]
    assert 54.0 <= min(waits) < 54.1
    assert 65.9 < max(waits) <= 66.0
    assert sum(waits) / len(waits) == pytest.approx(60.0, abs=0.2)


def test_same_seed_same_effects():
    def run(seed):
        specs = services(*(service(f"s{n}", start_limit=0) for n in range(20)))
        sim = Sim(specs, lambda *_: Life(lives=0.0, exit=FAILED), seed=seed)
        sim.begin()
        sim.run(until=30)
        return sim.log

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_same_effects_in_another_process():
    """No order comes from a set or from an address: hashes of strings differ from process to process."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import sim, hashlib;"
        "names = [f's{n}' for n in range(30)];"
        "specs = sim.services(*(sim.service(name, requires=tuple(names[max(0, n - 3):n:2]), after=tuple(names[:n:5]))"
        " for n, name in enumerate(names)));"
        "world = sim.Sim(specs, lambda name, n: sim.Life(lives=5.0 + n, exit=sim.KILLED)); world.begin();"
        "world.run(until=40); world.stop('s0', 's7'); world.start('s9'); world.run(until=80);"
        "world.shutdown(); world.run();"
        "print(len(world.log), hashlib.sha256(repr(world.log).encode()).hexdigest())"
    )
    here = str(pathlib.Path(__file__).parent)

    def run(seed):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, here]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    first = run("1")
    assert int(first.split()[0]) > 200
    assert run("2") == first


# ---- reset and limit


def test_a_life_of_reset_after_clears_wait_and_count():
    """Starts 1 to 4 are short; 5 lives exactly a second; 6 is short again."""
    lives = {5: 1.0}
    spec = service("x", start_limit=5, backoff=EXACT)
    sim, times = starts(spec, lambda name, n: Life(lives=lives.get(n, 0.5), exit=FAILED), until=1e6)
    waits = [gap - lives.get(n, 0.5) for n, gap in enumerate(gaps(times), 1)]
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.0, 0.1, 0.2, 0.4, 0.8])
    assert sim.state("x") == "fatal"
    assert (sim.view("x").failures, sim.view("x").restarts) == (5, 9)


def test_a_life_just_below_reset_after_clears_nothing():
    spec = service("x", start_limit=3, backoff=EXACT)
    sim, times = starts(spec, lambda *_: Life(lives=0.999, exit=FAILED), until=1e6)
    assert len(times) == 3
    assert sim.view("x").reason == "3 starts in a row did not live 1s; last: exited with code 1"


def test_the_default_limit_is_ten_starts():
    sim, times = starts(service("x"), lambda *_: Life(lives=0.0, exit=KILLED), until=1e6)
    assert (len(times), sim.state("x"), sim.view("x").failures, sim.view("x").restarts) == (10, "fatal", 10, 9)
    assert sim.told("x")[-1] == "fatal"
    sim.start("x")
    sim.run()
    assert len(sim.spawned_at("x")) == 20
    assert gaps(sim.spawned_at("x")[10:])[0] == 0.0  # the back-off began anew


def test_a_limit_of_one_never_restarts_a_short_life_and_no_limit_always_does():
    _, times = starts(service("x", start_limit=1), lambda *_: Life(lives=0.0, exit=FAILED), until=1e6)
    assert len(times) == 1
    lives = {1: 5.0}
    _, times = starts(service("x", start_limit=1), lambda name, n: Life(lives=lives.get(n, 0), exit=FAILED), until=1e6)
    assert len(times) == 2
    sim, times = starts(service("x", start_limit=0), lambda *_: Life(lives=0.0, exit=FAILED), until=36_000)
    assert len(times) > 500
    assert sim.view("x").failures == len(times)


def test_temporary_failures_of_the_start_count_as_short_lives():
    fails = Life(fails=SpawnFailed("", 0, "EAGAIN", True))
    sim, times = starts(service("x", start_limit=4, backoff=EXACT), lambda *_: fails, until=1e6)
    assert gaps(times) == pytest.approx([0.0, 0.1, 0.2])
    assert sim.state("x") == "fatal"
    assert sim.view("x").last_exit.words == "could not start: EAGAIN"


def test_the_time_before_ready_is_no_life():
    """A notify service that dies before it is ready, or just after, however long that took."""
    spec = service("x", type="notify", start_limit=3)
    _, times = starts(spec, lambda *_: Life(ready=30.0, lives=30.5, exit=FAILED), until=1e6)
    assert len(times) == 3
    _, times = starts(service("x", type="oneshot", start_limit=3), lambda *_: Life(lives=60.0, exit=FAILED), until=1e6)
    assert len(times) == 3


def test_an_asked_restart_clears_and_one_with_another_service_does_not():
    lives = {("web", n): Life(lives=0.0, exit=FAILED) for n in (1, 2)}
    specs = services(service("db"), service("web", requires=("db",), backoff=EXACT))
    sim = Sim(specs, lambda *key: lives.get(key, Life()))
    sim.begin()
    sim.run()
    assert (sim.view("web").failures, sim.view("web").restarts) == (2, 2)
    sim.restart("db")
    sim.run()
    assert sim.view("web").failures == 2
    sim.restart("web")
    sim.run()
    assert (sim.view("web").failures, sim.view("web").restarts) == (0, 2)


def test_start_ends_the_wait():
    spec = service("x", backoff=Backoff(first=50.0, jitter=0.0))
    lives = {1: Life(lives=2.0, exit=FAILED)}
    sim, _ = starts(spec, lambda name, n: lives.get(n, Life()), until=10)
    assert (sim.state("x"), sim.view("x").wake_at) == ("backoff", 52.0)
    sim.start("x")
    assert sim.spawned_at("x") == [0.0, 10.0]
    sim.run()
    assert sim.engine.next_wake() is None
    assert sim.handle(Woken()) == []


def test_the_end_of_a_wait_that_was_cut_short_ends_no_other():
    spec = service("x", backoff=Backoff(first=50.0, jitter=0.0))
    sim, _ = starts(spec, lambda *_: Life(lives=2.0, exit=FAILED), until=10)
    sim.start("x")
    sim.run(until=13)
    assert sim.view("x").wake_at == 62.0
    sim.now = 55.0
    assert sim.handle(Woken()) == []
    assert sim.state("x") == "backoff"


# ---- policies

SEGFAULT = Exit(None, 11, core=True)
ENDS = {"success": SUCCESS, "failure": FAILED, "signal": KILLED, "crash": SEGFAULT, "declared": Exit(7, None)}
AGAIN = {
    "always": {"success", "failure", "signal", "crash", "declared"},
    "unless-stopped": {"success", "failure", "signal", "crash", "declared"},
    "on-failure": {"failure", "signal", "crash"},
    "on-abnormal": {"signal", "crash"},
    "never": set(),
}


@pytest.mark.parametrize("policy", AGAIN)
@pytest.mark.parametrize("end", ENDS)
def test_policies(policy, end):
    spec = service("x", restart=policy, success_exit_codes=(0, 7))
    lives = {1: Life(lives=5.0, exit=ENDS[end])}
    sim, times = starts(spec, lambda name, n: lives.get(n, Life()), until=100)
    again = end in AGAIN[policy]
    assert (len(times), sim.state("x")) == ((2, "running") if again else (1, "exited"))
    assert sim.view("x").last_exit == ENDS[end]
    if not again:
        assert sim.view("x").reason.endswith(f"restart = {policy}")


@pytest.mark.parametrize("policy", AGAIN)
def test_policies_of_a_oneshot(policy):
    """It is done when it has succeeded, whatever the policy."""
    lives = {1: Life(lives=5.0, exit=KILLED)}
    spec = service("x", type="oneshot", restart=policy)
    sim, times = starts(spec, lambda name, n: lives.get(n, Life(lives=5.0)), until=100)
    assert len(times) == (1 if policy == "never" else 2)
    assert sim.view("x").ready == (policy != "never")
    assert sim.view("x").failures == (1 if policy == "never" else 0)


@pytest.mark.parametrize("policy", AGAIN)
def test_not_ready_in_time_is_abnormal(policy):
    """Even if it then ends with code 0."""
    spec = service("x", type="notify", restart=policy)
    sim = Sim(services(spec), lambda name, n: Life(ready=None if n == 1 else 0.0))
    sim.begin()
    sim.run(until=95)
    assert sim.view("x").ready == (policy != "never")


# ---- the budget


def test_a_storm_is_let_through_at_the_rate_and_in_turn():
    specs = services(*(service(f"s{n:03}", start_limit=0) for n in range(200)))
    lives = {1: Life(lives=10.0, exit=KILLED)}
    sim = Sim(specs, lambda name, n: lives.get(n, Life()))
    sim.begin()
    sim.run(until=10)
    assert len(sim.restarts) == 50
    assert sum(view.reason == "start budget" for view in sim.engine.views()) == 150
    sim.run()
    expected = [10.0] * 50 + [10.0 + n / 25 for n in range(1, 151)]
    assert sim.restarts == pytest.approx(expected)
    assert [name for _, name, n in sim.spawns if n == 2] == sorted(specs)
    sim.check_budget()
    assert all(view.ready for view in sim.engine.views())


def test_the_budget_fills_up_again_and_no_further():
    specs = services(*(service(f"s{n}", start_limit=0) for n in range(8)))
    budget = StartBudget(at_once=4, per_second=0.5)
    lives = {1: Life(lives=10.0, exit=KILLED), 2: Life(lives=100.0, exit=KILLED)}
    sim = Sim(specs, lambda name, n: lives.get(n, Life()), budget)
    sim.begin()
    sim.run()
    assert sim.restarts[:8] == pytest.approx([10, 10, 10, 10, 12, 14, 16, 18])
    # 4 come again at 110; by then it is full; the later ones have had 2 s each, which is one restart.
    assert sim.restarts[8:] == pytest.approx([110, 110, 110, 110, 112, 114, 116, 118])


def test_what_is_asked_for_is_not_rationed():
    specs = services(*(service(f"s{n}") for n in range(20)))
    sim = Sim(specs, lambda name, n: Life(lives=5.0, exit=KILLED) if n == 1 else Life(), StartBudget(1, 0.01))
    sim.begin()
    assert len(sim.spawns) == 20
    sim.run(until=6)
    assert len(sim.spawns) == 21
    sim.start(*specs)
    assert len(sim.spawns) == 40
    sim.restart(*specs)
    sim.run(until=7)
    assert len(sim.spawns) == 60


def test_who_waits_for_another_takes_nothing_from_the_budget():
    """web's restart waits for db; what there is goes to those that can start."""
    specs = [service("db"), service("web", requires=("db",)), service("x"), service("y")]
    lives = {("db", 1): Life(lives=10.0, exit=KILLED), ("db", 2): Life(spawn=50.0)}
    lives |= {(name, 1): Life(lives=11.0, exit=KILLED) for name in ("web", "x", "y")}
    sim = Sim(services(*specs), lambda *key: lives.get(key, Life()), StartBudget(at_once=3, per_second=0.01))
    sim.begin()
    sim.run(until=12)
    assert sim.restarts == [10.0, 11.0, 11.0]
    assert sim.view("web").reason == "waits for db"
    sim.run(until=61)
    assert sim.view("web").reason == "start budget"
    sim.run(until=111)
    assert sim.view("web").ready


def test_nobody_is_served_before_those_that_wait_longer():
    """s1 had its turn, and ends again just when the next restart is due."""
    specs = services(*(service(f"s{n}", backoff=Backoff(then=0.0)) for n in range(3)))
    lives = {("s1", 2): Life(lives=0.5, exit=KILLED, rest=0.5)}
    script = {1: Life(lives=5.0, exit=KILLED)}
    sim = Sim(specs, lambda name, n: lives.get((name, n), script.get(n, Life())), StartBudget(1, 1.0))
    sim.begin()
    sim.run()
    assert [(at, name) for at, name, n in sim.spawns if n > 1] == [(5, "s0"), (6, "s1"), (7, "s2"), (8, "s1")]


def test_a_stop_leaves_the_queue():
    specs = services(*(service(f"s{n}") for n in range(4)))
    sim = Sim(specs, lambda name, n: Life(lives=5.0, exit=KILLED) if n == 1 else Life(), StartBudget(1, 1.0))
    sim.begin()
    sim.run(until=5)
    assert sim.state("s1") == "backoff"
    sim.stop("s1")
    sim.run()
    assert [name for _, name, n in sim.spawns if n == 2] == ["s0", "s2", "s3"]
    assert sim.restarts == [5.0, 6.0, 7.0]


@pytest.mark.parametrize("now", [0.0, 1e7, 1.7e9])
def test_the_bucket_is_never_woken_in_vain(now):
    """Whatever the clock and the rate round to, at next_at there is a restart: no timer runs in circles."""
    rng = random.Random(now)
    for _ in range(300):
        budget = StartBudget(at_once=rng.randint(1, 3), per_second=10 ** rng.uniform(-2, 6))
        bucket = restart.Bucket(budget)
        time = now
        for _ in range(20):
            if not bucket.take(time):
                time = bucket.next_at()
                assert bucket.take(time)
            time += rng.choice([0.0, rng.random() / budget.per_second])


def test_two_hundred_crash_loopers_come_to_rest():
    """Each is fatal after its ten starts, in the time that the budget gives them."""
    specs = services(*(service(f"s{n}") for n in range(200)), service("good"))
    sim = Sim(specs, lambda name, n: Life() if name == "good" else Life(lives=0.0, exit=FAILED))
    sim.begin()
    sim.run()
    assert sum(view.state == "fatal" for view in sim.engine.views()) == 200
    assert len(sim.restarts) == 1800
    assert sim.now == pytest.approx((1800 - 50) / 25, abs=30)
    assert sim.view("good").ready
    sim.check_budget()
