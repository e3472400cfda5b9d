"""What an aggregator in a container may order: what is its run's, and nothing else of the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.actors import ActorImages
from reconciler.errors import TrainingError
from reconciler.federation.actor_specs import Rights, actor_spec, rights_of_cluster, rights_of_run
from reconciler.federation.training import ClusterShare, TrainingJob

IMAGES = ActorImages("learner-image", "aggregator-image", binds=(Path("/bytecode"),))


def ordered(job: TrainingJob, order: dict[str, Any], rights: Rights | None = None) -> Any:
    return actor_spec(job, IMAGES, order, rights or rights_of_run(job), home="h" * 24, number=2, door=Path("/door"))


def learner(job: TrainingJob, **changes: str) -> dict[str, Any]:
    spec = {"data": str(job.shards[0]), "work_dir": str(job.run_dir / "work" / "learner-0"), "repo_dir": "/ml_repo"} | changes
    return {"role": "learner", "spec": spec}


def test_a_learner_gets_its_shard_and_its_folder_and_nothing_of_the_ml_repo(job: TrainingJob) -> None:
    spec = ordered(job, learner(job))
    assert spec.image == "learner-image"
    assert spec.readable == (job.shards[0], Path("/bytecode"))
    assert spec.writable == (job.run_dir / "work" / "learner-0",)
    assert spec.memory_mb == job.memory_mb + 400


@pytest.mark.parametrize(
    "changes",
    [{"data": "/etc"}, {"work_dir": "/etc"}, {"work_dir": "{run}/work/../../other"}, {"work_dir": "{run}/rounds"}],
    ids=["other data", "other folder", "dots", "the results"],
)
def test_what_is_not_the_runs_is_refused(job: TrainingJob, changes: dict[str, str]) -> None:
    with pytest.raises(TrainingError) as refused:
        ordered(job, learner(job, **{name: text.format(run=job.run_dir) for name, text in changes.items()}))
    assert refused.value.code == "FL5604"


def test_a_link_out_of_the_run_is_refused(job: TrainingJob, tmp_path: Path) -> None:
    (job.run_dir / "work").mkdir(parents=True)
    (job.run_dir / "work" / "learner-0").symlink_to(tmp_path)
    with pytest.raises(TrainingError) as refused:
        ordered(job, learner(job))
    assert refused.value.code == "FL5604"


def test_roles_that_the_run_does_not_have_are_refused(job: TrainingJob) -> None:
    for role in ("aggregator", "cluster", "virtual", "check"):
        with pytest.raises(TrainingError) as refused:
            ordered(job, {**learner(job), "role": role})
        assert refused.value.code == "FL5604"


def test_a_cluster_has_the_data_of_its_own_learners_only(job: TrainingJob) -> None:
    job = replace(job, clusters=(ClusterShare("a", 1), ClusterShare("b", 1)))
    work = job.run_dir / "work" / "cluster-a"
    own = learner(job)["spec"]
    spec = {"learners": [own], "work_dir": str(work), "directory": str(job.run_dir / "clusters" / "a")}
    cluster = ordered(job, {"role": "cluster", "spec": spec})
    assert cluster.image == "aggregator-image"
    assert cluster.readable == (Path("/bytecode"),)
    rights = rights_of_cluster({"role": "cluster", "spec": spec})
    inside = str(work / "learner-0")
    assert ordered(job, learner(job, work_dir=inside), rights).readable[0] == job.shards[0]
    for changes in ({"data": str(job.shards[1]), "work_dir": inside}, {}):
        with pytest.raises(TrainingError) as refused:
            ordered(job, learner(job, **changes), rights)
        assert refused.value.code == "FL5604"
    with pytest.raises(TrainingError):
        ordered(job, {"role": "cluster", "spec": {**spec, "directory": "/etc"}})
