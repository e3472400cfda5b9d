"""From a trained model to an MLflow model directory, one way for each flavour; code of the ML repo goes along only where needed.

scikit-learn's models are pickled, with the ML repo's modules beside them. PyTorch's are exported programs (`.pt2`), Keras'
are `.keras` files: neither needs the ML repo. A PyTorch model that cannot be exported is pickled, and a Keras model with
classes of its own gets its modules and a loader (docs/adr/0010). Invariant: what was saved answers as the trained model did.
"""

import importlib
import importlib.metadata
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np

from flops_runtime import keras_model
from flops_runtime.failures import Failure

NEVER_CALLED = 7
"""A number of rows that no example has: a program that was fixed to the example's number fails on it."""


def mlflow_module(flavor: str) -> str:
    """MLflow's module for a flavour in this environment."""
    if flavor in ("keras", "tensorflow"):
        try:
            new = int(importlib.metadata.version("keras").split(".")[0]) >= 3
        except importlib.metadata.PackageNotFoundError:
            new = False
        return "mlflow.keras" if new and flavor == "keras" else "mlflow.tensorflow"
    return f"mlflow.{flavor}"


def predict(flavor: str, model: Any, inputs: Any) -> Any:
    """The model's own answers."""
    if flavor == "pytorch":
        import torch

        model.eval()
        with torch.no_grad():
            return model(torch.as_tensor(inputs)).detach().cpu().numpy()
    return np.asarray(model.predict(inputs, verbose=0) if flavor == "keras" else model.predict(inputs))


def save(flavor: str, model: Any, example: Any, repo: Path, target: Path) -> list[str]:
    """Write the directory; `example` are a few inputs or None. What a data scientist should know comes back.

    Requirements are given, since MLflow's own inference of them starts an interpreter.
    """
    options: dict[str, Any] = {"pip_requirements": _requirements()}
    if example is not None:
        options["signature"] = _signature(flavor, example, predict(flavor, model, example))
        options["input_example"] = example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if flavor == "pytorch":
            return _save_torch(model, example, repo, target, options)
        if flavor == "keras":
            return _save_keras(model, example, repo, target, options)
        if flavor == "sklearn":
            options["serialization_format"] = "cloudpickle"
        importlib.import_module(mlflow_module(flavor)).save_model(model, str(target), code_paths=_code(repo), **options)
    return []


def _signature(flavor: str, example: Any, answers: Any) -> Any:
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import Schema, TensorSpec

    if flavor == "sklearn":
        return infer_signature(example, answers)
    # MLflow infers with SciPy, which an environment for a network need not have.
    specs = [Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]))]) for array in (example, answers)]
    return ModelSignature(inputs=specs[0], outputs=specs[1])


def _save_torch(model: Any, example: Any, repo: Path, target: Path, options: dict[str, Any]) -> list[str]:
    import mlflow.pytorch

    model.cpu().eval()
    reason = "there are no inputs to export it with"
    if example is not None:
        try:
            mlflow.pytorch.save_model(model, str(target), serialization_format="pt2", **options)
            if (different := _difference("pytorch", model, example, target)) is None:
                return []
            reason = different
        except Exception as error:
            reason = _short(error)
        shutil.rmtree(target, ignore_errors=True)
    mlflow.pytorch.save_model(model, str(target), serialization_format="pickle", code_paths=_code(repo), **options)
    if example is not None and (different := _difference("pytorch", model, example, target)) is not None:
        raise _differs(different)
    return [f"The model is pickled, with the ML repo's modules, since PyTorch cannot export it: {reason}"]


