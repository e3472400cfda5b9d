"""Training in containers of a real engine: the same model as in processes, behind a higher fence."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from docker.models.containers import Container

from reconciler.actors import ActorImages
from reconciler.errors import TrainingError
from reconciler.federation.boxed_check import CheckedRepo, check_in_container
from reconciler.federation.containers import in_containers
from reconciler.federation.contract_check import ContractReport, check_contract
from reconciler.federation.launching import Launch
from reconciler.federation.training import ClusterShare, TrainingEvent, TrainingJob, TrainingResult, run_training
from reconciler.runtime_version import mlruntime_dir
from reconciler.runtimes.docker_actors import DockerActors
from reconciler.runtimes.docker_engine import DockerEngine
from tests.dockerkit import Cable, base_image, open_engine, site_packages
from tests.federation.processes import reconciler_of
from tests.federation.test_training import same


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return open_engine()


@pytest.fixture(scope="module")
def images(engine: DockerEngine) -> ActorImages:
    return images_of(engine)


def images_of(engine: DockerEngine) -> ActorImages:
    """A bare Debian; the environment that the tests run in is mounted, and so is the ML repo, which they spoil."""
    base = base_image(engine)
    return ActorImages(
        base,
        base,
        binds=(mlruntime_dir(), site_packages()),
        env={"PYTHONPATH": os.pathsep.join([str(mlruntime_dir()), str(site_packages())])},
    )


class Boxed:
    """Runs jobs in containers and keeps what they told."""

    def __init__(self, engine: DockerEngine, images: ActorImages, folder: Path) -> None:
        self.engine = engine
        self.images = images
        self.folder = folder
        self.events: list[TrainingEvent] = []

    def __call__(
        self,
        job: TrainingJob,
        on_event: Callable[[TrainingEvent], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> TrainingResult:
        def both(event: TrainingEvent) -> None:
            self.events.append(event)
            on_event(event)

        launch = in_containers(DockerActors(self.engine, self.folder, instance="test"), self.images)
        return run_training(job, on_event=both, cancelled=cancelled, launch=launch)

    def containers(self, job: TrainingJob) -> list[Container]:
        return self.engine.containers(hashlib.sha256(str(job.run_dir.resolve()).encode()).hexdigest()[:24])


@pytest.fixture
def boxed(engine: DockerEngine, images: ActorImages, job: TrainingJob, repo: Path, tmp_path: Path) -> Iterator[Boxed]:
    made = Boxed(engine, replace(images, binds=(*images.binds, repo)), tmp_path / "actors")
    yield made
    assert made.containers(job) == []


def default_launch(images: ActorImages, folder: Path) -> Launch:
    """In the engine of this machine."""
    return in_containers(DockerActors(DockerEngine(), folder, instance="test"), images)


def parameters(run_dir: Path, number: int) -> list[np.ndarray]:
    with np.load(run_dir / "rounds" / f"{number:04d}.npz") as archive:
        return [archive[name] for name in archive.files]


def test_containers_learn_what_processes_learn(job: TrainingJob, boxed: Boxed, run, tmp_path: Path) -> None:
    seen: dict[str, dict] = {}

    def look(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == 1:
            seen.update({item.labels["flops.role"]: item.attrs for item in boxed.containers(job)})

    result = boxed(job, on_event=look)
    assert [item.round for item in result.rounds] == [1, 2, 3]
    assert (result.model_dir / "MLmodel").is_file()
    assert result.holdout["rows"] == 300
    in_processes = run(job, run_dir=tmp_path / "processes")
    assert [item.accuracy for item in result.rounds] == [item.accuracy for item in in_processes.rounds]
    for one, other in zip(parameters(job.run_dir, 3), parameters(tmp_path / "processes", 3), strict=True):
        assert np.array_equal(one, other)
    assert set(seen) == {"aggregator", "learner", "export"}
    learner = seen["learner"]
    assert learner["HostConfig"]["NetworkMode"] == "none"
    assert learner["HostConfig"]["ReadonlyRootfs"]
    assert learner["HostConfig"]["CapDrop"] == ["ALL"]
    assert learner["HostConfig"]["Memory"] == learner["HostConfig"]["MemorySwap"] >= job.memory_mb << 20
    assert learner["HostConfig"]["NanoCpus"] == job.vcpus * 10**9
    assert learner["Config"]["User"].split(":")[0] not in ("", "0")
    assert learner["Config"]["Labels"]["flops.digest"] == job.digest
    visible = {mount["Destination"] for mount in learner["Mounts"] if not mount["RW"]}
    assert sum(str(shard) in visible for shard in job.shards) == 1, "a learner sees its own shard"
    assert str(job.run_dir) not in {mount["Destination"] for mount in learner["Mounts"]}


def test_a_learner_out_of_memory_is_told_with_the_limit(job: TrainingJob, boxed: Boxed, spoil) -> None:
    spoil("def fit_model(self)", "def fit_model(self):\n        self.hoard = bytearray(b'x' * 900_000_000)\n\n    def fit(self)")
    with pytest.raises(TrainingError) as caught:
        boxed(replace(job, memory_mb=50))
    assert caught.value.code == "FL5022"
    assert "450 MB" in caught.value.cause
    assert "`resource_constraints.memory` is 50 MB" in caught.value.cause
    assert not caught.value.transient


def test_a_killed_learner_comes_back_for_the_next_round(job: TrainingJob, boxed: Boxed) -> None:
    def kill(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == 1:
            next(item for item in boxed.containers(job) if item.labels["flops.role"] == "learner").kill()

    result = boxed(replace(job, rounds=40, min_fit=1, min_evaluate=1), on_event=kill)
    assert len(result.rounds) == 40
    kinds = [event.kind for event in boxed.events]
    assert "learner_failed" in kinds
    assert "learner_restarted" in kinds


def test_cancelling_leaves_no_container(job: TrainingJob, boxed: Boxed) -> None:
    with pytest.raises(TrainingError) as caught:
        boxed(replace(job, rounds=1000), cancelled=lambda: any(event.kind == "round" for event in boxed.events))
    assert caught.value.code == "FL5001"
    assert boxed.containers(job) == []


def test_a_killed_reconciler_takes_its_containers_with_it(job: TrainingJob, boxed: Boxed) -> None:
    """They end by themselves; what is left of them is swept by the next run, which goes on."""
    launch = partial(default_launch, boxed.images, boxed.folder)
    with reconciler_of(replace(job, rounds=100_000), launch) as reconciler:
        assert len(boxed.containers(job)) == 4
        reconciler.kill()
    deadline = time.monotonic() + 30
    while any(item.status == "running" for item in boxed.containers(job)):
        assert time.monotonic() < deadline, "containers outlive their reconciler"
        time.sleep(0.1)
    done = len(list((job.run_dir / "rounds").glob("*.npz")))
    assert boxed(replace(job, rounds=done + 1)).resumed_from >= 1


def test_user_code_finds_no_network_and_nothing_of_the_machine(job: TrainingJob, boxed: Boxed, spoil) -> None:
    data = [str(path) for path in (*job.shards, job.holdout)]
    probe = (
        "import os\n"
        "print('NET', [line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line], flush=True)\n"
        "print('UID', os.getuid(), 'PIDS', sorted(int(n) for n in os.listdir('/proc') if n.isdigit())[-1], flush=True)\n"
        f"print('DATA', [path for path in {data} if os.path.exists(path)], flush=True)\n"
        f"print('RUN', os.path.exists('{job.run_dir}/job.json'), flush=True)\n"
    )
    spoil("import", f"{probe}import", file="model_manager.py")
    boxed(replace(job, rounds=1))
    said = (job.run_dir / "child.log").read_text()
    assert "NET ['lo']" in said
    assert "UID 0" not in said
    seen = [line for line in said.splitlines() if line.startswith("DATA")]
    assert sorted(seen) == sorted(f"DATA ['{path}']" for path in data), "each sees its own data alone"
    assert "RUN True" not in said


@pytest.mark.skipif(os.getuid() != 0, reason="only root has files there")
def test_data_below_the_home_of_root_is_found(job: TrainingJob, boxed: Boxed) -> None:
    """Where the reconciler is root its cache is there, and images let nobody else in."""
    with tempfile.TemporaryDirectory(dir="/root") as home:
        shards = tuple(Path(shutil.copy(shard, home)) for shard in job.shards)
        assert len(boxed(replace(job, shards=shards, rounds=1)).rounds) == 1


def test_an_engine_that_is_gone(job: TrainingJob, images: ActorImages, tmp_path: Path) -> None:
    actors = DockerActors(DockerEngine(f"unix://{tmp_path}/no.sock"), tmp_path / "actors")
    with pytest.raises(TrainingError) as caught:
        run_training(job, on_event=lambda _: None, cancelled=lambda: False, launch=in_containers(actors, images))
    assert caught.value.code == "FL5510"
    assert caught.value.transient


def test_an_engine_that_goes_away_in_the_middle(job: TrainingJob, engine: DockerEngine, boxed: Boxed) -> None:
    """A transient error; the next run sweeps what could not be removed and goes on after the last finished round."""
    cable = Cable(engine)
    try:
        launch = in_containers(DockerActors(DockerEngine(cable.host), boxed.folder, instance="test"), boxed.images)

        def pull(event: TrainingEvent) -> None:
            if event.kind == "round" and event.round == 2:
                cable.pull()

        # As many rounds as it takes: the engine is gone long before they are over.
        long = replace(job, rounds=5000)
        with pytest.raises(TrainingError) as caught:
            run_training(long, on_event=pull, cancelled=lambda: False, launch=launch)
        assert caught.value.code == "FL5510"
        assert caught.value.transient
    finally:
        cable.throw_away()
    done = len(list((job.run_dir / "rounds").glob("*.npz")))
    assert done >= 2
    assert boxed(replace(job, rounds=done + 1)).resumed_from >= 2


def test_an_image_that_cannot_work(job: TrainingJob, engine: DockerEngine, tmp_path: Path) -> None:
    base = base_image(engine)
    with pytest.raises(TrainingError) as caught:
        run_training(
            job,
            on_event=lambda _: None,
            cancelled=lambda: False,
            launch=in_containers(DockerActors(engine, tmp_path / "actors", instance="test"), ActorImages(base, base)),
        )
    assert caught.value.code == "FL5511"
    assert "No module named" in (job.run_dir / "child.log").read_text()


def test_clusters_learn_in_containers_what_they_learn_in_processes(
    job: TrainingJob, four_shards: tuple[Path, ...], boxed: Boxed, run, tmp_path: Path
) -> None:
    """Each cluster aggregator has its own learners, each learner its own shard, and all of them their limits."""
    clusters = (ClusterShare("a", 2), ClusterShare("b", 2))
    job = replace(job, shards=four_shards, clusters=clusters, cycles=2, rounds=2)
    seen: list[Container] = []

    def look(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == 1:
            seen.extend(boxed.containers(job))

    result = boxed(job, on_event=look)
    assert {name: [item.round for item in rounds] for name, rounds in result.clusters.items()} == {
        "a": [1, 2, 3, 4],
        "b": [1, 2, 3, 4],
    }
    run(job, run_dir=tmp_path / "processes")
    assert same(job.run_dir, tmp_path / "processes", 2)
    roles = Counter(item.labels["flops.role"] for item in seen)
    assert roles == {"aggregator": 1, "cluster": 2, "learner": 4, "export": 1}
    for item in seen:
        host = item.attrs["HostConfig"]
        assert host["NetworkMode"] == "none"
        assert host["Memory"] == host["MemorySwap"] >= (job.memory_mb + 400) << 20
        assert host["NanoCpus"] == job.vcpus * 10**9
        given = {Path(mount["Source"]) for mount in item.attrs["Mounts"]} & {*four_shards, job.holdout}
        assert len(given) == (1 if item.labels["flops.role"] in ("learner", "export") else 0)


def test_virtual_learners_share_one_container_and_learn_the_same(
    job: TrainingJob, four_shards: tuple[Path, ...], boxed: Boxed, run, tmp_path: Path
) -> None:
    four_shards[0].parent.chmod(0o755)  # as folders of shards are; pytest's let nobody in
    job = replace(job, shards=four_shards, rounds=2, simulation={"processes": 1})
    seen: list[Container] = []

    def look(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == 1:
            seen.extend(boxed.containers(job))

    boxed(job, on_event=look)
    run(job, run_dir=tmp_path / "processes")
    assert same(job.run_dir, tmp_path / "processes", 2)
    host = next(item for item in seen if item.labels["flops.role"] == "virtual")
    assert host.attrs["HostConfig"]["Memory"] == (400 + 3 * job.memory_mb) << 20
    assert Counter(item.labels["flops.role"] for item in seen) == {"aggregator": 1, "virtual": 1, "export": 1}


@pytest.fixture
def checked(boxed: Boxed, repo: Path, shards: tuple[Path, ...]) -> Callable[[], ContractReport]:
    """Checks the ML repo in a container."""
    asked = CheckedRepo("digits", repo, shards[0], "sklearn", memory_mb=100, vcpus=1)
    actors = DockerActors(boxed.engine, boxed.folder, instance="test")
    return lambda: check_in_container(actors, boxed.images, asked)


def test_the_check_of_an_ml_repo_in_a_container_is_that_of_a_process(checked, repo: Path, shards: tuple[Path, ...]) -> None:
    report = checked()
    assert replace(report, seconds={}) == replace(check_contract(Path(sys.executable), repo, shards[0], "sklearn"), seconds={})


def test_what_the_check_finds_in_a_container_is_told_with_its_place(checked, spoil, boxed: Boxed) -> None:
    spoil(
        "def fit_model(self)",
        "def fit_model(self):\n        raise ValueError(open('/proc/net/dev').read().count(':'))\n\n    def f(self)",
    )
    with pytest.raises(TrainingError) as caught:
        checked()
    assert caught.value.where is not None
    assert caught.value.where.path == "model_manager.py"
    assert "ValueError: 1" in caught.value.cause, "no network but lo"
    assert not boxed.folder.exists() or list(boxed.folder.iterdir()) == []


def test_a_check_that_needs_too_much_memory_is_told_with_the_limit(checked, spoil) -> None:
    spoil("def fit_model(self)", "def fit_model(self):\n        hoard = bytearray(b'x' * 900_000_000)\n\n    def f(self)")
    with pytest.raises(TrainingError) as caught:
        checked()
    assert (caught.value.code, "500 MB" in caught.value.cause) == ("FL5022", True)
