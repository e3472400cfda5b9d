"""The status branch: an orphan branch that only the reconciler writes, by plumbing, one commit a transition.

The user's work tree, index and HEAD are never touched. Status is feedback: a push that does not go through stays in the outbox –
the local branch – and goes with the next one. Pushes are never forced.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reconciler.errors import SourceError, StatusError
from reconciler.source import GitRepo, command
from reconciler.source.git import REMOTE
from reconciler.source.snapshot import list_tree, read_blobs

MAX_TRIES = 5
MAX_SUBJECT = 200
AUTHOR = ("flops-gitops", "reconciler@flops.invalid")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class PublishResult:
    """`commit` is None when nothing changed; `pushed` is False when it waits in the outbox, `error` says why."""

    commit: str | None
    pushed: bool
    attempts: int = 0
    error: str = ""


class StatusBranch:
    """`status/<instance>` of one GitOps repo."""

    def __init__(
        self,
        repo: GitRepo,
        instance: str,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._repo = repo
        self._ref = f"refs/heads/status/{instance}"
        self._remote_ref = f"refs/remotes/{REMOTE}/status/{instance}"
        self._clock, self._sleep, self._uniform = clock, sleep, uniform
        self._cache: tuple[str, dict[str, bytes]] = ("", {})

    def read(self) -> dict[str, bytes]:
        """The files as they were last written: here if we wrote last, else as they were fetched."""
        tip = self._tip()
        if not tip:
            return {}
        if self._cache[0] != tip:
            entries = list_tree(self._repo.path, tip)
            blobs = read_blobs(self._repo.path, (entry.blob for entry in entries))
            self._cache = (tip, {entry.path: blobs[entry.blob] for entry in entries})
        return dict(self._cache[1])

    def publish(self, files: Mapping[str, bytes], message: str) -> PublishResult:
        """Commit `files` if they differ, and push what is not pushed. Never raises for trouble with the remote."""
        commit: str | None = None
        if self.read() != dict(files):
            commit = self._commit(files, message, self._tip())
        if not self._repo.has_remote:
            return PublishResult(commit, pushed=False)
        if not self._local() or self._local() == self._resolve(self._remote_ref):
            return PublishResult(commit, pushed=False)
        return self._push(files, message, commit)

    def _push(self, files: Mapping[str, bytes], message: str, commit: str | None) -> PublishResult:
        error = ""
        for attempt in range(1, MAX_TRIES + 1):
            try:
                command.run(self._repo.path, "push", "--quiet", "--no-verify", REMOTE, f"{self._ref}:{self._ref}")
                command.run(self._repo.path, "update-ref", self._remote_ref, self._local())
            except SourceError as refused:
                error = refused.cause
            else:
                return PublishResult(commit, pushed=True, attempts=attempt)
            self._sleep(self._uniform(0.5, 1.0) * 0.2 * 2**attempt)
            try:
                self._repo.fetch()
            except SourceError as unreachable:
                return PublishResult(commit, pushed=False, attempts=attempt, error=unreachable.cause)
            theirs = self._resolve(self._remote_ref)
            if theirs and not self._is_ancestor(theirs):
                # Somebody wrote the branch meanwhile: our content on top of theirs, never over it.
                commit = self._commit(files, message, theirs)
        return PublishResult(commit, pushed=False, attempts=MAX_TRIES, error=error)

    def _commit(self, files: Mapping[str, bytes], message: str, parent: str) -> str:
        path = self._repo.path
        try:
            tree = self._tree(files)
            stamp = f"@{int(self._clock())} +0000"
            name, email = AUTHOR
            identity = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in
                        (("NAME", name), ("EMAIL", email), ("DATE", stamp))}  # fmt: skip
            parents = ("-p", parent) if parent else ()
            text = _CONTROL.sub(" ", message)[:MAX_SUBJECT].strip() or "status"
            commit = command.run(path, "commit-tree", tree, *parents, "-m", text, env=identity).decode().strip()
            command.run(path, "update-ref", "-m", "flops: status", self._ref, commit)
        except SourceError as error:
            raise StatusError(
                "FL8001", f"The status cannot be written: {error.cause}", cure="Check the clone's disk and rights.", transient=True
            ) from error
        return commit

    def _tree(self, files: Mapping[str, bytes]) -> str:
        """Write blobs and trees of `a` and `folder/a` paths; two levels are all that status needs."""
        folders: dict[str, list[tuple[str, str]]] = {"": []}
        for path, content in sorted(files.items()):
            blob = command.run(self._repo.path, "hash-object", "-w", "--stdin", stdin=content).decode().strip()
            folder, _, name = path.rpartition("/")
            folders.setdefault(folder, []).append((name, blob))
        lines = [f"100644 blob {blob}\t{name}" for name, blob in folders.pop("")]
        lines += [f"040000 tree {self._mktree(items)}\t{folder}" for folder, items in sorted(folders.items())]
        return self._make(lines)

    def _mktree(self, items: list[tuple[str, str]]) -> str:
        return self._make([f"100644 blob {blob}\t{name}" for name, blob in items])

    def _make(self, lines: list[str]) -> str:
        return command.run(self._repo.path, "mktree", stdin="".join(f"{line}\n" for line in lines).encode()).decode().strip()

    def _tip(self) -> str:
        """Our branch; the remote's when that is ahead of it or ours is not there."""
        local, remote = self._local(), self._resolve(self._remote_ref)
        if not local or (remote and remote != local and self._is_ancestor(local, remote)):
            return remote
        return local

    def _local(self) -> str:
        return self._resolve(self._ref)

    def _resolve(self, ref: str) -> str:
        try:
            return command.text(self._repo.path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        except SourceError:
            return ""

    def _is_ancestor(self, older: str, newer: str = "") -> bool:
        try:
            command.run(self._repo.path, "merge-base", "--is-ancestor", older, newer or self._local())
        except SourceError:
            return False
        return True
