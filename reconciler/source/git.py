"""The GitOps repo's clone: fetch, resolve, snapshots, and the one commit that we make for users (`flops rollback`)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import SourceError
from reconciler.redaction import learn_url
from reconciler.source import command
from reconciler.source.snapshot import PROJECT_NAME, PROJECTS, Snapshot, read_snapshot

REMOTE = "origin"
FETCH_TRIES = 3
_DENIED = re.compile(r"Authentication failed|could not read (Username|Password)|Permission denied|terminal prompts disabled")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One commit: hash, author's name, time of commit in seconds since the epoch, subject."""

    commit: str
    author: str
    time: int
    subject: str


class GitRepo:
    """A clone. Its work tree, index and HEAD are the user's: nothing but `revert_commit` touches them."""

    def __init__(self, path: Path) -> None:
        try:
            found = command.run(path, "rev-parse", "--absolute-git-dir", "--show-cdup").decode(errors="replace").split("\n")
        except (SourceError, OSError) as error:
            told = error.cause if isinstance(error, SourceError) else str(error)
            if "dubious ownership" in told:
                cure = f"Work as its owner, or trust it: `git config --global --add safe.directory {path.resolve()}`."
                raise SourceError("FL2029", f"{path} belongs to another user, so Git does not read it.", cure=cure) from error
            raise SourceError(
                "FL2005", f"{path} is no Git repo: {told}", cure="Clone one, or make one with `flops init`."
            ) from error
        # Paths of the repo count from its top, also for a user who stands in a folder below it.
        self.path = (path / found[1]).resolve()
        self._snapshot: Snapshot | None = None
        self.git_dir = Path(found[0])
        url = command.attempt(self.path, "config", "--get", f"remote.{REMOTE}.url")
        self.has_remote = url.code == 0
        self.remote_url = url.out.decode(errors="replace").strip() if self.has_remote else ""
        learn_url(self.remote_url)
        self.protocols = command.protocols(self.remote_url)
        self.fetches = self.failed_fetches = 0
        """Requests to the remote, and how many of them failed; for metrics."""

    def fetch(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Fetch the remote's branches; without a remote this does nothing. It ends within a second of being `cancelled`.

        Raises a transient SourceError (FL2006) and leaves what was fetched before: an unreachable remote is not an empty one.
        """
        if not self.has_remote:
            return
        self.fetches += 1
        self.failed_fetches += 1  # until it has succeeded: a fetch that takes too long raises
        for _ in range(FETCH_TRIES):
            done = command.attempt(
                self.path, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--prune", "--no-write-fetch-head",
                "--atomic", "--no-auto-maintenance", "--end-of-options", REMOTE, f"+refs/heads/*:refs/remotes/{REMOTE}/*",
                env=self.protocols, cancelled=cancelled,
            )  # fmt: skip
            # Our own push of the status moves the branch that is being fetched; nothing was taken then, new commits neither.
            if not done.code or "cannot lock ref" not in done.reason:
                break
        if done.code:
            cure = command.CREDENTIALS_CURE if _DENIED.search(done.reason) else "It is tried again; nothing is lost."
            raise SourceError("FL2006", f"The remote cannot be fetched: {done.reason}.", cure=cure, transient=True)
        self.failed_fetches -= 1

    def resolve(self, revision: str) -> str:
        """The commit of a revision, as its full hash."""
        command.checked(revision, "A revision")
        try:
            return command.text(self.path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        except SourceError as error:
            raise SourceError("FL2007", f"There is no revision {revision!r}.", cure="Fetch, or correct its name.") from error

    def desired_commit(self, branch: str) -> str:
        """The tracked branch's commit: the remote's where there is a remote, as only what is pushed is declared.

        Raises SourceError FL2008 when the branch is gone (or not there yet), FL2018 when the remote has no branch at all.
        """
        command.checked_ref(branch, "The tracked branch")
        home = f"refs/remotes/{REMOTE}/" if self.has_remote else "refs/heads/"
        try:
            return self.resolve(home + branch)
        except SourceError as error:
            if not command.text(self.path, "for-each-ref", "--count=1", home):
                cause = "The remote is empty: it has no branch yet." if self.has_remote else "The repo has no commit yet."
                raise SourceError("FL2018", cause, cure="Commit and push.", transient=True) from error
            whose = "The remote" if self.has_remote else "The repo"
            cure = "Push it, or set `branch` in flops.yaml; what runs is left as it is."
            raise SourceError("FL2008", f"{whose} has no branch {branch!r}.", cure=cure, transient=True) from error

    def read_snapshot(self, commit: str) -> Snapshot:
        """The declared projects at a commit; what did not change since the last one is not read again."""
        self._snapshot = read_snapshot(self.path, commit, self._snapshot)
        return self._snapshot

    def log(self, revisions: str = "HEAD", path: str = "", limit: int = 50) -> list[LogEntry]:
        """The newest commits of a revision or range that touched a path: what was merged, without the steps in the branches."""
        command.checked(revisions, "A revision")
        out = command.text(
            self.path, "log", f"--max-count={limit}", "--first-parent", "--no-mailmap", "--format=%H%x00%an%x00%ct%x00%s",
            "--end-of-options", revisions, "--", *([path] if path else []),
        )  # fmt: skip
        rows = (line.split("\0") for line in out.split("\n") if line)
        return [LogEntry(commit, author, int(time), subject) for commit, author, time, subject in rows]

    def touched(self, since: str, until: str, limit: int = 1000) -> dict[str, str]:
        """The projects whose folders were changed after one commit up to another, each with the newest of those commits.

        As they were merged, not the steps in the branches; of a longer history only the newest `limit` commits.
        """
        command.checked(since, "A revision")
        out = command.text(
            self.path, "log", f"--max-count={limit}", "--first-parent", "-m", "--no-renames", "--name-only", "-z",
            "--format=%x00%H", "--end-of-options", f"{since}..{until}", "--", PROJECTS,
        )  # fmt: skip
        found: dict[str, str] = {}
        commit = ""
        for part in out.split("\0"):
            folder, slash, path = part.lstrip("\n").partition("/")
            if slash and folder == PROJECTS:
                found.setdefault(path.split("/")[0], commit)
            elif part:
                commit = part
        return found

    def last(self, project: str, until: str) -> str:
        """The newest commit that changed a project's folder, up to a commit; empty when there is none."""
        return next((entry.commit for entry in self.log(until, f"{PROJECTS}/{project}", limit=1)), "")

    def revert_commit(self, project: str, to: str | None = None) -> str:
        """Commit a project's folder as it was at `to` (else before its last change); returns the commit.

        Runs as the user, with the user's identity, configuration and hooks: it is the user's commit. Whatever else is staged or
        changed stays as it is, and a commit that is refused leaves the folder as it was.
        """
        if not PROJECT_NAME.fullmatch(project):
            raise SourceError("FL2014", f"{project!r} cannot be the name of a project.", cure="Check its name.")
        folder = f"{PROJECTS}/{project}"
        if command.attempt(self.path, "symbolic-ref", "--quiet", "HEAD").code:
            raise SourceError("FL2019", "HEAD is not on a branch.", cure="Check out the branch to commit to.")
        target = self._before_last_change(project, folder) if to is None else self.resolve(to)
        if self._as_user("status", "--porcelain", "--", folder):
            raise SourceError("FL2015", f"{folder} has changes that are not committed.", cure="Commit or drop them first.")
        if not command.text(self.path, "ls-tree", "--full-tree", "--end-of-options", target, folder):
            raise SourceError("FL2016", f"{folder} did not exist at {target[:12]}.", cure="Name a later revision with --to.")
        if not command.attempt(self.path, "diff", "--quiet", "--no-ext-diff", target, "HEAD", "--", folder).code:
            raise SourceError("FL2017", f"{folder} is already as it was at {target[:12]}.", cure="Name another revision.")
        message = f'Revert "{project}" to {target[:12]}\n\nMade by `flops rollback`: the model of that revision serves again.\n'
        try:
            self._as_user("restore", "--source", target, "--staged", "--worktree", "--", folder)
            self._as_user("commit", "--quiet", "-m", message, "--", folder)
        except SourceError:
            self._undo(folder)
            raise
        return self.resolve("HEAD")

    def _before_last_change(self, project: str, folder: str) -> str:
        last = self.log(path=folder, limit=1)
        if not last:
            raise SourceError("FL2014", f"There is no project {project!r} in the history.", cure="Check its name.")
        try:
            return self.resolve(f"{last[0].commit}^")
        except SourceError as error:
            cure = "There is nothing to go back to."
            raise SourceError("FL2016", f"{folder} did not exist before {last[0].commit[:12]}.", cure=cure) from error

    def _undo(self, folder: str) -> None:
        """Put a folder that was clean back to HEAD; a folder that HEAD does not have is emptied again."""
        there = command.text(self.path, "ls-tree", "--full-tree", "HEAD", folder)
        if there:
            self._as_user("restore", "--source", "HEAD", "--staged", "--worktree", "--", folder)
        else:
            self._as_user("rm", "-r", "--quiet", "--force", "--ignore-unmatch", "--", folder)

    def _as_user(self, *arguments: str) -> str:
        inherited = {
            name: value for name, value in os.environ.items() if name not in {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env={**inherited, "GIT_LITERAL_PATHSPECS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise SourceError(
                "FL2001", f"Git could not {arguments[0]}: {'; '.join(said[:3])[:300]}.", cure="See the message of Git."
            )
        return done.stdout
