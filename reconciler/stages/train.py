"""Train: the federated run of this digest is finished and recorded in MLflow, once.

The order keeps the promise "no digest is trained twice": a recorded run is reused; a finished run on disk is recorded; a
half-finished one goes on after its last round; only then is anything trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from reconciler.digests import short
from reconciler.errors import TrainingError
from reconciler.federation.containers import in_containers
from reconciler.federation.launching import Launch
from reconciler.federation.training import ClusterShare, RoundResult, TrainingEvent, TrainingJob, TrainingResult, run_training
from reconciler.runtime_version import TRAINING_VERSION
from reconciler.spec.training import Mode, TrainingConfiguration
from reconciler.stages import build, resolve
from reconciler.stages.model import Outcome, Work
from reconciler.stages.package import write_extras
from reconciler.tracking import RoundMetrics, RunRecord

if TYPE_CHECKING:
    from reconciler.nodes.relay import Relay


def run(work: Work) -> Outcome:
    """Train, or go on with, or reuse this digest's run."""
    tracking = work.tools.tracking_if_any(work.desired.customer)
    known = tracking and tracking.run_with_digest(work.desired.name, work.desired.customer, work.desired.run_digest)
    if known:
        work.run_id = known.run_id
        return Outcome("reused", f"run {known.run_id[:8]} has digest {short(work.desired.run_digest)}")
    federation = work.declared.sla.training_configuration.federation
    if work.dataset is None and (federation is None or work.repo_dir is None):
        resolve.run(work)
    if work.environment is None:
        build.run(work)
    sandbox: list[str] = []

    def on_event(event: TrainingEvent) -> None:
        message = event.message
        if event.kind == "sandbox":
            sandbox.append(message)
            message = f"learners run in a sandbox: {message}"
        if event.kind in {"started", "exporting"}:
            # The way to the record is made ready while the learners learn; again at the end, as it does not wait for hours.
            pool.submit(lambda: server.result().prepare_to_write())
        work.tell(event.kind, message, {"round": event.round, "total": event.total, **event.data})

    with ThreadPoolExecutor(max_workers=1) as pool:
        # A new customer's tracking server takes seconds to start: it does so while the learners do.
        server = pool.submit(work.tools.tracking, work.desired.customer)
        link = _link(work, federation) if federation else None
        launch = _launch(work) if link is None else None
        job = _job(work, link)
        work.training = run_training(job, on_event=on_event, cancelled=work.cancelled, launch=launch, link=link)
    if work.lock is not None:
        ml_repo = work.declared.ml_repo
        origin = {"source": ml_repo["url"], "revision": ml_repo["commit"], "time": work.declared.committed}
        write_extras(work.training.model_dir, work.lock, work.training.samples, origin)
    work.run_id = server.result().record_run(_record(work, work.training))
    best = work.training.rounds[work.training.best_round - 1]
    holdout = work.training.holdout.get("accuracy")
    left_out = work.training.left_out(cluster.name for cluster in job.clusters)
    held_out = f", {holdout:.4f} on {int(work.training.holdout.get('rows', 0)):,} held-out rows" if holdout else ""
    return Outcome(
        "done",
        f"{_length(work.training)} {best.round} with accuracy {best.accuracy:.4f}{held_out}{_missed(left_out)}",
        {
            "training": {
                "best_round": best.round,
                "metrics": {"accuracy": best.accuracy, "loss": best.loss},
                "holdout": dict(work.training.holdout),
                "left_out": left_out,
                "resumed_from": work.training.resumed_from,
                "sandbox": sandbox[-1] if sandbox else "",
            }
        },
    )


def _length(result: TrainingResult) -> str:
    if not result.clusters:
        return f"{len(result.rounds)} rounds, best is round"
    return f"{len(result.rounds)} cycles of {result.rounds_per_cycle} rounds in {len(result.clusters)} clusters, best is cycle"


def _missed(left_out: Mapping[str, Sequence[int]]) -> str:
    """Clusters that missed cycles, as the end of a sentence about the training."""
    return "".join(f"; cluster {name} was left out of cycle {_list(cycles)}" for name, cycles in left_out.items())


def _list(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:5])
    return f"{shown} and {len(numbers) - 5} more" if len(numbers) > 5 else shown


def _launch(work: Work) -> Launch | None:
    """How the aggregator is started: as a process, or as a container with others for its learners."""
    if not work.in_containers:
        return None
    return in_containers(work.tools.actors(), build.actor_images(work))


