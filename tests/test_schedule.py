"""Schedules under a virtual clock: the times against a second library, and what a look at the clock decides."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st
from sim import Life, Sim, service, services

from holdfast.config.model import Schedule
from holdfast.engine.events import Exit, ScheduleDue
from holdfast.engine.schedule import LATE, SET_BACK, Times, look, shown
from holdfast.engine.table import State

BERLIN = ZoneInfo("Europe/Berlin")
START = int(datetime(2023, 1, 1, tzinfo=UTC).timestamp())
YEARS = 6 * 366 * 86400  # with two leap days in it
HOUR, DAY = 3600.0, 86400.0


def field(low, high, *, steps=True):
    one = st.integers(low, high).map(str)
    several = st.lists(st.integers(low, high), min_size=1, max_size=3, unique=True).map(
        lambda numbers: ",".join(map(str, sorted(numbers)))
    )
    # Of more than one: croniter takes 0-0 for *.
    span = st.lists(st.integers(low, high), min_size=2, max_size=2, unique=True).map(
        lambda pair: f"{min(pair)}-{max(pair)}"
    )
    kinds = [st.just("*"), one, several, span]
    if steps:
        kinds.append(st.sampled_from([2, 3, 5, 7]).map(lambda n: f"*/{n}"))
    return st.one_of(kinds)


@st.composite
def expressions(draw):
    """Five fields; of the two for days at most one says something, for there the libraries differ."""
    minute, hour = draw(field(0, 59)), draw(field(0, 23))
    day, weekday = draw(st.sampled_from([("*", "*"), ("d", "*"), ("*", "w"), ("29", "*")]))
    month = draw(field(1, 12, steps=False))
    if day == "29":
        month = draw(st.sampled_from(["2", "*"]))
    day = draw(field(1, 28, steps=False)) if day == "d" else day
    weekday = draw(field(0, 6, steps=False)) if weekday == "w" else weekday
    return f"{minute} {hour} {day} {month} {weekday}"


def times(cron="", *, every=0.0, jitter=0.0, zone=UTC, name="job"):
    return Times(Schedule(cron=cron, every=every, jitter=jitter), name, zone)


@settings(max_examples=150, deadline=None, database=None)
@given(expressions(), st.integers(START, START + YEARS))
def test_times_are_those_of_a_second_library(cron, since):
    """In UTC, where both mean the same; leap days included."""
    ours, at = times(cron), float(since)
    theirs = croniter(cron, datetime.fromtimestamp(since, UTC))
    for _ in range(5):
        at = ours.after(at)
        assert at == theirs.get_next(datetime).timestamp(), cron
    assert ours.newest(since, at) == at
    assert ours.newest(at, at + 1) in (None, at + 1)
    before = croniter(cron, datetime.fromtimestamp(at, UTC)).get_prev(datetime).timestamp()
    assert ours.newest(before - 1, at - 0.001) == before


def walked(minute, hour, day, zone):
    """Every moment of that day, minute by minute, at which the clock on the wall shows it: no library's idea of it."""
    first = datetime(*day, tzinfo=zone).timestamp()
    last = (datetime(*day, tzinfo=zone) + timedelta(days=1)).timestamp()
    found = []
    for moment in range(int(first), int(last), 60):
        wall = datetime.fromtimestamp(moment, zone)
        if (minute is None or wall.minute == minute) and (hour is None or wall.hour == hour):
            found.append(float(moment))
    return found


def of_day(cron, day, zone=BERLIN):
    first = datetime(*day, tzinfo=zone).timestamp()
    last = (datetime(*day, tzinfo=zone) + timedelta(days=1)).timestamp()
    schedule, found = times(cron, zone=zone), []
    at = schedule.after(first - 1)
    while at < last:
        found.append(at)
        at = schedule.after(at)
    assert found == sorted(set(found))
    return found


