"""Resolve: the ML repo's files and the dataset are on disk, both addressed by their content."""

from __future__ import annotations

from reconciler.digests import short
from reconciler.stages.model import Outcome, Work


def run(work: Work) -> Outcome:
    """Check the ML repo out and fetch the data; both are cached, so a second run costs nothing."""
    declared = work.declared
    work.repo_dir = declared.checkout()
    federation = declared.sla.training_configuration.federation
    if federation is not None:
        return Outcome(
            "done",
            f"ML repo {short(declared.ml_repo['tree'])}, data stay on the nodes of federation {federation}",
            {"ml_repo": dict(declared.ml_repo), "dataset": {"name": federation, "digest": ""}},
        )
    work.dataset = work.tools.catalog.resolve(
        declared.mock_data, declared.sla.training_configuration.data_tags, on_line=lambda line: work.tell("data", line)
    )
    rows = f"{work.dataset.rows:,} rows"
    if work.dataset.holdout_rows:
        rows += f" and {work.dataset.holdout_rows:,} held out"
    return Outcome(
        "done",
        f"ML repo {short(declared.ml_repo['tree'])}, dataset {work.dataset.name} ({rows})",
        {"ml_repo": dict(declared.ml_repo), "dataset": {"name": work.dataset.name, "digest": work.dataset.digest}},
    )
