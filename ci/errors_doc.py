"""Makes `docs/errors.md` from `reconciler.error_codes.CODES`, and checks that code and table agree.

Run: `python -m ci.errors_doc` to write it, `--check` to compare (exit 1 when something is out of step).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from reconciler.error_codes import CODES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "errors.md"
GROUPS = {
    "1": "SLA, mock data and flops.yaml",
    "2": "Git and ML repos",
    "3": "Environments",
    "4": "Data",
    "5": "Training",
    "6": "Tracking and registry",
    "7": "Services and inference",
    "8": "The status branch",
    "9": "The loop",
}


def page() -> str:
    """The page: a table for each group of codes."""
    lines = ["# Error codes", "", "Every error has a stable code, one sentence of cause and one of cure."]
    for group, title in GROUPS.items():
        found = {code: text for code, text in sorted(CODES.items()) if code[2] == group}
        if found:
            lines += ["", f"## {title}", ""]
            if (PAGE.parent / "errors" / f"fl{group}xxx.md").is_file():
                lines += [f"Each with its reason and cure: [FL{group}xxx](errors/fl{group}xxx.md).", ""]
            lines += ["| code | what it is |", "| --- | --- |"]
            lines += [f"| {code} | {text} |" for code, text in found.items()]
    return "\n".join(lines) + "\n"


def used() -> set[str]:
    """Every code that stands in the sources, the table itself left out."""
    sources = [path for path in (ROOT / "reconciler").rglob("*.py") if path.name != "error_codes.py"]
    return {code for path in sources for code in re.findall(r"\"(FL\d{4})\"", path.read_text())}


def main() -> int:
    """Write or check; the exit code says whether all is in step."""
    unknown, unused = sorted(used() - CODES.keys()), sorted(CODES.keys() - used())
    for code in unknown:
        print(f"{code} is raised but has no line in CODES")
    for code in unused:
        print(f"{code} has a line in CODES but is never raised")
    if "--check" in sys.argv:
        stale = not PAGE.is_file() or PAGE.read_text() != page()
        if stale:
            print("docs/errors.md is out of date: run `python -m ci.errors_doc`")
        return 1 if unknown or unused or stale else 0
    PAGE.write_text(page())
    return 1 if unknown or unused else 0


if __name__ == "__main__":
    sys.exit(main())
