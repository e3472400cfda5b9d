"""The status branch: transitions only, never by force, never lost, never over the user's work."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.errors import SourceError
from reconciler.source import GitRepo
from reconciler.status import MAX_TRIES, StatusBranch
from tests.source.gitkit import commit, git, init

REF = "refs/heads/status/test"
FILES = {"README.md": b"# Status\n", "projects/a.json": b"{}", "deep/er/b.json": b"[1]"}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A bare origin that notes every push."""
    path = init(tmp_path / "origin", "--bare")
    seed = init(tmp_path / "seed")
    commit(seed, {"projects/a/sla.yaml": "x: 1\n"})
    git(seed, "push", "--quiet", str(path), "main")
    hook(path, "post-receive", f"echo push >> {path}/pushes")
    return path


def hook(repo: Path, name: str, *lines: str) -> None:
    path = repo / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)


def pushes(origin: Path) -> int:
    noted = origin / "pushes"
    return len(noted.read_text().splitlines()) if noted.exists() else 0


class Writer:
    """A clone with its status branch; sleeps are noted, not slept."""

    def __init__(self, origin: Path, path: Path) -> None:
        git(origin.parent, "clone", "--quiet", str(origin), str(path))
        self.path = path
        self.sleeps: list[float] = []
        self.branch = StatusBranch(
            GitRepo(path), "test", clock=lambda: 1_000_000_000.7, sleep=self.sleep, uniform=lambda low, _: low
        )

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)


@pytest.fixture
def writer(origin: Path, tmp_path: Path) -> Writer:
    return Writer(origin, tmp_path / "clone")


def test_publish_commits_and_pushes_an_orphan(writer: Writer, origin: Path) -> None:
    assert writer.branch.read() == {}
    result = writer.branch.publish(FILES, "a: Ready")
    assert (result.pushed, result.attempts, result.error) == (True, 1, "")
    assert git(origin, "rev-parse", REF) == result.commit
    assert git(origin, "rev-list", "--count", REF) == "1"
    assert (
        git(origin, "log", "-1", "--format=%an <%ae> %ct %cn", REF)
        == "flops-gitops <reconciler@flops.invalid> 1000000000 flops-gitops"
    )
    assert writer.branch.read() == FILES


def test_idle_cycles_neither_commit_nor_push(writer: Writer, origin: Path) -> None:
    writer.branch.publish(FILES, "first")
    results = [writer.branch.publish(FILES, "again") for _ in range(100)]
    assert {(result.commit, result.pushed, result.error) for result in results} == {(None, False, "")}
    assert git(origin, "rev-list", "--count", REF) == "1"
    assert pushes(origin) == 1


def test_the_users_clone_is_not_touched(writer: Writer) -> None:
    (writer.path / "staged").write_text("1")
    git(writer.path, "add", "staged")
    (writer.path / "untracked").write_text("1")
    state = [
        git(writer.path, "status", "--porcelain"),
        git(writer.path, "rev-parse", "HEAD"),
        (writer.path / ".git/index").read_bytes(),
    ]
    writer.branch.publish(FILES, "x")
    assert [git(writer.path, "status", "--porcelain"), git(writer.path, "rev-parse", "HEAD")] == state[:2]
    assert (writer.path / ".git/index").read_bytes() == state[2]
    assert not (writer.path / ".git/FETCH_HEAD").exists()


def test_a_fresh_clone_reads_what_was_published(writer: Writer, origin: Path, tmp_path: Path) -> None:
    writer.branch.publish(FILES, "x")
    other = Writer(origin, tmp_path / "other")
    assert other.branch.read() == FILES
    result = other.branch.publish(FILES, "idle")
    assert (result.commit, result.pushed, pushes(origin)) == (None, False, 1)


def test_another_writer_is_built_upon_and_not_overwritten(writer: Writer, origin: Path, tmp_path: Path) -> None:
    writer.branch.publish({"a": b"1"}, "one")
    other = Writer(origin, tmp_path / "other")
    other.branch.publish({"a": b"theirs"}, "theirs")
    result = writer.branch.publish({"a": b"2"}, "two")
    assert (result.pushed, result.attempts, len(writer.sleeps)) == (True, 2, 1)
    assert git(origin, "log", "--format=%s", REF).splitlines() == ["two", "theirs", "one"]
    assert writer.branch.read() == {"a": b"2"}
    assert git(origin, "rev-parse", REF) == result.commit


def test_a_branch_that_is_behind_follows_without_a_commit(writer: Writer, origin: Path, tmp_path: Path) -> None:
    writer.branch.publish({"a": b"1"}, "one")
    Writer(origin, tmp_path / "other").branch.publish({"a": b"2"}, "two")
    GitRepo(writer.path).fetch()
    result = writer.branch.publish({"a": b"2"}, "idle")
    assert (result.commit, result.pushed, result.error, pushes(origin)) == (None, False, "", 2)


