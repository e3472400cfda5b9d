"""The smoke test on MNIST: a fresh GitOps repo, one round, a served prediction. Run: `python -m ci.smoke`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from bench.workbench import make

PROJECT = "mnist-classic"


def main() -> int:
    """0 when the model of one round serves and knows most digits."""
    with tempfile.TemporaryDirectory(prefix="flops-smoke-") as root:
        bench = make(Path(root))
        bench.edit_sla(PROJECT, "training_rounds: 3", "training_rounds: 1")
        bench.commit("One round")
        try:
            print(bench.flops("reconcile", "--once"))
            document = bench.status(PROJECT)
            answer = json.loads(bench.flops("predict", PROJECT))
        finally:
            bench.stop()
    accuracy = document["model"]["holdout"]["accuracy"]
    good = len(answer["predictions"]) == 1 and accuracy > 0.7
    print(f"accuracy {accuracy:.4f}, answer {answer}: {'good' if good else 'NOT GOOD'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
