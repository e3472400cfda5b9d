"""A disk that fills up in a run: said as such; with space again the run goes on after its last finished round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingEvent, TrainingJob
from tests.conftest import SmallDisk
from tests.federation.conftest import Run


def test_a_run_goes_on_when_there_is_space_again(job: TrainingJob, run: Run, small_disk: SmallDisk) -> None:
    job = replace(job, run_dir=small_disk.path / "run", rounds=20)

    def fill(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == 1:
            small_disk.leave(0)

    with pytest.raises(TrainingError, match="FL5042") as raised:
        run(job, on_event=fill)
    assert raised.value.transient
    small_disk.free()
    result = run(job)
    assert len(result.rounds) == 20
    assert result.resumed_from >= 1
