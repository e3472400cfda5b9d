"""Training in Podman's containers: what Docker's and processes learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.actors import ActorImages
from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingJob
from reconciler.runtimes.docker_engine import DockerEngine
from tests.federation.test_containers import Boxed, images_of
from tests.federation.test_training import same
from tests.podmankit import podman_engine


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    with podman_engine(tmp_path_factory.mktemp("podman")) as engine:
        yield engine


@pytest.fixture(scope="module")
def images(podman: DockerEngine) -> ActorImages:
    return images_of(podman)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_containers_learn_what_processes_learn(
    podman: DockerEngine, images: ActorImages, job: TrainingJob, repo: Path, run, tmp_path: Path
) -> None:
    boxed = Boxed(podman, replace(images, binds=(*images.binds, repo)), tmp_path / "actors")
    result = boxed(job)
    run(job, run_dir=tmp_path / "processes")
    assert [item.round for item in result.rounds] == [1, 2, 3]
    assert result.holdout["rows"] == 300
    assert same(job.run_dir, tmp_path / "processes", 3)
    assert boxed.containers(job) == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_learner_out_of_memory_is_told_with_the_limit(
    podman: DockerEngine, images: ActorImages, job: TrainingJob, repo: Path, spoil, tmp_path: Path
) -> None:
    spoil("def fit_model(self)", "def fit_model(self):\n        self.hoard = bytearray(b'x' * 900_000_000)\n\n    def fit(self)")
    boxed = Boxed(podman, replace(images, binds=(*images.binds, repo)), tmp_path / "actors")
    with pytest.raises(TrainingError) as raised:
        boxed(replace(job, memory_mb=50))
    # Podman does not tell why; so both that there can be are said.
    assert raised.value.code == "FL5605"
    assert "its limit of 450 MB was not enough" in raised.value.cause
    assert boxed.containers(job) == []
