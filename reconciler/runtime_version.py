"""The version of the code that runs inside ML environments: part of every run's digest.

A change of the runtime may change what is learnt, so a result is only reused for the runtime that made it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def mlruntime_dir() -> Path:
    """The directory that children get on their PYTHONPATH; the reconciler never imports from it."""
    return Path(__file__).resolve().parent / "mlruntime"


@cache
def mlruntime_digest() -> str:
    """SHA-256 over the sorted relative names and the contents of its Python files, as 64 hexadecimal digits."""
    root = mlruntime_dir()
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda item: item.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


TRAINING_VERSION = "1"
"""Part of every run's digest. Raised by hand when the runtime's code changes *what is learnt* – not with every edit, because that
would train every project of every user again with each release (docs/adr/0006)."""
