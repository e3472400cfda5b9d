"""What is declared: in-repo ML repos found together, and repos of the reconciler's own machine refused."""

from __future__ import annotations

from pathlib import Path

from reconciler.desired import DesiredState
from reconciler.federation.data import DataCatalog
from reconciler.plan import DesiredProject
from reconciler.source import GitRepo, MLRepos
from reconciler.spec import OperatorConfig
from reconciler.stages import Declared
from tests.conftest import Repos, commit

SLA = "customerID: me\nml_repo_url: {url}\nml_model_flavor: sklearn\ntraining_configuration: {{data_tags: [mine]}}\n"
ML_REPO = {f"ml/{name}": "x\n" for name in ("model_manager.py", "data_manager.py", "requirements.txt")}


def declared(repos: Repos, urls: dict[str, str], *, allow: bool = False) -> dict[str, Declared | DesiredProject]:
    clone = repos.clone()
    (repos.root / "mine").mkdir()
    (repos.root / "mine" / "rows.csv").write_text("x\n1\n")
    sha = commit(clone, ML_REPO | {f"projects/{name}/sla.yaml": SLA.format(url=url) for name, url in urls.items()})
    repo = GitRepo(clone)
    state = DesiredState(
        MLRepos(repo, repos.root / "cache"),
        DataCatalog(repos.root / "data", {"mine": repos.root / "mine"}),
        config=OperatorConfig(allow_file_urls=allow),
    )
    return dict(state.of(repo.read_snapshot(sha), {}))


def test_a_folder_that_is_missing_blames_its_project_alone(repos: Repos) -> None:
    found = declared(repos, {"good": "./ml", "bad": "./nowhere", "same": "./ml"})
    good, same, bad = found["good"], found["same"], found["bad"]
    assert isinstance(good, Declared)
    assert isinstance(same, Declared)
    assert good.ml_repo["tree"] == same.ml_repo["tree"]
    assert isinstance(bad, DesiredProject)
    assert bad.problems[0]["code"] == "FL2021"


def test_a_repo_of_this_machine_is_refused_unless_the_operator_allows_it(repos: Repos, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'origin.git'}"
    refused = declared(repos, {"a": url})["a"]
    assert isinstance(refused, DesiredProject)
    assert refused.problems[0]["code"] == "FL1036"


def test_the_operator_may_allow_repos_of_this_machine(repos: Repos, tmp_path: Path) -> None:
    found = declared(repos, {"a": f"file://{tmp_path / 'origin.git'}"}, allow=True)["a"]
    assert isinstance(found, Declared)
    assert len(found.ml_repo["commit"]) == 40
