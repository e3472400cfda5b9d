"""A build that nobody wants any more stops soon: while uv waits, while somebody else makes a layer, while a blob goes up."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from reconciler.errors import ImageError
from reconciler.images.assemble import ImageRequest
from reconciler.images.bases import Connect
from reconciler.images.interpreter import host_platform
from reconciler.images.layout import Layout
from reconciler.images.records import Records
from reconciler.images.registry import Registry
from reconciler.images.store import ImageStore
from reconciler.spec import default_plan
from tests.engine import RunningRegistry, until
from tests.images.imagekit import PATIENT, layout_at
from tests.images.proxy import Silent
from tests.images.wheelkit import Wheels, lock_of


class Switch:
    """Says that it is cancelled once it is set; `asked` counts how often somebody wanted to know."""

    def __init__(self) -> None:
        self.set = threading.Event()
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.set.is_set()


def request_of(tmp_path: Path, *lines: str) -> ImageRequest:
    """A learner's image without a base."""
    repo = tmp_path / "repo"
    repo.mkdir(exist_ok=True)
    (repo / "model_manager.py").write_text("# nothing\n")
    plan = default_plan("learner").model_copy(update={"base_image": "scratch"})
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return ImageRequest(plan, lock_of(*lines, python=version), (host_platform(),), repo, 0, name="acme/digits:1")


def test_while_the_package_index_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, switch = Silent(), Switch()
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://{index.host}/simple")
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    store = ImageStore(tmp_path / "store", tmp_path / "cache")
    request = request_of(tmp_path, f"numpy==1.0 --hash=sha256:{'0' * 64}")
    failures: list[ImageError] = []

    def build() -> None:
        with pytest.raises(ImageError) as failure:
            store.build(request, tell=lambda _line: None, cancelled=switch)
        failures.append(failure.value)

    thread = threading.Thread(target=build)
    thread.start()
    until(lambda: switch.asked > 3)
    assert _children_of_uv(), "uv waits for the index"
    switch.set.set()
    thread.join(20)
    assert [failure.code for failure in failures] == ["FL6156"]
    assert not _children_of_uv()
    assert (store.names(), list((tmp_path / "cache" / "records").glob(".wheels-*"))) == (frozenset(), [])
    index.close()


def test_while_somebody_else_makes_the_layer(tmp_path: Path) -> None:
    records, switch = Records(tmp_path / "records", Layout(tmp_path / "store")), Switch()
    lock = FileLock(f"{records._path('layers', 'x')}.lock")
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.acquire).result()
        switch.set.set()
        with pytest.raises(ImageError, match="FL6156"):
            records.layers("x", lambda: pytest.fail("it is not our turn"), cancelled=switch)
        other.submit(lock.release).result()


def test_while_a_blob_goes_up(tmp_path: Path, registry: RunningRegistry) -> None:
    layout, switch = layout_at(tmp_path), Switch()
    blob = layout.add_bytes(os.urandom(5_000_000), "application/octet-stream")
    sent: list[int] = []

    def tell(count: int) -> None:
        sent.append(count)
        switch.set.set()

    with Registry(registry.host, patience=PATIENT) as client, pytest.raises(ImageError, match="FL6156"):
        client.until(switch).upload("acme/data", blob, layout.blob_path(blob.digest), tell=tell)
    assert len(sent) == 1
    with Registry(registry.host, patience=PATIENT) as client:
        assert not client.has_blob("acme/data", blob.digest)


def test_before_the_push_the_name_is_not_there(tmp_path: Path, wheels: Wheels, registry: RunningRegistry) -> None:
    """Cancelled when it is about to be sent: nothing is tagged; the next build finds the layers and finishes."""
    switch = Switch()
    connect: Connect = lambda host: _set(switch, Registry(host, patience=PATIENT))  # noqa: E731
    store = ImageStore(tmp_path / "store", tmp_path / "cache", registry=f"{registry.host}/team", connect=connect)
    request = request_of(tmp_path, wheels.add("half", {"half.py": ""}))
    with pytest.raises(ImageError, match="FL6156"):
        store.build(request, tell=lambda _line: None, cancelled=switch)
    assert store.layout.tags() == {}
    told: list[str] = []
    assert store.build(request, tell=told.append).platforms == (str(host_platform()),)
    assert not any("dependencies" in line for line in told)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheels:
    return Wheels(tmp_path / "wheels", monkeypatch)


def _set(switch: Switch, registry: Registry) -> Registry:
    switch.set.set()
    return registry


def _children_of_uv() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if Path(child.name()).name == "uv"]
