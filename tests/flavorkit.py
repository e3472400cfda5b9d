"""Environments with PyTorch and Keras for tests, from the cache that users have too."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

from reconciler.engine import cache_directory
from reconciler.environments import EnvironmentStore
from reconciler.errors import BuildError
from reconciler.federation.data import DataCatalog
from reconciler.scaffold import TEMPLATES
from reconciler.spec import load_mock_data

FLAVORS = ("pytorch", "keras")
DIGITS = b"customerID: me\nmock_data_configuration: {dataset_name: digits, number_of_partitions: 2, data_tag: digits}\n"


def example(flavor: str) -> Path:
    """The ML repo of a flavour's example project."""
    return TEMPLATES / "projects" / f"digits-{flavor}" / "ml_repo"


def stated_accuracy(project: str) -> float:
    """What an example's README says."""
    found = re.search(r"accuracy with seed 42: \*\*([\d.]+)\*\*", (TEMPLATES / "projects" / project / "README.md").read_text())
    assert found is not None
    return float(found[1])


def digits_of_two(root: Path) -> tuple[tuple[Path, ...], Path]:
    """Two shards of scikit-learn's digits, and what is held out."""
    catalog = DataCatalog(root)
    version = catalog.resolve(load_mock_data(DIGITS, "mock_data.yaml"), ["digits"])
    return tuple(catalog.shards(version, 2, 42, root / "shards")), version.directory / "holdout.arrow"


def python_of(repo: Path, flavor: str) -> Path:
    """The interpreter of an ML repo's environment; skips where PyTorch cannot be had for the CPU, and says so."""
    found = _python_of(repo, flavor)
    if isinstance(found, str):
        if os.environ.get("FLOPS_REQUIRE_TORCH") == "1":
            pytest.fail(found)
        pytest.skip(found)
    return found


@cache
def _python_of(repo: Path, flavor: str) -> Path | str:
    store = EnvironmentStore(cache_directory() / "environments")
    try:
        return store.ensure(store.lock(repo, flavor=flavor)).python
    except BuildError as error:
        if error.code == "FL3018":
            return f"no CPU build of PyTorch here: {error.cause} {error.cure}"
        raise
