"""What is fuzzed: everything that reads bytes which a tenant, a stranger or a damaged disk may have written.

A target takes any bytes and ends in a result or in one of our errors; its seeds are genuine records, so that what is tried is
near to what is real.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from reconciler.environments.store import _read_lock
from reconciler.errors import FlopsError, SpecErrors, WebError
from reconciler.federation.training import read_result
from reconciler.images.layout import Layout
from reconciler.images.records import Records
from reconciler.journal import Journal
from reconciler.nodes.data import NodeData
from reconciler.nodes.federation import Federation
from reconciler.nodes.keys import generate, public_bytes
from reconciler.nodes.superlink_server import REFUSED
from reconciler.runtime_version import mlruntime_dir
from reconciler.runtimes.process import ProcessRuntime
from reconciler.spec import load_mock_data, load_operator_config, load_sla
from reconciler.spec.loader import load_build_plan, load_node
from reconciler.stages.package import EXTRA, read_lock, read_origin
from reconciler.statusdoc import Renderer, merge, read_documents, sound, subject
from reconciler.tracking.reading import _run, _version
from reconciler.web.webhooks import Forge, authenticate, concerns, parse

ROOT = Path(__file__).parent.parent.parent
OURS = (FlopsError, SpecErrors)
DIGEST = "ab" * 32
A_ROUND = {
    "round": 1, "loss": 0.5, "accuracy": 0.9, "metrics": {}, "seconds": 1.0, "learners_fit": 2, "learners_evaluated": 2,
    "failures": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A function of any bytes, and what it is fed first. `share` of a million inputs goes to it, relative to the others."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    share: int = 10


def make_targets() -> dict[str, Target]:
    """Every target by name; each has a folder of its own below a temporary one, in memory if that can be."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    makers: dict[str, Callable[[Path], Target]] = {
        "sla": _slas, "mock-data": _mock_data, "operator": _operator, "node": _nodes, "plan": _plans, "webhook": _webhooks,
        "status": _documents, "journal-row": _journal_rows, "journal-file": _journal_files, "run": _runs, "bundle": _bundles,
        "service": _services, "checkpoint": _checkpoints, "image": _images, "lock": _locks, "catalog": _catalogs, "tags": _tags,
    }  # fmt: skip
    found = {}
    for name, make in makers.items():
        (folder / name).mkdir()
        found[name] = make(folder / name)
    return found


def split(data: bytes, parts: int) -> list[bytes]:
    """So many pieces, divided at a byte that is rare in texts; one record each."""
    found = data.split(b"\xff\xfe", parts - 1)
    return found + [b""] * (parts - len(found))


def joined(*parts: bytes) -> bytes:
    """The other way round, for seeds."""
    return b"\xff\xfe".join(parts)


def _slas(_: Path) -> Target:
    seeds = [path.read_bytes() for path in sorted((ROOT / "projects").glob("*/sla.yaml"))]
    seeds += [path.read_bytes() for path in sorted((ROOT / "tests" / "spec" / "fixtures").rglob("*.json"))[:5]]
    return Target(lambda data: load_sla(data, "fuzz.yaml"), tuple(seeds), share=40)


def _mock_data(_: Path) -> Target:
    seeds = tuple(path.read_bytes() for path in sorted((ROOT / "projects").glob("*/mock_data.yaml")))
    return Target(lambda data: load_mock_data(data, "fuzz.yaml"), seeds)


def _operator(_: Path) -> Target:
    return Target(
        lambda data: load_operator_config(data, "flops.yaml"), (b"instance: a\nbudget: {max_parallel: 2}\npoll_interval: 5m\n",)
    )


def _nodes(folder: Path) -> Target:
    key = public_bytes(generate(folder / "node.key")).decode()
    text = "".join(f"  {line}\n" for line in key.splitlines())
    seed = f"public_key: |\n{text}tags: [a]\nfederation: b\n".encode()
    return Target(lambda data: load_node(data, "nodes/a.yaml"), (seed,))


def _plans(_: Path) -> Target:
    kinds = ("learner", "aggregator", "inference")
    seeds = tuple((ROOT / "build_plans" / f"{kind}.yaml").read_bytes() for kind in kinds)

    def run(data: bytes) -> None:
        kind = next((kind for kind in kinds if f"kind: {kind}".encode() in data), kinds[0])
        load_build_plan(data, f"build_plans/{kind}.yaml")

    return Target(run, seeds, share=20)


def _webhooks(_: Path) -> Target:
    push = {"ref": "refs/heads/main", "repository": {"clone_url": "https://a.invalid/b"}, "project": {"git_ssh_url": "git@a:b"}}
    secret = b"0123456789abcdef"

    def run(data: bytes) -> None:
        event, signature, body = split(data, 3)
        for forge in Forge:
            headers = _Headers(event.decode("latin-1"), signature.decode("latin-1"))
            with suppress(WebError):
                authenticate(forge, headers, body, secret)
            concerns(parse(forge, headers, body), "main")

    return Target(run, (joined(b"push", b"sha256=00", json.dumps(push).encode()), joined(b"Push Hook", b"x", b"{}")), share=30)


