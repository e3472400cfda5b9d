"""The digest of a model directory: what was recorded is what is served.

Only files and folders count. A model directory is made by code that is not ours, and a link in it could lead to any file of
this machine; it is refused before anything is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from reconciler.errors import TrackingError


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of all files. Raises TrackingError for links and other special files."""
    whole = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise TrackingError(
                "FL6008",
                f"The model directory holds {path.relative_to(directory)}, which is neither a file nor a folder.",
                cure="Save the model without links.",
            )
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path.relative_to(directory).as_posix()}\0{content}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()
