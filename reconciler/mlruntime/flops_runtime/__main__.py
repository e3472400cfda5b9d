"""`python -m flops_runtime JOB EVENTS_FD LIFE_FD`: the aggregator of one training run."""

from __future__ import annotations

import sys

from flops_runtime.aggregator import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
