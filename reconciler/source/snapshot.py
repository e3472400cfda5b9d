"""The GitOps repo at one commit: the few small files that declare projects, read as blobs and never from a work tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.errors import SourceError, Where
from reconciler.source import command

PROJECTS = "projects"
BUILD_PLANS = "build_plans"
DECLARING = frozenset(f"{stem}.{suffix}" for stem in ("sla", "mock_data") for suffix in ("yaml", "yml", "json"))
MAX_BLOB = 256 * 1024
_SYMLINK, _SUBMODULE = "120000", "160000"


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file of a tree; `size` is -1 for a submodule."""

    mode: str
    blob: str
    size: int
    path: str


@dataclass(frozen=True, slots=True)
class ProjectFiles:
    """A project's folder: the hash of its whole tree, and the contents of the files that declare it."""

    name: str
    tree: str
    path: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit. Projects that cannot be read are in `rejected`, the others are not affected."""

    commit: str
    projects: Mapping[str, ProjectFiles]
    build_plans: str = ""
    rejected: tuple[SourceError, ...] = ()
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def read_snapshot(repo: Path, commit: str, before: Snapshot | None = None) -> Snapshot:
    """Read a commit; blobs that `before` has are not read again."""
    if before is not None and before.commit == commit:
        return before
    trees = {entry.path: entry for entry in list_tree(repo, commit, f"{PROJECTS}/", BUILD_PLANS, recursive=False)}
    build_plans = trees[BUILD_PLANS].blob if BUILD_PLANS in trees else ""
    folders = {path.split("/")[1]: entry for path, entry in trees.items() if path.startswith(f"{PROJECTS}/")}
    known = dict(before.projects) if before else {}
    changed = [name for name, entry in folders.items() if entry.mode == "040000" and _tree(known, name) != entry.blob]
    entries: dict[str, list[TreeEntry]] = {name: [] for name in changed}
    if changed:
        for entry in list_tree(repo, commit, f"{PROJECTS}/"):
            name = entry.path.split("/")[1]
            if name in entries:
                entries[name].append(entry)
    rejected: list[SourceError] = []
    wanted: dict[str, list[TreeEntry]] = {}
    for name, found in entries.items():
        problem = _problem(found)
        if problem:
            rejected.append(problem)
        else:
            wanted[name] = [item for item in found if item.path.split("/", 2)[2] in DECLARING]
    cached = dict(before.blobs) if before else {}
    missing = {item.blob for items in wanted.values() for item in items} - cached.keys()
    blobs = cached | read_blobs(repo, missing)
    projects = {name: files for name, files in known.items() if name in folders and _tree(known, name) == folders[name].blob}
    for name, items in wanted.items():
        contents = {item.path.split("/", 2)[2]: blobs[item.blob] for item in items}
        if any(file.startswith("sla.") for file in contents):
            projects[name] = ProjectFiles(name, folders[name].blob, f"{PROJECTS}/{name}", contents)
    return Snapshot(commit, projects, build_plans, tuple(rejected), blobs)


def list_tree(repo: Path, commit: str, *paths: str, recursive: bool = True) -> list[TreeEntry]:
    """The files (or, not recursive, the direct entries) below some paths of a commit."""
    options = ["-r"] if recursive else []
    out = command.run(repo, "ls-tree", "-l", "-z", *options, "--full-tree", "--end-of-options", commit, *paths)
    found = []
    for line in out.split(b"\x00"):
        if line:
            head, path = line.split(b"\t", 1)
            mode, _, blob, size = head.decode().split()
            found.append(TreeEntry(mode, blob, int(size) if size != "-" else -1, path.decode(errors="surrogateescape")))
    return found


def read_blobs(repo: Path, blobs: Iterable[str]) -> dict[str, bytes]:
    """Contents by hash, in one call of Git."""
    wanted = sorted(set(blobs))
    if not wanted:
        return {}
    out = command.run(repo, "cat-file", "--batch", "--buffer", stdin="".join(f"{blob}\n" for blob in wanted).encode())
    found: dict[str, bytes] = {}
    at = 0
    while at < len(out):
        end = out.index(b"\n", at)
        blob, kind, size = out[at:end].decode().split()
        if kind == "missing":
            raise SourceError(
                "FL2004", f"Git has no object {blob[:12]}.", cure="Fetch again; the clone may be shallow.", transient=True
            )
        start = end + 1
        found[blob] = out[start : start + int(size)]
        at = start + int(size) + 1
    return found


def _tree(known: Mapping[str, ProjectFiles], name: str) -> str:
    return known[name].tree if name in known else ""


def _problem(entries: Iterable[TreeEntry]) -> SourceError | None:
    for entry in entries:
        where = Where(entry.path.encode(errors="replace").decode())
        parts = entry.path.lower().split("/")
        if entry.mode == _SYMLINK:
            return SourceError("FL2010", "Symbolic links are refused.", cure="Commit the file itself.", where=where)
        if entry.mode == _SUBMODULE:
            return SourceError("FL2011", "Submodules are refused.", cure="Use ml_repo_url for another repo.", where=where)
        if ".git" in parts or ".." in parts or "\\" in entry.path or any(part.startswith(".git~") for part in parts):
            return SourceError("FL2012", "The name is refused.", cure="Rename it.", where=where)
        if parts[-1] in DECLARING and entry.size > MAX_BLOB:
            return SourceError("FL2013", f"The file has {entry.size:,} bytes.", cure=f"Keep it under {MAX_BLOB:,}.", where=where)
    return None
