"""The OCI distribution API of one registry, as far as images need it: manifests, blobs, tags, referrers.

Blobs are streamed from and to disk and are never held in memory; a download that breaks off goes on where it stopped. What
is read is checked against its digest before anybody sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

import orjson

from reconciler.errors import ImageError
from reconciler.images import registry_errors as errors
from reconciler.images.cancelling import Cancelled
from reconciler.images.credentials import DockerConfig
from reconciler.images.layout import CHUNK, BlobWriter
from reconciler.images.model import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, Descriptor, checked_digest
from reconciler.images.reference import Reference
from reconciler.images.transport import Answer, Patience, Session

ACCEPT = ", ".join((INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))

UPLOAD_CHUNK = 64 << 20
"""Bytes of one request: what breaks later is not sent again, and proxies that limit a request's size let it through."""

Tell = Callable[[int], None]
"""Called with the number of bytes that were just transferred."""


class Registry:
    """One registry; safe for many threads. Every method raises ImageError FL6142–FL6152."""

    def __init__(
        self, host: str, *, config: DockerConfig | None = None, patience: Patience | None = None, chunk: int = UPLOAD_CHUNK
    ) -> None:
        self.host, self._chunk = host, chunk
        self._session = Session(host, config=config, patience=patience)
        self._patience = self._session.patience

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._session.close()

    def until(self, cancelled: Cancelled) -> Self:
        """The same client, whose transfers and repeated tries end with ImageError FL6156 once `cancelled` says so."""
        self._session.cancelled = cancelled
        return self

    # --- manifests

    def manifest(self, image: Reference) -> tuple[bytes, Descriptor]:
        """A manifest or index and its descriptor. FL6146: it does not exist; FL6150: it is not what its digest says."""
        path = f"/v2/{image.repository}/manifests/{image.name}"
        answer = self._session.ask("GET", path, _pull(image.repository), headers={"Accept": ACCEPT}, missing_ok=True)
        if answer.status == 404:
            raise errors.missing(str(image))
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        announced = image.digest or answer.headers.get("Docker-Content-Digest", "") or digest
        if digest != announced:
            raise errors.differs(str(image), announced, digest)
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        return answer.content, Descriptor(media_type, digest, len(answer.content))

    def digest_of(self, image: Reference) -> str | None:
        """The digest behind a tag or digest; None when there is none."""
        path = f"/v2/{image.repository}/manifests/{image.name}"
        answer = self._session.ask("HEAD", path, _pull(image.repository), headers={"Accept": ACCEPT}, missing_ok=True)
        if answer.status == 404:
            return None
        found = answer.headers.get("Docker-Content-Digest", "")
        return checked_digest(found) if found else self.manifest(image)[1].digest

    def put_manifest(self, image: Reference, data: bytes, media_type: str) -> bool:
        """Publish a manifest or index; whether the registry keeps referrers itself (`OCI-Subject`)."""
        path = f"/v2/{image.repository}/manifests/{image.name}"
        answer = self._session.ask("PUT", path, _push(image.repository), headers={"Content-Type": media_type}, content=data)
        expected = f"sha256:{hashlib.sha256(data).hexdigest()}"
        found = answer.headers.get("Docker-Content-Digest", expected)
        if found != expected:
            raise errors.differs(str(image), expected, found)
        return "OCI-Subject" in answer.headers

    def delete(self, repository: str, digest: str) -> None:
        """Delete a manifest and every tag on it; one that is gone is no error. Raises ImageError where deleting is not allowed."""
        path = f"/v2/{repository}/manifests/{checked_digest(digest)}"
        self._session.ask("DELETE", path, f"repository:{repository}:delete", missing_ok=True)

    def tags(self, repository: str) -> list[str]:
        """All tags, sorted; none when the repository does not exist."""
        found: list[str] = []
        for answer in self._pages(f"/v2/{repository}/tags/list", _pull(repository)):
            found += [str(tag) for tag in orjson.loads(answer.content).get("tags") or []]
        return sorted(found)

    def referrers(self, repository: str, digest: str) -> list[Descriptor]:
        """What is attached to a manifest: by the referrers API, else by the tag that stands in for it."""
        found: list[Descriptor] = []
        answered = False
        for answer in self._pages(f"/v2/{repository}/referrers/{checked_digest(digest)}", _pull(repository)):
            answered = True
            found += [Descriptor.from_dict(item) for item in orjson.loads(answer.content).get("manifests") or []]
        if answered:
            return found
        try:
            data, _ = self.manifest(Reference(self.host, repository, tag=fallback_tag(digest)))
        except ImageError as error:
            if error.code != "FL6146":
                raise
            return []
        return [Descriptor.from_dict(item) for item in orjson.loads(data).get("manifests") or []]

    def _pages(self, path: str, scope: str) -> Iterator[Answer]:
        url: str | None = path
        while url:
            answer = self._session.ask("GET", url, scope, missing_ok=True)
            if answer.status == 404:
                return
            yield answer
            link = answer.headers.get("Link", "")
            following = link[link.find("<") + 1 : link.find(">")] if 'rel="next"' in link else ""
            # The next page is one of the same registry, whatever host a proxy writes into the link.
            url = urlunsplit(("", "", *urlsplit(urljoin(answer.url, following))[2:])) if following else None

    # --- blobs

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether a repository has a blob."""
        path = f"/v2/{repository}/blobs/{checked_digest(digest)}"
        return self._session.ask("HEAD", path, _pull(repository), missing_ok=True).status != 404

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Have the registry take a blob over from another of its repositories; False when it does not want to."""
        query = urlencode({"mount": checked_digest(digest), "from": source})
        answer = self._session.ask("POST", f"/v2/{repository}/blobs/uploads/?{query}", f"{_push(repository)} {_pull(source)}")
        if answer.status == 201:
            return True
        self._cancel(answer, repository)
        return False

    def _cancel(self, begun: Answer, repository: str) -> None:
        """End an upload that nobody will send; a registry that cannot cleans it up itself."""
        location = begun.headers.get("Location", "")
        if location:
            self._session.ask("DELETE", urljoin(begun.url, location), _push(repository), missing_ok=True, retry=False)

    def fetch(self, repository: str, blob: Descriptor, writer: BlobWriter, *, tell: Tell | None = None) -> Descriptor:
        """A blob into a layout; goes on after what has arrived when the connection breaks. Raises ImageError FL6104 too."""
        path = f"/v2/{repository}/blobs/{blob.digest}"
        for attempt in range(self._patience.attempts):
            try:
                self._fetch_rest(path, repository, blob, writer, tell)
                return writer.commit(blob.media_type, expected=blob.digest)
            except ImageError as error:
                if not error.transient or error.code in {"FL6104", "FL6105"} or attempt + 1 == self._patience.attempts:
                    raise
                self._session.pause(attempt)
        raise AssertionError("unreachable")

    def _fetch_rest(self, path: str, repository: str, blob: Descriptor, writer: BlobWriter, tell: Tell | None) -> None:
        begun = writer.size
        if begun and begun == blob.size:
            return
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
        with self._session.open("GET", path, _pull(repository), headers=headers) as response:
            if response.status_code == 404:
                raise errors.missing(f"{self.host}/{repository}@{blob.digest}")
            if response.status_code not in {200, 206}:
                raise errors.refused(self.host, response.status_code, response.read()[:4096], "GET")
            # A registry without ranges starts anew; what is here already is passed over.
            skip = begun if response.status_code == 200 else 0
            for part in self._session.paced(response.iter_raw()):
                fresh = part[skip:]
                skip = max(0, skip - len(part))
                if writer.size + len(fresh) > blob.size:
                    raise errors.differs(f"A blob of {self.host}/{repository}", blob.digest, "longer")
                writer.write(fresh)
                if tell and fresh:
                    tell(len(fresh))

    def upload(self, repository: str, blob: Descriptor, path: Path, *, tell: Tell | None = None) -> None:
        """A blob from a file, streamed in chunks; goes on where the registry says that it is when the connection breaks.

        A registry that has forgotten, or that refuses to go on after part of a chunk (docker-registry does, ADR 8), gets it anew.
        """
        location, sent, best, failures = "", 0, 0, 0
        while True:
            try:
                location = location or self._begin(repository)
                while sent < blob.size:
                    location, sent = self._send(location, repository, path, blob.size, sent, tell)
                self._finish(location, repository, blob)
                return
            except ImageError as error:
                # Tries count while nothing new arrives: a long upload over a bad line may break more often than that.
                failures, best = (1 if sent > best else failures + 1), max(best, sent)
                if not error.transient or error.code == "FL6147" or failures >= self._patience.attempts:
                    raise
                self._session.pause(failures - 1)
                # It may have arrived although its answer did not.
                if self.has_blob(repository, blob.digest):
                    return
                location, sent = self._arrived(location, repository, blob.size)

    def _begin(self, repository: str) -> str:
        return self._location(self._session.ask("POST", f"/v2/{repository}/blobs/uploads/", _push(repository)))

    def _arrived(self, location: str, repository: str, size: int) -> tuple[str, int]:
        """Where an upload goes on, and how much of it the registry has; no address when it begins anew."""
        if not location:
            return "", 0
        try:
            answer = self._session.ask("GET", location, _push(repository), missing_ok=True, retry=False)
        except ImageError as error:
            if error.code == "FL6156":
                raise
            return "", 0
        first, _, last = answer.headers.get("Range", "").removeprefix("bytes=").partition("-")
        # An empty upload has no range that could be written: registries say 0-0, which is a byte as well.
        if answer.status != 204 or first != "0" or not last.isdecimal() or last == "0" or int(last) >= size:
            return "", 0
        return self._location(answer), int(last) + 1

    def _send(self, location: str, repository: str, path: Path, size: int, begin: int, tell: Tell | None) -> tuple[str, int]:
        """One chunk; where the next goes, and how much the registry then has."""
        end = min(size, begin + self._chunk)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - begin)}
        if (begin, end) != (0, size):
            headers["Content-Range"] = f"{begin}-{end - 1}"

        def body() -> Iterator[bytes]:
            return self._session.paced(_parts(path, begin, end, tell))

        with self._session.open("PATCH", location, _push(repository), headers=headers, body=body) as response:
            content = response.read()
            if response.status_code in {404, 416}:
                raise errors.upload_lost(self.host)
            if response.status_code >= 400:
                raise errors.refused(self.host, response.status_code, content[:4096], "PATCH")
            return self._location(Answer(response.status_code, response.headers, content, str(response.url))), end

    def _finish(self, location: str, repository: str, blob: Descriptor) -> None:
        parts = urlsplit(location)
        query = "&".join(item for item in (parts.query, urlencode({"digest": blob.digest})) if item)
        self._session.ask("PUT", urlunsplit(parts._replace(query=query)), _push(repository), retry=False)

    def _location(self, answer: Answer) -> str:
        location = answer.headers.get("Location", "")
        if not location:
            raise errors.refused(self.host, 502, b"it did not say where to upload to", "upload")
        return urljoin(answer.url, location)


def fallback_tag(digest: str) -> str:
    """The tag under which a registry without the referrers API has them."""
    return checked_digest(digest).replace(":", "-")


def _parts(path: Path, begin: int, end: int, tell: Tell | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (part := file.read(min(CHUNK, end - begin))):
            begin += len(part)
            yield part
            if tell:
                tell(len(part))


def _pull(repository: str) -> str:
    return f"repository:{repository}:pull"


def _push(repository: str) -> str:
    return f"repository:{repository}:pull,push"
