"""The declared nodes at one commit: the blobs below `nodes/`, read like those of projects, never from a work tree."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from reconciler.errors import SourceError, Where
from reconciler.source.snapshot import MAX_BLOB, list_tree, read_blobs

NODES = "nodes"
SUFFIXES = (".yaml", ".yml", ".json")


def read_nodes(repo: Path, commit: str) -> dict[str, tuple[str, bytes]]:
    """(path, content) of each node's file by node name. Raises SourceError for a link or a file that is too large."""
    entries = [
        entry for entry in list_tree(repo, commit, f"{NODES}/", recursive=False) if PurePosixPath(entry.path).suffix in SUFFIXES
    ]
    for entry in entries:
        if not entry.mode.startswith("100"):
            raise SourceError("FL2010", "A node's file is a link.", cure="Put the file itself there.", where=Where(entry.path))
        if entry.size > MAX_BLOB:
            raise SourceError("FL2013", "A node's file is too large.", cure="Keep it small.", where=Where(entry.path))
    blobs = dict(read_blobs(repo, entries))
    return {PurePosixPath(entry.path).stem: (entry.path, blobs[entry.blob]) for entry in entries}
