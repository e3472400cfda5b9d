"""Layers: a tar of sorted entries with fixed owner, time and modes, compressed and hashed while it is written.

The same entries give the same bytes. The stream is cut into blocks of one size before it is compressed, so that the compressor's
output depends on nothing but the stream. Both digests, of the tar (`diff_id`) and of what it is compressed to, come from one pass.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import zstandard
from isal import isal_zlib

from reconciler.errors import ImageError, Where
from reconciler.images.layout import BlobWriter, Layout
from reconciler.images.model import LAYER_GZIP, LAYER_ZSTD, Descriptor

EPOCH: Final = 315_532_800
"""1980-01-01: the time of every file, and the earliest that a zip made inside the image can hold."""
BLOCK: Final = 1 << 20
GZIP_LEVEL: Final = 2
"""isal's levels differ by 4 % in size; this one costs no more than the first."""
ZSTD_LEVEL: Final = 3
FORMAT: Final = "1"
"""Raised when the bytes of a layer change for the same entries: part of every key in the cache of layers."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file (from a path or from bytes), a folder (its name ends with /), or a symbolic link of ours.

    `name` is relative to the root of the image. `mode` is set for what is neither 0644 nor 0755.
    """

    name: str
    size: int
    source: Path | bytes = b""
    executable: bool = False
    link: str = ""
    mode: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in the store. `size` is that of the tar, in bytes; `made` is False when it was there before."""

    title: str
    descriptor: Descriptor
    diff_id: str
    size: int
    made: bool = True


class _Compressor(Protocol):
    def compress(self, data: memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Stream:
    """Cuts what is written into blocks, hashes them, and passes them on compressed."""

    def __init__(self, out: BlobWriter, compressor: _Compressor) -> None:
        self._out, self._compressor = out, compressor
        self._block = memoryview(bytearray(BLOCK))
        self._filled = 0
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = min(len(view), BLOCK - self._filled)
            self._block[self._filled : self._filled + count] = view[:count]
            self._advance(count)
            view = view[count:]

    def copy(self, entry: Entry, path: Path) -> None:
        """A file's bytes, without another copy in memory; what it has now must be what was looked at before."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _changed(entry.name) from error
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
                raise _changed(entry.name)
            left = entry.size
            while left:
                count = file.readinto(self._block[self._filled : min(BLOCK, self._filled + left)])
                if not count:
                    raise _changed(entry.name)
                self._advance(count)
                left -= count

    def finish(self) -> None:
        """Two empty records end a tar."""
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self._flush()
        self._out.write(self._compressor.flush())

    def _advance(self, count: int) -> None:
        self._filled += count
        self.size += count
        if self._filled == BLOCK:
            self._flush()

    def _flush(self) -> None:
        block = self._block[: self._filled]
        self.hash.update(block)
        if compressed := self._compressor.compress(block):
            self._out.write(compressed)
        self._filled = 0


def write_layer(layout: Layout, title: str, entries: Iterable[Entry], compression: str = "gzip") -> Layer:
    """Put the entries into a layer of the store. Raises ImageError FL6115 when a file changed since it was looked at."""
    with layout.writer() as out:
        stream = _Stream(out, _compressor(compression))
        for entry in with_folders(entries):
            stream.write(_header(entry))
            if isinstance(entry.source, Path):
                stream.copy(entry, entry.source)
            else:
                stream.write(entry.source)
            stream.write(bytes(-entry.size % tarfile.BLOCKSIZE))
        stream.finish()
        descriptor = out.commit(LAYER_GZIP if compression == "gzip" else LAYER_ZSTD)
    return Layer(title, descriptor, f"sha256:{stream.hash.hexdigest()}", stream.size)


def with_folders(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries by name, each folder before what is in it. A name that stands twice is there once, as it came last."""
    unique = {entry.name: entry for entry in entries}
    folders = {str(parent) for name in unique for parent in PurePosixPath(name).parents} - {"."}
    for name in sorted({*unique, *(f"{folder}/" for folder in folders)}):
        yield unique.get(name) or Entry(name, 0)


def _compressor(compression: str) -> _Compressor:
    if compression == "zstd":
        made: _Compressor = zstandard.ZstdCompressor(ZSTD_LEVEL).compressobj()
        return made
    return isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, 31)


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.name.removesuffix("/"))
    info.mtime = EPOCH
    if entry.name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, entry.mode or 0o755
    elif entry.link:
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, entry.link
    else:
        info.mode, info.size = 0o755 if entry.executable else 0o644, entry.size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _changed(name: str) -> ImageError:
    return ImageError(
        "FL6115", "A file changed while it was put into an image.", cure="It is tried again.", where=Where(name), transient=True
    )
