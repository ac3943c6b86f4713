"""The tables of the supervisor's figures."""

from __future__ import annotations

from tables import figure, grouped, times


def _ms(value) -> str:
    return "" if value is None else figure(value / 1000, 2)


def restart(rows):
    for (phase,), group in grouped(rows, "phase"):
        yield (
            f"From SIGKILL to the first instruction of the next, {phase}",
            ["", "median ms", "p10", "p99", "worst", "ms above the floor"],
            [[r["what"], *(_ms(r[k]) for k in ("median_us", "p10_us", "p99_us", "max_us", "over_floor_us"))]
             for r in group],
        )  # fmt: skip


def many(rows):
    n = f"{rows[0]['n']:,}"
    yield (
        f"{n} services up",
        ["", "ms from exec to the last one's first instruction", "worst", "÷ floor", "from the supervisor's start",
         "from the first one to the last", "CPU ms"],
        [[r["what"], figure(r["up_ms"]), figure(r["max_up_ms"]), times(r["ratio_floor"]),
          figure(r.get("supervisor_ms"), 0), figure(r["spread_ms"]), figure(r["up_cpu_ms"], 0)] for r in rows],
    )  # fmt: skip
    yield (
        f"{n} services stopped",
        ["", "ms from the request to the last one gone", "worst", "to the end of all", "worst",
         "`holdfast down`, from exec: to the last one gone", "to its end"],
        [[r["what"], *(figure(r.get(k)) for k in ("stop_gone_ms", "max_stop_gone_ms", "stop_end_ms", "max_stop_end_ms",
                                                 "down_gone_ms", "down_end_ms"))] for r in rows],
    )  # fmt: skip


def adopt(rows):
    after = {"supervisor": "of the supervisor, from the start of the next one",
             "all": "of the anchor, and with it the supervisor, from the exec of `holdfast up`"}  # fmt: skip
    for r in rows:
        yield (
            f"{r['n']:,} services adopted after SIGKILL {after[r['what']]}",
            ["", "ms", "worst"],
            [[what, figure(r[key]), figure(r[f"max_{key}"])] for what, key in (
                ("to the first answer", "answer_ms"), ("to the last one adopted", "adopted_ms"),
                ("to the end of start-up, as a client sees it", "settled_ms"),
                ("CPU of the supervisor until then", "cpu_ms"))],
        )  # fmt: skip


def size(rows):
    r = rows[0]
    yield (
        f"Memory (PSS) of holdfast for each of {r['n']:,} services",
        ["", "KiB"],
        [[what, figure(r[key], 2)] for what, key in (
            ("keeper", "keepers_kib"), ("supervisor", "supervisor_kib"), ("anchor", "anchor_kib"), ("all", "all_kib"),
            ("for comparison: the floor", "floor_kib"),
            ("once, without services: supervisor", "base_supervisor_kib"), ("once: anchor", "base_anchor_kib"))],
    )  # fmt: skip


def nothing(rows):
    yield (
        f"{rows[0]['n']:,} services, {rows[0]['seconds']:g} s in which nothing happens",
        ["", "processes", "wake-ups", "CPU ms"],
        [[r["what"], f"{r['processes']:,}", f"{r['wakeups']:,}", figure(r["cpu_ms"], 2)] for r in rows],
    )


def logs(rows):
    yield (
        f"One service writes {rows[0]['bytes'] / (1 << 30):.3g} GiB of 100-byte lines, in blocks",
        ["", "MB/s", "worst", "CPU s/GiB", "÷ floor"],
        [[r["what"], figure(r["mb_per_s"], 0), figure(r["worst_mb_per_s"], 0), figure(r["cpu_s_per_gib"], 2),
          times(r["ratio_floor"])] for r in rows],
    )  # fmt: skip


def grace(rows):
    yield (
        f"A service that ignores TERM is dead after TERM and {rows[0]['grace_ms']} ms of grace, and",
        ["", "median ms", "p10", "p99", "worst"],
        [[r["what"], *(_ms(r[k]) for k in ("median_us", "p10_us", "p99_us", "max_us"))] for r in rows],
    )


def crash(rows):
    yield (
        f"{rows[0]['n']} services that exit at once, default back-off and start budget",
        ["", "% of a core", "starts/s", "answer: median ms", "p99", "worst"],
        [["status every 50 ms" if r["asked"] else "nobody asks", figure(r["cpu_percent"]), figure(r["starts_per_s"]),
          *(figure(r.get(k)) for k in ("median_ms", "p99_ms", "max_ms"))] for r in rows],
    )  # fmt: skip


def status(rows):
    yield (
        f"Commands, with {rows[0]['n']} services running",
        ["", "median ms", "p10", "p99", "worst"],
        [[r["what"], *(_ms(r[k]) for k in ("median_us", "p10_us", "p99_us", "max_us"))] for r in rows],
    )


def scale(rows):
    small, large = (r for r in rows if r["what"] == "life")
    ratio = large["n"] / small["n"]
    yield (
        f"The life of {large['n']:,} services",
        ["", f"{small['n']:,}", f"{large['n']:,}", f"÷ {ratio:g} times the first"],
        [[what, figure(small[key]), figure(large[key]), times(large[key] / small[key] / ratio)] for what, key in (
            ("up: ms from exec to the last one's first instruction", "up_ms"),
            ("ms until a client sees all of them run", "running_ms"),
            ("CPU ms of the supervisor until then", "up_cpu_ms"),
            ("the answer with all services, ms", "list_ms"), ("with one service", "one_ms"),
            ("`holdfast status`, a whole command, ms", "status_ms"),
            ("SIGKILL of the supervisor: ms to the last one adopted", "adopted_ms"),
            ("ms to the end of start-up", "settled_ms"), ("CPU ms of the next supervisor", "cpu_ms"),
            ("stopped: ms from the request to the last one gone", "stop_gone_ms"),
            ("ms to the end of all", "stop_end_ms"),
            ("memory (PSS) of the supervisor, KiB", "supervisor_kib"), ("of the keepers", "keepers_kib"),
            ("of the anchor", "anchor_kib"),
            ("descriptors of the supervisor", "descriptors"), ("processes, the services among them", "processes"))],
    )  # fmt: skip
    yield (
        "What ends first: services that each limit of this machine has room for",
        ["", "limit", "a service takes", "services"],
        [[f"{r['of']}: {r['limit']}", f"{r['allowed']:,}", figure(r["each"], 2), f"{r['services']:,}"]
         for r in rows if r["what"] == "wall"],
    )  # fmt: skip
    (beyond,) = (r for r in rows if r["what"] == "beyond")
    yield (
        f"Beyond it: {beyond['n']} services with {beyond['descriptors']} descriptors",
        ["", ""],
        [["run", f"{beyond['running']}"], ["of the others is said", beyond["reason"]]],
    )


MAKERS = {
    "restart": restart,
    "many": many,
    "adopt": adopt,
    "size": size,
    "nothing": nothing,
    "logs": logs,
    "grace": grace,
    "crash": crash,
    "status": status,
    "scale": scale,
}
