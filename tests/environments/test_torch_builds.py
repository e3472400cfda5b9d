"""PyTorch comes for the CPU: from the operator's folders, from PyTorch's own index, or with an error that says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from reconciler.environments.torch_builds import BACKEND, for_cpu, installing
from reconciler.environments.uv_command import UvFailed
from reconciler.errors import BuildError
from tests.flavorkit import example, python_of

CUDA = (
    "numpy==2.4.6 \\\n    --hash=sha256:00\nnvidia-cublas==13.1 \\\n    --hash=sha256:11\ntorch==2.14.0 \\\n    --hash=sha256:22\n"
)
CPU = "numpy==2.4.6 \\\n    --hash=sha256:00\ntorch==2.13.0+cpu \\\n    --hash=sha256:33\n"
MIXED = CPU + "torchvision==0.28.0 \\\n    --hash=sha256:44\n"
ARM = "numpy==2.4.6 \\\n    --hash=sha256:00\ntorch==2.14.0 \\\n    --hash=sha256:22\n"


class Compiler:
    """Answers as uv does, from a table by the arguments and the constraints; keeps what was asked."""

    def __init__(self, **answers: str) -> None:
        self._answers = answers
        self.asked: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def __call__(self, arguments: Sequence[str], limits: Sequence[str]) -> str:
        self.asked.append((tuple(arguments), tuple(limits)))
        key = "index" if arguments else "folder"
        if key not in self._answers:
            raise UvFailed("error sending request for url" if arguments else "No solution found")
        return self._answers[key]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels (names only: nothing is installed from it) that the operator names."""
    for name in ("torch-2.12.1+cpu-cp311-cp311-linux_x86_64", "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64",
                 "torch-2.14.0+cpu-cp312-cp312-linux_x86_64", "torch-2.15.0-cp311-cp311-linux_x86_64", "odd"):  # fmt: skip
        (tmp_path / f"{name}.whl").touch()
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    return tmp_path


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)


@pytest.mark.parametrize("lock", [CPU, ARM, "numpy==2.4.6\n"])
def test_a_lock_without_cuda_stays(folder: Path, lock: str) -> None:
    compiler = Compiler()
    assert for_cpu(lock, compiler, python="3.11", file="conda.yaml") == lock
    assert compiler.asked == []


def test_the_newest_build_of_the_operators_folder_is_taken(folder: Path) -> None:
    compiler = Compiler(folder=CPU)
    assert for_cpu(CUDA, compiler, python="3.11", file="conda.yaml") == CPU
    assert compiler.asked == [((), ("torch==2.13.0+cpu",))]
    assert installing(CPU) == ()


def test_without_one_that_fits_it_comes_from_pytorchs_index(folder: Path) -> None:
    compiler = Compiler(index=CPU)
    assert for_cpu(CUDA, compiler, python="3.11", file="conda.yaml") == CPU
    assert [item[1] for item in compiler.asked] == [("torch==2.13.0+cpu",), ("torch==2.12.1+cpu",), ()]
    assert compiler.asked[-1][0] == BACKEND


def test_what_is_not_in_the_folder_is_installed_from_the_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installing(CPU.replace("2.13.0", "2.11.0")) == BACKEND
    assert installing(CUDA) == ()
    monkeypatch.setenv("UV_FIND_LINKS", "https://wheels.example.invalid/")
    assert installing(CPU) == ()  # a page cannot be looked into: uv does it


def test_a_torchvision_for_cuda_beside_a_torch_for_the_cpu_is_refused(folder: Path) -> None:
    with pytest.raises(BuildError) as caught:
        for_cpu(MIXED, Compiler(folder=MIXED), python="3.11", file="conda.yaml")
    assert caught.value.code == "FL3018"
    assert "torch and torchvision" in caught.value.cause


def test_an_index_that_does_not_answer_is_asked_again(nothing: None) -> None:
    with pytest.raises(BuildError) as caught:
        for_cpu(CUDA, Compiler(), python="3.11", file="conda.yaml")
    assert (caught.value.code, caught.value.transient) == ("FL3018", True)
    assert "UV_FIND_LINKS" in caught.value.cure


def test_an_index_that_has_none_is_not(nothing: None) -> None:
    with pytest.raises(BuildError) as caught:
        for_cpu(CUDA, Compiler(index=CUDA), python="3.11", file="conda.yaml")
    assert not caught.value.transient


def test_the_operators_choice_is_obeyed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_TORCH_BACKEND", "cu128")
    assert for_cpu(CUDA, Compiler(), python="3.11", file="conda.yaml") == CUDA
    assert installing(CPU) == ()


@pytest.mark.timeout(600)
@pytest.mark.long
def test_the_real_one_is_locked_with_hashes_and_without_cuda() -> None:
    python = python_of(example("pytorch"), "pytorch")
    installed = {path.name.split("-")[0].lower() for path in python.parents[1].glob("lib/python*/site-packages/*.dist-info")}
    assert "torch" in installed
    assert not {name for name in installed if name.startswith(("nvidia", "cuda", "triton"))}
