"""Asking an inference service in MLflow's protocol."""

from __future__ import annotations

import json
from typing import Any

import httpx
import orjson

from reconciler.errors import ServingError

LIMIT_SECONDS = 60.0


def predict(address: str, payload: Any, client: httpx.Client | None = None) -> dict[str, Any]:
    """The answer to a request in MLflow's form (`inputs`, `instances`, `dataframe_split`, `dataframe_records`).

    Arrays of numpy are written as lists. Raises ServingError: FL7010 when the service does not answer, FL7011 when it refuses.
    """
    body = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY, default=lambda array: array.tolist())
    headers = {"content-type": "application/json"}
    try:
        post = client.post if client else httpx.post
        answer = post(f"http://{address}/invocations", content=body, headers=headers, timeout=LIMIT_SECONDS)
        content = json.loads(answer.content)  # not orjson: a model may answer NaN
    except (httpx.HTTPError, ValueError) as error:
        raise _silent(address, error) from error
    if answer.status_code != httpx.codes.OK or not isinstance(content, dict):
        said = content.get("message") if isinstance(content, dict) else ""
        raise ServingError(
            "FL7011",
            f"The service refuses the request: {said or f'status {answer.status_code}'}",
            cure="Correct the request.",
            transient=answer.status_code == httpx.codes.SERVICE_UNAVAILABLE,
        )
    return content


def version(address: str) -> dict[str, str]:
    """What a service says of itself: project, digest, flavour. Raises ServingError FL7010."""
    try:
        content = httpx.get(f"http://{address}/version", timeout=LIMIT_SECONDS).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise _silent(address, error) from error
    return content if isinstance(content, dict) else {}


def _silent(address: str, error: Exception) -> ServingError:
    return ServingError("FL7010", f"The service at {address} does not answer: {error}.", cure="See `flops status`.", transient=True)
