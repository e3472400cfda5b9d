"""What uv says when wheels cannot be had, in words for a data scientist."""

from __future__ import annotations

import re
from collections.abc import Sequence

from packaging.utils import canonicalize_name

from reconciler.errors import ImageError
from reconciler.images.layout import disk_error

_NO_WHEEL = re.compile(
    r"Because ([\w.-]+)==\S+ (?:has no (?:usable )?wheels|has no wheels with|only has wheels with|has no source distribution)"
)
_NO_BINARY = re.compile(r"`?([\w.-]+)==[^\s`]+`? (?:needs to be built from source|has no usable wheels|has no wheel)")


def package_without_wheel(said: str) -> str | None:
    """The canonical name of the package that has no wheel, if that is what uv complains about."""
    found = _NO_WHEEL.search(said) or _NO_BINARY.search(said)
    return canonicalize_name(found[1]) if found else None


def install_error(said: str, platform: str, missing: Sequence[str]) -> ImageError:
    """The error for a failed installation; packages without a wheel first, as they are the user's to change."""
    if missing:
        return ImageError(
            "FL6110",
            f"There is no wheel for {platform} of {', '.join(sorted(missing))}.",
            cure="Choose versions that have one, put a wheel of your own into the package index, or leave the platform out of "
            "supported_platforms.",
        )
    if "No space left" in said or "os error 28" in said:
        return disk_error(OSError(28, "No space left on device"))
    if re.search(r"[Hh]ash mismatch", said):
        return ImageError(
            "FL6112",
            f"A wheel is not the one that was locked: {shortened(said)}",
            cure="Lock again if the package index replaced it; if it did not, somebody changes what it serves.",
        )
    if re.search(r"error sending request|Failed to fetch|dns error|timed out|Could not connect|os error", said, re.IGNORECASE):
        return ImageError("FL6111", f"The wheels cannot be fetched: {shortened(said)}", cure="It is tried again.", transient=True)
    return ImageError("FL6112", f"The wheels cannot be put together: {shortened(said)}", cure="Choose other versions.")


def shortened(said: str) -> str:
    """One line of at most 400 characters."""
    text = " ".join(line.strip(" ×╰─▶│├┬") for line in said.splitlines() if line.strip())
    return text[:400] + ("…" if len(text) > 400 else "")
