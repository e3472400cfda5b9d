"""The examples for PyTorch and Keras from end to end: a merged SLA becomes a service that answers as the model does."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from bench.workbench import Workbench, make
from tests.flavorkit import FLAVORS, example, python_of, stated_accuracy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    for flavor in FLAVORS:
        python_of(example(flavor), flavor)
    made = make(tmp_path_factory.mktemp("flavors"), *(f"digits-{flavor}" for flavor in FLAVORS))
    made.flops("reconcile", "--once", check=False)
    yield made
    made.stop()


@pytest.mark.parametrize("flavor", FLAVORS)
def test_an_example_is_trained_gated_packaged_served_and_verified(bench: Workbench, flavor: str) -> None:
    project = f"digits-{flavor}"
    status = bench.status(project)
    assert {item["type"]: item["status"] for item in status["conditions"]} == {"Synced": "True", "Ready": "True"}
    assert [item["stage"] for item in bench.history(project) if item["result"] == "failed"] == []
    assert status["verification"]["passed"]
    assert status["verification"]["matched"] == status["model"]["holdout"]["rows"] == 359


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_accuracy_is_what_the_readme_says(bench: Workbench, flavor: str) -> None:
    """To one per cent: the last digits differ from processor to processor."""
    project = f"digits-{flavor}"
    assert bench.status(project)["model"]["holdout"]["accuracy"] == pytest.approx(stated_accuracy(project), abs=0.01)


@pytest.mark.parametrize(("flavor", "shape"), [("pytorch", (1, 8, 8)), ("keras", (8, 8, 1))])
def test_the_service_says_what_is_wrong_with_a_request(bench: Workbench, flavor: str, shape: tuple[int, ...]) -> None:
    url = f"http://{bench.status(f'digits-{flavor}')['service']['address']}/invocations"
    answer = httpx.post(url, json={"inputs": [[1.0, 2.0]]}, timeout=60)
    assert answer.status_code == 400
    assert str((-1, *shape)) in answer.json()["message"]
    assert httpx.post(url, json={"inputs": [[["x"]]]}, timeout=60).status_code == 400


def test_an_idle_cycle_does_nothing(bench: Workbench) -> None:
    assert "Nothing to do" in bench.flops("reconcile", "--once")
