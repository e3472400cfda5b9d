"""Byte code of an environment is used in containers of its lock, whatever the times of the image's files are."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.errors import ImageError
from reconciler.images.bytecode import VARIABLE, bytecode_folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    package = tmp_path / "env" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text("def where():\n    return 'compiled', where.__code__.co_filename\n")
    for path in package.glob("*.py"):
        py_compile.compile(str(path))
    return tmp_path / "env"


@pytest.mark.parametrize(("changed", "taken"), [("", True), ("# other\n", False)], ids=["same source", "other source"])
def test_python_takes_it_instead_of_compiling_the_same_source(tmp_path: Path, environment: Path, changed: str, taken: bool) -> None:
    site = tmp_path / "site"
    (site / "package").mkdir(parents=True)
    (site / "package" / "__init__.py").write_text("")
    source = "def where():\n    return 'compiled', where.__code__.co_filename\n"
    (site / "package" / "module.py").write_text(source + changed)
    os.utime(site / "package" / "module.py", (315_532_800, 315_532_800))
    folder = bytecode_folder(environment, "a" * 64, tmp_path / "cache", site=str(site))
    done = subprocess.run(
        [sys.executable, "-B", "-v", "-c", "from package.module import where; print(*where())"],
        env={VARIABLE: str(folder), "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["compiled", str(site / "package" / "module.py")]
    used = [line for line in done.stderr.splitlines() if "code object from" in line and "module" in line]
    assert [".pyc" in line for line in used] == [taken]


def test_it_is_made_once_and_complete_or_not_at_all(tmp_path: Path, environment: Path) -> None:
    folder = bytecode_folder(environment, "a" * 64, tmp_path / "cache")
    made = sorted(path.relative_to(folder) for path in folder.rglob("*.pyc"))
    assert [path.parts[:3] for path in made] == [("opt", "flops", "site")] * 2
    assert not list(folder.rglob("__pycache__"))
    assert bytecode_folder(tmp_path / "gone", "a" * 64, tmp_path / "cache") == folder
    with pytest.raises(ImageError) as refused:
        bytecode_folder(tmp_path / "gone", "b" * 64, tmp_path / "cache")
    assert refused.value.code == "FL6115"
    assert sorted(path.name for path in (tmp_path / "cache" / "bytecode").iterdir() if path.is_dir()) == [f"{'a' * 32}-2"]
