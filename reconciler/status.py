"""The status branch: an orphan branch that only the reconciler writes, by plumbing, one commit a transition.

The user's work tree, index and HEAD are never touched. Status is feedback: a push that does not go through stays in the outbox –
the local branch – and goes with the next one. Pushes are never forced. Nothing changed: no commit, no push.
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import SourceError, StatusError
from reconciler.source import GitRepo, command
from reconciler.source.git import REMOTE
from reconciler.source.snapshot import TreeEntry, list_tree, read_blobs

MAX_TRIES = 5
MAX_SUBJECT = 200
MAX_REPLAYED = 50
PUSH_SECONDS = 60
AUTHOR = ("flops-gitops", "reconciler@flops.invalid")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What another writer causes. Any other refusal (a hook, a protected branch, no right) is not cured by trying again at once.
_RACE = re.compile(r"fetch first|non-fast-forward|stale info|cannot lock ref|failed to update ref|incorrect old value")


@dataclass(frozen=True, slots=True)
class PublishResult:
    """`commit` is None when nothing changed; `pushed` is False when nothing was to push or it waits in the outbox.

    `error` says why it waits; without a remote there is no error.
    """

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
        command.checked_ref(instance, "The instance's name")
        self._ref = f"refs/heads/status/{instance}"
        self._remote_ref = f"refs/remotes/{REMOTE}/status/{instance}"
        self._clock, self._sleep, self._uniform = clock, sleep, uniform
        self._listed: tuple[str, Mapping[str, str]] = ("", {})
        self._hash = ""

    def read(self) -> dict[str, bytes]:
        """The files as they were last written: here if we wrote last, else as they were fetched."""
        return dict(self.files())

    def files(self) -> Iterator[tuple[str, bytes]]:
        """The same one by one: all of them together may be a lot."""
        paths: dict[str, list[str]] = {}
        entries = self._entries(self._tip(*self._refs()))
        for entry in entries:
            paths.setdefault(entry.blob, []).append(entry.path)
        for blob, content in read_blobs(self._repo.path, entries):
            for path in paths[blob]:
                yield path, content

    def identify(self, content: bytes) -> str:
        """The name under which this repo keeps a file of this content."""
        self._hash = self._hash or command.text(self._repo.path, "rev-parse", "--show-object-format")
        return hashlib.new(self._hash, b"blob %d\0" % len(content) + content).hexdigest()

    def tip(self) -> str:
        """The commit that `read` reads; empty when there is none."""
        return self._tip(*self._refs())

    def publish(self, files: Mapping[str, bytes], message: str, ids: Mapping[str, str] | None = None) -> PublishResult:
        """Commit `files` if they differ, and push what is not pushed. With their `ids` (see `identify`) only those that differ are
        read.

        Never raises for trouble with the remote; raises a transient StatusError (FL8001) when the clone cannot be written.
        """
        try:
            local, remote = self._refs()
            tip = self._tip(local, remote)
            commit: str | None = None
            ids = {path: self.identify(content) for path, content in files.items()} if ids is None else ids
            if (before := self._list(tip)) != ids:
                commit = self._commit(self._tree(files, ids, before, tip), tip, message)
                self._listed = (commit, ids)
            head = commit or tip
            if head and head != local:
                self._move(head, local)
            if not self._repo.has_remote or not head or head == remote:
                return PublishResult(commit, pushed=False)
            return self._push(head, commit)
        except (SourceError, OSError) as error:
            cause = error.cause if isinstance(error, SourceError) else str(error)
            cure = "Check the clone's disk and rights."
            raise StatusError("FL8001", f"The status cannot be written: {cause}", cure=cure, transient=True) from error

    def _push(self, head: str, commit: str | None) -> PublishResult:
        for attempt in range(1, MAX_TRIES + 1):
            refused = self._push_once(head)
            if not refused:
                command.attempt(self._repo.path, "update-ref", self._remote_ref, head)
                return PublishResult(commit, pushed=True, attempts=attempt)
            if not _RACE.search(refused) or attempt == MAX_TRIES:
                break
            self._sleep(self._uniform(0.5, 1.0) * 0.2 * 2**attempt)
            try:
                self._repo.fetch()
            except SourceError as unreachable:
                refused = unreachable.cause
                break
            _, theirs = self._refs()
            if theirs and not self._is_ancestor(theirs, head):
                moved = self._replay(head, theirs)
                self._move(moved, head)
                commit, head = (moved if commit else None), moved
        return PublishResult(commit, pushed=False, attempts=attempt, error=refused)

    def _push_once(self, head: str) -> str:
        """Push; the reason of the refusal, or nothing."""
        try:
            done = command.attempt(
                self._repo.path, "push", "--porcelain", "--no-verify", "--no-signed", "--no-follow-tags", "--recurse-submodules=no",
                "--end-of-options", REMOTE, f"{head}:{self._ref}", env=self._repo.protocols, limit=PUSH_SECONDS,
            )  # fmt: skip
        except SourceError as slow:
            return slow.cause
        if not done.code:
            return ""
        rows = (line.split("\t") for line in done.out.decode(errors="replace").splitlines() if line.startswith("!"))
        told = [row[-1] for row in rows]
        told += [line for line in done.said if line.startswith("remote:")][:3]
        return _CONTROL.sub(" ", "; ".join(told))[:300] or done.reason

    def _replay(self, head: str, theirs: str) -> str:
        """Our commits that are not pushed, each with its content and message, on top of somebody else's: never over it."""
        path = self._repo.path
        ours = command.text(path, "rev-list", f"--max-count={MAX_REPLAYED}", head, f"^{theirs}").split()
        parent = theirs
        for commit in reversed(ours):
            tree, _, message = command.text(path, "log", "-1", "--format=%T%n%s", commit).partition("\n")
            if tree != command.text(path, "rev-parse", f"{parent}^{{tree}}"):
                parent = self._commit(tree, parent, message)
        return parent

    def _commit(self, tree: str, parent: str, message: str) -> str:
        stamp = f"{int(self._clock())} +0000"
        identity = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in (("NAME", AUTHOR[0]), ("EMAIL", AUTHOR[1]), ("DATE", stamp))
        }
        parents = ("-p", parent) if parent else ()
        subject = _CONTROL.sub(" ", message)[:MAX_SUBJECT].strip() or "status"
        arguments = ("commit-tree", "--no-gpg-sign", *parents, tree)
        return command.run(self._repo.path, *arguments, stdin=f"{subject}\n".encode(), env=identity).decode().strip()

    def _tree(self, files: Mapping[str, bytes], ids: Mapping[str, str], before: Mapping[str, str], tip: str) -> str:
        """Write what differs from the tip through an index of our own; a fixed number of Git processes, however many files."""
        repo = self._repo.path
        paths = sorted(path for path, blob in ids.items() if before.get(path) != blob)
        with tempfile.TemporaryDirectory(prefix="flops-status-") as folder:
            places = [Path(folder) / f"{number}" for number in range(len(paths))]
            for path, place in zip(paths, places, strict=True):
                place.write_bytes(files[path])
            feed = "".join(f"{place}\n" for place in places).encode()
            blobs = command.run(repo, "hash-object", "-w", "--no-filters", "--stdin-paths", stdin=feed).decode().split()
            rows = "".join(f"0 {'0' * 40}\t{path}\0" for path in sorted(before.keys() - ids.keys()))
            rows += "".join(f"100644 {blob}\t{path}\0" for path, blob in zip(paths, blobs, strict=True))
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            if tip:
                command.run(repo, "read-tree", "--end-of-options", tip, env=index)
            command.run(repo, "update-index", "-z", "--index-info", stdin=rows.encode(), env=index)
            return command.run(repo, "write-tree", env=index).decode().strip()

    def _list(self, tip: str) -> Mapping[str, str]:
        """The names in Git of a commit's files, by their paths."""
        if self._listed[0] != tip:
            self._listed = (tip, {entry.path: entry.blob for entry in self._entries(tip)})
        return self._listed[1]

    def _entries(self, tip: str) -> list[TreeEntry]:
        return [entry for entry in list_tree(self._repo.path, tip) if entry.size >= 0] if tip else []

    def _refs(self) -> tuple[str, str]:
        """Our branch and the remote's as it was last fetched; empty where there is none."""
        out = command.text(self._repo.path, "for-each-ref", "--format=%(refname) %(objectname)", self._ref, self._remote_ref)
        found = dict(line.split(" ") for line in out.splitlines())
        return found.get(self._ref, ""), found.get(self._remote_ref, "")

    def _tip(self, local: str, remote: str) -> str:
        """Our branch; the remote's when that is ahead of it or ours is not there."""
        if not local or (remote and remote != local and self._is_ancestor(local, remote)):
            return remote
        return local

    def _move(self, new: str, old: str) -> None:
        """Move our branch, if nobody else did meanwhile."""
        absent = "0" * len(new)
        command.run(self._repo.path, "update-ref", "-m", "flops: status", self._ref, new, old or absent)

    def _is_ancestor(self, older: str, newer: str) -> bool:
        return not command.attempt(self._repo.path, "merge-base", "--is-ancestor", older, newer).code
