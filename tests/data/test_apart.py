"""Rows are read beside the loop: the same data, and nothing of what reads them in the loop's own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.errors import DataError
from reconciler.federation.data import CatalogApart, DataCatalog
from reconciler.federation.data.apart import READER
from tests.data.test_catalog import mock

SHARDS = """
import sys
from pathlib import Path
from reconciler.federation.data import CatalogApart

catalog = CatalogApart(Path(sys.argv[1]), {"mine": Path(sys.argv[2])})
version = catalog.resolve(None, ["mine"])
print(version.rows, *(path.is_file() for path in catalog.shards(version, 2, 0, Path(sys.argv[1]) / "shards")))
print(*{name.partition(".")[0] for name in sys.modules})
"""


def rows(folder: Path, count: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows.csv").write_text("x,y\n" + "".join(f"{number},{number % 2}\n" for number in range(count)))
    return folder


def test_the_process_that_asks_reads_no_rows(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SHARDS, str(tmp_path / "cache"), str(rows(tmp_path / "mine"))]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "10 True True"
    assert not {"numpy", "pyarrow", "pandas", "datasets"} & set(said[1].split())


def test_it_is_the_catalogue_with_its_errors(tmp_path: Path) -> None:
    here, apart = DataCatalog(tmp_path / "here"), CatalogApart(tmp_path / "apart")
    found, wanted = apart.resolve(mock("digits"), ["mnist"]), here.resolve(mock("digits"), ["mnist"])
    assert (found.digest, found.rows, found.columns) == (wanted.digest, wanted.rows, wanted.columns)
    for left, right in zip(apart.shards(found, 3, 7, tmp_path / "a"), here.shards(wanted, 3, 7, tmp_path / "b"), strict=True):
        assert left.read_bytes() == right.read_bytes()
    said = []
    for catalog in (here, apart):
        with pytest.raises(DataError) as caught:
            catalog.shards(wanted, 4, 0, tmp_path / "c", 2)
        said.append(vars(caught.value))
    assert said[0] == said[1]


def test_lines_are_told_while_data_are_fetched(tmp_path: Path) -> None:
    catalog = CatalogApart(tmp_path, mnist_sources=[("nowhere", _no_source)])
    lines: list[str] = []
    with pytest.raises(DataError, match="FL4002"):
        catalog.resolve(mock(), ["mnist"], on_line=lines.append)
    assert lines == ["MNIST from nowhere …"]


def test_data_that_are_too_large_end_their_reader_and_not_the_loop(tmp_path: Path) -> None:
    """The SIGKILL is ours here, and the kernel's where memory is short."""
    catalog = CatalogApart(tmp_path / "cache", {"mine": rows(tmp_path / "mine", 2_000_000)})
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(catalog.resolve, None, ["mine"])
        while not READER.calls:
            time.sleep(0.001)
        os.kill(READER.pid or 0, signal.SIGKILL)
        with pytest.raises(DataError) as caught:
            reading.result()
    assert (caught.value.code, caught.value.transient) == ("FL4018", True)
    assert catalog.resolve(None, ["mine"]).rows == 2_000_000


def _no_source(_folder: Path) -> None:
    raise OSError("there is nothing")
