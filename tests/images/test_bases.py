"""Base images from a layout, a registry and an engine: the same thing once resolved, and clear words when it is not to be had."""

from __future__ import annotations

import shutil
from pathlib import Path

import docker
import pytest

from reconciler.errors import ImageError
from reconciler.images.base_sources import EngineSource
from reconciler.images.bases import BaseImage, fetch_layers, layer_sources, resolve_base
from reconciler.images.contents import contents_of
from reconciler.images.layout import Layout
from reconciler.images.model import Platform
from reconciler.images.push import push
from reconciler.images.records import Records
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from tests.engine import BASE, RunningRegistry
from tests.images.imagekit import PATIENT, layout_at, make_image

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "here")


def resolve(reference: str, store: Layout, *platforms: Platform) -> dict[str, BaseImage]:
    records = Records(store.root / "cache", store)
    return resolve_base(
        reference, platforms or (AMD64, ARM64), store, records=records, connect=lambda host: Registry(host, patience=PATIENT)
    )


def test_a_layout_on_disk(base_layout: Path, store: Layout) -> None:
    found = resolve(f"oci:{base_layout}:{BASE}", store)
    assert set(found) == {"linux/amd64", "linux/arm64"}
    for name, base in found.items():
        assert str(Platform.from_dict(base.config)) == name
        assert base.by_reference is None
        assert all(store.has(layer.digest) for layer in base.layers)
        assert len(base.layers) == len(base.diff_ids) == 1


def test_the_only_image_of_a_layout_needs_no_tag(tmp_path: Path, store: Layout) -> None:
    make_image(Layout(tmp_path / "other"), "whatever")
    assert resolve(f"oci:{tmp_path / 'other'}", store)["linux/arm64"].layers


def test_a_registry_keeps_its_layers_until_they_are_needed(tmp_path: Path, store: Layout, registry: RunningRegistry) -> None:
    theirs = layout_at(tmp_path / "theirs")
    index = make_image(theirs)
    with Registry(registry.host, patience=PATIENT) as client:
        push(theirs, index, Reference.parse(f"{registry.host}/library/base:1"), registry=client)
    base = resolve(f"docker://{registry.host}/library/base:1", store)["linux/amd64"]
    assert not store.has(base.layers[0].digest)
    assert str(base.by_reference) == f"{registry.host}/library/base@{index.digest}"
    assert layer_sources([base]) == {base.layers[0].digest: base.by_reference}
    fetch_layers(base, store, connect=lambda host: Registry(host, patience=PATIENT))
    assert store.has(base.layers[0].digest)
    # By its digest it is known for good: no registry is needed.
    registry.stop()
    again = resolve(f"{registry.host}/library/base@{index.digest}", store)["linux/amd64"]
    assert again == base


def test_an_image_of_the_engine(base_rootfs: dict[str, Path], engine: docker.DockerClient, store: Layout) -> None:
    engine.api.import_image_from_file(str(base_rootfs["linux/amd64"]), repository="flops-base", tag="bookworm")
    first = resolve("docker-daemon:flops-base:bookworm", store, AMD64)["linux/amd64"]
    assert contents_of(first.layers, lambda layer: store.blob_path(layer.digest), Records(store.root / "c", store)).pythons
    assert first.manifest.digest == resolve("docker-daemon:flops-base:bookworm", store, AMD64)["linux/amd64"].manifest.digest
    # Collected and saved again, it is the same to the bit.
    shutil.rmtree(store.root / "blobs")
    (store.root / "blobs/sha256").mkdir(parents=True)
    assert resolve("docker-daemon:flops-base:bookworm", store, AMD64)["linux/amd64"] == first
    with pytest.raises(ImageError, match="FL6153"):
        resolve("docker-daemon:flops-base:bookworm", store, ARM64)
    with pytest.raises(ImageError, match="FL6146"):
        resolve("docker-daemon:flops-base:nothing", store, AMD64)


def test_an_engine_that_is_not_there(store: Layout) -> None:
    source = EngineSource(
        "a:b", store, Records(store.root / "cache", store), lambda: docker.DockerClient(base_url="unix:///nonexistent/docker.sock")
    )  # fmt: skip
    with pytest.raises(ImageError, match="FL6155") as failure:
        source.top()
    assert failure.value.transient


def test_what_is_not_to_be_had(tmp_path: Path, store: Layout, registry: RunningRegistry) -> None:
    other = Layout(tmp_path / "other")
    index = make_image(other, "base:1", platforms=("linux/amd64",))
    cases = {
        f"oci:{tmp_path / 'other'}:base:1": ("FL6153", "is not there for linux/arm64; it is for linux/amd64"),
        f"oci:{tmp_path / 'other'}:base:2": ("FL6146", "That layout has: base:1"),
        f"oci:{tmp_path}": ("FL6157", "is not an OCI image layout"),
        f"{registry.host}/library/none:1": ("FL6146", "There is no image"),
        "scratch": ("FL6154", "no base image"),
        "ftp://example.invalid/a": ("FL6154", "no base image"),
        "python:3.11": ("FL6140", "Write the registry's host first"),
    }
    for reference, (code, words) in cases.items():
        with pytest.raises(ImageError) as failure:
            resolve(reference, store, ARM64)
        assert failure.value.code == code, reference
        assert words in str(failure.value)
    manifest = other.read_json(other.read_json(index.digest)["manifests"][0]["digest"])
    other.blob_path(manifest["layers"][0]["digest"]).write_bytes(b"something else")
    with pytest.raises(ImageError, match="FL6104"):
        resolve(f"oci:{tmp_path / 'other'}:base:1", store, AMD64)
    assert not store.has(manifest["layers"][0]["digest"])
