"""Conditions: what the reconciler says of a project, in Kubernetes' and Flux' words.

`Synced` (does what runs match what is declared?) and `Ready` (is what runs healthy?) are two axes and never merged: a
project whose new SLA stalls stays Ready with its old model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a condition has its status; the whole list, so that machines can rely on it."""

    CONVERGED = "Converged"
    NOT_APPLIED = "NotApplied"
    DRIFTED = "Drifted"
    FOUGHT_OVER = "FoughtOver"
    PROGRESSING = "Progressing"
    PROGRESSING_WITH_RETRY = "ProgressingWithRetry"
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    NOT_DEPLOYED = "NotDeployed"
    REGISTERED = "Registered"
    INVALID_SLA = "InvalidSLA"
    GATE_NOT_MET = "GateNotMet"
    STAGE_FAILED = "StageFailed"
    DEPENDENCY_NOT_READY = "DependencyNotReady"
    SUSPENDED = "Suspended"
    PRUNED = "Pruned"
    SIGNATURE_VERIFIED = "SignatureVerified"
    SIGNATURE_NOT_VERIFIED = "SignatureNotVerified"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; `status` is True or False."""

    type: str
    status: bool
    reason: Reason
    message: str

    def to_dict(self) -> dict[str, str]:
        """As it stands in the status file; status is the text True or False, as in Kubernetes."""
        return {"type": self.type, "status": str(self.status), "reason": str(self.reason), "message": self.message}


def synced(reason: Reason, message: str) -> Condition:
    """Synced is True for `Converged` alone."""
    return Condition("Synced", reason is Reason.CONVERGED, reason, message)


def ready(reason: Reason, message: str) -> Condition:
    """Ready is True for a healthy service, and for a registered model where no service is asked for."""
    return Condition("Ready", reason in {Reason.HEALTHY, Reason.REGISTERED}, reason, message)


def reconciling(reason: Reason, message: str) -> Condition:
    """Present while something is being done or will be retried."""
    return Condition("Reconciling", True, reason, message)


def stalled(reason: Reason, message: str) -> Condition:
    """Present when nothing will be done before there is new content."""
    return Condition("Stalled", True, reason, message)


def source_verified(verified: bool) -> Condition:
    """Present where the operator's policy asks for signed commits. No commit is named: each one would be a transition."""
    if verified:
        message = "the branch's head may be believed: it is signed as policy asks"
        return Condition("SourceVerified", True, Reason.SIGNATURE_VERIFIED, message)
    message = "the branch's head is not signed by an allowed key; what was declared by the last commit that is counts"
    return Condition("SourceVerified", False, Reason.SIGNATURE_NOT_VERIFIED, message)


def suspended() -> Condition:
    """Present while the SLA says `suspend: true`."""
    return Condition("Suspended", True, Reason.SUSPENDED, "suspend is true in the SLA")
