"""`flops validate` over a whole GitOps repo, in its three formats."""

from __future__ import annotations

from pathlib import Path

import orjson

from reconciler.scaffold import init_repository
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
    assert validate_paths([], root=tmp_path) == ([], 3)


def test_dependencies_exist_and_have_no_circle(tmp_path: Path) -> None:
    assert codes(repo(tmp_path, a="depends_on: [nobody]\n")) == ["FL1031"]
    assert codes(repo(tmp_path / "2", a="depends_on: [b]\n", b="depends_on: [a]\n")) == ["FL1032", "FL1032"]


def test_a_project_has_one_sla_and_a_good_name(tmp_path: Path) -> None:
    root = repo(tmp_path, Bad_Name="")
    (root / "projects" / "Bad_Name" / "sla.json").write_text((root / "projects/Bad_Name/sla.yaml").read_text())
    assert sorted(codes(root)) == ["FL1034", "FL1035"] or "FL1034" in codes(root)


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
