"""Signatures: which commit of the tracked branch may be believed, by `git verify-commit` and the operator's keys.

A commit that is not signed by an allowed key is as if it had not been pushed: the last one before it that may be believed stays
declared. Nothing is remembered but what cannot change – a commit's signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reconciler.errors import SourceError
from reconciler.source import command

MAX_WALK = 200
MAX_HISTORY = 100_000
_CHUNK = 100


class Signatures:
    """Verifies the commits of one repo against the operator's keys."""

    def __init__(
        self,
        repo: Path,
        mode: Literal["none", "head", "strict"],
        *,
        allowed_signers: str | None = None,
        gnupg_home: str | None = None,
        since: str | None = None,
    ) -> None:
        self._repo, self._mode, self._since = repo, mode, since
        self._options = ("-c", f"gpg.ssh.allowedSignersFile={Path(allowed_signers).resolve() if allowed_signers else '/dev/null'}")
        # Without a folder of its own GnuPG would believe whatever keys the user who started us has.
        self._env = {"GNUPGHOME": str(Path(gnupg_home).resolve()) if gnupg_home else "/nonexistent"}
        for name in (allowed_signers, gnupg_home):
            if name and not Path(name).exists():
                cure = "Correct `policy` in flops.yaml."
                raise SourceError("FL1711", "The keys that may sign commits are not where flops.yaml says.", cure=cure)
        self._good: set[str] = set()
        self._believed: tuple[str, str] = ("", "")

    def believed(self, commit: str) -> str:
        """The newest commit at or before this one, along first parents, that may be believed. Raises SourceError FL1710."""
        if self._mode == "none":
            return commit
        if self._believed[0] != commit:
            self._believed = (commit, self._find(commit))
        if not self._believed[1]:
            cause = f"No commit of the branch is signed by an allowed key (head is {commit[:12]})."
            raise SourceError("FL1710", cause, cure="Sign with a key of `policy.allowed_signers`.", transient=True)
        return self._believed[1]

    def _find(self, commit: str) -> str:
        if self._mode == "head":
            walk = self._first_parents(commit, MAX_WALK)
            return next((found for found in walk if self._is_good(found)), "")
        # Strict: from the beginning on, up to the first one that is not signed.
        last = ""
        history = self._first_parents(commit, MAX_HISTORY)[::-1]
        for start in range(0, len(history), _CHUNK):
            chunk = history[start : start + _CHUNK]
            if all(found in self._good for found in chunk) or self._verify(*chunk):
                self._good.update(chunk)
                last = chunk[-1]
                continue
            for found in chunk:
                if not self._is_good(found):
                    return last
                last = found
        return last

    def _first_parents(self, commit: str, most: int) -> list[str]:
        end = (f"^{self._since}",) if self._since and self._mode == "strict" else ()
        return command.text(self._repo, "rev-list", "--first-parent", f"--max-count={most}", commit, *end).split()

    def _is_good(self, commit: str) -> bool:
        if commit not in self._good and self._verify(commit):
            self._good.add(commit)
        return commit in self._good

    def _verify(self, *commits: str) -> bool:
        done = command.attempt(self._repo, *self._options, "verify-commit", "--raw", *commits, env=self._env)
        return done.code == 0
