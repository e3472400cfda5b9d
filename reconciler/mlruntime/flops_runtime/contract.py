"""The ML repo contract, called with care: every answer is checked, every exception becomes a `Failure` with its place.

This is the only module that touches the user's classes. It runs in learner and export processes, never in the aggregator.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flops_runtime import flavors
from flops_runtime.failures import Failure, user_failure

_METHODS = (
    "set_model_data", "get_model", "get_model_parameters", "set_model_parameters", "fit_model", "evaluate_model",
)  # fmt: skip


def seed_everything(*parts: object) -> int:
    """Seeds `random`, NumPy and, where loaded, PyTorch and Keras from the parts alone; returns the seed (32 bits)."""
    global _seed
    _seed = int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")
    _sow()
    return _seed


_seed = 0
"""What this process was seeded with last: libraries that the ML repo imports afterwards get it too."""


def _sow() -> None:
    flavors.seed(_seed)
    random.seed(_seed)
    np.random.seed(_seed)


def prepare_process(work_dir: Path, repo_dir: Path, data: str, own_paths: list[str]) -> None:
    """Gives this process its private working directory, its data and the ML repo as the first place of imports.

    The repo's files are visible in the working directory too (as links), since code that was written to be run in its repo
    opens them by relative paths.
    """
    enter_directory(work_dir, repo_dir, data)
    temporary = work_dir / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ.update(HOME=str(work_dir), TMPDIR=str(temporary))
    for name in ("HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "JOBLIB_TEMP_FOLDER"):
        os.environ[name] = str(temporary)
    import tempfile

    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    flavors.prepare()
    sys.path[:] = [str(repo_dir), *own_paths]


def enter_directory(work_dir: Path, repo_dir: Path, data: str) -> None:
    """Makes a learner's working directory the current one, with links to the ML repo's files, and its shard the data."""
    work_dir.mkdir(parents=True, exist_ok=True)
    for entry in repo_dir.iterdir():
        with contextlib.suppress(FileExistsError):
            (work_dir / entry.name).symlink_to(entry)
    os.chdir(work_dir)
    os.environ["FLOPS_DATA"] = data


class ModelContract:
    """One `ModelManager` of the ML repo, and what it may be asked."""

    def __init__(self, repo_dir: Path, work_dir: Path) -> None:
        self._repo, self._work = repo_dir, work_dir
        for name in ("model_manager.py", "data_manager.py"):
            if not (repo_dir / name).is_file():
                raise Failure(
                    "FL5010",
                    f"The ML repo has no file {name}.",
                    cure=f"Add {name} at the root of the ML repo (or set `ml_repo_subdir`).",
                    path=name,
                )
        try:
            module = importlib.import_module("model_manager")
        except ModuleNotFoundError as error:
            failure = user_failure(error, "FL5012", "Importing model_manager raised", repo_dir, work_dir)
            failure.cure = f"Add the package that provides `{error.name}` to the ML repo's dependencies."
            raise failure from error
        except BaseException as error:
            raise user_failure(error, "FL5012", "Importing model_manager raised", repo_dir, work_dir) from error
        self._class = getattr(module, "ModelManager", None)
        if not isinstance(self._class, type):
            raise Failure(
                "FL5011",
                "model_manager.py has no class ModelManager.",
                cure="Define `class ModelManager(ModelManagerTemplate)` in it.",
                path="model_manager.py",
            )
        self._check_methods(self._class)
        flavors.settle()
        _sow()
        self.manager = self._construct()

    @staticmethod
    def _check_methods(manager: type) -> None:
        missing = [name for name in _METHODS if not callable(getattr(manager, name, None))]
        missing += sorted(getattr(manager, "__abstractmethods__", frozenset()) - set(missing))
        if missing:
            raise Failure(
                "FL5011",
                f"ModelManager lacks {', '.join(f'`{name}`' for name in missing)}.",
                cure="Add what is missing; `flops_utils.ml_repo_templates.ModelManagerTemplate` names all of the methods.",
                path="model_manager.py",
            )

    def _construct(self) -> Any:
        with self._blame("FL5013", "`ModelManager()` raised"):
            return self._class()  # type: ignore[misc]

    @contextlib.contextmanager
    def _blame(self, code: str, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            raise user_failure(error, code, what, self._repo, self._work) from error

    def set_data(self) -> None:
        """Lets the ML repo load this process's data."""
        with self._blame("FL5014", "`set_model_data` raised"):
            self.manager.set_model_data()

    def initial_parameters(self) -> list[Any]:
        """The parameters of a new `ModelManager()`; of the one that has its data where a new one has none yet."""
        fresh = self._construct()
        try:
            return self._checked(fresh.get_model_parameters())
        except Exception:
            return self.parameters()

    def parameters(self) -> list[Any]:
        """The model's parameters as a list of numeric ndarrays."""
        with self._blame("FL5018", "`get_model_parameters` raised"):
            answer = self.manager.get_model_parameters()
        return self._checked(answer)

    def _checked(self, answer: Any) -> list[Any]:
        if not isinstance(answer, list | tuple) or not answer:
            raise self._wrong("get_model_parameters", "a list of ndarrays", answer)
        arrays = []
        for item in answer:
            if hasattr(item, "detach"):
                item = item.detach().cpu().numpy()
            array = np.asarray(item)
            if array.dtype.kind not in "fiub":
                raise self._wrong("get_model_parameters", "numeric ndarrays only", item)
            arrays.append(array)
        return arrays

    def set_parameters(self, arrays: list[Any]) -> None:
        """Puts parameters into the model."""
        with self._blame("FL5018", "`set_model_parameters` raised"):
            self.manager.set_model_parameters(arrays)

    def fit(self) -> dict[str, float]:
        """Trains; the metrics hold at least `num-examples` (> 0)."""
        with self._blame("FL5015", "`fit_model` raised"):
            answer = self.manager.fit_model()
        extra: Mapping[str, Any] = {}
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
            answer, extra = answer
        return {"num-examples": self._count("fit_model", answer), **self._numbers("fit_model", extra)}

    def evaluate(self) -> dict[str, float]:
        """Evaluates; the metrics hold `loss`, `accuracy` and `num-examples` (> 0)."""
        with self._blame("FL5016", "`evaluate_model` raised"):
            answer = self.manager.evaluate_model()
        if not isinstance(answer, tuple | list) or not 3 <= len(answer) <= 4:
            raise self._wrong("evaluate_model", "(loss, accuracy, number of samples)", answer)
        loss, accuracy, count, *rest = answer
        metrics: dict[str, float] = {"num-examples": self._count("evaluate_model", count)}
        metrics.update(self._numbers("evaluate_model", {"loss": loss}))
        named = accuracy if isinstance(accuracy, Mapping) else {"accuracy": accuracy}
        metrics.update(self._numbers("evaluate_model", {**named, **(rest[0] if rest else {})}))
        if "accuracy" not in metrics:
            raise self._wrong("evaluate_model", "an accuracy", accuracy)
        return metrics

    def model(self) -> Any:
        """The model object itself, for export."""
        with self._blame("FL5040", "`get_model` raised"):
            model = self.manager.get_model()
        if model is None:
            raise self._wrong("get_model", "the model", model)
        return model

    def configure(self, config: dict[str, Any]) -> bool:
        """Hands a round's configuration to `set_config`, which is optional; False if there is none."""
        if not callable(getattr(self.manager, "set_config", None)):
            return False
        with self._blame("FL5015", "`set_config` raised"):
            self.manager.set_config(config)
        return True

    def _count(self, method: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value <= 0:
            raise self._wrong(method, "a number of samples above 0", value)
        return int(value)

    def _numbers(self, method: str, values: Mapping[str, Any]) -> dict[str, float]:
        try:
            return {str(name): float(value) for name, value in values.items()}
        except (TypeError, ValueError):
            raise self._wrong(method, "numbers as metrics", dict(values)) from None

    def _wrong(self, method: str, wanted: str, got: Any) -> Failure:
        code = getattr(getattr(self._class, method, None), "__code__", None)
        shown = repr(got) if len(repr(got)) <= 80 else f"a {type(got).__name__}"
        return Failure(
            "FL5017",
            f"`{method}` has to return {wanted}, but returned {shown}.",
            cure="Return what the ML repo contract asks for.",
            path="model_manager.py",
            line=code.co_firstlineno if code else 0,
        )