def _save_keras(model: Any, example: Any, repo: Path, target: Path, options: dict[str, Any]) -> list[str]:
    module = importlib.import_module(mlflow_module("keras"))
    if module.__name__ != "mlflow.keras":  # Keras 2 is TensorFlow's
        module.save_model(model, str(target), code_paths=_code(repo), **options)
        return []
    target.mkdir()  # MLflow writes the example there before it makes it
    module.save_model(model, str(target), **options)
    custom = sorted(set(_custom_classes(_configuration(target))))
    if custom:
        _add_loader(target, [(place, name) for place, name in custom if place], repo)
    try:
        different = None if example is None else _difference("keras", model, example, target)
    except Exception as error:
        raise Failure(
            "FL5901",
            f"The Keras model cannot be loaded from what was saved: {_short(error)}",
            cure="Give classes of your own a `get_config` with all arguments of `__init__`, and build layers in `__init__`.",
            path="model_manager.py",
        ) from error
    if different is not None:
        raise _differs(different)
    if not custom:
        return []
    names = ", ".join(name for _, name in custom)
    return [f"The model has parts that Keras alone does not load ({names}): the ML repo's modules go with it."]


def _add_loader(target: Path, custom: list[tuple[str, str]], repo: Path) -> None:
    """The ML repo's modules and the loader that knows the classes."""
    from mlflow.models import Model

    code = target / "code"
    code.mkdir()
    for entry in map(Path, [*_code(repo), keras_model.__file__]):
        if entry.is_dir():
            shutil.copytree(entry, code / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(entry, code / entry.name)
    content = Model.load(str(target))
    content.flavors["keras"][keras_model.CUSTOM] = [list(item) for item in custom]
    content.flavors["python_function"].update(loader_module=keras_model.__name__.rpartition(".")[2], code="code")
    content.save(str(target / "MLmodel"))


def _configuration(target: Path) -> Any:
    import zipfile

    with zipfile.ZipFile(target / "data" / "model.keras") as archive:
        return json.loads(archive.read("config.json"))


def _custom_classes(value: Any) -> Iterator[tuple[str, str]]:
    """Modules and names of the classes that are not Keras' own; a Lambda layer has no module, but is code too."""
    if isinstance(value, list):
        for item in value:
            yield from _custom_classes(item)
    elif isinstance(value, dict):
        module, name = value.get("module"), value.get("class_name")
        if name in ("Lambda", "__lambda__"):
            yield "", "Lambda"
        elif isinstance(module, str) and name == "function" and module != "builtins" and not _is_of_keras(module):
            yield module, str(value.get("config"))
        elif isinstance(module, str) and isinstance(name, str) and module != "builtins" and not _is_of_keras(module):
            yield module, name
        for item in value.values():
            yield from _custom_classes(item)


def _is_of_keras(module: str) -> bool:
    return module.split(".")[0] in ("keras", "tensorflow", "numpy")


def _difference(flavor: str, model: Any, example: Any, target: Path) -> Optional[str]:
    """How the saved model's answers differ from the trained one's, alone, together and in a number never seen; None: not."""
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(target))
    repeated = example[np.arange(NEVER_CALLED) % len(example)]
    for inputs in (example, example[:1], repeated):
        wanted, got = predict(flavor, model, inputs), np.asarray(loaded.predict(inputs))
        if wanted.shape != got.shape:
            return f"for inputs {inputs.shape} it answers {got.shape} instead of {wanted.shape}"
        if not np.allclose(wanted, got, rtol=1e-4, atol=1e-5, equal_nan=True):
            return f"its answers differ by up to {np.nanmax(np.abs(wanted - got)):g}"
    return None


def _differs(how: str) -> Failure:
    return Failure(
        "FL5902",
        f"The saved model answers otherwise than the trained one: {how}.",
        cure="A prediction must depend on the inputs and the parameters alone: no randomness, no state of other kinds.",
        path="model_manager.py",
    )


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


def _requirements() -> list[str]:
    """Every distribution of this environment, pinned: the environment was made from a lock, so this is the lock."""
    pins = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def _code(repo: Path) -> list[str]:
    """The ML repo's modules: a pickled model refers to its own classes by module."""
    return [
        str(entry)
        for entry in sorted(repo.iterdir())
        if entry.suffix == ".py" or (entry.is_dir() and (entry / "__init__.py").is_file())
    ]
