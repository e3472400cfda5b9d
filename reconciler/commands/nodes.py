"""`flops node`, `flops data`, `flops nodes`.

What a node does needs no GitOps repo; what `flops nodes` shows needs nothing but it and the SuperLink.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console

from reconciler.engine import cache_directory, open_engine
from reconciler.environments import EnvironmentStore
from reconciler.errors import ServingError, TrainingError
from reconciler.images.store import ImageStore
from reconciler.nodes import keys
from reconciler.nodes.data import NodeData
from reconciler.nodes.federation import ago
from reconciler.terminal import Listing, show

if TYPE_CHECKING:
    from reconciler.nodes.host import Learners, Tell

_DAY = 86400.0
_OPTIONS = {"image": "--image", "memory_mb": "--memory", "cpus": "--cpus", "docker_host": "--docker-host"}


@dataclass(frozen=True, slots=True)
class Containers:
    """How `flops node join --runtime docker` has its learners; `memory_mb` and `cpus` are the most that each may take."""

    image: str = "scratch"
    memory_mb: int | None = None
    cpus: float | None = None
    docker_host: str | None = None


def containers_of(runtime: str, **options: Any) -> Containers | None:
    """The containers that are asked for, if they are; options that are None were not given. Raises TrainingError FL5610."""
    given = {name: value for name, value in options.items() if value is not None}
    if runtime == "docker":
        return Containers(**given)
    if given:
        names = ", ".join(_OPTIONS[name] for name in given)
        raise TrainingError("FL5610", f"{names}: for containers only.", cure="Add --runtime docker, or leave it out.")
    return None


def make_key(file: Path) -> None:
    """Make a node's key pair and print what goes into `nodes/<name>.yaml`."""
    public = keys.generate(file)
    print(f"Wrote {file} (keep it secret) and {keys.public_file(file)}.")
    print("For nodes/<name>.yaml in the GitOps repo:\n")
    print("public_key: |")
    print("".join(f"  {line}\n" for line in keys.public_bytes(public).decode().splitlines()), end="")
    print(f"\nFingerprint: {keys.fingerprint(keys.public_bytes(public))}")


def join(
    *,
    superlink: str,
    data: Path,
    tags: str,
    cluster: str,
    root_certificates: Path | None,
    key: Path | None,
    partition: tuple[int, int],
    containers: Containers | None,
) -> None:
    """Take part in a federation until interrupted; with `containers` learners are containers, else processes."""
    from reconciler.nodes.node import Node, NodeSettings
    from reconciler.nodes.processes import Processes

    number, count = partition
    if not 0 <= number < count:
        raise TrainingError("FL5812", f"There is no partition {number} of {count}.", cure="Count from 0 to the number less one.")
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdigit():
        raise TrainingError("FL5812", f"{superlink[:100]!r} is no HOST:PORT.", cure="Write the address of the SuperLink.")
    if root_certificates is not None and not root_certificates.is_file():
        raise TrainingError("FL5809", f"There is no file {root_certificates}.", cure="Get it from the federation's operator.")
    pair = keys.read(key or data / "node.key")
    work = data / f"work-{number}-of-{count}"
    settings = NodeSettings(
        superlink=superlink,
        data_dir=data,
        work_dir=work,
        tags=tuple(sorted({tag for tag in tags.split(",") if tag})),
        cluster=cluster,
        root_certificates=root_certificates,
        partition=number,
        partitions=count,
    )
    for name in ("httpx", "flwr"):
        logging.getLogger(name).setLevel(logging.WARNING)

    def tell(kind: str, text: str) -> None:
        print(f"{kind}: {text}", file=sys.stderr, flush=True)

    learners: Learners
    if containers is None:
        learners = Processes(EnvironmentStore(cache_directory() / "environments"))
    else:
        learners = _boxes(containers, work, keys.fingerprint(keys.public_bytes(pair[1])), tell)
    node = Node(settings, pair, learners, tell)
    for number_of_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number_of_signal, lambda *_: node.stop())
    tell("node", f"key {keys.fingerprint(keys.public_bytes(pair[1]))}, tags {', '.join(settings.tags) or 'none'}")
    node.run()