SPRING, AUTUMN = (2026, 3, 29), (2026, 10, 25)  # at 2:00 it is 3:00; at 3:00 it is 2:00


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 59), st.integers(0, 23), st.sampled_from([SPRING, AUTUMN, (2026, 6, 1), (2028, 2, 29)]))
def test_a_time_of_day_comes_once_a_day_whatever_the_clock_does(minute, hour, day):
    found = of_day(f"{minute} {hour} * * *", day)
    shown_at = walked(minute, hour, day, BERLIN)
    assert len(found) == 1
    if shown_at:
        assert found == shown_at[:1]  # the first of two
    else:  # left out: when the clock goes on
        assert shown(found[0], BERLIN) == "2026-03-29 03:00:00"


@pytest.mark.parametrize(("day", "hours"), [(SPRING, 23), (AUTUMN, 25), ((2026, 6, 1), 24)])
def test_every_hour_comes_in_every_hour_that_there_is(day, hours):
    found = of_day("15 * * * *", day)
    assert found == walked(15, None, day, BERLIN)
    assert len(found) == hours
    assert len(of_day("*/15 * * * *", day)) == 4 * hours


def test_the_second_of_two_hours_is_not_before_now():
    """Asked for from within the hour that comes a second time: the next is tomorrow's."""
    second = datetime(2026, 10, 25, 2, 15, fold=1, tzinfo=BERLIN).timestamp()
    assert shown(times("30 2 * * *", zone=BERLIN).after(second), BERLIN) == "2026-10-26 02:30:00"


clocks = st.lists(
    st.one_of(
        st.tuples(st.just("passes"), st.floats(0.5, 3 * HOUR)),
        st.tuples(st.just("set"), st.floats(-2 * HOUR, 2 * HOUR)),  # forward or back
        st.tuples(st.just("away"), st.floats(1.0, 3 * DAY)),  # downtime
    ),
    min_size=1,
    max_size=25,
)
schedules = st.one_of(
    st.builds(lambda cron, jitter: (cron, 0.0, jitter), expressions(), st.sampled_from([0.0, 30.0, 7200.0])),
    st.builds(lambda every, jitter: ("", every, jitter), st.sampled_from([7.5, 60.0, 1000.0, DAY]),
              st.sampled_from([0.0, 3.0, 5000.0])),
)  # fmt: skip


@settings(max_examples=150, deadline=None, database=None)
@given(schedules, clocks, st.booleans(), st.sampled_from([UTC, BERLIN]), st.integers(START, START + YEARS))
def test_what_is_run_under_any_clock(schedule, steps, catch_up, zone, start):
    """Each time at most once, never before it, in their order; on time nothing is left out; after any downtime one run,
    or none; and the next look is never too late."""
    cron, every, jitter = schedule
    ours = times(cron, every=every, jitter=jitter, zone=zone)
    now = handled = float(start)
    runs = []

    def take(now, handled, *, on_time):
        if handled > now + SET_BACK:  # the clock was wrong before: its times come again
            runs.clear()
        seen = look(ours, handled, now, catch_up=catch_up)
        assert seen.handled >= min(handled, now)
        if seen.run is not None:
            assert ours.after(seen.run - 0.001) == pytest.approx(seen.run)  # one of its times
            assert seen.run <= ours.due(seen.run) <= now
            assert ours.due(seen.run) <= seen.run + jitter
            assert not runs or seen.run > runs[-1]
            assert catch_up or now - ours.due(seen.run) <= LATE
            runs.append(seen.run)
        if on_time:
            assert seen.run is not None
            assert seen.missed is None
        if catch_up and seen.missed is not None:
            assert seen.run is not None  # one run for all of them
        assert seen.wake > now or handled > now
        again = look(ours, seen.handled, now, catch_up=catch_up)
        assert (again.run, again.missed, again.wake) == (None, None, seen.wake)
        return seen

    for what, seconds in steps:
        if what != "passes":
            now += seconds
            seen = take(now, handled, on_time=False)
            handled = seen.handled
            continue
        end, rounds = now + seconds, 0
        wake = look(ours, handled, now, catch_up=catch_up).wake
        while wake <= end and rounds < 40:
            now, rounds = max(now, wake), rounds + 1
            expected = ours.after(handled)
            seen = take(now, handled, on_time=True)
            assert seen.run == expected  # none between them was left out
            handled, wake = seen.handled, seen.wake
        if rounds < 40:
            now = end
    assert len(set(runs)) == len(runs)


