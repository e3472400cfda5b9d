"""The logger names that FLOps' ML repos import."""

import logging

logger = logging.getLogger("ml_repo")
colorful_logger = logger
