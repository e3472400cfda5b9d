"""Dependency layers: the wheels of a lock for one platform, put together without that platform's interpreter.

uv checks every wheel against the lock's hashes and unpacks it; nothing of a package is run. Packages that are large are layers of
their own, all others are one layer together: whoever changes one pin makes, pushes and pulls that package again and nothing
else. A layer is known by name, version, hashes and platform, so all images of all projects share it.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import uv
from packaging.utils import canonicalize_name

from reconciler.environments.model import Lock
from reconciler.environments.torch_builds import installing
from reconciler.errors import ImageError
from reconciler.images.cancelling import Cancelled, check, never
from reconciler.images.layout import disk_error
from reconciler.images.model import Platform
from reconciler.images.records import Records
from reconciler.images.tarball import Entry, Layer, write_layer
from reconciler.images.tree import DEPENDENCIES, entries_of
from reconciler.images.uv_errors import install_error, package_without_wheel

SITE: Final = "opt/flops/site"
"""Where dependencies are in an image; the shebang of their scripts names the interpreter below BIN."""
BIN: Final = "opt/flops/bin"
OWN_LAYER_BYTES: Final = 8_000_000
MAX_OWN_LAYERS: Final = 40
"""A container engine takes 127 layers at most; the base image has some already."""
LIMIT_SECONDS: Final = 1800
ASK_SECONDS: Final = 0.2
MAX_FILE_BYTES: Final = 8 * 1024**3
_TAGS: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC: Final = (17, 28, *range(31, 41))
"""The manylinux tags that uv knows: glibc 2.17, 2.28, 2.31 to 2.40."""
_NOISE: Final = frozenset({"uv_cache.json", "uv_build.json", "direct_url.json"})
"""Where a wheel came from, and when: not what it is."""
_SHEBANG: Final = re.compile(rb"\A#!(?:/bin/sh\n'''exec' [^\n]+\n' '''|[^\n]*python[^\n]*)\n")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Package:
    """One pin of a lock, as it stands there."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def line(self) -> str:
        """The pin as a requirement."""
        return " ".join((f"{self.name}=={self.version}", *(f"--hash={item}" for item in self.hashes)))


@dataclass(frozen=True, slots=True)
class Target:
    """What wheels must fit: a platform, a Python such as `3.11`, a glibc such as 36 for 2.36, and how layers are compressed."""

    platform: Platform
    python: str
    glibc: int = 28
    compression: str = "gzip"

    @property
    def tag(self) -> str:
        """uv's name of the platform: the newest manylinux that the base image's glibc can run."""
        newest = max((item for item in _GLIBC if item <= self.glibc), default=_GLIBC[0])
        return f"{_TAGS[self.platform.architecture]}-manylinux_2_{newest}"

    def key(self) -> list[str]:
        """What of it determines a layer."""
        return [self.tag, self.python, self.compression]


@dataclass(slots=True)
class _Group:
    title: str
    packages: tuple[Package, ...]
    entries: list[Entry] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


def packages_of(lock: Lock) -> list[Package]:
    """The pins of a lock. Raises ImageError FL6111 for a lock that has something else in it."""
    text = re.sub(r"\\\n", " ", lock.requirements)
    found = []
    for line in filter(None, (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())):
        name, *hashes = line.split()
        pin = re.fullmatch(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,.-]*\])?==([\w.!+-]+)", name)
        if not pin or not hashes or not all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", item) for item in hashes):
            raise ImageError("FL6111", f"The lock has a line that is no pin with hashes: {line[:60]!r}.", cure="Lock it again.")
        found.append(Package(canonicalize_name(pin[1]), pin[2], tuple(sorted(item[7:] for item in hashes))))
    return sorted(found, key=lambda package: package.name)


