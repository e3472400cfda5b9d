"""What tests share: one cache of data and environments for the whole machine, and Git repos that look like users'."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from reconciler.engine import cache_directory
from reconciler.redaction import REDACTION
from tests.engine import base_layout, base_rootfs, engine, registry, start_registry
from tests.soak.sizes import SOAK

__all__ = ["base_layout", "base_rootfs", "engine", "registry", "start_registry"]  # fixtures for every test


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is `long` runs in `make soak`: `make test` is to be waited for. Folders of few and slow tests come first, so that at the
    end no worker has minutes before it while the other one has nothing left."""
    items.sort(key=lambda item: not {"e2e", "nodes", "soak", "federation"} & set(item.path.parts))
    if SOAK:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


class Repos:
    """A bare origin and clones of it, with a user's identity of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.origin = root / "origin.git"
        git(root, "init", "-q", "--bare", "-b", "main", str(self.origin))

    def clone(self, name: str = "clone") -> Path:
        """A clone; the first one makes the first commit."""
        path = self.root / name
        git(self.root, "clone", "-q", str(self.origin), str(path))
        git(path, "config", "user.name", "A user")
        git(path, "config", "user.email", "user@example.invalid")
        git(path, "symbolic-ref", "HEAD", "refs/heads/main")
        return path


def git(path: Path, *arguments: str) -> str:
    """Run Git as a user would, and return what it printed."""
    return subprocess.run(["git", *arguments], cwd=path, check=True, capture_output=True, text=True).stdout.strip()


def commit(path: Path, files: dict[str, str], message: str = "A change", *, push: bool = True) -> str:
    """Write files, commit and push them; the commit."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    git(path, "add", "-A")
    git(path, "commit", "-q", "-m", message)
    if push:
        git(path, "push", "-q", "origin", "HEAD:main")
    return git(path, "rev-parse", "HEAD")


@pytest.fixture
def repos(tmp_path: Path) -> Repos:
    """A bare origin to clone from."""
    return Repos(tmp_path)


@pytest.fixture(scope="session")
def shared_cache() -> Path:
    """The cache that users have too: MNIST is fetched once per machine, not once per test."""
    return cache_directory()


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """No test leaves a variable, or a secret to mask, to the next one; `mlflow.set_tracking_uri` sets one, for instance."""
    before, known = dict(os.environ), REDACTION.snapshot()
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)
    REDACTION.restore(known)


class SmallDisk:
    """A real file system that is nearly full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=64m", "tmpfs")

    def leave(self, size: int) -> None:
        """Fill it up to `size` free bytes."""
        free = shutil.disk_usage(self.path).free
        # Others may write at the same time: then it is full a little earlier.
        with suppress(OSError), (self.path / "filling").open("ab") as file:
            file.write(b"\0" * max(free - size, 0))

    def free(self) -> None:
        """Somebody makes space."""
        (self.path / "filling").unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options, str(self.path)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk to fill; needs the right to mount."""
    try:
        disk = SmallDisk(tmp_path / "disk")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a file system of its own cannot be mounted here: {error.stderr.decode().strip()}")
    yield disk
    disk.unmount()
