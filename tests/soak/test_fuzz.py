"""Whatever bytes there are: a result or one of our errors, in time and in bounds. A few of them here, a million in `make soak`."""

from __future__ import annotations

import pytest

from reconciler.errors import ControllerError
from tests.soak.fuzz import Trial, fuzz_all
from tests.soak.targets import OURS, make_targets

TARGETS = make_targets()
INPUTS = 1500


@pytest.mark.parametrize("name", TARGETS)
def test_genuine_records_are_taken(name: str) -> None:
    """Else it would be nonsense only that is tried."""
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)


def test_so_many_inputs_find_nothing() -> None:
    findings = list(fuzz_all(INPUTS, seed=0, processes=2, together=True))
    assert [text for item in findings for text in item.found] == []
    assert sum(item.inputs for item in findings) >= INPUTS


def test_a_finding_is_told_with_its_input() -> None:
    """The fuzzer itself: what raises anything else than one of our errors is found once, and named with the input."""

    def run(data: bytes) -> None:
        if data:
            raise KeyError("a")
        raise ControllerError("FL9003", "Ours.", cure="None.")

    trial = Trial("made for it", run, OURS, runs=100)
    for data in (b"x", b"y", b""):
        trial(data)
    (text,) = trial.findings.found
    assert text.startswith("KeyError at test_fuzz.py:")
    assert "b'x'" in text
    assert (trial.findings.inputs, trial.findings.refused) == (3, 1)
