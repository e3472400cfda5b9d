"""What a user may not read or write is one sentence with a code and the path, as are paths that cannot be; never a traceback.

Root may do everything, so the commands run without the capability that lets it.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.nodes import keys
from reconciler.refusals import named, refusal
from reconciler.scaffold import init_repository
from tests.conftest import git

BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A GitOps repo of the user's."""
    made = tmp_path / "repo"
    init_repository(made)
    git(made, "init", "-q", "-b", "main")
    git(made, "add", "-A")
    git(made, "-c", "user.name=U", "-c", "user.email=u@example.invalid", "commit", "-qm", "Start")
    return made


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may use."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    yield folder
    folder.chmod(0o700)


def flops(repo: Path, *arguments: str | Path) -> str:
    """What a command says that is refused."""
    program = [sys.executable, "-c", "from reconciler.cli import main; main()", *map(str, arguments)]
    command = [*BOUND, *program] if os.geteuid() == 0 else program
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_folder_in_which_nothing_can_be_made(repo: Path, closed: Path) -> None:
    assert f"FL9007 {closed}/new cannot be used: Permission denied." in flops(repo, "init", closed / "new")


def test_a_folder_below_a_file(repo: Path) -> None:
    assert "cannot be used: Not a directory." in flops(repo, "init", "flops.yaml/new")


def test_settings_that_cannot_be_read(repo: Path) -> None:
    (repo / "flops.yaml").chmod(0)
    assert "FL9007 flops.yaml cannot be used: Permission denied." in flops(repo, "plan")


def test_a_state_directory_that_cannot_be_written_to(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o555)
    assert "FL9001 The journal state/journal.db cannot be opened" in flops(repo, "plan", "--state", tmp_path / "state")


def test_somebody_elses_journal_stays_where_it_is(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "journal.db").touch(mode=0)
    assert "FL9001" in flops(repo, "status", "--state", tmp_path)
    assert not (tmp_path / "journal.damaged").exists()


def test_data_and_certificates_that_cannot_be_seen(repo: Path, closed: Path, tmp_path: Path) -> None:
    keys.generate(tmp_path / "key")
    join = ("node", "join", "--superlink", "127.0.0.1:9", "--tags", "a", "--data", tmp_path, "--key", tmp_path / "key")
    assert f"FL9007 {closed}/ca.pem cannot be used" in flops(repo, *join, "--root-certificates", closed / "ca.pem")
    assert f"{closed}/a.csv" in flops(repo, "data", "add", closed / "a.csv", "--data", tmp_path / "data", "--tags", "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that belongs to somebody else")
def test_a_repo_of_somebody_else(repo: Path) -> None:
    os.chown(repo, 12345, 12345)
    told = flops(repo, "plan")
    assert "FL2029 . belongs to another user" in told
    assert f"git config --global --add safe.directory {repo}" in told


def test_only_what_the_system_refuses_is_told_and_tried_again() -> None:
    """In a project's status there is no path of the machine; what is our own mistake stays one."""
    told = refusal(PermissionError(errno.EACCES, "Permission denied", "/home/somebody/cache"))
    assert told is not None
    assert (told.code, told.transient, "somebody" in str(told)) == ("FL9007", True, False)
    assert refusal(OSError(errno.ENOSPC, "No space left on device")).code == "FL9002"  # type: ignore[union-attr]
    assert refusal(FileNotFoundError(errno.ENOENT, "No such file or directory", "/a")) is None
    assert named(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
