"""From a layout to a registry: blobs first, manifests next, the index last, then what is attached to it.

Invariant: whatever breaks, and wherever, no tag of the registry names an image that is not complete there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import orjson

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import INDEX, INDEXES, Descriptor
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry, fallback_tag
from reconciler.images.signing import SIGNATURE, signature_tag

PARALLEL = 4
"""Blobs at once: more does not help a registry on one disk."""


@dataclass(slots=True)
class Pushed:
    """What a push did: numbers of blobs, bytes sent, seconds."""

    image: str
    digest: str
    uploaded: int = 0
    mounted: int = 0
    present: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    attached: list[str] = field(default_factory=list)


def push(
    layout: Layout, index: Descriptor, target: Reference, *, registry: Registry, sources: Mapping[str, Reference] | None = None,
    tell: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic,
) -> Pushed:  # fmt: skip
    """Push an image, and its SBOM and signatures, to `target`; nothing is sent that the registry has.

    `sources`: for digests of base layers, where they come from; they are mounted when that is the same registry, and need not
    be in the layout then. Raises ImageError; the tag then is what it was before.
    """
    return _Push(layout, target, registry, sources or {}, tell or _silent).run(index, clock)


class _Push:
    def __init__(
        self, layout: Layout, target: Reference, registry: Registry, sources: Mapping[str, Reference], tell: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._layout, self._target, self._registry, self._sources, self._tell = layout, target, registry, sources, tell
        self._counting = threading.Lock()
        self._keeps_referrers = False

    def run(self, index: Descriptor, clock: Callable[[], float]) -> Pushed:
        begun = clock()
        self._done = Pushed(str(self._target), index.digest)
        image = self._target.at(index.digest)
        known = self._registry.digest_of(image) is not None
        manifests = [item for item in _manifests(self._layout, index) if item.digest != index.digest]
        if not known:
            # A registry that has an index has all that it names: it was checked when it was put there.
            self._blobs(blob for item in [*manifests, index] for blob in _blobs(self._layout, item))
            for item in manifests:
                self._put(item, self._target.at(item.digest))
        self._put(index, image)
        if self._target.tag:
            self._put(index, self._target.at(self._target.tag))
        for item in [*manifests, index]:
            self._attach(item)
        self._done.seconds = clock() - begun
        return self._done

    def _put(self, item: Descriptor, image: Reference) -> None:
        self._keeps_referrers = self._registry.put_manifest(image, self._layout.read(item.digest), item.media_type)

    def _blobs(self, blobs: Iterator[Descriptor]) -> None:
        unique = {blob.digest: blob for blob in blobs}
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="push") as pool:
            # The largest first, so that none is left alone at the end.
            waiting = [pool.submit(self._blob, blob) for blob in sorted(unique.values(), key=lambda blob: -blob.size)]
            try:
                for each in waiting:
                    each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _blob(self, blob: Descriptor) -> None:
        repository = self._target.repository
        source = self._sources.get(blob.digest)
        if self._registry.has_blob(repository, blob.digest):
            self._count(present=1)
        elif source and source.host == self._target.host and self._registry.mount(repository, blob.digest, source.repository):
            self._count(mounted=1)
        else:
            path = self._layout.blob_path(blob.digest)
            if not path.exists():
                raise ImageError(
                    "FL6106",
                    f"The image store lacks {blob.digest[:19]}… of {self._target}.",
                    cure="Build it again.",
                    transient=True,
                )
            self._tell(f"pushing {blob.digest[7:19]} ({blob.size / 1e6:,.1f} MB)")
            self._registry.upload(repository, blob, path)
            self._count(uploaded=1, sent=blob.size)

    def _count(self, *, uploaded: int = 0, mounted: int = 0, present: int = 0, sent: int = 0) -> None:
        with self._counting:
            self._done.uploaded += uploaded
            self._done.mounted += mounted
            self._done.present += present
            self._done.bytes_sent += sent

    # --- what is attached

    def _attach(self, subject: Descriptor) -> None:
        attached = self._layout.referrers(subject.digest)
        for item in attached:
            self._blobs(_blobs(self._layout, item))
            self._put(item, self._target.at(item.digest))
            if item.artifact_type == SIGNATURE:
                self._put(item, self._target.at(signature_tag(subject.digest)))
            self._done.attached.append(item.digest)
        if attached and not self._keeps_referrers:
            self._list_in_tag(subject, attached)

    def _list_in_tag(self, subject: Descriptor, attached: list[Descriptor]) -> None:
        """The specification's way for registries without the referrers API: an index under a tag, added to."""
        repository, tag = self._target.repository, fallback_tag(subject.digest)
        before = self._registry.referrers(repository, subject.digest)
        every = {item.digest: item.to_dict() for item in [*before, *attached]}
        if [item.digest for item in before] != list(every):
            content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(every.values())}
            self._registry.put_manifest(self._target.at(tag), orjson.dumps(content), INDEX)


def _manifests(layout: Layout, item: Descriptor) -> Iterator[Descriptor]:
    """An image's manifests and indexes, those below before those that name them."""
    if item.media_type in INDEXES:
        for below in layout.read_json(item.digest).get("manifests") or []:
            yield from _manifests(layout, Descriptor.from_dict(below))
    yield item


def _blobs(layout: Layout, item: Descriptor) -> Iterator[Descriptor]:
    if item.media_type not in INDEXES:
        content = layout.read_json(item.digest)
        for blob in [content.get("config"), *(content.get("layers") or [])]:
            yield Descriptor.from_dict(blob)


def _silent(_line: str) -> None:
    return None
