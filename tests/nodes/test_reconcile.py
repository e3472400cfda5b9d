"""From a merged SLA to a registered model, trained on machines of a federation: all through the command line."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from bench.workbench import Workbench, make
from tests.dockerkit import open_engine
from tests.nodes.kit import REPO, Process, eventually, free_port, write_rows

SLA = """customerID: demo
ml_repo_url: ./projects/blobs/ml_repo
ml_model_flavor: sklearn
training_configuration:
  federation: hospitals
  data_tags: [blobs]
  training_rounds: 2
  min_available_clients: 2
  min_fit_clients: 2
  min_evaluate_clients: 2
evaluation_gate: {metric: holdout.accuracy, threshold: 0.5}
post_training_steps: [build_image_for_trained_model, deploy_trained_model_image]
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    made = make(tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("north", ["process", pytest.param("docker", marks=pytest.mark.long)])
def test_a_merged_sla_trains_on_declared_nodes_only_and_serves_what_it_measured_there(
    bench: Workbench, tmp_path: Path, north: str
) -> None:
    """Whatever the runtime of a node is: what is locked here is made an image there."""
    if north == "docker":
        open_engine()
    port = free_port()
    for folder in (bench.clone / "projects").iterdir():
        shutil.rmtree(folder)
    project = bench.clone / "projects" / "blobs"
    shutil.copytree(REPO, project / "ml_repo")
    (project / "ml_repo" / "requirements.txt").write_text("scikit-learn\nnumpy\n")
    (project / "sla.yaml").write_text(SLA)
    with (bench.clone / "flops.yaml").open("a") as file:
        file.write(f"federations:\n  hospitals:\n    listen: 127.0.0.1:{port}\n")
    nodes: list[Process] = []
    (bench.clone / "nodes").mkdir()
    for seed, name in enumerate(("north", "south", "stranger")):
        data = tmp_path / name
        said = bench.flops("node", "keygen", str(data / "node.key"))
        rows = str(write_rows(tmp_path / f"{name}.parquet", 250, seed))
        bench.flops("data", "add", rows, "--tags", "blobs", "--data", str(data), "--test-fraction", "0.2")
        if name != "stranger":
            key = said.split("public_key: |\n", 1)[1].split("\n\n", 1)[0]
            declared = f"public_key: |\n{key}\ntags: [blobs]\nfederation: hospitals\ncluster: {name}ern\n"
            (bench.clone / "nodes" / f"{name}.yaml").write_text(declared)
        command = [
            sys.executable, "-m", "reconciler.cli", "node", "join", "--superlink", f"localhost:{port}", "--data", str(data),
            "--tags", "blobs", "--root-certificates", str(tmp_path / "ca.pem"),
            "--runtime", north if name == "north" else "process",
        ]  # fmt: skip
        nodes.append(Process(command, tmp_path / f"{name}.log", tmp_path, dict(os.environ)))
    bench.commit("Two nodes and a project")
    assert "are valid" in bench.flops("validate")
    (tmp_path / "ca.pem").write_text(bench.flops("nodes", "hospitals", "--certificate"))
    try:
        for node in nodes:
            node.start()
        bench.flops("reconcile", "--once")
        document = bench.status("blobs")
        stages = {stage["stage"]: stage["result"] for stage in document["stages"]}
        assert {stages[name] for name in ("train", "gate", "register", "deploy", "verify")} == {"done"}, document
        assert document["training"]["holdout"]["rows"] == 100
        assert document["gate"]["reason"].startswith("holdout.accuracy is 0.")
        assert document["verification"]["matched"] == document["verification"]["samples"] > 0
        address = document["service"]["address"]
        answer = httpx.post(f"http://{address}/invocations", json={"inputs": [[0.0] * 8, [1.0] * 8]}).json()
        assert len(answer["predictions"]) == 2
        eventually(lambda: "FL5803" in nodes[2].said())
        listing = orjson.loads(bench.flops("nodes", "-o", "json"))["hospitals"]
        assert [(row["name"], row["cluster"], row["connected"], row["rows"]) for row in listing["nodes"]] == [
            ("north", "northern", True, 200), ("south", "southern", True, 200),
        ]  # fmt: skip
        assert listing["refused"][0][1] in nodes[2].said()
        bench.flops("reconcile", "--once")
        assert len([row for row in bench.history("blobs") if row["stage"] == "train"]) == 1

        one_each = SLA.replace("_clients: 2", "_clients: 1")
        clusters = "  clusters: [{name: northern}, {name: southern}, {name: nobody}]\n"
        more = "training_configuration:\n  mode: hierarchical\n  training_cycles: 2\n" + clusters
        (project / "sla.yaml").write_text(one_each.replace("training_configuration:\n", more))
        bench.commit("In clusters")
        bench.flops("reconcile", "--once")
        document = bench.status("blobs")
        assert document["training"]["left_out"] == {"nobody": [1, 2]}, document
        messages = {stage["stage"]: stage["message"] for stage in document["stages"]}
        assert "2 cycles of 2 rounds in 2 clusters" in messages["train"]
        assert messages["train"].endswith("; cluster nobody was left out of cycle 1, 2")
    finally:
        for node in nodes:
            node.kill(signal.SIGTERM)
