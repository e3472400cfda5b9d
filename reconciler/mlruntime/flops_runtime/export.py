"""The exporting process: best parameters in, a complete MLflow model directory and verification samples out.

What is measured and kept as samples are the answers of the *saved and reloaded* model, since that is what will serve. MLflow
is imported, and the held-out data is loaded, at low priority while the rounds run.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from flops_runtime import sandbox, saving, wire
from flops_runtime.contract import ModelContract, prepare_process, seed_everything
from flops_runtime.failures import Failure, user_failure
from flops_runtime.federated_holdout import Form, form_of, synthetic
from flops_runtime.heldout import Pair, accepted, accepts, accuracy, labels_of, test_part

RUNTIME_DIR = Path(__file__).resolve().parent.parent
_SAMPLES = 1000
_EXAMPLES = 5
_BATCH = 2000
_LOW_PRIORITY = 15


def run(connection: Connection, spec: dict[str, Any]) -> None:
    """The exporting process, from its birth to its answer."""
    repo, work = Path(spec["repo_dir"]), Path(spec["work_dir"])
    prepare_process(work, repo, spec["data"], [path for path in sys.path if path])
    sandbox.enter([repo, RUNTIME_DIR, *([Path(spec["data"])] if spec["data"] else [])], [work])
    warm = _Warmth(spec, repo, work)
    order = wire.receive(connection)
    if not isinstance(order, dict):
        return
    warm.thread.join()
    try:
        if warm.failure is not None or warm.contract is None:
            raise warm.failure or Failure("FL5040", "The export did not start.", cure="See child.log.")
        form = form_of(order["form"]) if order["form"] else None
        answer = _export(warm.contract, spec, Path(order["parameters"]), form, repo, work)
        wire.send_note(connection, {"kind": "exported", **answer})
    except BaseException as error:
        traceback.print_exc()
        failure = user_failure(error, "FL5040", "Writing the model raised", repo, work)
        wire.send_note(connection, {"kind": "failed", "failure": failure.to_dict()})


class _Warmth:
    """What can be done before the rounds are over, in a thread of low priority (a process could not go back up)."""

    def __init__(self, spec: dict[str, Any], repo: Path, work: Path) -> None:
        self._spec, self._repo, self._work = spec, repo, work
        self.contract: ModelContract | None = None
        self.failure: Failure | None = None
        self.thread = threading.Thread(target=self._warm, name="warm")
        self.thread.start()

    def _warm(self) -> None:
        lower_priority()
        try:
            seed_everything(self._spec["seed"], "export")
            contract = ModelContract(self._repo, self._work)
            if self._spec["data"]:
                contract.set_data()
            self.contract = contract
            for name in ("mlflow.models", "mlflow.pyfunc", saving.mlflow_module(self._spec["flavor"])):
                importlib.import_module(name)
        except Failure as failure:
            self.failure = failure
        except BaseException as error:
            traceback.print_exc()
            self.failure = user_failure(error, "FL5040", "Preparing the export raised", self._repo, self._work)


def lower_priority() -> None:
    """Gives this thread a low priority, or leaves it the lower one that it has: to raise it is a right that nobody here has."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(_LOW_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread)))


def _export(
    contract: ModelContract, spec: dict[str, Any], parameters: Path, form: Form | None, repo: Path, work: Path
) -> dict[str, Any]:
    import mlflow.pyfunc

    flavor = str(spec["flavor"])
    with np.load(parameters, allow_pickle=False) as archive:
        contract.set_parameters([archive[name] for name in archive.files])
    model = contract.model()
    pairs = accepted(flavor, model, contract.manager) if spec["data"] else []
    if not spec["is_holdout"]:
        pairs = test_part(pairs)
    pairs = [pair for pair in pairs if pair.inputs.shape[1:] == pairs[0].inputs.shape[1:]]
    found: list[str] = []
    if form is not None:
        pairs = _made(flavor, model, form, int(spec["seed"]))
    if not pairs:
        found.append("No inputs that the model accepts were found in its data: it has no signature and no samples.")
    target = work / "model"
    found += saving.save(flavor, model, pairs[0].inputs[:_EXAMPLES] if pairs else None, repo, target)
    answer: dict[str, Any] = {"holdout": {}, "samples": False, "warnings": found}
    if not pairs:
        return answer
    loaded = mlflow.pyfunc.load_model(str(target))
    inputs = np.concatenate([pair.inputs for pair in pairs])
    predictions = np.concatenate([np.asarray(loaded.predict(inputs[at : at + _BATCH])) for at in range(0, len(inputs), _BATCH)])
    labels = labels_of(pairs)
    if spec["is_holdout"]:
        answer["holdout"] = {"rows": float(len(inputs)), **accuracy(predictions, labels)}
    arrays: dict[str, Any] = {"inputs": inputs[:_SAMPLES], "predictions": predictions[:_SAMPLES]}
    if labels is not None:
        arrays["labels"] = labels[:_SAMPLES]
    np.savez(work / "samples.npz", **arrays)
    answer["samples"] = True
    return answer


def _made(flavor: str, model: Any, form: Form, seed: int) -> list[Pair]:
    """Inputs for a model whose data stay on nodes: none of theirs, but of their form."""
    inputs = synthetic(form, seed)
    return [Pair(inputs, None, "synthetic")] if accepts(flavor, model, inputs) else []
