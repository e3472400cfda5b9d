"""`deletion_policy: delete`: models, runs and images go after the SLA, once nothing else uses them, and only on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.events import Observer
from reconciler.execution import Ending
from reconciler.images.registry import Registry
from reconciler.images.store import ImageStore, image_name
from reconciler.plan import Change
from reconciler.running import StagesExecutor
from tests.conftest import Repos, git
from tests.controller.looping import DEPLOY, Looping
from tests.images.imagekit import PATIENT, make_image

DELETE = f"{DEPLOY}deletion_policy: delete\n"


@pytest.fixture
def loop(repos: Repos) -> Looping:
    return Looping(repos)


def left(loop: Looping) -> set[str]:
    """The projects of which anything is left."""
    world = loop.world
    images = {name.split("/")[1].split(":")[0] for name in world.images}
    services = {name.removeprefix("inference-") for name in world.services}
    return {item.project for item in world.versions("demo")} | {project for _, project, _ in world.runs} | images | services


@pytest.mark.parametrize(("more", "stays"), [(DELETE, {"b"}), (DEPLOY, {"a", "b"})])
def test_what_a_removed_project_leaves(loop: Looping, more: str, stays: set[str]) -> None:
    loop.edit(loop.project("a", more=more) | loop.project("b", rounds=2))
    loop.settle()
    loop.remove("a")
    loop.settle()
    assert left(loop) == stays
    assert list(loop.world.services) == ["inference-b"]
    assert set(loop.controller.ledger.documents) == {"b"}
    commits, actions = loop.commits(), loop.world.actions
    loop.settle()
    assert (loop.commits(), loop.world.actions) == (commits, actions)


def test_a_policy_that_comes_later_counts_without_any_work(loop: Looping) -> None:
    loop.edit(loop.project("a") | loop.project("b", rounds=2))
    loop.settle()
    actions = loop.world.actions
    loop.edit(loop.project("a", more=DELETE))
    loop.settle()
    assert loop.world.actions == actions
    assert loop.status("a")["deletion_policy"] == "delete"
    loop.edit(loop.project("a"))
    loop.settle()
    assert "deletion_policy" not in loop.status("a")


def test_the_policy_outlives_sla_controller_and_state_directory(loop: Looping) -> None:
    """Removed while no controller runs; the next one has nothing but the status branch."""
    loop.edit(loop.project("a", more=DELETE) | loop.project("b", rounds=2))
    loop.settle()
    loop.controller.stop()
    loop.remove("a")
    loop.start("another")
    loop.settle()
    assert left(loop) == {"b"}


def test_what_cannot_be_deleted_stays_in_the_inventory_and_is_tried_again(loop: Looping) -> None:
    loop.edit(loop.project("a", more=DELETE) | loop.project("b", rounds=2))
    loop.settle()
    loop.world.refuses = "the registry does not allow it"
    loop.remove("a")
    loop.settle()
    assert left(loop) == {"a", "b"}
    assert loop.says("a", "Reconciling") == ("True", "ProgressingWithRetry", "the registry does not allow it")
    loop.start("another")
    loop.settle()
    assert loop.says("a", "Reconciling")[1] == "ProgressingWithRetry"
    loop.world.refuses = ""
    loop.clock.now += 2000
    loop.settle()
    assert left(loop) == {"b"}


def test_a_rename_deletes_nothing_that_is_used(loop: Looping) -> None:
    shared = {"shared/model_manager.py": "class ModelManager: ...\n"}
    files = {path: text.replace("./projects/a/ml_repo", "./shared") for path, text in loop.project("a", more=DELETE).items()}
    loop.edit(shared | files)
    loop.settle()
    git(loop.user, "mv", "projects/a", "projects/b")
    loop.edit({})
    loop.settle()
    assert [name for name, _ in loop.world.trained] == ["a"]
    assert list(loop.world.services) == ["inference-b"]
    assert loop.says("b", "Synced")[:2] == ("True", "Converged")
    assert {item.project for item in loop.world.versions("demo")} == {"a", "b"}
    assert loop.says("a", "Reconciling")[1:] == ("DependencyNotReady", "waits for b")
    loop.edit({"shared/model_manager.py": "class ModelManager: '''newer'''\n"})
    loop.settle()
    assert {item.project for item in loop.world.versions("demo")} == {"b"}
    assert set(loop.controller.ledger.documents) == {"b"}


def renamed(loop: Looping, more: str) -> None:
    """Project a becomes b, with its own ML repo moved along."""
    git(loop.user, "mv", "projects/a", "projects/b")
    loop.edit({path: text for path, text in loop.project("b", more=more).items() if path.endswith("sla.yaml")})
    loop.settle()


def test_a_rename_with_a_mistake_in_it_loses_nothing(loop: Looping) -> None:
    """What b declares cannot be read, so nobody knows yet that it is a: what was a's waits until it is known."""
    loop.edit(loop.project("a", more=DELETE) | loop.project("other", rounds=2))
    loop.settle()
    renamed(loop, f"{DELETE}nonsense: 1\n")
    assert loop.says("b", "Synced")[:2] == ("False", "InvalidSLA")
    loop.clock.now += 5000
    loop.settle()
    assert left(loop) == {"a", "other"}
    assert loop.says("a", "Reconciling")[1:] == ("DependencyNotReady", "waits for b")
    loop.edit({path: text for path, text in loop.project("b", more=DELETE).items() if path.endswith("sla.yaml")})
    loop.settle()
    assert sorted(name for name, _ in loop.world.trained) == ["a", "other"], "the model was adopted, not trained again"
    assert loop.says("b", "Synced")[:2] == ("True", "Converged")


