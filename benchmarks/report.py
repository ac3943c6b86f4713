"""Tables of the figures: text for a terminal, Markdown for docs/benchmarks.md.

    python benchmarks/report.py    writes the figures in results/ into docs/benchmarks.md
"""

from __future__ import annotations

import json
import os

import supervisor_tables
from adapters import NAMES
from tables import Table, figure, grouped, times

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = {what: os.path.join(HERE, "results", f"{what}.json") for what in ("library", "supervisor", "scale", "ladder")}
DOCUMENT = os.path.join(os.path.dirname(HERE), "docs", "benchmarks.md")
BEGIN, END = "<!-- figures of the {}: made by benchmarks/report.py -->", "<!-- end of the {}'s figures -->"


def tables(results: dict) -> list[Table]:
    found: list[Table] = []
    targets = results["targets"]
    if targets:
        found.append((
            "Targets (pinned to one core)" if results["what"] == "library" else "Targets",
            ["target", "limit", "measured", ""],
            [[t["name"], f"{'≥' if t.get('least') else '≤'} {t['limit']:g} {t['unit']}".strip(),
              f"{t['value']:g} {t['unit']}".strip(), "met" if t["met"] else "NOT MET"] for t in targets],
        ))  # fmt: skip
    for name, rows in results["sections"].items():
        if rows:
            found += MAKERS[name](rows)
    return found


def pinned(value: bool) -> str:
    return "pinned to one core" if value else "not pinned"


def _times_us(row: dict) -> list[str]:
    return [figure(row["median_us"]), figure(row["p10_us"]), figure(row["p99_us"])]


def spawn(rows):
    for (where, program), group in grouped(rows, "pinned", "program"):
        yield (
            f"Spawn + wait, {program}, {pinned(where)}",
            ["", "median µs", "p10", "p99", "÷ Popen", "÷ C floor"],
            [[NAMES[r["adapter"]], *_times_us(r), times(r["ratio_popen"]), times(r["ratio_floor"])] for r in group],
        )


def memory(rows):
    for (where, program), group in grouped(rows, "pinned", "program"):
        size = group[0]["memory"] / (1 << 30)
        yield (
            f"Spawn + wait with {size:.3g} GiB resident, {program}, {pinned(where)}",
            ["", "median µs without", "with", "p10", "p99", "with ÷ without"],
            [[NAMES[r["adapter"]], figure(r["median_small_us"]), *_times_us(r), times(r["ratio_small"])]
             for r in group],
        )  # fmt: skip


def alive(rows):
    for (where, phase), group in grouped(rows, "pinned", "phase"):
        what = "start all" if phase == "start" else "TERM to all, wait for all"
        yield (
            f"{group[0]['n']:,} alive at once: {what}, {pinned(where)}",
            ["", "ms in all", "µs each", "÷ Popen", "÷ C floor"],
            [[NAMES[r["adapter"]], figure(r["median_us"] / 1000), figure(r["median_us"] / r["n"]),
              times(r["ratio_popen"]), times(r["ratio_floor"])] for r in group],
        )  # fmt: skip


def notice(rows):
    for (where, life), group in grouped(rows, "pinned", "life_ms"):
        yield (
            f"From exit to the return of wait(timeout=10), after {life} ms of life, {pinned(where)}",
            ["", "median µs", "p10", "p99", "worst", "÷ Popen", "÷ C floor"],
            [[NAMES[r["adapter"]], *_times_us(r), figure(r["max_us"]), times(r["ratio_popen"]),
              times(r["ratio_floor"])] for r in group],
        )  # fmt: skip


def idle(rows):
    names = {"first": "at first", "later": "afterwards"}
    yield (
        f"{rows[0]['n']} waits in progress, a thread each, wait(timeout=3600)",
        ["", "window", "wake-ups of the owner /s", "its CPU %", "wake-ups of the keepers /s", "their CPU %"],
        [[NAMES[r["adapter"]], names[r["window"]], figure(r["owner_wakeups"] / r["seconds"]),
          figure(100 * r["owner_cpu_seconds"] / r["seconds"], 2), figure(r["keeper_wakeups"] / r["seconds"]),
          figure(100 * r["keeper_cpu_seconds"] / r["seconds"], 2)] for r in rows],
    )  # fmt: skip


def keeper(rows):
    r = rows[0]
    lines = [[what, f"{r[key]:g} KiB"] for what, key in (
        ("private memory (as smaps_rollup has it)", "private_kib"), ("of it written to", "private_dirty_kib"),
        ("share of what is shared and private (PSS)", "pss_kib"), ("resident (RSS)", "rss_kib"))]  # fmt: skip
    if "keeper_total_bytes" in r:
        floor = r["floor"]["total_bytes"] - r["floor"]["owner_bytes"]
        lines += [
            ["all in all, with the kernel's memory", f"{r['keeper_total_bytes'] / 1000:.1f} KB"],
            ["of it kernel memory", f"{r['keeper_kernel_bytes'] / 1000:.1f} KB"],
            ["for comparison: the one-page program blocked in ppoll, all in all", f"{floor / 1000:.1f} KB"],
            ["for comparison: the owner's own memory for a handle", f"{r['spawn']['owner_bytes'] / 1000:.1f} KB"],
        ]
    yield f"A keeper that holds an idle process ({r['n']:,} alive)", ["", ""], lines


