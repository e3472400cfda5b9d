"""Train: the federated run of this digest is finished and recorded in MLflow, once.

The order keeps the promise "no digest is trained twice": a recorded run is reused; a finished run on disk is recorded; a
half-finished one goes on after its last round; only then is anything trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from reconciler.digests import short
from reconciler.errors import TrainingError, Where
from reconciler.federation.training import Link, TrainingEvent, TrainingJob, TrainingResult, run_training
from reconciler.nodes.fab import LearnerSpec
from reconciler.spec.models import Mode
from reconciler.stages import build, resolve
from reconciler.stages.model import Outcome, Work
from reconciler.stages.package import write_extras
from reconciler.tracking import RoundMetrics, RunRecord


def run(work: Work) -> Outcome:
    """Train, or go on with, or reuse this digest's run."""
    tracking = work.tools.tracking_if_any(work.desired.customer)
    known = tracking and tracking.run_with_digest(work.desired.name, work.desired.customer, work.desired.run_digest)
    if known:
        work.run_id = known.run_id
        return Outcome("reused", f"run {known.run_id[:8]} has digest {short(work.desired.run_digest)}")
    if work.declared.sla.training_configuration.mode is not Mode.CLASSIC:
        raise TrainingError(
            "FL5091",
            "Hierarchical training is not built yet.",
            cure="Use mode: classic until a release says otherwise.",
            where=Where(f"projects/{work.desired.name}"),
        )
    federation = work.declared.sla.training_configuration.federation
    if work.dataset is None and (federation is None or work.repo_dir is None):
        resolve.run(work)
    if work.environment is None:
        build.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # A new customer's tracking server takes seconds to start: it does so while the learners do.
        server = pool.submit(work.tools.tracking, work.desired.customer)
        link = _link(work, federation) if federation else None
        work.training = run_training(_job(work), on_event=lambda event: _tell(work, event), cancelled=work.cancelled, link=link)
    if work.lock is not None:
        write_extras(work.training.model_dir, work.lock, work.training.samples)
    work.run_id = server.result().record_run(_record(work, work.training))
    best = work.training.rounds[work.training.best_round - 1]
    holdout = work.training.holdout.get("accuracy")
    held_out = f", {holdout:.4f} on {int(work.training.holdout.get('rows', 0)):,} held-out rows" if holdout else ""
    return Outcome(
        "done",
        f"{len(work.training.rounds)} rounds, best is round {best.round} with accuracy {best.accuracy:.4f}{held_out}",
        {
            "training": {
                "best_round": best.round,
                "metrics": {"accuracy": best.accuracy, "loss": best.loss},
                "holdout": dict(work.training.holdout),
                "resumed_from": work.training.resumed_from,
            }
        },
    )


def _job(work: Work) -> TrainingJob:
    federation = work.declared.sla.training_configuration.federation
    if (work.dataset is None and federation is None) or work.environment is None or work.repo_dir is None:
        raise TrainingError("FL5090", "The training's inputs are not there.", cure="Run resolve and build first.")
    sla = work.declared.sla
    training = sla.training_configuration
    learners = training.min_available_clients
    partitions = work.declared.mock_data.number_of_partitions if work.declared.mock_data else None
    holdout = None
    if work.dataset is not None:
        work.shards = tuple(
            work.tools.catalog.shards(work.dataset, learners, training.seed or 0, work.tools.runs / "shards", partitions)
        )
        holdout = work.dataset.directory / "holdout.arrow"
    return TrainingJob(
        project=work.desired.name,
        digest=work.desired.run_digest,
        customer=work.desired.customer,
        repo_dir=work.repo_dir,
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
        direction="max" if training.best_model.direction == "maximize" else "min",
    )


def _link(work: Work, name: str) -> Link:
    """The way to the nodes of a federation, with all that they have to know of this run."""
    if work.lock is None or work.repo_dir is None:
        raise TrainingError("FL5090", "The training's inputs are not there.", cure="Run resolve and build first.")
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
    )
    return work.tools.federation(name, work.declared.commit).link(work.repo_dir, spec)


def _record(work: Work, result: TrainingResult) -> RunRecord:
    return RunRecord(
        customer=work.desired.customer,
        project=work.desired.name,
        digest=work.desired.run_digest,
        params={name: text for name, text in work.desired.training.items() if len(text) <= 500},
        rounds=tuple(
            RoundMetrics(
                step=item.round,
                metrics={
                    "loss": item.loss,
                    "accuracy": item.accuracy,
                    **item.metrics,
                    "learners_fit": item.learners_fit,
                    "learners_evaluated": item.learners_evaluated,
                    "failures": item.failures,
                    "round_seconds": item.seconds,
                },
            )
            for item in result.rounds
        ),
        best_round=result.best_round,
        holdout=dict(result.holdout),
        tags={
            "flops.commit": work.declared.commit,
            "flops.ml_repo_url": work.declared.ml_repo["url"],
            "flops.ml_repo_commit": work.declared.ml_repo["commit"],
            "flops.ml_repo_tree": work.declared.ml_repo["tree"],
            "flops.lock_digest": work.lock.digest if work.lock else "",
            "flops.dataset": work.dataset.digest if work.dataset else "",
        },
        sla=work.declared.sla_text,
        timings=dict(work.timings) | {"train": result.seconds},
        model_dir=result.model_dir,
    )


def _tell(work: Work, event: TrainingEvent) -> None:
    data: Mapping[str, object] = {"round": event.round, "total": event.total, **event.data}
    work.tell(event.kind, event.message, data)
