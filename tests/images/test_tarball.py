"""Layers: the same entries, the same bytes; both digests of one pass; nothing but what was looked at."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.tarball import BLOCK, EPOCH, Entry, Layer, write_layer


def read(layout: Layout, layer: Layer) -> tarfile.TarFile:
    data = layout.blob_path(layer.descriptor.digest).read_bytes()
    gzipped = layer.descriptor.media_type.endswith("gzip")
    tar = gzip.decompress(data) if gzipped else zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert f"sha256:{hashlib.sha256(tar).hexdigest()}" == layer.diff_id
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer.descriptor.digest
    assert (len(tar), len(data)) == (layer.size, layer.descriptor.size)
    return tarfile.open(fileobj=io.BytesIO(tar))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_layer_is_a_tar_with_fixed_owner_time_and_modes(layout: Layout, tmp_path: Path, compression: str) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(3 * BLOCK + 17))
    big.chmod(0o600)
    entries = [
        Entry("b/big", big.stat().st_size, big),
        Entry("a", 1, b"x", executable=True),
        Entry("c/link", 0, link="../a"),
        Entry("tmp/", 0, mode=0o1777),
        Entry("d" * 300 + "/ü", 0),
    ]
    tar = read(layout, write_layer(layout, "t", entries, compression))
    found = {member.name: member for member in tar}
    assert list(found) == ["a", "b", "b/big", "c", "c/link", "d" * 300, "d" * 300 + "/ü", "tmp"]
    assert {member.mtime for member in found.values()} == {EPOCH}
    assert {(member.uid, member.gid, member.uname, member.gname) for member in found.values()} == {(0, 0, "", "")}
    assert [found[name].mode for name in ("a", "b", "b/big", "tmp")] == [0o755, 0o755, 0o644, 0o1777]
    assert found["c/link"].linkname == "../a"
    file = tar.extractfile("b/big")
    assert file is not None
    assert file.read() == big.read_bytes()


def test_the_same_entries_give_the_same_bytes(layout: Layout, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"content" * 300_000)
    os.utime(two, (1, 1))
    first = write_layer(layout, "t", [Entry("x", one.stat().st_size, one), Entry("y", 1, b"y")])
    second = write_layer(Layout(tmp_path / "other"), "t", [Entry("y", 1, b"y"), Entry("x", two.stat().st_size, two)])
    assert (first.descriptor, first.diff_id) == (second.descriptor, second.diff_id)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,3}", fullmatch=True), st.binary(max_size=2000), max_size=12))
def test_every_file_comes_out_as_it_went_in(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    files = {name: data for name, data in files.items() if not any(other.startswith(f"{name}/") for other in files)}
    layout = Layout(tmp_path_factory.mktemp("store"))
    tar = read(layout, write_layer(layout, "t", [Entry(name, len(data), data) for name, data in files.items()]))
    found = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
    assert {name: file.read() for name, file in found.items() if file} == files
    names = [member.name for member in tar]
    assert all(str(Path(name).parent) in [*names[:index], "."] for index, name in enumerate(names))


@pytest.mark.parametrize("change", ["longer", "shorter", "gone", "link", "pipe"])
def test_a_file_that_is_not_what_it_was_is_refused(layout: Layout, tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    entry = Entry("file", 4, path)
    if change in {"longer", "shorter"}:
        path.write_bytes(b"12345" if change == "longer" else b"1")
    else:
        path.unlink()
        if change == "link":
            path.symlink_to("/etc/passwd")
        elif change == "pipe":
            os.mkfifo(path)
    with pytest.raises(ImageError) as refused:
        write_layer(layout, "t", [entry])
    assert refused.value.code == "FL6115"
    assert list(layout.digests()) == []
