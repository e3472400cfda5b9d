"""`flops registry serve`: the image store as a pull-only registry (OCI distribution, version 2), for Docker, skopeo and others.

Invariants: nothing can be written; only what a tag of a repository reaches is served under its name, so a name that was taken
away takes its blobs with it; digests are checked before they become file names.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import INDEX, Descriptor
from reconciler.images.reference import split_name
from reconciler.images.signing import SIGNATURE, signature_tag

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class _Repository:
    tags: Mapping[str, Descriptor]
    digests: frozenset[str]


class Catalogue:
    """What the store has, by repository; looked at anew whenever its index changes."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._repositories: dict[str, _Repository] = {}

    def repositories(self) -> Mapping[str, _Repository]:
        """By name. Raises ImageError when the store is damaged."""
        try:
            found = (self.layout.root / "index.json").stat()
        except FileNotFoundError:
            return {}
        state = (found.st_mtime_ns, found.st_ino, found.st_size)
        with self._lock:
            if state != self._seen:
                self._repositories = self._read()
                self._seen = state
            return self._repositories

    def _read(self) -> dict[str, _Repository]:
        by_name: dict[str, dict[str, Descriptor]] = {}
        for name, image in self.layout.tags().items():
            repository, tag = split_name(name)
            by_name.setdefault(repository, {})[tag] = image
        return {name: self._repository(tags) for name, tags in sorted(by_name.items())}

    def _repository(self, tags: dict[str, Descriptor]) -> _Repository:
        digests = {digest for image in tags.values() for digest in self.layout.reachable(image)}
        every = dict(tags)
        for subject in self.layout.subjects() & digests:
            for attached in self.layout.referrers(subject):
                digests.update(self.layout.reachable(attached))
                if attached.artifact_type == SIGNATURE:
                    every[signature_tag(subject)] = attached
        return _Repository(every, frozenset(digests))


def application(layout: Layout) -> Starlette:
    """The ASGI application."""
    api = _Api(Catalogue(layout))
    routes = [
        Route("/v2/", api.version),
        Route("/v2/_catalog", api.catalogue),
        Route("/v2/{name:path}/tags/list", api.tags),
        Route("/v2/{name:path}/manifests/{reference}", api.manifest),
        Route("/v2/{name:path}/blobs/{digest}", api.blob),
        Route("/v2/{name:path}/referrers/{digest}", api.referrers),
        Route("/{rest:path}", api.nothing, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _say, ImageError: _say_damaged})


class _Api:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue, self._layout = catalogue, catalogue.layout

    def version(self, _request: Request) -> Response:
        """Yes, this is a registry."""
        return _json({})

    def nothing(self, request: Request) -> Response:
        """Everything else: pushes above all."""
        if request.method in {"GET", "HEAD"}:
            raise HTTPException(404, "NOT_FOUND: there is nothing of that name")
        raise HTTPException(405, "UNSUPPORTED: this registry can only be pulled from")

    def catalogue(self, request: Request) -> Response:
        """All repositories, by pages."""
        names, link = _page(request, self._catalogue.repositories())
        return _json({"repositories": names}, link)

    def tags(self, request: Request) -> Response:
        """All tags of a repository, by pages."""
        name = request.path_params["name"]
        tags, link = _page(request, self._repository(request).tags)
        return _json({"name": name, "tags": tags}, link)

    def manifest(self, request: Request) -> Response:
        """A manifest or index, verified before it leaves."""
        repository, reference = self._repository(request), request.path_params["reference"]
        digest = reference
        if reference in repository.tags:
            digest = repository.tags[reference].digest
        elif reference not in repository.digests:
            raise HTTPException(404, "MANIFEST_UNKNOWN: there is no such manifest")
        found = self._layout.resolve(digest)
        if found is None:
            raise HTTPException(404, "MANIFEST_UNKNOWN: there is no such manifest")
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        return Response(self._layout.read(digest), media_type=found.media_type, headers=headers | _VERSION)

    def blob(self, request: Request) -> Response:
        """A blob or a range of it, straight from its file."""
        digest = request.path_params["digest"]
        if not _DIGEST.fullmatch(digest):
            raise HTTPException(400, "DIGEST_INVALID: a digest is sha256: and 64 hexadecimal digits")
        path = self._layout.blob_path(digest)
        if digest not in self._repository(request).digests or not path.is_file():
            raise HTTPException(404, "BLOB_UNKNOWN: there is no such blob")
        # A blob never changes: what has been fetched of it stays good.
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"', "Cache-Control": "max-age=31536000, immutable"}
        return FileResponse(path, media_type="application/octet-stream", headers=headers | _VERSION)

    def referrers(self, request: Request) -> Response:
        """SBOMs and signatures of a manifest, filtered by type when that is asked for."""
        digest, wanted = request.path_params["digest"], request.query_params.get("artifactType", "")
        if not _DIGEST.fullmatch(digest):
            raise HTTPException(400, "DIGEST_INVALID: a digest is sha256: and 64 hexadecimal digits")
        known = digest in self._repository(request).digests
        found = self._layout.referrers(digest) if known else []
        listed = [item.to_dict() for item in found if not wanted or item.artifact_type == wanted]
        content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        filters = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        return Response(orjson.dumps(content), media_type=INDEX, headers=filters | _VERSION)

    def _repository(self, request: Request) -> _Repository:
        found = self._catalogue.repositories().get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "NAME_UNKNOWN: there is no such repository")
        return found


_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


def _page(request: Request, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """A page of sorted names after `last`, `n` at most, and the link to the next."""
    asked = request.query_params.get("n", str(_PAGE))
    if not asked.isdecimal():
        raise HTTPException(400, "PAGINATION_NUMBER_INVALID: n is a number")
    size, last = min(int(asked), _PAGE), request.query_params.get("last", "")
    rest = sorted(name for name in names if name > last)
    page = rest[:size]
    if not page or len(rest) <= size:
        return page, {}
    following = request.url.include_query_params(n=size, last=page[-1])
    return page, {"Link": f'<{following.path}?{following.query}>; rel="next"'}


def _json(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), media_type="application/json", headers={**_VERSION, **(headers or {})})


def _say(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code, _, message = str(error.detail if isinstance(error, HTTPException) else error).partition(": ")
    body = orjson.dumps({"errors": [{"code": code, "message": message, "detail": {}}]})
    return Response(body, status, media_type="application/json", headers=_VERSION)


def _say_damaged(_request: Request, error: Exception) -> Response:
    missing = isinstance(error, ImageError) and error.code in {"FL6102", "FL6106"}
    body = orjson.dumps({"errors": [{"code": "UNKNOWN", "message": str(error), "detail": {}}]})
    return Response(body, 404 if missing else 500, media_type="application/json", headers=_VERSION)


def run_server(layout: Layout, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `ready` gets the address. Raises ImageError FL6170 when it cannot listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ImageError(
            "FL6170", f"The registry cannot listen on {host}:{port}: {error}.", cure="Choose another --port or --host."
        ) from error
    with listening:
        bound = listening.getsockname()[1]
        ready(f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}")
        uvicorn.Server(_config(layout)).run(sockets=[listening])


def _config(layout: Layout) -> uvicorn.Config:
    return uvicorn.Config(application(layout), log_level="error", access_log=False, server_header=False, lifespan="off", ws="none")
