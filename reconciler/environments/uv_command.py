"""Runs uv: in an empty folder, so that no configuration of an ML repo is read; without downloads of interpreters."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import uv

LIMIT_SECONDS = 1800


class UvFailed(Exception):  # noqa: N818 – a command's way to end
    """uv ended with an error; `said` is what it wrote."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def run_uv(
    arguments: Sequence[str], *, files: Mapping[str, str] | None = None, search: Sequence[Path] = (), stdin: str | None = None
) -> str:
    """What uv prints. `files` lie in the folder that it runs in; `search` comes before PATH. Raises UvFailed, OSError."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1", "UV_NO_PROGRESS": "1"}
    environment.pop("VIRTUAL_ENV", None)
    environment["PATH"] = os.pathsep.join([*map(str, search), environment.get("PATH", os.defpath)])
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (files or {}).items():
            (Path(folder) / name).write_text(text)
        try:
            done = subprocess.run(
                [uv.find_uv_bin(), *arguments], cwd=folder, env=environment, input=stdin, capture_output=True, text=True,
                timeout=LIMIT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UvFailed(f"uv took longer than {LIMIT_SECONDS} s") from error
    if done.returncode:
        raise UvFailed(done.stderr.strip())
    return done.stdout
