"""`flops init`: what it writes is valid, complete, and what our own repo shows."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from reconciler.errors import ControllerError
from reconciler.scaffold import TEMPLATES, examples, init_repository, main
from reconciler.spec.validate import validate_paths

ROOT = Path(__file__).parents[2]


def test_a_fresh_repo_is_valid(tmp_path: Path) -> None:
    written = init_repository(tmp_path / "fresh")
    assert {path.parts[0] for path in written} == {
        ".github", ".gitignore", ".vscode", "README.md", "build_plans", "ci", "flops.yaml", "projects", "schemas",
    }  # fmt: skip
    errors, checked = validate_paths([], root=tmp_path / "fresh")
    assert errors == []
    assert checked == 8


def test_what_it_says_it_wrote_is_what_is_there(tmp_path: Path) -> None:
    written = init_repository(tmp_path)
    assert sorted(written) == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())


def test_every_schema_that_a_file_or_the_editor_names_is_there(tmp_path: Path) -> None:
    init_repository(tmp_path)
    hints = [(path, line) for path in tmp_path.rglob("*.yaml") for line in path.read_text().splitlines() if "$schema=" in line]
    assert len(hints) == 8
    for path, line in hints:
        assert (path.parent / line.partition("$schema=")[2].strip()).is_file(), (path, line)


def test_the_state_of_the_reconciler_is_ignored(tmp_path: Path) -> None:
    init_repository(tmp_path)
    assert ".flops/" in (tmp_path / ".gitignore").read_text().splitlines()


def test_the_customer_is_in_every_file_that_names_one(tmp_path: Path) -> None:
    init_repository(tmp_path, customer="acme")
    project = tmp_path / "projects" / "mnist-classic"
    for name in ("sla.yaml", "mock_data.yaml"):
        assert "customerID: acme\n" in (project / name).read_text()
    assert validate_paths([], root=tmp_path)[0] == []


def test_examples_are_chosen_by_name(tmp_path: Path) -> None:
    init_repository(tmp_path / "fresh", projects=["digits-keras", "digits-pytorch"])
    assert sorted(path.name for path in (tmp_path / "fresh" / "projects").iterdir()) == ["digits-keras", "digits-pytorch"]
    errors, checked = validate_paths([], root=tmp_path / "fresh")
    assert (errors, checked) == ([], 8)


def test_every_example_is_valid_and_ours(tmp_path: Path) -> None:
    init_repository(tmp_path, customer="acme", projects=examples())
    assert validate_paths([], root=tmp_path)[0] == []
    assert all("customerID: acme\n" in path.read_text() for path in tmp_path.glob("projects/*/*.yaml"))


def test_an_example_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ControllerError) as raised:
        init_repository(tmp_path / "fresh", projects=["digits-jax"])
    assert raised.value.code == "FL9103"
    assert "digits-keras, digits-pytorch, mnist-classic" in raised.value.cure
    assert not (tmp_path / "fresh").exists()


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ControllerError) as raised:
        init_repository(tmp_path)
    assert raised.value.code == "FL9101"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_force_writes_into_a_full_folder_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    init_repository(tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "flops.yaml").is_file()


def test_a_folder_with_nothing_but_git_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert init_repository(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ControllerError) as raised:
        init_repository(tmp_path / "file", force=True)
    assert raised.value.code == "FL9102"


def test_our_own_repo_shows_the_same_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_the_wheel_ships_every_template(tmp_path: Path) -> None:
    """Hidden files and names that build tools obey are the ones that get lost."""
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    shipped = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"reconciler/scaffold/templates/{path.relative_to(TEMPLATES)}"
        for path in TEMPLATES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - shipped == set()