def _job(work: Work, link: Relay | None) -> TrainingJob:
    federation = work.declared.sla.training_configuration.federation
    if (work.dataset is None and federation is None) or work.environment is None or work.repo_dir is None:
        raise TrainingError("FL5090", "The training's inputs are not there.", cure="Run resolve and build first.")
    sla = work.declared.sla
    training = sla.training_configuration
    learners = training.learner_count()
    partitions = work.declared.mock_data.number_of_partitions if work.declared.mock_data else None
    holdout = None
    if work.dataset is not None:
        work.shards = tuple(
            work.tools.catalog.shards(
                work.dataset, learners, training.seed, work.tools.runs / "shards", partitions, training.partitioner
            )
        )
        holdout = work.dataset.directory / "holdout.arrow"
    return TrainingJob(
        project=work.desired.name,
        digest=work.desired.run_digest,
        customer=work.desired.customer,
        repo_dir=build.CODE_IN_IMAGE if work.in_containers and federation is None else work.repo_dir,
        python=work.environment.python,
        shards=work.shards,
        holdout=holdout if holdout and holdout.is_file() else None,
        run_dir=work.run_dir,
        flavor=str(sla.ml_model_flavor),
        rounds=training.training_rounds,
        seed=training.seed,
        min_available=training.min_available_clients,
        min_fit=training.min_fit_clients,
        min_evaluate=training.min_evaluate_clients,
        fraction_fit=training.fraction_fit,
        strategy_name=training.strategy.name,
        strategy_arguments=training.strategy.arguments,
        round_timeout=training.round_timeout,
        memory_mb=sla.resource_constraints.memory,
        vcpus=sla.resource_constraints.vcpus,
        metric=training.best_model.metric,
        direction=_short(training.best_model.direction),
        clusters=tuple(ClusterShare(name, count) for name, count in _clusters(training, link)),
        cycles=training.training_cycles,
        root_strategy_name=training.root_strategy.name if training.root_strategy else "fedavg",
        root_strategy_arguments=training.root_strategy.arguments if training.root_strategy else {},
        **_options(training),
    )


def _clusters(training: TrainingConfiguration, link: Relay | None) -> list[tuple[str, int]]:
    """Clusters and how many learners they have: those that are started, or nodes that may serve."""
    if link is None:
        return training.cluster_sizes()
    return link.clusters.sizes() if link.clusters else []


def _options(training: TrainingConfiguration) -> dict[str, Any]:
    stop = training.early_stop
    return {
        "early_stop": {**stop.model_dump(), "direction": _short(stop.direction)} if stop else None,
        "update_guard": training.update_guard.model_dump() if training.update_guard else None,
        "privacy": training.privacy.model_dump() if training.privacy else None,
        "simulation": {"processes": training.simulation.processes} if training.simulation else None,
    }


def _short(direction: str) -> Literal["max", "min"]:
    return "max" if direction == "maximize" else "min"


def _link(work: Work, name: str) -> Relay:
    """The way to the nodes of a federation, with all that they have to know of this run."""
    if work.lock is None or work.repo_dir is None:
        raise TrainingError("FL5090", "The training's inputs are not there.", cure="Run resolve and build first.")
    # With it comes Flower's protocol, which takes 30 MB: only who trains over nodes needs it.
    from reconciler.nodes.fab import LearnerSpec

    sla = work.declared.sla
    training = sla.training_configuration
    spec = LearnerSpec(
        digest=work.desired.run_digest,
        project=work.desired.name,
        flavor=str(sla.ml_model_flavor),
        seed=training.seed,
        data_tags=tuple(sorted(set(training.data_tags))),
        memory_mb=sla.resource_constraints.memory,
        vcpus=sla.resource_constraints.vcpus,
        setup_seconds=max(300.0, training.round_timeout),
        python=work.lock.python,
        requirements=work.lock.requirements,
        privacy=training.privacy.model_dump() if training.privacy else None,
    )
    clusters = training.clusters if training.mode is Mode.HIERARCHICAL else None
    return work.tools.federation(name, work.declared.commit).link(work.repo_dir, spec, clusters)


def _record(work: Work, result: TrainingResult) -> RunRecord:
    return RunRecord(
        customer=work.desired.customer,
        project=work.desired.name,
        digest=work.desired.run_digest,
        params={name: text for name, text in work.desired.training.items() if len(text) <= 500},
        rounds=_metrics(result),
        best_round=result.best_round * result.rounds_per_cycle,
        holdout=dict(result.holdout),
        tags={
            "flops.commit": work.declared.commit,
            "flops.ml_repo_url": work.declared.ml_repo["url"],
            "flops.ml_repo_commit": work.declared.ml_repo["commit"],
            "flops.ml_repo_tree": work.declared.ml_repo["tree"],
            "flops.lock_digest": work.lock.digest if work.lock else "",
            "flops.dataset": work.dataset.digest if work.dataset else "",
            "flops.runtime_version": TRAINING_VERSION,
        },
        sla=work.declared.sla_text,
        timings=dict(work.timings) | {"train": result.seconds},
        model_dir=result.model_dir,
    )


def _metrics(result: TrainingResult) -> tuple[RoundMetrics, ...]:
    """Metrics by step. A step is a round of the whole training, so a cycle's are at the step of its last round."""
    steps: dict[int, dict[str, float]] = {}
    for item in result.rounds:
        steps.setdefault(item.round * result.rounds_per_cycle, {}).update(_numbers(item))
    for name, rounds in result.clusters.items():
        for item in rounds:
            found = {f"cluster.{name}.{metric}": value for metric, value in _numbers(item).items()}
            steps.setdefault(item.round, {}).update(found)
    return tuple(RoundMetrics(step, metrics) for step, metrics in sorted(steps.items()))


def _numbers(item: RoundResult) -> dict[str, float]:
    return {
        "loss": item.loss,
        "accuracy": item.accuracy,
        **item.metrics,
        "learners_fit": item.learners_fit,
        "learners_evaluated": item.learners_evaluated,
        "failures": item.failures,
        "round_seconds": item.seconds,
    }
