"""The GitOps repo at one commit: the few small files that declare projects, read as blobs and never from a work tree.

A project's folder is read once per tree hash. What is wrong with one folder – symbolic links, submodules, odd names, files that
are too large – rejects that project alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.errors import SourceError, Where
from reconciler.source import command

PROJECTS = "projects"
BUILD_PLANS = "build_plans"
PROJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_STEMS = ("sla", "mock_data", *(f"{BUILD_PLANS}/{kind}" for kind in ("learner", "aggregator", "inference")))
DECLARING = frozenset(f"{stem}.{suffix}" for stem in _STEMS for suffix in ("yaml", "yml", "json"))
MAX_BLOB = 256 * 1024
MAX_LISTING = 16 * 1024 * 1024
BATCH_BYTES = 8 * 1024 * 1024
_FOLDER, _FILE, _SYMLINK, _SUBMODULE = "040000", "100", "120000", "160000"
_CHUNK = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Names that some file system takes for `.git`: characters that HFS+ leaves out, short names and endings of NTFS.
_LEFT_OUT = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])
_DOT_GIT = re.compile(r"(\.git|git~\d+)([. ]*|:.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One entry of a tree; `size` is in bytes, -1 for what is not a file."""

    mode: str
    blob: str
    size: int
    path: str