class _Headers(dict[str, str]):
    """What a stranger says in every header."""

    def __init__(self, event: str, signature: str) -> None:
        self._event, self._signature = event, signature

    def get(self, key: str, default: Any = None) -> Any:
        return self._event if "event" in key else self._signature


def _documents(_: Path) -> Target:
    document = {
        "name": "a", "customer": "b", "digest": DIGEST, "inputs": {"a": "b"},
        "model": {"version": "1", "holdout": {"accuracy": 0.9}},
        "stages": [{"stage": "train", "seconds": 1.0}], "conditions": [{"type": "Synced", "status": "True", "message": "x"}],
        "stalled": {"digest": DIGEST, "message": "x"}, "service": {"address": "a:1"}, "error": {"code": "FL1"},
    }  # fmt: skip

    def run(data: bytes) -> None:
        first, second = split(data, 2)
        found = read_documents({"projects/a.json": first, "projects/b.json": second, "projects/.json": first})
        subject({}, found)
        merge(found, {"a": {"name": "a"}})
        assert read_documents(Renderer(lambda _: "")(found)) == {name: sound(item) for name, item in found.items()}

    return Target(run, (json.dumps(document).encode(), joined(json.dumps(document).encode(), b"{}")), share=30)


def _journal_rows(folder: Path) -> Target:
    path = folder / "journal.db"
    journal = Journal(path, clock=lambda: 0.0)
    journal.append("a", "kind", "message", data={"a": 1})
    journal.begin("a", DIGEST, "train", "c")
    vandal = sqlite3.connect(path, isolation_level=None)
    vandal.execute("PRAGMA synchronous=OFF")

    def run(data: bytes) -> None:
        first, second = split(data, 2)
        text = second.decode("utf-8", "replace")
        vandal.execute("UPDATE events SET data = ?, message = ?, at = ?", (first, text, text))
        vandal.execute("UPDATE stages SET message = ?, started = ?, seconds = ?", (first, text, second))
        vandal.execute("INSERT OR REPLACE INTO lease (id, token, holder, beat) VALUES (1, ?, ?, ?)", (len(data), text, first))
        journal.events("a")
        journal.stages("a")
        journal.lease()

    return Target(run, (b'{"a": 1}', joined(b"{}", b"text")))


