"""Finished rounds on disk: the checkpoint that a crashed run goes on from, and the parameters of every round.

`NNNN.json` is the commit of a round: it is written last, and a round without it never happened. Everything is written to a
temporary file, synced and renamed, so a crash leaves either the whole file or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Arrays = dict[str, Any]  # ndarrays by name
_CHECKSUM = "sha256"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file that is there completely or not at all, and survives a power cut. Raises OSError."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Checkpoints:
    """The rounds of one run directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def save(self, number: int, parameters: Arrays, state: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Commits a round: its parameters, the strategy's state after it, and its result."""
        write_atomically(self._path(number, "state.npz"), lambda file: np.savez(file, **state))
        write_atomically(self._path(number, "npz"), lambda file: np.savez(file, **parameters))
        text = json.dumps({**result, _CHECKSUM: _checksum(result)}, indent=1).encode()
        write_atomically(self._path(number, "json"), lambda file: file.write(text))
        # The state before stays: without it a damaged last round would take all others with it.
        with contextlib.suppress(FileNotFoundError):
            self._path(number - 2, "state.npz").unlink()

    def load(self, limit: int) -> tuple[list[dict[str, Any]], Arrays, Arrays]:
        """The results of the rounds that are finished, the last one's parameters, and the strategy's state.

        A round whose files cannot be read ends the list: it is trained again.
        """
        results: list[dict[str, Any]] = []
        parameters: Arrays = {}
        state: Arrays = {}
        for number in range(1, limit + 1):
            try:
                result = _checked(json.loads(self._path(number, "json").read_bytes()))
                arrays = self.parameters(number)
            except Exception:
                break  # a damaged archive fails in a dozen ways: a wrong checksum, a wrong length, a version that never was
            results.append(result)
            parameters = arrays
        while results:
            try:
                state = self._read(self._path(len(results), "state.npz"))
                break
            except Exception:
                results.pop()
                parameters = self.parameters(len(results)) if results else {}
        return results, parameters, state

    def parameters(self, number: int) -> Arrays:
        """The aggregated parameters of a round, by Flower's array keys, in order."""
        return self._read(self._path(number, "npz"))

    def _path(self, number: int, suffix: str) -> Path:
        return self._directory / f"{number:04d}.{suffix}"

    @staticmethod
    def _read(path: Path) -> Arrays:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _checked(content: Any) -> dict[str, Any]:
    """A round's result as it was saved. Raises ValueError: later rounds and the best one are chosen by it, and a bit that
    flips inside a number leaves another number."""
    if not isinstance(content, dict) or content.pop(_CHECKSUM, None) != _checksum(content):
        raise ValueError("the result is not what was saved")
    return content


def _checksum(result: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
