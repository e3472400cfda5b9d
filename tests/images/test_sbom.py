"""Bills of materials: valid by CycloneDX' own schema, the same for the same image, and pushed with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from reconciler.errors import ImageError
from reconciler.images.push import push
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.images.sbom import CYCLONEDX, Materials, attach_sbom, bill, pinned
from tests.engine import RunningRegistry
from tests.images.imagekit import PATIENT, layout_at, make_image

LOCK = """\
numpy==1.26.4 \\
    --hash=sha256:2a02aba9ed12e4ac4eb3ea9421c420301a0c6460d9830d74a9df87efa4912010 \\
    --hash=sha256:3373d5d70a5fe74a2c1bb6d2cfd9609ecf686d47a2d7b1d37a8f3b6b47796f1e
typing_extensions==4.12.2 ; python_version < "3.12" \\
    --hash=sha256:04e5ca0351e0f3f85c6853954072df659d0d13fac324d0072316b67d7794700d
# a remark
scikit-learn==1.4.2
uvicorn[standard]==0.49.0
"""
MATERIALS = Materials(
    "acme/digits", "2024-01-02T03:04:05Z", LOCK, "3.11", base="registry.example.invalid/base:1", base_digest="sha256:" + "a" * 64,
    model="digits", model_digest="sha256:" + "b" * 64, source="https://example.invalid/ml.git", revision="0123abc",
)  # fmt: skip
DIGEST = "sha256:" + "c" * 64


def test_it_names_all_that_is_in_the_image() -> None:
    content = json.loads(bill(DIGEST, MATERIALS))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill(DIGEST, MATERIALS).decode()) is None
    purls = {item.get("purl") for item in content["components"]}
    assert {"pkg:pypi/numpy@1.26.4", "pkg:pypi/typing-extensions@4.12.2", "pkg:pypi/uvicorn@0.49.0"} <= purls
    kinds = {item["type"]: item["name"] for item in content["components"] if item["type"] != "library"}
    assert kinds == {
        "platform": "python",
        "container": "registry.example.invalid/base:1",
        "machine-learning-model": "digits",
        "application": "https://example.invalid/ml.git",
    }
    assert content["metadata"]["component"]["version"] == DIGEST
    assert content["metadata"]["timestamp"].startswith("2024-01-02T03:04:05")


def test_the_same_image_has_the_same_bill(tmp_path: Path) -> None:
    assert bill(DIGEST, MATERIALS) == bill(DIGEST, MATERIALS)
    one, other = layout_at(tmp_path / "one"), layout_at(tmp_path / "other")
    image = make_image(one, "acme/digits:1")
    make_image(other, "acme/digits:1")
    attached = attach_sbom(one, image, MATERIALS)
    assert attached.digest == attach_sbom(other, image, MATERIALS).digest == attach_sbom(one, image, MATERIALS).digest
    assert [item.digest for item in one.referrers(image.digest)] == [attached.digest]
    assert attached.artifact_type == CYCLONEDX


def test_it_is_pushed_with_the_image(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    image = make_image(layout)
    attached = attach_sbom(layout, image, MATERIALS)
    target = Reference.parse(f"{registry.host}/acme/digits:1")
    with Registry(registry.host, patience=PATIENT) as client:
        assert push(layout, image, target, registry=client).attached == [attached.digest]
        for _ in range(2):  # again, and nothing doubles
            push(layout, image, target, registry=client)
            found = client.referrers("acme/digits", image.digest)
            assert [(item.digest, item.artifact_type) for item in found] == [(attached.digest, CYCLONEDX)]
        data, _ = client.manifest(target.at(attached.digest))
        copy = layout_at(tmp_path / "copy")
        layer = layout.read_json(attached.digest)["layers"][0]
        assert json.loads(data)["layers"] == [layer]
        with copy.writer() as writer:
            from reconciler.images.model import Descriptor

            client.fetch("acme/digits", Descriptor.from_dict(layer), writer)
        assert json.loads(copy.read(layer["digest"]))["bomFormat"] == "CycloneDX"


def test_what_no_bill_can_be_made_from() -> None:
    assert pinned("") == []
    for bad in ("numpy>=1", "git+https://example.invalid/x.git"):
        with pytest.raises(ImageError, match="FL6163"):
            pinned(bad)
    for time in ("yesterday", "2024-01-02T03:04:05"):
        with pytest.raises(ImageError, match="FL6163"):
            bill(DIGEST, Materials("x", time, "", "3.11"))
