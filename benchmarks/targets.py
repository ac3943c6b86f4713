"""What the figures are held against.  Nothing here fails: it says met or not met."""

from __future__ import annotations


def judge(sections: dict[str, list[dict]]) -> list[dict]:
    """One entry a target that these sections can answer: name, value, limit, unit, met."""
    found: list[dict] = []

    def rows(section: str, **keys):
        return [r for r in sections.get(section, []) if all(r.get(k) == v for k, v in keys.items())]

    def add(name: str, value: float | None, limit: float, unit: str):
        if value is not None:
            found.append({"name": name, "value": round(value, 3), "limit": limit, "unit": unit, "met": value <= limit})

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
    return found
