"""Coverage-guided fuzzing of everything in `targets`: a million inputs end in a result or in one of our errors, each within a
second, none with 200 MB.

`python -m tests.soak.fuzz --runs 1000000` shares them out to a process for each core, and says what was found and how fast it was.
One target with one seed tries the same inputs each time, so that a finding can be had again; the input is printed with it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

SECONDS, MEGABYTES = 1.0, 200
"""Limits of one input: processor time, and how much the process may have grown."""
MAX_BYTES = 4096
MAX_FINDINGS = 10
HANG_SECONDS = 60


@dataclass
class Findings:
    """What came of one target. `slowest` is seconds of processor time, `grown` megabytes."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    grown: float = 0.0
    refused: int = 0
    found: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """One line of the summary."""
        rate = self.inputs / max(self.seconds, 1e-9)
        text = f"{self.target:14} {self.inputs:>9,} inputs, {rate:>7,.0f}/s, {self.refused:>9,} refused"
        return f"{text}, slowest {self.slowest * 1000:.0f} ms, grown by {self.grown:.0f} MB, {len(self.found)} found"


class Trial:
    """One target under fuzzing, in this process."""

    def __init__(self, name: str, run: Callable[[bytes], object], ours: tuple[type[BaseException], ...], runs: int) -> None:
        self._run, self._ours, self._runs = run, ours, runs
        self._places: set[str] = set()
        self._base = _peak()
        self._started = time.monotonic()
        self.findings = Findings(name)

    def __call__(self, data: bytes) -> None:
        """Try one input; after the last one the process ends."""
        findings = self.findings
        began = time.process_time()
        try:
            self._run(data)
        except self._ours:
            findings.refused += 1
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._note(f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}", data)
        took = time.process_time() - began
        findings.slowest = max(findings.slowest, took)
        if took > SECONDS:
            self._note("an input took longer than a second", data)
        findings.inputs += 1
        findings.grown = _peak() - self._base
        if findings.grown > MEGABYTES:
            self._note(f"it grew by more than {MEGABYTES} MB", data)
        if findings.inputs >= self._runs or len(findings.found) >= MAX_FINDINGS:
            findings.seconds = time.monotonic() - self._started
            print(json.dumps(asdict(findings)), flush=True)
            os._exit(0)  # the fuzzer does not return

    def _note(self, text: str, data: bytes) -> None:
        place = text.partition(": ")[0]
        if place not in self._places:
            self._places.add(place)
            self.findings.found.append(f"{text[:300]}\n    {data!r}")


def fuzz_here(names: list[str], runs: int, seed: int) -> None:
    """Fuzz some targets in turn: an input's first byte says which. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["reconciler", "flops_runtime"]):
        from tests.soak.targets import OURS, make_targets

        targets = [target for name, target in make_targets().items() if name in names]

    def run(data: bytes) -> None:
        targets[data[0] % len(targets) if data else 0].run(data[1:])

    trial = Trial(names[0] if len(names) == 1 else f"{len(names)} targets", run, OURS, runs)
    with tempfile.TemporaryDirectory(prefix="corpus-") as corpus:
        for number, target in enumerate(targets):
            for at, content in enumerate(target.seeds):
                (Path(corpus) / f"{number}-{at}").write_bytes(bytes([number]) + content)
        options = [f"-seed={seed + 1}", f"-max_len={MAX_BYTES}", f"-timeout={HANG_SECONDS}", "-rss_limit_mb=0", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus}/", corpus], trial)
        atheris.Fuzz()


def fuzz(names: list[str], runs: int, seed: int) -> Findings:
    """Fuzz some targets in a process of their own."""
    arguments = [sys.executable, "-m", "tests.soak.fuzz", "--runs", str(runs), "--seed", str(seed), "--here", *names]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return Findings(**json.loads(line))
    return Findings(names[0], found=[f"the process ended with {done.returncode}: {done.stderr[-2000:]}"])


def fuzz_all(runs: int, seed: int, processes: int, *, together: bool = False) -> Iterator[Findings]:
    """So many inputs shared out to the targets, each in a process of its own, or `together` in as few as there are side by side."""
    from tests.soak.targets import make_targets

    targets = make_targets()
    names = list(targets)
    groups = [names[at::processes] for at in range(processes)] if together else [[name] for name in names]
    whole = sum(target.share for target in targets.values())
    with ThreadPoolExecutor(processes) as pool:
        shares = [sum(targets[name].share for name in group) for group in groups]
        yield from pool.map(lambda group, share: fuzz(group, -(-runs * share // whole), seed), groups, shares)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--here", nargs="*", help="targets to fuzz in this process")
    given = parser.parse_args()
    if given.here:
        fuzz_here(given.here, given.runs, given.seed)
    started, every = time.monotonic(), []
    for findings in fuzz_all(given.runs, given.seed, given.processes):
        every.append(findings)
        print(f"fuzz: {findings.line}", flush=True)
        for text in findings.found:
            print(f"  {text}", flush=True)
    seconds, inputs = time.monotonic() - started, sum(item.inputs for item in every)
    print(f"fuzz: {inputs:,} inputs in {seconds:.0f} s, {inputs / seconds:,.0f}/s, {sum(len(item.found) for item in every)} found")
    return 1 if any(item.found for item in every) else 0


if __name__ == "__main__":
    sys.exit(main())