def test_downtime_is_one_run_with_catch_up_and_none_without():
    hourly, begun = times("0 * * * *"), 1_000_000 * HOUR
    for catch_up, run in ((True, begun + 9 * HOUR), (False, None)):
        seen = look(hourly, begun, begun + 9.5 * HOUR, catch_up=catch_up)
        assert (seen.run, seen.wake) == (run, begun + 10 * HOUR)
        assert seen.missed == begun + (8 if catch_up else 9) * HOUR
    late = look(hourly, begun, begun + HOUR + LATE, catch_up=False)
    assert late.run == begun + HOUR


def test_a_clock_that_was_wrong_does_not_stop_the_schedule():
    hourly, begun = times("0 * * * *"), 1_000_000 * HOUR
    little = look(hourly, begun, begun - SET_BACK, catch_up=False)
    assert (little.run, little.wake) == (None, begun + HOUR)  # its times were run already
    much = look(hourly, begun, begun - 30 * DAY, catch_up=False)
    assert much.wake == begun - 30 * DAY + HOUR


def test_jitter_is_the_same_for_the_same_time_and_differs_by_name():
    one = times("0 * * * *", jitter=600.0)
    two = times("0 * * * *", jitter=600.0, name="other")
    at = one.after(START)
    assert one.due(at) == one.due(at) != two.due(at)
    assert len({math.floor((one.due(at + n * HOUR) - at - n * HOUR) / 60) for n in range(60)}) > 5


# ---- what the engine makes of a time


def job(overlap="skip", **options):
    return service("job", type="oneshot", schedule=Schedule(every=60.0, overlap=overlap), **options)


def running(spec, **life):
    sim = Sim(services(spec), lambda name, n: Life(**{"lives": 10.0, "stop": 1.0, **life}))
    sim.begin()
    assert (sim.state("job"), sim.view("job").due, sim.spawns) == ("stopped", True, [])
    sim.handle(ScheduleDue("job", 60.0))
    sim.run(until=5.0)
    assert sim.state("job") == "starting"
    return sim


@pytest.mark.parametrize(("overlap", "starts"), [("skip", [0.0]), ("queue", [0.0, 10.0]), ("restart", [0.0, 6.0])])
def test_overlap(overlap, starts):
    sim = running(job(overlap))
    sim.handle(ScheduleDue("job", 120.0))
    assert not sim.handle(ScheduleDue("job", 120.0))
    sim.run()
    assert sim.spawned_at("job") == starts
    assert sim.view("job").due


def test_a_run_that_fails_for_good_waits_for_the_next_time():
    sim = running(job(start_limit=2), exit=Exit(1, None))
    sim.run()
    assert len(sim.spawned_at("job")) == 2
    assert (sim.state("job"), sim.view("job").due, sim.told("job")[-1]) == ("stopped", True, "fatal")
    sim.handle(ScheduleDue("job", 120.0))
    assert sim.view("job").failures == 0
    assert sim.state("job") == "starting"


def test_stopped_by_hand_there_is_no_schedule_until_it_is_started():
    sim = running(job())
    sim.stop("job")
    sim.run()
    assert not sim.handle(ScheduleDue("job", 120.0))
    sim.supervisor_dies()
    assert not sim.handle(ScheduleDue("job", 180.0))
    sim.start("job")
    sim.run()
    assert sim.view("job").due
    sim.supervisor_dies()
    assert (sim.view("job").due, sim.view("job").state) == (True, State.STOPPED)


@pytest.mark.parametrize("ended", [False, True])
def test_a_queued_run_is_not_forgotten_by_the_next_supervisor(ended):
    sim = running(job("queue"))
    sim.handle(ScheduleDue("job", 120.0))
    sim.supervisor_dies(ended={"job": Exit(0, None)} if ended else {})
    sim.run()
    assert len(sim.spawned_at("job")) == 2
    assert sim.view("job").scheduled == 120.0
