"""Byte code for containers on this machine: images have none, so every fresh container would compile what it imports.

An environment of the same lock has been compiled already, by uv and not by anybody's ML code. Its byte code is put where Python
looks for it with `PYTHONPYCACHEPREFIX` and bound read-only into containers. It saves 3 s of CPU for each learner; it is no part
of an image, whose bytes stay the same everywhere.

Invariant: what runs is what is in the image. Each piece has the hash of the source that it was compiled from, which Python compares
with the image's; byte code of other sources is not used.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import source_from_cache, source_hash
from pathlib import Path
from typing import Final

from filelock import FileLock

from reconciler.errors import ImageError
from reconciler.images.dependencies import SITE
from reconciler.images.layout import disk_error

VARIABLE: Final = "PYTHONPYCACHEPREFIX"
_FORM: Final = 2
"""Of what is in a folder; a new form is a new folder."""
_HEADER: Final = 16
_TESTS: Final = frozenset({"test", "tests"})
"""Packages' own tests: a third of all byte code, and nobody imports them."""
_CHECKED: Final = (0b11).to_bytes(4, "little")
"""PEP 552: known by the hash of its source, which is compared."""


def bytecode_folder(environment: Path, digest: str, root: Path, *, site: str = f"/{SITE}") -> Path:
    """The folder for `PYTHONPYCACHEPREFIX` in containers of images with this lock, made unless it is there.

    `environment` is a complete environment of the lock `digest`, `root` a cache. Raises ImageError FL6105 or FL6108 when it
    cannot be written, FL6115 when the environment has gone.
    """
    folder = root / "bytecode" / f"{digest[:32]}-{_FORM}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
                try:
                    _fill(environment, aside / site.strip("/"))
                    aside.chmod(0o755)
                    aside.replace(folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise disk_error(error) from error
    return folder


def _fill(environment: Path, target: Path) -> None:
    packages = next((environment / "lib").glob("python3.*/site-packages"), None)
    if packages is None:
        raise ImageError("FL6115", "The environment of the lock is not there.", cure="It is built again.", transient=True)
    target.mkdir(parents=True)
    for cached in sorted(packages.rglob("__pycache__/*.pyc")):
        if not _TESTS.isdisjoint(cached.relative_to(packages).parts):
            continue
        data = cached.read_bytes()
        source = Path(source_from_cache(str(cached)))
        if len(data) > _HEADER and source.is_file():
            path = target / cached.parent.parent.relative_to(packages) / cached.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[:4] + _CHECKED + source_hash(source.read_bytes()) + data[_HEADER:])
