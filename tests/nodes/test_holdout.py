"""Held-out rows that stay on nodes: the same metrics as of a held-out set of ours, a signature and samples without any data."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pytest

from reconciler.errors import DataError, TrainingError
from reconciler.nodes.data import NodeData
from tests.federation.test_runtime_parts import inside
from tests.nodes.kit import Federation, write_rows


def told(federation: Federation, kind: str) -> list[str]:
    return [event.message for event in federation.events if event.kind == kind]


def test_the_model_is_measured_on_rows_of_all_nodes_that_were_in_no_training(federation: Federation) -> None:
    federation.node("a", rows=200, test_fraction=0.25).start()
    federation.node("b", rows=400, test_fraction=0.5).start()
    result = federation.train(2)
    assert result.holdout["rows"] == 50 + 200
    tests = [_rows(federation.root / name / "data") for name in ("a", "b")]
    x, y = (np.concatenate([rows[part] for rows in tests]) for part in ("x", "y"))
    answers = mlflow.pyfunc.load_model(str(result.model_dir)).predict(x)
    assert result.holdout["accuracy"] == pytest.approx(float((answers == y).mean()))
    assert result.holdout["accuracy"] > 0.5


def _rows(data: Path) -> dict[str, np.ndarray]:
    from reconciler.federation.data import arrow_files

    table = arrow_files.read(next((data / "datasets").glob("*/test.arrow")))
    return {"x": np.array(table["x"].to_pylist()), "y": np.array(table["y"].to_pylist())}


def test_signature_and_samples_are_made_from_the_form_alone(federation: Federation) -> None:
    federation.node("a", test_fraction=0.2).start()
    result = federation.train(1)
    signature = mlflow.models.get_model_info(str(result.model_dir)).signature
    assert signature is not None
    assert [(spec.type, spec.shape) for spec in signature.inputs.inputs] == [(np.dtype("float64"), (-1, 8))]
    assert result.samples is not None
    with np.load(result.samples) as samples:
        assert samples["inputs"].shape == (64, 8)
        assert "labels" not in samples
        loaded = mlflow.pyfunc.load_model(str(result.model_dir))
        assert np.array_equal(loaded.predict(samples["inputs"]), samples["predictions"])
        rows = np.concatenate([_rows(federation.root / "a" / "data")["x"]])
        assert not np.isclose(samples["inputs"][:, None], rows[None]).all(axis=2).any(), "none of the node's rows"


def test_without_held_out_rows_there_is_a_signature_but_nothing_measured(federation: Federation) -> None:
    federation.node("a").start()
    result = federation.train(1)
    assert result.holdout == {}
    assert result.samples is not None
    assert any("--test-fraction" in text for text in told(federation, "warning"))


def test_learners_of_one_machine_share_its_held_out_rows_without_overlap(federation: Federation) -> None:
    federation.node("a", rows=301, test_fraction=0.3, partition=(0, 2)).start()
    federation.node("b", data=federation.root / "a" / "data", partition=(1, 2)).start()
    assert federation.train(2, rounds=1).holdout["rows"] == 90


def test_held_out_rows_that_the_code_fails_on_are_told_and_nothing_is_measured(federation: Federation, repo: Path) -> None:
    path = repo / "data_manager.py"
    path.write_text(path.read_text().replace("order =", "assert len(x) != 20, f'patient {x[0]}'\n        order ="))
    federation.node("a", rows=200, test_fraction=0.1).start()
    result = federation.train(1, relay=federation.relay(repo=repo), repo_dir=repo)
    assert result.holdout == {}
    assert any("AssertionError" in text for text in told(federation, "learner_failed"))
    assert not any("patient" in event.message for event in federation.events)


def test_a_run_whose_rounds_are_over_is_only_measured_again(federation: Federation) -> None:
    federation.node("a", test_fraction=0.2).start()
    result = federation.train(1, rounds=2)
    (federation.root / "run" / "result.json").unlink()
    federation.events.clear()
    again = federation.train(1, rounds=2)
    assert again.holdout == result.holdout
    assert "round" not in federation.kinds()


@pytest.mark.long
def test_privacy_means_on_a_node_what_it_means_here(federation: Federation) -> None:
    """The update is clipped before it leaves the node, and the noise is not the seed's."""
    federation.node("a").start()
    found = []
    for number, mechanism in enumerate(("local", "local", "client-fixed")):
        privacy = {"mechanism": mechanism, "clipping_norm": 0.1, "noise_multiplier": 1e-3, "epsilon": 1e5, "delta": 1e-5}
        digest, run_dir = f"{number:064d}", federation.root / f"run-{number}"
        relay = federation.relay(digest, privacy=privacy)
        federation.train(1, relay=relay, digest=digest, run_dir=run_dir, rounds=1, privacy=privacy)
        with np.load(run_dir / "rounds" / "0001.npz") as archive:
            found.append(np.concatenate([archive[name].ravel() for name in archive.files]))
    assert all(np.linalg.norm(values) < 0.15 for values in found)
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[1], atol=0.02)


def test_a_node_takes_no_run_whose_privacy_it_does_not_know(tmp_path: Path) -> None:
    from reconciler.nodes import fab
    from tests.nodes.kit import LOCK, REPO

    privacy = {"mechanism": "rot13", "clipping_norm": 1.0, "noise_multiplier": 1.0, "epsilon": 1.0, "delta": 1e-5}
    bundle = fab.build(REPO, fab.LearnerSpec("ab" * 32, "p", "sklearn", 1, ("t",), 200, 1, 60.0, *LOCK, privacy))
    with pytest.raises(TrainingError) as caught:
        fab.unpack(bundle.content, bundle.hash, tmp_path)
    assert caught.value.code == "FL5807"


def test_held_out_rows_are_dealt_like_others_and_none_where_there_are_too_few(tmp_path: Path) -> None:
    data = NodeData(tmp_path / "node")
    data.add(write_rows(tmp_path / "a.parquet", 100, 1), name="a", tags=["t"], test_fraction=0.1)
    parts = [data.held_out(["t"], number, 3) for number in range(3)]
    assert sorted(part.rows for part in parts if part) == [3, 3, 4]
    assert data.held_out(["t"], 0, 11) is None
    data.add(write_rows(tmp_path / "b.parquet", 100, 2), name="b", tags=["u"])
    assert data.held_out(["u"], 0, 1) is None
    with pytest.raises(DataError):
        data.held_out(["none"], 0, 1)


FORMS = [
    ({"dtype": "<f8", "shape": [8]}, True),
    ({"dtype": "|u1", "shape": [28, 28, 1]}, True),
    ({"dtype": "O", "shape": [8]}, False),
    ({"dtype": "no", "shape": [8]}, False),
    ({"dtype": "<f4", "shape": []}, False),
    ({"dtype": "<f4", "shape": [-1]}, False),
    ({"dtype": "<f4", "shape": [10**6, 10**6]}, False),
    ({"dtype": "<f4", "shape": [1] * 9}, False),
]


@pytest.mark.parametrize(("said", "fine"), FORMS)
def test_what_a_node_says_of_its_inputs_is_bounded(said: dict[str, object], fine: bool) -> None:
    code = """
import json, sys
from flops_runtime.federated_holdout import form_of, synthetic
try:
    rows = synthetic(form_of(json.loads(sys.argv[1])), 1)
    print(rows.dtype.str, list(rows.shape[1:]), len(rows))
except ValueError as error:
    print("refused")
"""
    answer = inside(code, json.dumps(said))
    assert answer == (f"{said['dtype']} {said['shape']} 64" if fine else "refused")
