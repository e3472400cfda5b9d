"""What `flops gc` takes and what it leaves, whatever else is going on."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reconciler.cli import app
from reconciler.errors import ImageError
from reconciler.images.collect import Collected, collect, list_images, pins, set_pin
from reconciler.images.layout import Layout
from reconciler.images.model import LAYER_GZIP
from reconciler.images.sbom import Materials, attach_sbom
from tests.images.imagekit import layout_at, make_image

NOW = 2_000_000_000.0
DAY = 86_400.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_at(tmp_path)


def age(layout: Layout, days: float, digests: set[str] | None = None) -> None:
    """Make blobs look as if they were last used so long before NOW."""
    for digest in digests or set(layout.digests()):
        os.utime(layout.blob_path(digest), (NOW - days * DAY, NOW - days * DAY))


def versions(layout: Layout, count: int, project: str = "acme/digits") -> list[str]:
    """Images of a project, the first the oldest; all beyond the grace period."""
    made = []
    for number in range(count):
        before = set(layout.digests())
        image = make_image(layout, f"{project}:{number}", content=f"{project} {number}".encode())
        age(layout, count - number, set(layout.digests()) - before | {image.digest})
        made.append(image.digest)
    return made


def run(layout: Layout, **options: object) -> Collected:
    return collect(layout, clock=lambda: NOW, **options)  # type: ignore[arg-type]


def test_the_last_digests_of_each_project_stay(layout: Layout) -> None:
    versions(layout, 5)
    versions(layout, 2, "acme/other")
    done = run(layout, keep_last=2)
    assert done.removed == ("acme/digits:0", "acme/digits:1", "acme/digits:2")
    assert set(layout.tags()) == {"acme/digits:3", "acme/digits:4", "acme/other:0", "acme/other:1"} == set(done.kept)
    for image in layout.tags().values():
        assert all(layout.has(digest) for digest in layout.reachable(image))
    assert done.freed > 0
    assert run(layout, keep_last=2) == Collected((), done.kept, 0, 0)


def test_what_runs_and_what_is_pinned_stays(layout: Layout) -> None:
    made = versions(layout, 5)
    arm = layout.read_json(made[1])["manifests"][1]["digest"]
    set_pin(layout, "acme/digits:2", pinned=True)
    run(layout, keep_last=1, in_use={made[0], arm})
    assert set(layout.tags()) == {f"acme/digits:{number}" for number in (0, 1, 2, 4)}
    set_pin(layout, "acme/digits:2", pinned=False)
    run(layout, keep_last=1, in_use={made[0]})
    assert set(layout.tags()) == {"acme/digits:0", "acme/digits:4"}
    with pytest.raises(ImageError, match="FL6171"):
        set_pin(layout, "acme/digits:9", pinned=True)


def test_a_digest_that_is_pinned_keeps_its_blobs(layout: Layout) -> None:
    made = versions(layout, 3)
    set_pin(layout, made[0], pinned=True)
    assert pins(layout) == {made[0]}
    run(layout, keep_last=1)
    assert all(layout.has(digest) for digest in layout.reachable(layout.resolve(made[0])))  # type: ignore[arg-type]


def test_a_dry_run_takes_nothing_and_tells_the_truth(layout: Layout) -> None:
    versions(layout, 4)
    before = set(layout.digests())
    said = run(layout, keep_last=1, dry_run=True)
    assert set(layout.digests()) == before
    assert len(layout.tags()) == 4
    assert run(layout, keep_last=1) == said


def test_what_a_build_has_just_written_stays(layout: Layout) -> None:
    versions(layout, 2)
    layer = layout.add_bytes(b"a layer of a build that is not tagged yet", LAYER_GZIP)
    os.utime(layout.blob_path(layer.digest), (NOW - 60, NOW - 60))
    run(layout, keep_last=1)
    assert layout.has(layer.digest)
    # A layer of old that a build needs again is as good as new once it was looked up.
    age(layout, 9, {layer.digest})
    layout.touch(layer.digest)
    os.utime(layout.blob_path(layer.digest), (NOW - 1, NOW - 1))
    run(layout, keep_last=1)
    assert layout.has(layer.digest)
    age(layout, 9, {layer.digest})
    assert run(layout, keep_last=1).blobs == 1
    assert not layout.has(layer.digest)


def test_what_is_attached_goes_with_its_image(layout: Layout) -> None:
    versions(layout, 2)
    old, new = layout.tags()["acme/digits:0"], layout.tags()["acme/digits:1"]
    materials = Materials("digits", "2024-01-02T03:04:05Z", "numpy==1.26.4", "3.11")
    bills = [attach_sbom(layout, image, materials) for image in (old, new)]
    age(layout, 3, {digest for bill in bills for digest in layout.reachable(bill)})
    run(layout, keep_last=1)
    assert layout.subjects() == {new.digest}
    assert not layout.has(bills[0].digest)
    assert all(layout.has(digest) for digest in layout.reachable(bills[1]))


def test_what_a_killed_writer_left_is_taken(layout: Layout) -> None:
    versions(layout, 1)
    left = layout.root / "ingest" / "blob-left"
    left.write_bytes(b"x" * 1000)
    os.utime(left, (NOW - DAY, NOW - DAY))
    fresh = layout.root / "ingest" / "blob-fresh"
    fresh.write_bytes(b"x")
    os.utime(fresh, (NOW, NOW))
    assert run(layout).freed == 1000
    assert (left.exists(), fresh.exists()) == (False, True)


def test_an_empty_store_is_left_as_it_is(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "nothing")
    assert run(layout) == Collected((), (), 0, 0)
    assert not layout.root.exists()


def test_the_list_tells_sizes_and_what_is_shared(layout: Layout) -> None:
    first = make_image(layout, "acme/a:1", content=b"same")
    make_image(layout, "acme/b:1", content=b"same", platforms=("linux/amd64",))
    make_image(layout, "acme/c:1", content=b"other")
    a, b, c = list_images(layout, in_use={first.digest})
    assert a.platforms == ("linux/amd64", "linux/arm64")
    assert a.created == "2024-01-02T03:04:05Z"
    assert (a.in_use, b.in_use) == (True, False)
    # b is a's amd64 part: all but its index is shared.
    index = layout.blob_path(b.digest).stat().st_size
    assert b.shared == b.size - index
    assert 0 < a.shared < a.size
    assert c.shared == 0


def test_the_commands(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    subprocess.run(["git", "init", "-q", "-b", "main", str(repo)], check=True)
    layout = Layout(repo / ".flops" / "images")
    versions(layout, 3)
    where = ["--repo", str(repo)]
    shown = CliRunner().invoke(app, ["images", "-o", "json", *where])
    assert shown.exit_code == 0, shown.output
    assert "acme/digits:2" in shown.output
    assert CliRunner().invoke(app, ["images", "--pin", "acme/digits:0", *where]).exit_code == 0
    for path in layout.root.glob("blobs/sha256/*"):
        os.utime(path, (1, 1))
    said = CliRunner().invoke(app, ["gc", "--keep", "1", "--dry-run", *where])
    assert "would remove acme/digits:" in said.output
    done = CliRunner().invoke(app, ["gc", "--keep", "1", *where])
    assert done.exit_code == 0, done.output
    assert "acme/digits:0" in layout.tags()
    assert len(layout.tags()) == 2


def test_a_collection_while_images_are_made_never_breaks_one(layout: Layout) -> None:
    """Without any grace period a build may be told to try again; what has a tag is whole at every moment."""
    make_image(layout, "acme/digits:first")
    stop = threading.Event()
    problems: list[str] = []

    def sweep() -> None:
        while not stop.wait(0.1):  # the lock is not fair: who asks without a pause keeps the others out
            collect(layout, keep_last=2, grace=-60)

    def look() -> None:
        while not stop.wait(0.1):
            # Under the lock nothing moves: what the index names must be there.
            with layout.lock():
                for name, image in layout.tags().items():
                    problems.extend(f"{name} lacks {digest}" for digest in layout.reachable(image) if not layout.has(digest))

    threads = [threading.Thread(target=work) for work in (sweep, sweep, look)]
    for thread in threads:
        thread.start()
    made = again = 0
    try:
        for number in range(30):
            try:
                make_image(layout, f"acme/p{number % 3}:{number}", content=b"%d" % number)
                made += 1
            except ImageError as error:
                again += (error.code, error.transient) == ("FL6106", True)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert problems == []
    assert made + again == 30
    # With its grace period, no build is disturbed.
    for number in range(10):
        make_image(layout, f"acme/q:{number}", content=b"q%d" % number)
        collect(layout, keep_last=1)
    assert {f"acme/q:{number}" for number in range(10)} <= set(layout.tags())
