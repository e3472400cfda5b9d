"""Real repos for the tests: a bare origin, clones of it, and trees that no `git add` would make."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

IDENTITY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "Ada"), ("EMAIL", "ada@example.invalid"))
}
SLA = "customerID: acme\n"
CONTRACT = {
    "model_manager.py": "class ModelManager: ...\n",
    "data_manager.py": "class DataManager: ...\n",
    "conda.yaml": "name: x\n",
}


def git(path: Path, *arguments: str, stdin: bytes = b"") -> str:
    """Git as a person would run it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env = {**clean, **IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=path, input=stdin, capture_output=True, env=env, check=False)
    assert not done.returncode, done.stderr.decode()
    return done.stdout.decode().strip()


def init(path: Path, *options: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    git(path, "init", "--quiet", "--initial-branch=main", *options)
    return path


def commit(path: Path, files: dict[str, str], message: str = "change") -> str:
    """Write files, commit all, return the commit."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(path, "rev-parse", "HEAD")


def blob(path: Path, content: bytes) -> str:
    return git(path, "hash-object", "-w", "--stdin", stdin=content)


def tree(path: Path, *rows: tuple[str, str, str]) -> str:
    """A tree of (mode, hash, name), past all checks of Git."""
    kinds = {"040000": "tree", "160000": "commit"}
    feed = "".join(f"{mode} {kinds.get(mode, 'blob')} {found}\t{name}\0" for mode, found, name in rows)
    return git(path, "mktree", "-z", "--missing", stdin=feed.encode(errors="surrogateescape"))


def commit_of(path: Path, found: str) -> str:
    return git(path, "commit-tree", found, "-m", "planted")
