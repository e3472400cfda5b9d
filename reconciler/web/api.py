"""The JSON API: what the status branch, the journal and the plan say, for machines, and the two things one may ask of the loop.

Reading takes what the loop has made; nothing here decides. What is asked for – look, try again – is a wish that the loop meets as
it does any trigger: it is never needed for convergence, and asked twice it does no more than asked once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from reconciler.controller import Controller
from reconciler.errors import WebError
from reconciler.journal import Journal
from reconciler.looking import ProjectView
from reconciler.statusdoc import Document, condition
from reconciler.web.access import Access, Role
from reconciler.web.answers import Json, capped
from reconciler.web.openapi import MAX_NAME, MOST, PAGE, document

PREFIX = "/api/v1"
MAX_BODY = 1024
"""Nothing that is asked for has a body; one is read up to here and not looked at."""
_FACTS = ("name", "customer", "digest", "serving_digest", "commit")


class Api:
    """The routes over one controller and its journal."""

    def __init__(self, controller: Controller, journal: Journal, access: Access) -> None:
        self._controller, self._journal, self._access = controller, journal, access

    def routes(self) -> list[Route]:
        """What Starlette is given."""
        one = f"{PREFIX}/projects/{{name}}"
        return [
            Route(f"{PREFIX}/openapi.json", self.openapi),
            Route(f"{PREFIX}/projects", self.projects),
            Route(one, self.project),
            Route(f"{one}/events", self.events),
            Route(f"{one}/history", self.history),
            Route(f"{one}/plan", self.plan),
            Route(f"{one}/retry", self.retry, methods=["POST"]),
            Route(f"{PREFIX}/look", self.look, methods=["POST"]),
        ]

    async def openapi(self, request: Request) -> Response:
        """The description of all this; the same for everybody."""
        _parameters(request)
        return Json(document())

    async def projects(self, request: Request) -> Response:
        """A page of the projects, by name."""
        self._access.check(request, Role.VIEWER)
        given = _parameters(request, "after", "limit")
        limit, after = _number(given, "limit", PAGE, 1, MOST), given.get("after", "")
        if len(after) > MAX_NAME:
            raise WebError("FL9322", f"after has more than {MAX_NAME} characters.", cure="No name of a project is longer.")
        documents = self._documents()
        names = sorted(name for name in documents if name > after)
        page = [_summary(name, documents[name]) for name in names[:limit]]
        return Json({"items": page, "more": len(names) > limit})

    async def project(self, request: Request) -> Response:
        """One project's status document, as on the status branch."""
        self._access.check(request, Role.VIEWER)
        _parameters(request)
        return Json(self._document(request))

    async def events(self, request: Request) -> Response:
        """A page of a project's events: those after an id, or the newest ones before one."""
        self._access.check(request, Role.VIEWER)
        given = _parameters(request, "after", "before", "limit")
        limit = _number(given, "limit", PAGE, 1, MOST)
        after, before = _number(given, "after", -1, 0), _number(given, "before", -1, 0)
        if after >= 0 and before >= 0:
            raise WebError("FL9322", "after and before cannot stand together.", cure="Leave one of them out.")
        name = self._name(request)
        found = await run_in_threadpool(self._journal.page, name, after=after, before=before, limit=limit + 1)
        page = found[:limit] if after >= 0 else found[-limit:]
        return Json({"items": [asdict(item) for item in page], "more": len(found) > limit})

    async def history(self, request: Request) -> Response:
        """A page of the runs of a project's stages: the newest ones before an id, the oldest first."""
        self._access.check(request, Role.VIEWER)
        given = _parameters(request, "before", "limit")
        limit, before = _number(given, "limit", PAGE, 1, MOST), _number(given, "before", -1, 0)
        name = self._name(request)
        found = await run_in_threadpool(self._journal.stage_page, name, before=before, limit=limit + 1)
        page = [{"id": number, **asdict(item)} for number, item in found[-limit:]]
        return Json({"items": page, "more": len(found) > limit})

    async def plan(self, request: Request) -> Response:
        """What would be done for a project now."""
        self._access.check(request, Role.VIEWER)
        _parameters(request)
        return Json(asdict(self._view(request).plan))

    async def look(self, request: Request) -> Response:
        """Look now, at the remote too."""
        self._access.check(request, Role.OPERATOR)
        _parameters(request)
        await capped(request, MAX_BODY)
        self._controller.wake()
        return Json({"result": "accepted"}, 202)

    async def retry(self, request: Request) -> Response:
        """Do not wait any longer before a project's next try."""
        self._access.check(request, Role.OPERATOR)
        _parameters(request)
        await capped(request, MAX_BODY)
        view = self._view(request)
        if not self._controller.queue.retry(view.name):
            cause = "Nothing of this project waits for another try."
            cure = "A stalled project waits for a commit that changes it: `GET` its status says why."
            raise WebError("FL9326", cause, cure=cure)
        self._controller.wake(fetch=False)
        return Json({"result": "accepted"}, 202)

    def _documents(self) -> Mapping[str, Document]:
        if self._controller.view is None:
            cure = "Ask again; of two controllers of one state directory, the other one has the answers."
            raise WebError("FL9328", "The loop has not looked yet, or stands by.", cure=cure)
        return dict(self._controller.ledger.documents)

    def _name(self, request: Request) -> str:
        name = str(request.path_params["name"])
        view = self._controller.view
        if name not in self._documents() and (view is None or name not in view.projects):
            raise _unknown()
        return name

    def _document(self, request: Request) -> Document:
        found = self._documents().get(str(request.path_params["name"]))
        if found is None:
            raise _unknown()
        return found

    def _view(self, request: Request) -> ProjectView:
        self._documents()
        view = self._controller.view
        found = view.projects.get(str(request.path_params["name"])) if view else None
        if found is None:
            raise _unknown()
        return found


def _unknown() -> WebError:
    return WebError("FL9324", "There is no such project.", cure="GET /api/v1/projects has the names.")


def _summary(name: str, found: Document) -> dict[str, Any]:
    synced, ready = condition(found, "Synced") or {}, condition(found, "Ready") or {}
    return {key: str(found.get(key, "")) for key in _FACTS} | {
        "name": name,
        "synced": synced.get("status", "Unknown"),
        "ready": ready.get("status", "Unknown"),
        "reason": synced.get("reason", ""),
    }


def _parameters(request: Request, *allowed: str) -> dict[str, str]:
    """The query's parameters. Raises WebError FL9322 for others than those allowed, and for one that stands twice."""
    pairs = request.query_params.multi_items()
    names = [name for name, _ in pairs]
    if set(names) - set(allowed) or len(names) != len(set(names)):
        known = f"It takes {', '.join(allowed)}, each once." if allowed else "It takes none."
        raise WebError("FL9322", "There is a parameter that this address does not take, or one stands twice.", cure=known)
    return dict(pairs)


def _number(given: Mapping[str, str], name: str, default: int, least: int, most: int = 2**63 - 1) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or not least <= int(text) <= most:
        raise WebError("FL9322", f"{name} is not a whole number from {least} to {most}.", cure="Correct it, or leave it out.")
    return int(text)
