"""What a base image has: interpreters, the C library, Debian packages. Read from its layers, never by running it.

Layers are somebody else's tars: they are streamed, nothing is unpacked, and what is read into memory has a limit.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

import zstandard
from isal import igzip

from reconciler.errors import ImageError
from reconciler.images.model import Descriptor
from reconciler.images.records import Records

MAX_STATUS: Final = 64 * 1024 * 1024
MAX_LIBC: Final = 16 * 1024 * 1024
_PYTHON: Final = re.compile(r"python3\.\d{1,2}")
_LIBC: Final = re.compile(r"libc\.so\.6|libc-2\.\d+\.so")
_GLIBC: Final = re.compile(rb"GNU C Library [^\n]{0,200}release version 2\.(\d{1,3})")
_MUSL: Final = re.compile(r"ld-musl-\w+\.so\.1")
_WHITEOUT: Final = ".wh."


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found. `pythons` are paths such as /usr/bin/python3.11; `glibc` is 36 for 2.36, and None where there is none."""

    pythons: tuple[str, ...] = ()
    glibc: int | None = None
    musl: bool = False
    packages: frozenset[str] = frozenset()

    def python(self, version: str, path: Sequence[str]) -> str | None:
        """The interpreter of a version that comes first on the image's PATH, or that there is."""
        name = f"python{version}"
        found = [item for item in self.pythons if item.rsplit("/", 1)[1] == name]
        order = {folder.rstrip("/"): index for index, folder in enumerate(path)}
        return min(found, key=lambda item: (order.get(item.rsplit("/", 1)[0], len(order)), item), default=None)


def contents_of(layers: Sequence[Descriptor], open_layer: Callable[[Descriptor], Path], records: Records) -> Contents:
    """What these layers have together, the first one lowest; read once per base image and remembered by its layers' digests."""

    def make() -> dict[str, object]:
        state = _State()
        for layer in layers:
            _scan(open_layer(layer), layer, state)
        return {
            "pythons": sorted(state.pythons),
            "glibc": state.glibc,
            "musl": state.musl,
            "packages": sorted(state.packages()),
        }

    known = records.fact(["contents", [layer.digest for layer in layers]], make)
    return Contents(tuple(known["pythons"]), known["glibc"], bool(known["musl"]), frozenset(known["packages"]))


class _State:
    """The files that matter, as the layers so far leave them."""

    def __init__(self) -> None:
        self.pythons: set[str] = set()
        self.glibc: int | None = None
        self.musl = False
        self.status: dict[str, bytes] = {}

    def packages(self) -> set[str]:
        found = set()
        for data in self.status.values():
            for stanza in data.decode(errors="replace").split("\n\n"):
                name = re.search(r"^Package: (\S+)$", stanza, re.MULTILINE)
                status = re.search(r"^Status: (.*)$", stanza, re.MULTILINE)
                if name and (not status or status[1].endswith(" installed")):
                    found.add(name[1])
        return found


def _scan(path: Path, layer: Descriptor, state: _State) -> None:
    try:
        with path.open("rb") as raw, _opened(raw, layer.media_type) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                _member(tar, member, state)
    except (tarfile.TarError, EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise ImageError(
            "FL6122",
            f"The layer {layer.digest[:19]}… of the base image cannot be read: {error}.",
            cure="Choose another base image, or pull it again.",
        ) from error


def _opened(raw: IO[bytes], media_type: str) -> IO[bytes]:
    start = raw.read(4)
    raw.seek(0)
    if start[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", igzip.open(raw, "rb"))  # type: ignore[no-untyped-call]  # it ships no types
    if start == b"\x28\xb5\x2f\xfd":
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(raw))
    if media_type.endswith(("+gzip", ".gzip", "+zstd")):
        raise tarfile.ReadError(f"it is not {media_type.rsplit('.', 1)[-1]}")
    return raw


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, state: _State) -> None:
    name = "/" + member.name.removeprefix("./").strip("/")
    folder, base = str(PurePosixPath(name).parent), PurePosixPath(name).name
    if base.startswith(_WHITEOUT):
        gone = f"{folder.rstrip('/')}/{base.removeprefix(_WHITEOUT)}"
        everything = base == ".wh..wh..opq"
        hidden = folder if everything else gone
        state.pythons = {item for item in state.pythons if not (item == gone or item.startswith(hidden + "/"))}
        state.status = {key: data for key, data in state.status.items() if not (key == gone or key.startswith(hidden + "/"))}
    elif _PYTHON.fullmatch(base) and folder.endswith("/bin") and (member.isreg() or member.issym() or member.islnk()):
        state.pythons.add(name)
    elif _MUSL.fullmatch(base):
        state.musl = True
    elif member.isreg() and _LIBC.fullmatch(base) and member.size <= MAX_LIBC:
        found = _GLIBC.search(_read(tar, member))
        state.glibc = int(found[1]) if found else state.glibc
    elif member.isreg() and member.size <= MAX_STATUS and (name == "/var/lib/dpkg/status" or folder == "/var/lib/dpkg/status.d"):
        state.status[name] = _read(tar, member)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""
