"""What goes wrong in a cycle: a clear error, nothing lost, the other projects unaffected. Real Flower and MLflow, small data."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from bench.workbench import Workbench, make
from reconciler.statusdoc import condition

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = """import numpy as np
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate
from sklearn.linear_model import LogisticRegression

class ModelManager(ModelManagerTemplate):
    def __init__(self):
        self.model = LogisticRegression(max_iter=20, warm_start=True)
        self.model.classes_ = np.arange(2)
        self.model.coef_, self.model.intercept_ = np.zeros((1, 2)), np.zeros(1)
        self.model.n_features_in_ = 2
    def set_model_data(self):
        self.x, self.y = DataManager().get_data()
    def get_model(self):
        return self.model
    def get_model_parameters(self):
        return [self.model.coef_, self.model.intercept_]
    def set_model_parameters(self, parameters):
        self.model.coef_, self.model.intercept_ = parameters
    def fit_model(self):
        self.model.fit(self.x, self.y)
        return len(self.x)
    def evaluate_model(self):
        return 1 - self.model.score(self.x, self.y), self.model.score(self.x, self.y), len(self.x)
"""
DATA = """import numpy as np
from flops_utils.ml_repo_building_blocks import load_dataset
from flops_utils.ml_repo_templates import DataManagerTemplate

class DataManager(DataManagerTemplate):
    def __init__(self):
        self._prepare_data()
    def _prepare_data(self):
        data = load_dataset().with_format("numpy")
        self.x, self.y = np.stack([data["a"], data["b"]], axis=1), data["label"]
    def get_data(self):
        return self.x, self.y