def _boxes(containers: Containers, work: Path, fingerprint: str, tell: Tell) -> Learners:
    """Learners as containers of an engine that answers now; what is left of a node that was killed is removed."""
    # The SDK takes a fifth of a second to import: nodes with processes need none of it.
    from reconciler.nodes.boxes import Boxes, Share
    from reconciler.nodes.learner_images import LearnerImages, plan_of
    from reconciler.runtimes.docker import ACTORS
    from reconciler.runtimes.docker_actors import DockerActors
    from reconciler.runtimes.docker_engine import DockerEngine, owner_of
    from reconciler.runtimes.docker_leftovers import remove_leftovers

    plan, engine = plan_of(containers.image), DockerEngine(containers.docker_host)
    try:
        for name in remove_leftovers(engine, work):
            tell("engine", f"removed {name}, which was left over")
        with engine.answering():
            version = engine.client.version()["Version"]
    except ServingError as error:
        raise TrainingError(
            "FL5611",
            f"--runtime docker needs a container engine: {error.cause}",
            cure="Start it, name its socket with --docker-host or DOCKER_HOST, and let this user reach it; or join without.",
            transient=error.transient,
        ) from error
    tell("engine", f"{version} at {engine.host}")
    owner = owner_of(work)
    store = ImageStore(work / "images", cache_directory() / "images")
    return Boxes(
        DockerActors(engine, work / ACTORS, instance=f"node-{owner[:8]}"),
        LearnerImages(engine, store, plan, owner),
        Share(containers.memory_mb, min(containers.cpus or math.inf, os.cpu_count() or 1)),
        {"flops.node": fingerprint},
    )


def add_data(data: Path, source: Path, name: str, tags: str, test_fraction: float) -> None:
    """Take a dataset into the node's catalogue."""
    wanted = [tag for tag in tags.split(",") if tag]
    dataset = NodeData(data).add(source, name=name or source.stem, tags=wanted, test_fraction=test_fraction)
    held_out = f" and {dataset.test_rows:,} held out" if dataset.test_rows else ""
    print(f"{dataset.name}: {dataset.rows:,} rows{held_out}, tags {', '.join(dataset.tags)}, digest {dataset.digest[:12]}")


def list_data(data: Path, console: Console, *, as_json: bool) -> None:
    """Show the node's catalogue, with the statistics that never leave it."""
    found = NodeData(data).list()
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    table = Listing("dataset", "tags", "rows", "held out", "columns", prose=("tags", "columns"), right=("rows", "held out"))
    for dataset in found:
        columns = ", ".join(f"{name} {kind}" for name, kind in list(dataset.columns.items())[:8])
        table.add_row(dataset.name, ", ".join(dataset.tags), f"{dataset.rows:,}", f"{dataset.test_rows:,}", columns)
    show(console, table)


def remove_data(data: Path, name: str) -> None:
    """Take a dataset and its rows out of the node's catalogue."""
    NodeData(data).remove(name)
    print(f"removed {name}")


def show_nodes(repo: Path, state: Path | None, console: Console, name: str, *, as_json: bool, certificate: bool) -> None:
    """Every declared node of a federation (of all when none is named), and the keys that were refused lately."""
    engine = open_engine(repo, state)
    commit = engine.repo.desired_commit(engine.config.branch)
    names = [name] if name else sorted(engine.config.federations)
    federations = [engine.federation(item, commit) for item in names]
    if certificate:
        for federation in federations:
            if federation.authority is not None:
                print(federation.authority.read_text(encoding="utf-8"), end="")
        return
    if as_json:
        content = {item.name: {"nodes": item.rows(), "refused": item.refused(time.time() - _DAY)} for item in federations}
        print(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
        return
    found = [(federation.name, row) for federation in federations for row in federation.rows()]
    if found:
        columns = ("node", "federation", "connected", "tags", "cluster", "rows", "last seen")
        table = Listing(*columns, prose=("tags",), right=("rows",))
        for federation_name, row in found:
            seen = "now" if row.connected else ago(row.last_seen)
            rows = f"{row.rows:,}" if row.rows else "–"
            tags = ", ".join(row.tags)
            table.add_row(row.name, federation_name, "yes" if row.connected else "no", tags, row.cluster or "–", rows, seen)
        show(console, table)
    else:
        console.print(_without_nodes(names), markup=False, highlight=False, soft_wrap=True)
    for federation in federations:
        for at, key, address in federation.refused(time.time() - _DAY):
            console.print(f"refused {ago(at)}: key {key} from {address} is in no file of nodes/", markup=False, highlight=False)


def _without_nodes(federations: list[str]) -> str:
    """What to do where there is nothing to show."""
    if not federations:
        return "No federation is declared. Name one in flops.yaml: `federations: {default: {listen: HOST:PORT}}` (docs/nodes.md)."
    asked = " or ".join(federations)
    return f"No node of {asked} is declared. Make a key with `flops node keygen`, and merge it as nodes/NAME.yaml (docs/nodes.md)."
