"""The parts without a federation: digests, the best round, pairs of inputs and labels, the sandbox's report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from reconciler.runtime_version import mlruntime_digest, mlruntime_dir
from tests.conftest import SmallDisk


def inside(code: str, *arguments: str) -> str:
    """Runs code with the ML runtime on its path, as in an ML environment."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=mlruntime_dir(),
        env={"PYTHONPATH": str(mlruntime_dir()), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_digest_is_stable() -> None:
    assert len(mlruntime_digest()) == 64
    assert mlruntime_digest() == mlruntime_digest()


def test_the_best_round_is_the_earliest_of_equals_and_never_nan() -> None:
    code = """
from flops_runtime.aggregator import best_round
def r(n, a, l): return {"round": n, "accuracy": a, "loss": l, "metrics": {"f1": -a}}
rounds = [r(1, float("nan"), 3.0), r(2, 0.9, 2.0), r(3, 0.9, 1.0), r(4, 0.1, 1.0)]
print(best_round(rounds, "accuracy", "max"), best_round(rounds, "loss", "min"), best_round(rounds, "f1", "max"))
"""
    assert inside(code) == "2 3 4"


def test_pairs_are_found_in_what_repos_keep() -> None:
    code = """
import json, numpy as np
from flops_runtime.heldout import find_pairs
x, y = np.zeros((8, 3)), np.arange(8)
class M: pass
def pairs(**held):
    m = M(); m.__dict__.update(held)
    return [[len(p.inputs), None if p.labels is None else p.labels.tolist()] for p in find_pairs(m, lambda _: True)]
print(json.dumps([
    pairs(x_train=x[:6], x_test=x[6:], y_train=y[:6], y_test=y[6:]),
    pairs(train=(x[:6], y[:6]), test=(x[6:], y[6:])),
    pairs(data={"x": x, "y": y}, model=object()),
    pairs(x=x),
    pairs(name="nothing"),
]))
"""
    split = [[6, [0, 1, 2, 3, 4, 5]], [2, [6, 7]]]
    assert json.loads(inside(code)) == [split, split, [[8, list(range(8))]], [[8, None]], []]


def test_the_sandbox_says_how_far_it_reaches(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from flops_runtime import sandbox
allowed = Path(sys.argv[1]); (allowed / "in").mkdir()
level = sandbox.enter([], [allowed / "in"])
(allowed / "in" / "a").write_text("x")
try:
    (allowed / "b").write_text("x"); kept = False
except PermissionError:
    kept = True
print(level, kept == level.startswith("Landlock"), sep="|")
"""
    level, consistent = inside(code, str(tmp_path)).split("|")
    assert level
    assert consistent == "True"


def test_a_full_disk_is_said_also_when_a_library_hides_it(small_disk: SmallDisk) -> None:
    """MLflow says "cannot be copied" of a file for which there is no space."""
    code = """
import errno, shutil, sys
from pathlib import Path
from flops_runtime.failures import user_failure
work = Path(sys.argv[1])
def code_of(error):
    return user_failure(error, "FL5040", "Writing the model raised", work / "repo", work).code
hidden = RuntimeError("cannot be copied")
hidden.__cause__ = shutil.Error("several")
print(code_of(hidden), code_of(MemoryError()), end=" ")
hidden.__cause__.__context__ = OSError(errno.ENOSPC, "No space left on device")
print(code_of(hidden))
"""
    assert inside(code, str(small_disk.path)) == "FL5040 FL5022 FL5042"
    small_disk.leave(0)
    assert inside(code, str(small_disk.path)) == "FL5042 FL5022 FL5042"


def test_a_directory_may_be_made_by_two_at_once(tmp_path: Path) -> None:
    """The aggregator writes parameters into the export's directory while the exporting process enters it."""
    code = """
import os, sys, threading
from pathlib import Path
from flops_runtime.contract import enter_directory
root, repo = Path(sys.argv[1]), Path(sys.argv[1]) / "repo"
repo.mkdir()
failed = []
def enter(barrier, path):
    barrier.wait()
    try:
        enter_directory(path, repo, "")
    except OSError as error:
        failed.append(error)
for number in range(200):
    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=enter, args=(barrier, root / f"work-{number}")) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(failed)
"""
    assert inside(code, str(tmp_path)) == "[]"


def test_a_reconciler_of_the_lowest_priority_can_export_too() -> None:
    code = """
import os
from flops_runtime.export import lower_priority
lower_priority()
print(os.nice(0) >= 15)
os.nice(19)
lower_priority()
print(os.nice(0))
"""
    assert inside(code) == "True\n19"


def test_a_result_with_another_digit_is_no_result_and_takes_no_other_round_with_it(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from flops_runtime.checkpoints import Checkpoints
folder = Path(sys.argv[1])
kept = Checkpoints(folder)
result = {"round": 1, "accuracy": 0.875, "loss": float("nan"), "metrics": {"f1": 1e-17}}
rounds = [{**result, "round": number} for number in range(1, 8)]
for number, done in enumerate(rounds, 1):
    kept.save(number, {"0": np.full(3, number)}, {"m": np.full(2, number)}, done)
for damage in (None, "0007.json"):
    if damage:
        file = folder / damage
        file.write_text(file.read_text().replace("0.875", "0.975"))
    results, parameters, state = kept.load(9)
    print(len(results), repr(results) == repr(rounds[:len(results)]), parameters["0"], state["m"])
print(len(list(folder.glob("*.state.npz"))))
"""
    assert inside(code, str(tmp_path)).splitlines() == ["7 True [7 7 7] [7 7]", "6 True [6 6 6] [6 6]", "2"]
