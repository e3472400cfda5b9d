"""Reading from MLflow over its REST API.

Only reading, and only for observation: `import mlflow` takes 1.5 s, which a cycle that has nothing to write – or that rolls
back to a model that is there – does not pay. Everything that writes goes through MLflow's own client.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from reconciler.errors import TrackingError

PAGE = 200
LIMIT_SECONDS = 15.0


class Rest:
    """One tracking server; a connection that is kept."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        auth = (name, password or "") if name else None
        self._client = httpx.Client(timeout=LIMIT_SECONDS, headers=headers, auth=auth)

    def get(self, path: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """A GET; None when MLflow says that there is no such thing."""
        return self._call("GET", path, params=dict(parameters))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """A POST of a search; None when MLflow says that there is no such thing."""
        return self._call("POST", path, json=dict(body))

    def pages(self, path: str, key: str, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """All items of a search, page by page."""
        token = ""
        while True:
            more = {"page_token": token} if token else {}
            answer = self.get(path, {**parameters, "max_results": PAGE, **more}) or {}
            yield from answer.get(key, ())
            token = answer.get("next_page_token") or ""
            if not token:
                return

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            answer = self._client.request(method, f"{self._uri}/api/2.0/mlflow/{path}", **arguments)
        except httpx.HTTPError as error:
            raise unreachable(self._uri, str(error) or type(error).__name__) from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.status_code >= 500:
            raise unreachable(self._uri, f"it answers {answer.status_code}")
        if answer.status_code >= 400:
            raise TrackingError(
                "FL6002",
                f"MLflow refuses {path}: {answer.status_code} {answer.text[:200]}.",
                cure="Check the credentials and the version of the tracking server.",
            )
        content: dict[str, Any] = answer.json()
        return content


def unreachable(uri: str, reason: str) -> TrackingError:
    """The error for a server that does not answer; its address without credentials."""
    shown = re.sub(r"//[^/@]*@", "//", uri)
    return TrackingError(
        "FL6001", f"MLflow at {shown} does not answer: {reason}.", cure="It is asked again; nothing is lost.", transient=True
    )
