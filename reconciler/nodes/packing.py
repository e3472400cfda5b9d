"""A learner's message inside a Flower message, in few objects.

Flower's SuperLink keeps every array, record and chunk of a message as an object of its own and fetches each with a request:
a dozen for a linear model. The content is therefore carried as bytes in one `ConfigRecord` (in parts of at most 8 MiB), which
all nodes of a round share, beside a small one for what differs; small contents are in that one. What is inside is Flower's own
`RecordDict`.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage

HEAD = "flops"
PART_BYTES = 8 << 20
INLINE_BYTES = 64 << 10
"""Below this a request less is worth more than what nodes could share."""
FRAME_MESSAGE, FRAME_NOTE = b"M", b"N"
"""The first byte of what goes over the pipe to a process of an ML environment (`flops_runtime/wire.py`)."""
Head = dict[str, int | float | str]


def pack(content: bytes, head: Head) -> RecordDict:
    """The records that carry a serialised content."""
    if len(content) <= INLINE_BYTES:
        return RecordDict({HEAD: ConfigRecord({**head, "parts": 0, "bytes": content})})
    starts = range(0, len(content), PART_BYTES)
    records = {HEAD: ConfigRecord({**head, "parts": len(starts)})}
    for number, start in enumerate(starts):
        records[f"{HEAD}.{number}"] = ConfigRecord({"bytes": content[start : start + PART_BYTES]})
    return RecordDict(records)


def unpack(records: RecordDict) -> tuple[bytes, Head]:
    """What `pack` was given. Raises ValueError for anything else."""
    try:
        head = dict(records[HEAD])
        count = int(head.pop("parts"))
        if not count:
            return bytes(head.pop("bytes")), head
        return b"".join(records[f"{HEAD}.{number}"]["bytes"] for number in range(count)), head
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("not a message of this federation") from error


def content_of(message: ProtoMessage) -> bytes:
    """A message's content as bytes that are equal for equal contents."""
    return bytes(message.content.SerializeToString(deterministic=True))


def learner_frame(content: bytes, message: Message) -> bytes:
    """The frame that gives a learner the content of a message, as the message that it came in."""
    frame = ProtoMessage()
    frame.content.ParseFromString(content)
    metadata = message.metadata
    frame.metadata.run_id, frame.metadata.message_id = 1, metadata.message_id or "0"
    frame.metadata.src_node_id, frame.metadata.dst_node_id = 1, 1
    frame.metadata.group_id, frame.metadata.message_type = metadata.group_id, metadata.message_type
    frame.metadata.ttl, frame.metadata.created_at = metadata.ttl, metadata.created_at
    return FRAME_MESSAGE + bytes(frame.SerializeToString())
