"""The plan as a sticky comment: real `flops plan` on a real repo; `gh` is a program that writes down what it was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.scaffold import init_repository
from tests.conftest import Repos, commit, git

ROOT = Path(__file__).parents[2]
MARK = "<!-- flops-plan -->"
FLOPS = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from reconciler.cli import main
main()
"""
GH = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
folder = Path(os.environ["FAKE_GH"])
with (folder / "asked.jsonl").open("a") as asked:
    asked.write(json.dumps({{"arguments": sys.argv[1:], "stdin": sys.stdin.read() if "--input" in sys.argv else ""}}) + "\\n")
if (folder / "refuse").exists() and "--input" in sys.argv:
    sys.exit("HTTP 403: Resource not accessible by integration")
if "--slurp" in sys.argv:
    print((folder / "comments.json").read_text())
"""


@dataclass(frozen=True)
class Hub:
    """A clone in which the script runs, and what `gh` was asked there."""

    clone: Path
    folder: Path

    def run(self, *arguments: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        # The interpreter by its real name has no `flops` beside it: the one on the PATH is taken, as in a user's workflow.
        script = self.clone / "ci" / "plan_comment.py"
        env = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
        env |= {"PATH": f"{self.folder}:{env['PATH']}", "FAKE_GH": str(self.folder), **environment}
        python = str(Path(sys.executable).resolve())
        command = [python, script, *arguments]
        return subprocess.run(command, cwd=self.clone, env=env, input=text, capture_output=True, text=True, check=False)

    def holds(self, *comments: dict[str, Any]) -> None:
        (self.folder / "comments.json").write_text(json.dumps([list(comments)]))

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "asked.jsonl").read_text().splitlines()]


@pytest.fixture
def hub(repos: Repos, tmp_path: Path) -> Hub:
    clone = repos.clone()
    init_repository(clone)
    commit(clone, {}, "Start")
    git(clone, "switch", "-q", "-c", "change")
    sla = clone / "projects" / "mnist-classic" / "sla.yaml"
    commit(clone, {"projects/mnist-classic/sla.yaml": sla.read_text().replace("rounds: 3", "rounds: 10")}, push=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, content in (("flops", FLOPS), ("gh", GH)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    made = Hub(clone, folder)
    made.holds()
    return made


def test_it_prints_and_asks_nobody(hub: Hub) -> None:
    done = hub.run("--base", "main")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(MARK)
    assert "training_rounds` | `3` | `10`" in done.stdout
    assert not (hub.folder / "asked.jsonl").exists()


def test_in_a_workflow_it_is_in_the_summary_and_an_output(hub: Hub, tmp_path: Path) -> None:
    summary, output = tmp_path / "summary.md", tmp_path / "output"
    done = hub.run("--base", "main", GITHUB_STEP_SUMMARY=str(summary), GITHUB_OUTPUT=str(output))
    assert done.returncode == 0, done.stderr
    assert "mnist-classic" in summary.read_text()
    first, *lines, last = output.read_text().splitlines()
    assert first == f"plan<<{last}"
    assert lines == summary.read_text().splitlines()
    hub.run("--base", "main", GITHUB_OUTPUT=str(output))
    assert output.read_text().splitlines()[-1] != last  # nobody can foresee the end


def test_the_first_time_it_writes_a_comment(hub: Hub) -> None:
    hub.holds({"id": 1, "body": "Looks good", "user": {"type": "User"}})
    assert hub.run("--publish", "7", text=hub.run("--base", "main").stdout).returncode == 0
    asked = hub.asked()[-1]
    assert asked["arguments"][:4] == ["api", "--method", "POST", "repos/{owner}/{repo}/issues/7/comments"]
    comment = json.loads(asked["stdin"])["body"]
    assert comment.startswith(MARK)
    assert comment.count(MARK) == 1
    assert "training_rounds` | `3` | `10`" in comment


def test_the_next_time_it_edits_its_own(hub: Hub) -> None:
    hub.holds(
        {"id": 5, "body": f"{MARK}\nforged", "user": {"type": "User"}},
        {"id": 6, "body": f"{MARK}\nolder", "user": {"type": "Bot"}},
    )
    assert hub.run("--publish", "7", text="### Plan", GITHUB_ACTIONS="true").returncode == 0
    assert hub.asked()[-1]["arguments"][:4] == ["api", "--method", "PATCH", "repos/{owner}/{repo}/issues/comments/6"]


def test_what_a_pull_request_printed_is_marked_and_bounded(hub: Hub) -> None:
    assert hub.run("--publish", "7", text="ä" * 100_000).returncode == 0
    comment = json.loads(hub.asked()[-1]["stdin"])["body"]
    assert comment.startswith(f"{MARK}\nää")
    assert comment.endswith("run `flops plan` for all of it.\n")
    assert len(comment.encode()) < 65_536


def test_a_comment_that_is_refused_fails(hub: Hub) -> None:
    (hub.folder / "refuse").touch()
    done = hub.run("--publish", "7", text="### Plan")
    assert done.returncode == 1
    assert "HTTP 403" in done.stderr


def test_without_a_plan_nothing_is_published(hub: Hub) -> None:
    done = hub.run("--publish", "7", text=" \n")
    assert done.returncode == 1
    assert "no plan to publish" in done.stderr
    assert not (hub.folder / "asked.jsonl").exists()


def test_a_plan_that_cannot_be_made_is_told_and_fails(hub: Hub, tmp_path: Path) -> None:
    done = hub.run("--base", "no-such-branch", GITHUB_OUTPUT=str(tmp_path / "output"))
    assert done.returncode == 1
    assert "could not be made" in (tmp_path / "output").read_text()


def test_an_invalid_sla_fails_and_its_project_is_named(hub: Hub) -> None:
    commit(hub.clone, {"projects/bad/sla.yaml": "customerID: demo\n"}, push=False)
    done = hub.run("--base", "main")
    assert done.returncode == 1
    assert "| bad | invalid |" in done.stdout


def test_a_number_is_a_number(hub: Hub) -> None:
    assert hub.run("--publish", "7/../8").returncode == 2
