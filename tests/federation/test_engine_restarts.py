"""The engine is restarted, with live-restore or not: trainings go on after their last round, servers are there again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.actors import ActorImages
from reconciler.errors import TrainingError
from reconciler.federation.containers import home_of, in_containers
from reconciler.federation.training import TrainingEvent, TrainingJob, TrainingResult, run_training
from reconciler.runtime_version import mlruntime_dir
from reconciler.runtimes.docker import DockerRuntime
from reconciler.runtimes.docker_actors import DockerActors
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.runtimes.docker_leftovers import leftovers
from reconciler.runtimes.model import ServiceSpec
from tests.dockerkit import base_image, open_engine, site_packages
from tests.runtimes.conftest import SERVER, get, observed, until

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parents[2] / "ci" / "engine.sh"


class OwnEngine:
    """An engine that nobody else uses."""

    def __init__(self, folder: Path, *, live_restore: bool) -> None:
        (folder / "daemon.json").write_text(json.dumps({"live-restore": live_restore}))
        self._environment = {**os.environ, "FLOPS_ENGINE_DIR": str(folder), "DOCKER_HOST": f"unix://{folder}/none.sock"}
        said = self._run("start")
        found = dict(item.split("=", 1) for item in shlex.split(said) if "=" in item)
        self.engine = DockerEngine(found["DOCKER_HOST"])
        self.live_restore = live_restore

    def restart(self) -> None:
        self._run("restart")

    def stop(self) -> None:
        self._run("stop")

    def _run(self, word: str) -> str:
        return subprocess.run([SCRIPT, word], env=self._environment, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["containers end", "live-restore"])
def own(request: pytest.FixtureRequest) -> Iterator[OwnEngine]:
    open_engine()  # where there is none, none can be started
    if os.getuid():
        pytest.skip("an engine of its own needs root")
    with tempfile.TemporaryDirectory(prefix="flops-own-") as folder:
        made = OwnEngine(Path(folder), live_restore=request.param)
        yield made
        made.stop()


def test_a_training_goes_on_after_its_last_round(own: OwnEngine, job: TrainingJob, tmp_path: Path) -> None:
    base = base_image(own.engine)
    images = ActorImages(
        base, base, binds=(mlruntime_dir(), site_packages(), job.repo_dir),
        env={"PYTHONPATH": os.pathsep.join([str(mlruntime_dir()), str(site_packages())])},
    )  # fmt: skip
    state = tmp_path / "state"

    def train(rounds: int, *, restart: bool) -> TrainingResult:
        def on_event(event: TrainingEvent) -> None:
            if restart and event.kind == "round" and event.round == 2:
                own.restart()

        launch = in_containers(DockerActors(DockerEngine(own.engine.host), state / "actors", instance="test"), images)
        return run_training(replace(job, rounds=rounds), on_event=on_event, cancelled=lambda: False, launch=launch)

    with pytest.raises(TrainingError) as caught:
        train(100_000, restart=True)
    # Who notices first differs: the engine's client, the reconciler, or the aggregator, whose learners are ended.
    assert caught.value.code in {"FL5002", "FL5510", "FL5605"}, str(caught.value)
    assert caught.value.transient
    done = len(list((job.run_dir / "rounds").glob("*.json")))
    assert train(done + 1, restart=False).resumed_from == done
    assert own.engine.containers(home_of(job.run_dir)) == []
    assert leftovers(own.engine, state).names == []


def test_a_server_is_there_again(own: OwnEngine, tmp_path: Path) -> None:
    runtime = DockerRuntime(tmp_path / "state" / "services", own.engine.host, instance="test")
    argv = ("python3", str(SERVER), "--say", "one", "--socket", "{socket}")
    spec = ServiceSpec(
        "demo", argv, tmp_path, health_path="/health", image=base_image(own.engine), memory_mb=128, start_timeout=60.0,
        health_interval=0.2, readable=(SERVER,),
    )  # fmt: skip
    try:
        service = runtime.apply(spec)
        home = runtime._home("demo")
        before = own.engine.containers(home)[0].id
        own.restart()
        if own.live_restore:
            assert get(service.address) == "one"
        else:
            until(lambda: observed(runtime).restarts >= 1, 60)
        assert until(lambda: observed(runtime).healthy, 60)
        assert get(service.address) == "one"
        found = own.engine.containers(home)
        assert len(found) == 1
        assert (found[0].id == before) == own.live_restore
    finally:
        runtime.remove("demo")
    assert own.engine.containers(home) == []
