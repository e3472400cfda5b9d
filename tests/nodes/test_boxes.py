"""Nodes whose learners are containers of a real engine: what processes learn, behind a higher fence."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container

from reconciler.commands.nodes import Containers, containers_of, join
from reconciler.errors import TrainingError
from reconciler.federation.data import arrow_files
from reconciler.federation.training import TrainingEvent
from reconciler.nodes import keys
from reconciler.runtimes.docker_engine import OWNER, PIDS_LIMIT, DockerEngine, owner_of
from tests.dockerkit import Cable, open_engine
from tests.engine import BASE
from tests.federation.test_training import same
from tests.nodes.boxkit import own_lock
from tests.nodes.kit import Federation, Process, Seen, eventually, slow
from tests.nodes.test_federation import after_round
from tests.podmankit import podman_engine

DOCKER = ("--runtime", "docker")


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return open_engine()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers of the lock are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def boxed(tmp_path: Path, engine: DockerEngine, cache: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, lock=own_lock(), cache=cache)
    try:
        yield made.start()
    finally:
        made.stop()
        left = [item for name in made.nodes for item in containers(engine, made, name)]
        assert left == [], "a node that ends in order leaves no container"


def containers(engine: DockerEngine, federation: Federation, name: str) -> list[Container]:
    """Those of a node."""
    return engine.containers(owner_of(federation.root / name / "data" / "work-0-of-1"), label=OWNER)


def again_as(process: Process, *, options: tuple[str, ...] = ()) -> None:
    """The node once more, with the same key and data, as something else."""
    process.kill(signal.SIGTERM)
    process.command = [*process.command[: process.command.index("--runtime")], *options]
    process.start()


@pytest.mark.timeout(600)  # the first image of a machine has its wheels downloaded
def test_containers_of_nodes_learn_what_processes_learn(boxed: Federation, engine: DockerEngine) -> None:
    for seed, name in enumerate(("a", "b"), 1):
        boxed.node(name, seed=seed, options=DOCKER).start()
    seen: list[dict[str, Any]] = []
    result = boxed.train(2, after_round(1, lambda: seen.extend(item.attrs for item in containers(engine, boxed, "a"))))
    assert [item.learners_fit for item in result.rounds] == [2, 2, 2]

    (learner,) = seen
    host, config = learner["HostConfig"], learner["Config"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"]
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert host["PidsLimit"] == PIDS_LIMIT
    assert host["Memory"] == host["MemorySwap"] == (200 + 400) << 20, "what the SLA asks for, and libraries"
    assert host["NanoCpus"] == 10**9
    assert config["User"].split(":")[0] not in ("", "0")
    assert config["Labels"]["flops.digest"] == "cd" * 32
    assert config["Labels"]["flops.node"] in boxed.nodes["a"].said()
    mounts = {Path(item["Destination"]): item["RW"] for item in learner["Mounts"]}
    assert [writable for path, writable in mounts.items() if path.suffix == ".arrow"] == [False]

    for name in ("a", "b"):
        again_as(boxed.nodes[name])
    boxed.train(2, relay=boxed.relay("ef" * 32), run_dir=boxed.root / "again", digest="ef" * 32)
    assert same(boxed.root / "run", boxed.root / "again", 3)


def failing(boxed: Federation, repo: Path, code: str, digest: str) -> TrainingError:
    """What a training ends with whose `fit_model` does this."""
    path, sound = repo / "model_manager.py", (repo / "model_manager.py").read_text()
    path.write_text(sound.replace("for _ in range(10):", f"{code}\n        for _ in []:"))
    with pytest.raises(TrainingError) as caught:
        boxed.train(1, relay=boxed.relay(digest, repo), repo_dir=repo, digest=digest, run_dir=boxed.root / digest)
    path.write_text(sound)
    return caught.value


@pytest.mark.long
def test_a_learner_that_needs_more_than_the_owner_gives_is_told_with_both_numbers(boxed: Federation, repo: Path) -> None:
    boxed.node("a", options=(*DOCKER, "--memory", "450", "--data", "data")).start()  # where it was started
    told = failing(boxed, repo, "self.hoard = bytearray(b'x' * 900_000_000)", "01" * 32)
    assert (told.code, told.transient) == ("FL5022", False)
    assert "450 MB" in told.cause
    assert "`resource_constraints.memory` is 200 MB" in told.cause
    assert "The node gives a learner no more" in told.cause
    assert "--memory" in told.cure


@pytest.mark.long
def test_what_the_code_raises_is_told_as_of_a_process_and_the_next_run_is_served(boxed: Federation, repo: Path) -> None:
    boxed.node("a", options=DOCKER).start()
    seen = 'open("/proc/net/dev").read().count(":")', "os.getuid()", 'os.path.exists("/var/run/docker.sock")'
    probe = f"import os; raise ValueError(f'patient {' '.join(f'{{{item}}}' for item in seen)}')"
    told = failing(boxed, repo, probe, "01" * 32)
    assert (told.code, "ValueError" in told.cause, "patient" in str(told)) == ("FL5015", True, False)
    assert told.where is not None
    assert told.where.path == "model_manager.py"
    assert "patient 1 65532 False" in boxed.nodes["a"].said(), "no network but lo"
    assert [item.learners_fit for item in boxed.train(1, rounds=1).rounds] == [1]


@pytest.mark.long
def test_a_killed_node_leaves_nothing_that_its_next_start_does_not_remove(
    boxed: Federation, engine: DockerEngine, repo: Path
) -> None:
    node = boxed.node("a", options=DOCKER).start()
    boxed.node("b").start()
    eventually(lambda: all("connected" in each.said() for each in boxed.nodes.values()))
    seen = Seen()

    def act(event: TrainingEvent) -> None:
        seen(event)
        after_one(event)

    def kill() -> None:
        node.kill()
        eventually(lambda: [item.status for item in containers(engine, boxed, "a")] == ["exited"])
        node.start()

    after_one = after_round(1, kill)
    slow(repo, 0.3)
    with pytest.raises(TrainingError) as caught:
        boxed.train(
            1, act, boxed.relay(repo=repo), repo_dir=repo, rounds=500, round_timeout=10.0,
            cancelled=lambda: 2 in seen.learners[2:],
        )  # fmt: skip
    assert caught.value.code == "FL5001", "cancelled by the test, when both were there again"
    assert "which was left over" in node.said()


@pytest.mark.long
def test_an_engine_that_goes_away_costs_its_learners_alone_and_they_come_back(
    boxed: Federation, engine: DockerEngine, repo: Path
) -> None:
    cable = Cable(engine)
    boxed.node("a", options=(*DOCKER, "--docker-host", cable.host)).start()
    boxed.node("b").start()
    eventually(lambda: all("connected" in each.said() for each in boxed.nodes.values()))
    seen = Seen()

    def act(event: TrainingEvent) -> None:
        seen(event)
        for each in steps:
            each(event)

    steps = (after_round(1, cable.pull), after_round(4, cable.plug))
    slow(repo, 0.3)
    try:
        with pytest.raises(TrainingError) as caught:
            boxed.train(1, act, boxed.relay(repo=repo), repo_dir=repo, rounds=500, cancelled=lambda: 2 in seen.learners[4:])
        assert caught.value.code == "FL5001", "cancelled by the test, when both learners were there again"
        assert seen.learners[:1] == [2]
        assert 1 in seen.learners[1:4]
        failed = [event.data["failure"] for event in boxed.events if event.kind == "learner_failed"]
        assert {item["code"] for item in failed} == {"FL5611"}
        assert all(item["transient"] and cable.host not in str(item) for item in failed)
        assert "FL7101" in boxed.nodes["a"].said()
        assert "lost" not in boxed.nodes["a"].said(), "the node itself stays"
    finally:
        boxed.nodes["a"].kill(signal.SIGTERM)
        cable.throw_away()


@pytest.mark.long
def test_held_out_rows_are_in_a_container_of_their_own_of_the_image_that_the_owner_names(
    boxed: Federation, engine: DockerEngine, base_layout: Path
) -> None:
    options = (*DOCKER, "--image", f"oci:{base_layout}:{BASE}", "--cpus", "0.5")
    boxed.node("a", rows=200, test_fraction=0.2, options=options).start()
    seen: list[dict[str, Any]] = []
    result = boxed.train(1, after_round(1, lambda: seen.extend(item.attrs for item in containers(engine, boxed, "a"))), rounds=1)
    assert result.holdout["rows"] == 40
    assert seen[0]["HostConfig"]["NanoCpus"] == 5 * 10**8
    (shard,) = [item["Source"] for item in seen[0]["Mounts"] if item["Source"].endswith(".arrow")]
    assert arrow_files.read(Path(shard)).num_rows == 160, "held-out rows are not in the container that trains"


@pytest.mark.long
def test_an_image_that_cannot_be_made_is_told_without_the_nodes_paths(boxed: Federation, base_layout: Path) -> None:
    boxed.node("a", options=(*DOCKER, "--image", f"oci:{base_layout}:other:name")).start()
    with pytest.raises(TrainingError) as caught:
        boxed.train(1)
    assert caught.value.code == "FL5612"
    assert "--image" in caught.value.cure
    assert str(base_layout) not in str(caught.value)
    assert str(base_layout) in boxed.nodes["a"].said()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_podman_has_learners_too(boxed: Federation, tmp_path_factory: pytest.TempPathFactory) -> None:
    with podman_engine(tmp_path_factory.mktemp("podman")) as podman:
        boxed.node("a", options=(*DOCKER, "--docker-host", podman.host)).start()
        assert [item.learners_fit for item in boxed.train(1).rounds] == [1, 1, 1]
        boxed.nodes["a"].kill(signal.SIGTERM)
        assert containers(podman, boxed, "a") == []


# --- what is refused before anything begins -------------------------------------------------------------------------------


def joining(tmp_path: Path, containers: Containers) -> TrainingError:
    keys.generate(tmp_path / "node.key")
    with pytest.raises(TrainingError) as caught:
        join(
            superlink="127.0.0.1:9", data=tmp_path, tags="blobs", cluster="", root_certificates=None, key=None, partition=(0, 1),
            containers=containers,
        )  # fmt: skip
    return caught.value


def test_a_node_without_an_engine_does_not_join(tmp_path: Path) -> None:
    refused = joining(tmp_path, Containers(docker_host=f"unix://{tmp_path}/none.sock"))
    assert refused.code == "FL5611"
    assert "--docker-host" in refused.cure


def test_an_engine_of_another_machine_is_refused(tmp_path: Path) -> None:
    refused = joining(tmp_path, Containers(docker_host="tcp://engine.example.invalid:2376"))
    assert (refused.code, refused.transient) == ("FL5611", False)


@pytest.mark.parametrize("image", ["", "default", "debian", "python:3.11", "scratch{os}"])
def test_a_base_image_that_is_none_is_refused(tmp_path: Path, image: str) -> None:
    assert joining(tmp_path, Containers(image=image)).code == "FL5610"


def test_limits_of_containers_without_containers_are_refused() -> None:
    with pytest.raises(TrainingError, match="--memory, --cpus: for containers only") as caught:
        containers_of("process", image=None, memory_mb=100, cpus=1.0)
    assert caught.value.code == "FL5610"
    assert containers_of("process", image=None) is None
    assert containers_of("docker", image=None, memory_mb=100) == Containers(memory_mb=100)
