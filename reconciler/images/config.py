"""The configuration of an image: what the build plan says, over what the base image says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from reconciler.actors import QUIET
from reconciler.images.dependencies import BIN, SITE
from reconciler.images.model import Platform
from reconciler.spec.build_plan import BuildPlan

APPLICATION: Final = "dev.flops"
"""Prefix of labels and annotations of ours."""
FOLDER: Final = "/opt/flops"
"""The working directory: nobody may write there, so nothing can be planted that Python would import first."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class History:
    """One layer of ours, as `docker history` shows it."""

    title: str
    diff_id: str


def image_config(
    plan: BuildPlan, platform: Platform, base: Mapping[str, Any], base_diff_ids: Sequence[str], history: Sequence[History], *,
    labels: Mapping[str, str], created: int, about: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The OCI image configuration. `created` is in seconds since 1970; `about` are variables that say what the image is."""
    inherited = dict(base.get("config") or {})
    # What the base starts, and how it is checked, is not what this image does.
    for name in ("Entrypoint", "Cmd", "Healthcheck", "OnBuild", "ArgsEscaped", "Image", "Hostname", "Domainname"):
        inherited.pop(name, None)
    config: dict[str, Any] = {
        **inherited,
        "Entrypoint": plan.command,
        "Env": _environment(inherited.get("Env") or [], plan, about),
        "Labels": dict(sorted({**(inherited.get("Labels") or {}), **plan.labels, **labels}.items())),
        "StopSignal": "SIGTERM",
        "User": plan.user,
        "WorkingDir": FOLDER,
    }
    if plan.ports:
        config["ExposedPorts"] = {f"{port}/tcp": {} for port in sorted(plan.ports)}
    if plan.health_check:
        check = plan.health_check
        config["Healthcheck"] = {
            "Test": ["CMD", *check.command],
            "Interval": int(check.interval * _NANOSECONDS),
            "Timeout": int(check.timeout * _NANOSECONDS),
            "StartPeriod": int(check.start_period * _NANOSECONDS),
            "Retries": check.retries,
        }
    when = rfc3339(created)
    made: dict[str, Any] = {
        "created": when,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [*base_diff_ids, *(item.diff_id for item in history)]},
        "history": [
            *(base.get("history") or [{"created_by": "base image"} for _ in base_diff_ids]),
            *({"created": when, "created_by": f"flops: {item.title}"} for item in history),
        ],
    }
    variant = str(base.get("variant") or platform.variant)
    return {**made, "variant": variant} if variant else made


def rfc3339(seconds: int) -> str:
    """A time as OCI writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _environment(base: Sequence[str], plan: BuildPlan, about: Mapping[str, str]) -> list[str]:
    found = dict(str(item).partition("=")[::2] for item in base)
    found["PATH"] = f"/{BIN}:/{SITE}/bin:{found.get('PATH') or _PATH}"
    found |= {
        "PYTHONPATH": f"{FOLDER}/runtime:/{SITE}",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # noqa: S108 – the one folder that a container with a read-only root may write to
        "USER": "flops",
        "LOGNAME": "flops",
        "LANG": "C.UTF-8",
        **QUIET,
    }
    return [f"{name}={text}" for name, text in {**found, **plan.environment, **about}.items()]
