"""The embedded image store: complete or not there, safe for many, honest about damage."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import orjson
import pytest

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import CONFIG, INDEX, LAYER_GZIP, MANIFEST, Descriptor, Platform


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


def image(layout: Layout, content: bytes = b"layer") -> Descriptor:
    layer = layout.add_bytes(content, LAYER_GZIP)
    config = layout.add_json({"architecture": "amd64"}, CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_dict(), "layers": [layer.to_dict()]}
    made = layout.add_json(manifest, MANIFEST, platform=Platform("linux", "amd64"))
    return layout.add_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [made.to_dict()]}, INDEX)


def code(error: pytest.ExceptionInfo[ImageError]) -> str:
    return error.value.code


def test_an_empty_store_has_nothing(layout: Layout) -> None:
    assert layout.tags() == {}
    assert list(layout.digests()) == []
    assert layout.resolve("a") is None
    assert not layout.untag("a")
    assert not layout.root.exists()


def test_a_tag_names_an_image(layout: Layout) -> None:
    index = image(layout)
    layout.tag("acme/digits:1", index)
    assert layout.tags() == {"acme/digits:1": index}
    assert layout.resolve("acme/digits:1") == index
    assert layout.resolve(index.digest) == index
    assert set(layout.reachable(index)) == set(layout.digests())
    assert orjson.loads((layout.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


def test_a_tag_moves_and_goes(layout: Layout) -> None:
    layout.tag("a", image(layout, b"1"))
    second = image(layout, b"2")
    layout.tag("a", second)
    assert layout.tags() == {"a": second}
    assert layout.untag("a")
    assert layout.tags() == {}
    assert layout.has(second.digest)


def test_an_image_appears_only_when_all_that_it_names_is_there(layout: Layout) -> None:
    index = image(layout)
    layer = layout.add_bytes(b"layer", LAYER_GZIP)
    layout.delete(layer.digest)
    with pytest.raises(ImageError) as error:
        layout.tag("a", index)
    assert code(error) == "FL6106"
    assert layout.tags() == {}
    layout.tag("a", index, elsewhere={layer.digest})
    assert layout.resolve("a") == index


def test_the_same_content_is_one_blob(layout: Layout) -> None:
    one = layout.add_bytes(b"x" * 1000, LAYER_GZIP)
    two = layout.add_file(lambda writer: writer.write(b"x" * 1000), LAYER_GZIP)
    assert one == two
    assert list(layout.digests()) == [one.digest]
    assert not list((layout.root / "ingest").iterdir())


def test_adding_what_is_there_renews_its_age(layout: Layout) -> None:
    made = layout.add_bytes(b"x", LAYER_GZIP)
    os.utime(layout.blob_path(made.digest), (0, 0))
    layout.add_bytes(b"x", LAYER_GZIP)
    assert layout.blob_path(made.digest).stat().st_mtime > 0


def test_a_blob_that_is_not_what_was_announced_is_not_kept(layout: Layout) -> None:
    with layout.writer() as writer:
        writer.write(b"other")
        with pytest.raises(ImageError) as error:
            writer.commit(LAYER_GZIP, expected="sha256:" + "0" * 64)
    assert code(error) == "FL6104"
    assert list(layout.digests()) == []
    assert not list((layout.root / "ingest").iterdir())


def test_a_write_that_fails_leaves_nothing(layout: Layout) -> None:
    def broken(_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        layout.add_file(broken, LAYER_GZIP)
    assert list(layout.digests()) == []
    assert not list((layout.root / "ingest").iterdir())


def test_damage_is_found(layout: Layout) -> None:
    made = layout.add_bytes(b"good", CONFIG)
    layout.blob_path(made.digest).write_bytes(b"evil")
    with pytest.raises(ImageError) as error:
        layout.read(made.digest)
    assert code(error) == "FL6107"


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:1", "", "sha256:" + "0" * 63])
def test_a_digest_is_never_a_path(layout: Layout, digest: str) -> None:
    with pytest.raises(ImageError) as error:
        layout.blob_path(digest)
    assert code(error) == "FL6102"


def test_referrers_are_found_by_their_subject(layout: Layout) -> None:
    index = image(layout)
    layout.tag("a", index)
    config = layout.add_bytes(b"{}", "application/vnd.oci.empty.v1+json")
    sbom = layout.add_bytes(b'{"bomFormat":"CycloneDX"}', "application/vnd.cyclonedx+json")
    manifest = orjson.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.cyclonedx+json",
            "config": config.to_dict(),
            "layers": [sbom.to_dict()],
            "subject": index.to_dict(),
            "annotations": {"a": "b"},
        }
    )
    made = layout.add_referrer(manifest, MANIFEST)
    assert layout.add_referrer(manifest, MANIFEST) == made
    assert layout.referrers(index.digest) == [made]
    assert made.artifact_type == "application/vnd.cyclonedx+json"
    assert layout.tags() == {"a": index}
    assert layout.remove_referrer(made.digest)
    assert layout.referrers(index.digest) == []


def test_many_writers_lose_no_tag(layout: Layout) -> None:
    def work(number: int) -> None:
        mine = Layout(layout.root)
        mine.tag(f"image:{number}", image(mine, b"%d" % (number % 3)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(layout.tags()) == {f"image:{number}" for number in range(16)}


@pytest.mark.parametrize("text", ["linux", "linux/", "linux/amd64/v1/x", "Linux/amd64", "linux/a d"])
def test_not_a_platform(text: str) -> None:
    with pytest.raises(ImageError) as error:
        Platform.parse(text)
    assert code(error) == "FL6101"


def test_platforms() -> None:
    assert str(Platform.parse("linux/aarch64")) == "linux/arm64"
    assert Platform.parse("linux/arm64/v8").runs_on(Platform.parse("linux/arm64"))
    assert Platform.parse("linux/arm64").runs_on(Platform.parse("linux/arm64/v8"))
    assert not Platform.parse("linux/amd64").runs_on(Platform.parse("linux/arm64"))
