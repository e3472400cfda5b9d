"""What images cost: cold and warm, for one platform and for two, and when only the code or only the model changed.

Run: `python -m bench.images [--base oci:DIRECTORY:TAG] [--platforms linux/amd64,linux/arm64] [--cold-downloads]`

Each line is one step of a user: all three images of the base case. Beside the seconds stand CPU seconds, which say more
on a machine that others use as well, and what the step left on the disk. `--cold-downloads` gives uv an empty cache: the first
line then has the download in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from reconciler.engine import cache_directory
from reconciler.environments import EnvironmentStore, Lock
from reconciler.images.assemble import BuiltImage, ImageRequest, build_image
from reconciler.images.interpreter import host_platform
from reconciler.images.layout import Layout
from reconciler.images.model import Platform
from reconciler.images.records import Records
from reconciler.spec import default_plan

ML_REPO = Path(__file__).parents[1] / "projects" / "mnist-classic" / "ml_repo"
SAVE = """
import sys, mlflow.sklearn, numpy as np
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
inputs = np.random.default_rng(0).random((200, 784), dtype=np.float32)
model = LogisticRegression(max_iter=int(sys.argv[2])).fit(inputs, np.arange(200) % 10)
signature = infer_signature(inputs, model.predict(inputs))
mlflow.sklearn.save_model(model, sys.argv[1], signature=signature, serialization_format="cloudpickle", pip_requirements=[])
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One measured step: wall seconds, CPU seconds of this process and its children, bytes more on the disk."""

    name: str
    seconds: float
    cpu: float
    disk: int


class Bench:
    """A store of its own, so that the first step is cold."""

    def __init__(self, root: Path, lock: Lock, base: str, platforms: Sequence[Platform]) -> None:
        self.root, self.lock, self.base, self.platforms = root, lock, base, tuple(platforms)
        self.layout = Layout(root / "store")
        self.records = Records(root / "records", self.layout)
        self.steps: list[Step] = []

    def images(self, repo: Path, model: Path, project: str) -> dict[str, BuiltImage]:
        """Learner, aggregator and inference image of a project."""
        made = {}
        for kind in ("learner", "aggregator", "inference"):
            plan = default_plan(kind).model_copy(update={"base_image": self.base})
            content = model if kind == "inference" else repo
            request = ImageRequest(plan, self.lock, self.platforms, content, 1_700_000_000, title=project)
            request = replace(request, name=f"demo/{project}-{kind}:1")
            made[kind] = build_image(request, self.layout, self.records, tell=lambda _line: None)
        return made

    def measure(self, name: str, act: Callable[[], object]) -> None:
        """One line of the table."""
        disk, cpu, began = _disk(self.root), _cpu(), time.monotonic()
        act()
        seconds = time.monotonic() - began
        self.steps.append(Step(name, seconds, _cpu() - cpu, _disk(self.root) - disk))
        print(f"{name:42} {seconds:7.2f} s  {self.steps[-1].cpu:6.2f} s CPU  {self.steps[-1].disk / 1e6:+8.2f} MB", flush=True)


def main() -> None:
    """Measure, print a table, and write it as JSON where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="scratch")
    parser.add_argument("--platforms", default=str(host_platform()))
    parser.add_argument("--cold-downloads", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    platforms = [Platform.parse(text) for text in options.platforms.split(",")]
    # Beside the caches of users: uv links files instead of copying them within one file system.
    cache_directory().mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(dir=cache_directory(), prefix="bench-images-"))
    try:
        environments = EnvironmentStore(cache_directory() / "environments")
        lock = environments.lock(ML_REPO, flavor="sklearn")
        python = environments.ensure(lock).python
        for number in ("1", "2"):
            subprocess.run([python, "-c", SAVE, root / f"model{number}", number], check=True, capture_output=True)
        if options.cold_downloads:
            os.environ["UV_CACHE_DIR"] = str(root / "uv")
        bench = Bench(root, lock, options.base, platforms)
        _measure(bench, root)
        if options.json:
            content = {"base": options.base, "platforms": list(map(str, platforms)), "steps": bench.steps}
            options.json.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _measure(bench: Bench, root: Path) -> None:
    repo, changed = root / "repo", root / "changed"
    shutil.copytree(ML_REPO, repo)
    shutil.copytree(ML_REPO, changed)
    with (changed / "model_manager.py").open("a") as file:
        file.write("# changed\n")
    one, two = root / "model1", root / "model2"
    bench.measure("three images, nothing cached", lambda: bench.images(repo, one, "a"))
    bench.measure("three images again", lambda: bench.images(repo, one, "a"))
    bench.measure("three images, only the code changed", lambda: bench.images(changed, one, "a"))
    bench.measure("three images, only the model changed", lambda: bench.images(changed, two, "a"))
    bench.measure("another project, same dependencies", lambda: bench.images(changed, two, "b"))
    shutil.rmtree(bench.records.root)
    shutil.rmtree(bench.layout.root)
    bench.measure("three images, wheels downloaded, no layers", lambda: bench.images(repo, one, "a"))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def _disk(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (root / "store").rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
