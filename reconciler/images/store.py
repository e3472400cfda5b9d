"""The images of projects: made once per digest, signed, pushed, and looked at by the loop.

Invariant: a tag of the store was complete here, and where a registry is configured also there, when it was set. So a tag that is
there is an image that is there; a registry's images are asked for again now and then, since others may delete them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.errors import ImageError
from reconciler.images.cancelling import Cancelled, never
from reconciler.images.layout import Layout
from reconciler.images.model import Descriptor
from reconciler.images.records import Records
from reconciler.images.reference import Reference, repository_name, split_name
from reconciler.images.registry import Registry

if TYPE_CHECKING:
    from reconciler.images.assemble import BuiltImage, ImageRequest
    from reconciler.images.bases import Connect
    from reconciler.images.dependencies import Tell
    from reconciler.images.sbom import Materials
    from reconciler.images.signing import Signer

RECHECK_SECONDS = 300.0
"""How long a registry's word that it has an image is taken."""
CHECKS_A_LOOK = 20
PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 – the name of the variable, as cosign has it


@dataclass(frozen=True, slots=True)
class ProjectImage:
    """An image as status tells it. `reference` is what to pull, empty without a registry; sizes are in bytes."""

    name: str
    reference: str
    digest: str
    platforms: tuple[str, ...]
    made: int
    """Bytes of the layers that were not there before."""
    seconds: Mapping[str, float]
    reused: bool


def image_name(customer: str, project: str, digest: str) -> str:
    """The name of a project's image in the store: `customer/project:digest`."""
    return f"{repository_name(customer, project)}:{digest[:32]}"


