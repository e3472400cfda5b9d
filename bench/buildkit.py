"""The same images by a real engine: `docker build` with BuildKit against the assembler, in one run on one machine.

Run: `eval "$(ci/engine.sh start)"; python -m bench.buildkit [--ways pip,uv,uv-warm] [--platform linux/arm64 --ways pip]`

Both stand on the same base, which both have at hand, install the same lock and add the same files. Three ends: all three images are
*made*, each in its maker's own store (BuildKit's is the engine's); they are *in the engine*, ready to run; they are *in a registry*
of this machine. Ways to write a Dockerfile:

* `pip`: `pip install -r requirements.txt`, as the documentation of Docker and of most projects has it; nothing cached before.
* `uv`: the same with uv in the image, nothing cached before.
* `uv-warm`: uv with a cache mount that has all wheels, against ours with uv's cache here; neither has a layer.

BuildKit's second and third image share the dependency layer of its first. With `--platform linux/arm64` BuildKit runs under QEMU,
if the kernel knows how; the assembler never does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import pip
import uv

from bench.images import ML_REPO, SAVE, Bench
from reconciler.engine import cache_directory
from reconciler.environments import EnvironmentStore
from reconciler.images.engine import PREFIX, into_engine
from reconciler.images.interpreter import host_platform
from reconciler.images.model import Platform
from reconciler.images.push import push
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.runtime_version import mlruntime_dir
from tests.engine import BASE as LAYOUT_BASE
from tests.engine import RunningRegistry, layout_of

BASE = "flops-bench-base"
KINDS = ("learner", "aggregator", "inference")
_UV = (
    "SSL_CERT_FILE=/ca.pem UV_LINK_MODE=copy /opt/uv pip install --quiet --python /usr/bin/python3 --target /opt/flops/site "
    "--no-deps --require-hashes --only-binary :all: -r /requirements.txt"
)
WAYS = {
    "pip": "--mount=type=secret,id=ca,target=/ca.pem \\\n    PYTHONPATH=/opt/pip PIP_CERT=/ca.pem python3 -m pip install --quiet "
    "--no-cache-dir --break-system-packages -r /requirements.txt",
    "uv": f"--mount=type=secret,id=ca,target=/ca.pem \\\n    UV_NO_CACHE=1 {_UV}",
    "uv-warm": f"--mount=type=cache,target=/root/.cache/uv --mount=type=secret,id=ca,target=/ca.pem \\\n    {_UV}",
}
DOCKERFILE = """FROM {base}
COPY tools /opt/
COPY requirements.txt /requirements.txt
RUN {install}
COPY runtime /opt/flops/runtime
COPY content /{folder}
ENV PYTHONPATH=/opt/flops/site:/opt/flops/runtime
USER 65532
"""


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds until all images are made, are in the engine, and are in a registry; all from the same start."""

    made: float
    engine: float
    registry: float


