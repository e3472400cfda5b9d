"""Wheels of a few bytes in a folder that plays the package index, and locks of them."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.digests import digest_of
from reconciler.environments.model import DependencyReport, Lock
from reconciler.images.dependencies import Target, dependency_layers
from reconciler.images.layout import Layout
from reconciler.images.model import Platform
from reconciler.images.records import Records
from reconciler.images.tarball import Layer

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
BOTH = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64")


class Wheels:
    """The folder; uv is told to look nowhere else."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        root.mkdir()
        monkeypatch.setenv("UV_FIND_LINKS", str(root))
        monkeypatch.setenv("UV_NO_INDEX", "1")
        monkeypatch.setenv("UV_CACHE_DIR", str(root.parent / "uv-cache"))

    def add(
        self, name: str, files: Mapping[str, bytes | str], *, tags: Sequence[str] = ("any",), version: str = "1.0",
        links: Mapping[str, str] | None = None, unlisted: Sequence[str] = (), claims: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """One wheel a tag; the lines of a lock."""
        hashes = []
        for tag in tags:
            path = self.root / f"{name}-{version}-py3-none-{tag}.whl"
            info = f"{name}-{version}.dist-info"
            content = {key: data.encode() if isinstance(data, str) else data for key, data in files.items()}
            content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
            content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-{tag}\n".encode()
            rows = [f"{key},sha256={_hash(data)},{len(data)}" for key, data in content.items() if key not in unlisted]
            content[f"{info}/RECORD"] = "\n".join([*rows, *(f"{name},," for name in claims), f"{info}/RECORD,,"]).encode()
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for key, data in content.items():
                    archive.writestr(key, data)
                for key, target in (links or {}).items():
                    link = zipfile.ZipInfo(key)
                    link.create_system, link.external_attr = 3, 0o120777 << 16
                    archive.writestr(link, target)
            hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
        return " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{item}" for item in hashes)])


def lock_of(*lines: str, python: str = "3.11") -> Lock:
    """A lock of these lines."""
    text = "\n".join(lines) + "\n"
    return Lock(digest_of([python, text]), python, text, DependencyReport())


def layers_of(
    root: Path, lock: Lock, platform: Platform = AMD64, *, compression: str = "gzip", told: list[str] | None = None
) -> list[Layer]:
    """The dependency layers, in a store and records below `root`."""
    layout = Layout(root / "store")
    with ThreadPoolExecutor(2) as pool:
        tell = (told if told is not None else []).append
        return dependency_layers(
            lock, Target(platform, lock.python, 28, compression), Records(root / "records", layout), pool, tell
        )


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
