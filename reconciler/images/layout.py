"""The embedded image store: an OCI image layout directory that many processes may use at once.

Invariants: a blob is complete or it is not there (written aside, hashed, renamed); a tag names only what is there, because
`tag` checks everything below it while it holds the lock that `delete` needs too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import orjson
from filelock import FileLock

from reconciler.errors import ImageError
from reconciler.images.model import INDEX, INDEXES, MANIFESTS, Descriptor, checked_digest
from reconciler.refusals import disk_is_full

REF_NAME: Final = "org.opencontainers.image.ref.name"
SUBJECT: Final = "dev.flops.subject"
"""Annotation, inside index.json alone, of a manifest that refers to another one: its subject."""
CHUNK = 1 << 20


class BlobWriter:
    """A blob on its way into a layout; hashed while it is written."""

    def __init__(self, layout: Layout, file: IO[bytes]) -> None:
        self._layout, self._file = layout, file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append. Raises ImageError FL6105 when the disk is full."""
        self._hash.update(data)
        self.size += len(data)
        try:
            return self._file.write(data)
        except OSError as error:
            raise disk_error(error) from error

    def commit(self, media_type: str, *, expected: str = "", **about: Any) -> Descriptor:
        """Make it a blob of the layout. Raises ImageError FL6104 when it is not what was expected; then nothing is kept."""
        digest = f"sha256:{self._hash.hexdigest()}"
        if expected and digest != expected:
            raise ImageError(
                "FL6104",
                f"A blob of {self.size:,} bytes is {digest[:19]}…, not {expected[:19]}… as announced.",
                cure="It is fetched again; if it stays so, the registry or something on the way changes what it serves.",
                transient=True,
            )
        self._layout._keep(self._file, digest)
        return Descriptor(media_type, digest, self.size, **about)