def dependency_layers(
    lock: Lock, target: Target, records: Records, pool: Executor, tell: Tell, *, cancelled: Cancelled = never
) -> list[Layer]:
    """The layers of a lock for one platform, in the order in which they go into an image; large packages first.

    Raises ImageError: FL6110 names every package without a wheel for the platform, FL6112 a wheel that is not the locked one,
    FL6156 when it is cancelled.
    """
    packages = packages_of(lock)
    inputs = ["dependencies", target.key(), [(item.name, item.version, item.hashes) for item in packages]]
    return records.layers(inputs, lambda: _make(packages, target, records, pool, tell, cancelled), cancelled=cancelled)


def _make(
    packages: Sequence[Package], target: Target, records: Records, pool: Executor, tell: Tell, cancelled: Cancelled
) -> list[Layer]:
    tell(f"dependencies for {target.platform}: {len(packages)} wheels")
    with _work_folder(records.root) as work:
        install(packages, target, work, work / "site", cancelled)
        groups = _groups(packages, target, work, cancelled)

        def make(group: _Group) -> list[Layer]:
            check(cancelled)
            return [write_layer(records.layout, group.title, group.entries, target.compression)]

        def known_or_made(group: _Group) -> list[Layer]:
            inputs = ["package", target.key(), [(item.name, item.version, item.hashes) for item in group.packages]]
            return records.layers(inputs, lambda: make(group), cancelled=cancelled)

        # The largest first, so that no core waits for one that began late.
        order = sorted(groups, key=lambda group: -group.size)
        made = {group.title: future for group, future in [(group, pool.submit(known_or_made, group)) for group in order]}
        try:
            return [layer for group in groups for layer in made[group.title].result()]
        finally:
            for future in made.values():
                future.cancel()
            for future in made.values():
                with contextlib.suppress(BaseException):  # the first error is told; the files must not go while others read them
                    future.result()


def install(packages: Sequence[Package], target: Target, work: Path, into: Path, cancelled: Cancelled = never) -> None:
    """Unpack the wheels into a folder. Raises ImageError."""
    missing: list[str] = []
    left = list(packages)
    while True:
        code, said = _uv(left, target, work, into, cancelled, dry=bool(missing))
        if not code:
            break
        name = package_without_wheel(said)
        if name is None or all(package.name != name for package in left):
            raise install_error(said, str(target.platform), missing)
        # uv names one package at a time; a user wants to know all of them.
        missing.append(next(f"{package.name} {package.version}" for package in left if package.name == name))
        left = [package for package in left if package.name != name]
    if missing:
        raise install_error("", str(target.platform), missing)


