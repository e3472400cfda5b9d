"""What goes over the connection between aggregator and learner: Flower's own serialised messages, and a few notes.

A frame is one byte of kind and a body: `M` a Flower `Message` as protobuf, `N` a note as JSON (ready, failed, warning).
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

_MESSAGE, _NOTE = b"M", b"N"


def send_message(connection: Connection, message: Message) -> None:
    """Sends a Flower message. Raises OSError if the other side is gone."""
    connection.send_bytes(_MESSAGE + message_to_proto(message).SerializeToString())


def send_note(connection: Connection, note: dict[str, Any]) -> None:
    """Sends a note. Raises OSError if the other side is gone."""
    connection.send_bytes(_NOTE + json.dumps(note).encode())


def receive(connection: Connection) -> Message | dict[str, Any]:
    """The next message or note; raises EOFError or OSError if the other side is gone."""
    content = unframed(connection.recv_bytes())
    received: Message | dict[str, Any] = content if isinstance(content, dict) else message_from_proto(content)
    return received


def unframed(frame: bytes) -> ProtoMessage | dict[str, Any]:
    """What a frame holds, with the message as it went over the connection."""
    if frame[:1] == _NOTE:
        note: dict[str, Any] = json.loads(frame[1:])
        return note
    message: ProtoMessage = ProtoMessage.FromString(memoryview(frame)[1:].tobytes())
    return message
