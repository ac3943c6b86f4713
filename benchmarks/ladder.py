"""The rungs of the ladder (docs/notifiers.md) and communicate beside the standard library.

    python benchmarks/ladder.py [--quick] [--section NAME]... [--json FILE]

As library.py; each rung has a process of its own, for a process has one rung.
"""

from __future__ import annotations

import random
import sys
import time
from statistics import median

from lab import Lab, Series, Worker, percentile, say, take_turns
from library import parser, run
from targets import judge_ladder

from holdfast.process.notify import RUNGS

LEAST_MS, MOST_MS = 20, 200
APART = 0.004  # seconds between the starts of one round, and so between the ends: nobody ends while another does


def contestants(lab: Lab) -> dict[str, Worker]:
    """The standard library, and every rung that this machine has."""
    found = {"subprocess": lab.worker(False)}
    for rung in RUNGS:
        worker = lab.worker(False, rung=rung)
        try:
            worker.begin("rung")
            worker.result()
        except RuntimeError as error:
            say(f"{rung} is not measured: {error}")
            worker.close()
        else:
            found[rung] = worker
    return found


def adapter(rung: str) -> str:
    return "popen" if rung == "subprocess" else "direct"


def latency(lab: Lab) -> list[dict]:
    """From a child's end until wait(timeout=10) has returned.  All at the same time, children of the same life."""
    workers = contestants(lab)
    rounds = 4 if lab.quick else 220
    say(f"notice by {', '.join(workers)}: {rounds} children each")
    lives = random.Random(7)
    delays: dict[str, list[float]] = {rung: [] for rung in workers}
    order = list(workers)
    for number in range(1 + rounds):
        order.append(order.pop(0))
        life = lives.randint(LEAST_MS, MOST_MS)
        for rung in order:
            workers[rung].begin("notice", adapter=adapter(rung), ms=life, n=1)
            time.sleep(APART)
        for rung in order:
            samples = workers[rung].result()
            if number:  # the first is to warm up
                delays[rung] += samples
    for worker in workers.values():
        worker.close()
    beside = delays["subprocess"]
    return [
        {
            "rung": rung, "least_ms": LEAST_MS, "most_ms": MOST_MS, "samples": len(values),
            "median_us": round(median(values) / 1000, 2), "p99_us": round(percentile(values, 99) / 1000, 2),
            "max_us": round(max(values) / 1000, 2), "faster_median": round(median(beside) / median(values), 3),
            "faster_p99": round(percentile(beside, 99) / percentile(values, 99), 3),
        }
        for rung, values in delays.items()
    ]  # fmt: skip


def starts(lab: Lab) -> list[dict]:
    """Starts per second, each waited for before the next."""
    workers = contestants(lab)
    rounds, batch = (2, 3) if lab.quick else (20, 25)
    say(f"starts by {', '.join(workers)}")
    series = [
        Series({"rung": rung}, lambda r=rung, w=worker: w.ask("starts", adapter=adapter(r), n=batch), [])
        for rung, worker in workers.items()
    ]
    take_turns(series, rounds)
    for worker in workers.values():
        worker.close()
    return [
        each.keys | {"per_s": round(1e9 * batch / median(each.medians), 1), "faster": faster(each, series[0])}
        for each in series
    ]


def communicate(lab: Lab) -> list[dict]:
    """Throughput of communicate: what is read, what is written, and both by way of cat."""
    size, rounds = (1 << 20, 2) if lab.quick else (256 << 20, 5)
    worker = lab.worker(False)
    rows = []
    for what in ("stdout", "stdin", "both"):
        say(f"communicate, {what}")
        series = [
            Series(
                {"adapter": how, "what": what, "bytes": size},
                lambda h=how, w=what: worker.ask("communicate", how=h, what=w, size=size),
                [],
            )
            for how in ("subprocess", "holdfast", "Popen")
        ]
        take_turns(series, rounds)
        rows += [
            each.keys
            | {
                "mb_per_s": round(1000 * size / median(each.medians), 1),
                "least_mb_per_s": round(1000 * size / max(each.medians), 1),
                "faster": faster(each, series[0]),
            }
            for each in series
        ]
    worker.close()
    return rows


def faster(one: Series, than: Series) -> float:
    """Each round against the same round, as everywhere here."""
    return round(median(b / a for a, b in zip(one.medians, than.medians, strict=True)), 3)


SECTIONS = {"latency": latency, "starts": starts, "communicate": communicate}

if __name__ == "__main__":
    sys.exit(run(parser(__doc__, SECTIONS).parse_args(), "ladder", SECTIONS, judge_ladder))
