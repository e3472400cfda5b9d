"""Every way in which an ML repo can be wrong: a clear error, with its place, and nothing hangs or leaks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.errors import TrainingError
from reconciler.federation.launching import child_environment
from reconciler.federation.training import TrainingJob

FIT = '        """Mini-batch'
HEAD = "import numpy as np\n"
ONLY_FIRST = "__import__('os').environ['FLOPS_DATA'].endswith('shard-0.arrow')"


def fails(run, job: TrainingJob, code: str, *texts: str, **changes) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        run(job, **changes)
    assert caught.value.code == code, str(caught.value)
    for text in texts:
        assert text in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["model_manager.py", "data_manager.py"])
def test_a_file_is_missing(job: TrainingJob, run, name: str) -> None:
    (job.repo_dir / name).unlink()
    fails(run, job, "FL5010", name)


def test_a_method_is_missing(job: TrainingJob, run, spoil) -> None:
    spoil("def evaluate_model", "def evaluate")
    fails(run, job, "FL5011", "evaluate_model")


def test_a_dependency_is_missing(job: TrainingJob, run, spoil) -> None:
    spoil(HEAD, HEAD + "import not_installed_anywhere\n")
    error = fails(run, job, "FL5012", "not_installed_anywhere")
    assert error.where is not None
    assert (error.where.path, error.where.line) == ("model_manager.py", 2)


def test_a_syntax_error(job: TrainingJob, run, spoil) -> None:
    spoil(HEAD, HEAD + "def (:\n")
    assert fails(run, job, "FL5012", "SyntaxError").where.line == 2


def test_fit_raises(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        raise ValueError('no gradient')\n" + FIT)
    error = fails(run, job, "FL5015", "round 1", "ValueError: no gradient", "learner 0", "learner 1")
    assert error.where is not None
    assert error.where.path == "model_manager.py"
    assert not error.transient


def test_fit_exits(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        raise SystemExit(0)\n" + FIT)
    fails(run, job, "FL5015", "SystemExit")


def test_data_cannot_be_loaded(job: TrainingJob, run, spoil) -> None:
    spoil('data["x"]', 'data["image"]', "data_manager.py")
    assert fails(run, job, "FL5014", "image").where.path == "data_manager.py"


@pytest.mark.parametrize(
    ("old", "new", "method"),
    [
        ("return len(self.x_train)", "return None", "fit_model"),
        ("return loss, ", "return [] and ", "evaluate_model"),
        ("return [self.model.coef_, self.model.intercept_]", "return {'coef': 1}", "get_model_parameters"),
    ],
)
def test_a_wrong_return(job: TrainingJob, run, spoil, old: str, new: str, method: str) -> None:
    spoil(old, new)
    fails(run, job, "FL5017", method)


def test_parameters_that_are_not_finite(job: TrainingJob, run, spoil) -> None:
    spoil("return len(self.x_train)", "self.model.coef_ *= np.nan\n        return len(self.x_train)")
    fails(run, job, "FL5032", "diverged")


def test_fit_never_returns(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        while True: pass\n" + FIT)
    fails(run, job, "FL5021", "2 s", round_timeout=2.0)


def test_a_learner_that_dies_in_a_round_is_back_in_the_next(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, f"        if {ONLY_FIRST} and not self.model.coef_.any(): __import__('os').abort()\n" + FIT)
    result = run(job, min_fit=1, min_evaluate=1)
    assert [item.learners_fit for item in result.rounds] == [1, 2, 2]
    assert result.rounds[0].failures == 1
    assert "learner_restarted" in run.kinds()


def test_a_learner_that_dies_and_is_needed(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, f"        if {ONLY_FIRST}: __import__('os').abort()\n" + FIT)
    fails(run, job, "FL5020", "1 of 2 learners", "SIGABRT")


def test_a_slow_learner_is_left_behind(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, f"        if {ONLY_FIRST}: __import__('time').sleep(600)\n" + FIT)
    result = run(job, min_fit=1, min_evaluate=1, rounds=1, round_timeout=1.0)
    assert result.rounds[0].learners_fit == 1


def test_secrets_of_the_reconciler_are_not_in_its_environment(job: TrainingJob, run, spoil, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-very-secret")
    spoil(FIT, "        print(dict(__import__('os').environ), flush=True)\n" + FIT)
    run(job, rounds=1)
    log = (job.run_dir / "child.log").read_text()
    assert "FLOPS_DATA" in log
    assert "hunter2" not in log
    assert not {name for name in child_environment(job) if "SECRET" in name or "TOKEN" in name}


def test_the_reconcilers_memory_and_environment_cannot_be_read(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, f"        open('/proc/{os.getpid()}/environ').read()\n" + FIT)
    fails(run, job, "FL5023", "environ")


def test_writing_outside(job: TrainingJob, run, spoil, tmp_path: Path) -> None:
    target = tmp_path / "outside.txt"
    spoil(FIT, f"        open({str(target)!r}, 'w').write('x')\n" + FIT)
    error = fails(run, job, "FL5023", str(target))
    assert error.where is not None
    assert error.where.path == "model_manager.py"
    assert not target.exists()


@pytest.mark.parametrize("name", ["result.json", "rounds/0009.json", "job.json"])
def test_results_cannot_be_forged(job: TrainingJob, run, spoil, name: str) -> None:
    spoil(FIT, f"        open({str(job.run_dir / name)!r}, 'a').write('x')\n" + FIT)
    fails(run, job, "FL5023", name)


def test_the_ml_repo_itself_is_read_only(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        open('model_manager.py', 'a').write('#')\n" + FIT)
    fails(run, job, "FL5023", "model_manager.py")


def test_working_files_are_fine(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        open('notes.txt', 'a').write('x'); __import__('tempfile').mkstemp()\n" + FIT)
    assert run(job, rounds=1).best_round == 1


def test_no_network(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        __import__('socket').create_connection(('127.0.0.1', 9), 1)\n" + FIT)
    fails(run, job, "FL5024", "network")


def test_memory(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        hog = np.ones(60_000_000); __import__('time').sleep(5)\n" + FIT)
    fails(run, job, "FL5022", "resource_constraints.memory", memory_mb=100)


def test_it_prints_a_lot(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        print('x' * 20_000_000)\n" + FIT)
    assert run(job, rounds=1).best_round == 1
    assert (job.run_dir / "child.log").stat().st_size < 5 << 20


def test_a_model_that_cannot_be_exported_keeps_its_rounds(job: TrainingJob, run, spoil) -> None:
    spoil("return self.model\n", "raise RuntimeError('not today')\n")
    fails(run, job, "FL5040", "not today", rounds=1)
    assert (job.run_dir / "rounds" / "0001.json").is_file()
    spoil("raise RuntimeError('not today')\n", "return self.model\n")
    assert run(job, rounds=1).resumed_from == 1


def test_an_interpreter_that_is_not_there(job: TrainingJob, run, tmp_path: Path) -> None:
    assert fails(run, replace(job, python=tmp_path / "python"), "FL5002").transient


def test_a_learner_cannot_signal_the_reconciler(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, f"        __import__('os').kill({os.getpid()}, 0)\n" + FIT)
    fails(run, job, "FL5015", "Operation not permitted")
