"""ML repos: resolved to a commit and a tree once, put on disk by the hash of that tree.

Files are written from blobs – no checkout, no filters, no attributes, no hooks – into a folder that appears complete or not at
all.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from reconciler.digests import digest_of
from reconciler.errors import SourceError, Where
from reconciler.refusals import disk_is_full
from reconciler.source import command
from reconciler.source.git import GitRepo
from reconciler.source.snapshot import Snapshot, TreeEntry, list_tree, problem_of, read_blobs, shown

MAX_FILES = 20_000
MAX_BYTES = 512 * 1024 * 1024
MAX_PACK = 4 * MAX_BYTES
MAX_LISTING = MAX_FILES * 400
FETCH_SECONDS = 600
MANAGERS = ("model_manager.py", "data_manager.py")
DEPENDENCIES = ("conda.yaml", "conda.yml", "environment.yaml", "environment.yml", "requirements.txt", "pyproject.toml")
_NO_REF = re.compile(r"couldn't find remote ref|not our ref|no such remote ref", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MLRepoRevision:
    """What an SLA's `ml_repo_url` and `ml_repo_ref` led to."""

    url: str
    commit: str
    tree: str
    subdir: str


class MLRepos:
    """Mirrors of ML repos and checkouts of their trees, in a cache that all projects share."""

    def __init__(self, repo: GitRepo, cache: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
        self._repo = repo
        self._cache = cache.resolve()
        self._max_files, self._max_bytes = max_files, max_bytes
        self._counting = threading.Lock()
        self.fetches = self.failed_fetches = 0
        """Requests to ML repos elsewhere, and how many of them failed; for metrics."""

    def resolve(self, url: str, ref: str | None, subdir: str, snapshot: Snapshot) -> MLRepoRevision:
        """The revision behind a URL and ref, or behind a path of the GitOps repo at the snapshot's commit.

        A ref is a branch, a tag or a full commit; without one it is the default branch. Raises SourceError: FL2020 (transient) when
        the repo cannot be fetched, FL2025 when it has no such ref, FL2026 when it is empty.
        """
        if url.startswith("./"):
            path = "/".join(part for part in (url[2:].strip("/"), subdir) if part)
            return MLRepoRevision(url, snapshot.commit, self._tree(self._repo.path, snapshot.commit, path, url), subdir)
        command.checked(url, "ml_repo_url")
        wanted = command.checked_ref(ref, "ml_repo_ref") if ref else "HEAD"
        mirror = self._mirror(url)
        mirror.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{mirror}.lock"):
            commit = self._fetch(mirror, url, wanted)
        return MLRepoRevision(url, commit, self._tree(mirror, commit, subdir, url), subdir)

    def trees_inside(self, objects: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str | SourceError]:
        """The trees of folders of the GitOps repo: (commit or tree, path below it), with the whole path for people.

        One question to Git for all of them; what is wrong with one is told for that one.
        """
        found: dict[tuple[str, str], str | SourceError] = {}
        asked = []
        for (root, path), shown_path in objects.items():
            try:
                asked.append((root, command.checked(path, "A path"), shown_path))
            except SourceError as error:
                found[root, path] = error
        if asked:
            feed = "".join(f"{root}:{path}\n" for root, path, _ in asked).encode()
            out = command.run(self._repo.path, "cat-file", "--buffer", "--batch-check=%(objecttype) %(objectname)", stdin=feed)
            for line, (root, path, shown_path) in zip(out.decode(errors="replace").split("\n"), asked, strict=False):
                found[root, path] = _tree_of(line, root, shown_path, "this repo")
        return found

    def checkout(self, revision: MLRepoRevision) -> Path:
        """The folder with this revision's files. Raises SourceError for what may not be in it or is missing."""
        destination = self._cache / "trees" / revision.tree
        if destination.is_dir():
            return destination
        source = self._repo.path if revision.url.startswith("./") else self._mirror(revision.url)
        if not revision.url.startswith("./"):
            self._fetch_recorded(revision, source)
        entries = self._list(source, revision.tree)
        if problem := problem_of(entries):
            raise problem
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{destination}.lock"):
            if not destination.is_dir():
                folder = destination.with_name(f".{revision.tree}.part")
                shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
                try:
                    _write(source, entries, folder)
                    check_contract_files(folder)
                    folder.replace(destination)
                except OSError as error:
                    raise _disk_error(error) from error
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        return destination

    def _fetch(self, mirror: Path, url: str, wanted: str) -> str:
        """Fetch one ref, without its history, and keep its commit. The caller holds the mirror's lock."""
        if not (mirror / "HEAD").exists():
            self._init(mirror)
        _clean(mirror)
        self._count(fetches=1, failed=1)  # until it has succeeded: a fetch that takes too long raises
        done = command.attempt(
            mirror, "fetch", "--quiet", "--no-tags", "--depth=1", "--no-recurse-submodules", "--no-auto-maintenance",
            "--end-of-options", url, wanted, env=command.protocols(url), limit=FETCH_SECONDS, max_file=MAX_PACK,
        )  # fmt: skip
        if done.code:
            raise _fetch_error(done, wanted, _clean(mirror))
        self._count(failed=-1)
        try:
            commit = command.text(mirror, "rev-parse", "--verify", "FETCH_HEAD^{commit}")
        except SourceError as error:
            raise SourceError("FL2025", f"{wanted} of the ML repo is not a commit.", cure="Correct ml_repo_ref.") from error
        command.run(mirror, "update-ref", f"refs/kept/{commit}", commit)
        return commit

    def _count(self, *, fetches: int = 0, failed: int = 0) -> None:
        with self._counting:
            self.fetches += fetches
            self.failed_fetches += failed

    def _fetch_recorded(self, revision: MLRepoRevision, mirror: Path) -> None:
        """A recorded revision whose mirror is gone is fetched again, by its commit."""
        if (mirror / "HEAD").exists() and not command.attempt(mirror, "cat-file", "-e", f"{revision.tree}^{{tree}}").code:
            return
        self.resolve(revision.url, revision.commit, revision.subdir, Snapshot("", {}))

    def _list(self, source: Path, tree: str) -> list[TreeEntry]:
        cure = f"Keep it under {self._max_files:,} files and {self._max_bytes:,} bytes; data does not belong into it."
        try:
            entries = list_tree(source, tree, max_output=MAX_LISTING)
        except SourceError as error:
            if error.code != "FL2009":
                raise
            raise SourceError("FL2024", "The ML repo has too many files.", cure=cure) from error
        total = sum(max(entry.size, 0) for entry in entries)
        if len(entries) > self._max_files or total > self._max_bytes:
            raise SourceError("FL2024", f"The ML repo is too large ({len(entries):,} files, {total:,} bytes).", cure=cure)
        return entries

    def _mirror(self, url: str) -> Path:
        return self._cache / "mirrors" / digest_of(url)[:32]

    @staticmethod
    def _init(mirror: Path) -> None:
        """Make the mirror appear complete or not at all; no template, as that may hold hooks."""
        fresh = Path(tempfile.mkdtemp(dir=mirror.parent, prefix=".mirror-"))
        try:
            command.run(fresh, "init", "--quiet", "--bare", "--template=")
            shutil.rmtree(mirror, ignore_errors=True)
            fresh.replace(mirror)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    @staticmethod
    def _tree(repo: Path, commit: str, path: str, url: str) -> str:
        feed = f"{commit}:{command.checked(path, 'A path')}\n".encode()
        found = _tree_of(
            command.run(repo, "cat-file", "--batch-check=%(objecttype) %(objectname)", stdin=feed).decode(errors="replace"),
            commit, path, command.without_password(url),
        )  # fmt: skip
        if isinstance(found, SourceError):
            raise found
        return found


def _tree_of(line: str, commit: str, path: str, whose: str) -> str | SourceError:
    kind, _, found = line.strip().rpartition(" ")
    if kind == "tree":
        return found
    cure = "Commit it, or correct ml_repo_url or ml_repo_subdir."
    return SourceError("FL2021", f"There is no folder {shown(path) or '/'} at {commit[:12]} of {whose}.", cure=cure)


def check_contract_files(folder: Path) -> None:
    """Raise SourceError when one of the files that every ML repo has is missing."""
    for name in MANAGERS:
        if not (folder / name).is_file():
            raise SourceError(
                "FL2022", f"The ML repo has no {name}.", cure="Add it; docs/concepts.md shows what it must have.", where=Where(name)
            )
    if not any((folder / name).is_file() for name in DEPENDENCIES):
        raise SourceError("FL2023", "The ML repo declares no dependencies.", cure=f"Add one of {', '.join(DEPENDENCIES)}.")


def _clean(mirror: Path) -> int:
    """Drop what a killed Git left – the caller holds the mirror's lock – and return the size of the largest unfinished file."""
    largest = 0
    for stale in (*mirror.glob("*.lock"), *mirror.glob("refs/**/*.lock"), *mirror.glob("objects/*/tmp_*")):
        largest = max(largest, stale.stat().st_size)
        stale.unlink()
    return largest


def _fetch_error(done: command.Completed, wanted: str, unfinished: int) -> SourceError:
    said = "; ".join(done.said)
    if _NO_REF.search(said):
        if wanted == "HEAD":
            cure = "Push a first commit to it, or set ml_repo_ref."
            return SourceError("FL2026", "The ML repo is empty or has no default branch.", cure=cure)
        return SourceError("FL2025", f"The ML repo has no {wanted!r}.", cure="Name a branch, a tag or a full commit of it.")
    if unfinished >= MAX_PACK:
        return SourceError("FL2024", f"The ML repo is too large (over {MAX_PACK:,} bytes).", cure="Data does not belong into it.")
    if "not allowed" in said:
        return SourceError("FL2020", f"The ML repo cannot be fetched: {done.reason}.", cure="Use https or ssh.")
    cure = "Check ml_repo_url and the credentials; it is tried again."
    return SourceError("FL2020", f"The ML repo cannot be fetched: {done.reason}.", cure=cure, transient=True)


def _disk_error(error: OSError) -> SourceError:
    full = disk_is_full(error)
    cause = "The disk is full." if full else f"The ML repo cannot be written: {error.strerror}."
    return SourceError("FL2027", cause, cure="Make space in the cache." if full else "Check the cache folder.", transient=full)


def _write(source: Path, entries: list[TreeEntry], folder: Path) -> None:
    """Write files and folders that the learners' unprivileged user may read, whatever our umask."""
    folder.mkdir()
    places: dict[str, list[TreeEntry]] = {}
    made = {folder}
    for entry in entries:
        places.setdefault(entry.blob, []).append(entry)
        made.update(parent for parent in (folder / entry.path).parents if parent.is_relative_to(folder))
    for parent in sorted(made):
        parent.mkdir(exist_ok=True)
        parent.chmod(0o755)
    for blob, content in read_blobs(source, entries):
        for entry in places[blob]:
            path = folder / entry.path
            path.write_bytes(content)
            path.chmod(0o755 if entry.mode == "100755" else 0o644)
