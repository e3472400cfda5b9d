"""Datasets: verified before they are used, whole before they are there, dealt without overlap."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from sklearn.datasets import load_digits

from reconciler.errors import DataError
from reconciler.federation.data import DataCatalog, DatasetVersion, arrow_files, digits, mnist
from reconciler.runtime_version import mlruntime_dir
from reconciler.spec import load_mock_data


def mock(name: str = "mnist", parts: int = 2):  # type: ignore[no-untyped-def]
    text = f"customerID: a\nmock_data_configuration: {{dataset_name: {name}, number_of_partitions: {parts}, data_tag: mnist}}\n"
    return load_mock_data(text.encode(), "mock_data.yaml")


@pytest.fixture(scope="module")
def images(shared_cache: Path) -> DatasetVersion:
    return DataCatalog(shared_cache / "data").resolve(mock(), ["mnist"])


def table(rows: int, start: int = 0) -> pa.Table:
    return pa.table({"id": np.arange(start, start + rows), "x": np.arange(rows) / 7})


def user(folder: Path, **tables: pa.Table) -> DataCatalog:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tables.items():
        pa.parquet.write_table(content, folder / f"{name}.parquet")
    return DataCatalog(folder.parent / "cache", {"mine": folder})


def test_mnist_is_the_real_one(images: DatasetVersion) -> None:
    assert (images.rows, images.holdout_rows, images.columns) == (60_000, 10_000, ("image", "label"))
    labels = arrow_files.read(images.directory / "train.arrow")["label"].to_numpy()
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_digits_are_those_of_scikit_learn_and_every_fifth_is_held_out(tmp_path: Path) -> None:
    found = DataCatalog(tmp_path).resolve(mock("digits"), ["mnist"])
    assert (found.rows, found.holdout_rows, found.columns) == (1438, 359, ("image", "label"))
    shipped = load_digits()
    held_out = np.arange(len(shipped.target)) % 5 == 4
    for name, rows in (("train", ~held_out), ("holdout", held_out)):
        table = arrow_files.read(found.directory / f"{name}.arrow")
        assert (table["label"].to_numpy() == shipped.target[rows]).all()
        pixels = [np.frombuffer(image["bytes"][-64:], np.uint8) for image in table["image"].to_pylist()]
        assert (np.stack(pixels) == shipped.images[rows].reshape(-1, 64) * 15).all()
    assert DataCatalog(tmp_path / "other").resolve(mock("digits"), ["mnist"]).digest == found.digest
    assert (
        DataCatalog(tmp_path).describe(mock("digits"), ["mnist"])[0].digest
        != DataCatalog(tmp_path).describe(mock(), ["mnist"])[0].digest
    )


def test_digits_of_another_scikit_learn_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "DIGITS", "0" * 64)
    with pytest.raises(DataError) as caught:
        DataCatalog(tmp_path).resolve(mock("digits"), ["mnist"])
    assert caught.value.code == "FL4017"
    assert not list(tmp_path.rglob("*.arrow"))


def test_load_dataset_gives_what_hugging_face_gives(images: DatasetVersion) -> None:
    code = """
import json, numpy as np
from flops_utils.ml_repo_building_blocks import load_dataset
import datasets
data = load_dataset()
row = data[3]
data.set_format("numpy")
fast, slow = data["image"], data[:50]["image"]
print(json.dumps([isinstance(data, datasets.Dataset), row["image"].size, row["label"], list(fast.shape), str(fast.dtype),
    bool((fast[:50] == slow).all()),
    data.train_test_split(0.5, seed=1)["train"]["image"].shape[0], str(data.features["label"])[:10]]))