class Theirs:
    """`docker build` and `docker push`, by Debian's client, which has BuildKit."""

    def __init__(self, root: Path, way: str, base: str, platform: Platform, requirements: str, registry: str) -> None:
        self._root, self._platform, self._registry = root / way, platform, registry
        for kind in KINDS:
            context = self._root / kind
            (context / "tools").mkdir(parents=True)
            if way == "pip":
                # A user's base image has pip; this one is small.
                shutil.copytree(Path(pip.__file__).parent, context / "tools" / "pip" / "pip")
            else:
                shutil.copy(uv.find_uv_bin(), context / "tools" / "uv")
            (context / "requirements.txt").write_text(requirements)
            shutil.copytree(mlruntime_dir(), context / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
            text = DOCKERFILE.format(base=base, install=WAYS[way], folder="model" if kind == "inference" else "ml_repo")
            (context / "Dockerfile").write_text(text)

    def measure(self, repo: Path, model: Path, *, cold: bool = False) -> Took:
        """One change of a user: build all, then push all."""
        built = _timed(lambda: self.build(repo, model, cold=cold))
        return Took(built, built, built + _timed(self._push))

    def build(self, repo: Path, model: Path, *, cold: bool = False) -> None:
        """All three into the engine's store."""
        for kind in KINDS:
            content = self._root / kind / "content"
            shutil.rmtree(content, ignore_errors=True)
            shutil.copytree(model if kind == "inference" else repo, content)
        self._build(cold)

    def _build(self, cold: bool) -> None:
        authorities = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
        for kind in KINDS:
            _docker(
                "build", "--quiet", "--network", "host", "--platform", str(self._platform), "--secret", f"id=ca,src={authorities}",
                "--tag", self._name(kind), *(["--no-cache"] if cold and kind == KINDS[0] else []), str(self._root / kind),
            )  # fmt: skip

    def _push(self) -> None:
        for kind in KINDS:
            _docker("push", "--quiet", self._name(kind))

    def _name(self, kind: str) -> str:
        return f"{self._registry}/theirs/{kind}:1"


class Ours:
    """The assembler, then the engine or a registry."""

    def __init__(self, root: Path, bench: Bench, platform: Platform, registry: str, client: docker.DockerClient) -> None:
        self._root, self._bench, self._platform, self._registry, self._client = root, bench, platform, registry, client

    def measure(self, repo: Path, model: Path) -> Took:
        """One change of a user: assemble all, then into the engine and into the registry, which are two different ends."""
        made = _timed(lambda: self._bench.images(repo, model, "a"))
        return Took(made, made + _timed(self._place), made + _timed(self._push))

    def forget(self, *, downloads: bool) -> None:
        """As on the first day; with `downloads`, wheels have to be fetched too."""
        for path in (self._bench.records.root, self._bench.layout.root):
            shutil.rmtree(path, ignore_errors=True)
        for kind in KINDS:
            with suppress(docker.errors.ImageNotFound):
                self._client.images.remove(f"{PREFIX}bench/demo/a-{kind}:1", force=True)
        self._client.images.prune()
        os.environ.pop("UV_CACHE_DIR", None)
        if downloads:
            os.environ["UV_CACHE_DIR"] = tempfile.mkdtemp(dir=self._root, prefix="uv-")

    def _place(self) -> None:
        for kind in KINDS:
            into_engine(
                self._client, self._bench.layout, f"demo/a-{kind}:1", self._platform, owner="bench", tell=lambda _line: None
            )

    def _push(self) -> None:
        with Registry(self._registry) as registry:
            for kind in KINDS:
                index = self._bench.layout.tags()[f"demo/a-{kind}:1"]
                push(self._bench.layout, index, Reference.parse(f"{self._registry}/ours/{kind}:1"), registry=registry)


def main() -> None:
    """Measure and print all of it, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default=str(host_platform()))
    parser.add_argument("--ways", default="pip,uv,uv-warm")
    options = parser.parse_args()
    cache_directory().mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(dir=cache_directory(), prefix="bench-buildkit-"))
    try:
        _measure(root, Platform.parse(options.platform), options.ways.split(","))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _measure(root: Path, platform: Platform, ways: list[str]) -> None:
    environments = EnvironmentStore(cache_directory() / "environments")
    lock = environments.lock(ML_REPO, flavor="sklearn")
    model = root / "model"
    subprocess.run([environments.ensure(lock).python, "-c", SAVE, model, "1"], check=True, capture_output=True)
    folder = Path(os.environ["FLOPS_BASE_ROOTFS"])
    base = f"{BASE}:{platform.architecture}"
    _docker("build", "--quiet", "--platform", str(platform), "--tag", base, str(_base_context(root, folder, platform)))
    client = docker.from_env(timeout=600)
    bench = Bench(root / "ours", lock, f"oci:{layout_of(folder)}:{LAYOUT_BASE}", [platform])
    for way in ways:
        with _registries(root / "registries" / way) as (first, second):
            ours = Ours(root, bench, platform, second, client)
            theirs = Theirs(root, way, base, platform, lock.requirements, first)
            if way == "uv-warm":  # fills BuildKit's download cache, as uv's is filled here
                theirs.build(ML_REPO, model, cold=True)
            repo = _changed(root, f"{way}-1")
            _line(f"{way}: first images", theirs.measure(repo, model, cold=True), _cold(ours, repo, model, way != "uv-warm"))
            for number in ("2", "3", "4"):
                repo = _changed(root, f"{way}-{number}")
                _line(f"{way}: code changed", theirs.measure(repo, model), ours.measure(repo, model))


def _cold(ours: Ours, repo: Path, model: Path, downloads: bool) -> Took:
    ours.forget(downloads=downloads)
    return ours.measure(repo, model)


def _line(name: str, theirs: Took, ours: Took) -> None:
    shown = "   ".join(
        f"{end}: BuildKit {his:6.2f} s  ours {own:5.2f} s  {his / own:5.1f} times"
        for end, his, own in (
            ("made", theirs.made, ours.made),
            ("in the engine", theirs.engine, ours.engine),
            ("in the registry", theirs.registry, ours.registry),
        )
    )
    print(f"{name:24} {shown}   load {os.getloadavg()[0]:.1f}", flush=True)


def _changed(root: Path, number: str) -> Path:
    """The ML repo with another line of code."""
    repo = root / f"repo-{number}"
    shutil.copytree(ML_REPO, repo)
    with (repo / "model_manager.py").open("a") as file:
        file.write(f"# change {number}\n")
    return repo


def _base_context(root: Path, folder: Path, platform: Platform) -> Path:
    """`docker import` of this engine knows no platform; ADD unpacks the same files."""
    context = root / "base"
    context.mkdir()
    os.link(folder / f"{platform.architecture}.tar", context / "root.tar")
    (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
    return context


@contextmanager
def _registries(root: Path) -> Iterator[tuple[str, str]]:
    """Two that have nothing: so neither finds layers that the other pushed."""
    running = [RunningRegistry(root / name) for name in ("theirs", "ours")]
    try:
        yield running[0].host, running[1].host
    finally:
        for each in running:
            each.stop()


def _docker(*arguments: str) -> None:
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    subprocess.run([os.environ["FLOPS_DOCKER"], *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
