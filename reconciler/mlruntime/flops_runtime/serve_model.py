"""A model bundle that answers requests in MLflow's form.

The fast path loads a model with a tensor signature by itself – scikit-learn's, PyTorch's exported program, Keras' file – and
answers what clients of such a model send, `inputs` and `instances`: `import mlflow` takes long. All other models and all
other forms go through the `invocations` of MLflow's own scoring server, imported when it is first needed. Both give the same
answers and the same error codes; tests compare them.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import yaml

from flops_runtime.flavors import prepare

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]  # the standard library's is slower, and does

JSON = "application/json"
TYPES = (JSON, "text/csv", "application/vnd.apache.parquet")
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
MAX_ROWS = 100_000
UNEXPECTED = (
    "Encountered an unexpected error while evaluating the model. Verify that the serialized input Dataframe is compatible with "
    "the model for inference."
)


class Answer(NamedTuple):
    """Status and body of an HTTP answer."""

    status: int
    body: bytes


class Unacceptable(Exception):  # noqa: N818 – the client's mistake, not ours
    """A request that does not fit the protocol or the signature."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Tensor(NamedTuple):
    """A signature of one unnamed tensor; -1 in the shape stands for any length."""

    dtype: np.dtype
    shape: tuple[int, ...]


class ServedModel:
    """Turns the body of a request into the body of an answer. Not thread-safe: one request at a time."""

    def __init__(
        self, folder: Path, about: dict[str, str], tensor: Optional[Tensor], predict: Optional[Callable[..., Any]]
    ) -> None:
        self.about = about
        self._folder = folder
        self._tensor = tensor
        self._predict = predict
        self._mlflow: Optional[tuple[Any, Any]] = None
        if predict is None:
            self._through_mlflow()

    @classmethod
    def load(cls, folder: Path) -> "ServedModel":
        """Load the model of an MLflow model directory."""
        content = yaml.safe_load((folder / "MLmodel").read_text())
        flavors: dict[str, Any] = content.get("flavors", {})
        native = next((name for name in flavors if name != "python_function"), "python_function")
        about = {"flavor": native, "mlflow_version": str(content.get("mlflow_version", ""))}
        tensor = _tensor(content.get("signature") or {})
        if native != "sklearn":
            # One request at a time: threads of a pool would wait for a core longer than they work on a few rows.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        prepare(flavors.get("keras", {}).get("keras_backend"))
        predict = _native(folder, flavors, native) if tensor is not None else None
        return cls(folder, about, tensor, predict)

    def answer(self, body: bytes, content_type: str) -> Answer:
        """The answer to a request; what the client did wrong is said, what the model does wrong is in the log alone."""
        try:
            kind = content_type.split(";")[0].strip().lower()
            if kind not in TYPES:
                raise Unacceptable("BAD_REQUEST", f"Content-Type must be one of {', '.join(TYPES)}.", 415)
            content = _read(body) if kind == JSON else None
            rows = _simple(content) if content is not None else None
            if rows is not None and self._tensor is not None and self._predict is not None:
                return self._own(_enforce(rows, self._tensor), self._predict)
            return self._mlflows(body, content_type)
        except Unacceptable as refused:
            return failure(refused.status, refused.code, str(refused))

    def _own(self, data: Any, predict: Callable[..., Any]) -> Answer:
        if len(data) > MAX_ROWS:
            raise Unacceptable("BAD_REQUEST", f"The request has {len(data):,} rows, more than {MAX_ROWS:,}.", 413)
        try:
            return Answer(200, _dump({"predictions": _plain(predict(data))}))
        except Exception:
            traceback.print_exc()
            raise Unacceptable("BAD_REQUEST", UNEXPECTED) from None

    def _mlflows(self, body: bytes, content_type: str) -> Answer:
        invocations, model = self._through_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            said = invocations(body, content_type, model, model.metadata.get_input_schema())
        except MlflowException as error:
            if error.message.startswith(UNEXPECTED[:40]):
                traceback.print_exc()
            return failure(error.get_http_status_code(), error.error_code, error.message[:2000])
        if said.status != 200:
            return failure(said.status, "BAD_REQUEST", said.response[:2000])
        return Answer(200, said.response.encode())

    def _through_mlflow(self) -> tuple[Any, Any]:
        if self._mlflow is None:
            import mlflow.pyfunc
            from mlflow.pyfunc.scoring_server import invocations

            self._mlflow = (invocations, mlflow.pyfunc.load_model(str(self._folder)))
        return self._mlflow


