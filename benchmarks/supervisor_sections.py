"""The sections of the supervisor benchmark: each takes the lab and returns rows (flat dictionaries)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from statistics import median

from lab import Lab, Series, percentile, row, say, take_turns
from supervised import (
    AT_ONCE,
    BEGAN,
    LIMIT,
    TERM,
    WRITING,
    WRITTEN,
    BareFloor,
    Floor,
    Holdfast,
    own_cpu,
    pss,
    stat,
    switches,
    tree_cpu,
)

from holdfast.client import NoSupervisor

NEVER = 'restart = "never"\n'


def restart(lab: Lab) -> list[dict]:
    """From SIGKILL of a service to the first instruction of the next."""
    rows: list[dict] = []
    with Floor(lab) as floor, Holdfast(lab) as holdfast:
        holdfast.settled()
        last = {each: each.ear.until(1)[0] for each in (floor, holdfast)}

        def batch(each, pause: float, n: int) -> list[int]:
            found = []
            for _ in range(n):
                time.sleep(pause)
                killed = each.kill(last[each])
                last[each] = each.ear.until(1)[0]
                found.append(last[each].ns - killed)
            return found

        for phase, pause, rounds, n in (("settled", 0.1, 40, 1), ("hot", 0.0, 20, 10)):
            say(f"restart, {phase}")
            if lab.quick:
                rounds, n = 2, 1
            series = [
                Series({"what": each.name, "phase": phase}, lambda e=each, p=pause, k=n: batch(e, p, k), [])
                for each in (floor, holdfast)
            ]
            take_turns(series, rounds)
            found = [row(each, floor=series[0]) for each in series]
            for each in found:
                each["over_floor_us"] = round(each["median_us"] - found[0]["median_us"], 2)
            rows += found
    return rows


def many(lab: Lab) -> list[dict]:
    """A thousand services up, then stopped, round after round."""
    n, rounds = (20, 2) if lab.quick else (1000, 6)
    samples: dict[str, list[dict]] = {each.name: [] for each in (Floor, BareFloor, Holdfast)}
    for number in range(rounds):
        for kind in (Floor, BareFloor, Holdfast):
            say(f"{n} services up and stopped, {kind.name}, {number + 1} of {rounds}")
            with kind(lab, count=n) as each:
                words = each.ear.until(n, pause=0.005)
                first, last = min(w.ns for w in words), max(w.ns for w in words)
                sample = {"up_ms": (last - each.exec_ns) / 1e6, "spread_ms": (last - first) / 1e6}
                if kind is Holdfast:
                    pids = each.processes()
                    began = int(stat(pids["supervisor"][0])[19]) * 1000 / os.sysconf("SC_CLK_TCK")
                    sample["supervisor_ms"] = last / 1e6 - began  # the kernel notes that moment in ticks only
                    sample["up_cpu_ms"] = 1000 * own_cpu([*pids["supervisor"], *pids["anchor"], *pids["keepers"]])
                    time.sleep(0.3)
                    by_command = number % 2 == 1
                    sample |= stop_command(lab, each) if by_command else stop_request(each)
                else:
                    sample["up_cpu_ms"] = 1000 * own_cpu(each.processes())
                    sample |= stop_request(each)
            samples[kind.name].append(sample)
    rows = []
    for name, found in samples.items():
        result: dict = {"what": name, "n": n, "rounds": rounds}
        for key in sorted({key for sample in found for key in sample}):
            values = [sample[key] for sample in found if key in sample]
            result[key] = round(median(values), 2)
            result[f"max_{key}"] = round(max(values), 2)
        result["ratio_floor"] = round(
            median(a["up_ms"] / b["up_ms"] for a, b in zip(found, samples["floor"], strict=True)), 3
        )
        rows.append(result)
    return rows


def stop_request(each) -> dict:
    asked = time.monotonic_ns()
    each.stop()
    gone = each.ear.hangup()
    return {"stop_gone_ms": (gone - asked) / 1e6, "stop_end_ms": (each.ended() - asked) / 1e6}


def stop_command(lab: Lab, each: Holdfast) -> dict:
    asked = time.monotonic_ns()
    down = subprocess.Popen([*lab.holdfast, "down", "--run-dir", each.run_dir], stdout=subprocess.DEVNULL)
    gone = each.ear.hangup()
    down.wait()
    return {"down_gone_ms": (gone - asked) / 1e6, "down_end_ms": (time.monotonic_ns() - asked) / 1e6}


def size(lab: Lab) -> list[dict]:
    """Memory of supervisor, anchor and keepers: with many services that have written lines, less with none alive."""
    n = 20 if lab.quick else 1000
    say(f"memory with {n} services and with none")
    share = {}
    for count, mode in ((n, ("l", "20")), (0, ("x",))):
        # A configuration needs a service: one that has ended, and so has no keeper.
        with Holdfast(lab, *mode, count=count or 1, settings=AT_ONCE if count else NEVER) as holdfast:
            holdfast.ear.until(count or 1, pause=0.01)
            quiet(holdfast)
            if not count and holdfast.processes()["keepers"]:
                raise RuntimeError("a keeper is there without a service")
            share[count] = {what: pss(pids) for what, pids in holdfast.processes().items()}
    with Floor(lab, "l", "20", count=n) as floor:
        floor.ear.until(n, pause=0.01)
        floor_pss = pss(floor.processes())
    result = {f"{what}_kib": round((share[n][what] - share[0][what]) / n, 2) for what in share[n]}
    return [
        {"n": n}
        | result
        | {"all_kib": round(sum(result.values()), 2), "floor_kib": round(floor_pss / n, 2)}
        | {f"base_{what}_kib": share[0][what] for what in ("supervisor", "anchor")}
    ]


def quiet(holdfast: Holdfast) -> None:
    """Wait until none of its processes has been woken for half a second (ten seconds at most)."""
    for _ in range(20):
        pids = [pid for group in holdfast.processes().values() for pid in group]  # asks the supervisor, so it wakes it
        with contextlib.suppress(FileNotFoundError):  # a keeper that was just ending
            before = switches(pids)
            time.sleep(0.5)
            if switches(pids) == before:
                return


def nothing(lab: Lab) -> list[dict]:
    """Wake-ups and CPU of everything that is holdfast while nothing happens."""
    n, seconds = (5, 1.0) if lab.quick else (1000, 10.0)
    say(f"{n} services that do nothing, {seconds:g} s")
    with Holdfast(lab, count=n) as holdfast:
        holdfast.ear.until(n, pause=0.01)
        quiet(holdfast)
        groups = holdfast.processes()
        time.sleep(1)  # after this very question
        before = {what: (switches(pids), own_cpu(pids)) for what, pids in groups.items()}
        time.sleep(seconds)
        after = {what: (switches(pids), own_cpu(pids)) for what, pids in groups.items()}
    return [
        {
            "what": what,
            "n": n,
            "processes": len(groups[what]),
            "seconds": seconds,
            "wakeups": after[what][0] - before[what][0],
            "cpu_ms": round(1000 * (after[what][1] - before[what][1]), 3),
        }
        for what in groups
    ]


def logs(lab: Lab) -> list[dict]:
    """A service writes blocks of 100-byte lines as fast as it can; from its first write to its last."""
    amount, rounds = (4 << 20, 1) if lab.quick else (1 << 30, 5)
    arguments = (lab, "w", "GO", str(amount))
    found: dict[str, list[tuple[float, float]]] = {}
    with Floor(*arguments) as floor, Holdfast(*arguments) as plain, Holdfast(*arguments, timestamps=True) as stamped:
        writers = {
            "floor": (floor, floor.processes()),
            "holdfast": (plain, plain.processes()["keepers"]),
            "holdfast, time stamps": (stamped, stamped.processes()["keepers"]),
        }
        for number in range(1 + rounds):  # the first is thrown away
            for what, (each, pids) in writers.items():
                say(f"logs, {what}, {number} of {rounds}")
                before = own_cpu(pids)
                each.go()
                began, ended = each.ear.until(1, WRITING)[0], each.ear.until(1, WRITTEN)[0]
                seconds = (ended.ns - began.ns) / 1e9
                if number:
                    found.setdefault(what, []).append((seconds, own_cpu(pids) - before))
    return [
        {
            "what": what,
            "bytes": amount,
            "rounds": rounds,
            "mb_per_s": round(median(amount / 1e6 / seconds for seconds, _ in samples), 1),
            "worst_mb_per_s": round(min(amount / 1e6 / seconds for seconds, _ in samples), 1),
            "cpu_s_per_gib": round(median(cpu * (1 << 30) / amount for _, cpu in samples), 3),
            "ratio_floor": round(median(f[0] / s[0] for s, f in zip(samples, found["floor"], strict=True)), 3),
        }
        for what, samples in found.items()
    ]


def grace(lab: Lab) -> list[dict]:
    """A service that ignores TERM: how much later than TERM plus the grace it dies."""
    n, grace_ms = (1, 50) if lab.quick else (20, 250)
    say(f"grace, {n} times {grace_ms} ms")
    with Floor(lab, "g", grace_ms=grace_ms) as floor, Holdfast(lab, "g", grace_ms=grace_ms) as holdfast:
        holdfast.settled()

        def batch(each, ask) -> list[int]:
            service = os.pidfd_open(each.ear.until(1, BEGAN)[0].pid)
            try:
                ask()
                term = each.ear.until(1, TERM)[0]
                poll = select.poll()
                poll.register(service, select.POLLIN)
                if not poll.poll(60_000):
                    raise RuntimeError(f"{each.name} does not kill")
                late = time.monotonic_ns() - term.ns - grace_ms * 1_000_000
            finally:
                os.close(service)
            if each is holdfast:
                client.stop("s0")  # until nothing is left of it
                client.start("s0")
            return [late]

        with holdfast.client() as client:
            series = [
                Series({"what": "floor"}, lambda: batch(floor, floor.restart), []),
                Series({"what": "holdfast"}, lambda: batch(holdfast, lambda: client.stop("s0", wait=False)), []),
            ]
            take_turns(series, n, 0)
    return [row(each, floor=None) | {"grace_ms": grace_ms} for each in series]


def crash(lab: Lab) -> list[dict]:
    """Services that exit at once, with default back-off and start budget, and somebody who asks meanwhile."""
    n, seconds = (10, 0.5) if lab.quick else (200, 10.0)
    rows = []
    for asked in (False, True):
        say(f"{n} services that exit at once, {seconds:g} s{', status every 50 ms' if asked else ''}")
        with Holdfast(lab, "x", count=n, settings='restart = "always"\nstart_limit = 0\n', places="") as holdfast:
            holdfast.ear.keep_open()
            holdfast.ear.until(n, pause=0.005)
            holdfast.settled()
            anchor = holdfast.process.pid
            before, began = tree_cpu(anchor), time.monotonic()
            answers = ask(holdfast, seconds) if asked else []
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            cpu, took = tree_cpu(anchor) - before, time.monotonic() - began
            starts = len(holdfast.ear.all())
        rows.append(
            {"n": n, "asked": asked, "cpu_percent": round(100 * cpu / took, 2), "starts_per_s": round(starts / took, 1)}
            | ({} if not asked else {
                "answers": len(answers),
                "median_ms": round(median(answers), 2),
                "p99_ms": round(percentile(answers, 99), 2),
                "max_ms": round(max(answers), 2),
            })
        )  # fmt: skip
    return rows


def ask(holdfast: Holdfast, seconds: float) -> list[float]:
    """The status of all services every 50 ms; how long each answer took, in ms."""
    found, began = [], time.monotonic()
    with holdfast.client() as client:
        while (now := time.monotonic()) < began + seconds:
            client.services()
            found.append((time.monotonic() - now) * 1000)
            time.sleep(max(0.0, now + 0.05 - time.monotonic()))
    return found


def status(lab: Lab) -> list[dict]:
    """`holdfast status` of a hundred services as a whole command."""
    n, rounds = (5, 2) if lab.quick else (100, 21)
    say(f"holdfast status of {n} services")
    with Holdfast(lab, count=n) as holdfast, holdfast.client() as client:
        holdfast.ear.until(n, pause=0.005)
        holdfast.settled()

        def command(argv: list[str]) -> list[int]:
            began = time.monotonic_ns()
            subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
            return [time.monotonic_ns() - began]

        def answer() -> list[int]:
            began = time.monotonic_ns()
            client.services()
            return [time.monotonic_ns() - began]

        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "holdfast --version": [*lab.holdfast, "--version"],
            "holdfast status": [*lab.holdfast, "status", "--run-dir", holdfast.run_dir],
            "holdfast status --json": [*lab.holdfast, "status", "--json", "--run-dir", holdfast.run_dir],
        }
        series = [Series({"what": what}, lambda v=argv: command(v), []) for what, argv in commands.items()]
        series.append(Series({"what": "the answer of the API alone"}, answer, []))
        take_turns(series, rounds)
    return [row(each) | {"n": n} for each in series]


def adopt(lab: Lab) -> list[dict]:
    """A thousand services run on while who supervises is killed: from the next one's start until it has them all."""
    n, rounds = (20, 2) if lab.quick else (1000, 10)
    rows = []
    with Holdfast(lab, count=n) as holdfast, holdfast.client() as client:
        pids = {word.pid for word in holdfast.ear.until(n, pause=0.005)}
        for what in ("supervisor", "all"):
            found: dict[str, list[float]] = {}
            for number in range(rounds):
                say(f"{n} services adopted after SIGKILL: {what}, {number + 1} of {rounds}")
                for key, value in adoption(holdfast, client, n, what).items():
                    found.setdefault(key, []).append(1000 * value)
            row: dict = {"what": what, "n": n, "rounds": rounds}
            for key, values in found.items():
                row |= {f"{key}_ms": round(median(values), 1), f"max_{key}_ms": round(max(values), 1)}
            rows.append(row)
        if {service["pid"] for service in client.services()} != pids:
            raise RuntimeError("a service was started again")
    return rows


