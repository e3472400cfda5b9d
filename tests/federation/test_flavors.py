"""PyTorch and Keras: examples and repos written for FLOps learn, are repeatable, and are saved to be served."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingEvent, TrainingJob
from reconciler.runtime_version import mlruntime_dir
from tests.federation.test_training import aggregator_of, parameters, same
from tests.flavorkit import FLAVORS, digits_of_two, example, python_of

pytestmark = pytest.mark.timeout(900)
REPOS = Path(__file__).parent / "repos"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, ...], Path]:
    """Two shards of scikit-learn's digits, and what is held out."""
    return digits_of_two(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, ...], Path]:
    """Two shards in the form of Hugging Face's cifar10 – `img` of 32×32×3 and `label` – and a held-out set."""
    root = tmp_path_factory.mktemp("cifar")
    return tuple(coloured(root / f"{name}.arrow", 160, name) for name in range(2)), coloured(root / "holdout.arrow", 100, 9)


def coloured(path: Path, rows: int, seed: int) -> Path:
    """Noise with a bright square whose place tells the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, rows)
    images = random.integers(0, 90, (rows, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = 2 + 16 * (label // 5), 1 + 6 * (label % 5)
        image[top : top + 12, left : left + 6] += 150
    features = Features({"img": Image(), "label": ClassLabel(num_classes=10)})
    table = Dataset.from_dict({"img": list(images), "label": labels.tolist()}, features=features).data.table
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def of_flavor(job: TrainingJob, flavor: str, repo: Path, data: tuple[tuple[Path, ...], Path]) -> TrainingJob:
    """The job with another ML repo (a copy) in that repo's own environment."""
    shutil.rmtree(job.repo_dir)
    shutil.copytree(repo, job.repo_dir, ignore=shutil.ignore_patterns("__pycache__"))
    return replace(job, python=python_of(repo, flavor), flavor=flavor, shards=data[0], holdout=data[1], memory_mb=500)


@pytest.mark.long  # in `make test` the examples are trained from end to end: tests/e2e/test_flavors.py
@pytest.mark.parametrize("flavor", FLAVORS)
def test_an_example_learns_and_is_saved_without_its_repos_code(job: TrainingJob, run, digits, flavor: str) -> None:
    result = run(of_flavor(job, flavor, example(flavor), digits), rounds=2)
    assert result.holdout["rows"] == 359
    assert result.holdout["accuracy"] > 0.8
    assert "warning" not in run.kinds()
    names = {path.name for path in result.model_dir.rglob("*")}
    assert names & {"model.pt2", "model.keras"}
    assert not names & {"code", "model.pth", "model.pkl", "model_manager.py"}
    shape = {"pytorch": "[-1, 1, 8, 8]", "keras": "[-1, 8, 8, 1]"}[flavor]
    assert f'"dtype":"float32","shape":{shape}'.replace(" ", "") in "".join((result.model_dir / "MLmodel").read_text().split())
    with np.load(result.samples) as samples:
        assert samples["predictions"].shape == (359, 10)
        accuracy = float((samples["predictions"].argmax(axis=1) == samples["labels"]).mean())
    assert accuracy == pytest.approx(result.holdout["accuracy"])


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_repo_in_the_style_of_flops_documentation_runs_unchanged_and_repeatably(
    job: TrainingJob, run, cifar, tmp_path: Path, flavor: str
) -> None:
    mine = of_flavor(job, flavor, REPOS / f"cifar10-{flavor}", cifar)
    result = run(mine, rounds=3)
    assert [item.round for item in result.rounds] == [1, 2, 3]
    assert result.rounds[-1].loss < result.rounds[0].loss
    assert result.holdout["rows"] == 100
    assert result.samples is not None
    run(mine, rounds=3, run_dir=tmp_path / "again")
    assert same(job.run_dir, tmp_path / "again", 3)
    assert all(np.isfinite(array).all() for array in parameters(job.run_dir, 3))


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_network(job: TrainingJob, run, digits, tmp_path: Path) -> None:
    mine = of_flavor(job, "pytorch", example("pytorch"), digits)
    run(mine, rounds=4, run_dir=tmp_path / "undisturbed")

    def kill(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == 1:
            os.kill(aggregator_of(job.run_dir), signal.SIGKILL)

    with pytest.raises(TrainingError):
        run(mine, rounds=4, on_event=kill)
    assert run(mine, rounds=4).resumed_from >= 1
    assert same(job.run_dir, tmp_path / "undisturbed", 4)


PAIRS = """
import numpy as np, torch, datasets
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from flops_runtime.heldout import find_pairs, test_part
x, y = torch.arange(24.0).reshape(8, 3), torch.arange(8)
class Rows(Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return {"label": y[index], "img": x[index]}
class M: pass
def pairs(**held):
    m = M(); m.__dict__.update(held)
    found = find_pairs(m, lambda inputs: True)
    assert all((pair.inputs[:, 0] // 3 == pair.labels).all() for pair in found)
    return [len(pair.inputs) for pair in found], [len(pair.inputs) for pair in test_part(found)]
whole = TensorDataset(x, y)
print(pairs(trainset=whole, test_loader=DataLoader(whole, 3, shuffle=True)))
print(pairs(train_set=Subset(whole, range(6)), val_set=Subset(whole, [6, 7])))
print(pairs(rows=Rows()))
print(pairs(part=datasets.Dataset.from_dict({"img": x.tolist(), "label": y.tolist()}).with_format("torch")))
"""


def test_pairs_are_found_in_loaders_and_datasets_but_not_twice() -> None:
    environment = {"PYTHONPATH": str(mlruntime_dir()), "PATH": os.defpath}
    python = python_of(example("pytorch"), "pytorch")
    done = subprocess.run([python, "-c", PAIRS], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == ["([8], [8])", "([6, 2], [2])", "([8], [8])", "([8], [8])"], done.stderr


FORK = """
import os, sys, importlib
from flops_runtime import flavors
flavors.prepare()
for name in flavors.preload(sys.argv[1]):
    importlib.import_module(name)
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
# Arrow's allocator has a thread that a fork may leave behind; the libraries have none.
assert set(names) <= {"python", "jemalloc_bg_thd"} and names.count("python") == 1, names
def work():
    if sys.argv[1] == "pytorch":
        import torch
        network = torch.nn.Linear(500, 500)
        network(torch.rand(4000, 500)).sum().backward()
        return
    import keras, numpy
    model = keras.Sequential([keras.Input((50,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    model.fit(numpy.ones((64, 50)), numpy.ones((64, 3)), verbose=0)
for _ in range(2):
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print("both learnt")
"""


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_process_with_the_libraries_loaded_may_fork(flavor: str) -> None:
    python = python_of(example(flavor), flavor)
    environment = {"PYTHONPATH": str(mlruntime_dir()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath}
    done = subprocess.run([python, "-c", FORK, flavor], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "both learnt\n", done.stderr


def test_the_backend_of_keras_is_what_is_installed() -> None:
    code = "from flops_runtime import flavors; flavors.prepare(); import os; print(os.environ['KERAS_BACKEND'])"
    environment = {"PYTHONPATH": str(mlruntime_dir()), "PATH": os.defpath}
    python = python_of(example("keras"), "keras")
    for more, wanted in (({}, "jax"), ({"KERAS_BACKEND": "torch"}, "torch")):
        found = subprocess.run([python, "-c", code], env=environment | more, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == wanted
    assert sys.executable != str(python)
