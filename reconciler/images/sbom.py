"""Software bills of materials (CycloneDX), attached to an image as an OCI referrer: what is in it, by package URL.

The same image has the same bill, bit for bit: its serial number comes from the image's digest, its time from the commit.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import BaseOutput, make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import EMPTY, MANIFEST, Descriptor

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*(?P<version>[A-Za-z0-9.!+_-]+)")


@dataclass(frozen=True, slots=True)
class Materials:
    """What an image was made of. `requirements` is the lock's text; `created` an ISO 8601 time; `model` and `base` are names with
    digests (`sha256:…`), empty where there is none."""

    name: str
    created: str
    requirements: str
    python: str
    base: str = ""
    base_digest: str = ""
    model: str = ""
    model_digest: str = ""
    source: str = ""
    revision: str = ""


def attach_sbom(layout: Layout, image: Descriptor, materials: Materials) -> Descriptor:
    """Write the bill of an image and attach it; the referrer's manifest. Raises ImageError FL6163."""
    blob = layout.add_bytes(bill(image.digest, materials), CYCLONEDX)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": CYCLONEDX,
        "config": layout.add_bytes(b"{}", EMPTY).to_dict(),
        "layers": [blob.to_dict()],
        "subject": Descriptor(image.media_type, image.digest, image.size).to_dict(),
        "annotations": {"org.opencontainers.image.created": materials.created},
    }
    return layout.add_referrer(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS), MANIFEST)


def bill(digest: str, materials: Materials) -> bytes:
    """The bill of materials as CycloneDX JSON 1.6."""
    root = Component(
        name=materials.name, version=digest, type=ComponentType.CONTAINER, bom_ref=digest, hashes=_hashes(digest),
        purl=PackageURL("oci", None, materials.name.rpartition("/")[2].lower(), digest),
    )  # fmt: skip
    parts = [Component(name="python", version=materials.python, type=ComponentType.PLATFORM, bom_ref=f"python@{materials.python}")]
    parts += [
        Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"pypi/{name}@{version}",
                  purl=PackageURL("pypi", None, name, version))
        for name, version in pinned(materials.requirements)
    ]  # fmt: skip
    if materials.base:
        parts.append(_named(ComponentType.CONTAINER, materials.base, materials.base_digest))
    if materials.model:
        parts.append(_named(ComponentType.MACHINE_LEARNING_MODEL, materials.model, materials.model_digest))
    if materials.source:
        parts.append(_named(ComponentType.APPLICATION, materials.source, materials.revision))
    made = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, digest), components=parts)
    made.metadata.timestamp = _time(materials.created)
    made.metadata.component = root
    made.register_dependency(root, parts)
    output: BaseOutput = make_outputter(made, OutputFormat.JSON, SchemaVersion.V1_6)
    return output.output_as_string(indent=None).encode()


def pinned(requirements: str) -> list[tuple[str, str]]:
    """Names and versions of a lock's text, sorted. Raises ImageError FL6163 for a line that pins nothing."""
    found = set()
    for line in requirements.replace("\\\n", " ").splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith(("#", "--")):
            continue
        match = _PIN.match(text)
        if match is None:
            raise ImageError("FL6163", f"The lock has a line without a version: {text[:80]}.", cure="Lock the dependencies again.")
        found.add((re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"]))
    return sorted(found)


def _named(kind: ComponentType, name: str, digest: str) -> Component:
    return Component(name=name, version=digest or None, type=kind, bom_ref=f"{kind.value}/{name}@{digest}", hashes=_hashes(digest))


def _hashes(digest: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest[7:])] if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) else []


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ImageError("FL6163", f"{text[:40]!r} is not a time.", cure="Write it as 2024-01-02T03:04:05Z.") from error
    if found.tzinfo is None:
        raise ImageError("FL6163", f"{text!r} has no time zone.", cure="Write it as 2024-01-02T03:04:05Z.")
    return found
