"""Environments with the real uv: locked once, built once, complete or absent."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler.environments import EnvironmentStore
from reconciler.environments.interpreters import Interpreter, choose
from reconciler.environments.model import PythonWish
from reconciler.errors import BuildError


def repo(root: Path, text: str = "iniconfig==2.0.0\n") -> Path:
    folder = root / "repo"
    folder.mkdir(exist_ok=True)
    (folder / "requirements.txt").write_text(text)
    return folder


def store(root: Path) -> EnvironmentStore:
    return EnvironmentStore(root / "store", runtime=("six",))


def test_an_environment_is_built_once_and_shared(tmp_path: Path) -> None:
    first = store(tmp_path)
    lock = first.lock(repo(tmp_path), flavor="none")
    assert "iniconfig==2.0.0" in lock.requirements
    assert "--hash=sha256:" in lock.requirements
    assert "six==" in lock.requirements
    built = first.ensure(lock)
    again = store(tmp_path).ensure(store(tmp_path).lock(repo(tmp_path), flavor="none"))
    assert (built.built, again.built, again.path) == (True, False, built.path)
    out = subprocess.run([str(built.python), "-c", "import iniconfig, six; print(1)"], capture_output=True, text=True, check=True)
    assert out.stdout == "1\n"


def test_many_at_once_build_one(tmp_path: Path) -> None:
    lock = store(tmp_path).lock(repo(tmp_path), flavor="none")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: store(tmp_path).ensure(lock), range(4)))
    assert sum(item.built for item in found) == 1
    assert len({item.path for item in found}) == 1


def test_what_a_crash_left_is_never_used(tmp_path: Path) -> None:
    found = store(tmp_path)
    lock = found.lock(repo(tmp_path), flavor="none")
    path = found.ensure(lock).path
    (path / ".complete").unlink()
    (path / "rubbish").write_text("half")
    assert found.ensure(lock).built
    assert not (path / "rubbish").exists()


def test_an_environment_whose_interpreter_is_gone_is_built_again(tmp_path: Path) -> None:
    found = store(tmp_path)
    lock = found.lock(repo(tmp_path), flavor="none")
    (found.ensure(lock).path / "bin" / "python").unlink()
    assert found.ensure(lock).built


def test_a_damaged_lock_is_made_again(tmp_path: Path) -> None:
    lock = store(tmp_path).lock(repo(tmp_path), flavor="none")
    for path in (tmp_path / "store" / "locks").glob("*.json"):
        path.write_text(path.read_text().replace("iniconfig==2.0.0", "iniconfig==1.0.0"))
    assert store(tmp_path).lock(repo(tmp_path), flavor="none") == lock


def test_a_package_that_does_not_exist_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"requirements.txt:2: FL3011 .*flops-no-such-package-at-all"):
        store(tmp_path).lock(repo(tmp_path, "iniconfig\nflops-no-such-package-at-all==1\n"), flavor="none")


def test_dependencies_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="FL3014"):
        store(tmp_path).lock(repo(tmp_path, "pytest==8.0.0\niniconfig==2.0.0\npluggy==0.1.0\n"), flavor="none")


def test_a_helper_pin_that_the_runtime_cannot_meet_is_loosened_and_said(tmp_path: Path) -> None:
    found = EnvironmentStore(tmp_path / "store", runtime=("hatchling==1.27.0",))
    lock = found.lock(repo(tmp_path, "packaging==21.0\n"), flavor="none")
    assert any("packaging==21.0 does not go with the runtime" in line for line in lock.report.warnings)


def test_a_python_that_is_not_there_is_replaced_and_said(tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "conda.yaml").write_text("dependencies:\n  - python=3.99\n  - pip:\n      - iniconfig\n")
    lock = store(tmp_path).lock(folder, flavor="none")
    assert lock.python != "3.99"
    assert any("3.99 is not on this machine" in line for line in lock.report.warnings)


def test_configuration_planted_in_the_ml_repo_is_inert(tmp_path: Path) -> None:
    folder = repo(tmp_path)
    (folder / "uv.toml").write_text('index-url = "http://127.0.0.1:9/simple"\n')
    (folder / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/simple\n")
    assert store(tmp_path).lock(folder, flavor="none").requirements
    shutil.rmtree(tmp_path / "store")


def test_hashes_of_the_ml_repo_are_kept_to(tmp_path: Path) -> None:
    lock = store(tmp_path).lock(repo(tmp_path), flavor="none")
    hashes = re.findall(r"--hash=(sha256:\w+)", lock.requirements.split("iniconfig==")[1].split("==")[0])
    only = store(tmp_path).lock(repo(tmp_path, f"iniconfig==2.0.0 --hash={hashes[0]}\n"), flavor="none")
    assert re.findall(r"--hash=(\S+)", only.requirements.split("iniconfig==")[1].split("==")[0]) == [hashes[0]]
    with pytest.raises(BuildError, match=r"requirements.txt:1: FL3017"):
        store(tmp_path).lock(repo(tmp_path, f"iniconfig==2.0.0 --hash=sha256:{'0' * 64}\n"), flavor="none")


def test_constraints_hold(tmp_path: Path) -> None:
    folder = repo(tmp_path, "iniconfig\n-c limits.txt\n")
    (folder / "limits.txt").write_text("iniconfig<2\npytest<1\n")
    requirements = store(tmp_path).lock(folder, flavor="none").requirements
    assert "iniconfig==1." in requirements
    assert "pytest" not in requirements


@pytest.mark.parametrize(
    ("wish", "version", "said"),
    [
        (None, "3.11", False),
        (PythonWish("python=3.10.14", "==3.10.*"), "3.10", False),
        (PythonWish("python>=3.12", ">=3.12"), "3.13", False),
        (PythonWish("python>=3.10,<3.12", ">=3.10,<3.12"), "3.11", False),
        (PythonWish("python=3.8", "==3.8.*"), "3.10", True),
        (PythonWish("python=3.99", "==3.99.*"), "3.13", True),
    ],
)
def test_the_interpreter_that_an_ml_repo_gets(wish: PythonWish | None, version: str, said: bool) -> None:
    found = [Interpreter(item, f"{item}.1", "python") for item in ("3.10", "3.11", "3.13")]
    chosen, warnings = choose(wish, found)
    assert (chosen.version, bool(warnings)) == (version, said)


def test_the_pins_of_flops_repos_give_an_environment_that_loads(tmp_path: Path) -> None:
    found = EnvironmentStore(tmp_path / "store", runtime=("pyarrow",))
    environment = found.ensure(found.lock(repo(tmp_path, "numpy==1.26.4\n"), flavor="none"))
    out = subprocess.run(
        [str(environment.python), "-c", "import numpy, pyarrow; print(numpy.__version__)"], capture_output=True, text=True
    )
    assert out.stdout == "1.26.4\n", out.stderr
