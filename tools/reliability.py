"""The table of docs/reliability.md, from the reports of `make chaos` in tests/chaos/results/.

    python tools/reliability.py
"""

from __future__ import annotations

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tests" / "chaos" / "results"
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: made by tools/reliability.py -->", "<!-- end -->"


def reports() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def counted(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in numbers.items() if number) or "none"


def rows(report: dict) -> list[tuple[str, str]]:
    return [
        ("what is done", f"{report['steps']:,} steps in {report['seconds'] / 60:.0f} minutes"),
        ("services", f"{report['services']}"),
        ("killed by SIGKILL", f"**{report['kills']:,}**: {counted(report['kills_by_kind'])}"),
        ("of these at a named point", counted(report["kills_at_points"])),
        ("frozen", counted(report["frozen"])),
        ("exhausted", counted(report["exhausted"])),
        ("starts of services", f"{report['lives']:,}"),
        ("ends that history tells", f"{report['ends_told']:,}" if "ends_told" in report else "not asked"),
        ("numbered log lines", f"{report['lines']:,} in {report['log_files']:,} files"),
        ("looks from outside", counted(report["invariants_checked"])),
        ("**violations**", f"**{len(report['violations'])}**"),
        ("commit, kernel, Python", f"{report['commit']}, {report['kernel']}, {report['python']}"),
        ("repeat with", f"`{report['repeat']}`"),
    ]


def table() -> str:
    found = reports()
    names = [f"profile `{report['profile']}`" for report in found]
    lines = [["", *names], ["---"] * (len(names) + 1)]
    lines += [[each[0][0], *(text for _, text in each)] for each in zip(*map(rows, found), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document() -> str:
    """The document with the table as it should be."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
