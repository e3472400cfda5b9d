"""Verify: the address that users have answers with the declared model."""

from __future__ import annotations

from dataclasses import asdict

from reconciler.errors import ServingError
from reconciler.serving.verify import verify
from reconciler.stages.model import Outcome, Work
from reconciler.stages.package import EXTRA

QUICK_SAMPLES = 32
"""Enough to see that the stable address leads to the new model; the whole set was sent before it took over."""


def run(work: Work) -> Outcome:
    """A short verification over the stable address, after the takeover."""
    if work.service is None or work.bundle is None:
        raise ServingError("FL7090", "There is no service to verify.", cure="Run the stage deploy first.")
    samples = work.bundle / EXTRA / "samples.npz"
    if not samples.is_file():
        return Outcome("done", "no held-out samples: only health was checked")
    result = verify(work.service.address, samples, work.desired.run_digest, limit=QUICK_SAMPLES)
    if not result.passed:
        raise ServingError("FL7091", f"The service answers wrongly: {result.reason}.", cure="See `flops logs`.")
    full = work.verification or result
    accuracy = f", accuracy {full.accuracy:.4f}" if full.accuracy is not None else ""
    return Outcome(
        "done",
        f"{full.matched}/{full.samples} answers as the model's own{accuracy}, median {result.latency_p50_ms:.1f} ms a request",
        {"verification": asdict(full)},
    )
