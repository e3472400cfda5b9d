"""Where base images come from. A source brings blobs into the store: small ones when they are asked for, layers as it must."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import docker
import docker.errors
import orjson
import requests
import urllib3
from isal import isal_zlib

from reconciler.errors import ImageError
from reconciler.images.layout import CHUNK, REF_NAME, Layout
from reconciler.images.model import CONFIG, INDEXES, LAYER_GZIP, MANIFEST, MANIFESTS, Descriptor
from reconciler.images.records import Records
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry

_GZIP_LEVEL = 2


class Source(Protocol):
    """One image; `by_reference` is where its layers are when they stay there."""

    by_reference: Reference | None

    def top(self) -> Descriptor:
        """The image's index or manifest, in the store."""

    def small(self, blob: Descriptor) -> None:
        """Bring a manifest or configuration into the store."""

    def large(self, layers: Sequence[Descriptor]) -> None:
        """Bring layers into the store, where the source does not keep them at hand."""


class LayoutSource:
    """`DIRECTORY[:tag]`: an OCI layout that somebody else made; what is copied is checked against its digest."""

    by_reference: Reference | None = None

    def __init__(self, text: str, layout: Layout) -> None:
        folder, _, self._tag = text.partition(":")
        self._text, self._layout, self._root = f"oci:{text}", layout, Path(folder)
        self._source = Layout(self._root)

    def top(self) -> Descriptor:
        """By its tag; without one, `latest` or the only one there is."""
        if not (self._root / "oci-layout").is_file() or not (self._root / "index.json").is_file():
            raise ImageError(
                "FL6157", f"{self._root} is not an OCI image layout.", cure="Name a directory with oci-layout and index.json."
            )
        try:
            content = orjson.loads((self._root / "index.json").read_bytes())
            entries = [Descriptor.from_dict(item) for item in content["manifests"]]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise ImageError("FL6157", f"index.json of {self._root} cannot be read.", cure="Make that layout again.") from error
        images = [entry for entry in entries if entry.media_type in INDEXES | MANIFESTS]
        names = [entry.annotations.get(REF_NAME, "") for entry in images]
        found = next((image for image, name in zip(images, names, strict=True) if name == (self._tag or "latest")), None)
        if found is None and not self._tag and len(images) == 1:
            found = images[0]
        if found is None:
            raise ImageError(
                "FL6146", f"There is no image {self._text}.", cure=f"That layout has: {', '.join(filter(None, names)) or 'none'}."
            )
        self.small(found)
        return Descriptor(found.media_type, found.digest, found.size)

    def small(self, blob: Descriptor) -> None:
        """Copy a blob."""
        if not self._layout.touch(blob.digest):
            path = self._source.blob_path(blob.digest)
            with self._layout.writer() as writer:
                try:
                    with path.open("rb") as file:
                        while part := file.read(CHUNK):
                            writer.write(part)
                except FileNotFoundError as error:
                    raise ImageError(
                        "FL6106", f"{self._text} is not complete: {blob.digest[:19]}… is missing.", cure="Make that layout again."
                    ) from error
                writer.commit(blob.media_type, expected=blob.digest)

    def large(self, layers: Sequence[Descriptor]) -> None:
        """Copy the layers: the directory may be gone tomorrow."""
        for layer in layers:
            self.small(layer)


class RegistrySource:
    """An image of a registry; its layers stay there."""

    def __init__(self, image: Reference, layout: Layout, registry: Registry) -> None:
        self._image, self._layout, self._registry = image, layout, registry
        self.by_reference: Reference | None = None

    def top(self) -> Descriptor:
        """One request for a tag whose digest is known here; none for a digest."""
        digest = self._image.digest or self._registry.digest_of(self._image)
        found = self._layout.resolve(digest) if digest else None
        if found is None:
            data, described = self._registry.manifest(self._image)
            self._layout.add_bytes(data, described.media_type)
            found = self._layout.resolve(described.digest) or described
        self.by_reference = self._image.at(found.digest)
        return found

    def small(self, blob: Descriptor) -> None:
        """Fetch a manifest or a configuration."""
        if self._layout.touch(blob.digest):
            return
        if blob.media_type in MANIFESTS | INDEXES:
            data, described = self._registry.manifest(self._image.at(blob.digest))
            self._layout.add_bytes(data, described.media_type)
        else:
            with self._layout.writer() as writer:
                self._registry.fetch(self._image.repository, blob, writer)

    def large(self, layers: Sequence[Descriptor]) -> None:
        """Nothing: they are mounted, or fetched when their bytes are needed."""


