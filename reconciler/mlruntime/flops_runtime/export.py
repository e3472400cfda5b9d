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
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from flops_runtime import sandbox, saving, wire
from flops_runtime.contract import ModelContract, prepare_process, seed_everything
from flops_runtime.failures import Failure, user_failure
from flops_runtime.heldout import Pair, find_pairs, test_part

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
        answer = _export(warm.contract, spec, Path(order["parameters"]), repo, work)
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
        me = threading.get_native_id()
        # A reconciler that is nicer than that made us so too, and nobody but root goes up again.
        os.setpriority(os.PRIO_PROCESS, me, max(_LOW_PRIORITY, os.getpriority(os.PRIO_PROCESS, me)))
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


def _export(contract: ModelContract, spec: dict[str, Any], parameters: Path, repo: Path, work: Path) -> dict[str, Any]:
    import mlflow.pyfunc

    flavor = str(spec["flavor"])
    with np.load(parameters, allow_pickle=False) as archive:
        contract.set_parameters([archive[name] for name in archive.files])
    model = contract.model()
    pairs = _pairs(flavor, model, contract.manager) if spec["data"] else []
    if not spec["is_holdout"]:
        pairs = test_part(pairs)
    pairs = [pair for pair in pairs if pair.inputs.shape[1:] == pairs[0].inputs.shape[1:]]
    found: list[str] = []
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
    labels = _labels(pairs)
    if spec["is_holdout"]:
        answer["holdout"] = {"rows": float(len(inputs)), **_accuracy(predictions, labels)}
    arrays: dict[str, Any] = {"inputs": inputs[:_SAMPLES], "predictions": predictions[:_SAMPLES]}
    if labels is not None:
        arrays["labels"] = labels[:_SAMPLES]
    np.savez(work / "samples.npz", **arrays)
    answer["samples"] = True
    return answer


def _pairs(flavor: str, model: Any, manager: Any) -> list[Pair]:
    """What the model accepts as it is; else, since code often converts as it feeds a network, what it accepts as float32."""
    pairs = find_pairs(manager, lambda inputs: _accepts(flavor, model, inputs))
    if pairs or flavor == "sklearn":
        return pairs
    pairs = find_pairs(manager, lambda inputs: _accepts(flavor, model, inputs.astype(np.float32)))
    return [replace(pair, inputs=pair.inputs.astype(np.float32)) for pair in pairs]


def _accepts(flavor: str, model: Any, inputs: Any) -> bool:
    try:
        return len(saving.predict(flavor, model, inputs)) == len(inputs)
    except Exception:
        return False


def _labels(pairs: list[Pair]) -> Any:
    labels = [pair.labels for pair in pairs if pair.labels is not None]
    return np.concatenate(labels) if len(labels) == len(pairs) else None


def _accuracy(predictions: Any, labels: Any) -> dict[str, float]:
    if labels is None or labels.dtype.kind not in "iub":
        return {}
    if predictions.ndim == 2 and predictions.shape[1] > 1:
        predictions = predictions.argmax(axis=1)
    predictions = predictions.reshape(-1)
    if len(predictions) != len(labels) or predictions.dtype.kind not in "iubf":
        return {}
    return {"accuracy": float((predictions == labels).mean())}