def test_a_refusing_hook_leaves_all_commits_in_the_outbox(writer: Writer, origin: Path) -> None:
    hook(origin, "pre-receive", "echo no status here >&2", "exit 1")
    for number in range(3):
        result = writer.branch.publish({"a": b"%d" % number}, f"step {number}")
        assert (result.pushed, result.attempts) == (False, 1)
        assert "hook declined" in result.error
        assert "no status here" in result.error
    assert writer.sleeps == []
    (origin / "hooks/pre-receive").unlink()
    result = writer.branch.publish({"a": b"2"}, "idle")
    assert (result.commit, result.pushed) == (None, True)
    assert git(origin, "log", "--format=%s", REF).splitlines() == ["step 2", "step 1", "step 0"]


def test_an_outbox_is_replayed_on_top_of_another_writer(writer: Writer, origin: Path, tmp_path: Path) -> None:
    writer.branch.publish({"a": b"0"}, "zero")
    hook(origin, "pre-receive", "exit 1")
    writer.branch.publish({"a": b"1"}, "one")
    writer.branch.publish({"a": b"2"}, "two")
    (origin / "hooks/pre-receive").unlink()
    Writer(origin, tmp_path / "other").branch.publish({"a": b"theirs"}, "theirs")
    assert writer.branch.publish({"a": b"2"}, "idle").pushed
    assert git(origin, "log", "--format=%s", REF).splitlines() == ["two", "one", "theirs", "zero"]


def test_a_lost_race_is_given_up_after_some_tries(writer: Writer, origin: Path) -> None:
    writer.branch.publish({"a": b"0"}, "zero")
    lock = origin / (REF + ".lock")
    lock.touch()
    result = writer.branch.publish({"a": b"1"}, "one")
    assert (result.pushed, result.attempts, len(writer.sleeps)) == (False, MAX_TRIES, MAX_TRIES - 1)
    assert result.error
    assert writer.sleeps == sorted(writer.sleeps)
    lock.unlink()
    assert writer.branch.publish({"a": b"1"}, "idle").pushed


def test_a_dead_remote_costs_nothing_but_time(writer: Writer, origin: Path) -> None:
    hidden = origin.rename(origin.with_name("hidden"))
    result = writer.branch.publish({"a": b"1"}, "one")
    assert (result.commit is not None, result.pushed, bool(result.error)) == (True, False, True)
    with pytest.raises(SourceError, match="FL2006"):
        GitRepo(writer.path).fetch()
    hidden.rename(origin)
    assert writer.branch.publish({"a": b"1"}, "idle").pushed


def test_a_branch_that_was_deleted_on_the_remote_comes_back(writer: Writer, origin: Path) -> None:
    result = writer.branch.publish({"a": b"1"}, "one")
    git(origin, "update-ref", "-d", REF)
    GitRepo(writer.path).fetch()
    assert writer.branch.publish({"a": b"1"}, "idle").pushed
    assert git(origin, "rev-parse", REF) == result.commit


def test_of_files_with_names_only_those_that_differ_are_read(writer: Writer, origin: Path) -> None:
    class Read(dict[str, bytes]):
        def __getitem__(self, path: str) -> bytes:
            read.append(path)
            return super().__getitem__(path)

    read: list[str] = []
    writer.branch.publish(FILES, "first")
    files = Read(FILES | {"projects/a.json": b"new"})
    ids = {path: writer.branch.identify(content) for path, content in files.items()}
    assert writer.branch.publish(files, "second", ids).pushed
    assert read == ["projects/a.json"]
    assert git(origin, "show", f"{REF}:projects/a.json") == "new"
    assert writer.branch.publish(files, "again", ids).commit is None
    assert dict(StatusBranch(GitRepo(writer.path), "test").files()) == dict(files)


def test_without_a_remote_the_branch_is_local(tmp_path: Path) -> None:
    path = init(tmp_path / "alone")
    branch = StatusBranch(GitRepo(path), "test")
    result = branch.publish(FILES, "x")
    assert (result.commit, result.pushed, result.error) == (git(path, "rev-parse", REF), False, "")
    assert branch.publish(FILES, "x").commit is None


def test_messages_are_one_clean_line(writer: Writer, origin: Path) -> None:
    writer.branch.publish(FILES, "a\x1b[31m: failed\n\nSigned-off-by: Eve <eve@example.invalid>\u202e" + "x" * 500 + "\udcff")
    body = git(origin, "log", "-1", "--format=%B", REF)
    assert "\n" not in body
    assert "\x1b" not in body
    assert len(body) <= 200
    assert git(origin, "log", "-1", "--format=%(trailers)", REF) == ""


def test_an_instance_is_a_name(writer: Writer) -> None:
    with pytest.raises(SourceError, match="FL2003"):
        StatusBranch(GitRepo(writer.path), "a:refs/heads/main")
