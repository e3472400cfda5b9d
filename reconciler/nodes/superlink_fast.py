"""The calls that a round is made of, without the nine layers of middleware around each: for the SuperLink that we run.

A message of a learner costs about eighteen requests, and Flower's HTTP stack takes several milliseconds of CPU for each. The
same handlers, with the same checks of key and token, are called here directly. Whatever does not succeed here is given to
Flower's own app from the start, so every refusal is Flower's. A client that says so (`x-flops-hold: seconds`) has its question
for messages held until there is one, so that nobody has to ask all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, run_pb2, runtime_pb2
from flwr.proto import message_pb2 as objects
from flwr.proto.recorddict_pb2 import BytesList
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.task import authenticate_task
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers as fleet
from flwr.superlink.servicer.runtime import runtime_handlers as runtime

from reconciler.nodes.fleet import HOLD_HEADER
from reconciler.nodes.together import NAME

LONGEST_HOLD = 20.0
_THREADS = 4
Handler = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: its request's type, and the handler by (request, state, task or None)."""

    request: Any
    handle: Handler
    asks: bool = False


def _activate(request: Any, state: Any, _task: Any) -> Any:
    """A node that was killed is online to Flower until its heartbeats are missed; its key says that it is the same one."""
    node_id = state.get_node_id_by_public_key(request.public_key)
    if node_id is not None:
        state.deactivate_node(node_id)
    return fleet.activate_node(request, state)


_FLEET = {
    "activate-node": _Call(fleet_pb2.ActivateNodeRequest, _activate),
    "pull-messages": _Call(fleet_pb2.PullMessagesRequest, lambda r, s, _: fleet.pull_messages(r, s, s.object_store), asks=True),
    "push-messages": _Call(fleet_pb2.PushMessagesRequest, lambda r, s, _: fleet.push_messages(r, s)),
    "pull-object": _Call(objects.PullObjectRequest, lambda r, s, _: fleet.pull_object(r, s)),
    "push-object": _Call(objects.PushObjectRequest, lambda r, s, _: fleet.push_object(r, s)),
    "confirm-message-received": _Call(
        objects.ConfirmMessageReceivedRequest, lambda r, s, _: fleet.confirm_message_received(r, s, s.object_store)
    ),
    "send-node-heartbeat": _Call(heartbeat_pb2.SendNodeHeartbeatRequest, lambda r, s, _: fleet.send_node_heartbeat(r, s)),
    "get-run": _Call(run_pb2.GetRunRequest, lambda r, s, _: fleet.get_run(r, s)),
    "get-fab": _Call(fab_pb2.GetFabRequest, lambda r, s, _: fleet.get_fab(r, s)),
}
_RUNTIME = {
    "pull-messages": _Call(runtime_pb2.PullAppMessagesRequest, runtime.pull_messages, asks=True),
    "push-messages": _Call(runtime_pb2.PushAppMessagesRequest, runtime.push_messages),
    "pull-object": _Call(objects.PullObjectRequest, runtime.pull_object),
    "push-object": _Call(objects.PushObjectRequest, runtime.push_object),
    "confirm-message-received": _Call(objects.ConfirmMessageReceivedRequest, runtime.confirm_message_received),
}
CALLS = {f"/v1/fleet/{name}": call for name, call in _FLEET.items()} | {
    f"/v1/runtime/{name}": call for name, call in _RUNTIME.items()
}
_MANY = _Call(BytesList, lambda *_: None)
"""Several of these calls in one request: their names and requests, in turn."""


class FastCalls:
    """An ASGI app in front of Flower's."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="calls")
        self._bells: dict[tuple[str, int], asyncio.Event] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        call = _called(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if call is None:
            await self._app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                return
            body += part.get("body", b"")
            more = part.get("more_body", False)
        try:
            answer = await self._answer(scope, call, body)
        except Exception:
            if scope["path"].endswith(f"/{NAME}"):
                await send({"type": "http.response.start", "status": 409, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})  # it asks one by one
                return
            # Refused or broken: Flower's app says how, with the request as it came.
            await self._app(scope, _replay(body, receive), send)
            return
        headers = [(b"content-type", b"application/x-protobuf"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope: Any, call: _Call, body: bytes) -> bytes:
        message = call.request.FromString(body)
        side = scope["path"].split("/")[2]
        loop = asyncio.get_running_loop()
        if scope["path"].endswith(f"/{NAME}"):
            parts = list(zip(message.vals[::2], message.vals[1::2], strict=True))
            return bytes(await loop.run_in_executor(self._pool, self._all, scope, side, parts))
        deadline = loop.time() + (_hold(scope) if call.asks else 0.0)
        while True:
            bell, key = None, None
            if call.asks and deadline > loop.time():
                # Before the question, so that what comes in between rings it.
                key = _key(side, message, scope)
                bell = self._bells.setdefault(key, asyncio.Event())
                bell.clear()
            answer = await loop.run_in_executor(self._pool, self._handle, scope, side, call, message)
            if bell is None or key is None or answer.messages_list:
                break
            try:
                await asyncio.wait_for(bell.wait(), deadline - loop.time())
            except TimeoutError:
                self._bells.pop(key, None)
                break
        if scope["path"].endswith("/push-messages"):
            self._ring(side, message)
        return bytes(answer.SerializeToString())

    def _all(self, scope: Any, side: str, parts: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Each call as if it had come alone."""
        answers = []
        for name, body in parts:
            call = CALLS[f"/v1/{side}/{name.decode()}"]
            answers.append(self._handle(scope, side, call, call.request.FromString(body)).SerializeToString())
        return bytes(BytesList(vals=answers).SerializeToString())

    def _handle(self, scope: Any, side: str, call: _Call, message: Any) -> Any:
        request = Request({**scope, "app": self._app, "state": {}})
        state = request.app.state.linkstate_factory.state()
        task = None
        if side == "fleet":
            request.state.protobuf_request = message
            authenticate_node(request)
        else:
            task = authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state)
        return call.handle(message, state, task)

    def _ring(self, side: str, message: Any) -> None:
        """Wakes those who wait for these messages: nodes by their id, ServerApps all (there are few)."""
        if side == "fleet":
            waiting = [bell for (kind, _), bell in self._bells.items() if kind == "runtime"]
        else:
            ids = {item.metadata.dst_node_id for item in message.messages_list}
            waiting = [bell for (kind, node), bell in self._bells.items() if kind == "fleet" and node in ids]
        for bell in waiting:
            bell.set()


def _called(path: str) -> _Call | None:
    return _MANY if path in (f"/v1/fleet/{NAME}", f"/v1/runtime/{NAME}") else CALLS.get(path)


def _key(side: str, message: Any, scope: Any) -> tuple[str, int]:
    """Who waits: a node, or a ServerApp by its connection."""
    return (side, int(message.node.node_id)) if side == "fleet" else (side, hash(scope.get("client")))


def _hold(scope: Any) -> float:
    try:
        return min(LONGEST_HOLD, max(0.0, float(dict(scope["headers"]).get(HOLD_HEADER.encode(), b"0"))))
    except ValueError:
        return 0.0


def _replay(body: bytes, receive: Any) -> Any:
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
