"""An image index from a base, a lock, our runtime and an ML repo or a model: no daemon, no emulation, nothing of it is run.

Invariants: the same request gives the same digest, bit for bit; what changes most is the last layer; an index is tagged only when
everything below it is in the store. Layers that do not depend on the project – base, dependencies, runtime – are one blob for all
images of all projects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import reconciler
from reconciler.environments.model import Lock
from reconciler.errors import ImageError
from reconciler.images.bases import BaseImage, Connect, fetch_layers, resolve_base
from reconciler.images.cancelling import Cancelled, check, never
from reconciler.images.config import APPLICATION, History, image_config, rfc3339
from reconciler.images.contents import contents_of
from reconciler.images.dependencies import BIN, Target, Tell, dependency_layers
from reconciler.images.interpreter import ENVIRONMENT, PYTHON, host_glibc, interpreter_layer
from reconciler.images.layout import Layout
from reconciler.images.model import CONFIG, INDEX, MANIFEST, Descriptor, Platform
from reconciler.images.records import Records
from reconciler.images.registry import Registry
from reconciler.images.tarball import Entry, Layer, write_layer
from reconciler.images.tree import CODE, MODEL, Limits, entries_of
from reconciler.runtime_version import mlruntime_digest, mlruntime_dir
from reconciler.spec.build_plan import EMBEDDED, BuildPlan, plan_digest

RUNTIME: Final = "opt/flops/runtime"
FOLDERS: Final = {"learner": "ml_repo", "aggregator": "ml_repo", "inference": "model"}
"""Where the project's own files are, by the kind of image."""
PRIVATE: Final = frozenset({"flops/samples.npz"})
"""Held-out rows beside a model: the reconciler verifies with them, and nobody who pulls an image should get them."""
_SAFE_GLIBC: Final = 28
"""Where the base does not tell: the one of manylinux_2_28, which all that is maintained has."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Everything that determines an image. `content` is the ML repo's folder, or the model bundle's for inference.

    `created` is the commit's time in seconds since 1970; `source` and `revision` say where the content came from; `version` is the
    project's digest, `title` its name: the inference server tells both. `labels` go into the configuration, `name` is the tag in
    the store (none when it is empty).
    """

    plan: BuildPlan
    lock: Lock
    platforms: tuple[Platform, ...]
    content: Path
    created: int
    source: str = ""
    revision: str = ""
    version: str = ""
    title: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def base(self) -> str:
        """The base image's reference, with the Python version in it."""
        return self.plan.base_image.replace("{python}", self.lock.python)


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """What came of a request: descriptors in the store, layers from the bottom up without the base's, seconds by step."""

    index: Descriptor
    manifests: Mapping[str, Descriptor]
    layers: Mapping[str, tuple[Layer, ...]]
    bases: Mapping[str, BaseImage]
    seconds: Mapping[str, float]

    @property
    def made(self) -> int:
        """Bytes of the layers that were not there before."""
        new = {layer.descriptor.digest: layer.descriptor.size for layers in self.layers.values() for layer in layers if layer.made}
        return sum(new.values())


@dataclass(frozen=True, slots=True)
class _Foundation:
    """What the layers of ours stand on, for one platform."""

    python: str
    glibc: int
    config: Mapping[str, Any]
    base: BaseImage | None
    own: tuple[Layer, ...] = ()


