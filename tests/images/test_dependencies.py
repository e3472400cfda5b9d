"""Dependency layers: locked wheels for a platform, the same bytes every time, and wheels that mean harm."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from reconciler.errors import ImageError
from reconciler.images.dependencies import Target, packages_of
from reconciler.images.layout import Layout
from reconciler.images.tarball import Layer
from tests.images.wheelkit import AMD64, ARM64, BOTH, Wheels, layers_of, lock_of


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheels:
    return Wheels(tmp_path / "wheels", monkeypatch)


def files(root: Path, layers: list[Layer]) -> dict[str, bytes]:
    """All files of the layers; later ones over earlier ones."""
    found = {}
    for layer in layers:
        data = gzip.decompress(Layout(root / "store").blob_path(layer.descriptor.digest).read_bytes())
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                assert member.isdir() or member.isfile()
                if file := tar.extractfile(member):
                    found[member.name] = file.read()
    return found


def test_the_wheels_of_a_lock_are_in_the_image(tmp_path: Path, wheels: Wheels) -> None:
    lock = lock_of(wheels.add("one", {"one/__init__.py": "1"}), wheels.add("two", {"two.py": "2"}))
    found = files(tmp_path, layers_of(tmp_path, lock))
    assert found["opt/flops/site/one/__init__.py"] == b"1"
    assert found["opt/flops/site/two.py"] == b"2"
    assert not [name for name in found if name.endswith((".pyc", ".lock", "uv_cache.json"))]
    assert b"uv_cache.json" not in found["opt/flops/site/one-1.0.dist-info/RECORD"]


def test_the_same_lock_gives_the_same_layers(tmp_path: Path, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [wheels.add(f"p{number}", {f"p{number}.py": "x" * number, "p.data/x": ""}) for number in range(9)]
    first = layers_of(tmp_path / "a", lock_of(*lines))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "another-cache"))
    second = layers_of(tmp_path / "b", lock_of(*reversed(lines)))
    assert [(layer.descriptor, layer.diff_id) for layer in first] == [(layer.descriptor, layer.diff_id) for layer in second]


def test_layers_are_known_by_their_packages(tmp_path: Path, wheels: Wheels) -> None:
    large = wheels.add("large", {"large.bin": os.urandom(8_100_000)})
    small = wheels.add("small", {"small.py": ""})
    newer = wheels.add("small", {"small.py": "2"}, version="2.0")
    told: list[str] = []
    first = layers_of(tmp_path, lock_of(large, small), told=told)
    assert [layer.title for layer in first] == ["large 1.0", "1 packages"]
    again = layers_of(tmp_path, lock_of(large, small), told=told)
    assert [layer.made for layer in again] == [False, False]
    assert len(told) == 1
    changed = layers_of(tmp_path, lock_of(large, newer), told=told)
    assert [layer.made for layer in changed] == [False, True]
    assert changed[0].descriptor == first[0].descriptor


def test_a_layer_that_was_collected_is_made_again(tmp_path: Path, wheels: Wheels) -> None:
    lock = lock_of(wheels.add("one", {"one.py": "1"}))
    (layer,) = layers_of(tmp_path, lock)
    Layout(tmp_path / "store").delete(layer.descriptor.digest)
    (again,) = layers_of(tmp_path, lock)
    assert again.made
    assert again.descriptor == layer.descriptor


def test_each_platform_gets_its_wheels(tmp_path: Path, wheels: Wheels) -> None:
    lock = lock_of(wheels.add("native", {"native.so": "x"}, tags=BOTH))
    for platform, tag in ((AMD64, BOTH[0]), (ARM64, BOTH[1])):
        found = files(tmp_path, layers_of(tmp_path, lock, platform))
        assert tag.encode() in found["opt/flops/site/native-1.0.dist-info/WHEEL"]


def test_every_package_without_a_wheel_is_named(tmp_path: Path, wheels: Wheels) -> None:
    lines = [wheels.add(name, {f"{name}.py": ""}, tags=BOTH[:1]) for name in ("here", "there")]
    lock = lock_of(*lines, wheels.add("good", {"good.py": ""}))
    assert layers_of(tmp_path, lock)
    with pytest.raises(ImageError) as refused:
        layers_of(tmp_path, lock, ARM64)
    assert refused.value.code == "FL6110"
    assert "linux/arm64 of here 1.0, there 1.0." in refused.value.cause
    assert not refused.value.transient


def test_a_wheel_that_is_not_the_locked_one_is_refused(tmp_path: Path, wheels: Wheels) -> None:
    line = wheels.add("one", {"one.py": "good"})
    wheels.add("one", {"one.py": "evil"})
    with pytest.raises(ImageError) as refused:
        layers_of(tmp_path, lock_of(line))
    assert refused.value.code == "FL6112"
    assert list(Layout(tmp_path / "store").digests()) == []
    assert not list((tmp_path / "records").glob(".wheels-*"))


@pytest.mark.parametrize(
    "name", ["../../escaped.py", "/tmp/flops-escaped.py", "evil-1.0.data/data/../../../../escaped.py", "a/../../escaped.py"]
)
def test_a_wheel_cannot_leave_its_folder(tmp_path: Path, wheels: Wheels, name: str) -> None:
    lock = lock_of(wheels.add("evil", {name: "x", "evil.py": ""}))
    found = files(tmp_path, layers_of(tmp_path, lock))
    assert "opt/flops/site/evil.py" in found
    assert all(path.startswith("opt/flops/site/") and ".." not in path for path in found)
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/flops-escaped.py").exists()


def test_a_link_in_a_wheel_shows_nothing_of_this_machine(tmp_path: Path, wheels: Wheels) -> None:
    lock = lock_of(wheels.add("evil", {"evil.py": ""}, links={"secret": "/etc/passwd"}))
    assert b"root:" not in b"".join(files(tmp_path, layers_of(tmp_path, lock)).values())


def test_a_record_that_lies_takes_nothing_from_others(tmp_path: Path, wheels: Wheels) -> None:
    lying = wheels.add("zlying", {"zlying.py": "z"}, claims=["one.py", "../../../../../../etc/passwd", "/etc/passwd"])
    found = files(tmp_path, layers_of(tmp_path, lock_of(lying, wheels.add("one", {"one.py": "mine"}))))
    assert found["opt/flops/site/one.py"] == b"mine"
    assert not [path for path in found if "passwd" in path]


def test_a_file_of_two_packages_is_that_of_the_later_name(tmp_path: Path, wheels: Wheels) -> None:
    lines = [wheels.add(name, {"tests/__init__.py": name, f"{name}.py": ""}) for name in ("alpha", "beta")]
    for root in ("a", "b", "c"):
        found = files(tmp_path / root, layers_of(tmp_path / root, lock_of(*lines)))
        assert found["opt/flops/site/tests/__init__.py"] == b"beta"
        assert "opt/flops/site/alpha.py" in found


def test_a_file_that_no_record_lists_is_kept(tmp_path: Path, wheels: Wheels) -> None:
    lock = lock_of(wheels.add("one", {"one.py": "", "hidden.py": "x"}, unlisted=["hidden.py"]))
    assert files(tmp_path, layers_of(tmp_path, lock))["opt/flops/site/hidden.py"] == b"x"


def test_scripts_name_the_interpreter_of_the_image(tmp_path: Path, wheels: Wheels) -> None:
    script = {"one-1.0.data/scripts/run": "#!python\nprint(1)\n", "one.py": ""}
    found = files(tmp_path, layers_of(tmp_path, lock_of(wheels.add("one", script))))
    assert found["opt/flops/site/bin/run"] == b"#!/opt/flops/bin/python\nprint(1)\n"
    assert b"bin/run" not in found["opt/flops/site/one-1.0.dist-info/RECORD"]


def test_planted_configuration_is_not_read(tmp_path: Path, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lock_of(
        wheels.add("one", {"one.py": "", "uv.toml": "no-such-key = 1\n", "pip.conf": "[global]\n", "sitecustomize.py": "1/0"})
    )
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "uv.toml").write_text("this is no TOML")
    (planted / "pyproject.toml").write_text("[tool.uv]\nno-such-key = 1\n")
    (planted / "sitecustomize.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(planted)
    monkeypatch.setenv("PYTHONPATH", str(planted))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(planted / "pip.conf"))
    assert files(tmp_path, layers_of(tmp_path, lock))["opt/flops/site/one.py"] == b""


def test_an_index_that_does_not_answer_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    with pytest.raises(ImageError) as refused:
        layers_of(tmp_path, lock_of("one==1.0 --hash=sha256:" + "0" * 64))
    assert refused.value.code == "FL6111"
    assert refused.value.transient


def test_what_a_killed_build_left_is_removed(tmp_path: Path, wheels: Wheels) -> None:
    old, new = tmp_path / "records" / ".wheels-old", tmp_path / "records" / ".wheels-new"
    for folder in (old, new):
        (folder / "site").mkdir(parents=True)
    os.utime(old, (0, 0))
    layers_of(tmp_path, lock_of(wheels.add("one", {"one.py": ""})))
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    "line",
    ["one", "one==1.0", "one>=1 --hash=sha256:" + "0" * 64, "one @ https://example.invalid/one.whl", "-e .", "--index-url x",
     "one==1.0 --hash=md5:1", "../one==1 --hash=sha256:" + "0" * 64],
)  # fmt: skip
def test_a_lock_holds_pins_with_hashes_alone(line: str) -> None:
    with pytest.raises(ImageError) as refused:
        packages_of(lock_of(line))
    assert refused.value.code == "FL6111"


def test_tags_follow_the_c_library_of_the_base() -> None:
    tags = {glibc: Target(AMD64, "3.11", glibc).tag for glibc in (17, 28, 30, 36, 99)}
    assert tags == {
        17: "x86_64-manylinux_2_17",
        28: "x86_64-manylinux_2_28",
        30: "x86_64-manylinux_2_28",
        36: "x86_64-manylinux_2_36",
        99: "x86_64-manylinux_2_40",
    }
