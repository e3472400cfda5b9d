"""The API's description (OpenAPI 3.1): what `/api/v1/openapi.json` answers, and what the tests hold the server to."""

from __future__ import annotations

from functools import cache
from typing import Any

from reconciler.spec.base import NAME

PAGE, MOST = 100, 500
"""Items of a page: when nothing is said, and at most."""
MAX_NAME = 63
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_LARGEST = 2**63 - 1


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "pattern": NAME, "maxLength": MAX_NAME}}
    limit = _query("limit", "Items of a page.", {"type": "integer", "minimum": 1, "maximum": MOST, "default": PAGE})
    cursor = {"type": "integer", "minimum": 0, "maximum": _LARGEST}
    before = _query("before", "Ids below this one only; the newest of them.", cursor)
    after = _query("after", "Ids above this one only; the oldest of them.", cursor)
    after_name = _query("after", "Names after this one only.", {"type": "string", "maxLength": MAX_NAME})
    one = "/api/v1/projects/{name}"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flops serve",
            "version": "1",
            "description": "What is declared, what runs, what happened. A viewer reads; an operator may say look and try again.",
        },
        "security": [{"token": []}],
        "paths": {
            "/api/v1/openapi.json": {"get": {**_get("This document.", {"type": "object"}), "security": []}},
            "/api/v1/projects": {"get": _get("The projects, by name.", _page("Project"), after_name, limit)},
            one: {"get": _get("A project's status document.", _ref("Status"), name, codes=("404",))},
            f"{one}/events": {
                "get": _get("What happened to a project.", _page("Event"), name, after, before, limit, codes=("404",))
            },
            f"{one}/history": {
                "get": _get("The runs of a project's stages.", _page("StageRun"), name, before, limit, codes=("404",))
            },
            f"{one}/plan": {"get": _get("What would be done now.", _ref("Plan"), name, codes=("404",))},
            f"{one}/retry": {"post": _post("Try again now, instead of when the backoff ends.", name, codes=("404", "409"))},
            "/api/v1/look": {"post": _post("Look now, at the remote too.")},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    marks = {"type": "string", "enum": ["True", "False", "Unknown"]}
    digests = dict.fromkeys(("digest", "serving_digest", "commit"), _TEXT)
    run = dict.fromkeys(("project", "digest", "stage", "commit", "message"), _TEXT)
    return {
        "Project": _object(
            {"name": _TEXT, "customer": _TEXT, **digests, "synced": marks, "ready": marks, "reason": _TEXT},
        ),
        "Status": {
            "type": "object",
            "required": ["name", "conditions"],
            "properties": {
                "name": _TEXT,
                "customer": _TEXT,
                "conditions": {
                    "type": "array",
                    "items": _object({"type": _TEXT, "status": marks, "reason": _TEXT, "message": _TEXT}),
                },
            },
        },
        "Event": _object(
            {
                "id": _COUNT,
                "at": {"type": "number"},
                "project": _TEXT,
                "digest": _TEXT,
                "kind": _TEXT,
                "stage": _TEXT,
                "message": _TEXT,
                "data": {"type": "object"},
            }
        ),
        "StageRun": _object(
            {
                "id": _COUNT,
                **run,
                "started": {"type": "number"},
                "seconds": {"type": ["number", "null"]},
                "result": {"type": ["string", "null"]},
            }
        ),
        "Plan": _object(
            {
                "name": _TEXT,
                "change": _TEXT,
                "reason": _TEXT,
                "run_digest": _TEXT,
                "actions": {"type": "array", "items": _object({"stage": _TEXT, "verb": _TEXT, "reason": _TEXT})},
                "inputs": {"type": "array", "items": _object({"name": _TEXT, "before": _TEXT, "after": _TEXT})},
            }
        ),
        "Accepted": _object({"result": {"type": "string", "const": "accepted"}}),
        "Problem": _object(
            {
                "type": _TEXT,
                "title": _TEXT,
                "status": _COUNT,
                "detail": _TEXT,
                "code": {"type": "string", "pattern": "^FL[0-9]{4}$"},
                "cure": _TEXT,
            }
        ),
    }


def _get(summary: str, schema: dict[str, Any], *parameters: dict[str, Any], codes: tuple[str, ...] = ()) -> dict[str, Any]:
    return _operation(summary, {"200": _answer("What was asked for.", schema)}, parameters, codes)


def _post(summary: str, *parameters: dict[str, Any], codes: tuple[str, ...] = ()) -> dict[str, Any]:
    accepted = {"202": _answer("The loop was told.", _ref("Accepted"))}
    return _operation(summary, accepted, parameters, (*codes, "408", "413"))


def _operation(
    summary: str, answers: dict[str, Any], parameters: tuple[dict[str, Any], ...], codes: tuple[str, ...]
) -> dict[str, Any]:
    every = ("400", "401", "403", "405", "414", "421", "500", "503")
    problem = {"description": "A problem.", "content": {"application/problem+json": {"schema": _ref("Problem")}}}
    return {"summary": summary, "parameters": list(parameters), "responses": answers | dict.fromkeys((*every, *codes), problem)}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _page(item: str) -> dict[str, Any]:
    return _object({"items": {"type": "array", "items": _ref(item), "maxItems": MOST}, "more": {"type": "boolean"}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": sorted(properties), "properties": properties, "additionalProperties": False}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
