"""ML repos: the right commit, the right files, nothing that runs and nothing that leads out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reconciler.errors import SourceError
from reconciler.source import GitRepo, MLRepos, Snapshot
from reconciler.source import ml_repo as module
from tests.source.gitkit import CONTRACT, blob, commit, commit_of, git, init, tree

NONE = Snapshot("", {})


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    return init(tmp_path / "upstream")


@pytest.fixture
def gitops(tmp_path: Path) -> Path:
    return init(tmp_path / "gitops")


@pytest.fixture
def repos(tmp_path: Path, gitops: Path) -> MLRepos:
    return MLRepos(GitRepo(gitops), tmp_path / "cache", max_files=50, max_bytes=100_000)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_branch_tag_commit_and_default_branch(repos: MLRepos, upstream: Path) -> None:
    first = commit(upstream, CONTRACT)
    git(upstream, "tag", "-m", "annotated", "v1")
    second = commit(upstream, {"extra": "2"})
    url = str(upstream)
    assert repos.resolve(url, "v1", "", NONE).commit == first
    assert repos.resolve(url, "main", "", NONE).commit == second
    assert repos.resolve(url, None, "", NONE).commit == second
    found = repos.resolve(url, first, "", NONE)
    assert (found.commit, found.tree) == (first, git(upstream, "rev-parse", f"{first}^{{tree}}"))
    assert contents(repos.checkout(found)) == CONTRACT


def test_a_moving_branch_is_followed_when_asked_again(repos: MLRepos, upstream: Path) -> None:
    commit(upstream, CONTRACT)
    before = repos.resolve(str(upstream), "main", "", NONE)
    commit(upstream, {"extra": "2"})
    after = repos.resolve(str(upstream), "main", "", NONE)
    assert before.tree != after.tree
    assert "extra" not in contents(repos.checkout(before))
    assert "extra" in contents(repos.checkout(after))


def test_a_folder_of_the_gitops_repo_and_a_subdir(repos: MLRepos, gitops: Path, upstream: Path) -> None:
    files = {f"projects/a/ml_repo/{name}": content for name, content in CONTRACT.items()}
    head = commit(gitops, files)
    found = repos.resolve("./projects/a/ml_repo", None, "", Snapshot(head, {}))
    assert contents(repos.checkout(found)) == CONTRACT
    commit(upstream, {f"models/x/{name}": content for name, content in CONTRACT.items()})
    remote = repos.resolve(str(upstream), None, "models/x", NONE)
    assert remote.tree == found.tree
    assert repos.checkout(remote) == repos.checkout(found)


@pytest.mark.parametrize("path", ["./nowhere", "./file", "./projects/../..", "./link", "./a b"])
def test_a_path_that_is_no_folder(repos: MLRepos, gitops: Path, path: str) -> None:
    (gitops / "link").symlink_to("/etc")
    head = commit(gitops, {"file": "x", "projects/a/x": "1"})
    with pytest.raises(SourceError, match="FL2021"):
        repos.resolve(path, None, "", Snapshot(head, {}))


@pytest.mark.parametrize("missing", ["model_manager.py", "data_manager.py", "conda.yaml"])
def test_a_missing_file_is_named_and_nothing_is_left(repos: MLRepos, upstream: Path, tmp_path: Path, missing: str) -> None:
    commit(upstream, {name: content for name, content in CONTRACT.items() if name != missing})
    with pytest.raises(SourceError, match=missing):
        repos.checkout(repos.resolve(str(upstream), None, "", NONE))
    assert [path.name for path in (tmp_path / "cache/trees").iterdir() if path.is_dir()] == []


def planted(upstream: Path, *rows: tuple[str, str, str]) -> None:
    files = (("100644", blob(upstream, content.encode()), name) for name, content in CONTRACT.items())
    git(upstream, "update-ref", "refs/heads/main", commit_of(upstream, tree(upstream, *files, *rows)))


@pytest.mark.parametrize(
    ("code", "mode", "name"),
    [
        ("FL2010", "120000", "weights"),
        ("FL2011", "160000", "vendored"),
        ("FL2012", "100644", "git~1"),
        ("FL2012", "100644", "a\nb"),
        ("FL2012", "100644", "conda.yaml"),
    ],
)
def test_what_is_refused_is_named(repos: MLRepos, upstream: Path, code: str, mode: str, name: str) -> None:
    planted(upstream, (mode, "1" * 40 if mode == "160000" else blob(upstream, b"/etc/passwd"), name))
    with pytest.raises(SourceError, match=code) as caught:
        repos.checkout(repos.resolve(str(upstream), None, "", NONE))
    assert caught.value.where is not None
    assert caught.value.where.path == name.replace("\n", "?")


def test_too_many_or_too_large_files(repos: MLRepos, upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(upstream)
    commit(upstream, {**CONTRACT, "big": "x" * 100_001})
    with pytest.raises(SourceError, match="FL2024"):
        repos.checkout(repos.resolve(url, None, "", NONE))
    commit(upstream, {"big": "", **{f"f{number}": "" for number in range(50)}})
    with pytest.raises(SourceError, match="FL2024"):
        repos.checkout(repos.resolve(url, None, "", NONE))
    bomb = tree(upstream, *(("100644", blob(upstream, b""), f"f{number}") for number in range(10)))
    for _ in range(9):
        bomb = tree(upstream, *(("040000", bomb, f"d{number}") for number in range(10)))
    planted(upstream, ("040000", bomb, "bomb"))
    monkeypatch.setattr(module, "MAX_LISTING", 100_000)
    with pytest.raises(SourceError, match="FL2024"):
        repos.checkout(repos.resolve(url, None, "", NONE))


def test_a_huge_pack_is_not_written(repos: MLRepos, upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    monkeypatch.setattr(module, "MAX_PACK", 200_000)
    found = blob(upstream, random.Random(0).randbytes(2_000_000))
    # More objects than Git unpacks one by one, so that it writes a pack.
    planted(
        upstream, ("100644", found, "weights"), *(("100644", blob(upstream, b"%d" % number), f"z{number}") for number in range(150))
    )
    with pytest.raises(SourceError, match="FL2024"):
        repos.resolve(f"file://{upstream}", None, "", NONE)


def test_attributes_and_filters_change_nothing(repos: MLRepos, upstream: Path, tmp_path: Path) -> None:
    attributes = "*.txt export-subst export-ignore text eol=crlf\n* filter=evil working-tree-encoding=UTF-16\n"
    files = {**CONTRACT, ".gitattributes": attributes, "a.txt": "$Format:%H$\nline\n"}
    planted(upstream, *(("100644", blob(upstream, files[name].encode()), name) for name in (".gitattributes", "a.txt")))
    git(upstream, "config", "filter.evil.smudge", f"touch {tmp_path}/ran")
    assert contents(repos.checkout(repos.resolve(str(upstream), None, "", NONE))) == files
    assert not (tmp_path / "ran").exists()


def test_modes_and_equal_files(repos: MLRepos, upstream: Path) -> None:
    found = blob(upstream, b"same")
    planted(upstream, ("100755", found, "run.sh"), ("100644", found, "same"))
    folder = repos.checkout(repos.resolve(str(upstream), None, "", NONE))
    assert [(folder / name).stat().st_mode & 0o777 for name in ("run.sh", "same")] == [0o755, 0o644]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_unreachable_empty_and_missing_refs_are_told_apart(repos: MLRepos, upstream: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="FL2026"):
        repos.resolve(str(upstream), None, "", NONE)
    commit(upstream, CONTRACT)
    for ref in ("gone", "1" * 40):
        with pytest.raises(SourceError, match="FL2025") as missing:
            repos.resolve(str(upstream), ref, "", NONE)
        assert not missing.value.transient
    with pytest.raises(SourceError, match="FL2020") as unreachable:
        repos.resolve(str(tmp_path / "nowhere"), None, "", NONE)
    assert unreachable.value.transient
    with pytest.raises(SourceError, match="FL2020") as forbidden:
        repos.resolve("git://example.invalid/x", None, "", NONE)
    assert not forbidden.value.transient


@pytest.mark.parametrize(
    ("url", "ref"), [("--upload-pack=touch owned", None), ("x", "--upload-pack=touch owned"), ("x", "+a:refs/heads/b")]
)
def test_options_in_urls_and_refs(repos: MLRepos, url: str, ref: str | None) -> None:
    with pytest.raises(SourceError, match="FL2003"):
        repos.resolve(url, ref, "", NONE)


def test_a_recorded_revision_survives_the_loss_of_the_cache(repos: MLRepos, upstream: Path, tmp_path: Path) -> None:
    commit(upstream, CONTRACT)
    found = repos.resolve(str(upstream), "main", "", NONE)
    commit(upstream, {"extra": "2"})
    shutil.rmtree(tmp_path / "cache")
    assert contents(repos.checkout(found)) == CONTRACT


def test_what_a_killed_process_left_is_no_obstacle(repos: MLRepos, upstream: Path, tmp_path: Path) -> None:
    commit(upstream, CONTRACT)
    found = repos.resolve(str(upstream), "main", "", NONE)
    (mirror,) = (path for path in (tmp_path / "cache/mirrors").iterdir() if path.is_dir())
    (mirror / "shallow.lock").touch()
    (mirror / "packed-refs.lock").touch()
    half = tmp_path / "cache/trees" / f".{found.tree}.part"
    half.mkdir(parents=True)
    (half / "rubbish").touch()
    commit(upstream, {"extra": "2"})
    repos.resolve(str(upstream), "main", "", NONE)
    assert contents(repos.checkout(found)) == CONTRACT


def test_a_cached_checkout_needs_no_remote(repos: MLRepos, upstream: Path) -> None:
    commit(upstream, CONTRACT)
    found = repos.resolve(str(upstream), "main", "", NONE)
    folder = repos.checkout(found)
    shutil.rmtree(upstream)
    assert repos.checkout(found) == folder
