"""What the operator allows: default deny where a list is set, always applied, and fair to those who were there first."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.errors import SpecErrors
from reconciler.policy import Asked, allows, secret_refused, violations
from reconciler.spec import OperatorConfig, load_operator_config, load_sla
from reconciler.spec.policy import Policy
from tests.conftest import Repos
from tests.controller.looping import DEPLOY, Looping

BASE = "customerID: demo\nml_repo_url: https://git.example.invalid/team/model.git\nml_model_flavor: sklearn\n"
TWO = (
    "training_configuration: {data_tags: [mnist, cifar], min_available_clients: 2}\nresource_constraints: {memory: 300, vcpus: 2}\n"
)


def asked(name: str = "a", text: str = BASE + TWO, *, kept: bool = False) -> Asked:
    return Asked.of(name, f"projects/{name}/sla.yaml", load_sla(text.encode(), "sla.yaml"), kept=kept)


def uses(*names: str, customers: list[str] | None = None, **keys: Any) -> str:
    """The code of what is wrong with a project that uses the secret `database`, where these are the operator's."""
    secrets = {name: {"secret_ref": {"env": "X"}, "customers": customers} for name in names}
    config = OperatorConfig.model_validate({"secrets": secrets, "policy": keys})
    text = BASE + "deployment: {environment: {LEVEL: info, DATABASE: {secret_ref: database}}}\n"
    error = secret_refused(config.policy, config.secrets, load_sla(text.encode(), "sla.yaml"), "projects/a")
    return error.code if error else ""


def test_secrets_are_denied_unless_they_are_named() -> None:
    assert uses("database") == "FL9505"
    assert uses("database", secrets=[]) == "FL9505"
    assert uses("database", secrets=["data*"]) == ""
    assert uses("database", secrets=["other"]) == "FL9505"
    assert uses(secrets=["database"]) == "FL9505"
    assert uses("database", customers=["demo"], secrets=["*"]) == ""
    assert uses("database", customers=["other"], secrets=["*"]) == "FL9505"


def policy(**keys: Any) -> Policy:
    return Policy.model_validate(keys)


def refused(rule: Policy, *projects: Asked) -> dict[str, str]:
    return {name: error.code for name, error in violations(rule, projects or [asked()]).items()}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({}, ""),
        ({"ml_repo_urls": ["https://git.example.invalid/team/*"]}, ""),
        ({"ml_repo_urls": ["https://git.example.invalid/other/*", "./*"]}, "FL1702"),
        ({"ml_repo_urls": []}, "FL1702"),
        ({"ml_repo_urls": ["HTTPS://GIT.EXAMPLE.INVALID/team/*"]}, "FL1702"),
        ({"data_tags": ["mnist", "cifar"]}, ""),
        ({"data_tags": ["mnist"]}, "FL1703"),
        ({"data_tags": []}, "FL1703"),
        ({"customers": {"demo": {}}}, ""),
        ({"customers": {"other": {}}}, "FL1701"),
        ({"customers": {}}, "FL1701"),
        ({"project": {"memory_mb": 600}}, ""),
        ({"project": {"memory_mb": 599}}, "FL1706"),
        ({"project": {"vcpus": 3}}, "FL1706"),
        ({"project": {"learners": 1}}, "FL1706"),
        ({"customer": {"projects": 1}}, ""),
        ({"customer": {"projects": 0}}, "FL1707"),
        ({"customer": {"memory_mb": 0}, "customers": {"demo": {}}}, ""),
    ],
)
def test_each_rule_alone(rule: dict[str, Any], code: str) -> None:
    assert refused(policy(**rule)) == ({"a": code} if code else {})


def test_who_may_deploy_and_with_which_variables() -> None:
    text = BASE + TWO + DEPLOY + "deployment: {environment: {LOG_LEVEL: info, LD_PRELOAD: x}, replicas: 3}\n"
    assert refused(policy(deployers=["demo"]), asked(text=text)) == {}
    assert refused(policy(deployers=["staff-*"]), asked(text=text)) == {"a": "FL1705"}
    assert refused(policy(deployers=[]), asked()) == {}, "who does not deploy needs no right to"
    assert refused(policy(environment_variables=["LOG_*"]), asked(text=text)) == {"a": "FL1704"}
    assert refused(policy(project={"replicas": 2}), asked(text=text)) == {"a": "FL1706"}


