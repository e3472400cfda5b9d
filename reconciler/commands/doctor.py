"""`flops doctor`: what an operator needs, checked."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.text import Text

from reconciler.doctor import Doctor, Finding, Level
from reconciler.engine import cache_directory, read_config
from reconciler.statusdoc import clean

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def examine(repo: Path, state: Path | None, console: Console, *, as_json: bool) -> int:
    """Print every finding; exit code 1 when one of them fails."""
    doctor = Doctor(repo, (state or repo / ".flops").resolve(), cache_directory(), read_config, time.time)
    found = []
    for finding in doctor.examine():
        found.append(finding)
        if not as_json:
            _show(console, finding)
    if as_json:
        console.out(orjson.dumps([asdict(item) for item in found], option=orjson.OPT_INDENT_2).decode(), highlight=False)
    return 1 if any(item.level is Level.FAIL for item in found) else 0


def _show(console: Console, finding: Finding) -> None:
    said = " ".join(part for part in (finding.code, clean(finding.message), clean(finding.cure)) if part)
    console.print(Text.assemble((f"{finding.level:<4} ", _STYLES[finding.level]), f"{finding.check}: {said}"), soft_wrap=True)
