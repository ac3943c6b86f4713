"""The table of docs/kernels.md, of what the last run told."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from typing import Any

from .image import ROOT

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
DOCUMENT = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- made by make kernels -->", "<!-- end of what make kernels made -->"

Result = dict[str, Any]


def results() -> list[Result]:
    """Those that are kept, the oldest kernel first."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda result: version(result["doctor"]["kernel"]))


def version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in release.partition("-")[0].partition("+")[0].split(".")[:2])


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _skips(result: Result) -> Counter[str]:
    return Counter(skip["why"].removeprefix("Skipped: ") for skip in result["skipped"])


def tables(found: list[Result]) -> str:
    """Markdown: features and tests of each kernel, and why tests were skipped."""
    doctors = [result["doctor"] for result in found]
    lines = [_row("", [doctor["kernel"] for doctor in doctors]), _row("---", ["---"] * len(found))]
    # Results may be of different days, and a doctor of then knew less.
    seen = [{each["name"]: "yes" if each["available"] else "no" for each in doctor["findings"]} for doctor in doctors]
    names = dict.fromkeys(name for each in seen for name in each)
    lines += [_row(name, [each.get(name, "") for each in seen]) for name in names]
    used = dict.fromkeys(what for doctor in doctors for what in doctor["means"])
    lines += [_row(f"*in use:* {what}", [doctor["means"].get(what, "") for doctor in doctors]) for what in used]
    lines.append(_row("tests passed", [f"**{result['passed']}**" for result in found]))
    lines.append(_row("failed", [str(len(result["failed"])) for result in found]))
    lines.append(_row("skipped", [str(len(result["skipped"])) for result in found]))
    lines.append(_row("minutes", [f"{result['took'] / 60:.0f}" for result in found]))
    lines += ["", "Skipped, and why:", "", *lines[:2]]
    skips = [_skips(result) for result in found]
    lines += [_row(why, [str(skip[why] or "") for skip in skips]) for why in sorted(set().union(*skips))]
    return "\n".join(lines)


def keep(suite: str, result: Result) -> None:
    """Keep the result in place of the suite's last, and put the tables into the document."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1).replace(f"{ROOT}/", "")  # where it was built is nobody's matter
    (RESULTS / f"{suite}.json").write_text(text + "\n")
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{tables(results())}\n\n{END}{rest.partition(END)[2]}")
