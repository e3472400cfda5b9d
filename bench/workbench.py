"""A GitOps repo to measure on: bare origin, clone, state directory; everything through the real command line."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Workbench:
    """Paths of one GitOps repo, and the few moves that a user makes in it."""

    root: Path

    @property
    def clone(self) -> Path:
        """The user's clone; the reconciler works on it too."""
        return self.root / "clone"

    def git(self, *arguments: str) -> str:
        """Run Git in the clone and return what it printed."""
        return _run(["git", *arguments], self.clone)

    def flops(self, *arguments: str, check: bool = True) -> str:
        """Run `flops` on the clone and return what it printed."""
        return _run([sys.executable, "-m", "reconciler.cli", *arguments], self.clone, check=check)

    def commit(self, message: str) -> None:
        """Commit everything and push it to the tracked branch."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        self.git("push", "-q", "origin", "HEAD:main")

    def edit_sla(self, project: str, old: str, new: str) -> None:
        """Replace a line's text in a project's SLA."""
        path = self.clone / "projects" / project / "sla.yaml"
        text = path.read_text()
        if old not in text:
            raise ValueError(f"{old!r} is not in {path}")
        path.write_text(text.replace(old, new))

    def status(self, project: str) -> dict[str, Any]:
        """The status document of a project."""
        answer = orjson.loads(self.flops("status", project, "-o", "json", check=False))
        document: dict[str, Any] = answer["projects"][0]
        return document

    def history(self, project: str) -> list[dict[str, Any]]:
        """Every run of a stage of a project, oldest first."""
        rows: list[dict[str, Any]] = orjson.loads(self.flops("history", project, "-o", "json"))["stages"]
        return rows

    def stop(self) -> None:
        """Stop every service."""
        self.flops("stop", check=False)


def make(root: Path, *projects: str) -> Workbench:
    """A bare origin and a clone of it with these example projects, or the first one, committed and pushed."""
    bench = Workbench(root)
    root.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "reconciler.cli", "init", str(bench.clone), *(f"--project={name}" for name in projects)], root)
    _run(["git", "init", "-q", "--bare", "-b", "main", str(root / "origin.git")], root)
    bench.git("init", "-q", "-b", "main")
    bench.git("config", "user.name", "A user")
    bench.git("config", "user.email", "user@example.invalid")
    bench.git("remote", "add", "origin", str(root / "origin.git"))
    bench.commit("Start the GitOps repo")
    bench.git("fetch", "-q", "origin")
    return bench


def _run(arguments: list[str], cwd: Path, *, check: bool = True) -> str:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout
