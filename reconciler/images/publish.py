"""From an image in the store to one that others can use: bill of materials, signature, registry, in this order.

What is attached is in the store before the push begins, so a registry never shows an image whose bill or signature is still to come
from here; run again after a crash it does what is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reconciler.images.bases import BaseImage, Connect, layer_sources
from reconciler.images.layout import Layout
from reconciler.images.model import Descriptor
from reconciler.images.push import Pushed, push
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.images.sbom import Materials, attach_sbom
from reconciler.images.signing import Signer


@dataclass(frozen=True, slots=True)
class Published:
    """`reference` names the image by digest: in a registry, or, without one, as the store's own registry serves it."""

    reference: str
    digest: str
    sbom: str
    signature: str
    pushed: Pushed | None


def publish(
    layout: Layout, index: Descriptor, name: str, materials: Materials, *, registry: str = "", bases: Sequence[BaseImage] = (),
    signer: Signer | None = None, connect: Connect = Registry, tell: Callable[[str], None] | None = None,
) -> Published:  # fmt: skip
    """Attach, sign and push an image that is tagged `name` (`customer/project:tag`) in the store.

    `registry` is `host[:port][/prefix]`; empty: it stays in the store. Raises ImageError; the registry's tag then is what it was.
    """
    target = Reference.parse(f"{registry.rstrip('/')}/{name}") if registry else None
    repository = f"{target.host}/{target.repository}" if target else name.rpartition(":")[0]
    sbom = attach_sbom(layout, index, materials)
    signature = signer.sign(layout, index, repository) if signer else None
    pushed = None
    if target:
        with connect(target.host) as client:
            pushed = push(layout, index, target, registry=client, sources=layer_sources(bases), tell=tell)
    return Published(
        f"{repository}@{index.digest}", index.digest, sbom.digest, signature.digest if signature else "", pushed
    )  # fmt: skip
