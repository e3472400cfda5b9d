"""What the image store has, and what of it can go.

Invariants of a collection: what runs, what is pinned and the last digests of each project stay whole; so does all that was written
or used within the grace period, which is how a build that is under way keeps its layers. It deletes under the lock of the store,
after looking again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from reconciler.errors import ImageError
from reconciler.images.layout import Layout, disk_error
from reconciler.images.model import INDEXES, Descriptor, Platform
from reconciler.images.reference import split_name

GRACE_SECONDS: Final = 3600.0
CREATED: Final = "org.opencontainers.image.created"
_PINS = "pins.json"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A tag of the store. Sizes are in bytes as stored; `shared` is the part that other images have too; `used` is seconds
    since the epoch when it was last built or looked up."""

    name: str
    project: str
    digest: str
    platforms: tuple[str, ...]
    size: int
    shared: int
    created: str
    used: float
    in_use: bool
    pinned: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection took, or would take: tags, number of blobs, bytes; and the tags that stay."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    blobs: int
    freed: int


def list_images(layout: Layout, *, in_use: Collection[str] = ()) -> list[StoredImage]:
    """Every image by name. `in_use`: digests or names of images that run."""
    tags = layout.tags()
    blobs = {name: set(layout.reachable(image)) for name, image in tags.items()}
    holders: dict[str, set[str]] = {}
    for name, image in tags.items():
        for digest in blobs[name]:
            holders.setdefault(digest, set()).add(image.digest)
    pinned = pins(layout)
    sizes = {digest: _size(layout, digest) for digest in holders}
    return [
        StoredImage(
            name=name,
            project=split_name(name)[0],
            digest=image.digest,
            platforms=_platforms(layout, image),
            size=sum(sizes[digest] for digest in blobs[name]),
            shared=sum(sizes[digest] for digest in blobs[name] if len(holders[digest]) > 1),
            created=_created(layout, image),
            used=_used(layout, image.digest),
            in_use=_is_among(layout, name, image, in_use),
            pinned=name in pinned or image.digest in pinned,
        )
        for name, image in sorted(tags.items())
    ]


def collect(
    layout: Layout, *, keep_last: int = 3, in_use: Collection[str] = (), grace: float = GRACE_SECONDS, dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> Collected:  # fmt: skip
    """Take what nobody needs: tags beyond the last `keep_last` digests of their project, then blobs that no tag reaches.

    `grace` is in seconds. With `dry_run` nothing is taken and the answer says what would be.
    """
    young = clock() - grace
    images = list_images(layout, in_use=in_use)
    stay = _staying(images, keep_last, young)
    removed = tuple(image.name for image in images if image.name not in stay)
    if not dry_run:
        for name in removed:
            layout.untag(name)
        _detach(layout, young)
    with contextlib.nullcontext() if dry_run else layout.lock() if layout.root.is_dir() else contextlib.nullcontext():
        needed = _needed(layout, without=removed)
        blobs = freed = 0
        for digest in list(layout.digests()):
            if digest not in needed and _used(layout, digest) < young:
                freed += _size(layout, digest) if dry_run else layout.delete(digest)
                blobs += 1
    # A file that is being written must not go, however short a grace was asked for.
    freed += _leftovers(layout, min(young, clock() - GRACE_SECONDS), dry_run=dry_run)
    return Collected(removed, tuple(sorted(stay)), blobs, freed)


def pins(layout: Layout) -> frozenset[str]:
    """Names and digests that are never collected."""
    try:
        return frozenset(str(item) for item in orjson.loads((layout.root / _PINS).read_bytes()))
    except FileNotFoundError:
        return frozenset()
    except (orjson.JSONDecodeError, TypeError) as error:
        raise ImageError("FL6107", f"{_PINS} of the image store is damaged.", cure="Remove it and pin the images again.") from error


def set_pin(layout: Layout, name: str, *, pinned: bool) -> None:
    """Pin an image by name or digest, or let it go. Raises ImageError FL6171 for one that is not there."""
    if pinned and layout.resolve(name) is None:
        raise ImageError("FL6171", f"There is no image {name} in the store.", cure="`flops images` lists what is there.")
    with layout.lock():
        wanted = pins(layout) | {name} if pinned else pins(layout) - {name}
        aside = layout.root / f"{_PINS}.new"
        try:
            aside.write_bytes(orjson.dumps(sorted(wanted)))
            aside.replace(layout.root / _PINS)
        except OSError as error:
            raise disk_error(error) from error


def _staying(images: list[StoredImage], keep_last: int, young: float) -> set[str]:
    stay = {image.name for image in images if image.in_use or image.pinned or image.used >= young}
    by_project: dict[str, dict[str, float]] = {}
    for image in images:
        by_project.setdefault(image.project, {})[image.digest] = image.used
    last = {
        (project, digest)
        for project, used in by_project.items()
        for digest in sorted(used, key=lambda digest: (-used[digest], digest))[:keep_last]
    }
    return stay | {image.name for image in images if (image.project, image.digest) in last}


def _needed(layout: Layout, *, without: Collection[str]) -> set[str]:
    """All that tags reach, and what is attached to any of that."""
    needed: set[str] = set()
    for name, image in layout.tags().items():
        if name not in without:
            needed.update(layout.reachable(image))
    for name in pins(layout):
        if name.startswith("sha256:") and (pinned := layout.resolve(name)):
            needed.update(layout.reachable(pinned))
    for subject in layout.subjects() & needed:
        for attached in layout.referrers(subject):
            needed.update(layout.reachable(attached))
    return needed


def _detach(layout: Layout, young: float) -> None:
    """Forget what is attached to images that no tag reaches any more."""
    for subject in layout.subjects() - _needed(layout, without=()):
        if _used(layout, subject) < young:
            for attached in layout.referrers(subject):
                layout.remove_referrer(attached.digest)


def _leftovers(layout: Layout, young: float, *, dry_run: bool) -> int:
    """Files that a killed writer left aside; how many bytes they have."""
    freed = 0
    with contextlib.suppress(FileNotFoundError):
        for path in (layout.root / "ingest").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                if found.st_mtime < young:
                    freed += found.st_size
                    if not dry_run:
                        path.unlink()
    return freed


def _is_among(layout: Layout, name: str, image: Descriptor, in_use: Collection[str]) -> bool:
    if name in in_use or image.digest in in_use:
        return True
    # An engine that pulled one platform of an index knows the manifest's digest.
    return image.media_type in INDEXES and any(digest in in_use for digest in _manifests(layout, image))


def _manifests(layout: Layout, image: Descriptor) -> Mapping[str, Platform | None]:
    entries = [Descriptor.from_dict(item) for item in layout.read_json(image.digest).get("manifests") or []]
    return {entry.digest: entry.platform for entry in entries}


def _platforms(layout: Layout, image: Descriptor) -> tuple[str, ...]:
    if image.media_type in INDEXES:
        return tuple(sorted(str(platform) for platform in _manifests(layout, image).values() if platform))
    config = layout.read_json(image.digest).get("config")
    return (str(Platform.from_dict(layout.read_json(Descriptor.from_dict(config).digest))),)


def _created(layout: Layout, image: Descriptor) -> str:
    return str((layout.read_json(image.digest).get("annotations") or {}).get(CREATED, ""))


def _size(layout: Layout, digest: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return layout.blob_path(digest).stat().st_size
    return 0


def _used(layout: Layout, digest: str) -> float:
    path: Path = layout.blob_path(digest)
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
