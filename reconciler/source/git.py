"""The GitOps repo's clone: fetch, resolve, snapshots, and the one commit that we make for users (`flops rollback`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from reconciler.errors import SourceError
from reconciler.source import command
from reconciler.source.snapshot import PROJECTS, Snapshot, read_snapshot

REMOTE = "origin"


class GitRepo:
    """A clone. Its work tree, index and HEAD are the user's: nothing but `revert_commit` touches them."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._snapshot: Snapshot | None = None
        try:
            command.run(self.path, "rev-parse", "--git-dir")
        except (SourceError, OSError) as error:
            raise SourceError("FL2005", f"{path} is no Git repo.", cure="Clone one, or make one with `flops init`.") from error
        self.has_remote = REMOTE in command.text(self.path, "remote").split()

    def fetch(self) -> None:
        """Fetch the remote's branches; without a remote this does nothing. Raises a transient SourceError."""
        if not self.has_remote:
            return
        try:
            command.run(
                self.path, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--prune", "--end-of-options", REMOTE,
                "+refs/heads/*:refs/remotes/origin/*",
            )  # fmt: skip
        except SourceError as error:
            raise SourceError(
                "FL2006", f"The remote cannot be fetched: {error.cause}", cure="It is tried again; nothing is lost.", transient=True
            ) from error

    def resolve(self, revision: str) -> str:
        """The commit of a revision, as 40 hexadecimal digits."""
        command.checked(revision, "A revision")
        try:
            return command.text(self.path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        except SourceError as error:
            raise SourceError("FL2007", f"There is no revision {revision!r}.", cure="Fetch, or correct its name.") from error

    def desired_commit(self, branch: str) -> str:
        """The tracked branch's commit: the remote's where there is one."""
        for ref in ([f"refs/remotes/{REMOTE}/{branch}"] if self.has_remote else []) + [f"refs/heads/{branch}"]:
            try:
                return self.resolve(ref)
            except SourceError:
                continue
        raise SourceError(
            "FL2008", f"There is no branch {branch!r}.", cure="Push a first commit, or set `branch` in flops.yaml.", transient=True
        )

    def read_snapshot(self, commit: str) -> Snapshot:
        """The declared projects at a commit; what did not change since the last one is not read again."""
        self._snapshot = read_snapshot(self.path, commit, self._snapshot)
        return self._snapshot

    def revert_commit(self, project: str, to: str | None = None) -> str:
        """Commit a project's folder as it was at `to` (before its last change); returns the commit.

        Runs as the user, with the user's configuration and hooks: it is the user's commit.
        """
        folder = f"{PROJECTS}/{command.checked(project, 'A project')}"
        if to is None:
            last = command.text(self.path, "log", "-1", "--format=%H", "HEAD", "--", folder)
            if not last:
                raise SourceError("FL2014", f"There is no project {project!r} in the history.", cure="Check its name.")
            to = f"{last}^"
        target = self.resolve(to)
        if command.text(self.path, "status", "--porcelain", "--", folder):
            raise SourceError("FL2015", f"{folder} has changes that are not committed.", cure="Commit or drop them first.")
        if not command.text(self.path, "ls-tree", "--end-of-options", target, "--", folder):
            raise SourceError("FL2016", f"{folder} did not exist at {target[:12]}.", cure="Name a later revision with --to.")
        self._as_user("restore", "--source", target, "--staged", "--worktree", "--", folder)
        if not command.text(self.path, "diff", "--cached", "--name-only", "--", folder):
            raise SourceError("FL2017", f"{folder} is already as it was at {target[:12]}.", cure="Name another revision.")
        message = f'Revert "{project}" to {target[:12]}\n\nMade by `flops rollback`: the model of that revision serves again.\n'
        self._as_user("commit", "--quiet", "-m", message, "--", folder)
        return self.resolve("HEAD")

    def _as_user(self, *arguments: str) -> None:
        done = subprocess.run(["git", *arguments], cwd=self.path, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise SourceError(
                "FL2001", f"Git could not {arguments[0]}: {said[-1] if said else ''}.", cure="See the message of Git."
            )
