"""What an actor of a training run gets: its image, its limits, and of this machine only what its role needs.

The code comes from the image alone. Invariant: an order comes out of a container, so nothing in it is believed: an aggregator has
only the roles, the data and the folders of its own run, a cluster aggregator only those of its own cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from reconciler.actors import ActorImages, ActorSpec
from reconciler.errors import TrainingError
from reconciler.federation.door import COMMAND, TARGET
from reconciler.federation.launching import environment_of
from reconciler.federation.training import TrainingJob

LIBRARIES_MB: Final = {"sklearn": 400, "pytorch": 700, "keras": 1100}
"""What interpreter and libraries take before the ML repo's own work: `resource_constraints.memory` is beside them."""
_COPIES: Final = 3
"""How often data may be in memory: as it was read, as the ML repo keeps it, and split."""
_OWN: Final = ("PATH", "PYTHONPATH", "HOME", "TMPDIR")
"""Variables that are the image's."""


class Limited(Protocol):
    """Whose limits an actor has: those of a project's SLA."""

    @property
    def project(self) -> str:
        """The project's name."""

    @property
    def flavor(self) -> str:
        """sklearn, pytorch or keras."""

    @property
    def memory_mb(self) -> int:
        """`resource_constraints.memory`."""

    @property
    def vcpus(self) -> int:
        """`resource_constraints.vcpus`."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What an aggregator may order: these roles, with these data, in folders below this one."""

    roles: frozenset[str]
    data: frozenset[Path]
    folder: Path


def rights_of_run(job: TrainingJob) -> Rights:
    """What the aggregator of a run may order."""
    data = [*job.shards, *([job.holdout] if job.holdout else [])]
    roles = frozenset({"cluster"} if job.clusters else {"virtual"} if job.simulation else {"learner"})
    return Rights(roles | {"export"}, frozenset(path.resolve() for path in data), job.run_dir.resolve() / "work")


def rights_of_cluster(order: Mapping[str, Any]) -> Rights:
    """What a cluster aggregator may order; its own order has been checked."""
    return Rights(frozenset({"learner"}), frozenset(_paths(order["spec"], "data")), Path(order["spec"]["work_dir"]))


def actor_spec(
    job: TrainingJob, images: ActorImages, order: Mapping[str, Any], rights: Rights | None, *, home: str, number: int, door: Path
) -> ActorSpec:
    """The container of an order; without `rights` it is the reconciler's own. Raises TrainingError FL5604."""
    role = str(order["role"])
    run_dir = job.run_dir.resolve()
    ours = job.memory_mb + LIBRARIES_MB[job.flavor]
    if rights is None:
        return _spec(job, images, role, [], [run_dir], ours, home, number, door, digest=job.digest)
    spec = order["spec"]
    data, writable = list(_paths(spec, "data")), [Path(spec["work_dir"])]
    _check(role, data, writable, rights)
    if role == "cluster":
        # It reads no data and runs no code of the ML repo: its learners do, in containers of their own.
        directory = run_dir / "clusters" / Path(spec["directory"]).name
        if Path(spec["directory"]) != directory:
            raise _refused(role, f"the folder {spec['directory']}")
        return _spec(job, images, role, [], [directory, *writable], ours, home, number, door, digest=job.digest)
    return own_code_spec(job, images, role, data, writable, home=home, number=number, door=door, digest=job.digest)


def own_code_spec(
    limits: Limited,
    images: ActorImages,
    role: str,
    data: list[Path],
    writable: list[Path],
    *,
    home: str,
    number: int,
    door: Path,
    digest: str = "",
) -> ActorSpec:
    """The container of an actor that runs the ML repo's code on `data`."""
    largest = max((path.stat().st_size for path in data), default=0) >> 20
    libraries = LIBRARIES_MB[limits.flavor]
    memory = limits.memory_mb + libraries + _COPIES * largest
    if role == "virtual":
        # One rule for the folder of thousands of shards. What learners keep counts as data, up to the limit of one.
        data = sorted({path.parent for path in data})
        memory += (_COPIES - 1) * limits.memory_mb
    elif role == "export":
        memory += libraries
    return _spec(limits, images, role, data, writable, memory, home, number, door, digest=digest)


def _spec(
    limits: Limited, images: ActorImages, role: str, readable: list[Path], writable: list[Path], memory_mb: int, home: str,
    number: int, door: Path, *, digest: str,
) -> ActorSpec:  # fmt: skip
    for path in writable:
        path.mkdir(parents=True, exist_ok=True)
    environment = environment_of(Path(images.python), Path("/"), limits.vcpus)
    return ActorSpec(
        home=home,
        name=f"{limits.project}-{role}-{home[:6]}-{number}",
        image=images.of(role),
        command=(images.python, *COMMAND),
        env={**{name: value for name, value in environment.items() if name not in _OWN}, **images.env},
        labels={"flops.project": limits.project, "flops.digest": digest, "flops.role": role},
        door=door,
        target=TARGET,
        readable=tuple(dict.fromkeys((*readable, *images.binds))),
        writable=tuple(dict.fromkeys(writable)),
        memory_mb=memory_mb,
        vcpus=float(limits.vcpus),
    )


def out_of_memory(limits: Limited, role: str, limit: int) -> TrainingError:
    """The error for an actor that the kernel killed; `limit` in MB."""
    return TrainingError(
        "FL5022",
        f"The kernel killed the {role}'s container: it needed more than its limit of {limit} MB "
        f"(`resource_constraints.memory` is {limits.memory_mb} MB, libraries and data come on top).",
        cure="Raise `resource_constraints.memory`, or let `fit_model` work in smaller batches.",
    )


def _check(role: str, data: list[Path], writable: list[Path], rights: Rights) -> None:
    if role not in rights.roles:
        raise _refused(role, "a container of this role")
    for path in data:
        if path not in rights.data:
            raise _refused(role, f"the data {path}")
    for path in writable:
        if ".." in path.parts or not path.is_relative_to(rights.folder) or path.resolve() != path:
            raise _refused(role, f"the folder {path}")


def _refused(role: str, what: str) -> TrainingError:
    return TrainingError(
        "FL5604",
        f"The aggregator asks for {what} for a {role}, which this training run does not have.",
        cure="Nothing was started for it. See child.log in the run's directory, and who can change the aggregator's image.",
    )


def _paths(spec: Any, name: str) -> Iterator[Path]:
    """The paths under a key, wherever it stands in an order: a cluster's has those of all of its learners."""
    if isinstance(spec, Mapping):
        if isinstance(spec.get(name), str) and spec[name]:
            yield Path(spec[name])
        for key, value in spec.items():
            if key != name:
                yield from _paths(value, name)
    elif isinstance(spec, list):
        for item in spec:
            yield from _paths(item, name)
