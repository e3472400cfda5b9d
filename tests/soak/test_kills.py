"""The controller may be killed anywhere: nothing is trained twice, nothing is left over, nothing told is untrue, nobody notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.kills import Killing
from tests.soak.sizes import SOAK, size

KILLS = size("FLOPS_SOAK_KILLS", short=2, long=200)


@pytest.mark.e2e
@pytest.mark.timeout(5 * 3600 if SOAK else 900)
def test_kills_at_every_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(line: str) -> None:
        if SOAK:
            with capsys.disabled():
                print(f"kills: {line}", flush=True)

    report = Killing(tmp_path, KILLS, seed=size("FLOPS_SOAK_SEED", short=0, long=0), tell=tell).run()
    for line in report.lines():
        tell(line)
    assert report.kills.total() >= KILLS
    assert report.doubles == []
    assert report.orphans == []
    assert report.differences == []
    assert report.unexcused == []
    assert report.answered > 0