@dataclass(frozen=True, slots=True)
class ProjectFiles:
    """A project's folder: the hash of its whole tree, and the contents of the files that declare it, by their paths in it."""

    name: str
    tree: str
    path: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit. Projects that cannot be read are in `rejected`, the others are not affected.

    `tree` is the hash of all of `projects/`; `seen` is what the next snapshot need not read again. `build_plans` is the hash of
    that folder, `plans` the contents of its files by their paths in it, `plans_problem` why they were not read; `time`
    is the commit's, in seconds since 1970.
    """

    commit: str
    projects: Mapping[str, ProjectFiles]
    build_plans: str = ""
    rejected: tuple[SourceError, ...] = ()
    author: str = ""
    subject: str = ""
    tree: str = ""
    seen: Mapping[str, Seen] = field(default_factory=dict, repr=False)
    plans: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    plans_problem: SourceError | None = None
    time: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """An entry of `projects/` and what came of it: a project, an error, or nothing (a folder without an SLA)."""

    mode: str
    hash: str
    found: ProjectFiles | SourceError | None


def read_snapshot(repo: Path, commit: str, before: Snapshot | None = None) -> Snapshot:
    """Read a commit; what `before` has of the same hash is not read again. Raises SourceError for the repo as a whole."""
    if before is not None and before.commit == commit:
        return before
    said = command.text(repo, "log", "-1", "--no-mailmap", "--format=%ct%n%an%n%s", "--end-of-options", commit)
    time, author, subject = (*said.split("\n", 2), "", "")[:3]
    roots = {entry.path: entry for entry in list_tree(repo, commit, PROJECTS, BUILD_PLANS, recursive=False)}
    build_plans = roots[BUILD_PLANS].blob if BUILD_PLANS in roots else ""
    root = roots.get(PROJECTS)
    if root and root.mode != _FOLDER:
        raise SourceError("FL2028", "`projects` is not a folder.", cure="Make it a folder of projects.", where=Where(PROJECTS))
    tree = root.blob if root else ""
    if before is not None and before.build_plans == build_plans:
        plans, bad_plans = before.plans, before.plans_problem
    else:
        plans, bad_plans = _plans(repo, commit, roots.get(BUILD_PLANS))
    if before is not None and before.tree == tree:
        return replace(
            before, commit=commit, time=int(time), author=author, subject=subject,
            build_plans=build_plans, plans=plans, plans_problem=bad_plans,
        )  # fmt: skip
    seen: dict[str, Seen] = {}
    changed: list[TreeEntry] = []
    for entry in list_tree(repo, commit, f"{PROJECTS}/", recursive=False) if root else ():
        old = before.seen.get(entry.path) if before else None
        if old and (old.mode, old.hash) == (entry.mode, entry.blob):
            seen[entry.path] = old
        elif problem := _problem_of_folder(entry):
            seen[entry.path] = Seen(entry.mode, entry.blob, problem)
        elif entry.mode == _FOLDER:
            changed.append(entry)
    for start in range(0, len(changed), _CHUNK):
        seen |= _read(repo, commit, changed[start : start + _CHUNK])
    found = [item.found for _, item in sorted(seen.items())]
    projects = {item.name: item for item in found if isinstance(item, ProjectFiles)}
    rejected = tuple(item for item in found if isinstance(item, SourceError))
    return Snapshot(commit, projects, build_plans, rejected, author, subject, tree, seen, plans, bad_plans, int(time))


def _plans(repo: Path, commit: str, root: TreeEntry | None) -> tuple[dict[str, bytes], SourceError | None]:
    """The build plans of the repo, or what is wrong with their folder: then no image is made, and everything else goes on."""
    if root is None:
        return {}, None
    if root.mode != _FOLDER:
        cure = "Make it a folder of build plans."
        return {}, SourceError("FL2028", "`build_plans` is not a folder.", cure=cure, where=Where(BUILD_PLANS))
    try:
        entries = list_tree(repo, commit, f"{BUILD_PLANS}/", max_output=MAX_LISTING)
    except SourceError as error:
        return {}, error
    wanted = [entry for entry in entries if entry.path in DECLARING]
    large = next((entry for entry in wanted if entry.size > MAX_BLOB), None)
    problem = problem_of(entries) or (_file_too_large(large) if large else None)
    if problem:
        return {}, problem
    blobs = dict(read_blobs(repo, wanted))
    return {entry.path.removeprefix(f"{BUILD_PLANS}/"): blobs[entry.blob] for entry in wanted}, None


def list_tree(
    repo: Path, commit: str, *paths: str, recursive: bool = True, max_output: int = command.MAX_OUTPUT
) -> list[TreeEntry]:
    """The files (or, not recursive, the direct entries) below some paths of a commit or tree."""
    options = ["-r"] if recursive else []
    out = command.run(
        repo, "ls-tree", "-l", "-z", *options, "--full-tree", "--end-of-options", commit, *paths, max_output=max_output
    )
    found = []
    for line in out.split(b"\x00"):
        if line:
            head, path = line.split(b"\t", 1)
            mode, _, blob, size = head.decode().split()
            found.append(TreeEntry(mode, blob, int(size) if size.isdigit() else -1, path.decode(errors="surrogateescape")))
    return found


def read_blobs(repo: Path, entries: Iterable[TreeEntry]) -> Iterator[tuple[str, bytes]]:
    """(hash, content) of files, each hash once, a bounded number of bytes at a time."""
    batch: list[str] = []
    size = 0
    for blob, length in {entry.blob: entry.size for entry in entries}.items():
        if batch and size + length > BATCH_BYTES:
            yield from _batch(repo, batch, size)
            batch, size = [], 0
        batch.append(blob)
        size += max(length, 0)
    if batch:
        yield from _batch(repo, batch, size)


def problem_of(entries: Iterable[TreeEntry]) -> SourceError | None:
    """What is refused in every tree: symbolic links, submodules, names that lead elsewhere or that some system cannot hold."""
    paths: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        where = Where(shown(entry.path))
        if entry.mode == _SYMLINK:
            return SourceError("FL2010", "Symbolic links are refused.", cure="Commit the file itself.", where=where)
        if entry.mode == _SUBMODULE:
            return SourceError("FL2011", "Submodules are refused.", cure="Commit the files, or use ml_repo_url.", where=where)
        parts = entry.path.split("/")
        if not entry.mode.startswith(_FILE) or entry.path in paths or any(_odd(part) for part in parts):
            return SourceError("FL2012", "The name is refused.", cure="Rename it.", where=where)
        paths.add(entry.path)
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    for path in sorted(paths & folders):
        return SourceError("FL2012", "A file and a folder of one name.", cure="Rename one.", where=Where(shown(path)))
    return None


def shown(path: str) -> str:
    """A path as it may stand in messages, status and JSON: no control characters, nothing that is not UTF-8."""
    return _CONTROL.sub("?", path)[:300]


def _odd(part: str) -> bool:
    named = part.translate(_LEFT_OUT)
    return (
        part in {"", ".", ".."}
        or bool(_DOT_GIT.fullmatch(named))
        or "\\" in part
        or bool(_CONTROL.search(part))
        or len(part.encode(errors="replace")) > 255
    )


def _problem_of_folder(entry: TreeEntry) -> SourceError | None:
    if entry.mode not in {_FOLDER, _SYMLINK, _SUBMODULE}:
        return None  # a file such as README.md is no project
    if problem := problem_of([] if entry.mode == _FOLDER else [entry]):
        return problem
    name = entry.path.removeprefix(f"{PROJECTS}/")
    if PROJECT_NAME.fullmatch(name):
        return None
    cure = "Use a-z, 0-9 and -, at most 63 characters."
    return SourceError("FL2012", "A project's folder may not have this name.", cure=cure, where=Where(shown(entry.path)))


def _read(repo: Path, commit: str, folders: list[TreeEntry]) -> dict[str, Seen]:
    """Read folders of projects together; when their listing is too long, one by one, to find the one that is to blame."""
    try:
        listed = list_tree(repo, commit, *(folder.path for folder in folders), max_output=MAX_LISTING)
    except SourceError as error:
        if error.code != "FL2009":
            raise
        if len(folders) > 1:
            return {path: seen for folder in folders for path, seen in _read(repo, commit, [folder]).items()}
        error.where = Where(folders[0].path)
        return {folders[0].path: Seen(_FOLDER, folders[0].blob, error)}
    entries: dict[str, list[TreeEntry]] = {folder.path: [] for folder in folders}
    for entry in listed:
        entries["/".join(entry.path.split("/", 2)[:2])].append(entry)
    problems = {path: problem for path, items in entries.items() if (problem := problem_of(items) or _too_large(items))}
    wanted = {path: _declaring(items) for path, items in entries.items() if path not in problems}
    blobs = dict(read_blobs(repo, (item for items in wanted.values() for item in items)))
    found: dict[str, Seen] = {}
    for folder in folders:
        files = {item.path.split("/", 2)[2]: blobs[item.blob] for item in wanted.get(folder.path, ())}
        project = ProjectFiles(folder.path.removeprefix(f"{PROJECTS}/"), folder.blob, folder.path, files)
        declared = any(name.startswith("sla.") for name in files)
        found[folder.path] = Seen(_FOLDER, folder.blob, problems.get(folder.path) or (project if declared else None))
    return found


def _declaring(entries: list[TreeEntry]) -> list[TreeEntry]:
    return [entry for entry in entries if entry.path.split("/", 2)[2] in DECLARING]


def _too_large(entries: list[TreeEntry]) -> SourceError | None:
    for entry in _declaring(entries):
        if entry.size > MAX_BLOB:
            return _file_too_large(entry)
    return None


def _file_too_large(entry: TreeEntry) -> SourceError:
    cure = f"Keep it under {MAX_BLOB:,}."
    return SourceError("FL2013", f"The file has {entry.size:,} bytes.", cure=cure, where=Where(entry.path))


def _batch(repo: Path, blobs: list[str], size: int) -> Iterator[tuple[str, bytes]]:
    feed = "".join(f"{blob}\n" for blob in blobs).encode()
    out = command.run(repo, "cat-file", "--batch", "--buffer", stdin=feed, max_output=size + 200 * len(blobs))
    at = 0
    while at < len(out):
        end = out.index(b"\n", at)
        head = out[at:end].decode().split()
        if len(head) != 3:
            cure = "Fetch again; the clone may be shallow or damaged."
            raise SourceError("FL2004", f"Git has no object {head[0][:12]}.", cure=cure, transient=True)
        at = end + 2 + int(head[2])
        yield head[0], out[end + 1 : at - 1]
