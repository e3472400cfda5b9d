"""`make demo`: the base case before your eyes, through the real command line.

Makes a bare origin and a clone, opens a branch with an SLA, validates, plans, merges, reconciles on the real MNIST, asks the
model; then ten rounds instead of three, without a failed request; then a revert, without any training. Ends clean, unless
KEEP=1. The exit code is 1 when one of the expectations did not hold.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from rich.console import Console

from bench.workbench import Workbench, make
from reconciler.terminal import Listing

PROJECT = "mnist-classic"
MAX_REQUESTS = 5000
console = Console(width=120)


class Load:
    """A client that asks again and again while versions change; bounded in count."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/invocations"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.answered = 0
        self.failed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as client:
            for _ in range(MAX_REQUESTS):
                if self._stop.wait(0.02):
                    return
                try:
                    answer = client.post(self._url, json={"inputs": [[0.0] * 784]})
                    self.failed += answer.status_code != httpx.codes.OK
                except httpx.HTTPError:
                    self.failed += 1
                self.answered += 1


class Demo:
    """The story, and what was expected of it."""

    def __init__(self, root: Path) -> None:
        self._bench = Workbench(root)
        self._unmet: list[str] = []

    def run(self) -> int:
        """Tell the story; 0 when all expectations held."""
        root = self._bench.root
        console.rule("A bare origin and a clone, made by `flops init`")
        self._bench = make(root)
        shutil.move(self._bench.clone / "projects" / PROJECT, root / "aside")
        self._bench.commit("No project yet")

        console.rule("A branch with an SLA: validate, plan, merge")
        self._bench.git("switch", "-q", "-c", "add-mnist")
        shutil.move(root / "aside", self._bench.clone / "projects" / PROJECT)
        self._bench.git("add", "-A")
        self._bench.git("commit", "-q", "-m", "Add the project mnist-classic")
        self._say(self._bench.flops("validate"))
        self._say(self._bench.flops("plan", "--base", "origin/main", "--head", "HEAD", check=False))
        self._bench.git("switch", "-q", "main")
        self._bench.git("merge", "-q", "--no-ff", "-m", "Merge add-mnist", "add-mnist")
        self._bench.git("push", "-q", "origin", "main")

        first, seconds = self._reconcile("Reconcile: three rounds on the real MNIST")
        self._expect(seconds > 0 and self._accuracy(first) >= 0.80, "accuracy after three rounds is at least 0.80")
        self._expect(first["model"]["holdout"]["rows"] == 10_000, "measured on the full test set")
        self._say(self._bench.flops("predict", PROJECT))

        self._bench.edit_sla(PROJECT, "training_rounds: 3", "training_rounds: 10")
        self._bench.commit("Ten rounds")
        with Load(first["service"]["address"]) as load:
            second, _ = self._reconcile("Ten rounds: retrain and take over under load")
        console.print(f"{load.answered} requests during the takeover, {load.failed} failed")
        self._expect(load.failed == 0 and load.answered > 0, "no request failed during the takeover")
        self._expect(self._accuracy(second) >= 0.85, "accuracy after ten rounds is at least 0.85")

        trained = self._trainings()
        self._bench.git("revert", "--no-edit", "HEAD")
        self._bench.git("push", "-q", "origin", "main")
        third, seconds = self._reconcile("Revert: the first model is back")
        self._expect(third["digest"] == first["digest"], "the first model serves again")
        self._expect(self._trainings() == trained, "nothing was trained for it")
        self._expect(third["service"]["address"] == first["service"]["address"], "at the same address")

        console.rule("Digests and status commits")
        table = Listing("act", "run digest", "version", "accuracy (10,000 test images)")
        for name, document in (("three rounds", first), ("ten rounds", second), ("revert", third)):
            table.add_row(name, document["digest"][:12], document["model"]["version"], f"{self._accuracy(document):.4f}")
        console.print(table)
        self._say(self._bench.git("log", "--format=%h %ad %s", "--date=format:%H:%M:%S", "--reverse", "status/default"))
        for text in self._unmet:
            console.print(f"NOT MET: {text}", style="bold red")
        return 1 if self._unmet else 0

    def end(self) -> None:
        """Stop what runs, or say how to."""
        if os.environ.get("KEEP") == "1":
            console.print(f"Everything is left running. To stop it: flops stop --repo {self._bench.clone}")
            return
        self._bench.stop()
        shutil.rmtree(self._bench.root, ignore_errors=True)

    def _reconcile(self, title: str) -> tuple[dict[str, Any], float]:
        console.rule(title)
        started = time.monotonic()
        self._say(self._bench.flops("reconcile", "--once"))
        seconds = time.monotonic() - started
        console.print(f"{seconds:.1f} s in all, with the start of the command")
        return self._bench.status(PROJECT), seconds

    def _trainings(self) -> list[str]:
        return [item["digest"] for item in self._bench.history(PROJECT) if item["stage"] == "train"]

    def _expect(self, met: bool, text: str) -> None:
        console.print(f"{'✓' if met else '✗'} {text}", style="green" if met else "bold red")
        if not met:
            self._unmet.append(text)

    @staticmethod
    def _accuracy(document: dict[str, Any]) -> float:
        return float(document["model"]["holdout"]["accuracy"])

    @staticmethod
    def _say(text: str) -> None:
        console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)


def main() -> int:
    """Run the demo in a folder of its own."""
    demo = Demo(Path(tempfile.mkdtemp(prefix="flops-demo-")))
    try:
        return demo.run()
    finally:
        demo.end()


if __name__ == "__main__":
    sys.exit(main())