def _uv(packages: Sequence[Package], target: Target, work: Path, into: Path, cancelled: Cancelled, *, dry: bool) -> tuple[int, str]:
    """Run uv in a folder of ours, so that no configuration beside an ML repo or in a shared folder is read."""
    command = [
        uv.find_uv_bin(), "pip", "install", "--quiet", "--requirements", "-", "--target", str(into), "--no-deps",
        "--require-hashes", "--only-binary", ":all:", "--no-compile-bytecode", "--python-platform", target.tag,
        "--python-version", target.python, "--python", sys.executable, *(["--dry-run"] if dry else []),
        *installing("\n".join(f"{package.name}=={package.version}" for package in packages)),
    ]  # fmt: skip
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "TMPDIR": str(work)}
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "UV_TARGET", "UV_PREFIX"):
        environment.pop(name, None)
    text = "\n".join(package.line for package in packages) + "\n"
    with subprocess.Popen(
        command, cwd=work, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        # uv waits for the requirements first, so the limit is there before a wheel that claims to hold a file of any size.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
        said = _said(process, text, cancelled)
    return process.returncode, said


def _said(process: subprocess.Popen[str], text: str, cancelled: Cancelled) -> str:
    """What a process writes to its end; it is killed when nobody wants it any more, or after the limit."""
    deadline, given = time.monotonic() + LIMIT_SECONDS, True
    try:
        while True:
            try:
                return process.communicate(text if given else None, timeout=ASK_SECONDS)[1]
            except subprocess.TimeoutExpired:
                given = False
            check(cancelled)
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                return f"timed out after {LIMIT_SECONDS} s"
    except ImageError:
        process.kill()
        raise


@contextlib.contextmanager
def _work_folder(root: Path) -> Iterator[Path]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(".wheels-*"):
            # What a killed process left; a living one ends within the limit.
            if time.time() - left.stat().st_mtime > 2 * LIMIT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root, prefix=".wheels-"))
    except OSError as error:
        raise disk_error(error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _groups(packages: Sequence[Package], target: Target, work: Path, cancelled: Cancelled) -> list[_Group]:
    """Which files go into which layer: by the RECORD of each package, whose paths count only where such a file is there."""
    files = _files(work / "site")
    owned = _records(work / "site")
    owners: dict[str, list[str]] = {}
    for name, paths in owned.items():
        for path in paths:
            owners.setdefault(path, []).append(name)
    shared = {name for names in owners.values() if len(names) > 1 for name in names}
    found = []
    for package in packages:
        if package.name in shared:
            # What two packages ship, uv writes in any order: take each as it is alone, and let the later name win in the image.
            alone = work / "alone" / package.name
            install([package], target, work, alone, cancelled)
            entries = list(_files(alone).values())
        else:
            entries = [files[path] for path in owned.get(package.name, ()) if path in files]
        found.append(_Group(f"{package.name} {package.version}", (package,), entries))
    listed = {path for paths in owned.values() for path in paths}
    large = sorted((group for group in found if group.size >= OWN_LAYER_BYTES), key=lambda group: -group.size)[:MAX_OWN_LAYERS]
    rest = [group for group in found if group not in large]
    # A file that no RECORD lists belongs to all: then its layer is one of the whole lock.
    unlisted = [entry for path, entry in files.items() if path not in listed]
    members = tuple(packages) if unlisted else tuple(package for group in rest for package in group.packages)
    together = _Group(f"{len(rest)} packages", members, [*unlisted, *(entry for group in rest for entry in group.entries)])
    return [*(group for group in found if group in large), *([together] if together.entries else [])]


def _records(site: Path) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folder in sorted(site.glob("*.dist-info")):
        name = canonicalize_name(folder.name.removesuffix(".dist-info").rsplit("-", 1)[0])
        try:
            with (folder / "RECORD").open(newline="", errors="strict") as file:
                found[name] = [row[0] for row in csv.reader(file) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ImageError(
                "FL6112", f"The wheel of {name} has no list of its files that can be read.", cure="Choose another version."
            ) from error
    return found


def _files(site: Path) -> dict[str, Entry]:
    """Every file by its path, with what would differ from machine to machine taken out."""
    found = {}
    for entry in entries_of(site, SITE, DEPENDENCIES):
        path = entry.name[len(SITE) + 1 :]
        name = path.rsplit("/", 1)[-1]
        inside = ".dist-info/" in path
        if path == ".lock" or (inside and name in _NOISE):
            continue
        source = entry.source if isinstance(entry.source, Path) else Path()
        if path.startswith("bin/") and entry.size < 65_536:
            entry = _with_data(entry, _SHEBANG.sub(f"#!/{BIN}/python\n".encode(), source.read_bytes()))
        elif inside and name == "RECORD":
            entry = _with_data(entry, _tidy(source.read_text(encoding="utf-8", errors="strict")).encode())
        found[path] = entry
    return found


def _tidy(record: str) -> str:
    """A RECORD without the files that are left out or changed."""
    kept = []
    for line in sorted(record.splitlines()):
        path = line.split(",", 1)[0].strip('"')
        noise = path.startswith("bin/") or path.endswith(".pyc") or (".dist-info/" in path and path.rsplit("/", 1)[-1] in _NOISE)
        if not noise:
            kept.append(line + "\n")
    return "".join(kept)


def _with_data(entry: Entry, data: bytes) -> Entry:
    return replace(entry, source=data, size=len(data))
