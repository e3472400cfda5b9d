"""A snapshot reads the declaring files of one commit and refuses what must not be there; other projects go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.errors import SourceError
from reconciler.source import GitRepo, MLRepos
from tests.conftest import Repos, commit, git

ML_REPO = {"model_manager.py": "x = 1\n", "data_manager.py": "", "requirements.txt": ""}


def project(name: str, text: str = "customerID: a\n") -> dict[str, str]:
    return {f"projects/{name}/sla.yaml": text}


def test_only_declaring_files_are_read(repos: Repos) -> None:
    clone = repos.clone()
    head = commit(clone, {**project("a"), "projects/a/ml_repo/big.py": "x\n", "README.md": ""})
    snapshot = GitRepo(clone).read_snapshot(head)
    assert {name: dict(item.files) for name, item in snapshot.projects.items()} == {"a": {"sla.yaml": b"customerID: a\n"}}


def test_an_unrelated_commit_changes_no_projects_tree(repos: Repos) -> None:
    clone = repos.clone()
    repo = GitRepo(clone)
    before = repo.read_snapshot(commit(clone, {**project("a"), **project("b")}))
    after = repo.read_snapshot(commit(clone, {"README.md": "hello", **project("b", "customerID: b\n")}))
    assert before.projects["a"] is after.projects["a"]
    assert before.projects["b"].tree != after.projects["b"].tree
    assert after.projects["b"].files["sla.yaml"] == b"customerID: b\n"


def test_a_project_that_is_gone_is_gone(repos: Repos) -> None:
    clone = repos.clone()
    repo = GitRepo(clone)
    repo.read_snapshot(commit(clone, {**project("a"), **project("b")}))
    git(clone, "rm", "-rq", "projects/a")
    assert set(repo.read_snapshot(commit(clone, {})).projects) == {"b"}


def test_a_symbolic_link_stops_its_project_only(repos: Repos) -> None:
    clone = repos.clone()
    (clone / "projects" / "evil").mkdir(parents=True)
    (clone / "projects" / "evil" / "sla.yaml").symlink_to("/etc/passwd")
    snapshot = GitRepo(clone).read_snapshot(commit(clone, project("good")))
    assert [error.code for error in snapshot.rejected] == ["FL2010"]
    assert set(snapshot.projects) == {"good"}


def test_a_submodule_stops_its_project_only(repos: Repos) -> None:
    clone = repos.clone()
    head = commit(clone, {**project("good"), **project("evil")})
    git(clone, "update-index", "--add", "--cacheinfo", f"160000,{head},projects/evil/sub")
    git(clone, "commit", "-q", "-m", "submodule")
    snapshot = GitRepo(clone).read_snapshot(git(clone, "rev-parse", "HEAD"))
    assert [error.code for error in snapshot.rejected] == ["FL2011"]
    assert set(snapshot.projects) == {"good"}


def test_a_declaring_file_that_is_too_large_is_not_read(repos: Repos) -> None:
    clone = repos.clone()
    snapshot = GitRepo(clone).read_snapshot(commit(clone, {**project("a", "x" * 300_000), **project("b")}))
    assert [error.code for error in snapshot.rejected] == ["FL2013"]
    assert set(snapshot.projects) == {"b"}


def test_planted_hooks_and_attributes_are_inert(repos: Repos) -> None:
    clone = repos.clone()
    commit(clone, {**project("a"), ".gitattributes": "* filter=evil\n"})
    trace = repos.root / "ran"
    hook = clone / ".git" / "hooks" / "post-merge"
    for name in ("post-merge", "post-checkout", "reference-transaction", "pre-push"):
        hook = clone / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {trace}\n")
        hook.chmod(0o755)
    git(clone, "config", "filter.evil.smudge", f"touch {trace}")
    trace.unlink(missing_ok=True)
    repo = GitRepo(clone)
    repo.fetch()
    repo.read_snapshot(repo.desired_commit("main"))
    assert not trace.exists()


@pytest.mark.parametrize("revision", ["--upload-pack=touch /tmp/x", "-x", "a\nb"])
def test_revisions_that_are_options_are_refused(repos: Repos, revision: str) -> None:
    clone = repos.clone()
    commit(clone, project("a"))
    with pytest.raises(SourceError, match="FL2003"):
        GitRepo(clone).resolve(revision)


def test_what_is_not_there_is_said_clearly(repos: Repos, tmp_path: Path) -> None:
    clone = repos.clone()
    commit(clone, project("a"))
    with pytest.raises(SourceError, match="FL2007"):
        GitRepo(clone).resolve("nothing")
    with pytest.raises(SourceError, match="FL2008"):
        GitRepo(clone).desired_commit("production")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="FL2005"):
        GitRepo(tmp_path / "empty")


def test_a_remote_that_is_away_is_transient(repos: Repos) -> None:
    clone = repos.clone()
    head = commit(clone, project("a"))
    repos.origin.rename(repos.root / "away.git")
    repo = GitRepo(clone)
    with pytest.raises(SourceError) as caught:
        repo.fetch()
    assert (caught.value.code, caught.value.transient) == ("FL2006", True)
    assert repo.desired_commit("main") == head


def test_an_ml_repo_inside_the_gitops_repo(repos: Repos, tmp_path: Path) -> None:
    clone = repos.clone()
    head = commit(clone, {f"projects/a/ml_repo/{name}": text for name, text in ML_REPO.items()} | project("a"))
    repo = GitRepo(clone)
    found = MLRepos(repo, tmp_path / "cache")
    revision = found.resolve("./projects/a/ml_repo", None, "", repo.read_snapshot(head))
    folder = found.checkout(revision)
    assert (folder / "model_manager.py").read_text() == "x = 1\n"
    commit(clone, {"README.md": "unrelated"})
    again = found.resolve("./projects/a/ml_repo", None, "", repo.read_snapshot(git(clone, "rev-parse", "HEAD")))
    assert found.checkout(again) == folder


def test_an_ml_repo_elsewhere_by_branch_tag_and_commit(repos: Repos, tmp_path: Path) -> None:
    other = Repos(tmp_path / "other") if (tmp_path / "other").mkdir() is None else None
    assert other is not None
    work = other.clone()
    first = commit(work, ML_REPO)
    git(work, "push", "-q", "origin", "HEAD:refs/tags/v1")
    second = commit(work, {"model_manager.py": "x = 2\n"})
    clone = repos.clone()
    snapshot = GitRepo(clone).read_snapshot(commit(clone, project("a")))
    found = MLRepos(GitRepo(clone), tmp_path / "cache")
    url = f"file://{other.origin}"
    assert found.resolve(url, None, "", snapshot).commit == second
    assert found.resolve(url, "main", "", snapshot).commit == second
    tagged = found.resolve(url, "v1", "", snapshot)
    assert tagged.commit == first
    assert (found.checkout(tagged) / "model_manager.py").read_text() == "x = 1\n"
    with pytest.raises(SourceError) as caught:
        found.resolve(url, "no-such-branch", "", snapshot)
    assert (caught.value.code, caught.value.transient) == ("FL2020", True)


@pytest.mark.parametrize(
    ("missing", "code"), [("model_manager.py", "FL2022"), ("data_manager.py", "FL2022"), ("requirements.txt", "FL2023")]
)
def test_a_missing_file_of_the_contract_is_named(repos: Repos, tmp_path: Path, missing: str, code: str) -> None:
    clone = repos.clone()
    files = {f"m/{name}": text for name, text in ML_REPO.items() if name != missing}
    repo = GitRepo(clone)
    found = MLRepos(repo, tmp_path / "cache")
    revision = found.resolve("./m", None, "", repo.read_snapshot(commit(clone, files)))
    with pytest.raises(SourceError, match=code):
        found.checkout(revision)
    assert not (tmp_path / "cache" / "trees" / revision.tree).exists()


def test_an_ml_repo_with_a_link_is_refused(repos: Repos, tmp_path: Path) -> None:
    clone = repos.clone()
    (clone / "m").mkdir()
    (clone / "m" / "etc").symlink_to("/etc")
    repo = GitRepo(clone)
    found = MLRepos(repo, tmp_path / "cache")
    revision = found.resolve("./m", None, "", repo.read_snapshot(commit(clone, {f"m/{n}": t for n, t in ML_REPO.items()})))
    with pytest.raises(SourceError, match="FL2010"):
        found.checkout(revision)


def test_rollback_makes_one_commit_and_nothing_else(repos: Repos) -> None:
    clone = repos.clone()
    commit(clone, project("a", "one\n"))
    commit(clone, project("a", "two\n"))
    head = commit(clone, {"README.md": "later"})
    made = GitRepo(clone).revert_commit("a")
    assert git(clone, "rev-parse", f"{made}^") == head
    assert (clone / "projects/a/sla.yaml").read_text() == "one\n"
    assert (clone / "README.md").read_text() == "later"
    assert git(clone, "rev-parse", "origin/main") == head


def test_rollback_refuses_uncommitted_changes(repos: Repos) -> None:
    clone = repos.clone()
    commit(clone, project("a", "one\n"))
    commit(clone, project("a", "two\n"))
    (clone / "projects/a/sla.yaml").write_text("three\n")
    with pytest.raises(SourceError, match="FL2015"):
        GitRepo(clone).revert_commit("a")
