"""What was made before: small JSON files by key. A record is a hint; it counts only when the store has what it names."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

from reconciler.digests import digest_of
from reconciler.errors import FlopsError
from reconciler.images.cancelling import Cancelled, check, never
from reconciler.images.layout import Layout, disk_error
from reconciler.images.model import Descriptor
from reconciler.images.tarball import FORMAT, Layer


class Records:
    """Layers and other facts by the digest of all that determines them, shared by all projects and processes."""

    def __init__(self, root: Path, layout: Layout) -> None:
        self.root = root.absolute()
        self.layout = layout

    def layers(self, inputs: Any, make: Callable[[], list[Layer]], *, cancelled: Cancelled = never) -> list[Layer]:
        """The layers of these inputs, made unless they are there; two processes do not make the same ones twice.

        Raises ImageError FL6156 when it is cancelled while another process makes them.
        """
        path = self._path("layers", inputs)
        found = self._read_layers(path)
        if found is None:
            with self._locked(path, cancelled):
                found = self._read_layers(path)
                if found is None:
                    found = make()
                    self._write(path, [_to_dict(layer) for layer in found])
        return found

    def fact(self, inputs: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A fact that costs time to find out, such as what a base image has."""
        path = self._path("facts", inputs)
        try:
            known = orjson.loads(path.read_bytes())
            if isinstance(known, dict):
                return known
        except (OSError, orjson.JSONDecodeError):
            pass
        made = make()
        self._write(path, made)
        return made

    @contextlib.contextmanager
    def _locked(self, path: Path, cancelled: Cancelled) -> Iterator[None]:
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(cancel_check=cancelled)
        except Timeout:
            check(cancelled)
            raise
        try:
            yield
        finally:
            lock.release()

    def _path(self, kind: str, inputs: Any) -> Path:
        path = self.root / kind / f"{digest_of([FORMAT, inputs])[:40]}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error) from error
        return path

    def _read_layers(self, path: Path) -> list[Layer] | None:
        try:
            found = [_from_dict(item) for item in orjson.loads(path.read_bytes())]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, FlopsError):
            return None
        return found if all(self.layout.touch(layer.descriptor.digest) for layer in found) else None

    def _write(self, path: Path, content: Any) -> None:
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                file.write(orjson.dumps(content))
            Path(file.name).replace(path)
        except OSError as error:
            raise disk_error(error) from error


def _to_dict(layer: Layer) -> dict[str, Any]:
    return {"title": layer.title, "descriptor": layer.descriptor.to_dict(), "diff_id": layer.diff_id, "size": layer.size}


def _from_dict(content: Any) -> Layer:
    return Layer(
        str(content["title"]),
        Descriptor.from_dict(content["descriptor"]),
        str(content["diff_id"]),
        int(content["size"]),
        made=False,
    )
