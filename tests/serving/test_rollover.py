"""A new version takes over under load without one failed request, and only when it is healthy and answers rightly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from reconciler.errors import ServingError
from reconciler.runtimes.process import ProcessRuntime
from reconciler.serving.client import version
from reconciler.serving.verify import verify
from tests.serving.conftest import Saved, serving

CLIENTS = 4


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[ProcessRuntime]:
    made = ProcessRuntime(tmp_path / "services")
    yield made
    for service in made.observe():
        made.remove(service.name)


class Load:
    """Clients that ask without a pause, half of them over connections that they keep."""

    def __init__(self, address: str, saved: Saved) -> None:
        self.answers: list[list[float]] = []
        self.faults: list[str] = []
        self._over = threading.Event()
        self._url = f"http://{address}/invocations"
        self._body = json.dumps({"inputs": saved.inputs[:3].tolist()}).encode()
        self._threads = [threading.Thread(target=self._ask, args=(at % 2 == 0,)) for at in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, keep: bool) -> None:
        headers = {"content-type": "application/json"} | ({} if keep else {"connection": "close"})
        with httpx.Client(timeout=30) as client:
            while not self._over.wait(0.003):
                try:
                    answer = client.post(self._url, content=self._body, headers=headers)
                    self.answers.append(answer.raise_for_status().json()["predictions"])
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    self.faults.append(f"{'kept' if keep else 'fresh'}: {error!r}")

    def wait_for(self, more: int) -> None:
        """Until so many further answers have come."""
        wanted = len(self.answers) + more
        for _ in range(3000):
            if len(self.answers) >= wanted or self.faults:
                return
            self._over.wait(0.01)
        raise AssertionError("the clients get no answers")


def test_no_request_fails_while_versions_change(runtime: ProcessRuntime, tensor_model: Saved, other_tensor_model: Saved) -> None:
    service = runtime.apply(serving(tensor_model, "one"))
    with Load(service.address, tensor_model) as load:
        load.wait_for(50)
        for saved, name in ((other_tensor_model, "two"), (tensor_model, "three"), (other_tensor_model, "four")):
            assert runtime.apply(serving(saved, name)).address == service.address
            load.wait_for(100)
    assert load.faults == []
    possible = [saved.predictions[:3] for saved in (tensor_model, other_tensor_model)]
    kinds = {next(at for at, wanted in enumerate(possible) if np.allclose(wanted, answer, rtol=1e-4)) for answer in load.answers}
    assert kinds == {0, 1}
    assert version(service.address)["digest"] == "four"
    assert np.allclose(load.answers[-1], possible[1], rtol=1e-4)


def test_a_killed_server_is_back_and_fresh_connections_wait_for_it(runtime: ProcessRuntime, tensor_model: Saved) -> None:
    import os
    import signal

    service = runtime.apply(serving(tensor_model, "one"))
    os.kill(service.pid or 0, signal.SIGKILL)
    answer = httpx.post(f"http://{service.address}/invocations", json={"inputs": tensor_model.inputs[:2].tolist()}, timeout=30)
    assert answer.json()["predictions"] == tensor_model.predictions[:2].tolist()


def test_a_version_that_answers_wrongly_does_not_take_over(
    runtime: ProcessRuntime, tensor_model: Saved, other_tensor_model: Saved, tmp_path: Path
) -> None:
    samples = tensor_model.samples(tmp_path / "samples.npz")
    service = runtime.apply(serving(tensor_model, "one"))

    def check(address: str) -> None:
        result = verify(address, samples, "two")
        if not result.passed:
            raise ServingError("FL7093", result.reason, cure="Look at the model.")

    with Load(service.address, tensor_model) as load:
        load.wait_for(20)
        with pytest.raises(ServingError, match="differ from the model's own"):
            runtime.apply(serving(other_tensor_model, "two"), verify=check)
        load.wait_for(20)
    assert load.faults == []
    assert all(answer == tensor_model.predictions[:3].tolist() for answer in load.answers)
    assert version(service.address)["digest"] == "one"
    runtime.apply(serving(tensor_model, "two"), verify=check)
    assert version(service.address)["digest"] == "two"


def test_a_bundle_that_cannot_be_loaded_does_not_take_over(runtime: ProcessRuntime, tensor_model: Saved, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "MLmodel").write_text((tensor_model.folder / "MLmodel").read_text())
    (broken / "model.pkl").write_bytes(b"not a pickle")
    service = runtime.apply(serving(tensor_model, "one"))
    with pytest.raises(ServingError, match="UnpicklingError"):
        runtime.apply(serving(Saved(broken, *[tensor_model.inputs] * 3), "two"))
    assert version(service.address)["digest"] == "one"
    assert runtime.observe()[0].healthy


def test_a_kept_connection_is_told_to_move_to_the_new_version(runtime: ProcessRuntime, tensor_model: Saved) -> None:
    service = runtime.apply(serving(tensor_model, "one"))
    with httpx.Client(base_url=f"http://{service.address}") as client:
        assert "connection" not in client.get("/version").headers
        runtime.apply(serving(tensor_model, "two"))
        answers = []
        for _ in range(200):  # the old version hears of the takeover at once, but not before us
            answers.append(client.get("/version"))
            if answers[-1].json()["digest"] == "two":
                break
        assert answers[-1].json()["digest"] == "two"
        assert answers[-2].headers["connection"] == "close"
