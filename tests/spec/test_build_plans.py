"""Build plans: what may stand in one, what overrides what, and what the operator has the last word on."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from reconciler.errors import SpecError, SpecErrors
from reconciler.scaffold import init_repository, template_files
from reconciler.spec import ImagesConfig, default_plan, effective_plan, load_build_plan, plan_digest, plans_key, project_plans
from reconciler.spec.build_plan import KINDS
from reconciler.spec.schemas import schema
from reconciler.spec.validate import validate_paths

FRESH = template_files()


def plan_of(text: str, kind: str = "learner") -> object:
    return load_build_plan(f"kind: {kind}\n{text}".encode(), f"build_plans/{kind}.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_repo_writes_the_default_plans(kind: str) -> None:
    data = FRESH[f"build_plans/{kind}.yaml"]
    assert load_build_plan(data, f"build_plans/{kind}.yaml") == default_plan(kind)
    jsonschema.validate(yaml.safe_load(data), schema("build_plan"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("user: root\n", "FL1024"),
        ("user: '0:0'\n", "FL1024"),
        ("user: '00'\n", "FL1024"),
        ("base_image: 'https://example.invalid/x'\n", "FL1024"),
        ("base_image: '--privileged'\n", "FL1024"),
        ("base_image: 'oci:../../etc'\n", "FL1024"),
        ("base_image: 'oci:../etc'\n", "FL1024"),
        ("base_image: 'h.example.invalid/python:{version}'\n", "FL1024"),
        ("base_image: 'python:3.11-slim'\n", "FL1024"),
        ("base_image: 'a b'\n", "FL1024"),
        ("python_version: '2.7'\n", "FL1026"),
        ("platforms: [linux/riscv64]\n", "FL1023"),
        ("platforms: []\n", "FL1026"),
        ("debian_packages: ['libgomp1; rm -rf /']\n", "FL1024"),
        ("environment: {LD_PRELOAD: /tmp/x.so}\n", "FL1024"),
        ("environment: {PYTHONPATH: /tmp}\n", "FL1024"),
        ("environment: {'A=B': x}\n", "FL1026"),
        ("labels: {dev.flops.digest: x}\n", "FL1024"),
        ("ports: [0]\n", "FL1026"),
        ("entrypoint: [python]\n", "FL1021"),
        ("health_check: {}\n", "FL1022"),
        ("compression: xz\n", "FL1023"),
    ],
)
def test_what_may_not_stand_in_a_plan(text: str, code: str) -> None:
    with pytest.raises(SpecErrors) as refused:
        plan_of(text)
    assert [error.code for error in refused.value.errors] == [code]
    assert all(error.where and error.where.line for error in refused.value.errors)


@pytest.mark.parametrize(
    "base",
    [
        "default", "scratch", "localhost/python:3.11-slim", "h.example.invalid/python:{python}-slim", "oci:/srv/base:1",
        "registry.example.invalid:5000/team/base:1", "docker-daemon:base:1", "docker://registry.example.invalid/x:1",
        "127.0.0.1:5000/python@sha256:" + "0" * 64,
    ],
)  # fmt: skip
def test_base_images(base: str) -> None:
    assert plan_of(f"base_image: '{base}'\n").base_image == base  # type: ignore[attr-defined]


def test_a_plan_is_called_after_its_kind() -> None:
    with pytest.raises(SpecErrors) as refused:
        load_build_plan(b"kind: learner\n", "build_plans/inference.yaml")
    assert refused.value.errors[0].code == "FL1041"


def test_a_project_overrides_single_keys() -> None:
    plan = load_build_plan(b"kind: learner\nuser: '1000'\nenvironment: {A: '1', B: '1'}\n", "build_plans/learner.yaml")
    override = load_build_plan(b"kind: learner\nenvironment: {B: '2'}\n", "projects/x/build_plans/learner.yaml")
    made = effective_plan("learner", plan, override)
    assert made.user == "1000"
    assert made.environment == {"A": "1", "B": "2"}


def test_default_is_what_the_operator_says() -> None:
    assert effective_plan("learner").base_image == "scratch"
    policy = ImagesConfig(default_base="h.example.invalid/python:{python}-slim")
    assert effective_plan("learner", policy=policy).base_image == "h.example.invalid/python:{python}-slim"


def test_the_operator_has_the_last_word() -> None:
    policy = ImagesConfig(allowed_bases=["h.example.invalid/*"])
    good = load_build_plan(b"kind: learner\nbase_image: h.example.invalid/python:3.11-slim\n", "learner.yaml")
    assert effective_plan("learner", good, policy=policy).base_image == "h.example.invalid/python:3.11-slim"
    bad = load_build_plan(b"kind: learner\nbase_image: evil.example.invalid/x:1\n", "learner.yaml")
    with pytest.raises(SpecError) as refused:
        effective_plan("learner", good, bad, policy)
    assert refused.value.code == "FL1042"


def test_the_plans_of_a_project_come_from_the_repo_and_from_its_folder() -> None:
    repo = {"learner.yaml": b"kind: learner\nuser: '7'\n", "README.md": b"x"}
    project = {"sla.yaml": b"", "build_plans/learner.yml": b"kind: learner\nlabels: {a: b}\n"}
    made = project_plans(repo, project, ImagesConfig(), path="projects/x")
    assert set(made) == set(KINDS)
    assert (made["learner"].user, made["learner"].labels) == ("7", {"a": "b"})
    assert made["inference"] == effective_plan("inference")
    bad = {"build_plans/inference.yaml": b"kind: inference\nuser: root\n", "build_plans/learner.yaml": b"x: 1\n"}
    with pytest.raises(SpecErrors) as refused:
        project_plans(repo, bad, ImagesConfig(), path="projects/x")
    places = {str(error.where).split(":")[0] for error in refused.value.errors}
    assert places == {"projects/x/build_plans/inference.yaml", "projects/x/build_plans/learner.yaml"}


def test_every_key_of_a_plan_is_in_its_digest() -> None:
    plans = [default_plan(kind) for kind in KINDS]
    plans.append(effective_plan("learner", None, load_build_plan(b"kind: learner\nuser: '7'\n", "learner.yaml")))
    plans.append(effective_plan("learner", None, load_build_plan(b"kind: learner\nlabels: {a: b}\n", "learner.yaml")))
    assert len({plan_digest(plan) for plan in plans}) == len(plans)
    assert plans_key({"learner": plans[0]}) == {"build_plan.learner": plan_digest(plans[0])}


def test_validate_checks_plans_of_the_repo_and_of_projects(tmp_path: Path) -> None:
    init_repository(tmp_path)
    (tmp_path / "build_plans" / "learner.yaml").write_text("kind: learner\nuser: root\n")
    (tmp_path / "build_plans" / "other.yaml").write_text("kind: learner\n")
    folder = tmp_path / "projects" / "mnist-classic" / "build_plans"
    folder.mkdir()
    (folder / "inference.yaml").write_text("kind: inference\nport: 8080\n")
    errors, _ = validate_paths([], root=tmp_path)
    found = {(error.code, str(error.where and error.where.path)) for error in errors}
    assert found == {
        ("FL1024", "build_plans/learner.yaml"),
        ("FL1044", "build_plans/other.yaml"),
        ("FL1021", "projects/mnist-classic/build_plans/inference.yaml"),
    }
    assert len(validate_paths([folder], root=tmp_path)[0]) == 1
    assert len(validate_paths([tmp_path / "projects"], root=tmp_path)[0]) == 1
