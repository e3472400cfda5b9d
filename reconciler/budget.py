"""The budget of a machine: how much memory and how many CPUs the trainings of a cycle may take together.

A training that is larger than the whole budget runs alone instead of never.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Counts what is in use; waits until there is room. Memory in MB."""

    def __init__(self, memory_mb: int, vcpus: int) -> None:
        self._memory, self._vcpus = memory_mb, vcpus
        self._free = [memory_mb, vcpus]
        self._changed = threading.Condition()

    @contextmanager
    def take(self, memory_mb: int, vcpus: int) -> Iterator[None]:
        """Hold a share of the budget while the body runs."""
        memory, cpus = min(memory_mb, self._memory), min(vcpus, self._vcpus)
        with self._changed:
            self._changed.wait_for(lambda: self._free[0] >= memory and self._free[1] >= cpus)
            self._free[0] -= memory
            self._free[1] -= cpus
        try:
            yield
        finally:
            with self._changed:
                self._free[0] += memory
                self._free[1] += cpus
                self._changed.notify_all()
