"""The aggregator's side of the export: a child that warms up while the rounds run and writes the model at the end.

Only the child touches user code; it can write in its working directory only, and what it made is moved out of there by the
aggregator.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from flops_runtime import wire
from flops_runtime.checkpoints import Arrays
from flops_runtime.failures import Failure
from flops_runtime.nursery import Nursery


class Exporter:
    """One exporting process, started early so that MLflow's import and the held-out data cost nothing at the end."""

    def __init__(self, nursery: Nursery, job: dict[str, Any], work: Path) -> None:
        self._nursery = nursery
        self._work = work / "export"
        self._work.mkdir(exist_ok=True)  # before the child is born: from then on both of them write there
        self._timeout = None if job["round_timeout"] is None else max(300.0, 10 * float(job["round_timeout"]))
        spec = {
            "repo_dir": job["repo_dir"],
            "work_dir": str(self._work),
            # Nodes keep their data: without a held-out set of the operator the model is written without samples.
            "data": job["holdout"] or next(iter(job["shards"]), ""),
            "is_holdout": bool(job["holdout"]),
            "flavor": job["flavor"],
            "seed": job["seed"],
        }
        self._pid, self._connection = nursery.fork("export", spec)

    def export(self, parameters: Arrays, run_dir: Path) -> dict[str, Any]:
        """Writes `run_dir/model` and `samples.npz`; gives `holdout`, `samples` (bool), `rows` and `warnings`."""
        # A file instead of a message: parameters may be larger than what one frame should be.
        best = self._work / "best.npz"
        with best.open("wb") as file:
            np.savez(file, **parameters)
        try:
            wire.send_note(self._connection, {"kind": "export", "parameters": str(best)})
            if not self._connection.poll(self._timeout):
                raise Failure(
                    "FL5040",
                    f"Writing the model took more than {self._timeout:g} s.",
                    cure="`set_model_data` and the model's prediction have to return; raise `round_timeout` if they do.",
                )
            note = wire.receive(self._connection)
        except (EOFError, OSError) as error:
            status = self._nursery.exit_status(self._pid)
            raise self._nursery.told(self._pid) or Failure(
                "FL5040",
                f"The process that writes the model ended with wait status {status}.",
                cure="Look into child.log in the run's directory for what the ML repo's code wrote last.",
            ) from error
        if not isinstance(note, dict) or note.get("kind") != "exported":
            failure = note.get("failure", {}) if isinstance(note, dict) else {}
            raise Failure.from_dict({"code": "FL5040", **failure})
        model, samples = run_dir / "model", run_dir / "samples.npz"
        shutil.rmtree(model, ignore_errors=True)
        samples.unlink(missing_ok=True)
        (self._work / "model").replace(model)
        if note["samples"]:
            (self._work / "samples.npz").replace(samples)
        return {"holdout": note["holdout"], "samples": bool(note["samples"]), "warnings": list(note["warnings"])}