class ImageStore:
    """The store of one state directory; `cache` keeps the layers that all states of a user share.

    `registry` is where images are pushed to, `host/prefix`, or empty; `signing_key` is a key of cosign's, or None.
    """

    def __init__(
        self,
        root: Path,
        cache: Path,
        *,
        registry: str = "",
        signing_key: Path | None = None,
        connect: Connect = Registry,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout = Layout(root)
        self._records = Records(cache / "records", Layout(cache / "layers"))
        self._registry, self._signing_key = registry, signing_key
        self._connect, self._monotonic = connect, monotonic
        self._seen: tuple[object, frozenset[str]] = (None, frozenset())
        self._below: dict[str, tuple[str, ...]] = {}
        self._checked: dict[str, tuple[bool, float]] = {}

    # --- what the loop asks

    def names(self) -> frozenset[str]:
        """The names of the images that are complete; the same object as long as the store is as it was."""
        state = self._state()
        if self._seen[0] != state:
            tags = self.layout.tags()
            whole: dict[str, bool] = {}
            self._seen = (state, frozenset(name for name, image in tags.items() if self._complete(image, whole)))
        return self._seen[1]

    def deleted(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the names that the registry had lost when it was last asked."""
        return frozenset(name for name in names if name in self._checked and not self._checked[name][0])

    def due(self, names: Iterable[str]) -> list[str]:
        """Those of the names that the registry is to be asked for: each one every five minutes, a few in one call."""
        if not self._registry:
            return []
        now = self._monotonic()
        due = (name for name in names if name not in self._checked or now - self._checked[name][1] >= RECHECK_SECONDS)
        return list(islice(due, CHECKS_A_LOOK))

    def recheck(self, names: Iterable[str]) -> None:
        """Ask the registry for what is due. It may hang for its time limit, so a look does this beside the loop."""
        for name in self.due(names):
            before = self._checked.get(name)
            there = self._at_registry(name, before[0] if before else True)
            if self._checked.get(name) is before:  # it was not made again meanwhile
                self._checked[name] = (there, self._monotonic())

    def _at_registry(self, name: str, known: bool) -> bool:
        """Whether the registry has it; what was known stays when the registry does not answer."""
        target = self.reference(name)
        try:
            with self._connect(target.host) as registry:
                return registry.digest_of(target) is not None
        except ImageError:
            return known

    def _state(self) -> object:
        try:
            stat = (self.layout.root / "index.json").stat()
            blobs = (self.layout.root / "blobs" / "sha256").stat()
        except OSError:
            return None
        # A blob that somebody removed by hand changes its folder.
        return (stat.st_ino, stat.st_size, stat.st_mtime_ns, blobs.st_mtime_ns)

    def _complete(self, image: Descriptor, whole: dict[str, bool]) -> bool:
        try:
            if image.digest not in self._below:
                self._below[image.digest] = tuple(self.layout.reachable(image))
        except ImageError:
            return False
        for digest in self._below[image.digest]:
            if digest not in whole:
                whole[digest] = self.layout.has(digest)
        return all(whole[digest] for digest in self._below[image.digest])

    # --- what stages ask

    def reference(self, name: str) -> Reference:
        """Where an image of the store is pushed to. Raises ImageError FL6140 without a registry."""
        return Reference.parse(f"{self._registry}/{name}")

    def find(self, name: str) -> ProjectImage | None:
        """An image that is there."""
        if name not in self.names():
            return None
        self.recheck([name])
        if self.deleted([name]):
            return None
        image = self.layout.resolve(name)
        if image is None:
            return None
        self.layout.touch(image.digest)
        platforms = tuple(
            "/".join(part for part in (item["platform"]["os"], item["platform"]["architecture"]) if part)
            for item in self.layout.read_json(image.digest)["manifests"]
        )
        return ProjectImage(name, self._shown(name), image.digest, platforms, 0, {}, reused=True)

    def build(self, request: ImageRequest, *, model: str = "", tell: Tell, cancelled: Cancelled = never) -> ProjectImage:
        """Make an image, its bill of materials and signature, push all of it, and tag it last. Raises ImageError.

        FL6156 soon after `cancelled` says so; then the name is not there, and what was made of it is found the next time.
        """
        name = request.name
        if found := self.find(name):
            return found
        # A loop that makes no image holds none of what makes them.
        from reconciler.images.assemble import build_image
        from reconciler.images.publish import publish

        def connect(host: str) -> Registry:
            return self._connect(host).until(cancelled)

        unnamed = replace(request, name="")
        built = build_image(unnamed, self.layout, self._records, tell=tell, connect=connect, cancelled=cancelled)
        seconds = dict(built.seconds)
        since = self._monotonic()
        published = publish(
            self.layout,
            built.index,
            name,
            _materials(request, built, model),
            registry=self._registry,
            bases=list(built.bases.values()),
            signer=self._signer(),
            connect=connect,
            tell=tell,
        )
        seconds["publish"] = self._monotonic() - since
        if published.pushed:
            pushed = published.pushed
            tell(f"pushed {pushed.image}: {pushed.uploaded} blobs, {pushed.bytes_sent:,} bytes, {pushed.present} were there")
        self.layout.tag(name, built.index)
        self._checked[name] = (True, self._monotonic())
        return ProjectImage(
            name, self._shown(name), built.index.digest, tuple(sorted(built.manifests)), built.made, seconds, reused=False
        )

    def delete_project(self, customer: str, project: str) -> int:
        """Delete a project's images, at the registry first; how many there were. Pinned ones stay. Raises ImageError.

        Layers that nothing else has go with the next collection.
        """
        from reconciler.images.collect import pins

        repository = repository_name(customer, project)
        pinned = pins(self.layout)
        tags = {name: image.digest for name, image in self.layout.tags().items() if split_name(name)[0] == repository}
        gone = {name: digest for name, digest in tags.items() if name not in pinned and digest not in pinned}
        if self._registry and gone:
            target = self.reference(next(iter(gone)))
            with self._connect(target.host) as registry:
                for digest in sorted(set(gone.values())):
                    attached = [item.digest for item in self.layout.referrers(digest)]
                    for one in (*attached, digest):
                        registry.delete(target.repository, one)
        for name in gone:
            self.layout.untag(name)
            self._checked.pop(name, None)
        return len(gone)

    def _shown(self, name: str) -> str:
        return str(self.reference(name)) if self._registry else ""

    def _signer(self) -> Signer | None:
        from reconciler.images.signing import Signer

        return Signer.from_file(self._signing_key, os.environ.get(PASSWORD, "").encode()) if self._signing_key else None


def _materials(request: ImageRequest, built: BuiltImage, model: str) -> Materials:
    from reconciler.images.config import rfc3339
    from reconciler.images.sbom import Materials

    base = next(iter(built.bases.values()), None)
    return Materials(
        name=request.name.rpartition(":")[0],
        created=rfc3339(request.created),
        requirements=request.lock.requirements,
        python=request.lock.python,
        base=request.base if base else "",
        base_digest=base.manifest.digest if base else "",
        model=model,
        model_digest=f"sha256:{request.version}" if model else "",
        source=request.source,
        revision=request.revision,
    )
