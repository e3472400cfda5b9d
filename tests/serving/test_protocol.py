"""The inference server answers as MLflow's own scoring server does, in value, status and error code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import mlflow.pyfunc
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from reconciler.runtimes.model import Service
from reconciler.serving.client import version
from tests.serving.conftest import Saved

Start = Callable[..., Service]
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.2, 3.4, 5.4, 2.3]]
SPLIT = {"columns": ["a", "b", "c", "d"], "data": ROWS}
RECORDS = [dict(zip("abcd", row, strict=True)) for row in ROWS]
CSV = "a,b,c,d\n" + "\n".join(",".join(map(str, row)) for row in ROWS) + "\n"

BODIES: dict[str, Any] = {
    "inputs": {"inputs": ROWS},
    "inputs named": {"inputs": {name: [row[at] for row in ROWS] for at, name in enumerate("abcd")}},
    "instances": {"instances": ROWS},
    "instances as records": {"instances": RECORDS},
    "a table": {"dataframe_split": SPLIT},
    "records": {"dataframe_records": RECORDS},
    "columns in another order": {"dataframe_records": [dict(reversed(row.items())) for row in RECORDS]},
    "whole numbers": {"inputs": [[5, 3, 1, 0]]},
    "numbers in strings": {"inputs": [["5", "3", "1", "0"]]},
    "params that nobody asked for": {"inputs": ROWS, "params": {"temperature": 1}},
    "an unknown key": {"inputs": ROWS, "more": 1},
    "too few columns": {"inputs": [[1.0, 2.0]]},
    "a column missing": {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}},
    "one row without brackets": {"inputs": ROWS[0]},
    "rows of different lengths": {"inputs": [[1, 2, 3, 4], [1]]},
    "a word for a number": {"inputs": [["x", 1, 2, 3]]},
    "a word in a table": {"dataframe_split": {"columns": ["a", "b", "c", "d"], "data": [["x", 1, 2, 3]]}},
    "nothing for a number": {"inputs": [[None, 1, 2, 3]]},
    "no rows": {"inputs": []},
    "a bare number": {"inputs": 5},
    "null": {"inputs": None},
    "no known key": {"rows": ROWS},
    "two known keys": {"inputs": ROWS, "instances": ROWS},
    "a list": ROWS,
    "not JSON": b"{",
    "not UTF-8": b'{"inputs": "\xff"}',
    "not finite": b'{"inputs": [[NaN, 1, 2, 3]]}',
    "CSV": CSV.encode(),
    "CSV without a column": b"a,b\n1,2\n",
}  # fmt: skip


def mlflows(saved: Saved, body: bytes, kind: str) -> tuple[int, Any]:
    """What MLflow's scoring server says."""
    model = mlflow.pyfunc.load_model(str(saved.folder))
    try:
        said = invocations(body, kind, model, model.metadata.get_input_schema())
    except MlflowException as error:
        return error.get_http_status_code(), error.error_code
    return said.status, json.loads(said.response)


@pytest.fixture(scope="module", params=["tensor", "table"])
def served(request: pytest.FixtureRequest, started: Start, tensor_model: Saved, table_model: Saved) -> tuple[Saved, httpx.Client]:
    saved = tensor_model if request.param == "tensor" else table_model
    service = started(saved, "d" * 64, request.param)
    return saved, httpx.Client(base_url=f"http://{service.address}", timeout=60)


@pytest.mark.parametrize("name", BODIES)
def test_answers_are_those_of_mlflows_scoring_server(served: tuple[Saved, httpx.Client], name: str) -> None:
    saved, client = served
    body = BODIES[name] if isinstance(BODIES[name], bytes) else json.dumps(BODIES[name]).encode()
    kind = "text/csv" if name.startswith("CSV") else "application/json"
    answer = client.post("/invocations", content=body, headers={"content-type": kind})
    content = answer.json()
    assert (answer.status_code, content if answer.status_code == 200 else content["error_code"]) == mlflows(saved, body, kind)
    if answer.status_code != 200:
        assert set(content) == {"error_code", "message"}
        assert content["message"]
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text


def test_other_content_types_are_refused(served: tuple[Saved, httpx.Client]) -> None:
    answer = served[1].post("/invocations", content=b"inputs=1", headers={"content-type": "application/x-www-form-urlencoded"})
    assert (answer.status_code, answer.json()["error_code"]) == (415, "BAD_REQUEST")


def test_health_and_version(served: tuple[Saved, httpx.Client]) -> None:
    client = served[1]
    assert [client.get(path).status_code for path in ("/ping", "/health")] == [200, 200]
    about = version(f"{client.base_url.host}:{client.base_url.port}")
    assert about == {
        "project": about["project"], "digest": "d" * 64, "flavor": "sklearn", "mlflow_version": mlflow.__version__,
    }  # fmt: skip
    assert client.get("/invocations").status_code == 405
    assert client.get("/other").status_code == 404


def test_a_body_over_the_limit_is_refused_and_the_server_goes_on(started: Start, tensor_model: Saved) -> None:
    service = started(tensor_model, "d" * 64, "small", "--max-body", "10000")
    with httpx.Client(base_url=f"http://{service.address}") as client:
        for size in (10_001, 30_000, 3_000_000):
            try:
                answer = client.post("/invocations", content=b" " * size, headers={"content-type": "application/json"})
            except httpx.TransportError:
                assert size == 3_000_000  # far too much is not even read
                continue
            assert (answer.status_code, answer.json()["error_code"]) == (413, "BAD_REQUEST")
        assert client.post("/invocations", json={"inputs": ROWS}).status_code == 200


def test_the_fast_path_starts_without_mlflow(tensor_model: Saved) -> None:
    import subprocess
    import sys

    from reconciler.runtime_version import mlruntime_dir

    code = (
        "import sys; from pathlib import Path; from flops_runtime.serve_model import ServedModel;"
        "model = ServedModel.load(Path(sys.argv[1]));"
        'print(model.answer(b\'{"inputs": [[5, 3, 1, 0]]}\', "application/json").status,'
        " sorted({'mlflow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tensor_model.folder)], env={"PYTHONPATH": str(mlruntime_dir())},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split(maxsplit=1)[0] == "200"
    assert "mlflow" not in done.stdout