class EngineSource:
    """`name:tag`: an image of the Docker Engine, saved once per image id."""

    by_reference: Reference | None = None

    def __init__(
        self, name: str, layout: Layout, records: Records, connect: Callable[[], docker.DockerClient] = docker.from_env
    ) -> None:  # fmt: skip
        self._name, self._layout, self._records, self._connect = name, layout, records, connect

    def top(self) -> Descriptor:
        """Its manifest. Raises ImageError FL6146, FL6155."""
        try:
            client = self._connect()
            try:
                image = client.images.get(self._name)
                return self._saved(image)
            finally:
                client.close()
        except docker.errors.ImageNotFound as error:
            raise ImageError(
                "FL6146",
                f"There is no image {self._name} in the Docker Engine.",
                cure="Build or load it there, or correct the name.",
            ) from error
        except (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ImageError(
                "FL6155", f"The Docker Engine does not hand out {self._name}: {str(error)[:200]}.",
                cure="Check that it runs (DOCKER_HOST); it is tried again.", transient=True,
            ) from error  # fmt: skip

    def small(self, blob: Descriptor) -> None:
        """Nothing: all of it came with `top`."""

    def large(self, layers: Sequence[Descriptor]) -> None:
        """Nothing: all of it came with `top`."""

    def _saved(self, image: Any) -> Descriptor:
        inputs = ["engine", str(image.id)]
        known = Descriptor.from_dict(self._records.fact(inputs, lambda: self._save(image).to_dict()))
        if not all(self._layout.touch(digest) for digest in self._layout.reachable(known)):
            # They were collected since; the same image gives the same blobs.
            known = self._save(image)
        return known

    def _save(self, image: Any) -> Descriptor:
        with tempfile.TemporaryFile() as file:
            for part in image.save():
                file.write(part)
            file.seek(0)
            try:
                with tarfile.open(fileobj=file) as archive:
                    return self._import(archive)
            except (tarfile.TarError, KeyError, IndexError, TypeError, orjson.JSONDecodeError) as error:
                raise ImageError(
                    "FL6155",
                    f"What the Docker Engine saved of {self._name} cannot be read: {error}.",
                    cure="Try it with `docker save`.",
                ) from error

    def _import(self, archive: tarfile.TarFile) -> Descriptor:
        listed = orjson.loads(_member(archive, "manifest.json").read())[0]
        data = _member(archive, listed["Config"]).read()
        diff_ids = orjson.loads(data)["rootfs"]["diff_ids"]
        layers = [self._layer(archive, name, diff_id) for name, diff_id in zip(listed["Layers"], diff_ids, strict=True)]
        config = self._layout.add_bytes(data, CONFIG)
        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_dict(),
            "layers": [item.to_dict() for item in layers],
        }
        return self._layout.add_json(content, MANIFEST)

    def _layer(self, archive: tarfile.TarFile, name: str, diff_id: str) -> Descriptor:
        with self._layout.writer() as writer:
            with _member(archive, name) as file:
                packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                if packed:  # engines with containerd's store keep them so
                    shutil.copyfileobj(file, writer, CHUNK)
                else:
                    found = hashlib.sha256()
                    packer = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
                    while part := file.read(CHUNK):
                        found.update(part)
                        writer.write(packer.compress(part))
                    writer.write(packer.flush())
                    if f"sha256:{found.hexdigest()}" != diff_id:
                        raise tarfile.TarError("a layer is not what the configuration says")
            return writer.commit(LAYER_GZIP)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise KeyError(name)
    return found
