"""A disk that is full: said as such, no half dataset is used, and it goes on when there is space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from reconciler.errors import DataError
from reconciler.federation.data import DataCatalog
from tests.conftest import SmallDisk


def test_a_dataset_is_made_when_there_is_space_again(tmp_path: Path, small_disk: SmallDisk) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    pa.parquet.write_table(pa.table({"x": np.random.default_rng(1).random(200_000)}), folder / "a.parquet")
    catalog = DataCatalog(small_disk.path / "cache", {"mine": folder})
    small_disk.leave(512 * 1024)
    with pytest.raises(DataError, match="FL4005") as raised:
        catalog.resolve(None, ["mine"])
    assert raised.value.transient
    small_disk.free()
    assert catalog.resolve(None, ["mine"]).rows == 200_000
