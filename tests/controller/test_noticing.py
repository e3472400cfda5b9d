"""A look works out what changed and nothing else, misses nothing that changed, and forgets nothing when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.desired import DesiredState, Found
from reconciler.errors import SourceError
from reconciler.federation.data import DataCatalog
from reconciler.plan import DesiredProject
from reconciler.source import GitRepo, MLRepos
from reconciler.spec import OperatorConfig
from reconciler.stages import Declared
from tests.conftest import Repos, commit, git
from tests.controller.looping import Looping

SLA = "customerID: me\nml_repo_url: {url}\nml_model_flavor: sklearn\ntraining_configuration: {{data_tags: [mine]}}\n{more}"


class Site:
    """A repo of three projects: one with its ML repo in its own folder, two that share one."""

    def __init__(self, repos: Repos, **config: Any) -> None:
        self.path = repos.clone()
        self.data = repos.root / "mine"
        self.data.mkdir()
        (self.data / "rows.csv").write_text("x\n1\n")
        self.repo = GitRepo(self.path)
        self.now = 0.0
        self.repos = MLRepos(self.repo, repos.root / "cache")
        self.state = DesiredState(
            self.repos,
            DataCatalog(repos.root / "data", {"mine": self.data}),
            clock=lambda: self.now,
            config=OperatorConfig.model_validate(config),
        )
        self.documents: dict[str, Mapping[str, Any]] = {}
        self.before: Mapping[str, Found] = {}
        files = {f"{folder}/model_manager.py": "x\n" for folder in ("ml", "projects/own/ml")}
        commit(self.path, files | self.sla("own", "./projects/own/ml") | self.sla("one") | self.sla("two"))

    def sla(self, name: str, url: str = "./ml", more: str = "") -> dict[str, str]:
        return {f"projects/{name}/sla.yaml": SLA.format(url=url, more=more)}

    def edit(self, files: dict[str, str]) -> set[str]:
        commit(self.path, files)
        return self.look()

    def look(self) -> set[str]:
        """The projects that are other objects than at the last look."""
        found = self.state.of(self.repo.read_snapshot(git(self.path, "rev-parse", "HEAD")), self.documents)
        before, self.before = self.before, found
        assert list(found) == sorted(found)
        return {name for name in found.keys() | before.keys() if found.get(name) is not before.get(name)}

    def code(self, name: str) -> str:
        found = self.before[name]
        return str(found.problems[0]["code"]) if isinstance(found, DesiredProject) else ""


@pytest.fixture
def site(repos: Repos) -> Site:
    made = Site(repos)
    assert made.look() == {"own", "one", "two"}
    assert all(isinstance(item, Declared) for item in made.before.values())
    return made


def test_what_has_not_changed_is_the_same_object(site: Site) -> None:
    before = site.before
    assert site.look() == set()
    assert site.before is before
    assert site.edit({"README.md": "x\n"}) == set()


def test_a_folder_of_its_own_changes_its_project_alone(site: Site) -> None:
    assert site.edit({"projects/own/ml/model_manager.py": "y\n"}) == {"own"}
    assert site.edit(site.sla("one", more="verbose: true\n")) == {"one"}
    git(site.path, "rm", "-rq", "projects/two")
    assert site.edit({}) == {"two"}


def test_a_shared_ml_repo_changes_all_who_use_it(site: Site) -> None:
    assert site.edit({"ml/model_manager.py": "y\n"}) == {"one", "two"}
    assert site.edit(site.sla("two", "./projects/own/ml")) == {"two"}
    assert site.edit({"projects/own/ml/model_manager.py": "z\n"}) == {"own", "two"}


def test_data_that_change_on_disk_change_all_who_learn_from_them(site: Site) -> None:
    (site.data / "rows.csv").write_text("x\n1\n2\n")
    assert site.look() == {"own", "one", "two"}
    (site.data / "rows.csv").unlink()
    assert site.look() == {"own", "one", "two"}
    assert site.code("one").startswith("FL4")
    assert site.look() == set()


def test_build_plans_of_the_repo_change_all_but_not_twice(site: Site) -> None:
    assert site.edit({"build_plans/inference.yaml": "kind: inference\nuser: '7'\n"}) == {"own", "one", "two"}
    assert site.edit({"build_plans/inference.yaml": "kind: nonsense\n"}) == {"own", "one", "two"}
    assert site.code("own")
    assert site.look() == set()


def test_neighbours_count_where_one_depends_on_another(site: Site) -> None:
    assert site.edit(site.sla("one", more="depends_on: [own]\n")) == {"one"}
    git(site.path, "rm", "-rq", "projects/own")
    assert site.edit({}) == {"one", "own"}
    assert site.code("one") == "FL1031"
    assert site.edit(site.sla("own")) == {"one", "own"}
    assert site.code("one") == ""


def test_a_tick_changes_those_with_a_schedule(site: Site) -> None:
    assert site.edit(site.sla("one", more="triggers: {schedule: '0 * * * *'}\n")) == {"one"}
    site.now += 60
    assert site.look() == set()
    site.now += 3600
    assert site.look() == {"one"}


def test_policys_room_is_shared_with_neighbours_and_kept_by_who_was_there(repos: Repos) -> None:
    site = Site(repos, policy={"customer": {"projects": 2}})
    site.look()
    assert [site.code(name) for name in ("one", "own", "two")] == ["", "", "FL1707"]
    site.documents["two"] = {"inputs": {"x": "y"}}
    assert site.look() == {"own", "two"}
    assert [site.code(name) for name in ("one", "own", "two")] == ["", "FL1707", ""]
    assert site.look() == set()
    assert site.edit(site.sla("one", more="suspend: true\n")) == {"one", "own"}


def test_what_a_failed_look_did_not_get_to_is_owed_to_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise SourceError("FL2004", "Git has no object.", cure="Fetch again.", transient=True)

    with monkeypatch.context() as patched:
        patched.setattr(site.repos, "trees_inside", fails)
        with pytest.raises(SourceError):
            site.edit({"projects/own/ml/model_manager.py": "y\n"} | site.sla("one", more="verbose: true\n"))
    assert site.look() == {"own", "one"}


def test_of_a_servers_answer_only_what_differs_is_looked_at(tmp_path: Path) -> None:
    loop = Looping(Repos(tmp_path))
    loop.edit(loop.project("a") | loop.project("b") | loop.project("c", customer="other"))
    loop.settle()
    loop.step()
    assert loop.controller.view is not None
    assert loop.controller.view.changed == frozenset()
    models = loop.world.models["demo"]
    models["b"] = tuple(replace(item, aliases=()) for item in models["b"])
    loop.world.generation += 1
    loop.step()
    assert loop.controller.view.changed == {"b"}
    assert loop.says("b", "Synced")[:2] == ("False", "Drifted")


def test_a_look_that_fails_midway_sees_next_time_what_it_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Looping(Repos(tmp_path))
    loop.edit(loop.project("a") | loop.project("b"))
    loop.settle()

    def fails() -> None:
        raise OSError("gone")

    loop.edit(loop.project("a", rounds=5))
    loop.world.remove("inference-b")
    with monkeypatch.context() as patched:
        patched.setattr(loop.world, "observe", fails)
        loop.step()
    trained = len(loop.world.trained)
    loop.settle()
    assert len(loop.world.trained) == trained + 1
    assert set(loop.world.services) == {"inference-a", "inference-b"}
    assert [loop.says(name, "Synced")[1] for name in ("a", "b")] == ["Converged", "Converged"]
