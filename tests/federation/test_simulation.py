"""Virtual learners: the same parameters as real processes, failures of one that are not failures of all, bounded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingJob
from tests.federation.conftest import write_arrow
from tests.federation.test_training import same

FIT = '        """Mini-batch'


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Twelve small shards."""
    root = tmp_path_factory.mktemp("many")
    return tuple(write_arrow(root / f"shard-{index:02}.arrow", 60 + 5 * index, index + 1) for index in range(12))


@pytest.fixture
def job(job: TrainingJob, many: tuple[Path, ...]) -> TrainingJob:
    """Twelve learners, of which half train in a round."""
    return replace(job, shards=many, min_available=6, min_fit=1, min_evaluate=1, fraction_fit=0.5, rounds=2)


def test_virtual_learners_learn_what_real_ones_do(job: TrainingJob, run, tmp_path: Path) -> None:
    real = run(job, run_dir=tmp_path / "real")
    for processes in (1, 3):
        virtual = run(job, run_dir=tmp_path / f"virtual-{processes}", simulation={"processes": processes})
        assert same(tmp_path / "real", tmp_path / f"virtual-{processes}", 2)
        assert [(item.loss, item.learners_fit) for item in virtual.rounds] == [
            (item.loss, item.learners_fit) for item in real.rounds
        ]


def test_learners_that_do_not_fit_into_memory_are_made_again(job: TrainingJob, run, tmp_path: Path, spoil) -> None:
    """Each keeps 40 MB and the limit is 50: there is never more than one of them."""
    run(job, run_dir=tmp_path / "roomy", simulation={"processes": 2})
    spoil("        (self.x_train, self.x_test)", "        self.ballast = np.ones(5_000_000)\n        (self.x_train, self.x_test)")
    result = run(job, run_dir=tmp_path / "tight", memory_mb=50, simulation={"processes": 2})
    assert [item.failures for item in result.rounds] == [0, 0]
    assert same(tmp_path / "roomy", tmp_path / "tight", 2)


def test_a_virtual_learner_that_dies_does_not_take_the_others_of_its_process_along(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        if __import__('os').environ['FLOPS_DATA'].endswith('-04.arrow'): __import__('os').abort()\n" + FIT)
    result = run(job, fraction_fit=1.0, simulation={"processes": 2})
    assert [item.learners_fit for item in result.rounds] == [11, 11]
    assert [item.failures for item in result.rounds] == [1, 1]


def test_a_virtual_learner_that_never_returns_is_left_behind(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        while __import__('os').environ['FLOPS_DATA'].endswith('-04.arrow'): pass\n" + FIT)
    result = run(job, fraction_fit=1.0, rounds=1, round_timeout=3.0, simulation={"processes": 2})
    assert result.rounds[0].learners_fit == 11


def test_code_that_raises_in_every_learner_is_told_once_with_its_place(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        raise ValueError('no gradient')\n" + FIT)
    with pytest.raises(TrainingError) as caught:
        run(job, fraction_fit=1.0, simulation={"processes": 2})
    assert caught.value.code == "FL5015"
    assert caught.value.where is not None
    assert caught.value.where.path == "model_manager.py"


def test_code_that_cannot_be_imported(job: TrainingJob, run, spoil) -> None:
    spoil("import numpy as np\n", "import numpy as np\nimport not_installed_anywhere\n")
    with pytest.raises(TrainingError) as caught:
        run(job, simulation={"processes": 2})
    assert caught.value.code == "FL5012"
