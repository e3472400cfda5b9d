"""A site with one small, real project – an ML repo inside, two learners, a served model – and a controller that is a process."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from reconciler.serving.client import version
from reconciler.statusdoc import condition
from reconciler.tracking import tracking_root
from reconciler.tracking.tags import DIGEST, RECORDED
from tests.conftest import Repos, commit, git
from tests.nodes.kit import REPO, write_rows

PROJECT, CUSTOMER = "blobs", "demo"
FEATURES = 8
SLA = f"""customerID: {CUSTOMER}
ml_repo_url: ./projects/{PROJECT}/ml_repo
ml_model_flavor: sklearn
training_configuration:
  data_tags: [blobs]
  training_rounds: 3
  min_available_clients: 2
  min_fit_clients: 2
  min_evaluate_clients: 2
  seed: {{seed}}
evaluation_gate: {{{{metric: accuracy, threshold: 0.1}}}}
post_training_steps: [build_image_for_trained_model, deploy_trained_model_image]
"""


def until(condition: Callable[[], Any], what: str, seconds: float = 180.0, every: float = 0.05) -> Any:
    """What a condition of the real processes gives once it holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: it did not happen in {seconds:.0f} s")
        time.sleep(every)
    return found


class Site:
    """The repos, the state directory, and what can be observed of them without the reconciler."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.repos = Repos(self.root)
        self.user = self.repos.clone("user")
        self.state = self.root / "state"
        (self.root / "data").mkdir()
        write_rows(self.root / "data" / "rows.parquet", 300, 1)
        ml_repo = self.user / "projects" / PROJECT / "ml_repo"
        shutil.copytree(REPO, ml_repo)
        (ml_repo / "requirements.txt").write_text("scikit-learn\nnumpy\n")
        self.declare(0)
        self.clone = self.repos.clone("reconciler")
        git(self.clone, "checkout", "-q", "main")
        (self.clone / "flops.yaml").write_text(yaml.safe_dump({"data_directories": {"blobs": str(self.root / "data")}}))

    def declare(self, seed: int) -> None:
        """Commit and push the SLA with another seed: another content, or one that was there before."""
        commit(self.user, {f"projects/{PROJECT}/sla.yaml": SLA.format(seed=seed)}, f"Seed {seed}")

    # --- what is there

    def stages(self, after: int = 0) -> list[tuple[int, str, str, str | None, float | None]]:
        """Rows of the journal behind an id: id, digest, stage, result (None: begun), seconds. Read from outside."""
        query = "SELECT id, digest, stage, result, seconds FROM stages WHERE id > ? ORDER BY id"
        with suppress(sqlite3.Error), closing(_read_only(self.state / "journal.db")) as journal:
            return journal.execute(query, (after,)).fetchall()
        return []

    def last_row(self) -> int:
        """The newest row of the journal."""
        return max((row[0] for row in self.stages()), default=0)

    def document(self) -> dict[str, Any]:
        """The status document at the origin; empty without one."""
        with suppress(subprocess.CalledProcessError):
            found: dict[str, Any] = json.loads(git(self.repos.origin, "show", f"status/default:projects/{PROJECT}.json"))
            return found
        return {}

    def is_as_declared(self, seed: int) -> bool:
        """Whether the published status says that what is declared with this seed runs."""
        document = self.document()
        says = {kind: (condition(document, kind) or {}).get("status") for kind in ("Synced", "Ready", "Reconciling")}
        declared = {value for name, value in document.get("inputs", {}).items() if name.endswith("seed")} == {str(seed)}
        serves = document.get("service", {}).get("digest", "") == document.get("digest")
        return declared and serves and says == {"Synced": "True", "Ready": "True", "Reconciling": None}

    def recorded(self) -> Counter[str]:
        """How many finished runs MLflow has of each digest."""
        path = tracking_root(CUSTOMER, self.state / "tracking") / "mlflow.db"
        query = (
            "SELECT digests.value FROM tags AS digests JOIN tags AS marks USING (run_uuid) JOIN runs USING (run_uuid) "
            "WHERE digests.key = ? AND marks.key = ? AND marks.value = 'true' AND runs.lifecycle_stage = 'active'"
        )
        with suppress(sqlite3.Error), closing(_read_only(path)) as registry:
            return Counter(digest for (digest,) in registry.execute(query, (DIGEST, RECORDED)))
        return Counter()

    def trained(self) -> Counter[str]:
        """How many trainings came to their end, by run directory, as their own record of events says."""
        found: Counter[str] = Counter()
        for path in (self.state / "runs" / PROJECT).glob("*/events.jsonl"):
            found[path.parent.name] = sum('"kind": "finished"' in line or '"kind":"finished"' in line for line in path.open())
        return found

    def service(self) -> dict[str, Any]:
        """What the supervisor of the inference server last said."""
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.state / "services" / f"inference-{PROJECT}" / "state.json").read_bytes())
            return found
        return {}

    def differences(self) -> list[str]:
        """Where the status branch says something else than what can be observed; nothing else than the truth is left of kills."""
        document, service = self.document(), self.service()
        digest = document.get("digest")
        found = []
        if service.get("labels", {}).get("flops.digest") != digest:
            found.append(f"the service has {service.get('labels')}, the status {digest}")
        elif version(service["address"]).get("digest") not in {digest, None}:
            found.append(f"the server says {version(service['address'])}, the status {digest}")
        if self.recorded().get(str(digest)) != 1:
            found.append(f"the registry has {self.recorded()}, the status {digest}")
        if document.get("model", {}).get("digest") != digest:
            found.append(f"the status has the model {document.get('model')} for {digest}")
        here = git(self.clone, "rev-parse", "refs/heads/status/default")
        there = git(self.repos.origin, "rev-parse", "refs/heads/status/default")
        if here != there:
            found.append(f"status commits were not pushed: {here} here, {there} there")
        return found

    def orphans(self, *ours: int) -> list[str]:
        """Processes of this site that are in no inventory: neither `ours` nor of a service."""
        known = set(ours)
        for path in (self.state / "services").glob("*/state.json"):
            with suppress(OSError, ValueError, KeyError, psutil.Error):
                supervisor = psutil.Process(int(json.loads(path.read_bytes())["supervisor"]))
                known |= {supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))}
        for pid in ours:
            with suppress(psutil.Error):
                known |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        return [f"{process.pid}: {' '.join(process.cmdline())[:200]}" for process in self._processes() if process.pid not in known]

    def _processes(self) -> Iterator[psutil.Process]:
        """Every process that names or works in a folder of this site."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                told = [*process.cmdline(), process.cwd(), *process.environ().values()]
                if any(f"{self.root}/" in f"{text}/" for text in told):
                    yield process

    def end(self) -> None:
        """Stop every service, and whatever else is left."""
        arguments = [sys.executable, "-m", "reconciler.cli", "stop", "--repo", str(self.clone), "--state", str(self.state)]
        subprocess.run(arguments, capture_output=True, check=False, timeout=120)
        for process in list(self._processes()):
            with suppress(psutil.Error):
                process.kill()


class Controller:
    """The real `flops serve` or `flops reconcile --once` as a process, with its log."""

    def __init__(self, site: Site, kind: str) -> None:
        self.kind = kind
        arguments = ["serve", "--log", "json"] if kind == "serve" else ["reconcile", "--once"]
        with (site.root / "controller.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "reconciler.cli", *arguments, "--repo", str(site.clone), "--state", str(site.state)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL: it alone, not its children."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, as an operator would."""
        self.process.terminate()
        self.process.wait(120)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
