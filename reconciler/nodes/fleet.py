"""A node's side of a SuperLink: Flower's Fleet API, spoken with Flower's own client, signed with the node's key.

`flwr.supernode`'s own connection ends the process when it cannot connect, and its loop sleeps seconds between messages; this
one tells apart what a node that stays for ever has to tell apart: gone for now (`httpx.TransportError` and 5xx), refused
(`KeyRefusedError`), and a run that is over (`RunOverError`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message, Metadata
from flwr.app.message import RecordDict, make_message, remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, run_pb2
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from reconciler.errors import TrainingError
from reconciler.nodes.keys import KeyPair, public_bytes
from reconciler.nodes.together import Together

HEARTBEAT_SECONDS = 10.0
"""Flower's shortest; a node that misses two is offline."""
HOLD_SECONDS = 3.0
HOLD_HEADER = "x-flops-hold"
Sleep = Callable[[float], None]


class Hold:
    """Asks a SuperLink of ours to hold a question for messages until there is one; others do not know the header."""

    def __init__(self, seconds: float) -> None:
        self._seconds = str(seconds)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Adds the header where it has a meaning."""
        if context.rpc_method.endswith("/PullMessages"):
            context.request.headers[HOLD_HEADER] = self._seconds
        response: httpx.Response = call_next(context)
        return response


class KeyRefusedError(TrainingError):
    """The SuperLink does not take this node's key."""


class RunOverError(Exception):
    """The run that this is about has ended, or is not for this node."""


class Fleet:
    """One connection; `activate` first. Not for several threads, but for the heartbeat, which has one of its own."""

    def __init__(self, address: str, keys: KeyPair, root_certificates: Path | None) -> None:
        self._public = public_bytes(keys[1])
        certificates = root_certificates.read_bytes() if root_certificates else None
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(*keys),
            Hold(HOLD_SECONDS),
        ]
        self._client = FleetHttpClient.from_server_address(address, False, certificates, interceptors)
        self._together = Together(self._client, "fleet")
        self._node = Node()
        self._ended = threading.Event()

    @property
    def node_id(self) -> int:
        """What Flower calls this node; 0 before `activate`."""
        return int(self._node.node_id)

    def activate(self) -> None:
        """Tells the SuperLink that this node is there. Raises KeyRefusedError, httpx.TransportError."""
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
        try:
            answer = self._client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise KeyRefusedError(
                    "FL5803",
                    f"The SuperLink refuses this node's key: {error.response.text[:200]}",
                    cure="Have its public key put into nodes/ of the GitOps repo; the node goes on trying.",
                    transient=True,
                ) from error
            raise httpx.ConnectError(f"the SuperLink answers {error.response.status_code}") from error
        self._node = Node(node_id=answer.node_id)

    def start_heartbeat(self) -> None:
        """Keeps this node online while a learner works."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
        while not self._ended.wait(HEARTBEAT_SECONDS * 0.7):
            with suppress(httpx.HTTPError, ValueError):
                self._client.SendNodeHeartbeat(request)

    def close(self, *, leave: bool) -> None:
        """Ends the connection; with `leave` the node is offline at once instead of after two heartbeats."""
        self._ended.set()
        if leave and self._node.node_id:
            with suppress(httpx.HTTPError, ValueError):
                self._client.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=self._node.node_id))
        self._client.close()

    # --- messages -------------------------------------------------------------------------------------------------------

    def receive(self) -> Message | None:
        """The next message with its content, or None."""
        with _refusals():
            answer = self._client.PullMessages(fleet_pb2.PullMessagesRequest(node=self._node))
            if not answer.messages_list:
                return None
            empty = message_from_proto(answer.messages_list[0])
            run_id, identifier = empty.metadata.run_id, empty.metadata.message_id
            names = sorted({tree.object_id for tree in iterate_object_tree(answer.message_object_trees[0])})
            calls = [("PullObject", PullObjectRequest(node=self._node, run_id=run_id, object_id=name)) for name in names]
            pulled = dict(zip(names, self._together(calls), strict=True))
            contents = {
                name: bytes(found.object_content) if found.object_available else self._pull(run_id, name)
                for name, found in pulled.items()
            }
            message = inflate_object_from_contents(identifier, contents)
            message.metadata.__dict__["_message_id"] = identifier
            confirmation = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=identifier)
            self._client.ConfirmMessageReceived(confirmation)
            return message  # type: ignore[return-value, unused-ignore]

    def send(self, reply: Message, seconds: float) -> None:
        """Sends a reply; `seconds` is what the learner took. May be tried again after a failure."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with _refusals():
            answer = self._client.PushMessages(
                fleet_pb2.PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[seconds],
                )
            )
            objects = get_all_nested_objects(reply)
            pushes = [
                PushObjectRequest(
                    node=self._node, run_id=reply.metadata.run_id, object_id=name,
                    object_content=objects[name].deflate(), session_id=answer.session_id,
                )
                for name in answer.objects_to_push
            ]  # fmt: skip
            self._together([("PushObject", push) for push in pushes])

    def bundle_hash(self, run_id: int) -> str:
        """The hash of a run's app bundle. Raises RunOverError."""
        with _refusals():
            return str(self._client.GetRun(run_pb2.GetRunRequest(node=self._node, run_id=run_id)).run.fab_hash)

    def bundle(self, run_id: int, fab_hash: str) -> bytes:
        """A run's app bundle. Raises RunOverError."""
        with _refusals():
            request = fab_pb2.GetFabRequest(node=self._node, hash_str=fab_hash, run_id=run_id)
            return bytes(self._client.GetFab(request).fab.content)

    def _pull(self, run_id: int, name: str, sleep: Sleep = time.sleep) -> bytes:
        """One object; its sender may still be pushing it."""
        request = PullObjectRequest(node=self._node, run_id=run_id, object_id=name)
        for attempt in range(100):
            answer = self._client.PullObject(request)
            if answer.object_available:
                return bytes(answer.object_content)
            if not answer.object_found:
                break
            sleep(min(0.5, 0.005 * 1.3**attempt))
        raise RunOverError("a message without its content")


def reply_to(message: Message, content: RecordDict) -> Message:
    """A reply, without Flower's notion of which task this process is."""
    asked = message.metadata
    created = now().timestamp()
    left = asked.created_at + asked.ttl - created
    metadata = Metadata(
        run_id=asked.run_id, message_id="", src_node_id=asked.dst_node_id, dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id, group_id=asked.group_id, created_at=created,
        # Clocks differ between machines; a reply that came in time is not to be dropped for that.
        ttl=max(1.0, left), message_type=asked.message_type,
    )  # fmt: skip
    return make_message(metadata, content)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        status: Any = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            raise KeyRefusedError(
                "FL5803",
                "The SuperLink does not know this node's key any more, or the clocks differ by minutes.",
                cure="See whether nodes/ of the GitOps repo still has the key; the node goes on trying.",
                transient=True,
            ) from error
        if status < 500:
            raise RunOverError(error.response.text[:200]) from error
        raise httpx.ConnectError(f"the SuperLink answers {status}") from error
