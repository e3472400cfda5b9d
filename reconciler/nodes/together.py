"""Several calls in one request, where the SuperLink is ours; one by one where it is not, or where one of them is refused.

A message's objects are fetched and sent with a request each, and a request costs milliseconds of CPU on both sides. Nothing but
the number of requests changes: each call is checked and handled as if it had come alone, and every refusal is Flower's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
from flwr.proto import message_pb2 as objects
from flwr.proto.recorddict_pb2 import BytesList

NAME = "together"
_ANSWERS: dict[str, tuple[str, Any]] = {
    "PullObject": ("pull-object", objects.PullObjectResponse),
    "PushObject": ("push-object", objects.PushObjectResponse),
    "ConfirmMessageReceived": ("confirm-message-received", objects.ConfirmMessageReceivedResponse),
}
_MOST = 4
"""Calls in one request: an object has at most 8 MiB (`packing.PART_BYTES`), a body 64."""
Call = tuple[str, Any]
"""A method of Flower's client, and its request."""


class Together:
    """Makes calls for one of Flower's clients: of the Fleet API (`fleet`) or the Runtime API (`runtime`)."""

    def __init__(self, client: Any, side: str) -> None:
        self._client = client
        self._path = f"/v1/{side}/{NAME}"
        self._known = True

    def __call__(self, calls: Sequence[Call]) -> list[Any]:
        """The answers, in order. Raises what Flower's client raises."""
        return [answer for at in range(0, len(calls), _MOST) for answer in self._some(calls[at : at + _MOST])]

    def _some(self, calls: Sequence[Call]) -> list[Any]:
        if self._known and len(calls) > 1:
            try:
                return self._at_once(calls)
            except httpx.HTTPStatusError as error:
                self._known = error.response.status_code != httpx.codes.NOT_FOUND
        return [getattr(self._client, method)(request) for method, request in calls]

    def _at_once(self, calls: Sequence[Call]) -> list[Any]:
        values = [part for method, request in calls for part in (_ANSWERS[method][0].encode(), request.SerializeToString())]
        answer = self._client._unary_unary(
            path=self._path, rpc_method=f"/flops/{NAME}", request=BytesList(vals=values), response_type=BytesList
        )
        return [_ANSWERS[method][1].FromString(value) for (method, _), value in zip(calls, answer.vals, strict=True)]
