"""What a plan says, case by case, and the laws that every plan keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan import (
    BUILD_STEP,
    DEPLOY_STEP,
    DEVELOPMENT,
    Change,
    DesiredProject,
    ObservedModel,
    ObservedProject,
    ObservedService,
    ProjectPlan,
    Stage,
    plan,
    plan_project,
)

BOTH = frozenset({BUILD_STEP, DEPLOY_STEP})


def declared(rounds: int = 3, *, gate: str = "0.8", port: str = "0", steps: frozenset[str] = BOTH) -> DesiredProject:
    training = {"training_configuration.training_rounds": str(rounds), "ml_repo.tree": "aa"}
    return DesiredProject("mnist", "demo", training, {"threshold": gate}, {"port": port}, steps)


def carry_out(desired: DesiredProject, observed: ObservedProject, step: ProjectPlan, *, meets: bool = True) -> ObservedProject:
    """The world after a plan was carried out: the smallest honest simulation of the stages."""
    if step.is_noop:
        return observed
    models: dict[str, ObservedModel] = dict(observed.models)
    if step.runs(Stage.GATE):
        observed = dataclasses.replace(observed, trained=observed.trained | {desired.run_digest})
        if not meets:
            return dataclasses.replace(observed, rejected=observed.rejected | {desired.gate_digest})
        models[desired.run_digest] = ObservedModel(desired.run_digest, str(len(models) + 1), "run", desired.gate_digest)
    if step.runs(Stage.REGISTER):
        models = {key: dataclasses.replace(item, aliases=()) for key, item in models.items()}
        models[desired.run_digest] = dataclasses.replace(models[desired.run_digest], aliases=(DEVELOPMENT,))
    service = observed.service
    if step.runs(Stage.DEPLOY):
        wanted = DEPLOY_STEP in desired.steps
        service = ObservedService(desired.serving_digest, desired.run_digest, healthy=True) if wanted else None
    return dataclasses.replace(observed, models=models, service=service, recorded=desired.training)


def test_a_new_project_runs_every_stage_in_order() -> None:
    step = plan_project(declared(), ObservedProject("mnist"))
    assert step.change is Change.TRAIN
    assert [action.stage for action in step.actions] == list(Stage)


def test_a_changed_input_is_named_with_both_values() -> None:
    before = declared(3)
    world = carry_out(before, ObservedProject("mnist"), plan_project(before, ObservedProject("mnist")))
    step = plan_project(declared(10), world)
    assert step.change is Change.TRAIN
    assert "training_configuration.training_rounds: 3 → 10" in step.reason


def test_a_revert_deploys_the_old_model_and_trains_nothing() -> None:
    first, second = declared(3), declared(10)
    world = ObservedProject("mnist")
    for desired in (first, second):
        world = carry_out(desired, world, plan_project(desired, world))
    step = plan_project(first, world)
    assert step.change is Change.DEPLOY
    assert not step.runs(Stage.TRAIN)
    assert step.runs(Stage.DEPLOY)
    back = carry_out(first, world, step)
    assert back.models[first.run_digest].aliases == (DEVELOPMENT,)
    assert plan_project(first, back).is_noop


def test_an_alias_that_somebody_moved_is_moved_back_and_nothing_else_is_done() -> None:
    desired = declared()
    world = carry_out(desired, ObservedProject("mnist"), plan_project(desired, ObservedProject("mnist")))
    moved = {key: dataclasses.replace(item, aliases=()) for key, item in world.models.items()}
    step = plan_project(desired, dataclasses.replace(world, models=moved))
    assert step.change is Change.ALIAS
    assert [stage for stage in Stage if step.runs(stage)] == [Stage.REGISTER]


def test_a_looser_gate_asks_for_a_verdict_and_not_for_training() -> None:
    strict, loose = declared(gate="0.99"), declared(gate="0.5")
    world = carry_out(strict, ObservedProject("mnist"), plan_project(strict, ObservedProject("mnist")), meets=False)
    assert plan_project(strict, world).change is Change.STALLED
    step = plan_project(loose, world)
    assert step.change is Change.GATE
    assert not step.runs(Stage.TRAIN)
    assert step.runs(Stage.REGISTER)


def test_a_service_that_is_not_healthy_is_deployed_again() -> None:
    desired = declared()
    world = carry_out(desired, ObservedProject("mnist"), plan_project(desired, ObservedProject("mnist")))
    assert world.service is not None
    sick = dataclasses.replace(world, service=dataclasses.replace(world.service, healthy=False))
    step = plan_project(desired, sick)
    assert step.change is Change.DEPLOY
    assert step.reason == "the service is not healthy"


def test_changed_deployment_settings_roll_the_service_over() -> None:
    desired = declared()
    world = carry_out(desired, ObservedProject("mnist"), plan_project(desired, ObservedProject("mnist")))
    step = plan_project(declared(port="8080"), world)
    assert (step.change, step.reason) == (Change.DEPLOY, "the deployment's settings changed")


def test_a_project_without_deployment_withdraws_its_service() -> None:
    desired = declared()
    world = carry_out(desired, ObservedProject("mnist"), plan_project(desired, ObservedProject("mnist")))
    without = declared(steps=frozenset({BUILD_STEP}))
    step = plan_project(without, world)
    assert step.change is Change.WITHDRAW
    assert carry_out(without, world, step).service is None


def test_a_project_that_is_gone_loses_its_service_only() -> None:
    service = ObservedService("x", "y", healthy=True)
    result = plan([], [ObservedProject("old", service=service), ObservedProject("kept")])
    assert [(item.name, item.change) for item in result.projects] == [("old", Change.PRUNE)]


def test_nothing_is_done_to_what_could_not_be_observed() -> None:
    step = plan_project(declared(), ObservedProject("mnist", unknown="the registry does not answer"))
    assert (step.change, step.is_noop, step.actions) == (Change.UNKNOWN, True, ())


def test_a_bad_sla_does_not_touch_the_others() -> None:
    bad = dataclasses.replace(declared(), name="bad", problems=({"cause": "No."},))
    result = plan([bad, declared()], []).by_name()
    assert result["bad"].is_noop
    assert result["mnist"].change is Change.TRAIN


desired_projects = st.builds(
    declared,
    rounds=st.integers(1, 3),
    gate=st.sampled_from(["0.5", "0.9"]),
    port=st.sampled_from(["0", "8080"]),
    steps=st.sampled_from([frozenset[str](), frozenset({BUILD_STEP}), BOTH]),
)
histories = st.lists(st.tuples(desired_projects, st.booleans()), min_size=1, max_size=8)


@given(histories)
def test_carrying_a_plan_out_leaves_nothing_to_do(history: list[tuple[DesiredProject, bool]]) -> None:
    world = ObservedProject("mnist")
    for desired, meets in history:
        world = carry_out(desired, world, plan_project(desired, world), meets=meets)
        assert plan_project(desired, world).is_noop


@given(histories)
def test_no_digest_is_trained_twice(history: list[tuple[DesiredProject, bool]]) -> None:
    world = ObservedProject("mnist")
    trained: list[str] = []
    for desired, meets in history:
        step = plan_project(desired, world)
        if step.runs(Stage.TRAIN):
            trained.append(desired.run_digest)
        world = carry_out(desired, world, step, meets=meets)
    assert len(trained) == len(set(trained))


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=5))
def test_a_digest_depends_on_its_inputs_and_not_on_their_order(inputs: Mapping[str, str]) -> None:
    backwards = dict(reversed(list(inputs.items())))
    assert DesiredProject("a", "c", inputs).run_digest == DesiredProject("a", "c", backwards).run_digest
    assert DesiredProject("a", "c", {**inputs, "new-input": "1"}).run_digest != DesiredProject("a", "c", inputs).run_digest
