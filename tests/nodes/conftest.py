"""Federations for one test each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes.kit import REPO, Federation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A copy of the example ML repo, to be spoilt."""
    return Path(shutil.copytree(REPO, tmp_path / "repo"))