def adoption(holdfast: Holdfast, client, n: int, what: str) -> dict[str, float]:
    """Once, in seconds.  The supervisor alone is started again by its anchor; after all, `holdfast up` is."""
    before = holdfast.settled()
    supervisor = os.pidfd_open(before["pid"])
    began = time.time()
    if what == "all":
        holdfast.kill_anchor()
        if not select.select([supervisor], [], [], LIMIT)[0]:
            raise RuntimeError("a supervisor has outlived its anchor")
        began = time.time()
        holdfast.up()
    else:
        signal.pidfd_send_signal(supervisor, signal.SIGKILL)
    os.close(supervisor)
    answered = None
    while True:
        try:
            status = client.supervisor()
        except NoSupervisor:  # the last one's socket, still
            time.sleep(0.005)
            continue
        if status["pid"] != before["pid"]:
            answered = answered or time.time()
            if status["state"] != "adopting":
                break
        time.sleep(0.005)
    settled = time.time()
    with client.events(after=before["last_event"]) as events:
        last = max(next(e["time"] for e in events if e["event"] == "adopted") for _ in range(n))
    if what == "supervisor":
        # The anchor starts the next one at once; the kernel notes that moment in ticks only, and not after it.
        began = max(began, began_s(status["pid"]) + time.time() - time.monotonic())
    return {
        "answer": answered - began,
        "adopted": last - began,
        "settled": settled - began,
        "cpu": own_cpu([status["pid"]]),
    }


def began_s(pid: int) -> float:
    """When a process was made, in seconds of CLOCK_MONOTONIC, or up to a tick earlier."""
    return int(stat(pid)[19]) / os.sysconf("SC_CLK_TCK")


SECTIONS = {
    "restart": restart,
    "many": many,
    "adopt": adopt,
    "size": size,
    "nothing": nothing,
    "logs": logs,
    "grace": grace,
    "crash": crash,
    "status": status,
}
