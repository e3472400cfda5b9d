"""`flops doctor`: a sound site has no complaint; each fault is named with its code and cure, and the other checks go on."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from reconciler.cli import app
from reconciler.doctor import Doctor, Finding, Level
from reconciler.engine import read_config
from reconciler.journal import Journal
from tests.conftest import Repos, commit, git


class Site:
    """A clone, a state directory and a doctor for them."""

    def __init__(self, repos: Repos, root: Path) -> None:
        self.repos, self.state = repos, root / "state"
        self.user = repos.clone("user")
        commit(self.user, {"README.md": "A GitOps repo\n"}, "Start")
        self.clone = repos.clone("reconciler")
        self.now = time.time()

    def examine(self) -> dict[str, Finding]:
        """The findings by check."""
        doctor = Doctor(self.clone, self.state, self.state / "cache", read_config, lambda: self.now)
        return {item.check: item for item in doctor.examine()}

    def settings(self, text: str) -> None:
        """Write flops.yaml."""
        (self.clone / "flops.yaml").write_text(text)


@pytest.fixture
def site(repos: Repos, tmp_path: Path) -> Site:
    return Site(repos, tmp_path)


def test_a_sound_site_has_no_fault_and_is_left_as_it_was(site: Site) -> None:
    refs = git(site.repos.origin, "for-each-ref")
    found = site.examine()
    assert len(found) == 17
    assert not [item for item in found.values() if item.level is Level.FAIL and item.check not in {"state disk", "cache disk"}]
    assert git(site.repos.origin, "for-each-ref") == refs
    assert not site.state.exists()


@pytest.mark.parametrize(
    ("settings", "check", "code"),
    [
        ("instance: [", "settings", "FL1005"),
        ("branch: nowhere\n", "remote", "FL9204"),
        ("runtime: docker\ndocker_host: unix:///nonexistent/docker.sock\n", "engine", "FL7101"),
        ("images: {registry: '127.0.0.1:1/team'}\n", "registry", "FL6142"),
        ("tracking_uri: http://127.0.0.1:1\n", "tracking", "FL9201"),
    ],
)
def test_what_flops_yaml_names_and_is_not_there(site: Site, settings: str, check: str, code: str) -> None:
    site.settings(settings)
    found = site.examine()
    assert (found[check].level, found[check].code) == (Level.FAIL, code)
    assert found[check].cure
    assert found["python"].level is Level.OK


def test_a_remote_that_is_gone(site: Site) -> None:
    shutil.rmtree(site.repos.origin)
    found = site.examine()
    assert (found["remote"].code, found["status branch"].code) == ("FL9203", "FL9205")


def test_no_repo_at_all(site: Site, tmp_path: Path) -> None:
    site.clone = tmp_path / "empty"
    site.clone.mkdir()
    found = site.examine()
    assert (found["git"].level, found["git"].code) == (Level.FAIL, "FL2005")
    assert len(found) == 17


def test_a_damaged_journal_is_said_and_not_touched(site: Site) -> None:
    site.state.mkdir()
    path = site.state / "journal.db"
    path.write_bytes(b"no database" * 1000)
    found = site.examine()
    assert (found["journal"].level, found["journal"].code) == (Level.FAIL, "FL9209")
    assert path.read_bytes() == b"no database" * 1000


def test_who_holds_the_lease(site: Site) -> None:
    journal = Journal(site.state / "journal.db", clock=lambda: site.now)
    assert site.examine()["lease"].message == "nobody works on this state directory"
    journal.take_lease("somewhere/4711/12.5", None)
    assert site.examine()["lease"].message == "held by process 4711"
    journal.close()


def test_a_damaged_database_of_mlflow(site: Site) -> None:
    folder = site.state / "tracking" / "acme"
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("CREATE TABLE runs (id)")
    database.close()
    assert site.examine()["tracking"].level is Level.OK
    (folder / "mlflow.db").write_bytes(b"no database" * 1000)
    assert site.examine()["tracking"].code == "FL9212"


def test_a_clock_that_is_behind(site: Site) -> None:
    site.now -= 86_400
    assert (site.examine()["clock"].level, site.examine()["clock"].code) == (Level.WARN, "FL9206")


def test_the_command_says_it_for_machines_and_by_its_exit_code(site: Site) -> None:
    site.settings("branch: nowhere\n")
    arguments = ["doctor", "--repo", str(site.clone), "--state", str(site.state)]
    done = CliRunner().invoke(app, [*arguments, "-o", "json"])
    assert done.exit_code == 1
    remote = next(item for item in orjson.loads(done.output) if item["check"] == "remote")
    assert (remote["level"], remote["code"]) == ("fail", "FL9204")
    assert "remote: FL9204" in CliRunner().invoke(app, arguments).output
