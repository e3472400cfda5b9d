"""A bare origin, the reconciler's clone of it, and a clone to push from, with N projects: where the loop is measured."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import orjson

SLA = """customerID: demo
ml_repo_url: ./projects/{name}/ml_repo
ml_model_flavor: sklearn
training_configuration: {{data_tags: [mnist], training_rounds: {rounds}}}
"""
MOCK = """customerID: demo
mock_data_configuration: {dataset_name: mnist, number_of_partitions: 2, data_tag: mnist}
"""


class Site:
    """N projects on a bare origin."""

    def __init__(self, root: Path) -> None:
        self.root, self.user, self.clone = root, root / "user", root / "clone"

    @classmethod
    def made(cls, root: Path, count: int) -> Site:
        """A new one."""
        site = cls(root)
        root.mkdir(parents=True, exist_ok=True)
        git(root, "init", "-q", "--bare", "-b", "main", "origin.git")
        git(root, "clone", "-q", "origin.git", "user")
        git(site.user, "symbolic-ref", "HEAD", "refs/heads/main")
        for number in range(count):
            site.write(number, 3)
        site.push("All")
        git(root, "clone", "-q", "--no-checkout", "origin.git", "clone")
        return site

    def write(self, number: int, rounds: int) -> None:
        """A project's files."""
        name = f"p{number:05}"
        folder = self.user / "projects" / name
        (folder / "ml_repo").mkdir(parents=True, exist_ok=True)
        (folder / "sla.yaml").write_text(SLA.format(name=name, rounds=rounds))
        (folder / "mock_data.yaml").write_text(MOCK)
        (folder / "ml_repo" / "model_manager.py").write_text("class ModelManager: ...\n")

    def push(self, message: str) -> None:
        """Commit all and push it."""
        git(self.user, "add", "-A")
        git(self.user, "-c", "user.name=A", "-c", "user.email=a@example.invalid", "commit", "-q", "-m", message)
        git(self.user, "push", "-q", "origin", "HEAD:main")


def git(path: Path, *arguments: str) -> str:
    """Run Git; what it printed."""
    return subprocess.run(["git", *arguments], cwd=path, check=True, capture_output=True, text=True).stdout.strip()


def record(name: str, results: dict[str, Any]) -> None:
    """Add figures to `bench/results/NAME.json`; those of other runs stay."""
    out = Path(__file__).parent / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    known = orjson.loads(out.read_bytes()) if out.is_file() else {}
    out.write_bytes(orjson.dumps({**known, **results}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