def test_limits_of_a_customer_hold_for_all_its_projects_and_those_who_were_there_stay() -> None:
    rule = policy(customer={"learners": 4})
    three = (asked("a"), asked("b", kept=True), asked("c", kept=True))
    assert refused(rule, *three) == {"a": "FL1707"}
    other = asked("d", (BASE + TWO).replace("demo", "another"))
    assert refused(rule, *three, other) == {"a": "FL1707"}
    suspended = asked("b", BASE + TWO + "suspend: true\n", kept=True)
    assert refused(rule, asked("a"), suspended, asked("c", kept=True)) == {}


def test_clusters_count_with_all_their_learners() -> None:
    clusters = "mode: hierarchical, clusters: [{name: one, learners: 3}, {name: two, learners: 4}]"
    text = BASE + f"training_configuration: {{data_tags: [mnist], {clusters}}}\n"
    assert asked(text=text).amounts["learners"] == 7


def test_a_refusal_says_the_rule_and_not_the_policy() -> None:
    error = violations(policy(ml_repo_urls=["https://secret.example.invalid/*"]), [asked()])["a"]
    assert "secret" not in str(error)
    assert "flops.yaml" in error.cure
    assert str(error.where) == "projects/a/sla.yaml"


@pytest.mark.parametrize(
    ("patterns", "value", "is_allowed"), [(None, "x", True), ([], "x", False), (["x"], "xy", False), (["x*"], "xy", True)]
)
def test_default_deny_where_a_list_is_set(patterns: list[str] | None, value: str, is_allowed: bool) -> None:
    assert allows(patterns, value) is is_allowed


@pytest.mark.parametrize(
    "text", ["policy: {ml_repo_url: []}\n", "policy: {signed_commits: yes please}\n", "policy: {data_tags: x}\n"]
)
def test_a_policy_with_a_mistake_is_no_policy_that_allows(text: str) -> None:
    with pytest.raises(SpecErrors):
        load_operator_config(text.encode(), "flops.yaml")


def test_in_the_loop_it_holds_on_create_update_resume_and_rollback(repos: Repos) -> None:
    config = OperatorConfig.model_validate({"policy": {"project": {"learners": 1}, "data_tags": ["mnist"]}})
    loop = Looping(repos, config)
    big = {
        "projects/a/sla.yaml": loop.project("a")["projects/a/sla.yaml"].replace("rounds: 3", "rounds: 3, min_available_clients: 2")
    }
    loop.edit(loop.project("good") | loop.project("a") | big)
    loop.settle()
    assert [name for name, _ in loop.world.trained] == ["good"]
    assert "FL1706" in loop.says("a", "Stalled")[2]
    loop.edit(loop.project("a"))
    loop.settle()
    assert loop.says("a", "Synced")[0] == "True"
    loop.edit({"projects/a/sla.yaml": big["projects/a/sla.yaml"] + "suspend: true\n"})
    loop.settle()
    loop.edit(big)
    loop.settle()
    assert "FL1706" in loop.says("a", "Stalled")[2]
    assert loop.says("a", "Ready")[0] == "True", "what runs is left as it is"
    assert len(loop.world.trained) == 2
    # The operator tightens the rules and starts it again: they hold for what was accepted before, too.
    loop.config = OperatorConfig.model_validate({"policy": {"data_tags": []}})
    loop.start()
    loop.settle()
    assert "FL1703" in loop.says("good", "Stalled")[2]


SECRET_SLA = DEPLOY + "deployment: {environment: {DATABASE: {secret_ref: database}}}\n"


def test_a_secret_is_in_no_digest_and_its_version_is(repos: Repos) -> None:
    def with_secret(**keys: Any) -> OperatorConfig:
        return OperatorConfig.model_validate({"secrets": {"database": {"secret_ref": {"env": "DATABASE_SECRET"}, **keys}},
                                              "policy": {"secrets": ["database"]}})  # fmt: skip

    loop = Looping(repos, with_secret())
    loop.edit(loop.project("a", more=SECRET_SLA))
    loop.settle()
    assert loop.says("a", "Synced")[1] == "Converged"
    first = loop.status("a")["serving_digest"]
    loop.config = with_secret(version="2")
    loop.start()
    loop.settle()
    assert loop.status("a")["serving_digest"] != first
    assert len(loop.world.trained) == 1
    loop.config = OperatorConfig()
    loop.start()
    loop.settle()
    assert "FL9505" in loop.says("a", "Stalled")[2]
    assert loop.says("a", "Ready")[0] == "True"
