"""What a `DataManager` calls to get its learner's data."""

import os
from typing import Any

import datasets
import numpy as np


class Shard(datasets.Dataset):  # type: ignore[misc]  # the library has no types
    """A learner's rows. Whole columns of equally large, uncompressed grey images are decoded at once.

    In every other way it is a Hugging Face dataset: rows give PIL images, `dataset["image"]` in NumPy format gives an array of
    unsigned bytes of shape (n, height, width) – the same as image by image, a hundred times faster.
    """

    def __getitem__(self, key: Any) -> Any:
        plain = isinstance(key, str) and self._format_type == "numpy" and self._indices is None
        if plain and isinstance(self.features.get(key), datasets.Image):
            images = _decode_pgm(self.data.column(key))
            if images is not None:
                return images
        return super().__getitem__(key)


def load_dataset() -> datasets.Dataset:
    """This learner's shard as a Hugging Face dataset, memory-mapped: no copy, no network, no cache.

    Raises RuntimeError outside a learner, where there is no shard.
    """
    path = os.environ.get("FLOPS_DATA")
    if not path:
        raise RuntimeError("load_dataset() has no data here: it is called by a learner, which sets FLOPS_DATA to its shard")
    return Shard.from_file(path)


def _decode_pgm(column: Any) -> np.ndarray | None:
    """Images of a column as one array (n, height, width), or None when they are not PGM files of one size."""
    chunks = []
    for chunk in column.chunks:
        encoded = chunk.field("bytes")
        if not len(chunk) or encoded.null_count:
            return None
        first = encoded[0].as_py()
        head = first.split(b"\n", 3)
        if len(head) != 4 or head[0] != b"P5" or head[2] != b"255":
            return None
        width, height = (int(text) for text in head[1].split())
        prefix = len(first) - width * height
        offsets = np.frombuffer(encoded.buffers()[1], np.int32)[encoded.offset : encoded.offset + len(encoded) + 1]
        if (np.diff(offsets) != len(first)).any():
            return None
        raw = np.frombuffer(encoded.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(len(encoded), len(first))
        if not (raw[:, :prefix] == raw[0, :prefix]).all():
            return None
        chunks.append(raw[:, prefix:].reshape(len(encoded), height, width))
    return np.concatenate(chunks) if chunks else None