def _commands(title: str, base: str):
    columns = {"median_us": "median ms", "p10_us": "p10", "p99_us": "p99", "over_base_us": f"ms over {base}",
               "over_python_us": "ms over python -c pass"}  # fmt: skip
    if base == "python -c pass":
        del columns["over_base_us"]

    def make(rows):
        for (where,), group in grouped(rows, "pinned"):
            yield (
                f"{title}, {pinned(where)}",
                ["", *columns.values()],
                [[r["what"], *(figure(r[k] / 1000, 2) for k in columns)] for r in group],
            )

    return make


def capture(rows):
    names = {"subprocess": "subprocess.run", "holdfast": "holdfast.run", "runner": "holdfast.Runner().run"}
    for (where, size), group in grouped(rows, "pinned", "bytes"):
        label = f"{size >> 20} MiB" if size >> 20 else f"{size} bytes"
        yield (
            f"run(capture_output=True), {label}, {pinned(where)}",
            ["", "median µs", "p10", "p99", "÷ subprocess.run"],
            [[names[r["adapter"]], *_times_us(r), times(r["ratio_popen"])] for r in group],
        )


def _rung(row: dict) -> str:
    return "subprocess.Popen" if row["rung"] == "subprocess" else row["rung"]


def latency(rows):
    r = rows[0]
    yield (
        f"From exit to the return of wait(timeout=10), after {r['least_ms']} to {r['most_ms']} ms of life, by rung",
        ["", "median µs", "p99", "worst", "median: faster than Popen", "p99: faster"],
        [[_rung(r), figure(r["median_us"]), figure(r["p99_us"]), figure(r["max_us"]), times(r["faster_median"]),
          times(r["faster_p99"])] for r in rows],
    )  # fmt: skip


def starts(rows):
    yield (
        "Start + wait(timeout=10) of a program that ends at once, one after another, by rung",
        ["", "per second", "over Popen"],
        [[_rung(r), figure(r["per_s"], 0), times(r["faster"])] for r in rows],
    )


def communicate(rows):
    names = {"subprocess": "subprocess.Popen", "holdfast": "holdfast.spawn", "Popen": "holdfast.Popen"}
    for (what, size), group in grouped(rows, "what", "bytes"):
        way = {"stdout": "read", "stdin": "written", "both": "written and read back"}[what]
        yield (
            f"communicate, {size >> 20:,} MiB {way}",
            ["", "MB/s", "slowest", "over subprocess.Popen"],
            [[names[r["adapter"]], figure(r["mb_per_s"], 0), figure(r["least_mb_per_s"], 0), times(r["faster"])]
             for r in group],
        )  # fmt: skip


MAKERS = {
    "spawn": spawn,
    "memory": memory,
    "alive": alive,
    "notice": notice,
    "idle": idle,
    "keeper": keeper,
    "imports": _commands("A whole interpreter with an import", "python -c pass"),
    "command": _commands("holdfast run", "/bin/true"),
    "capture": capture,
    "latency": latency,
    "starts": starts,
    "communicate": communicate,
} | supervisor_tables.MAKERS


def machine(results: dict) -> str:
    m = results["machine"]
    return (
        f"{m['cpus']} x {m['cpu']}, {m['memory_gib']:g} GiB, Linux {m['kernel']}, Python {m['python']}, "
        f"holdfast {m['holdfast']}, keeper {m['keeper']}; load before {m['load_before']:g}, {m['date']}"
        + (" (--quick: figures of no worth)" if results["quick"] else "")
    )


def as_text(results: dict) -> str:
    out = [machine(results), *(f"note: {note}" for note in results["notes"])]
    for title, head, lines in tables(results):
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        out += ["", title]
        for line in [head, *lines] if any(head) else lines:
            cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            out.append("  " + "  ".join(cells).rstrip())
    return "\n".join(out)


def as_markdown(results: dict) -> str:
    out = [f"Machine: {machine(results)}.", *(f"\nNote: {note}." for note in results["notes"])]
    for title, head, lines in tables(results):
        out += ["", f"### {title}", "", f"| {' | '.join(head)} |"]
        out.append("|" + "|".join([" --- ", *[" ---: "] * (len(head) - 1)]) + "|")
        out += [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join(out)


def main() -> None:
    with open(DOCUMENT, encoding="utf-8") as file:
        text = file.read()
    for what, path in RESULTS.items():
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
        begin, end = BEGIN.format(what), END.format(what)
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{as_markdown(results)}\n\n{end}{after}"
    with open(DOCUMENT, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