def _journal_files(folder: Path) -> Target:
    path = folder / "journal.db"
    made = Journal(path, clock=lambda: 0.0)
    made.append("a", "kind", "message")
    made.begin("a", DIGEST, "train", "c")
    made.close()
    whole = path.read_bytes()

    def run(data: bytes) -> None:
        for old in folder.glob("journal*"):
            old.unlink()
        # Pairs of place and byte over a whole file, and what is left over cuts it off.
        content = bytearray(whole)
        for at in range(0, len(data) - 2, 3):
            content[int.from_bytes(data[at : at + 2]) % len(content)] = data[at + 2]
        path.write_bytes(content if len(data) % 3 == 0 else content[: len(content) * data[-1] // 256])
        journal = Journal(path, clock=lambda: 0.0)
        try:
            journal.append("a", "kind", "message")
            journal.finish(journal.begin("a", DIGEST, "train", "c"), "done", "", 0.0)
            journal.events("a")
            journal.stages("a")
            journal.take_lease("me", journal.lease())
        finally:
            journal.close()

    return Target(run, (b"\x00\x01\x02", b"\x00\x10\xff" * 3, b"\x80"), share=1)


def _runs(folder: Path) -> Target:
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").touch()
    result = {
        "digest": DIGEST, "rounds": [A_ROUND], "best_round": 1, "holdout": {"rows": 10.0}, "samples": True, "seconds": 1.0,
        "resumed_from": 0,
    }  # fmt: skip

    def run(data: bytes) -> None:
        (folder / "result.json").write_bytes(data)
        read_result(folder, DIGEST)

    return Target(
        run,
        (
            json.dumps(result).encode(),
            json.dumps({**result, "clusters": {"a": [A_ROUND]}}).encode(),
            json.dumps({**result, "holdout": 0}).encode(),
        ),
        share=20,
    )


def _bundles(folder: Path) -> Target:
    (folder / EXTRA).mkdir()
    lock = {"digest": DIGEST, "python": "3.11", "requirements": "numpy==1\n", "lines": ["a"], "warnings": []}

    def run(data: bytes) -> None:
        first, second = split(data, 2)
        (folder / EXTRA / "lock.json").write_bytes(first)
        (folder / EXTRA / "origin.json").write_bytes(second)
        read_origin(folder)
        read_lock(folder)

    return Target(run, (joined(json.dumps(lock).encode(), b'{"source": "a", "time": 1}'),))


def _services(folder: Path) -> Target:
    (folder / "a").mkdir()
    runtime = ProcessRuntime(folder)
    state = {
        "supervisor": 1, "supervisor_started": "", "pid": None, "address": "127.0.0.1:1", "healthy": True, "error": "",
        "restarts": 0, "started_at": 0.0, "labels": {"flops.kind": "inference"}, "spec_digest": DIGEST,
    }  # fmt: skip
    # Init lives: with its start a state is believed.
    state["supervisor_started"] = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    seed = joined(json.dumps({"labels": {}}).encode(), json.dumps(state).encode(), b"4711")

    def run(data: bytes) -> None:
        for name, content in zip(("spec.json", "state.json", "port"), split(data, 3), strict=True):
            (folder / "a" / name).write_bytes(content)
        for service in runtime.observe():
            assert service.name == "a"
            assert all(isinstance(text, str) for item in service.labels.items() for text in item)

    wrong = [joined(b"{}", json.dumps({**state, "labels": labels}).encode(), b"4711") for labels in ({"a": True}, "a")]
    return Target(run, (seed, joined(b"{}", b"{}", b""), *wrong), share=20)


def _checkpoints(folder: Path) -> Target:
    sys.path.insert(0, str(mlruntime_dir()))
    from flops_runtime.checkpoints import Checkpoints

    kept = Checkpoints(folder)
    kept.save(1, {"0": np.zeros(2)}, {}, A_ROUND)
    files = [folder / f"0001.{suffix}" for suffix in ("json", "npz", "state.npz")]
    seed = joined(*(path.read_bytes() for path in files))

    def run(data: bytes) -> None:
        for path, content in zip(files, split(data, 3), strict=True):
            path.write_bytes(content)
        results, parameters, _ = kept.load(2)
        assert all(isinstance(item, dict) for item in results)
        assert bool(results) == bool(parameters) or not parameters

    return Target(run, (seed,))


def _images(folder: Path) -> Target:
    layout = Layout(folder / "layout")
    (folder / "layout").mkdir()
    records = Records(folder / "records", layout)
    index = {"schemaVersion": 2, "manifests": [{
        "mediaType": "a", "digest": f"sha256:{DIGEST}", "size": 3, "annotations": {"org.opencontainers.image.ref.name": "a"},
    }]}  # fmt: skip
    layer = [{"descriptor": index["manifests"][0], "diff_id": f"sha256:{DIGEST}"}]  # type: ignore[index]

    def run(data: bytes) -> None:
        first, second = split(data, 2)
        records._path("layers", "a").write_bytes(second)
        records._path("facts", "a").write_bytes(second)
        records.fact("a", dict)
        records._read_layers(records._path("layers", "a"))
        (folder / "layout" / "index.json").write_bytes(first)
        layout.tags()

    return Target(run, (joined(json.dumps(index).encode(), json.dumps(layer).encode()),))


def _locks(folder: Path) -> Target:
    from reconciler.digests import digest_of

    lock = {"digest": digest_of(["3.11", "a"]), "python": "3.11", "requirements": "a", "lines": [], "warnings": []}

    def run(data: bytes) -> None:
        (folder / "lock.json").write_bytes(data)
        _read_lock(folder / "lock.json")

    return Target(run, (json.dumps(lock).encode(),))


def _catalogs(folder: Path) -> Target:
    data_root, federation_root = folder / "data", folder / "federation"
    data_root.mkdir()
    federation_root.mkdir()
    kept = NodeData(data_root)
    federation = Federation("a", cast(Any, SimpleNamespace(listen="a")), {}, federation_root, cast(Any, None))
    entry = {"name": "a", "tags": ["b"], "digest": DIGEST, "rows": 1, "test_rows": 0, "columns": {"x": "int"}, "statistics": {}}
    seed = joined(json.dumps({"a": entry}).encode(), b'{"at": 1.0, "key": "a", "from": "b"}\n', b'{"a": 3}')

    def run(data: bytes) -> None:
        first, second, third = split(data, 3)
        (federation_root / REFUSED).write_bytes(second)
        (federation_root / "rows.json").write_bytes(third)
        federation.refused(0.0)
        federation._rows()
        (data_root / "catalog.json").write_bytes(first)
        kept.list()

    return Target(run, (seed,))


def _tags(_: Path) -> Target:
    """What people may write in MLflow's own pages: the tags of runs and versions."""
    names = ("flops.rejected_gates", "flops.metrics", "flops.digest", "flops.project")

    def run(data: bytes) -> None:
        found = [{"key": key, "value": part.decode("utf-8", "replace")} for key, part in zip(names, split(data, 4), strict=True)]
        _version({"name": "a.b", "version": 1, "tags": found}, [])
        row: Mapping[str, Any] = {"info": {"run_id": "a"}, "data": {"tags": found}}
        _run(row)

    return Target(run, (joined(b'["a"]', b'{"accuracy": 0.5, "loss": null}', DIGEST.encode(), b"a"),))
