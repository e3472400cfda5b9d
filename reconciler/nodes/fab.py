"""The Flower app bundle (FAB) of a run: the ML repo's files, the lock of their environment and what a learner has to know.

The same run gives the same bytes. A bundle that comes to a node is another's word: names are checked, sizes are bounded, and
nothing of it is run outside the sandbox.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from flwr.common.constant import FAB_DATE, FAB_MAX_SIZE

from reconciler.environments import Lock
from reconciler.environments.model import DependencyReport
from reconciler.errors import TrainingError
from reconciler.spec.base import NAME
from reconciler.spec.training import Privacy

SPEC_FILE, CODE = "flops.json", "ml_repo"
_PRIVACY, _MECHANISMS = set(Privacy.model_fields), get_args(Privacy.model_fields["mechanism"].annotation)
_UNPACKED_LIMIT = 256 << 20
_FILES_LIMIT = 5000
_PROJECT = """[project]
name = "flops-run"
version = "1.0.0"
description = "A training run of a GitOps project"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "flops"

[tool.flwr.app.components]
serverapp = "flops_runtime.rounds:server_app"
clientapp = "flops_runtime.learner:client_app"

[tool.flwr.app.config]
digest = ""
"""


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What a node has to know of a run beside its code. `data_tags`: any of them; `seconds` a learner may take to load."""

    digest: str
    project: str
    flavor: str
    seed: int
    data_tags: tuple[str, ...]
    memory_mb: int
    vcpus: int
    setup_seconds: float
    python: str
    requirements: str
    privacy: Mapping[str, Any] | None = None
    """Differential privacy of the SLA: what a learner does to its update before it leaves the node."""

    @property
    def lock(self) -> Lock:
        """The lock of the environment; its digest is made anew, so a bundle cannot claim another's environment."""
        from reconciler.digests import digest_of

        return Lock(digest_of([self.python, self.requirements]), self.python, self.requirements, DependencyReport())


@dataclass(frozen=True, slots=True)
class AppBundle:
    """A FAB; `hash` is its SHA-256, by which Flower knows it."""

    content: bytes
    hash: str


def build(repo_dir: Path, spec: LearnerSpec) -> AppBundle:
    """The bundle of a run. Raises TrainingError when it is larger than Flower allows."""
    files: dict[str, bytes] = {"pyproject.toml": _PROJECT.encode(), SPEC_FILE: json.dumps(asdict(spec), indent=1).encode()}
    for path in sorted(repo_dir.rglob("*")):
        relative = path.relative_to(repo_dir)
        if path.is_file() and not path.is_symlink() and not any(_skipped(part) for part in relative.parts):
            files[f"{CODE}/{relative.as_posix()}"] = path.read_bytes()
    manifest = "\n".join(f"{name},{sha256(data).hexdigest()},{len(data) * 8}" for name, data in files.items())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, ".info/CONTENT": manifest.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name, FAB_DATE), data, zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    if len(content) > FAB_MAX_SIZE:
        raise TrainingError(
            "FL5804",
            f"The ML repo is {len(content) / 1e6:.1f} MB as an app bundle; Flower sends at most {FAB_MAX_SIZE / 1e6:.1f} MB.",
            cure="Take large files out of the ML repo; data belongs on the nodes.",
        )
    return AppBundle(content, sha256(content).hexdigest())


def unpack(content: bytes, expected_hash: str, directory: Path) -> LearnerSpec:
    """Writes the ML repo's files below `directory/ml_repo` and returns the rest. Raises TrainingError (FL5807)."""
    if sha256(content).hexdigest() != expected_hash:
        raise _bad("its hash is not the one that was announced")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if len(infos) > _FILES_LIMIT or sum(info.file_size for info in infos) > _UNPACKED_LIMIT:
                raise _bad("it is too large")
            spec = _spec(json.loads(archive.read(SPEC_FILE)))
            for info in infos:
                if info.filename.startswith(f"{CODE}/") and not info.is_dir():
                    target = directory / _safe(info.filename)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(info))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise _bad(f"it cannot be read ({type(error).__name__})") from error
    return spec


def _spec(data: Mapping[str, Any]) -> LearnerSpec:
    spec = LearnerSpec(**{**data, "data_tags": tuple(str(tag) for tag in data["data_tags"])})
    if spec.flavor not in ("sklearn", "pytorch", "keras") or not 1 <= spec.memory_mb <= 10_000_000 or len(spec.digest) != 64:
        raise ValueError("values out of range")
    if not re.fullmatch(r"3\.\d{1,2}", spec.python) or not re.fullmatch(NAME, spec.project):
        raise ValueError("a Python or a project that cannot be")  # they become arguments and names of containers
    if spec.privacy is not None and (set(spec.privacy) != _PRIVACY or spec.privacy["mechanism"] not in _MECHANISMS):
        raise ValueError("a privacy that is not known here")  # trained without it, data would be less private than declared
    return spec


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise _bad(f"it has a file called {name[:80]!r}")
    return path


def _skipped(part: str) -> bool:
    return part in ("__pycache__", ".git")


def _bad(reason: str) -> TrainingError:
    return TrainingError("FL5807", f"The app bundle of the run is refused: {reason}.", cure="Ask the federation's operator.")
