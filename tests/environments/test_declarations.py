"""What ML repos in the wild declare, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.environments.declarations import read_declaration
from reconciler.environments.model import PythonWish
from reconciler.errors import BuildError


def declare(folder: Path, name: str, text: str) -> list[str]:
    (folder / name).write_text(text)
    return [item.text for item in read_declaration(folder).requirements]


CONDA = """name: mlflow-env
channels: [conda-forge]
dependencies:
  - python=3.10.14
  - pip<=24.0
  - conda-forge::scikit-learn=1.4.2=py310h1fdf081_0
  - numpy=1.26
  - pytorch==2.1.0
  - cudatoolkit=11.8
  - pip:
      - mlflow==2.12.1
      - scipy==1.13.0
      - flops-utils
"""


def test_a_conda_file_as_repos_in_the_wild_have_it(tmp_path: Path) -> None:
    assert declare(tmp_path, "conda.yaml", CONDA) == ["scikit-learn==1.4.2", "numpy==1.26.*", "torch==2.1.0", "scipy==1.13.0"]
    found = read_declaration(tmp_path)
    assert found.python == PythonWish("python=3.10.14", "==3.10.*")
    report = "\n".join(found.report.lines)
    for name in ("mlflow==2.12.1", "flops-utils", "cudatoolkit", "pip", "pytorch"):
        assert name in report


def test_the_line_of_a_requirement_is_known(tmp_path: Path) -> None:
    (tmp_path / "conda.yaml").write_text(CONDA)
    lines = {item.text: item.where.line for item in read_declaration(tmp_path).requirements}
    assert (lines["scikit-learn==1.4.2"], lines["scipy==1.13.0"]) == (6, 12)


def test_pip_on_the_top_level_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"conda.yaml:\d+.*FL3004"):
        declare(tmp_path, "conda.yaml", "dependencies:\n  - python=3.10\n- pip:\n  - numpy\n")


def test_requirements_with_includes_comments_hashes_and_options(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("scipy>=1  # why\n")
    text = "# head\nnumpy==1.26.4 \\\n    --hash=sha256:aa\n-r more.txt\n--index-url https://evil.invalid/simple\n"
    assert declare(tmp_path, "requirements.txt", text) == ["numpy==1.26.4", "scipy>=1"]
    found = read_declaration(tmp_path)
    assert any("--index-url is ignored" in line for line in found.report.warnings)
    assert found.requirements[0].hashes == ("sha256:aa",)
    assert str(found.requirements[1].where) == "more.txt:1"


def test_constraints_limit_without_asking(tmp_path: Path) -> None:
    (tmp_path / "limits.txt").write_text("scipy<2\n")
    assert declare(tmp_path, "requirements.txt", "numpy\n-c limits.txt\n") == ["numpy"]
    assert [item.text for item in read_declaration(tmp_path).constraints] == ["scipy<2"]


def test_a_file_that_includes_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"requirements.txt:1: FL3007 .*includes itself"):
        declare(tmp_path, "requirements.txt", "-r requirements.txt\n")


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("numpy=1.26", "numpy==1.26.*"),
        ("numpy=1.26.4", "numpy==1.26.4"),
        ("numpy==1.26.4", "numpy==1.26.4"),
        ("numpy 1.26.4 py310_0", "numpy==1.26.4"),
        ("numpy>=1.26,<2", "numpy<2,>=1.26"),
        ("numpy=1.26.*", "numpy==1.26.*"),
        ("conda-forge::numpy=1.26.4=py310h_0", "numpy==1.26.4"),
        ("numpy[version='>=1.26']", "numpy>=1.26"),
        ("numpy", "numpy"),
        ("pytorch=2.1.0=py3.10_cpu_0", "torch==2.1.0"),
        ("libblas=3.9.0", None),
        ("librosa=0.10.1", "librosa==0.10.1"),
        ("_openmp_mutex=4.5", None),
    ],
)
def test_condas_ways_to_write_a_version(tmp_path: Path, entry: str, wanted: str | None) -> None:
    assert declare(tmp_path, "conda.yaml", f'dependencies:\n  - "{entry}"\n') == ([wanted] if wanted else [])


def test_what_windows_shells_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_bytes("numpy==1.26.4\n".encode("utf-16"))
    assert [item.text for item in read_declaration(tmp_path).requirements] == ["numpy==1.26.4"]


def test_a_link_out_of_the_ml_repo_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "secret.txt").write_text("token\n")
    (tmp_path / "repo" / "requirements.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(BuildError, match="FL3007"):
        read_declaration(tmp_path / "repo")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("x @ https://evil.invalid/x.whl", "FL3002"),
        ("-e git+https://evil.invalid/x.git", "FL3002"),
        ("-r ../../etc/passwd", "FL3007"),
        ("not a requirement!", "FL3001"),
    ],
)
def test_what_does_not_come_from_the_index_is_refused(tmp_path: Path, line: str, code: str) -> None:
    with pytest.raises(BuildError, match=code):
        declare(tmp_path, "requirements.txt", f"{line}\n")


def test_a_pyproject(tmp_path: Path) -> None:
    text = '[project]\nname = "x"\nrequires-python = ">=3.12"\ndependencies = ["numpy>=2"]\n'
    assert declare(tmp_path, "pyproject.toml", text) == ["numpy>=2"]
    assert read_declaration(tmp_path).python == PythonWish("requires-python >=3.12", ">=3.12")


def test_no_declaration_and_bad_ones(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="FL3003"):
        read_declaration(tmp_path)
    with pytest.raises(BuildError, match="FL3005"):
        declare(tmp_path, "conda.yaml", "name: x\n")
    (tmp_path / "conda.yaml").unlink()
    with pytest.raises(BuildError, match="FL3004"):
        declare(tmp_path, "pyproject.toml", "[project\n")
