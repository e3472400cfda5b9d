"""Small real images for tests of the store and the registries, and settings that do not wait."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from reconciler.images.layout import Layout
from reconciler.images.model import CONFIG, INDEX, LAYER_GZIP, MANIFEST, Descriptor, Platform
from reconciler.images.transport import Patience

PATIENT = Patience(connect=5, silence=20, sleep=lambda _seconds: None, jitter=lambda: 0.5)
"""Tries again at once."""


def make_image(
    layout: Layout, name: str = "", *, content: bytes = b"print('hello')\n",
    platforms: tuple[str, ...] = ("linux/amd64", "linux/arm64"),
    env: tuple[str, ...] = ("PYTHON_VERSION=3.11.2",),
) -> Descriptor:  # fmt: skip
    """An index over one manifest a platform, each of one layer with one file; tagged when named."""
    manifests = []
    for text in platforms:
        platform = Platform.parse(text)
        tar = tar_of({"app/main.py": content, "app/platform": text.encode()})
        layer = layout.add_bytes(gzip.compress(tar, 1, mtime=0), LAYER_GZIP)
        config = {
            **platform.to_dict(),
            "config": {"Env": list(env), "Cmd": ["/app/main.py"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": layout.add_json(config, CONFIG).to_dict(),
            "layers": [layer.to_dict()],
        }
        manifests.append(layout.add_json(manifest, MANIFEST, platform=platform).to_dict())
    index = layout.add_json(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": manifests,
            "annotations": {"org.opencontainers.image.created": "2024-01-02T03:04:05Z"},
        },
        INDEX,
    )
    if name:
        layout.tag(name, index)
    return index


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar archive in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def layout_at(path: Path) -> Layout:
    """A fresh layout."""
    return Layout(path / "store")
