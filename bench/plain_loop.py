"""The same learning as a job's, in one plain Python loop: what federation costs is measured against this.

Runs in the ML environment: `python plain_loop.py job.json`. Prints one line of JSON: seconds, accuracy.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """FedAvg by hand over the job's shards, with the ML repo's own ModelManager."""
    job = json.loads(Path(sys.argv[1]).read_text())
    started = time.monotonic()
    sys.path.insert(0, job["repo_dir"])
    from model_manager import ModelManager

    managers = []
    for shard in job["shards"]:
        os.environ["FLOPS_DATA"] = shard
        manager = ModelManager()
        manager.set_model_data()
        managers.append(manager)
    parameters = managers[0].get_model_parameters()
    accuracy = 0.0
    for _ in range(job["rounds"]):
        answers = []
        for manager in managers:
            manager.set_model_parameters([np.copy(item) for item in parameters])
            answers.append((manager.fit_model(), [np.copy(item) for item in manager.get_model_parameters()]))
        total = sum(count for count, _ in answers)
        parameters = [sum(count / total * values[index] for count, values in answers) for index in range(len(parameters))]
        results = []
        for manager in managers:
            manager.set_model_parameters([np.copy(item) for item in parameters])
            results.append(manager.evaluate_model())
        accuracy = sum(a * n for _, a, n in results) / sum(n for _, _, n in results)
    print(json.dumps({"seconds": time.monotonic() - started, "accuracy": float(accuracy)}))


if __name__ == "__main__":
    main()
