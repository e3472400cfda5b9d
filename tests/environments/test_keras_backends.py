"""What Keras runs on: what the ML repo names, else JAX. Only locked, with the real index; nothing is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reconciler.environments import EnvironmentStore


def locked(root: Path, *requirements: str) -> dict[str, str]:
    """The versions in the lock of a Keras repo with these requirements."""
    (root / "requirements.txt").write_text("\n".join(requirements) + "\n")
    text = EnvironmentStore(root / "store", runtime=("six",)).lock(root, flavor="keras").requirements
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def test_without_a_backend_it_is_jax(tmp_path: Path) -> None:
    found = locked(tmp_path, "six")
    assert {"keras", "jax", "jaxlib"} <= set(found)
    assert int(found["keras"].split(".")[0]) >= 3
    assert not {"torch", "tensorflow"} & set(found)


@pytest.mark.parametrize(("wanted", "keras"), [("tensorflow-cpu==2.18.0", "3"), ("tensorflow-cpu==2.15.1", "2")])
def test_tensorflow_brings_the_keras_that_it_was_made_with(tmp_path: Path, wanted: str, keras: str) -> None:
    found = locked(tmp_path, wanted)
    assert "jax" not in found
    assert found["keras"].split(".")[0] == keras


def test_a_backend_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    found = locked(tmp_path, "jax==0.10.2", "Keras==3.15.1")
    assert (found["jax"], found["keras"]) == ("0.10.2", "3.15.1")
