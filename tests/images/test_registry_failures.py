"""A registry that is down, slow, full, cut off, wrong or closed: a clear error, and no tag of an image that is not complete."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import Descriptor
from reconciler.images.push import Pushed, push
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.images.transport import Patience
from tests.engine import RunningRegistry, StartRegistry, free_port
from tests.images.imagekit import PATIENT, layout_at, make_image
from tests.images.proxy import Proxy, Silent


def publish(layout: Layout, index: Descriptor, host: str, patience: Patience = PATIENT, tag: str = "1") -> Pushed:
    with Registry(host, patience=patience) as client:
        return push(layout, index, Reference.parse(f"{host}/acme/digits:{tag}"), registry=client)


def tags(registry: RunningRegistry) -> list[str]:
    with Registry(registry.host, patience=PATIENT) as client:
        return client.tags("acme/digits")


def test_a_registry_that_is_down(tmp_path: Path) -> None:
    layout = layout_at(tmp_path)
    with pytest.raises(ImageError, match="does not answer") as failure:
        publish(layout, make_image(layout), f"127.0.0.1:{free_port()}")
    assert (failure.value.code, failure.value.transient) == ("FL6142", True)


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    layout = layout_at(tmp_path)
    with pytest.raises(ImageError, match="FL6142"):
        publish(layout, make_image(layout), "registry.example.invalid")


def test_a_registry_that_says_nothing(tmp_path: Path) -> None:
    layout = layout_at(tmp_path)
    server = Silent()
    with pytest.raises(ImageError, match="too slow") as failure:
        publish(layout, make_image(layout), server.host, replace(PATIENT, silence=0.1, attempts=2))
    assert (failure.value.code, failure.value.transient) == ("FL6143", True)
    server.close()


def test_a_registry_that_trickles(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    blob = layout.add_bytes(os.urandom(4_000_000), "application/octet-stream")
    ticks = itertools.count(0, 50)
    patience = replace(PATIENT, floor=1e6, attempts=2, clock=lambda: float(next(ticks)))
    with Registry(registry.host, patience=patience) as client, pytest.raises(ImageError, match="FL6143"):
        client.upload("acme/data", blob, layout.blob_path(blob.digest))


def test_a_push_that_is_cut_off_for_good_leaves_the_tag_as_it_was(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    old, new = make_image(layout, content=b"old"), make_image(layout, content=os.urandom(500_000))
    publish(layout, old, registry.host)
    proxy = Proxy(registry.port, lambda head: 100_000 if head.startswith("PATCH") else None)
    with pytest.raises(ImageError, match="broke the connection off") as failure:
        publish(layout, new, proxy.host)
    assert (failure.value.code, failure.value.transient) == ("FL6142", True)
    with Registry(registry.host, patience=PATIENT) as client:
        image = Reference.parse(f"{registry.host}/acme/digits:1")
        assert client.digest_of(image) == old.digest
        assert client.digest_of(image.at(new.digest)) is None
    # Once it is back, the same push goes through.
    assert publish(layout, new, registry.host).digest == new.digest


@pytest.mark.parametrize("kind", ["manifests/sha256", "manifests/1"])
def test_a_push_whose_manifests_are_rejected_publishes_nothing(tmp_path: Path, registry: RunningRegistry, kind: str) -> None:
    layout = layout_at(tmp_path)
    answer = (
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 58\r\nConnection: close\r\n\r\n"
        + b'{"errors":[{"code":"POLICY","message":"unsigned images"}]}'
    )
    proxy = Proxy(registry.port, lambda head: answer if head.startswith("PUT") and kind in head else None)
    with pytest.raises(ImageError, match="POLICY: unsigned images") as failure:
        publish(layout, make_image(layout), proxy.host)
    assert (failure.value.code, failure.value.transient) == ("FL6149", False)
    assert tags(registry) == []


@pytest.mark.parametrize("status", [b"413 Request Entity Too Large", b"507 Insufficient Storage"])
def test_a_proxy_that_takes_nothing_so_large(tmp_path: Path, registry: RunningRegistry, status: bytes) -> None:
    layout = layout_at(tmp_path)
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    proxy = Proxy(registry.port, lambda head: answer if head.startswith("PATCH") else None)
    with pytest.raises(ImageError, match="no space left or takes nothing so large") as failure:
        publish(layout, make_image(layout), proxy.host)
    assert failure.value.code == "FL6147"
    assert sum(head.startswith("PATCH") for head in proxy.heads) <= 4, "what does not fit is not tried again and again"
    assert tags(registry) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted without privileges")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=False)


def test_a_registry_whose_disk_is_full(tmp_path: Path, small_disk: Path) -> None:
    registry = RunningRegistry(small_disk)
    try:
        layout = layout_at(tmp_path)
        publish(layout, make_image(layout, content=b"small"), registry.host)
        with pytest.raises(ImageError) as failure:
            publish(layout, make_image(layout, content=os.urandom(8_000_000)), registry.host, tag="2")
        assert failure.value.code in {"FL6147", "FL6148"}, str(failure.value)
        assert failure.value.transient
        assert tags(registry) == ["1"]
    finally:
        registry.stop()


def test_passing_failures_are_tried_again(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    failures = [b"503 Service Unavailable", b"429 Too Many Requests", b"502 Bad Gateway"]

    def spoil(_head: str) -> bytes | None:
        return (
            b"HTTP/1.1 " + failures.pop() + b"\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
            if failures
            else None
        )

    assert publish(layout, make_image(layout), Proxy(registry.port, spoil).host).uploaded == 4
    assert not failures
    broken = Proxy(
        registry.port, lambda _head: b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    with pytest.raises(ImageError, match="503") as failure:
        publish(layout, make_image(layout), broken.host)
    assert (failure.value.code, failure.value.transient) == ("FL6148", True)


def test_a_blob_that_was_damaged_here_is_refused_by_the_registry(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    index = make_image(layout, platforms=("linux/amd64",))
    manifest = layout.read_json(Descriptor.from_dict(layout.read_json(index.digest)["manifests"][0]).digest)
    path = layout.blob_path(manifest["layers"][0]["digest"])
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ImageError, match="FL6149"):
        publish(layout, index, registry.host)
    assert tags(registry) == []


def test_a_registry_that_serves_something_else(tmp_path: Path, registry: RunningRegistry) -> None:
    layout, copy = layout_at(tmp_path), layout_at(tmp_path / "copy")
    index = make_image(layout, platforms=("linux/amd64",))
    publish(layout, index, registry.host)
    manifest = Descriptor.from_dict(layout.read_json(index.digest)["manifests"][0])
    layer = Descriptor.from_dict(layout.read_json(manifest.digest)["layers"][0])
    with Registry(registry.host, patience=PATIENT) as client:
        image = Reference.parse(f"{registry.host}/acme/digits@{manifest.digest}")
        registry.blob(layer.digest).write_bytes(b"x" * layer.size)
        with copy.writer() as writer, pytest.raises(ImageError, match="FL6104"):
            client.fetch("acme/digits", layer, writer)
        assert not copy.has(layer.digest)
        registry.blob(manifest.digest).write_bytes(layout.read(manifest.digest).replace(b"amd64", b"arm64") + b" ")
        with pytest.raises(ImageError, match=r"FL6150|FL6148|FL6146"):
            client.manifest(image)


def test_an_image_that_does_not_exist(registry: RunningRegistry) -> None:
    with Registry(registry.host, patience=PATIENT) as client:
        for name in ("acme/nothing:1", f"acme/nothing@sha256:{'1' * 64}"):
            with pytest.raises(ImageError, match="There is no image") as failure:
                client.manifest(Reference.parse(f"{registry.host}/{name}"))
            assert (failure.value.code, failure.value.transient) == ("FL6146", False)


def test_a_manifest_without_end(registry: RunningRegistry) -> None:
    huge = b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n" + b" " * 9_000_000
    proxy = Proxy(registry.port, lambda _head: huge)
    with Registry(proxy.host, patience=PATIENT) as client, pytest.raises(ImageError, match="FL6152"):
        client.manifest(Reference.parse(f"{proxy.host}/acme/digits:1"))


def test_nobody_is_led_to_another_machine_in_plain_text(start_registry: StartRegistry) -> None:
    registry = start_registry()
    away = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://registry.example.invalid/v2/x\r\n"
    away += b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    proxy = Proxy(registry.port, lambda _head: away)
    with Registry(proxy.host, patience=PATIENT) as client, pytest.raises(ImageError, match="FL6151"):
        client.manifest(Reference.parse(f"{proxy.host}/acme/digits:1"))