def build_image(
    request: ImageRequest,
    layout: Layout,
    records: Records,
    *,
    tell: Tell,
    connect: Connect = Registry,
    clock: Callable[[], float] = time.monotonic,
    cancelled: Cancelled = never,
) -> BuiltImage:
    """Assemble an image in the store. Raises ImageError; then there is no index and no tag of it.

    FL6156 when it is cancelled: asked between layers and while uv and transfers run.
    """
    seconds: dict[str, float] = {}

    def timed(step: str, since: float) -> float:
        now = clock()
        seconds[step] = seconds.get(step, 0.0) + now - since
        return now

    began = last = clock()
    _check(request)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, ThreadPoolExecutor(len(request.platforms)) as platforms:
        content = pool.submit(_content_layer, request, layout)
        found = _foundations(request, layout, records, connect)
        last = timed("base", last)
        dependencies = dict(
            zip(
                found,
                platforms.map(lambda item: _dependencies(request, item, found[item], records, pool, tell, cancelled), found),
                strict=True,
            )
        )
        last = timed("dependencies", last)
        runtimes = {str(item): _runtime_layer(request, found[item].python, records) for item in found}
        project = content.result()
        last = timed("content", last)
    check(cancelled)
    layers = {str(item): (*found[item].own, *dependencies[item], runtimes[str(item)], project) for item in found}
    if records.layout.root != layout.root:
        for layer in {layer.descriptor.digest for own in layers.values() for layer in own}:
            if not layout.has(layer):
                layout.adopt(layer, records.layout)
    manifests = {str(item): _manifest(request, item, found[item], layers[str(item)], layout) for item in found}
    index = _index(request, manifests, layout)
    if request.name:
        layout.tag(request.name, index)
    timed("manifests", last)
    timed("total", began)
    bases = {str(item): foundation.base for item, foundation in found.items() if foundation.base is not None}
    return BuiltImage(index, manifests, layers, bases, seconds)


def _check(request: ImageRequest) -> None:
    plan = request.plan
    if plan.python_version not in (None, request.lock.python):
        raise ImageError(
            "FL6123",
            f"The build plan of the {plan.kind} wants Python {plan.python_version}, and the dependencies are locked for "
            f"{request.lock.python}.",
            cure="Leave python_version out, or ask for that Python in conda.yaml.",
        )
    if len(set(request.platforms)) != len(request.platforms) or not request.platforms:
        raise ImageError("FL6124", "An image needs platforms, each once.", cure="Correct supported_platforms.")
    for item in request.platforms:
        if str(item) not in plan.platforms:
            raise ImageError(
                "FL6124",
                f"The build plan of the {plan.kind} is not for {item}, only for {', '.join(plan.platforms)}.",
                cure="Add it to the plan's platforms, or take it out of supported_platforms.",
            )


def _foundations(request: ImageRequest, layout: Layout, records: Records, connect: Connect) -> dict[Platform, _Foundation]:
    plan, version = request.plan, request.lock.python
    if request.base == EMBEDDED:
        if plan.debian_packages:
            raise _no_packages("An image without a base", plan.debian_packages)
        config = {"config": {"Env": list(ENVIRONMENT)}}
        return {
            item: _Foundation(
                PYTHON.format(version=version), host_glibc(), config, None,
                (interpreter_layer(version, item, records, plan.compression),),
            )
            for item in request.platforms
        }  # fmt: skip
    found = resolve_base(request.base, request.platforms, layout, records=records, connect=connect)
    return {item: _of_base(request, found[str(item)], layout, records, connect) for item in request.platforms}


def _of_base(request: ImageRequest, base: BaseImage, layout: Layout, records: Records, connect: Connect) -> _Foundation:
    fetch_layers(base, layout, connect=connect)
    contents = contents_of(base.layers, lambda layer: layout.blob_path(layer.digest), records)
    environment = dict(str(item).partition("=")[::2] for item in (base.config.get("config") or {}).get("Env") or [])
    path = environment.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(":")
    python = contents.python(request.lock.python, path)
    if contents.musl and contents.glibc is None:
        raise ImageError(
            "FL6122",
            f"The base image {request.base} has musl as its C library; wheels for manylinux need glibc.",
            cure="Choose one with glibc: Debian's `slim` instead of `alpine`.",
        )
    if python is None:
        has = ", ".join(sorted({item.rsplit("/", 1)[1].removeprefix("python") for item in contents.pythons})) or "none"
        raise ImageError(
            "FL6120",
            f"The base image {request.base} for {base.platform} has no Python {request.lock.python}; it has {has}.",
            cure="Write {python} into base_image where its version stands, or choose an image that has it.",
        )
    if missing := sorted(set(request.plan.debian_packages) - contents.packages):
        raise _no_packages(f"The base image {request.base} for {base.platform}", missing)
    return _Foundation(python, contents.glibc or _SAFE_GLIBC, base.config, base)


