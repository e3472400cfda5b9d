"""A model bundle that answers requests in MLflow's form.

The fast path loads a scikit-learn model with a tensor signature by itself: `import mlflow` takes longer than everything else
of a start. All other models go through `mlflow.pyfunc`. Both enforce the signature as MLflow's own scoring server does.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]  # the standard library's is slower, and does

Tensor = tuple[np.dtype, tuple[int, ...]]
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class Unacceptable(Exception):  # noqa: N818 – the client's mistake, not ours
    """A request that does not fit the protocol or the signature."""


class ServedModel:
    """Turns the body of a request into the body of an answer."""

    def __init__(self, predict: Any, tensor: Tensor | None, about: dict[str, str]) -> None:
        self._predict = predict
        self._tensor = tensor
        self.about = about

    @classmethod
    def load(cls, folder: Path) -> "ServedModel":
        """Load the model of an MLflow model directory."""
        content = yaml.safe_load((folder / "MLmodel").read_text())
        flavors: dict[str, Any] = content.get("flavors", {})
        native = next((name for name in flavors if name != "python_function"), "python_function")
        about = {"flavor": native, "mlflow_version": str(content.get("mlflow_version", ""))}
        tensor = _tensor(content.get("signature") or {})
        if native == "sklearn" and tensor is not None and flavors["sklearn"].get("serialization_format") == "cloudpickle":
            import cloudpickle

            sys.path[:0] = [str(folder / "code")] if (folder / "code").is_dir() else []
            with (folder / flavors["sklearn"]["pickled_model"]).open("rb") as file:
                return cls(cloudpickle.load(file).predict, tensor, about)
        import mlflow.pyfunc

        return cls(mlflow.pyfunc.load_model(str(folder)).predict, tensor, about)

    def answer(self, body: bytes, kind: str) -> bytes:
        """The answer to a request. Raises Unacceptable for what does not fit."""
        data = _csv(body) if kind == "text/csv" else self._read(body)
        if self._tensor is not None:
            data = _enforce(data, *self._tensor)
        return _dump({"predictions": _plain(self._predict(data))})

    def _read(self, body: bytes) -> Any:
        try:
            content = orjson.loads(body) if orjson else json.loads(body)
        except ValueError as error:
            raise Unacceptable("Failed to parse input from JSON. Ensure that input is a valid JSON formatted string.") from error
        if not isinstance(content, dict):
            raise Unacceptable("The request must be a JSON object.")
        found = [name for name in FORMS if name in content]
        if len(found) != 1:
            raise Unacceptable(f"The request must have exactly one of: {', '.join(FORMS)}.")
        unknown = sorted(set(content) - {found[0], "params"})
        if unknown:
            raise Unacceptable(f"Unknown keys: {', '.join(unknown)[:200]}.")
        return _parse(found[0], content[found[0]])


def _parse(form: str, value: Any) -> Any:
    import pandas

    try:
        if form == "dataframe_split":
            return pandas.DataFrame(**{key: value[key] for key in ("index", "columns", "data") if key in value})
        if form == "dataframe_records":
            return pandas.DataFrame.from_records(value)
        if form == "instances" and value and isinstance(value[0], dict):
            return {key: np.asarray([row[key] for row in value]) for key in value[0]}
        if isinstance(value, dict):
            return {key: np.asarray(item) for key, item in value.items()}
        return np.asarray(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unacceptable(f"{form} cannot be read: {error}") from error


def _csv(body: bytes) -> Any:
    import io

    import pandas

    try:
        return pandas.read_csv(io.BytesIO(body))
    except ValueError as error:
        raise Unacceptable(f"The CSV cannot be read: {error}") from error


def _tensor(signature: dict[str, Any]) -> Tensor | None:
    """dtype and shape of a signature's single unnamed tensor; None for every other signature."""
    inputs: list[Any] = json.loads(signature.get("inputs") or "[]")
    if len(inputs) != 1 or inputs[0].get("type") != "tensor" or inputs[0].get("name"):
        return None
    spec = inputs[0]["tensor-spec"]
    return np.dtype(spec["dtype"]), tuple(spec["shape"])


def _enforce(data: Any, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    array = data.to_numpy() if hasattr(data, "to_numpy") else data
    if not isinstance(array, np.ndarray):
        raise Unacceptable("The model takes one tensor, not several named ones.")
    if array.dtype == object:
        raise Unacceptable("The rows do not have the same length, or hold something that is no number.")
    fits = array.ndim == len(shape) and all(want in (-1, have) for want, have in zip(shape, array.shape))
    if not fits:
        raise Unacceptable(f"Shape of input {array.shape} does not match expected shape {shape}.")
    if array.dtype == dtype:
        return array
    try:
        converted = array.astype(dtype)
    except (ValueError, TypeError) as error:
        raise Unacceptable(f"dtype of input {array.dtype} does not match expected dtype {dtype}.") from error
    # JSON has no types: numbers are converted where nothing is lost, as 3 to 3.0, and never 2.7 to 2.
    numbers = np.issubdtype(array.dtype, np.number)
    kept = numbers and (np.issubdtype(dtype, np.floating) or (converted.astype(array.dtype) == array).all())
    if not kept:
        raise Unacceptable(f"dtype of input {array.dtype} does not match expected dtype {dtype}.")
    return converted


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return value.to_dict(orient="records")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _dump(value: Any) -> bytes:
    return orjson.dumps(value) if orjson else json.dumps(value).encode()
