"""Snapshots: blobs of one commit, read once, and one bad project harms no other."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from reconciler.errors import SourceError
from reconciler.source import GitRepo, command
from reconciler.source import snapshot as snapshots
from tests.source.gitkit import SLA, blob, commit, commit_of, git, init, tree


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return init(tmp_path / "repo")


def planted(repo: Path, *rows: tuple[str, str, str]) -> str:
    """A commit with a good project `good` and another one, `bad`, of these rows beside its SLA."""
    sla = ("100644", blob(repo, SLA.encode()), "sla.yaml")
    projects = tree(repo, ("040000", tree(repo, *rows, sla), "bad"), ("040000", tree(repo, sla), "good"))
    return commit_of(repo, tree(repo, ("040000", projects, "projects")))


def test_reads_declaring_files_and_hashes_of_folders(repo: Path) -> None:
    head = commit(
        repo,
        {
            "projects/one/sla.yaml": SLA,
            "projects/one/mock_data.yaml": "x: 1\n",
            "projects/one/ml_repo/model_manager.py": "",
            "projects/one/ml_repo/sla.yaml": "not this one",
            "projects/two/sla.json": "{}",
            "projects/no-sla/notes.txt": "",
            "projects/README.md": "",
            "build_plans/a/plan.yaml": "",
        },
        "The subject\n\nand a body",
    )
    found = GitRepo(repo).read_snapshot(head)
    assert {name: dict(project.files) for name, project in found.projects.items()} == {
        "one": {"sla.yaml": SLA.encode(), "mock_data.yaml": b"x: 1\n"},
        "two": {"sla.json": b"{}"},
    }
    assert found.projects["one"].tree == git(repo, "rev-parse", "HEAD:projects/one")
    assert found.build_plans == git(repo, "rev-parse", "HEAD:build_plans")
    assert (found.author, found.subject, found.rejected) == ("Ada", "The subject", ())


def test_the_work_tree_is_not_read(repo: Path) -> None:
    head = commit(repo, {"projects/one/sla.yaml": SLA})
    (repo / "projects/one/sla.yaml").write_text("changed")
    assert GitRepo(repo).read_snapshot(head).projects["one"].files["sla.yaml"] == SLA.encode()


def test_what_did_not_change_is_not_read_again(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = GitRepo(repo)
    before = clone.read_snapshot(commit(repo, {f"projects/p{number}/sla.yaml": SLA + f"# {number}\n" for number in range(5)}))
    calls: list[str] = []
    real = command.run

    def counting(path: Path, *arguments: str, **options: object) -> bytes:
        calls.append(arguments[0])
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "run", counting)
    assert clone.read_snapshot(before.commit) is before
    assert calls == []
    elsewhere = clone.read_snapshot(commit(repo, {"README.md": "x"}))
    assert elsewhere.projects == before.projects
    assert "cat-file" not in calls
    after = clone.read_snapshot(commit(repo, {"projects/p3/sla.yaml": "other\n"}))
    assert calls.count("cat-file") == 1
    assert after.projects["p2"] is before.projects["p2"]
    assert after.projects["p3"].files["sla.yaml"] == b"other\n"
    (repo / "projects/p1/sla.yaml").unlink()
    assert "p1" not in clone.read_snapshot(commit(repo, {})).projects


@pytest.mark.parametrize(
    ("code", "mode", "name"),
    [
        ("FL2010", "120000", "link"),
        ("FL2010", "120000", "sla.yml"),
        ("FL2011", "160000", "sub"),
        ("FL2012", "100644", "GIT~1"),
        ("FL2012", "100644", ".g\u200cit"),
        ("FL2012", "100644", "a\\b"),
        ("FL2012", "100644", "a\nb"),
        ("FL2012", "100644", "not-utf8-\udcff"),
    ],
)
def test_what_is_refused_rejects_one_project(repo: Path, code: str, mode: str, name: str) -> None:
    target = "1" * 40 if mode == "160000" else blob(repo, b"/etc/passwd")
    found = GitRepo(repo).read_snapshot(planted(repo, (mode, target, name)))
    assert list(found.projects) == ["good"]
    (error,) = found.rejected
    assert error.code == code
    assert error.where is not None
    assert error.where.path.startswith("projects/bad/")
    orjson.dumps(error.to_dict())


def test_a_large_sla_is_refused_before_it_is_read(repo: Path) -> None:
    found = GitRepo(repo).read_snapshot(planted(repo, ("100644", blob(repo, b"x" * (256 * 1024 + 1)), "mock_data.yaml")))
    assert list(found.projects) == ["good"]
    assert [error.code for error in found.rejected] == ["FL2013"]


def test_a_rejected_project_that_is_mended_is_back(repo: Path) -> None:
    clone = GitRepo(repo)
    assert clone.read_snapshot(planted(repo, ("120000", blob(repo, b"x"), "link"))).rejected
    mended = clone.read_snapshot(planted(repo))
    assert (sorted(mended.projects), mended.rejected) == (["bad", "good"], ())


@pytest.mark.parametrize(
    ("mode", "name", "code"), [("120000", "link", "FL2010"), ("160000", "sub", "FL2011"), ("040000", "Odd Name", "FL2012")]
)
def test_folders_of_projects_that_are_none(repo: Path, mode: str, name: str, code: str) -> None:
    sla = tree(repo, ("100644", blob(repo, SLA.encode()), "sla.yaml"))
    target = {"120000": blob(repo, b"/etc"), "160000": "1" * 40, "040000": sla}[mode]
    projects = tree(repo, (mode, target, name), ("040000", sla, "zz-good"))
    found = GitRepo(repo).read_snapshot(commit_of(repo, tree(repo, ("040000", projects, "projects"))))
    assert list(found.projects) == ["zz-good"]
    assert [error.code for error in found.rejected] == [code]


def test_projects_as_a_link_is_an_error_and_not_an_empty_repo(repo: Path) -> None:
    head = commit_of(repo, tree(repo, ("120000", blob(repo, b"elsewhere"), "projects")))
    with pytest.raises(SourceError, match="FL2028"):
        GitRepo(repo).read_snapshot(head)


def test_a_tree_bomb_rejects_itself_alone(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_LISTING", 20_000)
    bomb = tree(repo, *(("100644", blob(repo, b""), f"f{number}") for number in range(10)))
    for _ in range(9):
        bomb = tree(repo, *(("040000", bomb, f"d{number}") for number in range(10)))
    found = GitRepo(repo).read_snapshot(planted(repo, ("040000", bomb, "bomb")))
    assert list(found.projects) == ["good"]
    assert [(error.code, str(error.where)) for error in found.rejected] == [("FL2009", "projects/bad")]


def test_an_object_that_is_missing_is_told(repo: Path) -> None:
    head = commit(repo, {"projects/one/sla.yaml": SLA})
    found = git(repo, "rev-parse", f"{head}:projects/one/sla.yaml")
    (repo / ".git/objects" / found[:2] / found[2:]).unlink()
    with pytest.raises(SourceError, match="FL2004"):
        list(snapshots.read_blobs(repo, [snapshots.TreeEntry("100644", found, 5, "x")]))


def test_build_plans_are_those_of_the_repo_and_of_projects(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "projects/one/sla.yaml": SLA,
        "projects/one/build_plans/inference.yaml": "kind: inference\n",
        "projects/one/build_plans/other.yaml": "",
        "build_plans/learner.yaml": "kind: learner\n",
        "build_plans/README.md": "",
    }
    clone = GitRepo(repo)
    found = clone.read_snapshot(commit(repo, files))
    assert dict(found.plans) == {"learner.yaml": b"kind: learner\n"}
    assert set(found.projects["one"].files) == {"sla.yaml", "build_plans/inference.yaml"}
    after = clone.read_snapshot(commit(repo, {"build_plans/learner.yaml": "kind: learner\nuser: '7'\n"}))
    assert after.plans["learner.yaml"].endswith(b"'7'\n")
    assert after.projects is found.projects
    assert after.build_plans != found.build_plans


def test_a_bad_folder_of_build_plans_rejects_no_project(repo: Path) -> None:
    (repo / "build_plans").mkdir()
    (repo / "build_plans" / "learner.yaml").symlink_to("/etc/passwd")
    found = GitRepo(repo).read_snapshot(commit(repo, {"projects/one/sla.yaml": SLA}))
    assert found.plans == {}
    assert found.plans_problem is not None
    assert found.plans_problem.code == "FL2010"
    assert set(found.projects) == {"one"}
    (repo / "build_plans" / "learner.yaml").unlink()
    large = commit(repo, {"build_plans/aggregator.yaml": "#" * 300_000})
    problem = GitRepo(repo).read_snapshot(large).plans_problem
    assert problem is not None
    assert problem.code == "FL2013"
    (repo / "build_plans" / "aggregator.yaml").unlink()
    (repo / "build_plans").rmdir()
    problem = GitRepo(repo).read_snapshot(commit(repo, {"build_plans": "a file\n"})).plans_problem
    assert problem is not None
    assert problem.code == "FL2028"
