"""The loggers that FLOps' ML repos import: what they say goes to the learner's standard error, and so into its log."""

import logging
import sys


def _make() -> logging.Logger:
    made = logging.getLogger("ml_repo")
    if not made.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        made.addHandler(handler)
        made.setLevel(logging.INFO)
        made.propagate = False
    return made


logger = _make()
colorful_logger = logger
"""Plain all the same: nobody reads a learner's log on a terminal."""
