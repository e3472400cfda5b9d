"""MLflow's REST API: everything that is read, and the aliases, which are all that a rollback writes.

`import mlflow` takes 1.5 s and 150 MiB, which a cycle that has nothing to record does not pay. What else is written goes through
MLflow's own client, in the scribe.

"There is no such thing" is believed only when MLflow itself says so: any other 404 – a proxy, a wrong address – is an error,
since a registry that does not answer is not an empty one.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from reconciler.errors import TrackingError
from reconciler.tracking.failures import answered, redacted, unreachable

PAGE = 1000
CONNECT_SECONDS, LIMIT_SECONDS = 3.0, 15.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Rest:
    """One tracking server; a connection that is kept."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        address = urlsplit(self._uri)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise TrackingError(
                "FL6007",
                f"{redacted(uri)} is not the address of an MLflow server.",
                cure="Give one that starts with http:// or https:// in tracking_uri or MLFLOW_TRACKING_URI.",
            )
        name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        auth = (name, password or "") if name else None
        limit = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or LIMIT_SECONDS)
        self._client = httpx.Client(
            timeout=httpx.Timeout(limit, connect=CONNECT_SECONDS),
            headers=headers,
            auth=auth,
            verify=_verification(),
            trust_env=address.hostname not in LOOPBACK,  # a proxy has no way to this machine's loopback
        )

    def get(self, path: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """A GET; None when MLflow says that there is no such thing."""
        return self._call("GET", path, params=dict(parameters))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """A POST that may be sent twice (a search, an alias); None when MLflow says that there is no such thing."""
        return self._call("POST", path, json=dict(body))

    def delete(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """A DELETE, which may be sent twice; None when MLflow says that there is no such thing."""
        return self._call("DELETE", path, json=dict(body))

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
            answer = self._request(method, f"{self._uri}/api/2.0/mlflow/{path}", **arguments)
        except httpx.HTTPError as error:
            raise unreachable(self._uri, str(error) or type(error).__name__) from error
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.is_success and isinstance(content, dict):
            return content
        said = content if isinstance(content, dict) else {}
        if answer.status_code == httpx.codes.NOT_FOUND and said.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise answered(self._uri, answer.status_code, str(said.get("message") or f"{path} is not an answer of MLflow"))

    def _request(self, method: str, address: str, **arguments: Any) -> httpx.Response:
        try:
            return self._client.request(method, address, **arguments)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            # The server closed a connection that was kept; a search can be asked again.
            return self._client.request(method, address, **arguments)


def _verification() -> bool | ssl.SSLContext:
    """How the server's certificate is checked: MLflow's own two settings."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"true", "1"}:
        return False
    bundle = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    return ssl.create_default_context(cafile=bundle) if bundle else True
