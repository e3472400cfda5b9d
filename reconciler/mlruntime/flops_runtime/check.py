"""The ML repo contract, exercised once on a small sample before anything is built or trained from it.

`python -m flops_runtime.check SPEC FD` runs in the ML environment. It calls every method as learners and exporter will, in the
same sandbox, and says more than a failed round could: that parameters do not come back as they were set, or change their
shapes. What it does is told as JSON lines on FD as it begins, so that of a method that never returns the name is known.

A sample may be too small for a repo that is right (a batch size, a split by classes): what fails is tried again with more rows.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flops_runtime import sandbox

ROWS, MORE_ROWS = 500, 20_000
_DEPENDS_ON_ROWS = {"FL5014", "FL5015", "FL5016", "FL5017", "FL5018"}
_TOLERANCE = 1e-3


def main(arguments: list[str]) -> int:
    """Checks one ML repo. The last line on the descriptor has `report` or `failure`."""
    sandbox.die_with_parent()
    return _told(json.loads(Path(arguments[0]).read_bytes()), int(arguments[1]))


def run(connection: Connection, spec: dict[str, Any]) -> None:
    """The same in a container, where the order comes through the door."""
    _told(spec, connection.fileno())


def _told(spec: dict[str, Any], fd: int) -> int:
    def tell(**content: Any) -> None:
        os.write(fd, json.dumps(content).encode() + b"\n")

    from flops_runtime.failures import Failure

    try:
        tell(report=check(spec, lambda step: tell(step=step)))
    except Failure as failure:
        tell(failure=failure.to_dict())
        return 3
    return 0


def check(spec: dict[str, Any], begins: Callable[[str], None]) -> dict[str, Any]:
    """The report: rows, seconds by method, shapes of the parameters. Raises Failure with file, line and method."""
    from flops_runtime.contract import prepare_process, seed_everything
    from flops_runtime.memory import Allowance, MemoryWatch, available_kb

    repo, work, data = Path(spec["repo_dir"]), Path(spec["work_dir"]), Path(spec["data"])
    sample = work / "sample.arrow"
    prepare_process(work, repo, str(sample), [path for path in sys.path if path])
    runtime = Path(__file__).resolve().parent.parent
    sandbox.enter([repo, runtime, data], [work])
    MemoryWatch().allow(os.getpid(), Allowance(0, available_kb() * 8 // 10))
    begins("the sample of the data")
    rows, total = write_sample(data, sample, ROWS)
    seed_everything("check")
    from flops_runtime.failures import Failure

    try:
        return {"rows": rows, **_Exercise(repo, work, begins).run()}
    except Failure as failure:
        if failure.code not in _DEPENDS_ON_ROWS or rows == total:
            raise
    rows, _ = write_sample(data, sample, MORE_ROWS)
    return {"rows": rows, **_Exercise(repo, work, begins).run()}


def write_sample(data: Path, sample: Path, most: int) -> tuple[int, int]:
    """Rows from the whole of a file, evenly spread since files may be sorted by label; how many, and of how many."""
    import numpy as np
    import pyarrow as pa

    with pa.memory_map(str(data)) as source:
        table = pa.ipc.open_stream(source).read_all()
        rows = min(most, table.num_rows)
        chosen = table.take(np.linspace(0, table.num_rows - 1, rows).astype(np.int64)) if rows < table.num_rows else table
        temporary = sample.with_suffix(".partial")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, chosen.schema) as writer:
            writer.write_table(chosen)
    temporary.replace(sample)
    return rows, table.num_rows


class _Exercise:
    """Every method once, as a run calls it."""

    def __init__(self, repo: Path, work: Path, begins: Callable[[str], None]) -> None:
        self._repo, self._work, self._begins = repo, work, begins
        self._seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        from flops_runtime.contract import ModelContract

        contract = self._timed("ModelManager()", lambda: ModelContract(self._repo, self._work))
        self._timed("set_model_data", contract.set_data)
        before = self._timed("get_model_parameters", contract.parameters)
        self._round_trip(contract, before)
        self._timed("fit_model", contract.fit)
        self._same_shapes(contract, before, contract.parameters())
        metrics = self._timed("evaluate_model", contract.evaluate)
        self._timed("get_model", contract.model)
        shapes = [[str(array.dtype), list(array.shape)] for array in before]
        return {"seconds": self._seconds, "parameters": shapes, "metrics": sorted(metrics)}

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        self._begins(name)
        started = time.monotonic()
        answer = call()
        self._seconds[name] = round(time.monotonic() - started, 3)
        return answer

    def _round_trip(self, contract: Any, arrays: list[Any]) -> None:
        """Other values than those that are there: a `set_model_parameters` that does nothing would not be noticed."""
        import numpy as np

        given = [array * 0.5 + 0.01 if array.dtype.kind == "f" else array.copy() for array in arrays]
        given = [array.astype(old.dtype) for array, old in zip(given, arrays)]
        self._timed("set_model_parameters", lambda: contract.set_parameters([array.copy() for array in given]))
        back = contract.parameters()
        if len(back) != len(given):
            raise _wrong(contract, "set_model_parameters", "FL5501", f"{len(given)} arrays were set, but {len(back)} came back")
        for index, (wanted, got) in enumerate(zip(given, back)):
            if wanted.shape != got.shape:
                text = f"array {index} was set with shape {wanted.shape}, but came back with {got.shape}"
                raise _wrong(contract, "set_model_parameters", "FL5501", text)
            if not np.allclose(wanted, got, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
                text = f"array {index} (shape {wanted.shape}) came back with other values than were set"
                raise _wrong(contract, "set_model_parameters", "FL5501", text)
        contract.set_parameters([array.copy() for array in arrays])

    @staticmethod
    def _same_shapes(contract: Any, before: list[Any], after: list[Any]) -> None:
        if [array.shape for array in before] != [array.shape for array in after]:
            text = (
                f"the parameters had the shapes {_shapes(before)} before training and {_shapes(after)} after it; "
                "answers of learners could not be averaged"
            )
            raise _wrong(contract, "fit_model", "FL5502", text)


def _shapes(arrays: list[Any]) -> str:
    shown = ", ".join(str(array.shape) for array in arrays[:5])
    return f"{shown}, …" if len(arrays) > 5 else shown


def _wrong(contract: Any, method: str, code: str, what: str) -> Exception:
    from flops_runtime.failures import Failure

    function = getattr(type(contract.manager), method, None)
    place = getattr(function, "__code__", None)
    cures = {
        "FL5501": "`get_model_parameters` has to return what `set_model_parameters` was given, in the same order.",
        "FL5502": "Give the model its final shape in `ModelManager()`, for all classes, not for those in a learner's data.",
    }
    return Failure(
        code,
        f"`{method}`: {what}.",
        cure=cures[code],
        path=Path(place.co_filename).name if place else "model_manager.py",
        line=place.co_firstlineno if place else 0,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
