"""ML repos: resolved to a commit and a tree once, put on disk by the hash of that tree.

Files are written from blobs – no checkout, no filters, no attributes, no hooks – into a folder that appears complete or not at
all.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from reconciler.digests import digest_of
from reconciler.errors import SourceError, Where
from reconciler.source import command
from reconciler.source.git import GitRepo
from reconciler.source.snapshot import Snapshot, TreeEntry, list_tree, read_blobs

MAX_FILES = 20_000
MAX_BYTES = 512 * 1024 * 1024
MANAGERS = ("model_manager.py", "data_manager.py")
DEPENDENCIES = ("conda.yaml", "conda.yml", "environment.yaml", "environment.yml", "requirements.txt", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class MLRepoRevision:
    """What an SLA's `ml_repo_url` and `ml_repo_ref` led to."""

    url: str
    commit: str
    tree: str
    subdir: str


class MLRepos:
    """Mirrors of ML repos and checkouts of their trees, in a cache that all projects share."""

    def __init__(self, repo: GitRepo, cache: Path) -> None:
        self._repo = repo
        self._cache = cache

    def resolve(self, url: str, ref: str | None, subdir: str, snapshot: Snapshot) -> MLRepoRevision:
        """The revision behind a URL and ref, or behind a path of the GitOps repo at the snapshot's commit."""
        if url.startswith("./"):
            path = "/".join(part for part in (url[2:], subdir) if part)
            return MLRepoRevision(url, snapshot.commit, self._tree(self._repo.path, snapshot.commit, path, url), subdir)
        mirror = self._mirror(url)
        command.checked(url, "ml_repo_url")
        wanted = command.checked(ref, "ml_repo_ref") if ref else "HEAD"
        with FileLock(f"{mirror}.lock"):
            try:
                command.run(mirror, "fetch", "--quiet", "--no-tags", "--depth=1", "--end-of-options", url, wanted)
                commit = command.text(mirror, "rev-parse", "FETCH_HEAD^{commit}")
                command.run(mirror, "update-ref", f"refs/kept/{commit}", commit)
            except SourceError as error:
                raise SourceError(
                    "FL2020",
                    f"The ML repo cannot be fetched: {error.cause}",
                    cure="Check ml_repo_url and ml_repo_ref; it is tried again.",
                    transient=True,
                ) from error
        return MLRepoRevision(url, commit, self._tree(mirror, commit, subdir, url), subdir)

    def checkout(self, revision: MLRepoRevision) -> Path:
        """The folder with this revision's files. Raises SourceError for what may not be in it or is missing."""
        destination = self._cache / "trees" / revision.tree
        if destination.is_dir():
            return destination
        source = self._repo.path if revision.url.startswith("./") else self._mirror(revision.url)
        if not revision.url.startswith("./"):
            self._fetch_recorded(revision, source)
        entries = list_tree(source, revision.tree)
        _check(entries)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{destination}.lock"):
            if not destination.is_dir():
                folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".checkout-"))
                try:
                    _write(source, entries, folder)
                    check_contract_files(folder)
                    folder.chmod(0o755)
                    folder.replace(destination)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        return destination

    def _fetch_recorded(self, revision: MLRepoRevision, mirror: Path) -> None:
        """A recorded revision whose mirror is gone is fetched again, by its commit."""
        try:
            command.run(mirror, "cat-file", "-e", f"{revision.tree}^{{tree}}")
        except SourceError:
            self.resolve(revision.url, revision.commit, revision.subdir, Snapshot("", {}))

    def _mirror(self, url: str) -> Path:
        mirror = self._cache / "mirrors" / digest_of(url)[:32]
        if not (mirror / "HEAD").exists():
            mirror.mkdir(parents=True, exist_ok=True)
            command.run(mirror, "init", "--quiet", "--bare")
        return mirror

    @staticmethod
    def _tree(repo: Path, commit: str, path: str, url: str) -> str:
        try:
            return command.text(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}:{path}")
        except SourceError as error:
            raise SourceError(
                "FL2021",
                f"There is no folder {path or '/'} at {commit[:12]} of {url}.",
                cure="Commit it, or correct ml_repo_url or ml_repo_subdir.",
            ) from error


def check_contract_files(folder: Path) -> None:
    """Raise SourceError when one of the files that every ML repo has is missing."""
    for name in MANAGERS:
        if not (folder / name).is_file():
            raise SourceError(
                "FL2022", f"The ML repo has no {name}.", cure="Add it; docs/concepts.md shows what it must have.", where=Where(name)
            )
    if not any((folder / name).is_file() for name in DEPENDENCIES):
        raise SourceError("FL2023", "The ML repo declares no dependencies.", cure=f"Add one of {', '.join(DEPENDENCIES)}.")


def _check(entries: list[TreeEntry]) -> None:
    total = sum(max(entry.size, 0) for entry in entries)
    if len(entries) > MAX_FILES or total > MAX_BYTES:
        raise SourceError(
            "FL2024",
            f"The ML repo is too large ({len(entries):,} files, {total:,} bytes).",
            cure=f"Keep it under {MAX_FILES:,} files and {MAX_BYTES:,} bytes; data does not belong into it.",
        )
    for entry in entries:
        where = Where(entry.path)
        parts = entry.path.lower().split("/")
        if entry.mode == "120000":
            raise SourceError("FL2010", "Symbolic links are refused.", cure="Commit the file itself.", where=where)
        if entry.mode == "160000":
            raise SourceError("FL2011", "Submodules are refused.", cure="Copy the files, or make a package of them.", where=where)
        if ".git" in parts or ".." in parts or "" in parts or "\\" in entry.path:
            raise SourceError("FL2012", "The name is refused.", cure="Rename it.", where=where)


def _write(source: Path, entries: list[TreeEntry], folder: Path) -> None:
    contents = read_blobs(source, (entry.blob for entry in entries))
    for entry in entries:
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[entry.blob])
        path.chmod(0o755 if entry.mode == "100755" else 0o644)
