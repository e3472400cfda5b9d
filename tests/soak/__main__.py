"""`make soak`: all that takes hours, one part after the other, with a summary. The exit code says whether all of it held.

| part | size by | in full | on two idle cores |
| --- | --- | --- | --- |
| kills | FLOPS_SOAK_KILLS | 200 | half an hour to an hour |
| idle | FLOPS_SOAK_MINUTES (simulated) | 480 | a quarter of an hour |
| histories | FLOPS_SOAK_EXAMPLES | 400 | an hour |
| trainings: kills of learners, aggregators, nodes, SuperLink, reconciler | FLOPS_SOAK_TIMES | 20 of each | an hour |
| long: tests that `make test` leaves out; with an engine the arm64 image under QEMU | – | each once | a quarter of an hour |
| api: schemathesis | – | 300 examples an operation | five minutes |
| laws of the loader and the plan | – | 20,000 examples each | a quarter of an hour |
| fuzz | FLOPS_SOAK_INPUTS | 1,000,000 | ten to twenty minutes |

`python -m tests.soak PART …` runs some of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

os.environ["FLOPS_SOAK"] = "1"  # before sizes are read, which are the short ones otherwise
from tests.soak.sizes import size

PYTEST = (sys.executable, "-m", "pytest")
PARTS = {
    "kills": (*PYTEST, "tests/soak/test_kills.py"),
    "idle": (*PYTEST, "tests/soak/test_idle.py"),
    "histories": (*PYTEST, "tests/controller/test_state_machine.py"),
    "trainings": (*PYTEST, "tests/federation/test_soak.py", "tests/nodes/test_soak.py", "tests/e2e/test_soak.py"),
    "long": (*PYTEST, "tests", "-m", "long", "--ignore-glob=*/test_soak.py"),
    "api": (*PYTEST, "tests/web/test_schema.py"),
    "laws": (*PYTEST, "tests/spec", "tests/plan"),
    "fuzz": (sys.executable, "-m", "tests.soak.fuzz", "--runs", str(size("FLOPS_SOAK_INPUTS", short=1500, long=1_000_000))),
}


def main(chosen: list[str]) -> int:
    """Run the parts; 1 when one of them failed."""
    summary, failed = [], 0
    for name in chosen or PARTS:
        print(f"soak: {name} …", flush=True)
        started = time.monotonic()
        code = subprocess.run(PARTS[name], check=False).returncode
        failed += code != 0
        summary.append(f"soak: {name:10} {'held' if code == 0 else 'FAILED':6} {(time.monotonic() - started) / 60:6.1f} min")
    print("\n".join(summary))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
