"""Learners, aggregators and reconcilers that are killed at any time: the run goes on, or is resumed to the same model."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingEvent, TrainingJob
from tests.federation.processes import aggregator_of, learners_of, reconciler_of
from tests.federation.test_training import same

FIT = '        """Mini-batch'
EVALUATE = "        loss = log_loss"
ONLY_FIRST = "__import__('os').environ['FLOPS_DATA'].endswith('shard-0.arrow')"


def dying_once(what: str) -> str:
    """Code that does something in the first learner, once: a file says that it was done."""
    return f"        if {ONLY_FIRST} and not __import__('os').path.exists('done'): open('done', 'w').close(); {what}\n"


@pytest.mark.parametrize("at", [FIT, EVALUATE], ids=["fit", "evaluate"])
def test_a_learner_that_is_killed_is_missing_in_its_round_and_back_in_the_next(job: TrainingJob, run, spoil, at: str) -> None:
    """The learner's directory outlives its process, so its second life finds the file."""
    spoil(at, dying_once("__import__('os').kill(__import__('os').getpid(), 9)") + at)
    result = run(job, min_fit=1, min_evaluate=1)
    fit = [item.learners_fit for item in result.rounds]
    evaluated = [item.learners_evaluated for item in result.rounds]
    assert (fit, evaluated) == (([1, 2, 2], [1, 2, 2]) if at == FIT else ([2, 2, 2], [1, 2, 2]))
    assert result.rounds[0].failures == 1
    assert run.kinds().count("learner_restarted") == 1


def test_a_straggler_is_dropped_and_let_in_again(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, dying_once("__import__('time').sleep(600)") + FIT)
    result = run(job, min_fit=1, min_evaluate=1, round_timeout=3.0)
    assert [item.learners_fit for item in result.rounds] == [1, 2, 2]
    failed = next(event for event in run.events if event.kind == "learner_failed")
    assert failed.data["failure"]["code"] == "FL5021"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2, 3))])
def test_an_aggregator_killed_at_any_time_resumes_to_the_same_model(job: TrainingJob, run, tmp_path: Path, seed: int) -> None:
    """Between rounds or within one: the moment is a random one after a random event."""
    changes = {"strategy_name": "fedyogi", "rounds": 6}
    run(job, run_dir=tmp_path / "undisturbed", **changes)
    chance = random.Random(seed)
    after, delay = chance.randrange(1, 5), chance.random() * 0.1
    timers = []

    def kill(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == after:
            pid = aggregator_of(job.run_dir)
            timers.append(threading.Timer(delay, lambda: os.kill(pid, signal.SIGKILL)))
            timers[0].start()

    with pytest.raises(TrainingError) as caught:
        run(job, on_event=kill, **changes)
    assert caught.value.transient
    assert run(job, **changes).resumed_from >= after
    assert same(job.run_dir, tmp_path / "undisturbed", 6)


@pytest.mark.timeout(900)
@pytest.mark.long
def test_damaged_checkpoints_are_trained_again_to_the_same_model(job: TrainingJob, run, tmp_path: Path) -> None:
    """Each kind of record of a half-finished run in turn: what cannot be read counts as not done, and nothing else is lost."""
    changes = {"strategy_name": "fedyogi", "rounds": 4}
    run(job, run_dir=tmp_path / "undisturbed", **changes)
    with pytest.raises(TrainingError):
        run(job, cancelled=lambda: run.kinds().count("round") > 4 + 2, **changes)
    half = job.run_dir.rename(tmp_path / "half")
    found = sorted(path.relative_to(half) for path in half.rglob("0*.*"))
    records = [found[0], *found[-3:], Path("job.json")]  # of the first round, of the last one, and what the run is about
    for number, record in enumerate(records):
        shutil.copytree(half, job.run_dir)
        content = (half / record).read_bytes()
        damage = [content[: len(content) // 2], b"", b"PK\x03\x04" + b"x" * 50, b"[]", content[:-30] + bytes(30)][number % 5]
        (job.run_dir / record).write_bytes(damage)
        result = run(job, **changes)
        assert [item.round for item in result.rounds] == [1, 2, 3, 4], record
        assert same(job.run_dir, tmp_path / "undisturbed", 4), record
        if number == 0:
            (job.run_dir / "result.json").write_bytes(damage)
            assert len(run(job, **changes).rounds) == 4
        shutil.rmtree(job.run_dir)


def test_a_killed_reconciler_is_followed_by_one_that_goes_on(job: TrainingJob, run, tmp_path: Path) -> None:
    run(job, run_dir=tmp_path / "undisturbed", rounds=50)
    with reconciler_of(replace(job, rounds=50)) as reconciler:
        reconciler.kill()
    assert 1 <= run(job, rounds=50).resumed_from < 50
    assert same(job.run_dir, tmp_path / "undisturbed", 50)


def test_a_learner_that_is_killed_between_rounds_changes_nothing(job: TrainingJob, run, tmp_path: Path) -> None:
    """It is back before the next round, with the same data and seeds: so all answers are the same."""
    run(job, run_dir=tmp_path / "undisturbed")
    killed = []

    def kill(event: TrainingEvent) -> None:
        if event.kind == "started":
            for name, process in learners_of(job.run_dir).items():
                if name == "learner-1":
                    process.kill()
                    killed.append(name)

    result = run(job, on_event=kill, min_available=1, min_fit=1, min_evaluate=1)
    assert [item.learners_fit for item in result.rounds] == [2, 2, 2]
    assert same(job.run_dir, tmp_path / "undisturbed", 3)
