"""Base images: an OCI layout on disk, an image of a registry, or one of a Docker Engine; the same thing once it is resolved.

Manifests and configurations come into the store at once. Layers of a registry come when somebody needs their bytes: an image
that is pushed to the registry of its base never moves them. A reference is resolved to a digest once; what belongs to that
digest is known for good.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from reconciler.errors import ImageError
from reconciler.images.base_sources import EngineSource, LayoutSource, RegistrySource, Source
from reconciler.images.layout import Layout
from reconciler.images.model import INDEXES, LAYER_GZIP, LAYER_TAR, LAYER_ZSTD, MANIFESTS, Descriptor, Platform
from reconciler.images.records import Records
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry

Connect = Callable[[str], Registry]
"""A registry's client by its host."""

_DOCKER_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TAR,
}


@dataclass(frozen=True, slots=True)
class BaseImage:
    """One platform of a base image. `layers` are compressed, `diff_ids` the digests of their tars, both from the bottom up.

    `by_reference` is where layers are that are not in the store; None when they all are.
    """

    platform: Platform
    manifest: Descriptor
    config: Mapping[str, Any] = field(hash=False)
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    by_reference: Reference | None = None


def resolve_base(
    reference: str, platforms: Sequence[Platform], layout: Layout, *, records: Records, connect: Connect = Registry
) -> dict[str, BaseImage]:  # fmt: skip
    """The base image of each platform, by the platform's name.

    `reference`: `oci:DIRECTORY[:tag]`, `docker-daemon:name:tag`, or `[docker://]registry/repository[:tag][@sha256:…]`.
    Raises ImageError FL6153 when it lacks a platform, FL6154 for a reference of no known kind, FL6146 when there is no such image.
    """
    with ExitStack() as stack:
        source = _source(reference, layout, records, connect, stack)
        index = source.top()
        return {str(platform): _resolve(source, reference, index, platform, layout) for platform in platforms}


def fetch_layers(base: BaseImage, layout: Layout, *, connect: Connect = Registry) -> None:
    """Bring the layers of a registry's base image into the store, unless they are there."""
    missing = [layer for layer in base.layers if not layout.touch(layer.digest)]
    if missing and base.by_reference:
        with connect(base.by_reference.host) as registry:
            for layer in missing:
                with layout.writer() as writer:
                    registry.fetch(base.by_reference.repository, layer, writer)


def layer_sources(bases: Sequence[BaseImage]) -> dict[str, Reference]:
    """Where base layers can be mounted from: the `sources` of a push."""
    return {layer.digest: base.by_reference for base in bases if base.by_reference for layer in base.layers}


def _source(reference: str, layout: Layout, records: Records, connect: Connect, stack: ExitStack) -> Source:
    kind, colon, rest = reference.partition(":")
    if kind == "oci" and colon:
        return LayoutSource(rest, layout)
    if kind == "docker-daemon" and colon:
        return EngineSource(rest, layout, records)
    if re.match(r"(?!docker:)[a-z-]+:(/|//)", reference) or reference == "scratch":
        raise ImageError(
            "FL6154", f"{reference[:120]!r} is no base image that can be read.",
            cure="Write oci:DIRECTORY:tag, docker-daemon:name:tag, or registry.example.com/repository:tag.",
        )  # fmt: skip
    image = Reference.parse(reference)
    return RegistrySource(image, layout, stack.enter_context(connect(image.host)))


def _resolve(source: Source, reference: str, top: Descriptor, wanted: Platform, layout: Layout) -> BaseImage:
    manifest = _choose(source, reference, top, wanted, layout)
    content = layout.read_json(manifest.digest)
    described = Descriptor.from_dict(content.get("config"))
    source.small(described)
    config = layout.read_json(described.digest)
    found = Platform.from_dict(config)
    if not found.runs_on(wanted):
        raise _lacks(reference, wanted, [found])
    layers = tuple(_layer(Descriptor.from_dict(item), reference) for item in content.get("layers") or [])
    diff_ids = tuple(str(item) for item in (config.get("rootfs") or {}).get("diff_ids") or [])
    if len(layers) != len(diff_ids):
        raise ImageError("FL6103", f"The base image {reference} has other layers than it says.", cure="Push that image again.")
    source.large(layers)
    return BaseImage(wanted, manifest, config, layers, diff_ids, source.by_reference)


def _choose(source: Source, reference: str, top: Descriptor, wanted: Platform, layout: Layout) -> Descriptor:
    if top.media_type not in INDEXES:
        return top
    entries = [Descriptor.from_dict(item) for item in layout.read_json(top.digest).get("manifests") or []]
    images = [entry for entry in entries if entry.media_type in MANIFESTS and entry.platform]
    chosen = next((entry for entry in images if entry.platform and entry.platform.runs_on(wanted)), None)
    if chosen is None:
        raise _lacks(reference, wanted, [entry.platform for entry in images if entry.platform])
    source.small(chosen)
    return chosen


def _layer(layer: Descriptor, reference: str) -> Descriptor:
    """Docker's layers are OCI's under another name."""
    media_type = _DOCKER_LAYERS.get(layer.media_type, layer.media_type)
    if media_type not in {LAYER_GZIP, LAYER_TAR, LAYER_ZSTD}:
        raise ImageError(
            "FL6154",
            f"The base image {reference} has a layer of the kind {layer.media_type[:80]}.",
            cure="Use one with ordinary layers.",
        )
    return Descriptor(media_type, layer.digest, layer.size)


def _lacks(reference: str, wanted: Platform, has: Sequence[Platform]) -> ImageError:
    there = ", ".join(sorted({str(item) for item in has if item.architecture != "unknown"})) or "none"
    return ImageError(
        "FL6153", f"The base image {reference} is not there for {wanted}; it is for {there}.",
        cure="Choose another base image, or take the platform out of `platforms`.",
    )  # fmt: skip
