"""Writes docs/openapi.json and the reference in docs/api.md from the table of routes; with --check only compares
(exit code 1: they differ).

Run it after a change of src/holdfast/control/routes.py or of a struct that is named there, with the interpreter that
holdfast is installed for.
"""

from __future__ import annotations

import json
import pathlib
import sys

from holdfast.control.openapi import document

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def main() -> int:
    wanted = {DOCS / "openapi.json": json.dumps(document(), indent=1, ensure_ascii=False) + "\n"}
    differ = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in differ:
        if "--check" in sys.argv:
            print(f"{path.name} is not what the table of routes says: run tools/api_reference.py")
        else:
            path.write_text(wanted[path])
    return int(bool(differ) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
