"""Images from end to end in the store: what is in them, that they are the same every time, and what is refused before."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import ImageError
from reconciler.images.assemble import BuiltImage, ImageRequest, build_image
from reconciler.images.interpreter import host_platform
from reconciler.images.layout import Layout
from reconciler.images.model import CONFIG, INDEX, LAYER_GZIP, MANIFEST, Platform
from reconciler.images.records import Records
from reconciler.spec import default_plan
from tests.images.imagekit import tar_of
from tests.images.wheelkit import AMD64, ARM64, BOTH, Wheels, lock_of

CREATED = 1_700_000_000
STATUS = b"Package: libgomp1\nStatus: install ok installed\nVersion: 12\n\nPackage: gone\nStatus: deinstall ok config-files\n"
LIBC = b"\0GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n\0"
ROOT = {
    "usr/bin/python3.11": b"\x7fELF",
    "usr/local/bin/python3.12": b"\x7fELF",
    "lib/x86_64-linux-gnu/libc.so.6": LIBC,
    "var/lib/dpkg/status": STATUS,
}


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheels:
    return Wheels(tmp_path / "wheels", monkeypatch)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """An ML repo with all that might be taken for configuration of ours."""
    folder = tmp_path / "repo"
    (folder / "sub").mkdir(parents=True)
    for name in ("model_manager.py", "data_manager.py", "sub/x.py", "sitecustomize.py", "pip.conf", "uv.toml", "run.pyc"):
        (folder / name).write_text(f"# {name}\n")
    return folder


class Kit:
    """Builds below one root; another one shares nothing with it."""

    def __init__(self, root: Path, base: str, request: ImageRequest) -> None:
        self.layout = Layout(root / "store")
        self.records = Records(root / "records", self.layout)
        self.request = replace(request, plan=request.plan.model_copy(update={"base_image": base}))
        self.told: list[str] = []

    def build(self, **changes: Any) -> BuiltImage:
        plan = self.request.plan.model_copy(update=changes.pop("plan", {}))
        return build_image(replace(self.request, plan=plan, **changes), self.layout, self.records, tell=self.told.append)

    def refused(self, **changes: Any) -> ImageError:
        with pytest.raises(ImageError) as raised:
            self.build(name="refused:1", **changes)
        assert self.layout.tags() == {}
        return raised.value

    def config(self, built: BuiltImage, platform: str = "linux/amd64") -> dict[str, Any]:
        manifest = self.layout.read_json(built.manifests[platform].digest)
        return self.layout.read_json(manifest["config"]["digest"])

    def files(self, built: BuiltImage, platform: str = "linux/amd64") -> dict[str, bytes | str]:
        """All files of our layers, links by their target."""
        found: dict[str, bytes | str] = {}
        for layer in built.layers[platform]:
            data = gzip.decompress(self.layout.blob_path(layer.descriptor.digest).read_bytes())
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isfile() else None
                    if file or member.issym():
                        found[member.name] = file.read() if file else member.linkname
        return found


def base_of(root: Path, files: dict[str, bytes] = ROOT, above: dict[str, bytes] | None = None, env: tuple[str, ...] = ()) -> str:
    """A base image for both platforms in a layout on disk."""
    layout = Layout(root)
    manifests = []
    for platform in (AMD64, ARM64):
        tars = [tar_of({**files, "platform": str(platform).encode()}), *([tar_of(above)] if above else [])]
        layers = [layout.add_bytes(gzip.compress(tar, 1, mtime=0), LAYER_GZIP) for tar in tars]
        config = {
            **platform.to_dict(),
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin", *env], "Entrypoint": ["/base"], "Labels": {"base": "yes"}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
        }
        described = layout.add_json(config, CONFIG).to_dict()
        content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [layer.to_dict() for layer in layers]}
        manifests.append(layout.add_json(content, MANIFEST, platform=platform).to_dict())
    layout.tag("1", layout.add_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX))
    return f"oci:{root}:1"


Make = Callable[..., Kit]


@pytest.fixture
def make(tmp_path: Path, wheels: Wheels, repo: Path) -> Make:
    lock = lock_of(wheels.add("native", {"native.so": "x"}, tags=BOTH), wheels.add("pure", {"pure.py": ""}))
    source = ("https://example.invalid/repo", "c" * 40, "d" * 64)
    request = ImageRequest(default_plan("learner"), lock, (AMD64, ARM64), repo, CREATED, *source)

    def make(base: str = "", name: str = "one") -> Kit:
        return Kit(tmp_path / name, base or base_of(tmp_path / "base"), request)

    return make


def test_an_image_has_dependencies_runtime_and_code(make: Make) -> None:
    kit = make()
    built = kit.build(name="acme/digits-learner:1")
    assert kit.layout.tags() == {"acme/digits-learner:1": built.index}
    files = kit.files(built)
    assert files["opt/flops/site/pure.py"] == b""
    assert b"serve" in files["opt/flops/runtime/flops_runtime/serve.py"]  # type: ignore[operator]
    assert files["ml_repo/sub/x.py"] == b"# sub/x.py\n"
    assert files["opt/flops/bin/python"] == "/usr/bin/python3.11"
    assert not [name for name in files if name.endswith(".pyc")]
    assert [layer.title for layer in built.layers["linux/amd64"]][-1] == "ML repo"
    config = kit.config(built)
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == ["python", "-m", "flops_runtime"]
    assert config["created"] == "2023-11-14T22:13:20Z"
    assert config["config"]["Labels"]["base"] == "yes"
    assert config["config"]["Labels"]["org.opencontainers.image.revision"] == "c" * 40
    environment = dict(item.split("=", 1) for item in config["config"]["Env"])
    assert environment["PATH"] == "/opt/flops/bin:/opt/flops/site/bin:/usr/local/bin:/usr/bin"
    assert "ml_repo" not in environment["PYTHONPATH"]  # so that its sitecustomize.py is not run before anything else
    assert config["config"]["WorkingDir"] == "/opt/flops"
    assert len(config["rootfs"]["diff_ids"]) == len(config["history"])


def test_both_platforms_are_in_one_index(make: Make) -> None:
    kit = make()
    built = kit.build()
    index = kit.layout.read_json(built.index.digest)
    assert [item["platform"] for item in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"}, {"architecture": "arm64", "os": "linux"},
    ]  # fmt: skip
    assert index["annotations"]["org.opencontainers.image.source"] == "https://example.invalid/repo"
    one, two = built.layers["linux/amd64"], built.layers["linux/arm64"]
    assert one[0].descriptor != two[0].descriptor
    assert [layer.descriptor for layer in one[1:]] == [layer.descriptor for layer in two[1:]]
    assert set(built.bases) == {"linux/amd64", "linux/arm64"}


def test_the_same_request_gives_the_same_digest(make: Make, repo: Path) -> None:
    first = make(name="one").build()
    (repo / "model_manager.py").touch()
    (repo / "model_manager.py").chmod(0o640)
    assert make(name="two").build().index == first.index


def test_what_changes_the_image_and_what_it_leaves_alone(make: Make, repo: Path) -> None:
    kit = make()
    first = kit.build()
    (repo / "model_manager.py").write_text("# another\n")
    second = kit.build()
    assert second.index != first.index
    layers = list(zip(first.layers["linux/amd64"], second.layers["linux/amd64"], strict=True))
    assert [one.descriptor == two.descriptor for one, two in layers] == [True, True, False]
    other = {
        kit.build(plan={"user": "1000"}).index.digest,
        kit.build(plan={"environment": {"A": "1"}}).index.digest,
        kit.build(plan={"compression": "zstd"}).index.digest,
        kit.build(platforms=(AMD64,)).index.digest,
        kit.build(revision="e" * 40).index.digest,
        second.index.digest,
    }
    assert len(other) == 6


def test_all_kinds_of_images_share_their_dependencies(make: Make, tmp_path: Path) -> None:
    kit = make()
    learner = kit.build()
    model = tmp_path / "model"
    (model / "flops").mkdir(parents=True)
    (model / "MLmodel").write_text("flavors: {}\n")
    (model / "flops" / "samples.npz").write_bytes(b"held out")
    plan = default_plan("inference").model_copy(update={"base_image": kit.request.plan.base_image})
    kit.request = replace(kit.request, plan=plan, content=model)
    inference = kit.build()
    shared = list(zip(learner.layers["linux/amd64"], inference.layers["linux/amd64"], strict=True))
    assert [one.descriptor == two.descriptor for one, two in shared] == [True, True, False]
    files = kit.files(inference)
    assert files["model/MLmodel"] == b"flavors: {}\n"
    assert "model/flops/samples.npz" not in files
    config = kit.config(inference)["config"]
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Entrypoint"][:3] == ["python", "-m", "flops_runtime.serve"]


def test_scratch_has_this_machines_python(make: Make) -> None:
    kit = make("scratch")
    built = kit.build(platforms=(host_platform(),))
    platform = str(host_platform())
    files = kit.files(built, platform)
    assert files["opt/flops/bin/python"] == "/usr/local/bin/python3.11"
    assert "usr/local/lib/python3.11/json/__init__.py" in files
    assert files["usr/local/lib/libc.so.6"]
    assert not [name for name in files if "site-packages" in name or name.endswith(".pyc")]
    again = make("scratch", "two").build(platforms=(host_platform(),))
    assert again.index == built.index


def test_scratch_is_for_this_machines_platform_alone(make: Make) -> None:
    assert make("scratch").refused().code == "FL6125"
    assert make("scratch").refused(platforms=(host_platform(),), plan={"debian_packages": ["libgomp1"]}).code == "FL6121"


def test_a_base_without_the_python_of_the_lock(make: Make, tmp_path: Path) -> None:
    error = make(base_of(tmp_path / "b", {"usr/bin/python3.9": b"", "lib/libc.so.6": LIBC})).refused()
    assert error.code == "FL6120"
    assert "it has 3.9" in error.cause


def test_an_interpreter_that_a_layer_removed_does_not_count(make: Make, tmp_path: Path) -> None:
    assert make(base_of(tmp_path / "b", ROOT, {"usr/bin/.wh.python3.11": b""})).refused().code == "FL6120"
    assert make(base_of(tmp_path / "c", ROOT, {"usr/.wh..wh..opq": b""})).refused().code == "FL6120"


def test_a_base_with_musl(make: Make, tmp_path: Path) -> None:
    root = {"usr/bin/python3.11": b"", "lib/ld-musl-x86_64.so.1": b""}
    assert make(base_of(tmp_path / "b", root)).refused().code == "FL6122"


def test_debian_packages_are_those_of_the_base(make: Make) -> None:
    make().build(plan={"debian_packages": ["libgomp1"]})
    error = make(name="two").refused(plan={"debian_packages": ["libgomp1", "gone", "ffmpeg"]})
    assert error.code == "FL6121"
    assert "ffmpeg, gone" in error.cause


def test_the_wheels_fit_the_c_library_of_the_base(make: Make, tmp_path: Path, wheels: Wheels) -> None:
    new = lock_of(wheels.add("new", {"new.so": ""}, tags=["manylinux_2_34_x86_64", "manylinux_2_34_aarch64"]))
    make().build(lock=new)
    old = {**ROOT, "lib/x86_64-linux-gnu/libc.so.6": LIBC.replace(b"2.36", b"2.31")}
    error = make(base_of(tmp_path / "b", old), "two").refused(lock=new)
    assert error.code == "FL6110"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"plan": {"python_version": "3.12"}}, "FL6123"),
        ({"plan": {"platforms": ["linux/amd64"]}}, "FL6124"),
        ({"platforms": (Platform("linux", "riscv64"),)}, "FL6124"),
        ({"platforms": ()}, "FL6124"),
        ({"platforms": (AMD64, AMD64)}, "FL6124"),
        ({"content": Path("/nonexistent")}, "FL6115"),
    ],
)
def test_what_cannot_be_asked_for(make: Make, changes: dict[str, Any], code: str) -> None:
    assert make().refused(**changes).code == code


def test_a_malicious_ml_repo_gives_no_image(make: Make, repo: Path) -> None:
    (repo / "passwd").symlink_to("/etc/passwd")
    assert make().refused().code == "FL6113"
    (repo / "passwd").unlink()
    with (repo / "sparse").open("wb") as file:
        file.truncate(10 * 1024**3)
    assert make().refused().code == "FL6114"


def test_a_missing_wheel_publishes_nothing(make: Make, wheels: Wheels) -> None:
    error = make().refused(lock=lock_of(wheels.add("half", {"half.py": ""}, tags=BOTH[:1])))
    assert error.code == "FL6110"
    assert "linux/arm64 of half 1.0" in error.cause


def test_damaged_base_layers_are_told(make: Make, tmp_path: Path) -> None:
    base = base_of(tmp_path / "b")
    layout = Layout(tmp_path / "b")
    layer = next(digest for digest in layout.digests() if layout.blob_path(digest).read_bytes()[:2] == b"\x1f\x8b")
    layout.blob_path(layer).write_bytes(b"\x1f\x8b\x08\x00 damaged")
    assert make(base).refused().code in {"FL6104", "FL6107", "FL6122"}
