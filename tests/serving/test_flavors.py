"""PyTorch and Keras models as they are saved and served: the same answers in another process, with and without MLflow."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from reconciler.runtime_version import mlruntime_dir
from tests.flavorkit import example, python_of

pytestmark = pytest.mark.timeout(600)

SAVE = """
import json, sys
from pathlib import Path
sys.path.insert(0, "repo")
from flops_runtime import flavors
flavors.prepare()
import numpy as np
import model_manager
from flops_runtime import saving
from flops_runtime.failures import Failure
flavors.seed(3)
inputs = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
model = model_manager.make()
saving.predict(sys.argv[1], model, inputs)
try:
    warnings = saving.save(sys.argv[1], model, inputs[:5], Path("repo").absolute(), Path("model"))
except Failure as failure:
    print(json.dumps({"code": failure.code, "cause": failure.cause}))
else:
    np.savez("samples.npz", inputs=inputs, predictions=saving.predict(sys.argv[1], model, inputs))
    print(json.dumps({"warnings": warnings}))
"""

SERVE = """
import json, sys
from pathlib import Path
import numpy as np
from flops_runtime.serve_model import ServedModel
samples = np.load("samples.npz")
served = ServedModel.load(Path("model"))
assert ("mlflow" in sys.modules) == (sys.argv[1] == "mlflow"), "the wrong path"
for rows in (samples["inputs"], samples["inputs"][:1]):
    body = json.dumps({"inputs": rows.tolist()}).encode()
    fast = served.answer(body, "application/json")
    slow = served._mlflows(body, "application/json")
    assert fast.status == slow.status == 200, (fast, slow)
    for answer in (fast, slow):
        got = np.asarray(json.loads(answer.body)["predictions"])
        assert np.allclose(got, samples["predictions"][: len(rows)], rtol=1e-4, atol=1e-5), (got, samples["predictions"])
wrong = [served.answer(json.dumps({"inputs": [[1.0, 2.0]]}).encode(), "application/json")]
wrong.append(served._mlflows(json.dumps({"inputs": [[1.0, 2.0]]}).encode(), "application/json"))
print([answer.status for answer in wrong], {json.loads(answer.body)["error_code"] for answer in wrong})
"""

PLAIN = {
    "pytorch": "import torch\nclass Net(torch.nn.Linear):\n    pass\ndef make():\n    return Net(4, 3)\n",
    "keras": "import keras\ndef make():\n    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n",
}
OF_ITS_OWN = {
    # Which way it goes depends on the data: PyTorch cannot export that.
    "pytorch": """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
    def forward(self, x):
        return torch.stack([self.layer(row) if row.sum().item() > 0 else -self.layer(row) for row in x])
def make():
    return Net()
""",
    "keras": """
import keras
from helper import THREE
class Scale(keras.layers.Layer):
    def __init__(self, by=1.0, **options):
        super().__init__(**options)
        self.by = by
    def call(self, x):
        return x * self.by
    def get_config(self):
        return {**super().get_config(), "by": self.by}
class Net(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(3)
    def call(self, x):
        return self.dense(x)
def make():
    return keras.Sequential([keras.Input((4,)), Net(), Scale(THREE)])
""",
}
RANDOM = {
    "pytorch": """
import torch
class Net(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 3)
def make():
    return Net(4, 3)
""",
    "keras": """
import keras
class Noise(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator()
    def call(self, x):
        return x + keras.random.normal((3,), seed=self.seeds)
def make():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Noise()])
""",
}


FORGETFUL = """
import keras
class Scale(keras.layers.Layer):
    def __init__(self, by, **options):
        super().__init__(**options)
        self.by = by
    def call(self, x):
        return x * self.by
    def get_config(self):
        return super().get_config()
def make():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Scale(2.0)])
"""


def of(flavor: str, folder: Path, code: str) -> Path:
    """A folder with an ML repo of that code; the interpreter for it."""
    (folder / "repo").mkdir()
    (folder / "repo" / "model_manager.py").write_text(code)
    (folder / "repo" / "helper.py").write_text("THREE = 3.0\n")
    return python_of(example(flavor), flavor)


def in_environment(python: Path, folder: Path, code: str, *arguments: str) -> str:
    environment = {"PYTHONPATH": str(mlruntime_dir()), "PATH": os.defpath, "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    done = subprocess.run(
        [python, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("flavor", ["pytorch", "keras"])
def test_a_model_serves_without_the_ml_repo(tmp_path: Path, flavor: str) -> None:
    python = of(flavor, tmp_path, PLAIN[flavor])
    assert json.loads(in_environment(python, tmp_path, SAVE, flavor)) == {"warnings": []}
    (tmp_path / "repo").rename(tmp_path / "gone")
    assert not (tmp_path / "model" / "code").exists()
    assert in_environment(python, tmp_path, SERVE, "fast") == "[400, 400] {'INVALID_PARAMETER_VALUE'}"


@pytest.mark.parametrize("flavor", ["pytorch", "keras"])
def test_a_model_with_code_of_its_own_serves_with_the_code_from_the_bundle(tmp_path: Path, flavor: str) -> None:
    python = of(flavor, tmp_path, OF_ITS_OWN[flavor])
    said = json.loads(in_environment(python, tmp_path, SAVE, flavor))["warnings"]
    assert len(said) == 1
    assert {"pytorch": "pickled", "keras": "Net, Scale"}[flavor] in said[0]
    (tmp_path / "repo").rename(tmp_path / "gone")
    assert (tmp_path / "model" / "code" / "helper.py").is_file()
    path = {"pytorch": "mlflow", "keras": "fast"}[flavor]
    assert in_environment(python, tmp_path, SERVE, path) == "[400, 400] {'INVALID_PARAMETER_VALUE'}"


@pytest.mark.parametrize("flavor", ["pytorch", "keras"])
def test_a_model_that_answers_at_random_is_refused(tmp_path: Path, flavor: str) -> None:
    python = of(flavor, tmp_path, RANDOM[flavor])
    said = json.loads(in_environment(python, tmp_path, SAVE, flavor))
    assert said["code"] == "FL5902"
    assert "answers differ" in said["cause"]


def test_a_keras_model_that_cannot_be_made_again_is_refused(tmp_path: Path) -> None:
    python = of("keras", tmp_path, FORGETFUL)
    said = json.loads(in_environment(python, tmp_path, SAVE, "keras"))
    assert said["code"] == "FL5901"
    assert "by" in said["cause"]


def test_the_examples_in_the_bundle_are_inputs_of_the_model(tmp_path: Path) -> None:
    python = of("pytorch", tmp_path, PLAIN["pytorch"])
    in_environment(python, tmp_path, SAVE, "pytorch")
    shown = json.loads((tmp_path / "model" / "serving_input_example.json").read_text())["inputs"]
    assert np.asarray(shown).shape == (5, 4)
