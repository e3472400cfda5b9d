"""The words of OCI: platforms and descriptors, as the image specification has them, and their JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.errors import ImageError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = frozenset({INDEX, DOCKER_LIST})
MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """Operating system and architecture, in Go's names as OCI uses them."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`linux/arm64` or `linux/arm64/v8`. Raises ImageError FL6101."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(re.fullmatch(r"[a-z0-9_]+", part) for part in parts):
            raise ImageError("FL6101", f"{text[:60]!r} is not a platform.", cure="Write it as linux/amd64 or linux/arm64.")
        return cls(parts[0], _ARCHITECTURE.get(parts[1], parts[1]), parts[2] if len(parts) == 3 else "")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def runs_on(self, wanted: Platform) -> bool:
        """Whether an image of this platform is one for the platform that is wanted; arm64 means arm64/v8."""
        same = (self.os, self.architecture) == (wanted.os, wanted.architecture)
        return same and (not wanted.variant or (self.variant or _baseline(self)) == wanted.variant)

    def to_dict(self) -> dict[str, str]:
        """As it stands in an index."""
        content = {"architecture": self.architecture, "os": self.os}
        return {**content, "variant": self.variant} if self.variant else content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Platform:
        """From an index or an image configuration."""
        return cls(str(content.get("os", "")), str(content.get("architecture", "")), str(content.get("variant") or ""))


def _baseline(platform: Platform) -> str:
    return "v8" if platform.architecture == "arm64" else ""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What names a blob: media type, digest (`sha256:…`) and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in manifests and indexes."""
        content: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform is not None:
            content["platform"] = self.platform.to_dict()
        if self.annotations:
            content["annotations"] = dict(sorted(self.annotations.items()))
        if self.artifact_type:
            content["artifactType"] = self.artifact_type
        return content

    @classmethod
    def from_dict(cls, content: Any) -> Descriptor:
        """From a manifest or an index, which somebody else may have written. Raises ImageError FL6103."""
        try:
            platform = content.get("platform")
            return cls(
                str(content["mediaType"]),
                checked_digest(content["digest"]),
                int(content["size"]),
                {str(key): str(value) for key, value in (content.get("annotations") or {}).items()},
                Platform.from_dict(platform) if platform else None,
                str(content.get("artifactType") or ""),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ImageError(
                "FL6103", "A manifest names a blob without media type, digest or size.", cure="Build or push that image again."
            ) from error


def checked_digest(text: object) -> str:
    """The digest, when it is one of SHA-256; so it is safe as a file name. Raises ImageError FL6102."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ImageError("FL6102", f"{str(text)[:80]!r} is not a digest.", cure="Write it as sha256: and 64 hexadecimal digits.")
    return text
