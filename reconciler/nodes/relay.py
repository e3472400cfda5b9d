"""The way from an aggregator to its nodes: a thread of the reconciler between the aggregator's pipe and the SuperLink.

The aggregator runs in the ML environment, without network and credentials; here are both. The relay chooses nothing but *who
may be asked*: nodes that `nodes/<name>.yaml` allows for the run's tags. It owns the run on the SuperLink: submits it under the
digest, takes it up again after a restart of the reconciler, submits it anew when the SuperLink lost it, and ends it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Metadata
from flwr.app.message import Message, make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import runtime_pb2
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.runtime import RuntimeHttpClient

from reconciler.errors import TrainingError
from reconciler.nodes import packing
from reconciler.nodes.clusters import Clusters
from reconciler.nodes.fab import AppBundle
from reconciler.nodes.superlink import SuperLink, told
from reconciler.nodes.together import Call, Together

_HEARTBEAT = 15.0
_FASTEST, _SLOWEST, _SHARE = 0.008, 0.4, 0.05
"""Replies are asked for at these intervals, in seconds: a share of the time that they have taken already."""
_LOST = 12 * 3600.0
_LOST_CODES = {2, 3, 5}  # Flower: message unavailable, reply unavailable, node unavailable
_NODE = ProtoNode(node_id=SUPERLINK_NODE_ID)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may serve the run, as declared; `cluster` is the one of its own declaration, whatever the run makes of it."""

    name: str
    cluster: str
    public_key: bytes


@dataclass
class _Sent:
    """A message under way: the aggregator's id, and what is needed to send it again in another run."""

    identifier: str
    content: bytes
    metadata: Any
    candidate: int
    at: float


