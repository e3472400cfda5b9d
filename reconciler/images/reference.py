"""Names of images in registries: `host[:port]/repository[:tag][@sha256:…]`.

The host is always written out: there is no registry that is meant when none is named, so a typing error never goes to one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, replace

from reconciler.errors import ImageError
from reconciler.images.model import checked_digest

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry; without tag and digest it is a repository."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """From `[docker://]host[:port]/repository[:tag][@digest]`. Raises ImageError FL6140, FL6102."""
        rest = text.removeprefix("docker://")
        rest, _, digest = rest.partition("@")
        host, slash, path = rest.partition("/")
        if not slash or not (host == "localhost" or re.search(r"[.:\[]", host)) or not _HOST.fullmatch(host):
            raise _malformed(text, "Write the registry's host first, as in registry.example.com/team/image:1.")
        path, _, tag = path.partition(":")
        if not _REPOSITORY.fullmatch(path) or len(path) > 255:
            raise _malformed(text, "A repository has small letters, digits, '.', '_', '-' and '/' only.")
        if tag and not _TAG.fullmatch(tag):
            raise _malformed(text, "A tag has letters, digits, '.', '_' and '-' only, 128 at most.")
        return cls(host.lower(), path, tag, checked_digest(digest) if digest else "")

    @property
    def name(self) -> str:
        """What a registry is asked for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    @property
    def url(self) -> str:
        """The registry's address; plain HTTP for this machine only."""
        return f"{'http' if is_loopback(self.host) else 'https'}://{self.host}"

    def at(self, name: str) -> Reference:
        """Another tag or digest of the same repository."""
        return replace(self, tag="", digest=name) if name.startswith("sha256:") else replace(self, tag=name, digest="")

    def __str__(self) -> str:
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"{self.host}/{self.repository}{tag}{digest}"


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag of a name in a layout: `customer/project:digest`."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")


def repository_name(*parts: str) -> str:
    """A repository for names that were not made for it, such as a customer and a project; different parts, different names."""
    return "/".join(_component(part) for part in parts)


def _component(part: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")[:60]
    # One that ends as if it had been changed is changed too: nobody can choose a name that another's becomes.
    if name and name == part and not re.search(r"-[0-9a-f]{16}$", name):
        return name
    return f"{name.rstrip('-') or 'x'}-{hashlib.sha256(part.encode()).hexdigest()[:16]}"


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine."""
    name = host.rpartition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _malformed(text: str, cure: str) -> ImageError:
    return ImageError("FL6140", f"{text[:120]!r} is not the name of an image in a registry.", cure=cure)
