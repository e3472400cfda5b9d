"""The loop over real Git: what is merged is done once, nothing else is done at all, and nobody waits for anybody else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from reconciler.errors import ControllerError, TrainingError
from reconciler.looking import ProjectView
from reconciler.plan import Stage
from reconciler.spec import OperatorConfig
from reconciler.spec.operator import BudgetConfig
from tests.conftest import Repos, commit, git
from tests.controller.looping import DEPLOY, Looping


@pytest.fixture
def loop(repos: Repos) -> Looping:
    return Looping(repos, OperatorConfig(allow_file_urls=True))


def test_what_is_merged_is_trained_served_and_told(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    assert [name for name, _ in loop.world.trained] == ["a"]
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert loop.says("a", "Ready")[:2] == ("True", "Healthy")


def test_idle_looks_do_nothing_and_tell_nothing(loop: Looping) -> None:
    loop.edit(loop.project("a") | loop.project("b"))
    loop.settle()
    commits, actions = loop.commits(), loop.world.actions
    for _ in range(30):
        loop.clock.now += 100.0
        loop.step()
    assert (loop.commits(), loop.world.actions) == (commits, actions)


def test_a_commit_that_does_not_touch_a_project_costs_it_nothing(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    commits, actions = loop.commits(), loop.world.actions
    loop.edit({"README.md": "Another\n"})
    loop.settle()
    assert (loop.commits(), loop.world.actions) == (commits, actions)
    assert loop.controller.view is not None
    assert not loop.controller.view.changed


def test_a_restart_without_its_state_directory_does_nothing(loop: Looping) -> None:
    loop.edit(loop.project("a") | loop.project("b"))
    loop.settle()
    commits, actions = loop.commits(), loop.world.actions
    loop.start("elsewhere")
    loop.settle()
    assert (loop.commits(), loop.world.actions) == (commits, actions)


def test_reverting_brings_the_old_model_back_without_training(loop: Looping) -> None:
    for rounds in (3, 4, 3):
        loop.edit(loop.project("a", rounds))
        loop.settle()
    assert len(loop.world.trained) == 2
    assert loop.world.services["inference-a"].labels["flops.digest"] == loop.world.trained[0][1]


@pytest.mark.parametrize("policy", ["supersede", "finish"])
def test_newer_content_while_a_stage_runs(loop: Looping, policy: str) -> None:
    """Superseded: the old content is left at the next stage. Finished: it goes to its end first."""
    more = DEPLOY + f"on_change: {policy}\n"
    loop.edit(loop.project("a", 3, more))

    def push(view: ProjectView, stage: Stage) -> None:
        if stage is Stage.TRAIN and loop.before is not None:
            loop.before = None
            loop.edit(loop.project("a", 4, more))
            loop.step()

    loop.before = push
    loop.settle()
    stages = [stage for _, stage in loop.stages]
    first = stages[: stages.index("resolve", 1)]
    assert first == ["resolve", "build", "train"] + (["gate", "register", "package", "deploy", "verify"] * (policy == "finish"))
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert loop.world.services["inference-a"].labels["flops.digest"] == loop.world.trained[-1][1]
    superseded = [event for event in loop.engine.journal.events("a") if event.kind == "superseded"]
    assert [event.digest for event in superseded] == ([loop.world.trained[0][1]] if policy == "supersede" else [])


def test_suspend_and_removal_call_off_what_runs(loop: Looping) -> None:
    loop.edit(loop.project("a") | loop.project("b"))

    def stop_both(view: ProjectView, stage: Stage) -> None:
        loop.before = None
        loop.remove("b")
        loop.edit(loop.project("a", more=DEPLOY + "suspend: true\n"))
        loop.step()

    loop.before = stop_both
    loop.settle()
    assert loop.world.trained == []
    assert loop.says("a", "Suspended")[0] == "True"
    with pytest.raises(KeyError):
        loop.status("b")


def test_an_invalid_sla_supersedes_nothing_and_leaves_the_service(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    loop.edit({"projects/a/sla.yaml": "customerID: demo\nunknown: 1\n"})
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("False", "InvalidSLA")
    assert loop.says("a", "Ready")[:2] == ("True", "Healthy")


def test_a_transient_failure_is_tried_again_with_backoff_and_told_once(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    failures = 4

    def fail(view: ProjectView, stage: Stage) -> None:
        nonlocal failures
        if stage is Stage.TRAIN and failures:
            failures -= 1
            raise TrainingError("FL5002", "The training process died.", cure="It is started again.", transient=True)

    loop.before = fail
    loop.step()
    loop.pool.run()
    loop.step()
    commits = loop.commits()
    assert loop.says("a", "Reconciling")[1] == "ProgressingWithRetry"
    for _ in range(3):
        before = len(loop.stages)
        pause = loop.controller.step()
        assert pause is not None
        loop.controller.step()
        assert len(loop.stages) == before, "nothing is tried before its time"
        loop.clock.now += 10
        loop.step()
        loop.pool.run()
        loop.step()
    assert loop.commits() == commits, "that it is tried again and fails alike is no transition"
    loop.clock.now += 20
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert len(loop.world.trained) == 1


def test_what_stalls_waits_for_new_content(loop: Looping) -> None:
    loop.edit(loop.project("a") | loop.project("good"))

    def fail(view: ProjectView, stage: Stage) -> None:
        if view.name == "a" and stage is Stage.TRAIN and "4" not in view.plan.reason:
            raise TrainingError("FL5015", "fit_model raised.", cure="Mend it.")

    loop.before = fail
    loop.settle()
    tried = len(loop.stages)
    assert loop.says("a", "Stalled")[:2] == ("True", "StageFailed")
    for _ in range(5):
        loop.clock.now += 1000
        loop.settle()
    assert len(loop.stages) == tried
    loop.start("other")  # not remembered by the process alone
    loop.settle()
    assert len(loop.stages) == tried
    loop.before = None
    loop.edit(loop.project("a", 4))
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")


def test_a_stop_is_no_fault_of_the_content(loop: Looping) -> None:
    loop.edit(loop.project("a"))

    def stop(view: ProjectView, stage: Stage) -> None:
        if stage is Stage.TRAIN:
            loop.controller.stop()
            raise TrainingError("FL5001", "The training was cancelled.", cure="It can be resumed.")

    loop.before = stop
    loop.step()
    loop.pool.run()
    loop.step()
    loop.before = None
    loop.start()
    loop.settle()
    assert len(loop.world.trained) == 1
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")


def test_dependencies_come_first_and_pass_the_word_on(loop: Looping) -> None:
    loop.edit(
        loop.project("c", more="depends_on: [b]\n") | loop.project("b", more="depends_on: [a]\n") | loop.project("a", more="")
    )
    loop.step()
    assert loop.says("c", "Synced")[1:] == ("DependencyNotReady", "waits for b")
    loop.settle()
    assert [name for name, _ in loop.world.trained] == ["a", "b", "c"]


def test_dependencies_in_a_circle_are_refused(loop: Looping) -> None:
    loop.edit(loop.project("a", more="depends_on: [b]\n") | loop.project("b", more="depends_on: [a]\n") | loop.project("c"))
    loop.settle()
    assert "a → b → a" in loop.says("a", "Stalled")[2]
    assert loop.says("c", "Synced")[0] == "True"


def test_no_more_projects_at_once_than_the_budget_says(repos: Repos) -> None:
    loop = Looping(repos, OperatorConfig(budget=BudgetConfig(max_parallel=2)))
    files: dict[str, str] = {}
    for name in "abcde":
        files |= loop.project(name)
    loop.edit(files)
    loop.step()
    assert len(loop.pool.waiting) == 2
    loop.settle()
    assert len(loop.world.trained) == 5


def test_a_dead_service_comes_back_without_training(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    loop.world.remove("inference-a")
    loop.settle()
    assert "inference-a" in loop.world.services
    assert len(loop.world.trained) == 1


def test_a_fight_is_spaced_out_and_told(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    before = loop.world.actions
    for _ in range(60):
        loop.world.remove("inference-a")
        loop.clock.now += 0.5
        loop.step()
        loop.pool.run()
    assert loop.world.actions - before < 10
    assert any(event.kind == "fight" for event in loop.engine.journal.events("a"))


def test_a_branch_that_declares_nothing_any_more_removes_nothing(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    loop.remove("a")
    loop.settle()
    assert "inference-a" in loop.world.services
    assert any("FL9005" in text for text in loop.warnings)
    loop.edit(loop.project("b"))
    loop.settle()
    assert list(loop.world.services) == ["inference-b"]


def test_a_remote_that_is_gone_is_not_an_empty_one_and_is_told_once(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    moved = loop.repos.origin.with_name("gone.git")
    loop.repos.origin.rename(moved)
    loop.world.remove("inference-a")
    for _ in range(5):
        loop.settle()
    assert "inference-a" in loop.world.services, "what is declared is still looked after"
    assert sum("FL2006" in text for text in loop.warnings) == 1
    moved.rename(loop.repos.origin)
    loop.edit(loop.project("a", 4))
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")


def test_an_ml_repo_that_hangs_keeps_only_its_own_project_waiting(loop: Looping) -> None:
    """Asked for beside the loop: until there is an answer the others are worked on."""
    elsewhere = Repos(loop.repos.root / "other-made" if (loop.repos.root / "other-made").mkdir() is None else loop.repos.root)
    clone = elsewhere.clone()
    (clone / "model_manager.py").write_text("class ModelManager: ...\n")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "Model")
    git(clone, "push", "-q", "origin", "HEAD:main")
    slow = loop.project("slow")
    slow["projects/slow/sla.yaml"] = slow["projects/slow/sla.yaml"].replace("./projects/slow/ml_repo", f"file://{elsewhere.origin}")
    loop.edit(slow | loop.project("quick"))
    loop.step()
    asking = loop.pool.waiting.pop(0)
    loop.settle()
    assert [name for name, _ in loop.world.trained] == ["quick"]
    assert "FL9010" in loop.says("slow", "Reconciling")[2]
    asking()
    loop.settle()
    assert loop.says("slow", "Synced")[:2] == ("True", "Converged")


def test_converge_ends_by_itself_and_says_what_would_be_tried_again(loop: Looping) -> None:
    loop.edit(loop.project("a") | loop.project("b"))

    def fail(view: ProjectView, stage: Stage) -> None:
        if view.name == "b":
            raise TrainingError("FL5002", "The training process died.", cure="It is started again.", transient=True)

    loop.before = fail
    loop.controller._pace.serving = False
    result = loop.controller.converge(tries=3)
    assert not result.converged
    assert sum(name == "b" for name, _ in loop.stages) == 3
    assert [name for name, _ in loop.world.trained] == ["a"]


def test_converge_refuses_an_empty_branch(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    loop.remove("a")
    loop.start()
    loop.controller._pace.serving = False
    with pytest.raises(ControllerError, match="declares no project"):
        loop.controller.converge()


def test_a_project_that_went_while_nobody_looked_is_taken_off_the_status(loop: Looping) -> None:
    loop.edit(loop.project("a", more="") | loop.project("b"))
    loop.settle()
    loop.remove("a")
    loop.start()
    loop.settle()
    with pytest.raises(KeyError):
        loop.status("a")


def test_a_followed_ml_repo_is_trained_when_it_moves_and_others_stay(loop: Looping) -> None:
    (loop.repos.root / "ml").mkdir()
    elsewhere = Repos(loop.repos.root / "ml")
    clone = elsewhere.clone()
    commit(clone, {"model_manager.py": "1\n"})
    files: dict[str, str] = {}
    for name, more in (("follows", "triggers: {on_ml_repo_push: true}\n"), ("fixed", "")):
        made = loop.project(name, more=more)
        made[f"projects/{name}/sla.yaml"] = made[f"projects/{name}/sla.yaml"].replace(
            f"./projects/{name}/ml_repo", f"file://{elsewhere.origin}"
        )
        files |= made
    loop.edit(files)
    loop.settle()
    commit(clone, {"model_manager.py": "2\n"})
    loop.clock.now += 100
    loop.settle()
    assert sorted(name for name, _ in loop.world.trained) == ["fixed", "follows", "follows"]


def test_a_renamed_project_is_adopted_and_not_trained_again(loop: Looping) -> None:
    """A folder elsewhere is the ML repo of both, so the content is the same; the old name's service goes, its models stay."""
    shared = {"shared/model_manager.py": "class ModelManager: ...\n"}
    files = {path: text.replace("./projects/a/ml_repo", "./shared") for path, text in loop.project("a").items()}
    loop.edit(shared | files)
    loop.settle()
    git(loop.user, "mv", "projects/a", "projects/b")
    loop.edit({})
    loop.settle()
    assert [name for name, _ in loop.world.trained] == ["a"]
    assert list(loop.world.services) == ["inference-b"]
    assert loop.says("b", "Synced")[:2] == ("True", "Converged")
    assert {model.project for model in loop.world.versions("demo")} == {"a", "b"}


