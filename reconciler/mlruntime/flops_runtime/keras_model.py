"""Loads a Keras model that has classes of its ML repo: the modules of these are imported first, from the bundle's own code.

A copy of this file lies in such a bundle and is its MLflow loader module, so that any MLflow loads it without FLOps. It
therefore needs nothing but Keras and MLflow.
"""

import importlib
from pathlib import Path
from typing import Any

import yaml

CUSTOM = "custom_objects"
"""Key of MLmodel's flavor: pairs of module and class name."""


def load(folder: Path) -> Any:
    """The model of an MLflow model directory; the bundle's code has to be on the path."""
    import keras

    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["keras"]
    custom = {name: getattr(importlib.import_module(module), name) for module, name in flavor.get(CUSTOM, [])}
    # A Lambda layer is Python code, as the modules beside it are: where these may run, it may too.
    path = folder / flavor["data"] / "model.keras"
    return keras.saving.load_model(path, custom_objects=custom, safe_mode=CUSTOM not in flavor)


def _load_pyfunc(path: str) -> Any:
    """What `mlflow.pyfunc.load_model` calls."""
    from mlflow.keras.load import KerasModelWrapper
    from mlflow.models import Model

    return KerasModelWrapper(load(Path(path)), Model.load(path).signature)