"""
SLA = """customerID: demo
ml_repo_url: ./projects/{name}/ml_repo
ml_model_flavor: sklearn
training_configuration: {{data_tags: [points], training_rounds: 1, min_available_clients: 2, min_fit_clients: 2}}
resource_constraints: {{memory: 500}}
post_training_steps: [build_image_for_trained_model, deploy_trained_model_image]
"""


def make_points(root: Path) -> Workbench:
    """A GitOps repo without projects, and a small dataset with the tag `points`."""
    made = make(root)
    random = np.random.default_rng(0)
    points = random.normal(size=(400, 2))
    table = pa.table({"a": points[:, 0], "b": points[:, 1], "label": (points.sum(axis=1) > 0).astype(int)})
    (root / "points").mkdir()
    pa.parquet.write_table(table, root / "points" / "train.parquet")
    pa.parquet.write_table(table.slice(0, 100), root / "points" / "test.parquet")
    (made.clone / "flops.yaml").write_text(f"data_directories:\n  points: {root / 'points'}\nbudget: {{max_parallel: 3}}\n")
    for path in sorted((made.clone / "projects").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return made


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    made = make_points(tmp_path_factory.mktemp("bad"))
    yield made
    made.stop()


def add(bench: Workbench, name: str, *, model: str = MODEL, more: str = "", data: str = DATA) -> None:
    folder = bench.clone / "projects" / name
    (folder / "ml_repo").mkdir(parents=True, exist_ok=True)
    (folder / "sla.yaml").write_text(SLA.format(name=name) + more)
    (folder / "ml_repo" / "model_manager.py").write_text(model)
    (folder / "ml_repo" / "data_manager.py").write_text(data)
    (folder / "ml_repo" / "requirements.txt").write_text("numpy==2.2.6\nscikit-learn==1.6.1\nscipy==1.15.3\n")


def says(document: dict[str, Any]) -> str:
    found = condition(document, "Stalled") or condition(document, "Reconciling") or {}
    return f"{found.get('type')}: {found.get('message')}"


def test_bad_projects_do_not_touch_a_good_one(bench: Workbench) -> None:
    """One cycle with a project of every kind, side by side; each bad one says what is wrong with it."""
    add(bench, "good")
    add(bench, "raises", model=MODEL.replace("self.model.fit(self.x, self.y)", "raise ValueError('no such luck')"))
    add(bench, "no-method", model=MODEL.replace("def fit_model", "def fit_modell"))
    add(bench, "gate", more="evaluation_gate: {threshold: 1.01}\n")
    add(bench, "missing", model="import no_such_package\n" + MODEL)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        add(bench, "port", more=f"deployment: {{port: {port}}}\n")
        add(bench, "hierarchy", more="")
        sla = bench.clone / "projects" / "hierarchy" / "sla.yaml"
        sla.write_text(
            sla.read_text().replace(
                "training_rounds: 1", "training_rounds: 1, mode: hierarchical, clusters: [{name: small, learners: 1}]"
            )
        )
        bench.commit("All at once")
        shown = bench.flops("reconcile", "--once", "--tries", "1", check=False)
    good = bench.status("good")
    assert good["live"], shown
    assert good["live"]["healthy"], shown
    assert good["verification"]["passed"]
    expected = {
        "raises": ("Stalled", "no such luck"),
        "no-method": ("Stalled", "fit_model"),
        "gate": ("Stalled", "below the gate"),
        "missing": ("Stalled", "no_such_package"),
        "port": ("Reconciling", "in use"),
        "hierarchy": ("Stalled", "FL5601"),
    }
    for name, (kind, text) in expected.items():
        told = says(bench.status(name))
        assert told.startswith(kind), (name, told)
        assert text in told, (name, told)
        assert bench.status(name)["live"] is None, name


def test_what_stalled_waits_and_what_was_transient_goes_on(bench: Workbench) -> None:
    """The port is free again: that project converges. The stalled ones are not trained again."""
    before = {name: len(bench.history(name)) for name in ("raises", "gate", "missing")}
    trained = [item for item in bench.history("port") if item["stage"] == "train" and item["result"] == "done"]
    bench.flops("reconcile", "--once", check=False)
    assert bench.status("port")["live"]["healthy"]
    assert {name: len(bench.history(name)) for name in before} == before
    again = [item for item in bench.history("port") if item["stage"] == "train" and item["result"] == "done"]
    assert len(again) == len(trained) == 1


def test_a_looser_gate_registers_the_run_that_is_there(bench: Workbench) -> None:
    sla = bench.clone / "projects" / "gate" / "sla.yaml"
    sla.write_text(sla.read_text().replace("1.01", "0.5"))
    bench.commit("A gate that can be met")
    trained = sum(item["stage"] == "train" for item in bench.history("gate"))
    bench.flops("reconcile", "--once", check=False)
    assert bench.status("gate")["model"]["version"] == "1"
    assert sum(item["stage"] == "train" for item in bench.history("gate")) == trained


def test_a_model_that_is_worse_than_the_one_in_service_does_not_replace_it(bench: Workbench) -> None:
    sla = bench.clone / "projects" / "gate" / "sla.yaml"
    sla.write_text(sla.read_text().replace("{threshold: 0.5}", "{no_worse_than_production: true}"))
    add_worse = MODEL.replace("        self.model.fit(self.x, self.y)\n", "")
    (bench.clone / "projects" / "gate" / "ml_repo" / "model_manager.py").write_text(add_worse)
    bench.commit("A model that learns nothing")
    bench.flops("reconcile", "--once", "--tries", "1", check=False)
    document = bench.status("gate")
    assert "worse than" in says(document)
    assert document["live"]["healthy"]
    assert document["service"]["digest"] != document["digest"]


def test_a_service_that_was_killed_is_there_again_and_a_removed_project_is_pruned(bench: Workbench, tmp_path: Path) -> None:
    (bench.clone / "projects" / "good").rename(tmp_path / "good")
    bench.commit("Remove good")
    bench.flops("reconcile", "--once", check=False)
    assert "good" not in bench.flops("status", "-o", "json", check=False)
    assert not (bench.clone / ".flops" / "services" / "inference-good").exists()
    (tmp_path / "good").rename(bench.clone / "projects" / "good")
    bench.commit("And back")
    trained = sum(item["stage"] == "train" for item in bench.history("good"))
    bench.flops("reconcile", "--once", check=False)
    assert bench.status("good")["live"]["healthy"]
    assert sum(item["stage"] == "train" for item in bench.history("good")) == trained


def test_an_mlflow_that_does_not_answer_stops_nothing_that_runs(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        shown = bench.flops("reconcile", "--once", "--tries", "1", check=False)
        assert "FL6001" in says(bench.status("good")), shown
        assert bench.status("good")["live"]["healthy"]
    trained = sum(item["stage"] == "train" for item in bench.history("good"))
    bench.flops("reconcile", "--once", check=False)
    assert condition(bench.status("good"), "Synced") == {
        "type": "Synced", "status": "True", "reason": "Converged", "message": "what runs is what is declared",
    }  # fmt: skip
    assert sum(item["stage"] == "train" for item in bench.history("good")) == trained
