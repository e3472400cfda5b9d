"""The ML repo is checked before anything is built from it; what is wrong is told with file, line and method."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reconciler.errors import TrainingError
from reconciler.federation.contract_check import ContractReport, check_contract, checked_once
from tests.federation.conftest import write_arrow

SET = "self.model.coef_, self.model.intercept_ = (np.array(p) for p in parameters)"
FIT = '        """Mini-batch'


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arrow(tmp_path_factory.mktemp("sample") / "train.arrow", 900, 5)


def check(repo: Path, sample: Path, limit: float = 60.0) -> ContractReport:
    return check_contract(Path(sys.executable), repo, sample, "sklearn", limit)


def fails(repo: Path, sample: Path, code: str, *texts: str, limit: float = 60.0) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        check(repo, sample, limit)
    assert caught.value.code == code, str(caught.value)
    for text in texts:
        assert text in str(caught.value)
    assert not caught.value.transient
    return caught.value


def test_a_good_repo(repo: Path, sample: Path) -> None:
    report = check(repo, sample)
    assert report.rows == 500
    assert report.parameters == (("float64", (3, 8)), ("float64", (3,)))
    assert report.size == 27
    assert {"accuracy", "loss", "num-examples"} <= set(report.metrics)
    assert {"set_model_data", "fit_model", "evaluate_model", "get_model"} <= set(report.seconds)


def test_parameters_that_are_not_taken(repo: Path, sample: Path, spoil) -> None:
    spoil(SET, "pass")
    error = fails(repo, sample, "FL5501", "`set_model_parameters`", "array 0", "other values")
    assert error.where is not None
    assert error.where.path == "model_manager.py"
    line = next(
        number
        for number, text in enumerate((repo / "model_manager.py").read_text().splitlines(), 1)
        if "def set_model_parameters" in text
    )
    assert error.where.line == line


def test_parameters_in_another_order(repo: Path, sample: Path, spoil) -> None:
    spoil("return [self.model.coef_, self.model.intercept_]", "return [self.model.intercept_, self.model.coef_]")
    fails(repo, sample, "FL5501", "shape (3,)", "(3, 8)")


def test_training_that_changes_shapes(repo: Path, sample: Path, spoil) -> None:
    spoil(FIT, "        self.model.coef_ = self.model.coef_[:2]\n        return 1\n" + FIT)
    error = fails(repo, sample, "FL5502", "`fit_model`", "(3, 8)", "(2, 8)")
    assert "for all classes" in error.cure


@pytest.mark.parametrize(
    ("old", "new", "code", "text"),
    [
        (FIT, "        raise ValueError('no gradient')\n" + FIT, "FL5015", "`fit_model` raised ValueError: no gradient"),
        ("return len(self.x_train)", "return 'many'", "FL5017", "`fit_model` has to return a number of samples"),
        ("return loss, self", "return 1 / 0, self", "FL5016", "`evaluate_model` raised ZeroDivisionError"),
        ("import numpy as np\n", "import numpy as np\nimport nowhere\n", "FL5012", "nowhere"),
        ("def get_model(self)", "def get_the_model(self)", "FL5011", "get_model"),
        ("return self.model\n", "return None\n", "FL5017", "`get_model`"),
    ],
)
def test_what_a_run_would_fail_at(repo: Path, sample: Path, spoil, old: str, new: str, code: str, text: str) -> None:
    spoil(old, new)
    error = fails(repo, sample, code, text)
    assert error.where is not None
    assert error.where.path == "model_manager.py"


def test_a_method_that_does_not_return(repo: Path, sample: Path, spoil) -> None:
    spoil(FIT, "        import time\n        time.sleep(600)\n" + FIT)
    fails(repo, sample, "FL5503", "`fit_model` did not return within 8 s", limit=8.0)


def test_a_process_that_ends(repo: Path, sample: Path, spoil) -> None:
    spoil(FIT, "        import os\n        print('so long', flush=True)\n        os._exit(5)\n" + FIT)
    fails(repo, sample, "FL5504", "`fit_model`", "status 5", "so long")


def test_the_network_is_closed(repo: Path, sample: Path, spoil) -> None:
    spoil(FIT, "        import socket\n        socket.create_connection(('127.0.0.1', 9))\n" + FIT)
    fails(repo, sample, "FL5024", "network")


def test_a_repo_that_needs_more_rows_than_the_sample_has(repo: Path, sample: Path, spoil) -> None:
    spoil(FIT, "        assert len(self.x_train) > 600, 'too few rows'\n" + FIT)
    assert check(repo, sample).rows == 900


def test_it_is_asked_once(tmp_path: Path) -> None:
    asked = []

    def ask() -> ContractReport:
        asked.append(1)
        return ContractReport(5, {"fit_model": 0.1}, (("float32", (2, 3)),), ("loss",))

    inputs = {"tree": "a", "lock": "b"}
    first = checked_once(tmp_path, inputs, ask)
    assert checked_once(tmp_path, inputs, ask) == (first[0], True)
    assert len(asked) == 1
    checked_once(tmp_path, {"tree": "c", "lock": "b"}, ask)
    assert len(asked) == 2


def test_what_failed_is_asked_again(tmp_path: Path) -> None:
    def fail() -> ContractReport:
        raise TrainingError("FL5015", "It raised.", cure="Mend it.")

    for _ in range(2):
        with pytest.raises(TrainingError):
            checked_once(tmp_path, {"tree": "a"}, fail)
    assert list(tmp_path.iterdir()) == []