"""
    environment = {**os.environ, "FLOPS_DATA": str(images.directory / "holdout.arrow"), "PYTHONPATH": str(mlruntime_dir())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ('[true, [28, 28], 0, [10000, 28, 28], "uint8", true, 5000, "ClassLabel"]')


def test_load_dataset_outside_a_learner_says_so() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(mlruntime_dir())}
    code = "from flops_utils.ml_repo_building_blocks import load_dataset; load_dataset()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "called by a learner" in done.stderr


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (2, 2), (3, 3), (2, 7), (4, None)])
def test_every_row_goes_to_exactly_one_learner(tmp_path: Path, count: int, parts: int | None) -> None:
    catalog = user(tmp_path / "data", train=table(101))
    version = catalog.resolve(None, ["mine"])
    shards = catalog.shards(version, count, 5, tmp_path / "shards", parts)
    ids = [set(arrow_files.read(path)["id"].to_pylist()) for path in shards]
    assert sum(len(item) for item in ids) == 101
    assert set().union(*ids) == set(range(101))


def test_a_seed_deals_the_same_way_and_another_differently(tmp_path: Path) -> None:
    catalog = user(tmp_path / "data", train=table(50))
    version = catalog.resolve(None, ["mine"])

    def first(seed: int, folder: str) -> list[int]:
        found: list[int] = arrow_files.read(catalog.shards(version, 2, seed, tmp_path / folder)[0])["id"].to_pylist()
        return found

    assert first(1, "a") == first(1, "b")
    assert first(1, "a") != first(2, "c")


def test_too_few_partitions_are_an_error(tmp_path: Path) -> None:
    catalog = user(tmp_path / "data", train=table(50))
    with pytest.raises(DataError, match="FL4004"):
        catalog.shards(catalog.resolve(None, ["mine"]), 3, 0, tmp_path / "s", 2)


def test_all_file_kinds_and_held_out_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    catalog = user(folder, a=table(10), test=table(3))
    pa.csv.write_csv(table(10, 10), folder / "b.csv")
    pa.feather.write_feather(table(10, 20), str(folder / "c.feather"))
    version = catalog.resolve(None, ["mine"])
    assert (version.rows, version.holdout_rows) == (30, 3)


def test_the_digest_follows_the_content_and_describing_fetches_nothing(tmp_path: Path) -> None:
    catalog = user(tmp_path / "data", a=table(10))
    before = catalog.describe(None, ["mine"])
    user(tmp_path / "data", a=table(11))
    assert catalog.describe(None, ["mine"]) != before
    assert DataCatalog(tmp_path / "none", mnist_sources=()).describe(mock(), ["mnist"])[0].name == "mnist"
    assert not (tmp_path / "none").exists()


def test_bad_directories(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FL4007"):
        user(tmp_path / "1" / "data").describe(None, ["mine"])
    with pytest.raises(DataError, match="FL4008"):
        DataCatalog(tmp_path, {"mine": tmp_path / "nowhere"}).describe(None, ["mine"])
    other = user(tmp_path / "2" / "data", a=table(3))
    pa.parquet.write_table(pa.table({"id": [1], "y": [2.0]}), tmp_path / "2" / "data" / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet.*FL4011.*x, y"):
        other.resolve(None, ["mine"])
    broken = user(tmp_path / "3" / "data", a=table(3))
    (tmp_path / "3" / "data" / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"b.parquet.*FL4010"):
        broken.resolve(None, ["mine"])
    linked = user(tmp_path / "4" / "data", a=table(3))
    (tmp_path / "4" / "data" / "b.csv").symlink_to("/etc/hosts")
    with pytest.raises(DataError, match="FL4009"):
        linked.describe(None, ["mine"])


def test_tags_and_names_that_do_not_exist(tmp_path: Path) -> None:
    catalog = DataCatalog(tmp_path)
    with pytest.raises(DataError, match="FL4001"):
        catalog.describe(mock(), [])
    with pytest.raises(DataError, match=r"FL4003.*Known tags: mnist"):
        catalog.describe(mock(), ["cifar"])
    with pytest.raises(DataError, match=r"FL4006.*Did you mean 'mnist'"):
        catalog.describe(mock("mnits"), ["mnist"])


def test_a_wrong_download_is_never_accepted_and_the_next_source_is_tried(tmp_path: Path, shared_cache: Path) -> None:
    DataCatalog(shared_cache / "data").resolve(mock(), ["mnist"])

    def wrong(folder: Path) -> None:
        for name in mnist.NAMES:
            (folder / name).write_bytes(b"rubbish")

    def copy(folder: Path) -> None:
        for name in mnist.NAMES:
            (folder / name).write_bytes((shared_cache / "data" / "mnist" / name).read_bytes())

    with pytest.raises(DataError, match=r"FL4002.*a mirror: .*checksum") as caught:
        DataCatalog(tmp_path / "a", mnist_sources=[("a mirror", wrong)]).resolve(mock(), ["mnist"])
    assert caught.value.transient
    lines: list[str] = []
    catalog = DataCatalog(tmp_path / "b", mnist_sources=[("a mirror", wrong), ("the cache", copy)])
    assert catalog.resolve(mock(), ["mnist"], on_line=lines.append).rows == 60_000
    assert lines[-1] == "MNIST from the cache: verified"


def test_idx_files_go_both_ways(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    mnist.write_idx(tmp_path / "x", values)
    assert (mnist.read_idx((tmp_path / "x").read_bytes()) == values).all()