class Layout:
    """Blobs by digest, tags in `index.json`; see the OCI image layout specification."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._blobs = self.root / "blobs" / "sha256"
        self._aside = self.root / "ingest"

    def _open(self) -> None:
        if (self.root / "oci-layout").exists():
            return
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._aside.mkdir(exist_ok=True)
            with self.lock():
                if not (self.root / "oci-layout").exists():
                    self._write_index([])
                    self._replace(self.root / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        except OSError as error:
            raise disk_error(error) from error

    def lock(self) -> FileLock:
        """Held while tags change and while unused blobs are deleted; reentrant within one object only."""
        return FileLock(self.root / ".lock", mode=0o644)

    # --- blobs

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return self._blobs / checked_digest(digest)[7:]

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        return self.blob_path(digest).exists()

    def read(self, digest: str) -> bytes:
        """A small blob, verified. Raises ImageError FL6106 when it is missing, FL6107 when it was damaged."""
        try:
            data = self.blob_path(digest).read_bytes()
        except FileNotFoundError as error:
            raise ImageError(
                "FL6106", f"The image store lacks {digest[:19]}….", cure="Build or pull the image again.", transient=True
            ) from error
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise ImageError(
                "FL6107",
                f"The blob {digest[:19]}… of the image store is damaged.",
                cure=f"Remove the file {self.blob_path(digest).name} below blobs/sha256; it is made again.",
            )
        return data

    def read_json(self, digest: str) -> dict[str, Any]:
        """A manifest, an index or a configuration. Raises ImageError, FL6103 when it is no JSON object."""
        try:
            content = orjson.loads(self.read(digest))
        except orjson.JSONDecodeError as error:
            raise _no_manifest(digest) from error
        if not isinstance(content, dict):
            raise _no_manifest(digest)
        return content

    def add_bytes(self, data: bytes, media_type: str, **about: Any) -> Descriptor:
        """A small blob: a manifest, a configuration. Adding what is there costs nothing but renews its age."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.touch(digest):
            with self.writer() as writer:
                writer.write(data)
                writer.commit(media_type)
        return Descriptor(media_type, digest, len(data), **about)

    def add_json(self, content: Mapping[str, Any], media_type: str, **about: Any) -> Descriptor:
        """As `add_bytes`, in the one JSON form that the same content always has."""
        return self.add_bytes(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), media_type, **about)

    def add_file(self, source: Path | Callable[[BlobWriter], object], media_type: str, **about: Any) -> Descriptor:
        """A large blob from a file, or from a function that writes it."""
        with self.writer() as writer:
            if isinstance(source, Path):
                with source.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        writer.write(chunk)
            else:
                source(writer)
            return writer.commit(media_type, **about)

    def adopt(self, digest: str, other: Layout) -> None:
        """Take a blob that another store of this machine has: one file with two names where the disk allows that."""
        if self.touch(digest):
            return
        self._open()
        try:
            os.link(other.blob_path(digest), self.blob_path(digest))
        except FileExistsError:
            return
        except FileNotFoundError as error:
            cause = f"The layer cache lacks {digest[:19]}…."
            raise ImageError("FL6106", cause, cure="Build the image again.", transient=True) from error
        except OSError:
            self.add_file(other.blob_path(digest), "")

    @contextlib.contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """For streams: `commit` inside the block, or nothing is kept."""
        self._open()
        try:
            file = tempfile.NamedTemporaryFile(dir=self._aside, prefix="blob-", delete=False)  # noqa: SIM115 – closed below
        except OSError as error:
            raise disk_error(error) from error
        try:
            with file:
                yield BlobWriter(self, file)
        finally:
            Path(file.name).unlink(missing_ok=True)

    def touch(self, digest: str) -> bool:
        """Renew the age of a blob that is needed now, so that no collection takes it; False when it is not there."""
        try:
            os.utime(self.blob_path(digest))
        except FileNotFoundError:
            return False
        return True

    def digests(self) -> Iterator[str]:
        """Every blob that is there."""
        with contextlib.suppress(FileNotFoundError):
            yield from (f"sha256:{entry.name}" for entry in os.scandir(self._blobs))

    def delete(self, digest: str) -> int:
        """Delete a blob and return the bytes that are freed; the caller holds `lock()` and knows that nothing needs it."""
        path = self.blob_path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def _keep(self, file: IO[bytes], digest: str) -> None:
        try:
            file.flush()
            # A tag must not outlive its blobs in a power cut.
            os.fdatasync(file.fileno())
            Path(file.name).chmod(0o644)
            # Only what is missing is put there; a blob in use keeps its file.
            if not self.touch(digest):
                Path(file.name).replace(self.blob_path(digest))
        except OSError as error:
            raise disk_error(error) from error

    # --- tags

    def tag(self, name: str, descriptor: Descriptor, *, elsewhere: Collection[str] = ()) -> None:
        """Name an image. Raises ImageError FL6106 unless everything below it is here.

        `elsewhere`: digests of base layers that the registry has which the image goes to, and that are not copied.
        """
        self._open()
        with self.lock():
            for digest in self.reachable(descriptor):
                if digest not in elsewhere and not self.has(digest):
                    raise ImageError(
                        "FL6106",
                        f"The image {name} is not complete: {digest[:19]}… is missing.",
                        cure="Build it again.",
                        transient=True,
                    )
            kept = [entry for entry in self._entries() if entry.annotations.get(REF_NAME) != name]
            named = replace(descriptor, annotations={**descriptor.annotations, REF_NAME: name})
            self._write_index([*kept, named])

    def untag(self, name: str) -> bool:
        """Forget a tag; its blobs stay until they are collected. False when there was none."""
        with self._existing_lock():
            entries = self._entries()
            kept = [entry for entry in entries if entry.annotations.get(REF_NAME) != name]
            if len(kept) == len(entries):
                return False
            self._write_index(kept)
        return True

    def tags(self) -> dict[str, Descriptor]:
        """All tags by name."""
        return {entry.annotations[REF_NAME]: _plain(entry) for entry in self._entries() if REF_NAME in entry.annotations}

    def resolve(self, name: str) -> Descriptor | None:
        """The image behind a tag or a digest of a manifest or index; None when there is none."""
        if not name.startswith("sha256:"):
            return self.tags().get(name)
        if not self.has(name):
            return None
        try:
            content = self.read_json(name)
        except ImageError as error:
            if error.code == "FL6103":
                return None
            raise
        media_type = str(content.get("mediaType") or (INDEX if "manifests" in content else ""))
        if media_type not in INDEXES | MANIFESTS:
            return None
        return Descriptor(
            media_type, name, self.blob_path(name).stat().st_size, artifact_type=str(content.get("artifactType") or "")
        )

    def reachable(self, descriptor: Descriptor) -> Iterator[str]:
        """The digests of an image: itself, its manifests, configurations and layers, as far as they are known here."""
        yield descriptor.digest
        if descriptor.media_type not in INDEXES | MANIFESTS or not self.has(descriptor.digest):
            return
        content = self.read_json(descriptor.digest)
        if descriptor.media_type in INDEXES:
            below = content.get("manifests") or []
        else:
            below = [content.get("config"), *(content.get("layers") or [])]
        for item in below:
            yield from self.reachable(Descriptor.from_dict(item))

    # --- referrers

    def add_referrer(self, manifest: bytes, media_type: str) -> Descriptor:
        """An SBOM or a signature: a manifest whose `subject` is here. Its own blobs are there already, or FL6106."""
        descriptor = self.add_bytes(manifest, media_type)
        content = self.read_json(descriptor.digest)
        subject = Descriptor.from_dict(content.get("subject"))
        kind = str(content.get("artifactType") or (content.get("config") or {}).get("mediaType") or "")
        about = {str(key): str(value) for key, value in (content.get("annotations") or {}).items()}
        with self.lock():
            for digest in (subject.digest, *self.reachable(descriptor)):
                if not self.has(digest):
                    raise ImageError(
                        "FL6106", f"What is attached is not complete: {digest[:19]}… is missing.", cure="Attach it again."
                    )
            made = replace(descriptor, artifact_type=kind, annotations=about)
            entry = replace(made, annotations={**about, SUBJECT: subject.digest})
            kept = [item for item in self._entries() if item.digest != descriptor.digest or SUBJECT not in item.annotations]
            self._write_index([*kept, entry])
        return made

    def referrers(self, digest: str) -> list[Descriptor]:
        """What is attached to an image, by its digest."""
        return [_plain(entry) for entry in self._entries() if entry.annotations.get(SUBJECT) == digest]

    def subjects(self) -> set[str]:
        """The digests of all images that something is attached to."""
        return {entry.annotations[SUBJECT] for entry in self._entries() if SUBJECT in entry.annotations}

    def remove_referrer(self, digest: str) -> bool:
        """Detach a manifest; False when it was not attached."""
        with self._existing_lock():
            entries = self._entries()
            kept = [entry for entry in entries if entry.digest != digest or SUBJECT not in entry.annotations]
            if len(kept) != len(entries):
                self._write_index(kept)
        return len(kept) != len(entries)

    # --- index.json

    def _existing_lock(self) -> contextlib.AbstractContextManager[Any]:
        return self.lock() if self.root.is_dir() else contextlib.nullcontext()

    def _entries(self) -> list[Descriptor]:
        try:
            content = orjson.loads((self.root / "index.json").read_bytes())
            return [Descriptor.from_dict(item) for item in content["manifests"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise ImageError(
                "FL6107", "index.json of the image store is damaged.", cure="Remove the image store; images are made again."
            ) from error

    def _write_index(self, entries: list[Descriptor]) -> None:
        content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry.to_dict() for entry in entries]}
        self._replace(self.root / "index.json", orjson.dumps(content))

    def _replace(self, path: Path, data: bytes) -> None:
        try:
            with tempfile.NamedTemporaryFile(dir=self._aside, prefix="index-", delete=False) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except OSError as error:
            raise disk_error(error) from error


def disk_error(error: OSError) -> ImageError:
    """The error for an image store that cannot be written."""
    if disk_is_full(error):
        return ImageError(
            "FL6105", "The disk is full; no image was made.", cure="Free some space, for instance with `flops gc`.", transient=True
        )
    reason = error.strerror or type(error).__name__
    return ImageError("FL6108", f"The image store cannot be written: {reason}.", cure="Check its folder.", transient=True)


def _no_manifest(digest: str) -> ImageError:
    return ImageError("FL6103", f"The blob {digest[:19]}… is no manifest.", cure="Build or push that image again.")


def _plain(entry: Descriptor) -> Descriptor:
    """Without what only index.json says about it."""
    about = {key: value for key, value in entry.annotations.items() if key not in {REF_NAME, SUBJECT}}
    return replace(entry, annotations=about)
