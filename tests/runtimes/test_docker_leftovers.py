"""What the killed leave in an engine, and services that went while it was away: found by labels, told, removed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from docker.errors import NotFound
from typer.testing import CliRunner

from reconciler.actors import Actor, ActorSpec
from reconciler.cli import app
from reconciler.doctor import Doctor, Level
from reconciler.engine import read_config
from reconciler.errors import ServingError
from reconciler.runtimes.docker import DockerRuntime
from reconciler.runtimes.docker_actors import DockerActors
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.runtimes.docker_leftovers import leftovers, remove_leftovers
from reconciler.runtimes.model import ServiceSpec
from tests.conftest import Repos, commit
from tests.dockerkit import Cable, base_image, image_with, open_engine
from tests.runtimes.conftest import SERVER, until


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return open_engine()


@pytest.fixture
def state(engine: DockerEngine, tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "state"
    yield made
    remove_leftovers(engine, made)


class Sleeper:
    """An actor that does nothing, for as long as it may."""

    def __init__(self, engine: DockerEngine, state: Path, home: str) -> None:
        (state.parent / "door").mkdir(exist_ok=True)
        self.home, self.actors = home, DockerActors(engine, state / "actors", instance="test")
        self.actors.enter(home)
        self.actor: Actor = self.actors.start(
            ActorSpec(
                home=home, name=f"sleeper-{home}-{time.monotonic_ns()}", image=base_image(engine), command=("sleep", "600"), env={},
                labels={"flops.role": "learner"}, door=state.parent / "door", target="/run/flops", readable=(), writable=(),
                memory_mb=64, vcpus=1.0,
            )
        )  # fmt: skip


def test_an_actor_is_left_over_once_nobody_holds_its_run(engine: DockerEngine, state: Path, tmp_path: Path) -> None:
    sleeper = Sleeper(engine, state, "one")
    assert leftovers(engine, state).containers == ()
    sleeper.actors.leave("one")  # as the kernel does for one who is killed
    assert len(leftovers(engine, state).containers) == 1
    assert leftovers(engine, tmp_path / "another").containers == (), "another state directory's are none of ours"
    assert len(remove_leftovers(engine, state)) == 1
    with pytest.raises(NotFound):
        engine.client.containers.get(sleeper.actor._container.id)


def test_the_next_run_of_any_project_removes_them(engine: DockerEngine, state: Path) -> None:
    left = Sleeper(engine, state, "one")
    left.actors.leave("one")
    mine = Sleeper(engine, state, "two")
    assert [item.id for item in engine.containers("one")] == []
    assert len(engine.containers("two")) == 1
    mine.actor.remove()
    mine.actors.leave("two")


def test_two_that_train_the_same_run_do_not_sweep_each_other(engine: DockerEngine, state: Path) -> None:
    first = Sleeper(engine, state, "one")
    with pytest.raises(ServingError) as caught:
        Sleeper(engine, state, "one")
    assert (caught.value.code, caught.value.transient) == ("FL7051", True)
    assert len(engine.containers("one")) == 1
    first.actor.remove()
    first.actors.leave("one")


def test_what_a_service_left_that_went_while_the_engine_was_away(engine: DockerEngine, state: Path, repos: Repos) -> None:
    """The doctor tells of the container, `flops stop` removes it, and the network that nobody uses any more."""
    image = image_with(engine, "flops-test-server", {"/srv/server.py": SERVER}, base_image(engine))
    argv = ("python3", "/srv/server.py", "--host", "0.0.0.0", "--port", "{port}")
    cable = Cable(engine)
    instance = f"left-{time.monotonic_ns()}"
    runtime = DockerRuntime(state / "services", cable.host, instance=instance)
    spec = ServiceSpec("demo", argv, state, health_path="/health", image=image, memory_mb=128, start_timeout=60.0)
    runtime.apply(spec)
    (state / "actors").mkdir(exist_ok=True)
    assert leftovers(engine, state).names == []
    cable.pull()
    runtime.remove("demo")
    until(lambda: len(leftovers(engine, state).containers) == 1)
    cable.throw_away()
    clone = repos.clone()
    commit(clone, {"flops.yaml": f"runtime: docker\ndocker_host: {engine.host}\n"})
    doctor = Doctor(clone, state, state / "cache", read_config, time.time)
    finding = next(item for item in doctor.examine() if item.check == "leftovers")
    assert (finding.level, finding.code) == (Level.WARN, "FL7050")
    said = CliRunner().invoke(app, ["stop", "--repo", str(clone), "--state", str(state)])
    assert said.exit_code == 0, said.output
    assert f"flops-{instance}-demo" in said.output
    assert leftovers(engine, state).names == []
    with suppress(NotFound):
        engine.client.networks.get(f"flops-{instance}")
        pytest.fail("the network is still there")