def test_an_alias_that_somebody_moved_is_drift_and_is_mended(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    world = loop.world
    world.models["demo"] = {
        name: tuple(replace(item, aliases=()) for item in versions) for name, versions in world.models["demo"].items()
    }
    world.generation += 1
    loop.step()
    assert loop.says("a", "Synced")[:2] == ("False", "Drifted")
    loop.settle()
    assert world.versions("demo")[0].aliases == ("development",)
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert len(world.trained) == 1


def test_a_dead_service_is_drift_and_a_fight_is_told(loop: Looping) -> None:
    loop.edit(loop.project("a"))
    loop.settle()
    loop.world.remove("inference-a")
    loop.step()
    assert loop.says("a", "Synced")[:2] == ("False", "Drifted")
    for _ in range(20):
        loop.pool.run()
        loop.world.remove("inference-a")
        loop.step()
    assert loop.says("a", "Synced")[:2] == ("False", "FoughtOver")
    loop.clock.now += 2000
    loop.settle()
    loop.clock.now += 2000
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")


def test_a_look_asks_the_registry_once_for_all_images(loop: Looping, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the store's limit of questions holds for a look, and not for each project of it."""
    loop.edit({name: text for number in range(3) for name, text in loop.project(f"p{number}").items()})
    loop.settle()
    asked: list[set[str]] = []
    images = loop.engine.images
    answer = type(images).due

    def due(self: object, names: Iterable[str]) -> list[str]:
        asked.append(set(names))
        return answer(self, asked[-1])

    monkeypatch.setattr(type(images), "due", due)
    loop.controller.look(fetch=False)
    assert asked == [loop.world.images]
