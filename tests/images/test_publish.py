"""An image from the store to a registry, and from there into an engine that runs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import docker
import pytest

from reconciler.errors import ImageError
from reconciler.images.bases import BaseImage, resolve_base
from reconciler.images.collect import set_pin
from reconciler.images.layout import Layout
from reconciler.images.model import CONFIG, INDEX, LAYER_TAR, MANIFEST, Descriptor, Platform
from reconciler.images.publish import publish
from reconciler.images.push import push
from reconciler.images.records import Records
from reconciler.images.reference import Reference, repository_name
from reconciler.images.registry import Registry
from reconciler.images.sbom import CYCLONEDX, Materials
from reconciler.images.signing import SIGNATURE, Signer, verify
from reconciler.images.store import ImageStore
from tests.engine import BASE, RunningRegistry, StartRegistry
from tests.images.imagekit import PATIENT, layout_at, make_image, tar_of
from tests.images.test_signing import plain_key

MATERIALS = Materials("acme/digits", "2024-01-02T03:04:05Z", "numpy==1.26.4", "3.11")


def patient(host: str) -> Registry:
    return Registry(host, patience=PATIENT)


def test_base_from_the_registry_layer_of_ours_pulled_and_run(
    tmp_path: Path, base_layout: Path, registry: RunningRegistry, engine: docker.DockerClient
) -> None:
    base_store = Layout(base_layout)
    base_index = base_store.tags()[BASE]
    with patient(registry.host) as client:
        push(base_store, base_index, Reference.parse(f"{registry.host}/library/{BASE}"), registry=client)
    layout = layout_at(tmp_path)
    platforms = [Platform.parse("linux/amd64"), Platform.parse("linux/arm64")]
    records = Records(tmp_path / "records", layout)
    bases = resolve_base(f"{registry.host}/library/{BASE}", platforms, layout, records=records, connect=patient)
    index = on_top(layout, bases, b"import platform\nprint('answer', 6 * 7)\n")
    signer = Signer(plain_key())
    name = f"{repository_name('Acme Corp', 'digits')}:1"
    where, ours = f"{registry.host}/models", list(bases.values())
    done = publish(layout, index, name, MATERIALS, registry=where, bases=ours, signer=signer, connect=patient)
    # The base's layers never came here: the registry took them over from its own repository.
    assert done.pushed is not None
    assert done.pushed.mounted == 2
    assert not any(layout.has(layer.digest) for base in bases.values() for layer in base.layers)
    assert sorted(done.pushed.attached) == sorted([done.sbom, done.signature])
    verify(layout, index, signer.public_pem, done.reference.partition("@")[0])
    with patient(registry.host) as client:
        repository = done.reference.partition("@")[0].partition("/")[2]
        assert {item.artifact_type for item in client.referrers(repository, index.digest)} == {CYCLONEDX, SIGNATURE}
    image = engine.images.pull(done.reference)
    try:
        assert engine.containers.run(image, remove=True, network_disabled=True).strip() == b"answer 42"
    finally:
        engine.images.remove(image.id, force=True)
    # Again: nothing is left to do.
    again = publish(layout, index, name, MATERIALS, registry=where, signer=signer, connect=patient)
    assert again.pushed is not None
    assert (again.pushed.bytes_sent, again.digest, again.sbom, again.signature) == (0, done.digest, done.sbom, done.signature)


def test_without_a_registry_it_stays_in_the_store(tmp_path: Path) -> None:
    layout = layout_at(tmp_path)
    index = make_image(layout, "acme/digits:1")
    done = publish(layout, index, "acme/digits:1", MATERIALS)
    assert (done.reference, done.pushed, done.signature) == (f"acme/digits@{index.digest}", None, "")
    assert [item.artifact_type for item in layout.referrers(index.digest)] == [CYCLONEDX]


def test_a_registry_that_is_no_name(tmp_path: Path) -> None:
    layout = layout_at(tmp_path)
    index = make_image(layout, "acme/digits:1")
    for wrong in ("registry", "https://registry.example.invalid", "registry.example.invalid/A"):
        with pytest.raises(ImageError, match="FL6140"):
            publish(layout, index, "acme/digits:1", MATERIALS, registry=wrong)


def test_names_of_customers_become_repositories() -> None:
    assert repository_name("acme", "digits") == "acme/digits"
    one, other = repository_name("Acme Corp", "x"), repository_name("acme-corp", "x")
    assert one != other
    for parts in (("Größe", "ü"), ("..", "a"), ("a/b", "C"), ("x" * 200, "y")):
        Reference.parse(f"registry.example.invalid/{repository_name(*parts)}:1")


def test_a_project_that_is_deleted_has_no_image_here_or_there_and_others_keep_theirs(
    tmp_path: Path, registry: RunningRegistry
) -> None:
    store = ImageStore(tmp_path / "store", tmp_path / "cache", registry=f"{registry.host}/models", connect=patient)
    mine, other = (f"{repository_name('acme', project)}:{'0' * 32}" for project in ("digits", "digits-two"))
    for name in (mine, other):
        index = make_image(store.layout, name, content=name.encode())
        publish(store.layout, index, name, MATERIALS, registry=f"{registry.host}/models", bases=[], connect=patient)
    pinned = f"{repository_name('acme', 'digits')}:{'1' * 32}"
    make_image(store.layout, pinned, content=b"pinned")
    set_pin(store.layout, pinned, pinned=True)
    assert store.delete_project("acme", "digits") == 1
    assert set(store.layout.tags()) == {other, pinned}
    with patient(registry.host) as client:
        assert client.digest_of(store.reference(mine)) is None
        assert client.digest_of(store.reference(other)) is not None
    assert store.delete_project("acme", "digits") == 0


def test_a_registry_that_allows_no_deletion_is_said_and_the_image_stays_in_the_inventory(
    tmp_path: Path, start_registry: StartRegistry
) -> None:
    registry = start_registry("strict", extra="")
    registry.stop()
    config = registry.root / "config.yml"
    config.write_text(config.read_text().replace("delete: {enabled: true}", "delete: {enabled: false}"))
    registry.start()
    store = ImageStore(tmp_path / "store", tmp_path / "cache", registry=f"{registry.host}/models", connect=patient)
    name = f"{repository_name('acme', 'digits')}:{'0' * 32}"
    index = make_image(store.layout, name, content=b"1")
    publish(store.layout, index, name, MATERIALS, registry=f"{registry.host}/models", bases=[], connect=patient)
    with pytest.raises(ImageError) as raised:
        store.delete_project("acme", "digits")
    assert raised.value.code == "FL6149"
    assert set(store.layout.tags()) == {name}


def on_top(layout: Layout, bases: dict[str, BaseImage], code: bytes) -> Descriptor:
    """An index that adds one file to each base and runs it."""
    tar = tar_of({"app/main.py": code})
    layer = layout.add_bytes(tar, LAYER_TAR)
    manifests = []
    for name, base in bases.items():
        platform = Platform.parse(name)
        config = {
            **platform.to_dict(),
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["python3", "/app/main.py"], "User": "1000"},
            "rootfs": {"type": "layers", "diff_ids": [*base.diff_ids, f"sha256:{hashlib.sha256(tar).hexdigest()}"]},
        }
        layers = [*(item.to_dict() for item in base.layers), layer.to_dict()]
        described = layout.add_json(config, CONFIG)
        content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described.to_dict(), "layers": layers}
        manifests.append(layout.add_json(content, MANIFEST, platform=platform).to_dict())
    return layout.add_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)
