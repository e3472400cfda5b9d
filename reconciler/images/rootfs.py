"""What is in the layers of a base image, without unpacking them."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Final

import zstandard
from isal import igzip, igzip_lib

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import LAYER_GZIP, LAYER_ZSTD, Descriptor

_INTERPRETER: Final = re.compile(r"usr/(local/)?bin/python3(?:\.(\d+))?")
_BROKEN_GZIP: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]  # isal's stubs call the class an instance
_LIMIT: Final = 2_000_000
"""Files of one layer at most: what has more is no base image, or was made to keep us busy."""


def find_python(layout: Layout, layers: Sequence[Descriptor]) -> str | None:
    """The version, as `3.11`, of the interpreter that `python3` is, by the usual order of PATH; None without one."""
    there: dict[str, str] = {}
    for layer in layers:
        for member in members(layout, layer):
            name = _name(member)
            folder, _, last = name.rpartition("/")
            if last.startswith(".wh."):
                hidden = f"{folder}/{last.removeprefix('.wh.')}"
                opaque = last == ".wh..wh..opq"
                there = {
                    key: value for key, value in there.items() if key != hidden and not (opaque and key.startswith(f"{folder}/"))
                }
            elif _INTERPRETER.fullmatch(name) and (member.isfile() or member.issym() or member.islnk()):
                there[name] = member.linkname if member.issym() else ""
    for prefix in ("usr/local/bin", "usr/bin"):
        target = there.get(f"{prefix}/python3", "")
        if found := re.fullmatch(r"(?:.*/)?python(3\.\d+)", target):
            return found[1]
        versions = [
            int(match[2])
            for name in there
            if name.startswith(f"{prefix}/") and (match := _INTERPRETER.fullmatch(name)) and match[2]
        ]
        if versions:
            return f"3.{max(versions)}"
    return None


def members(layout: Layout, layer: Descriptor) -> Iterator[tarfile.TarInfo]:
    """The entries of a layer that is in the store. Raises ImageError FL6103 when it is no tar."""
    try:
        with (
            layout.blob_path(layer.digest).open("rb") as file,
            tarfile.open(fileobj=unpacked(file, layer.media_type), mode="r|") as tar,
        ):
            for number, member in enumerate(tar):
                if number > _LIMIT:
                    raise _no_tar(layer, "it has too many files")
                yield member
    except FileNotFoundError as error:
        raise ImageError("FL6106", f"The image store lacks {layer.digest[:19]}….", cure="Pull it again.", transient=True) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, zstandard.ZstdError, _BROKEN_GZIP) as error:
        raise _no_tar(layer, str(error)) from error


def unpacked(file: IO[bytes], media_type: str) -> IO[bytes]:
    """The tar in a layer's file."""
    if media_type == LAYER_GZIP:
        found: IO[bytes] = igzip.open(file, "rb")  # type: ignore[no-untyped-call]
        return found
    if media_type == LAYER_ZSTD:
        stream: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return stream
    return file


def _name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./").lstrip("/")


def _no_tar(layer: Descriptor, why: str) -> ImageError:
    return ImageError("FL6103", f"The layer {layer.digest[:19]}… cannot be read: {why}.", cure="Push that image again.")
