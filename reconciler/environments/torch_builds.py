"""PyTorch for the CPU: which of its builds is locked, and where that one is installed from.

The package index has PyTorch's CUDA build for Linux: gigabytes that learners and the server, which use the CPU, never touch.
The builds for the CPU are in folders that the operator names in UV_FIND_LINKS, and in PyTorch's own index, which uv knows as
its backend `cpu`. Invariant: no CUDA build is installed unless the operator has set UV_TORCH_BACKEND, which is obeyed as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from reconciler.environments.uv_command import UvFailed
from reconciler.errors import BuildError, Where

BACKEND = ("--torch-backend", "cpu")
_TIED = ("torch", "torchvision", "torchaudio")
"""What is built against one build of torch and does not load beside another."""
_CUDA = re.compile(r"^(nvidia-|cuda-)", re.MULTILINE)

Compile = Callable[[Sequence[str], Sequence[str]], str]
"""A lock made with more arguments of uv, and with more constraints. Raises UvFailed."""


def for_cpu(lock: str, compile_with: Compile, *, python: str, file: str) -> str:
    """The lock as it is if it can be used on the CPU without CUDA, else one that can. Raises BuildError FL3018."""
    if _chosen_by_the_operator() or _usable(lock):
        return lock
    said = ""
    for build in _local_builds(python):
        try:
            found = compile_with((), (f"torch=={build}",))
        except UvFailed:
            continue  # another version is asked for
        if _usable(found):
            return found
    try:
        found = compile_with(BACKEND, ())
        if _usable(found):
            return found
    except UvFailed as failed:
        said = failed.said
    names = " and ".join(name for name in _TIED if _pin(lock, name))
    raise BuildError(
        "FL3018",
        f"There is no build of {names} for the CPU here; the package index has the one for CUDA only.",
        cure="Let this machine reach PyTorch's own index, or put the CPU wheels into a folder and name it in UV_FIND_LINKS.",
        where=Where(file),
        transient=_unreachable(said),
    )


def installing(lock: str) -> tuple[str, ...]:
    """The arguments with which uv finds the builds of a lock."""
    pins = [(name, pin) for name in _TIED if (pin := _pin(lock, name)) and pin.endswith("+cpu")]
    if not pins or _chosen_by_the_operator() or all(_is_local(name, pin) for name, pin in pins):
        return ()
    return BACKEND


def _chosen_by_the_operator() -> bool:
    return bool(os.environ.get("UV_TORCH_BACKEND"))


def _usable(lock: str) -> bool:
    """No torch, torch without CUDA (as for Arm and macOS), or everything that is tied to it for the CPU."""
    pins = [pin for name in _TIED if (pin := _pin(lock, name))]
    for_the_cpu = [pin.endswith("+cpu") for pin in pins]
    return not pins or all(for_the_cpu) or not (any(for_the_cpu) or _CUDA.search(lock))


def _pin(lock: str, name: str) -> str:
    found = re.search(rf"^{name}==(\S+)", lock, re.MULTILINE)
    return found[1] if found else ""


def _local_builds(python: str) -> list[Version]:
    """The CPU builds of torch for a Python (`3.11`) in the operator's folders, newest first."""
    tag = f"cp{python.replace('.', '')}"
    found = set()
    for path in _wheels():
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if name == "torch" and version.local == "cpu" and any(item.interpreter == tag for item in tags):
            found.add(version)
    return sorted(found, reverse=True)


def _is_local(name: str, pin: str) -> bool:
    return any(path.name.startswith(f"{name}-{pin}-") for path in _wheels()) or any(
        "://" in place and not place.startswith("file:") for place in _places()
    )


def _wheels() -> list[Path]:
    folders = [Path(unquote(urlsplit(place).path) if place.startswith("file:") else place) for place in _places()]
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.whl"))]


def _places() -> list[str]:
    """Folders and pages; uv separates them by commas."""
    return [place.strip() for place in os.environ.get("UV_FIND_LINKS", "").split(",") if place.strip()]


def _unreachable(said: str) -> bool:
    return bool(re.search(r"error sending request|Failed to fetch|dns error|timed out|Could not connect", said, re.IGNORECASE))
