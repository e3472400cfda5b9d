"""The memory limit of learners: what the ML repo's own work takes beside interpreter, libraries and data.

Only private memory counts (`RssAnon`): mapped datasets and libraries are shared and cost nobody anything. An address-space
limit would count them, and PyTorch reserves gigabytes that it never touches; so a thread watches instead, every 50 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.05


def anonymous_kb(pid: int | str) -> int:
    """The private resident memory of a process in KiB; 0 if it has gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def available_kb() -> int:
    """What the machine has to give, in KiB; a large number where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1])
    return 1 << 40


@dataclass(frozen=True)
class Allowance:
    """How much a process may take: `base_kb` it had before its own work, `extra_kb` for that work."""

    base_kb: int
    extra_kb: int


class MemoryWatch:
    """Kills processes that exceed their allowance and remembers by how much."""

    def __init__(self) -> None:
        self._allowances: dict[int, Allowance] = {}
        self.exceeded: dict[int, tuple[int, Allowance]] = {}
        threading.Thread(target=self._watch, name="memory", daemon=True).start()

    def allow(self, pid: int, allowance: Allowance) -> None:
        """Watches a process, or changes its allowance."""
        self._allowances[pid] = allowance

    def forget(self, pid: int) -> None:
        """Watches a process no longer: it has ended."""
        self._allowances.pop(pid, None)

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(_INTERVAL):
            for pid, allowance in list(self._allowances.items()):
                used = anonymous_kb(pid) - allowance.base_kb
                if used > allowance.extra_kb:
                    self.exceeded[pid] = (used, allowance)
                    self.forget(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
