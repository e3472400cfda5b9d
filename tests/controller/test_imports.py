"""What the loop holds in memory: nothing that only stages need, as long as no stage runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reconciler.plan import Stage
from reconciler.stages import function_of

HEAVY = {"cyclonedx", "datasets", "docker", "fastapi", "flwr", "grpc", "mlflow", "nacl", "numpy", "pandas", "pyarrow", "requests"}


def test_serving_imports_nothing_that_only_stages_need() -> None:
    code = "import sys, reconciler.commands.serve; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_has_a_module_of_its_name(stage: Stage) -> None:
    assert function_of(stage).__module__ == f"reconciler.stages.{stage}"