def test_a_mistake_that_is_taken_away_lets_the_deletion_go_on(loop: Looping) -> None:
    loop.edit(loop.project("a", more=DELETE) | loop.project("other", rounds=2))
    loop.settle()
    renamed(loop, "nonsense: 1\n")
    loop.remove("b")
    loop.settle()
    assert left(loop) == {"other"}


def test_a_project_with_a_history_that_broke_is_no_heir(loop: Looping) -> None:
    """Else one customer's old mistake would keep what others removed for good."""
    loop.edit(loop.project("a", more=DELETE) | loop.project("other", rounds=2))
    loop.settle()
    loop.edit(loop.project("other", rounds=2, more="nonsense: 1\n"))
    loop.settle()
    loop.remove("a")
    loop.settle()
    assert left(loop) == {"other"}


def test_an_empty_source_deletes_nothing(loop: Looping) -> None:
    """Also when no service is left to say that there was something."""
    loop.edit(loop.project("a", more="deletion_policy: delete\n"))
    loop.settle()
    assert not loop.world.services
    loop.remove("a")
    loop.settle()
    assert left(loop) == {"a"}
    assert any("FL9005" in text for text in loop.warnings)
    loop.edit(loop.project("a", more="deletion_policy: delete\n"))
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert len(loop.world.trained) == 1


def test_a_project_that_comes_back_in_time_is_kept(loop: Looping) -> None:
    loop.edit(loop.project("a", more=DELETE) | loop.project("b", rounds=2))
    loop.settle()
    loop.world.refuses = "not now"
    loop.remove("a")
    loop.settle()
    loop.edit(loop.project("a", more=DELETE))
    loop.world.refuses = ""
    loop.clock.now += 2000
    loop.settle()
    assert len(loop.world.trained) == 2
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")


def test_the_executor_deletes_images_and_models_and_says_what_it_could_not(loop: Looping, tmp_path: Path) -> None:
    """The one of `flops serve`, with an image store on disk; a registry that refuses leaves the models for the next time."""
    loop.edit(loop.project("a", more=DELETE) | loop.project("b", rounds=2))
    loop.settle()
    loop.world.refuses = "not now"
    loop.remove("a")
    loop.settle()
    view = loop.controller.look().projects["a"]
    assert view.plan.change is Change.DELETE
    store = ImageStore(tmp_path / "store", tmp_path / "cache")
    make_image(store.layout, image_name("demo", "a", "0" * 64), content=b"a")
    make_image(store.layout, image_name("demo", "b", "0" * 64), content=b"b")
    loop.engine.images = store
    execute = StagesExecutor(loop.engine, Observer(loop.engine.journal))
    refusing = ImageStore(tmp_path / "store", tmp_path / "cache", registry="127.0.0.1:1/team", connect=_hasty)
    loop.engine.images = refusing
    assert execute(view, lambda: False).ending is Ending.TRANSIENT
    assert len(store.layout.tags()) == 2
    assert execute(view, lambda: True).ending is Ending.CANCELLED
    loop.engine.images = store
    done = execute(view, lambda: False)
    assert (done.ending, done.message) == (Ending.DONE, "deleted 1 images and 2 versions and runs")
    assert list(store.layout.tags()) == [image_name("demo", "b", "0" * 64)]
    assert {item.project for item in loop.world.versions("demo")} == {"b"}
    assert execute(view, lambda: False).message == "deleted 0 images and 0 versions and runs"


def _hasty(host: str) -> Registry:
    return Registry(host, patience=PATIENT)


def test_a_remote_that_is_gone_deletes_nothing(loop: Looping, tmp_path: Path) -> None:
    loop.edit(loop.project("a", more=DELETE))
    loop.settle()
    loop.repos.origin.rename(tmp_path / "away.git")
    loop.settle()
    (tmp_path / "away.git").rename(loop.repos.origin)
    assert left(loop) == {"a"}