def _no_packages(what: str, missing: Sequence[str]) -> ImageError:
    return ImageError(
        "FL6121",
        f"{what} lacks the Debian package {', '.join(missing)}.",
        cure="Set base_image to an image that has it: none are installed, so that an image is the same wherever it is made.",
    )


def _dependencies(
    request: ImageRequest,
    platform: Platform,
    found: _Foundation,
    records: Records,
    pool: Executor,
    tell: Tell,
    cancelled: Cancelled,
) -> list[Layer]:
    target = Target(platform, request.lock.python, found.glibc, request.plan.compression)
    return dependency_layers(request.lock, target, records, pool, tell, cancelled=cancelled)


def _runtime_layer(request: ImageRequest, python: str, records: Records) -> Layer:
    """Our code that runs in the image, and one name for the interpreter whatever the base calls it."""
    title, compression = f"flops runtime {reconciler.__version__}", request.plan.compression

    def make() -> list[Layer]:
        return [write_layer(records.layout, title, _runtime_entries(python), compression)]

    return records.layers(["runtime", title, mlruntime_digest(), python, compression], make)[0]


def _runtime_entries(python: str) -> list[Entry]:
    entries = entries_of(mlruntime_dir(), RUNTIME, replace(CODE, what="runtime"), keep=lambda name: name.endswith(".py"))
    entries += [Entry(f"{BIN}/{name}", 0, link=python) for name in ("python", "python3")]
    return entries


def _content_layer(request: ImageRequest, layout: Layout) -> Layer:
    folder = FOLDERS[request.plan.kind]
    limits: Limits = MODEL if request.plan.kind == "inference" else CODE
    entries = entries_of(request.content, folder, limits, keep=lambda name: name not in PRIVATE)
    return write_layer(layout, limits.what, [Entry(f"{folder}/", 0), *entries], request.plan.compression)


def _manifest(request: ImageRequest, platform: Platform, found: _Foundation, layers: Sequence[Layer], layout: Layout) -> Descriptor:
    base = found.base
    history = [History(layer.title, layer.diff_id) for layer in layers]
    labels = {**request.labels, **_about(request)}
    config = image_config(
        request.plan,
        platform,
        found.config,
        base.diff_ids if base else (),
        history,
        labels=labels,
        created=request.created,
        about={name: text for name, text in (("FLOPS_PROJECT", request.title), ("FLOPS_DIGEST", request.version)) if text},
    )
    described = layout.add_json(config, CONFIG)
    annotations = _about(request)
    if base is not None:
        annotations |= {
            "org.opencontainers.image.base.name": request.base,
            "org.opencontainers.image.base.digest": base.manifest.digest,
        }
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described.to_dict(),
        "layers": [
            *(layer.to_dict() for layer in (base.layers if base else ())),
            *(layer.descriptor.to_dict() for layer in layers),
        ],
        "annotations": annotations,
    }
    return layout.add_json(content, MANIFEST, platform=Platform.from_dict(config))


def _index(request: ImageRequest, manifests: Mapping[str, Descriptor], layout: Layout) -> Descriptor:
    content = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [manifest.to_dict() for _, manifest in sorted(manifests.items())],
        "annotations": _about(request),
    }
    return layout.add_json(content, INDEX)


def _about(request: ImageRequest) -> dict[str, str]:
    about = {
        "org.opencontainers.image.created": rfc3339(request.created),
        "org.opencontainers.image.source": request.source,
        "org.opencontainers.image.revision": request.revision,
        "org.opencontainers.image.version": request.version,
        "org.opencontainers.image.title": request.title,
        f"{APPLICATION}.kind": request.plan.kind,
        f"{APPLICATION}.lock": request.lock.digest,
        f"{APPLICATION}.build-plan": plan_digest(request.plan),
    }
    return {name: text for name, text in about.items() if text}