def _native(folder: Path, flavors: dict[str, Any], native: str) -> Optional[Callable[..., Any]]:
    """The model's prediction without MLflow; None for a form that MLflow alone knows. The ML repo's code comes from the bundle."""
    function, own = flavors.get("python_function", {}), flavors.get(native, {})
    code = folder / (function.get("code") or "code")
    sys.path[:0] = [str(code)] if code.is_dir() else []
    if native == "sklearn" and own.get("serialization_format") in ("cloudpickle", "pickle"):
        import cloudpickle  # registers what cloudpickle needs; its load is pickle's

        with (folder / own["pickled_model"]).open("rb") as file:
            predict: Callable[..., Any] = getattr(cloudpickle.load(file), function.get("predict_fn", "predict"))
            return predict
    if native == "pytorch" and (folder / "data" / "model.pt2").is_file():
        return _program(folder / "data" / "model.pt2")
    if native == "keras" and (folder / own["data"] / "model.keras").is_file():
        from flops_runtime import keras_model

        model = keras_model.load(folder)
        return lambda data: np.asarray(model.predict(data, verbose=0))
    return None


def _program(path: Path) -> Callable[..., Any]:
    import torch

    module = torch.export.load(str(path)).module()

    def predict(data: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(data)).numpy()

    return predict


def failure(status: int, code: str, message: str) -> Answer:
    """An error in MLflow's form."""
    return Answer(status, _dump({"error_code": code, "message": message}))


def _read(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body) if orjson is None else orjson.loads(body)
    except ValueError:
        try:
            content = json.loads(body)  # takes NaN, as MLflow does
        except (ValueError, RecursionError) as error:
            raise Unacceptable(
                "BAD_REQUEST", f"Invalid input. Ensure that input is a valid JSON formatted string. Error: {error}"
            ) from None
    if not isinstance(content, dict):
        raise Unacceptable(
            "BAD_REQUEST", f"Invalid input. The input must be a JSON dictionary with exactly one of {', '.join(FORMS)}."
        )
    return content


def _simple(content: dict[str, Any]) -> Optional[list[Any]]:
    """The rows of a request in the form that the fast path knows: one list of values; None for every other form."""
    if sum(form in content for form in FORMS) != 1 or set(content) - {*FORMS, "params"}:
        return None
    value = content.get("inputs", content.get("instances"))
    return value if isinstance(value, list) and value and not isinstance(value[0], dict) else None


def _tensor(signature: dict[str, Any]) -> Optional[Tensor]:
    """The signature's single unnamed tensor; None for every other signature, and for one with parameters."""
    inputs: list[Any] = json.loads(signature.get("inputs") or "[]")
    if len(inputs) != 1 or inputs[0].get("type") != "tensor" or inputs[0].get("name") or signature.get("params"):
        return None
    spec = inputs[0]["tensor-spec"]
    dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
    numbers = dtype.kind in "fiu"
    return Tensor(dtype, shape) if numbers and shape and -1 not in shape[1:] else None


def _enforce(value: list[Any], tensor: Tensor) -> Any:
    """The rows as the signature wants them, converted as MLflow converts them."""
    try:
        array = np.array(value, dtype=tensor.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise Unacceptable("BAD_REQUEST", f"Invalid input. {error}") from None
    fits = array.ndim == len(tensor.shape) and all(want in (-1, have) for want, have in zip(tensor.shape, array.shape))
    if not fits:
        raise Unacceptable(
            "INVALID_PARAMETER_VALUE",
            f"Failed to enforce schema. Error: Shape of input {array.shape} does not match expected shape {tensor.shape}.",
        )
    return array


def _plain(value: Any) -> Any:
    """As MLflow makes JSON of predictions."""
    if hasattr(value, "to_frame"):
        value = value.to_frame()
    if hasattr(value, "to_dict"):
        return value.to_dict(orient="records")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _dump(value: Any) -> bytes:
    if orjson is not None:
        body = orjson.dumps(value)
        if b"null" not in body:
            return body
    return json.dumps(value).encode()  # writes NaN, as MLflow does
