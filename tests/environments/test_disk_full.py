"""A disk that is full: said as such, nothing half-made is used, and it goes on when there is space."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.environments import EnvironmentStore
from reconciler.errors import BuildError
from tests.conftest import SmallDisk


def test_an_environment_is_built_when_there_is_space_again(tmp_path: Path, small_disk: SmallDisk) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "requirements.txt").write_text("iniconfig==2.0.0\npygments==2.18.0\n")
    store = EnvironmentStore(small_disk.path / "environments", runtime=())
    lock = store.lock(repo, flavor="none")
    small_disk.leave(256 * 1024)
    with pytest.raises(BuildError, match="FL3016") as raised:
        store.ensure(lock)
    assert raised.value.transient
    small_disk.free()
    built = store.ensure(lock)
    assert built.built
    assert (built.path / ".complete").is_file()
