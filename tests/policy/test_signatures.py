"""Signed commits, with the real git, ssh-keygen and gpg: what is not signed by an allowed key is as if it had not been pushed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from reconciler.errors import SourceError
from reconciler.source.signatures import Signatures
from reconciler.spec import OperatorConfig
from tests.conftest import Repos, commit, git
from tests.controller.looping import Looping

needs_ssh = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
needs_gpg = pytest.mark.skipif(not shutil.which("gpg"), reason="gpg is not installed")


class Signers:
    """A repo, an allowed key and another one."""

    def __init__(self, repos: Repos) -> None:
        self.path = repos.clone("signing")
        self.keys: dict[str, Path] = {}
        for name in ("allowed", "other"):
            key = repos.root / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(key)], check=True)
            self.keys[name] = key
        public = self.keys["allowed"].with_suffix(".pub").read_text()
        self.signers = repos.root / "signers"
        self.signers.write_text(f"user@example.invalid {public}")
        git(self.path, "config", "gpg.format", "ssh")

    def commit(self, key: str = "") -> str:
        """A commit, signed by one of the keys or not."""
        options = ["-c", f"user.signingkey={self.keys[key]}", "-c", "commit.gpgsign=true"] if key else []
        git(self.path, *options, "commit", "-q", "--allow-empty", "-m", f"By {key or 'nobody'}")
        return git(self.path, "rev-parse", "HEAD")

    def mode(self, mode: str, since: str | None = None) -> Signatures:
        return Signatures(self.path, mode, allowed_signers=str(self.signers), since=since)  # type: ignore[arg-type]


@pytest.fixture
def signers(repos: Repos) -> Signers:
    return Signers(repos)


@needs_ssh
def test_none_believes_everything(signers: Signers) -> None:
    head = signers.commit()
    assert signers.mode("none").believed(head) == head


@needs_ssh
def test_head_believes_the_last_one_that_is_signed(signers: Signers) -> None:
    verify = signers.mode("head")
    unsigned = signers.commit()
    with pytest.raises(SourceError, match="FL1710"):
        verify.believed(unsigned)
    good = signers.commit("allowed")
    assert verify.believed(good) == good
    assert verify.believed(signers.commit()) == good
    assert verify.believed(signers.commit("other")) == good
    newest = signers.commit("allowed")
    assert verify.believed(newest) == newest


@needs_ssh
def test_strict_stops_at_the_first_that_is_not(signers: Signers) -> None:
    start = signers.commit()
    goods = [signers.commit("allowed") for _ in range(3)]
    verify = signers.mode("strict", start)
    assert verify.believed(goods[-1]) == goods[-1]
    signers.commit()
    later = signers.commit("allowed")
    assert verify.believed(later) == goods[-1]
    with pytest.raises(SourceError, match="FL1710"):
        signers.mode("strict").believed(later)


@needs_ssh
def test_a_merge_of_unsigned_commits_counts_by_its_own_signature(signers: Signers) -> None:
    signers.commit("allowed")
    git(signers.path, "checkout", "-q", "-b", "side")
    signers.commit()
    git(signers.path, "checkout", "-q", "main")
    options = ["-c", f"user.signingkey={signers.keys['allowed']}", "-c", "commit.gpgsign=true"]
    git(signers.path, *options, "merge", "-q", "--no-ff", "-m", "Merge", "side")
    merge = git(signers.path, "rev-parse", "HEAD")
    assert signers.mode("head").believed(merge) == merge
    assert signers.mode("strict").believed(merge) == merge


@needs_ssh
def test_a_commit_that_was_changed_after_it_was_signed(signers: Signers) -> None:
    good = signers.commit("allowed")
    raw = git(signers.path, "cat-file", "commit", good).replace("By allowed", "By someone else")
    forged = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
        cwd=signers.path,
        input=raw + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with pytest.raises(SourceError, match="FL1710"):
        signers.mode("head").believed(forged)


@needs_ssh
def test_keys_that_are_not_where_they_should_be(signers: Signers, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="FL1711"):
        Signatures(signers.path, "head", allowed_signers=str(tmp_path / "gone"))
    with pytest.raises(SourceError, match="FL1710"):
        Signatures(signers.path, "head").believed(signers.commit("allowed"))


@needs_gpg
def test_gpg(repos: Repos) -> None:
    home = repos.root / "gnupg"
    home.mkdir(mode=0o700)
    environment = {**os.environ, "GNUPGHOME": str(home)}
    identity = "user@example.invalid"
    made = subprocess.run(
        ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", identity, "ed25519", "sign"],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("gpg cannot make keys here")
    path = repos.clone("gpg")
    try:
        subprocess.run(
            ["git", "-c", f"user.signingkey={identity}", "commit", "-q", "--allow-empty", "-S", "-m", "Signed"],
            cwd=path, env=environment, check=True,
        )  # fmt: skip
        head = git(path, "rev-parse", "HEAD")
        assert Signatures(path, "head", gnupg_home=str(home)).believed(head) == head
        with pytest.raises(SourceError, match="FL1710"):
            Signatures(path, "head").believed(head)
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False, capture_output=True)


@needs_ssh
def test_in_the_loop_what_is_not_signed_is_not_declared(repos: Repos) -> None:
    signers = Signers(repos)
    config = OperatorConfig.model_validate({"policy": {"signed_commits": "head", "allowed_signers": str(signers.signers)}})
    loop = Looping(repos, config)
    loop.edit(loop.project("a"))
    loop.settle()
    assert loop.world.trained == []
    git(loop.user, "config", "gpg.format", "ssh")
    git(loop.user, "config", "user.signingkey", str(signers.keys["allowed"]))
    git(loop.user, "config", "commit.gpgsign", "true")
    commit(loop.user, {"README.md": "signed\n"})
    loop.settle()
    loop.settle()
    assert [name for name, _ in loop.world.trained] == ["a"]
    assert loop.says("a", "SourceVerified")[:2] == ("True", "SignatureVerified")
    git(loop.user, "config", "commit.gpgsign", "false")
    loop.edit(loop.project("a", 9))
    loop.settle()
    assert len(loop.world.trained) == 1
    assert loop.says("a", "SourceVerified")[:2] == ("False", "SignatureNotVerified")
    assert loop.says("a", "Synced")[0] == loop.says("a", "Ready")[0] == "True"
    assert sum("FL1710" in text for text in loop.warnings) >= 1
    told = loop.commits()
    loop.edit({"README.md": "not signed either\n"})
    loop.settle()
    assert loop.commits() == told  # which commit it is makes no transition
    git(loop.user, "config", "commit.gpgsign", "true")
    commit(loop.user, {"README.md": "signed again\n"})
    loop.settle()
    assert loop.says("a", "SourceVerified")[0] == "True"
    loop.config = OperatorConfig()
    loop.start("another")
    loop.settle()
    assert loop.says("a", "SourceVerified") == ("", "", "")
