"""The base case from end to end: merge an SLA, a trained model serves; a second one takes over; a revert brings it back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.workbench import Workbench, make
from tests.flavorkit import stated_accuracy

PROJECT = "mnist-classic"
MAX_REQUESTS = 4000

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    made = make(tmp_path_factory.mktemp("base-case"))
    yield made
    made.stop()


class Load:
    """Requests one after the other until stopped, bounded in count; failures are kept."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/invocations"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        body = {"inputs": [[0.0] * 784]}
        with httpx.Client(timeout=30) as client:
            for _ in range(MAX_REQUESTS):
                if self._stop.wait(0.02):
                    return
                try:
                    answer = client.post(self._url, json=body)
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                self.answered += 1


def trainings(bench: Workbench) -> list[str]:
    return [item["digest"] for item in bench.history(PROJECT) if item["stage"] == "train"]


def status_commits(bench: Workbench) -> int:
    return int(bench.git("rev-list", "--count", "origin/status/default"))


def test_merge_train_takeover_revert(bench: Workbench) -> None:
    """One story, because each act needs the one before it and training twice is the expensive part."""
    planned = bench.flops("plan", check=False)
    assert "train" in planned

    bench.flops("reconcile", "--once")
    first = bench.status(PROJECT)
    conditions = {item["type"]: item["status"] for item in first["conditions"]}
    assert conditions == {"Synced": "True", "Ready": "True"}
    assert first["model"]["version"] == "1"
    assert first["model"]["holdout"]["rows"] == 10_000
    assert first["model"]["holdout"]["accuracy"] >= 0.80
    assert first["model"]["holdout"]["accuracy"] == pytest.approx(stated_accuracy(PROJECT), abs=0.01)
    assert first["verification"]["passed"]
    address = first["service"]["address"]
    page = bench.flops("status", PROJECT)
    assert all(text in page for text in ("held out accuracy", "Converged", address, "register"))

    bench.git("fetch", "-q", "origin")
    commits = status_commits(bench)
    for _ in range(3):
        assert "Nothing to do" in bench.flops("reconcile", "--once")
    bench.git("fetch", "-q", "origin")
    assert status_commits(bench) == commits

    bench.edit_sla(PROJECT, "training_rounds: 3", "training_rounds: 10")
    bench.commit("Train for ten rounds")
    with Load(address) as load:
        bench.flops("reconcile", "--once")
    assert load.failures == []
    assert load.answered > 0
    second = bench.status(PROJECT)
    assert second["model"]["version"] == "2"
    assert second["model"]["holdout"]["accuracy"] >= 0.85
    assert second["service"] == {"address": address, "digest": second["digest"]}
    assert "training_configuration.training_rounds: 3 → 10" in second["change"]

    bench.git("revert", "--no-edit", "HEAD")
    bench.git("push", "-q", "origin", "HEAD:main")
    before = trainings(bench)
    bench.flops("reconcile", "--once")
    third = bench.status(PROJECT)
    assert third["digest"] == first["digest"]
    assert third["service"] == {"address": address, "digest": first["digest"]}
    assert third["model"]["version"] == "1"
    assert third["model"]["aliases"] == ["development"]
    assert trainings(bench) == before
    assert len(set(before)) == len(before) == 2


def test_the_registry_and_the_models_survive_the_loss_of_the_state(bench: Workbench) -> None:
    """The journal explains; without it nothing is trained again."""
    for path in (bench.clone / ".flops").glob("journal.db*"):
        path.unlink()
    assert "Nothing to do" in bench.flops("reconcile", "--once")
    assert trainings(bench) == []


def test_predict_and_test_inference(bench: Workbench) -> None:
    assert "predictions" in bench.flops("predict", PROJECT)
    assert "answers as the model's own" in bench.flops("test-inference", PROJECT)


def test_another_project_with_a_bad_sla_does_no_harm(bench: Workbench) -> None:
    bad = bench.clone / "projects" / "bad"
    bad.mkdir()
    (bad / "sla.yaml").write_text("customerID: demo\nml_repo_url: ./projects/mnist-classic/ml_repo\nml_model_flavour: x\n")
    bench.commit("A bad SLA")
    shown = bench.flops("reconcile", "--once", check=False)
    assert "did you mean" in shown.lower()
    document = bench.status("bad")
    assert {item["type"]: item["status"] for item in document["conditions"]}["Stalled"] == "True"
    assert bench.status(PROJECT)["live"]["healthy"]
    bad_files: list[Path] = list(bad.iterdir())
    for path in bad_files:
        path.unlink()
    bench.commit("Take it away again")
    bench.flops("reconcile", "--once")
    assert "bad" not in bench.flops("status", check=False)


def test_a_damaged_bundle_is_fetched_again_before_it_serves(bench: Workbench) -> None:
    digest = bench.status(PROJECT)["digest"]
    bundle = bench.clone / ".flops" / "bundles" / digest[:32]
    wanted = (bundle / "MLmodel").read_bytes()
    bench.flops("stop")
    (bundle / "MLmodel").chmod(0o644)
    (bundle / "MLmodel").write_bytes(wanted[:-20])
    bench.flops("reconcile", "--once")
    assert (bundle / "MLmodel").read_bytes() == wanted
    assert bench.status(PROJECT)["live"]["healthy"]
