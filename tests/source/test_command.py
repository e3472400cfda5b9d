"""The command layer: inert, bounded, and deaf to the environment it was started in."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from reconciler.errors import SourceError
from reconciler.source import GitRepo, command
from tests.source.gitkit import commit, git, init


def script(path: Path, *lines: str) -> Path:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("value", ["-x", "--upload-pack=touch owned", "a\nb", "a\x00b"])
def test_what_could_be_an_option_is_refused(value: str) -> None:
    with pytest.raises(SourceError, match="FL2003"):
        command.checked(value, "A URL")


@pytest.mark.parametrize("ref", ["-x", "+main", "a:b", "refs/heads/*", "^main", "a..b", "main@{1}", "HEAD~1", "a b", "x.lock", ""])
def test_a_ref_is_a_name_and_no_expression(ref: str) -> None:
    with pytest.raises(SourceError, match="FL2003"):
        command.checked_ref(ref, "A ref")


@pytest.mark.parametrize("ref", ["main", "feature/x", "v1.0", "über", "a" * 40])
def test_usual_refs_pass(ref: str) -> None:
    assert command.checked_ref(ref, "A ref") == ref


def test_variables_of_a_surrounding_git_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = init(tmp_path / "mine"), init(tmp_path / "other")
    expected = commit(mine, {"a": "1"})
    commit(other, {"b": "1"})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'core.hooksPath=/tmp'")
    assert GitRepo(mine).resolve("HEAD") == expected


def test_a_folder_that_does_not_exist_is_not_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(init(tmp_path / "here"))
    with pytest.raises(SourceError, match="FL2005"):
        GitRepo(tmp_path / "nowhere")


def test_operators_configure_by_environment_but_cannot_revive_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = init(tmp_path / "repo")
    for number, (key, value) in enumerate((("credential.helper", "mine"), ("core.hooksPath", "/tmp/hooks"))):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    assert command.text(repo, "config", "credential.helper") == "mine"
    assert command.text(repo, "config", "core.hooksPath") == "/dev/null"


def test_global_configuration_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text("[planted]\n  key = value\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command.attempt(init(tmp_path / "repo"), "config", "planted.key").code == 1


def test_a_hanging_transport_ends_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = init(tmp_path / "repo")
    monkeypatch.setenv("GIT_SSH_COMMAND", str(script(tmp_path / "ssh", f"echo $$ > {tmp_path}/pid", "sleep 60 & wait")))
    started = time.monotonic()
    with pytest.raises(SourceError, match="FL2002") as caught:
        command.run(repo, "ls-remote", "--end-of-options", "ssh://example.invalid/x", limit=1)
    assert caught.value.transient
    assert time.monotonic() - started < 20
    pid = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - started < 20
        time.sleep(0.01)


def test_output_is_bounded(tmp_path: Path) -> None:
    repo = init(tmp_path / "repo")
    head = commit(repo, {"big": "x" * 100_000})
    with pytest.raises(SourceError, match="FL2009"):
        command.run(repo, "cat-file", "blob", f"{head}:big", max_output=1000)


@pytest.mark.parametrize("url", ["ext::sh -c 'touch owned'", "git://example.invalid/x", "http://example.invalid/x"])
def test_protocols_outside_the_list_are_not_spoken(tmp_path: Path, url: str) -> None:
    done = command.attempt(init(tmp_path / "repo"), "ls-remote", "--end-of-options", url, env=command.protocols(url))
    assert done.code
    assert "not allowed" in done.reason
    assert not (tmp_path / "repo" / "owned").exists()


def test_plain_http_stays_within_the_machine() -> None:
    assert "http" in command.protocols("http://127.0.0.1:3000/x")["GIT_ALLOW_PROTOCOL"].split(":")
    assert "http" not in command.protocols("http://127.0.0.1.example.invalid/x")["GIT_ALLOW_PROTOCOL"].split(":")


def test_passwords_do_not_show_in_messages(tmp_path: Path) -> None:
    done = command.attempt(init(tmp_path / "repo"), "ls-remote", "--end-of-options", "https://bob:s3cret@127.0.0.1:1/x")
    assert done.code
    assert "s3cret" not in " ".join(done.said)


def test_planted_hooks_do_not_run(tmp_path: Path) -> None:
    origin = init(tmp_path / "origin", "--bare")
    clone = init(tmp_path / "clone")
    git(clone, "remote", "add", "origin", str(origin))
    commit(clone, {"a": "1"})
    for hook in ("reference-transaction", "pre-push", "post-checkout", "fsmonitor"):
        script(clone / ".git" / "hooks" / hook, f"touch {tmp_path}/ran-{hook}")
    git(clone, "config", "core.fsmonitor", str(clone / ".git/hooks/fsmonitor"))
    command.run(clone, "push", "--quiet", "origin", "HEAD:refs/heads/main")
    GitRepo(clone).fetch()
    command.run(clone, "status")
    assert not list(tmp_path.glob("ran-*"))