class Relay:
    """The link of one run. `open` is a context; leaving it ends the run on the SuperLink, unless this process is killed."""

    def __init__(
        self, superlink: SuperLink, candidates: Sequence[Candidate], keys: Callable[[], Mapping[str, bytes]], bundle: AppBundle,
        digest: str, record: Path, on_rows: Callable[[Mapping[str, int]], None] = lambda _: None, clusters: Clusters | None = None,
    ) -> None:  # fmt: skip
        self._superlink = superlink
        self.clusters = clusters
        self._candidates = sorted(candidates, key=lambda candidate: candidate.name)
        if clusters is not None:
            by_name = {candidate.name: candidate for candidate in candidates}
            self._candidates = [by_name[name] for _, names in clusters.members for name in names]
        self._keys = keys  # asked for each time: a key that was taken out meanwhile does not come back with a run
        self._bundle = bundle
        self._digest = digest
        self._record = record
        self._run_id = 0
        self._client: RuntimeHttpClient | None = None
        self._calls: tuple[RuntimeHttpClient, Together] | None = None
        self._node_ids: dict[str, int] = {}
        self._sent: dict[str, _Sent] = {}
        self._unsent: list[_Sent] = []
        self._nodes_wanted = False
        self._ended = threading.Event()
        self._heartbeat_at = 0.0
        self.adopted = False
        self._on_rows = on_rows

    @contextmanager
    def open(self) -> Iterator[int]:
        """The file descriptor that the aggregator inherits. Raises TrainingError when there is no SuperLink."""
        self._node_ids = self._superlink.allow(self._keys())
        self._take_up()
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        thread = threading.Thread(target=self._work, name="relay", daemon=True)
        thread.start()
        outcome = SubStatus.FAILED
        try:
            with theirs:
                yield theirs.fileno()
            outcome = SubStatus.COMPLETED
        finally:
            self._ended.set()
            thread.join()
            self._pipe.close()
            self._end(outcome)

    # --- the run --------------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """This digest's run: the one that is recorded and still runs, else a new one in place of any older."""
        recorded = self._recorded()
        for run in self._superlink.runs():
            if run.digest != self._digest or run.finished:
                continue
            if recorded and recorded["run_id"] == run.run_id and run.fab_hash == self._bundle.hash:
                self._client = self._superlink.runtime(str(recorded["token"]))
                self._run_id = run.run_id
                if self._beat():
                    self.adopted = True
                    return
                self._client.close()
            self._superlink.stop(run.run_id)
        self._submit()

    def _submit(self) -> None:
        run_id = self._superlink.submit(self._bundle, self._digest)
        token = self._superlink.claim(run_id)
        self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._record.with_suffix(".partial")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"run_id": run_id, "token": token}, file)
        temporary.replace(self._record)
        client = self._superlink.runtime(token)
        with told():
            client.PullTaskInput(runtime_pb2.PullTaskInputRequest())  # from here on the run counts as running
        if self._client is not None:
            self._client.close()
        self._client, self._run_id = client, run_id

    def _recorded(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._record.read_text())
            return {"run_id": int(content["run_id"]), "token": str(content["token"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _beat(self) -> bool:
        self._heartbeat_at = time.monotonic()
        try:
            with told():
                return bool(self._api.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest()).success)
        except TrainingError as error:
            if error.transient:
                raise
            return False

    def _end(self, outcome: str) -> None:
        """Tells the SuperLink that the run is over; nodes then let its learners go."""
        with suppress(TrainingError):
            if outcome == SubStatus.COMPLETED:
                with told():
                    self._api.PushTaskOutput(runtime_pb2.PushTaskOutputRequest(sub_status=outcome, details=""))
            else:
                self._superlink.stop(self._run_id)
            self._record.unlink(missing_ok=True)
        self._api.close()

    def _together(self, calls: Sequence[Call]) -> list[Any]:
        if self._calls is None or self._calls[0] is not self._api:
            self._calls = self._api, Together(self._api, "runtime")
        return self._calls[1](calls)

    @property
    def _api(self) -> RuntimeHttpClient:
        assert self._client is not None  # noqa: S101 - set by open
        return self._client

    # --- the thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with suppress(OSError):  # an aggregator that has ended already shows below
            if self.adopted:
                self._tell("adopted", f"goes on with run {self._run_id} of the SuperLink")
            else:
                self._tell("submitted", f"run {self._run_id} of the SuperLink")
            if self.clusters is not None and self.clusters.without:
                self._tell("warning", f"nodes that belong to no cluster take no part: {', '.join(self.clusters.without)}")
        wait = _FASTEST
        asked, failing = 0.0, 0
        while not self._ended.is_set():
            try:
                if self._pipe.poll(wait):
                    self._take_in()
                if time.monotonic() - self._heartbeat_at > _HEARTBEAT and not self._beat():
                    self._again()
                self._list()
                if self._unsent:
                    self._push()
                if self._sent and not self._pipe.poll(0) and time.monotonic() - asked >= wait:
                    self._pull()
                    asked = time.monotonic()
                wait, failing = self._interval(), 0
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return  # the aggregator has ended
            except TrainingError as error:
                try:
                    if not error.transient:
                        self._again()
                    else:
                        failing += 1
                        if failing == 1:
                            self._tell("warning", f"{error.code} {error.cause} It is tried again.")
                        self._ended.wait(min(5.0, 0.1 * 2**failing))
                except TrainingError as fatal:
                    if not fatal.transient:
                        self._note({"kind": "fatal", "failure": fatal.to_dict()})
                        return
                    failing += 1
                    self._ended.wait(min(5.0, 0.1 * 2**failing))

    def _interval(self) -> float:
        if not self._sent:
            return _SLOWEST
        youngest = max(sent.at for sent in self._sent.values())
        return min(_SLOWEST, max(_FASTEST, _SHARE * (time.monotonic() - youngest)))

    def _again(self) -> None:
        """The SuperLink does not know the run any more: it is submitted again, with all that was under way."""
        for run in self._superlink.runs():
            if run.run_id == self._run_id and run.finished == SubStatus.STOPPED:
                raise TrainingError("FL5806", "The run was stopped on the SuperLink.", cure="Change the SLA, or set `rerun`.")
        self._node_ids = self._superlink.allow(self._keys())
        self._submit()
        self._unsent += list(self._sent.values())
        self._sent.clear()
        self._tell("submitted", f"again, as run {self._run_id} of the SuperLink")

    def _take_in(self) -> None:
        while self._pipe.poll(0):
            frame = self._pipe.recv_bytes()
            if frame[:1] == packing.FRAME_NOTE:
                self._noted(json.loads(frame[1:]))
                continue
            proto = ProtoMessage.FromString(frame[1:])
            metadata = message_from_proto(proto).metadata
            content = packing.content_of(proto)
            index = int(metadata.dst_node_id) - 1
            self._unsent.append(_Sent(metadata.message_id, content, metadata, index, time.monotonic()))

    def _noted(self, note: Mapping[str, Any]) -> None:
        if note["kind"] == "nodes":
            self._nodes_wanted = True  # asked for in the loop: no answer of the SuperLink may lose the question
        elif note["kind"] == "forget":
            gone = set(note["ids"])
            self._sent = {key: sent for key, sent in self._sent.items() if sent.identifier not in gone}
            self._unsent = [sent for sent in self._unsent if sent.identifier not in gone]

    def _list(self) -> None:
        if self._nodes_wanted:
            clusters = self.clusters.of_nodes() if self.clusters else {}
            online = {member.node_id for member in self._superlink.members() if member.connected}
            nodes = [
                {
                    "index": index, "name": candidate.name, "cluster": clusters.get(candidate.name, ""),
                    "connected": self._node_ids.get(candidate.name) in online,
                }
                for index, candidate in enumerate(self._candidates)
            ]  # fmt: skip
            self._note({"kind": "nodes", "nodes": nodes})
            self._nodes_wanted = False

    def _push(self) -> None:
        for sent in [sent for sent in self._unsent if self._candidates[sent.candidate].name not in self._node_ids]:
            self._unsent.remove(sent)
            self._failed(sent, "FL5811", "The node's key is not allowed any more.", lost=True)
        messages: list[tuple[_Sent, Message]] = [(sent, self._message(sent)) for sent in self._unsent]
        objects: dict[str, Any] = {}
        trees = []
        for _, message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            objects |= get_all_nested_objects(message)
            trees.append(get_object_tree(message))
        with told():
            answer = self._api.PushMessages(
                runtime_pb2.PushAppMessagesRequest(
                    messages_list=[message_to_proto(remove_content_from_message(message)) for _, message in messages],
                    message_object_trees=trees,
                )
            )
            pushes = [
                PushObjectRequest(
                    node=_NODE, run_id=self._run_id, object_id=name, object_content=objects[name].deflate(),
                    session_id=answer.session_id,
                )
                for name in answer.objects_to_push
            ]  # fmt: skip
            self._together([("PushObject", push) for push in pushes])
        self._unsent = []
        for (sent, _), identifier in zip(messages, answer.message_ids, strict=True):
            if identifier:
                self._sent[identifier] = sent
            else:
                self._failed(sent, "FL5811", "The node is not known to the SuperLink any more.", lost=True)

    def _message(self, sent: _Sent) -> Message:
        head: packing.Head = {"learner": sent.candidate, "cluster": self._candidates[sent.candidate].cluster}
        metadata = Metadata(
            run_id=self._run_id, message_id="", src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=self._node_ids[self._candidates[sent.candidate].name], reply_to_message_id="",
            group_id=sent.metadata.group_id, created_at=now().timestamp(), ttl=min(_LOST, sent.metadata.ttl),
            message_type=sent.metadata.message_type,
        )  # fmt: skip
        return make_message(metadata, packing.pack(sent.content, head))

    def _pull(self) -> None:
        with told():
            answer = self._api.PullMessages(runtime_pb2.PullAppMessagesRequest(message_ids=list(self._sent)))
            for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
                names = sorted({item.object_id for item in iterate_object_tree(tree)})
                requests = [PullObjectRequest(node=_NODE, run_id=self._run_id, object_id=name) for name in names]
                pulled = zip(names, self._together([("PullObject", request) for request in requests]), strict=True)
                contents = {
                    name: bytes(found.object_content) if found.object_available else self._object(name) for name, found in pulled
                }
                identifier = proto.metadata.message_id
                sent = self._sent.get(proto.metadata.reply_to_message_id)
                if any(content is None for content in contents.values()):
                    if sent is not None:
                        del self._sent[proto.metadata.reply_to_message_id]
                        self._failed(sent, "FL5811", "The node's answer did not arrive as a whole.", lost=True)
                    continue
                reply: Any = inflate_object_from_contents(identifier, contents)
                self._api.ConfirmMessageReceived(
                    ConfirmMessageReceivedRequest(node=_NODE, run_id=self._run_id, message_object_id=identifier)
                )
                if sent is not None:
                    del self._sent[proto.metadata.reply_to_message_id]
                    self._answered(sent, reply)

    def _object(self, name: str) -> bytes | None:
        for attempt in range(60):
            answer = self._api.PullObject(PullObjectRequest(node=_NODE, run_id=self._run_id, object_id=name))
            if answer.object_available:
                return bytes(answer.object_content)
            if not answer.object_found or self._ended.wait(min(0.5, 0.003 * 1.3**attempt)):
                return None
        return None

    # --- answers to the aggregator --------------------------------------------------------------------------------------

    def _answered(self, sent: _Sent, reply: Message) -> None:
        if reply.has_error():
            cause = f"The node cannot be reached: {reply.error.reason or 'Flower gave up on it'}"
            self._failed(sent, "FL5811", f"{cause.rstrip('.')}.", lost=True)
            return
        try:
            content, head = packing.unpack(reply.content)
        except ValueError:
            self._failed(sent, "FL5811", "The node answered with something else than a message of this federation.", lost=True)
            return
        if "failure" in head:
            self._note({"kind": "failed", "id": sent.identifier, "lost": False, "failure": json.loads(str(head["failure"]))})
            return
        if "rows" in head:
            self._on_rows({self._candidates[sent.candidate].name: int(head["rows"])})
        proto = ProtoMessage()
        proto.content.ParseFromString(content)
        proto.metadata.run_id, proto.metadata.message_id = 1, "0"
        proto.metadata.src_node_id, proto.metadata.dst_node_id = sent.candidate + 1, 0
        proto.metadata.reply_to_message_id = sent.identifier
        proto.metadata.group_id, proto.metadata.message_type = sent.metadata.group_id, sent.metadata.message_type
        proto.metadata.ttl, proto.metadata.created_at = 3600.0, now().timestamp()
        self._pipe.send_bytes(packing.FRAME_MESSAGE + proto.SerializeToString())

    def _failed(self, sent: _Sent, code: str, cause: str, *, lost: bool) -> None:
        failure = {"code": code, "cause": cause, "cure": "It takes part again when it is back.", "transient": True}
        self._note({"kind": "failed", "id": sent.identifier, "lost": lost, "failure": failure})

    def _tell(self, event: str, message: str) -> None:
        self._note({"kind": "event", "event": event, "message": message, "data": {}})

    def _note(self, note: Mapping[str, Any]) -> None:
        self._pipe.send_bytes(packing.FRAME_NOTE + json.dumps(note).encode())
