"""The same images by a real engine: `docker build` with BuildKit against the assembler, in one run on one machine.

Run: `eval "$(ci/engine.sh start)"; python -m bench.buildkit [--platform linux/arm64]`

Both stand on the same base, install the same lock with the same uv from the same warm download cache, and add the same files.
With `--platform linux/arm64` BuildKit runs under QEMU, if the kernel knows how; the assembler never does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uv

from bench.images import ML_REPO, SAVE, Bench
from reconciler.engine import cache_directory
from reconciler.environments import EnvironmentStore
from reconciler.images.interpreter import host_platform
from reconciler.images.model import Platform
from reconciler.runtime_version import mlruntime_dir

BASE = "flops-bench-base"
DOCKERFILE = """FROM {base}
COPY uv /usr/local/bin/uv
COPY requirements.txt /requirements.txt
RUN --mount=type=cache,target=/root/.cache/uv --mount=type=secret,id=ca,target=/ca.pem \\
    SSL_CERT_FILE=/ca.pem UV_LINK_MODE=copy uv pip install --quiet --python /usr/bin/python3 --target /opt/flops/site --no-deps \\
    --require-hashes --only-binary :all: -r /requirements.txt
COPY runtime /opt/flops/runtime
COPY content /{folder}
ENV PYTHONPATH=/opt/flops/site:/opt/flops/runtime
USER 65532
"""


def main() -> None:
    """Measure and print both, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--platform", default=str(host_platform()))
    platform = Platform.parse(parser.parse_args().platform)
    cache_directory().mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(dir=cache_directory(), prefix="bench-buildkit-"))
    try:
        _measure(root, platform)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _measure(root: Path, platform: Platform) -> None:
    environments = EnvironmentStore(cache_directory() / "environments")
    lock = environments.lock(ML_REPO, flavor="sklearn")
    model = root / "model"
    subprocess.run([environments.ensure(lock).python, "-c", SAVE, model, "1"], check=True, capture_output=True)
    repo, changed = root / "repo", root / "changed"
    shutil.copytree(ML_REPO, repo)
    shutil.copytree(ML_REPO, changed)
    (changed / "model_manager.py").write_text((repo / "model_manager.py").read_text() + "# changed\n")
    base = f"{BASE}:{platform.architecture}"
    rootfs = Path(os.environ["FLOPS_BASE_ROOTFS"]) / f"{platform.architecture}.tar"
    _docker("import", "--platform", str(platform), str(rootfs), base)
    contexts = {kind: root / f"context-{kind}" for kind in ("learner", "aggregator", "inference")}
    for kind, context in contexts.items():
        context.mkdir()
        shutil.copy(uv.find_uv_bin(), context / "uv")
        (context / "requirements.txt").write_text(lock.requirements)
        shutil.copytree(mlruntime_dir(), context / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
        folder = "model" if kind == "inference" else "ml_repo"
        (context / "Dockerfile").write_text(DOCKERFILE.format(base=base, folder=folder))

    def build(content: Path, *options: str) -> None:
        for kind, context in contexts.items():
            shutil.rmtree(context / "content", ignore_errors=True)
            shutil.copytree(model if kind == "inference" else content, context / "content")
            authorities = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
            _docker(
                "build", "--quiet", "--network", "host", "--platform", str(platform), "--secret", f"id=ca,src={authorities}",
                "--tag", f"flops-bench-{kind}", *options, str(context),
            )  # fmt: skip
            options = ()  # the images after the first share its dependency layer

    bench = Bench(root / "ours", lock, f"docker-daemon:{base}", [platform])
    build(repo)  # fills BuildKit's download cache, as uv's is filled here
    bench.images(repo, model, "warm")
    rows = []
    for name, theirs, ours in (
        ("three images, downloads cached", lambda: build(repo, "--no-cache"), lambda: _fresh(bench, repo, model)),
        ("three images, only the code changed", lambda: build(changed), lambda: bench.images(changed, model, "a")),
    ):
        rows.append((name, _timed(theirs), _timed(ours)))
    for name, engine, assembler in rows:
        print(f"{name:40} BuildKit {engine:7.2f} s   ours {assembler:6.2f} s   {engine / assembler:5.1f} times", flush=True)


def _fresh(bench: Bench, repo: Path, model: Path) -> None:
    shutil.rmtree(bench.records.root)
    shutil.rmtree(bench.layout.root)
    bench.images(repo, model, "a")


def _docker(*arguments: str) -> None:
    """Debian's client, which has BuildKit."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    subprocess.run([os.environ["FLOPS_DOCKER"], *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
