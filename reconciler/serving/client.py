"""Asking an inference service in MLflow's protocol."""

from __future__ import annotations

from typing import Any

import httpx
import orjson

from reconciler.errors import ServingError

LIMIT_SECONDS = 60.0


def predict(address: str, payload: Any, client: httpx.Client | None = None) -> dict[str, Any]:
    """The answer to a request in MLflow's form (`inputs`, `instances`, `dataframe_split`, `dataframe_records`)."""
    body = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"content-type": "application/json"}
    try:
        post = client.post if client else httpx.post
        answer = post(f"http://{address}/invocations", content=body, headers=headers, timeout=LIMIT_SECONDS)
        content: dict[str, Any] = orjson.loads(answer.content)
    except (httpx.HTTPError, orjson.JSONDecodeError) as error:
        raise ServingError(
            "FL7010", f"The service at {address} does not answer: {error}.", cure="See `flops status`.", transient=True
        ) from error
    if answer.status_code != httpx.codes.OK:
        raise ServingError(
            "FL7011", f"The service refuses the request: {content.get('message', answer.status_code)}", cure="Correct the request."
        )
    return content


def version(address: str) -> dict[str, str]:
    """What a service says of itself: project, digest, flavour."""
    try:
        content: dict[str, str] = httpx.get(f"http://{address}/version", timeout=LIMIT_SECONDS).json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServingError(
            "FL7010", f"The service at {address} does not answer: {error}.", cure="See `flops status`.", transient=True
        ) from error
    return content
