"""`flops validate` over a whole GitOps repo, in its three formats."""

from __future__ import annotations

import os
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.scaffold import init_repository
from reconciler.spec.dependencies import circles
from reconciler.spec.validate import format_errors, validate_paths


def repo(root: Path, **slas: str) -> Path:
    for name, more in slas.items():
        folder = root / "projects" / name
        folder.mkdir(parents=True)
        text = "customerID: demo\nml_repo_url: ./x\nml_model_flavor: sklearn\n"
        (folder / "sla.yaml").write_text(text + more)
    return root


def codes(root: Path) -> list[str]:
    return [error.code for error in validate_paths([], root=root)[0]]


def test_a_fresh_repo_is_valid(tmp_path: Path) -> None:
    init_repository(tmp_path)
    assert validate_paths([], root=tmp_path) == ([], 8)


def test_dependencies_exist_and_have_no_circle(tmp_path: Path) -> None:
    assert codes(repo(tmp_path, a="depends_on: [nobody]\n")) == ["FL1031"]
    assert codes(repo(tmp_path / "2", a="depends_on: [b]\n", b="depends_on: [a]\n")) == ["FL1032"]


def test_dependencies_are_told_at_their_place(tmp_path: Path) -> None:
    errors, _ = validate_paths([], root=repo(tmp_path, alpha="depends_on: [beta, alpa]\n", beta="depends_on: [alpha]\n"))
    assert [(item.code, str(item.where)) for item in errors] == [
        ("FL1031", "projects/alpha/sla.yaml:4:20"),
        ("FL1032", "projects/alpha/sla.yaml:4:14"),
    ]
    assert "alpha → beta → alpha" in errors[1].cause
    assert errors[0].cure == "Did you mean 'alpha'?"


def test_a_dependency_exists_even_if_it_was_not_asked_for_or_is_wrong_itself(tmp_path: Path) -> None:
    root = repo(tmp_path, a="depends_on: [b]\n", b="suspnd: true\n")
    assert validate_paths([root / "projects/a/sla.yaml"], root=root) == ([], 1)
    assert codes(root) == ["FL1021"]


def test_a_circle_through_projects_that_were_not_asked_for(tmp_path: Path) -> None:
    root = repo(tmp_path, a="depends_on: [b]\n", b="depends_on: [c]\n", c="depends_on: [a]\n", d="depends_on: [a]\n")
    found = [(item.code, item.where and item.where.path) for item in validate_paths([root / "projects/b"], root=root)[0]]
    assert found == [("FL1032", "projects/b/sla.yaml")]
    assert validate_paths([root / "projects/d"], root=root) == ([], 1)


def test_circles_of_any_size() -> None:
    chain = {str(number): (str(number + 1),) for number in range(5_000)}
    assert circles(chain) == []
    assert len(circles(chain | {"5000": ("0",)})[0]) == 5_002
    assert circles({"a": ("a",), "b": ("a", "c"), "c": ("b",)}) == [("a", "a"), ("b", "c", "b")]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_circles_are_found_exactly_when_there_is_no_order(depends: dict[str, list[str]]) -> None:
    try:
        tuple(TopologicalSorter(depends).static_order())
        ordered = True
    except CycleError:
        ordered = False
    found = circles(depends)
    assert (not found) == ordered
    for circle in found:
        assert circle[0] == circle[-1]
        assert all(after in depends[before] for before, after in pairwise(circle))


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    root = repo(tmp_path, a="")
    (root / "secret").write_text("hunter2")
    (root / "projects/a/sla.yaml").unlink()
    (root / "projects/a/sla.yaml").symlink_to(root / "secret")
    os.mkfifo(root / "projects/a/mock_data.yaml")
    errors, _ = validate_paths([], root=root)
    assert [item.code for item in errors] == ["FL1033", "FL1033"]
    assert "hunter2" not in format_errors(errors, "text", checked=2)


def test_folders_are_searched_and_dotted_ones_left_out(tmp_path: Path) -> None:
    root = repo(tmp_path / "deep" / "er", a="suspnd: true\n")
    repo(tmp_path / ".venv", b="suspnd: true\n")
    assert validate_paths([tmp_path], root=root)[1] == 1
    assert codes(tmp_path) == []


def test_names_of_folders_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    errors, checked = validate_paths([], root=repo(tmp_path, **{"a\x1b[31m\nb": ""}))
    shown = format_errors(errors, "text", checked=checked)
    assert [item.code for item in errors] == ["FL1035"]
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def test_a_project_has_one_sla_and_a_good_name(tmp_path: Path) -> None:
    root = repo(tmp_path, Bad_Name="")
    (root / "projects" / "Bad_Name" / "sla.json").write_text((root / "projects/Bad_Name/sla.yaml").read_text())
    assert codes(root) == ["FL1034", "FL1035"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert [error.code for error in validate_paths([tmp_path / "sla.yaml"], root=tmp_path)[0]] == ["FL1033"]


def test_formats(tmp_path: Path) -> None:
    errors, checked = validate_paths([], root=repo(tmp_path, a="suspnd: true\n"))
    assert "projects/a/sla.yaml:4:1: FL1021" in format_errors(errors, "text", checked=checked)
    content = orjson.loads(format_errors(errors, "json", checked=checked))
    assert (content["checked"], content["errors"][0]["line"]) == (1, 4)
    shown = format_errors(errors, "github", checked=checked)
    assert shown.startswith("::error file=projects/a/sla.yaml,line=4,col=1,title=FL1021::There is no key")


def test_githubs_annotations_cannot_be_broken_out_of(tmp_path: Path) -> None:
    errors, checked = validate_paths([], root=repo(tmp_path, a='"x::error\\n%": 1\n'))
    shown = format_errors(errors, "github", checked=checked)
    assert len(shown.splitlines()) == 1
