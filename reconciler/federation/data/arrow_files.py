"""Arrow files with Hugging Face features: what `load_dataset()` maps into a learner.

Images are stored uncompressed (PGM) in an `Image` column: a learner decodes all of them every run, and there is one copy on
disk. The Hugging Face metadata is written by hand, because `import datasets` costs the reconciler a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

BATCH = 1000
"""Rows in one record batch: small enough that a learner that reads one row does not map everything."""


def image_table(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], names: Sequence[str]) -> pa.Table:
    """A table with `image` (n, height, width; grey) and `label` columns and their features."""
    count, height, width = images.shape
    head = np.frombuffer(f"P5\n{width} {height}\n255\n".encode(), np.uint8)
    length = len(head) + height * width
    content = np.empty((count, length), np.uint8)
    content[:, : len(head)] = head
    content[:, len(head) :] = images.reshape(count, -1)
    # 32-bit offsets: 2 GiB in one array, far above what any dataset of ours has.
    offsets = np.arange(count + 1, dtype=np.int32) * length
    encoded = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    column = pa.StructArray.from_arrays([encoded, pa.nulls(count, pa.string())], names=["bytes", "path"])
    table = pa.table({"image": column, "label": pa.array(labels.astype(np.int64))})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return with_features(table, features)


def with_features(table: pa.Table, features: Mapping[str, Any]) -> pa.Table:
    """The table with Hugging Face features, and no other metadata, in its schema."""
    content = orjson.dumps({"info": {"features": dict(features)}})
    return table.replace_schema_metadata({b"huggingface": content} if features else None)


def write(table: pa.Table, path: Path) -> None:
    """Write a table as an Arrow stream, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH)
    temporary.replace(path)


def read(path: Path) -> pa.Table:
    """Map an Arrow stream."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def take(source: Path, rows: npt.NDArray[np.int64], destination: Path) -> None:
    """Write some of a file's rows, in the order given."""
    write(read(source).take(pa.array(rows)), destination)
