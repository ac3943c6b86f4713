"""What the figures are held against.  Nothing here fails: it says met or not met."""

from __future__ import annotations


class Targets:
    def __init__(self, sections: dict[str, list[dict]]):
        self.sections = sections
        self.found: list[dict] = []

    def rows(self, section: str, **keys) -> list[dict]:
        return [r for r in self.sections.get(section, []) if all(r.get(k) == v for k, v in keys.items())]

    def add(self, name: str, value: float | None, limit: float, unit: str, least: bool = False) -> None:
        """`least`: the limit is a lower one."""
        if value is not None:
            met = value >= limit if least else value <= limit
            entry = {"name": name, "value": round(value, 3), "limit": limit, "unit": unit, "met": met}
            self.found.append(entry | ({"least": True} if least else {}))


def judge(sections: dict[str, list[dict]]) -> list[dict]:
    """One entry a target that these sections can answer: name, value, limit, unit, met."""
    targets = Targets(sections)
    rows, add = targets.rows, targets.add
    for program in ("one page", "/bin/true"):
        for r in rows("spawn", pinned=True, program=program, adapter="runner"):
            add(f"Runner, {program}, over subprocess.Popen", r["ratio_popen"], 1.0, "x")
    for r in rows("spawn", pinned=True, program="/bin/true", adapter="spawn"):
        add("spawn, /bin/true, over subprocess.Popen", r["ratio_popen"], 1.15, "x")
    popen = rows("spawn", pinned=True, program="one page", adapter="popen")
    for r, p in zip(rows("spawn", pinned=True, program="one page", adapter="spawn"), popen, strict=False):
        add("spawn, one page, above subprocess.Popen", r["median_us"] - p["median_us"], 100.0, "us")
    for r in rows("memory", pinned=True):
        if r["adapter"] in ("spawn", "runner"):
            gib = r["memory"] / (1 << 30)
            add(f"{r['adapter']}, {r['program']}, with {gib:.3g} GiB resident over without", r["ratio_small"], 1.1, "x")
    for adapter in ("spawn", "runner"):
        noticed = rows("notice", pinned=True, adapter=adapter)
        for r in noticed:
            add(f"{adapter}: notice after {r['life_ms']} ms of life, median over C floor", r["ratio_floor"], 2.0, "x")
        if noticed:
            add(f"{adapter}: notice, worst of all", max(r["max_us"] for r in noticed) / 1000, 5.0, "ms")
        for r in rows("idle", adapter=adapter, window="later"):
            add(f"{adapter}: wake-ups of {r['n']} waits", r["owner_wakeups"] + r["keeper_wakeups"], 0, "")
    for r in sections.get("keeper", []):
        add("keeper, private memory", r["private_kib"], 20.0, "KiB")
        if "keeper_total_bytes" in r:
            add("keeper, all in all", r["keeper_total_bytes"] / 1000, 80.0, "KB")
    for r in rows("imports", pinned=True, what="import holdfast"):
        add("import holdfast, over a bare interpreter", r["over_python_us"] / 1000, 10.0, "ms")
    return targets.found


def judge_ladder(sections: dict[str, list[dict]]) -> list[dict]:
    """The same for the rungs of the ladder."""
    targets = Targets(sections)
    rows, add = targets.rows, targets.add
    for r in rows("latency"):
        if r["rung"] == "polling":
            add("polling: notice, median, faster than subprocess.Popen", r["faster_median"], 1.0, "x", least=True)
            add("polling: notice, p99, faster than subprocess.Popen", r["faster_p99"], 1.0, "x", least=True)
        elif r["rung"] != "subprocess":
            add(f"{r['rung']}: notice, p99, faster than subprocess.Popen", r["faster_p99"], 20.0, "x", least=True)
    for r in rows("communicate"):
        if r["adapter"] != "subprocess":
            name = {"holdfast": "spawn(...)", "Popen": "holdfast.Popen"}[r["adapter"]]
            same = r["adapter"] == "Popen" and r["what"] != "both"  # the standard library's own code, and noise
            add(f"{name}.communicate, {r['what']}, throughput over subprocess.Popen", r["faster"],
                0.95 if same else 1.0, "x", least=True)  # fmt: skip
    return targets.found


def judge_supervisor(sections: dict[str, list[dict]]) -> list[dict]:
    """The same for the supervisor."""
    targets = Targets(sections)
    rows, add = targets.rows, targets.add
    for r in rows("restart", what="holdfast"):
        add(f"SIGKILL to the next one's first instruction, {r['phase']}, median above the floor",
            r["over_floor_us"] / 1000, 1.0, "ms")  # fmt: skip
    for r in rows("many", what="holdfast"):
        add(f"{r['n']:,} services up, over the floor", r["ratio_floor"], 5.0, "x")
        add(f"{r['n']:,} services stopped, from the request to the last one gone", r["stop_gone_ms"] / 1000, 0.2, "s")
        add("the same, to the end of supervisor and anchor", r["stop_end_ms"] / 1000, 0.2, "s")
        if "down_end_ms" in r:
            add("the same by `holdfast down`, a whole command", r["down_end_ms"] / 1000, 0.2, "s")
    for r in rows("adopt"):
        start = "the start of the next supervisor" if r["what"] == "supervisor" else "the exec of `holdfast up`"
        add(f"{r['n']:,} services adopted, from {start}, worst", r["max_adopted_ms"] / 1000, 2.0, "s")
    for r in rows("size"):
        add("memory (PSS) of holdfast, each service", r["all_kib"], 20.0, "KiB")
    for r in rows("nothing"):
        add(f"wake-ups of {r['what']} in {r['seconds']:g} s when nothing happens", r["wakeups"], 0, "")
        add(f"CPU of {r['what']} meanwhile", r["cpu_ms"], 0, "ms")
    for what, limit in (("holdfast", 1100.0), ("holdfast, time stamps", 570.0)):
        for r in rows("logs", what=what):
            add(f"logs, {what}", r["mb_per_s"], limit, "MB/s", least=True)
    for r in rows("grace", what="holdfast"):
        add("KILL after the end of the grace, worst", r["max_us"] / 1000, 5.0, "ms")
    for r in rows("crash"):
        asked = ", asked for its status every 50 ms" if r["asked"] else ""
        add(f"{r['n']} crash-loopers{asked}", r["cpu_percent"], 10.0, "% of a core")
        if r["asked"]:
            add("status meanwhile, worst answer", r["max_ms"], 100.0, "ms")
    for r in rows("status", what="holdfast status"):
        add(f"holdfast status of {r['n']} services, whole command, median", r["median_us"] / 1000, 100.0, "ms")
    return targets.found
