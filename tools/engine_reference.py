"""Writes the diagram and the tables of docs/engine.md from the engine's table.

Run it after a change of src/holdfast/engine/table.py, with the interpreter that holdfast is installed for.
"""

from __future__ import annotations

import pathlib
import re

from holdfast.engine import table

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/engine.md"


def main() -> None:
    page = PAGE.read_text()
    for name, text in {"diagram": f"```mermaid\n{table.diagram()}```\n", "tables": table.tables()}.items():
        pattern = rf"(<!-- {name}: made by tools/engine_reference.py -->\n).*?(<!-- end -->)"
        page, found = re.subn(pattern, lambda match: match[1] + text + match[2], page, flags=re.S)  # noqa: B023
        assert found == 1, name
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
