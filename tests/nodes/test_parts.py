"""The parts of a node and of a federation, each by itself."""

from __future__ import annotations

import datetime
import io
import json
import ssl
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from reconciler.errors import DataError, SpecErrors, TrainingError
from reconciler.federation.data import arrow_files
from reconciler.nodes import certificates, fab, keys, packing
from reconciler.nodes.clusters import Clusters, grouped
from reconciler.nodes.data import NodeData
from reconciler.nodes.federation import ago, declared
from reconciler.spec.loader import load_node
from reconciler.spec.training import Cluster
from reconciler.spec.validate import validate_paths
from tests.nodes.kit import LOCK, REPO, write_rows

NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
SPEC = fab.LearnerSpec("ab" * 32, "digits", "sklearn", 1, ("blobs",), 200, 1, 60.0, *LOCK)


# --- keys -----------------------------------------------------------------------------------------------------------------


def test_a_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "node" / "node.key"
    public = keys.generate(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert keys.public_file(file).read_bytes() == keys.public_bytes(public)
    assert keys.public_bytes(keys.read(file)[1]) == keys.public_bytes(public)
    with pytest.raises(TrainingError, match="exists already"):
        keys.generate(file)
    file.chmod(0o640)
    with pytest.raises(TrainingError, match="Others may read"):
        keys.read(file)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "node.key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(TrainingError) as caught:
        keys.read(file)
    assert caught.value.code == "FL5808"
    with pytest.raises(TrainingError, match="cannot be read"):
        keys.read(tmp_path / "none.key")


# --- nodes/<name>.yaml ----------------------------------------------------------------------------------------------------


def node_file(public: str, **more: object) -> bytes:
    return json.dumps({"public_key": public, "tags": ["blobs"], **more}).encode()


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    return keys.public_bytes(key.public_key()).decode()


def test_a_key_is_taken_in_any_usual_form_and_kept_in_flowers() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    ssh = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    assert load_node(node_file(ssh), "nodes/a.yaml").public_key == load_node(node_file(pem(key)), "nodes/a.yaml").public_key


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("nothing", "is not a public key"),
        (rsa.generate_private_key(65537, 2048).public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode(), "elliptic-curve"),
        ("-----BEGIN PRIVATE KEY-----\nMIG2\n-----END PRIVATE KEY-----", "is a private key"),
    ],
)  # fmt: skip
def test_what_is_no_key_of_a_node_is_told_without_repeating_it(text: str, cause: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        load_node(node_file(text), "nodes/a.yaml")
    assert cause in str(caught.value)
    assert "MIG2" not in str(caught.value)


def test_flops_validate_looks_at_nodes(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "good.yaml").write_bytes(node_file(pem(ec.generate_private_key(ec.SECP384R1()))))
    (tmp_path / "nodes" / "bad.yaml").write_text("public_key: x\ntag: [a]\n")
    errors, checked = validate_paths([], root=tmp_path)
    assert checked == 2
    assert {error.code for error in errors} == {"FL1021", "FL1022", "FL1024"}
    assert all(error.where and error.where.path == "nodes/bad.yaml" for error in errors)


def test_nodes_belong_to_one_federation_and_have_a_key_each() -> None:
    one, other = (pem(ec.generate_private_key(ec.SECP384R1())) for _ in range(2))
    files = {
        "a": ("nodes/a.yaml", node_file(one, cluster="east")),
        "b": ("nodes/b.yaml", node_file(other, federation="elsewhere")),
    }
    assert list(declared(files, "default")) == ["a"]
    files["c"] = ("nodes/c.yaml", node_file(one))
    with pytest.raises(TrainingError) as caught:
        declared(files, "default")
    assert caught.value.code == "FL5810"


def test_clusters_are_those_of_the_nodes_files_or_those_of_the_sla() -> None:
    candidates = {"d": "west", "c": "west", "b": "", "a": "east"}
    assert grouped(candidates, [], candidates, "f") == Clusters((("east", ("a",)), ("west", ("c", "d"))), without=("b",))
    wanted = [Cluster(name="west"), Cluster(name="mine", nodes=["c", "b", "other"])]
    found = grouped(candidates, wanted, {*candidates, "other"}, "f")
    assert found == Clusters((("west", ("d",)), ("mine", ("b", "c")))), "a node is in one cluster; `other` has other data"
    assert found.sizes() == [("west", 1), ("mine", 2)]
    assert found.of_nodes() == {"d": "west", "b": "mine", "c": "mine"}


@pytest.mark.parametrize(
    ("wanted", "code"),
    [([Cluster(name="east", nodes=["nobody"])], "FL5840"), ([Cluster(name="south")], "FL5841"), ([], "FL5841")],
)
def test_clusters_that_cannot_be(wanted: list[Cluster], code: str) -> None:
    with pytest.raises(TrainingError) as caught:
        grouped({"a": "east"} if wanted else {"a": ""}, wanted, {"a"}, "hospitals")
    assert caught.value.code == code
    assert "hospitals" in caught.value.cause


# --- certificates ---------------------------------------------------------------------------------------------------------


def test_the_authority_stays_and_the_servers_certificate_is_renewed(tmp_path: Path) -> None:
    authority = certificates.ensure(tmp_path, ["localhost", "127.0.0.1"], NOW).read_bytes()
    first = (tmp_path / "server.pem").read_bytes()
    assert certificates.ensure(tmp_path, ["localhost", "127.0.0.1"], NOW).read_bytes() == authority
    assert (tmp_path / "server.pem").read_bytes() == first
    certificates.ensure(tmp_path, ["localhost", "10.0.0.1"], NOW)
    second = (tmp_path / "server.pem").read_bytes()
    assert second != first
    certificates.ensure(tmp_path, ["localhost", "10.0.0.1"], NOW + datetime.timedelta(days=350))
    assert (tmp_path / "server.pem").read_bytes() != second
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    ssl.create_default_context(cafile=str(tmp_path / "ca.pem")).load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")


# --- app bundles and messages ---------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bundle_and_flower_takes_it(tmp_path: Path) -> None:
    from flwr.common.config import get_fab_config

    bundle = fab.build(REPO, SPEC)
    assert fab.build(REPO, SPEC) == bundle
    assert fab.build(REPO, replace(SPEC, digest="cd" * 32)).hash != bundle.hash
    assert get_fab_config(bundle.content)["tool"]["flwr"]["app"]["publisher"] == "flops"
    assert fab.unpack(bundle.content, bundle.hash, tmp_path) == SPEC
    names = {path.name for path in (tmp_path / "ml_repo").iterdir()}
    assert names == {path.name for path in REPO.iterdir() if path.is_file()}


def bundle_with(name: str, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        with zipfile.ZipFile(io.BytesIO(fab.build(REPO, SPEC).content)) as good:
            archive.writestr("flops.json", good.read("flops.json"))
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["ml_repo/../../out.py", "ml_repo//../x", "ml_repo/a\\b", "ml_repo/\x1b[1m"])
def test_a_bundle_never_writes_outside_its_folder(tmp_path: Path, name: str) -> None:
    content = bundle_with(name)
    with pytest.raises(TrainingError) as caught:
        fab.unpack(content, sha256(content).hexdigest(), tmp_path / "run")
    assert caught.value.code == "FL5807"
    assert not list(tmp_path.glob("*.py"))


def test_a_bundle_that_is_not_what_was_announced_or_too_large_is_refused(tmp_path: Path) -> None:
    good = fab.build(REPO, SPEC).content
    large = bundle_with("ml_repo/zeros", bytes(300 << 20))
    for content, digest in ((good, "0" * 64), (large, sha256(large).hexdigest()), (b"x", sha256(b"x").hexdigest())):
        with pytest.raises(TrainingError) as caught:
            fab.unpack(content, digest, tmp_path)
        assert caught.value.code == "FL5807"


@pytest.mark.parametrize(
    "odd",
    [{"python": "--help"}, {"python": "3.11\n"}, {"project": "../x"}, {"project": ""}, {"memory_mb": 0}, {"flavor": "pickle"}],
)
def test_a_bundle_that_asks_for_what_cannot_be_is_refused(tmp_path: Path, odd: dict[str, object]) -> None:
    """Its words become arguments of programs and names of containers."""
    bundle = fab.build(REPO, replace(SPEC, **odd))  # type: ignore[arg-type]
    with pytest.raises(TrainingError) as caught:
        fab.unpack(bundle.content, bundle.hash, tmp_path)
    assert caught.value.code == "FL5807"


def test_an_ml_repo_that_is_too_large_for_flower_is_told(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.random.default_rng(0).bytes(12 << 20))
    with pytest.raises(TrainingError) as caught:
        fab.build(tmp_path, SPEC)
    assert caught.value.code == "FL5804"


@pytest.mark.parametrize("size", [0, 100, packing.INLINE_BYTES + 1, packing.PART_BYTES * 2 + 1])
def test_a_content_is_packed_and_unpacked(size: int) -> None:
    content = bytes(size)
    records = packing.pack(content, {"learner": 3})
    assert packing.unpack(records) == (content, {"learner": 3})
    shared = [key for key in records if key != packing.HEAD]
    assert len(shared) == (0 if size <= packing.INLINE_BYTES else -(-size // packing.PART_BYTES))
    if shared:
        other = packing.pack(content, {"learner": 4})
        assert records[shared[0]].object_id == other[shared[0]].object_id, "all nodes of a round share it"


# --- a node's data --------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> NodeData:
    return NodeData(tmp_path / "node")


def rows_of(path: Path) -> list[tuple[object, ...]]:
    table = arrow_files.read(path)
    return [tuple(row["x"]) for row in table.to_pylist()]


def test_datasets_come_and_go(data: NodeData, tmp_path: Path) -> None:
    dataset = data.add(write_rows(tmp_path / "rows.parquet", 50, 1), name="rows", tags=["b", "a", "b"])
    assert (dataset.rows, dataset.test_rows, dataset.tags) == (50, 0, ("a", "b"))
    assert dataset.statistics["y"]["max"] == 2
    assert data.list() == [dataset]
    assert (tmp_path / "node").stat().st_mode & 0o077 == 0
    again = data.add(write_rows(tmp_path / "more.parquet", 60, 2), name="rows", tags=["a"])
    assert data.list() == [again]
    data.remove("rows")
    assert data.list() == []
    with pytest.raises(DataError) as caught:
        data.remove("rows")
    assert caught.value.code == "FL4502"


def test_shards_are_disjoint_and_together_everything(data: NodeData, tmp_path: Path) -> None:
    data.add(write_rows(tmp_path / "one.parquet", 50, 1), name="one", tags=["a"])
    data.add(write_rows(tmp_path / "two.parquet", 51, 2), name="two", tags=["a", "b"])
    data.add(write_rows(tmp_path / "three.parquet", 20, 3), name="three", tags=["c"])
    shards = [data.shard(["a", "b"], number, 3) for number in range(3)]
    assert [shard.rows for shard in shards] == [34, 34, 33]
    rows = [row for shard in shards for row in rows_of(shard.path)]
    assert len(set(rows)) == 101
    assert data.shard(["a", "b"], 0, 3) == shards[0]
    assert data.shard(["b"], 0, 1).rows == 51


def test_held_out_rows_are_in_no_shard(data: NodeData, tmp_path: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    write_rows(source / "train.parquet", 40, 1)
    write_rows(source / "test.parquet", 10, 2)
    dataset = data.add(source, name="split", tags=["a"])
    assert (dataset.rows, dataset.test_rows) == (40, 10)
    whole = data.add(write_rows(tmp_path / "whole.parquet", 100, 3), name="whole", tags=["b"], test_fraction=0.25)
    assert (whole.rows, whole.test_rows) == (75, 25)
    assert data.shard(["b"], 0, 1).rows == 75


@pytest.mark.parametrize(
    ("name", "tags", "fraction", "code"),
    [("../x", ["a"], 0.0, "FL4502"), ("", ["a"], 0.0, "FL4502"), ("x", [], 0.0, "FL4502"), ("x", ["a"], 1.0, "FL4504")],
)
def test_what_cannot_be_added_is_told(
    data: NodeData, tmp_path: Path, name: str, tags: list[str], fraction: float, code: str
) -> None:
    with pytest.raises(DataError) as caught:
        data.add(write_rows(tmp_path / "rows.parquet", 5, 1), name=name, tags=tags, test_fraction=fraction)
    assert caught.value.code == code
    assert data.list() == []


def test_files_that_cannot_be_read_are_told_and_leave_nothing(data: NodeData, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "notes.txt").write_text("hello")
    for name in ("bad.parquet", "notes.txt"):
        with pytest.raises(DataError) as caught:
            data.add(tmp_path / name, name="x", tags=["a"])
        assert caught.value.code == "FL4010"
    with pytest.raises(DataError) as caught:
        data.add(tmp_path / "nowhere", name="x", tags=["a"])
    assert caught.value.code == "FL4008"
    assert data.list() == []


def test_tags_without_data_and_too_few_rows(data: NodeData, tmp_path: Path) -> None:
    pa.csv.write_csv(pa.table({"x": [1.0, 2.0]}), tmp_path / "tiny.csv")
    data.add(tmp_path / "tiny.csv", name="tiny", tags=["a"])
    with pytest.raises(DataError) as caught:
        data.shard(["b"], 0, 1)
    assert caught.value.code == "FL4501"
    with pytest.raises(DataError) as caught:
        data.shard(["a"], 0, 3)
    assert caught.value.code == "FL4504"
    for damage in ("{broken", "2", '{"a": 2}'):
        (tmp_path / "node" / "catalog.json").write_text(damage)
        with pytest.raises(DataError) as caught:
            data.list()
        assert caught.value.code == "FL4503"


def test_times_as_people_say_them() -> None:
    assert [ago(seconds, 100_000.0) for seconds in (0.0, 99_990.0, 99_000.0, 80_000.0, 10.0)] == [
        "never", "10 s ago", "17 min ago", "6 h ago", "1 d ago",
    ]  # fmt: skip
