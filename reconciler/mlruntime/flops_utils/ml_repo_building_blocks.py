"""What a `DataManager` calls to get its learner's data."""

import os
import re
from pathlib import Path
from typing import Any, Dict, Optional

# Read by `datasets` when it is imported: a learner has no network, and nothing may wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import datasets
import numpy as np
import pyarrow as pa
from datasets import formatting

_HEAD = re.compile(rb"P5\n(\d+) (\d+)\n255\n")


class ImageColumns(formatting.NumpyFormatter):  # type: ignore[misc]  # the library has no types
    """The NumPy format, with columns of equally large, uncompressed grey images decoded at once.

    `dataset["image"]`, `dataset[:]["image"]` and the same after `train_test_split` or `shuffle` give the array that they always
    give, unsigned bytes of shape (n, height, width), a hundred times faster than image by image.
    """

    def format_column(self, pa_table: pa.Table) -> Any:
        images = self._images(pa_table, pa_table.column_names[0])
        return super().format_column(pa_table) if images is None else images

    def format_batch(self, pa_table: pa.Table) -> Any:
        fast: Dict[str, Any] = {name: self._images(pa_table, name) for name in pa_table.column_names}
        fast = {name: images for name, images in fast.items() if images is not None}
        if not fast:
            return super().format_batch(pa_table)
        others = [name for name in pa_table.column_names if name not in fast]
        rest = super().format_batch(pa_table.select(others)) if others else {}
        return {name: fast[name] if name in fast else rest[name] for name in pa_table.column_names}

    def _images(self, table: pa.Table, name: str) -> Optional[np.ndarray]:
        feature = (self.features or {}).get(name)
        plain = isinstance(feature, datasets.Image) and feature.decode and not getattr(feature, "mode", None)
        return _decode_pgm(table.column(name)) if plain and not self.np_array_kwargs else None


# `set_format("numpy")` looks the formatter up here; there is no public way to replace one without a warning.
formatting._FORMAT_TYPES["numpy"] = ImageColumns


def load_dataset() -> datasets.Dataset:
    """This learner's shard as a Hugging Face dataset, memory-mapped: no copy, no network, no cache beside the shard.

    Raises RuntimeError outside a learner, where there is no shard.
    """
    path = os.environ.get("FLOPS_DATA")
    if not path:
        raise RuntimeError("load_dataset() has no data here: it is called by a learner, which sets FLOPS_DATA to its shard")
    if not Path(path).is_file():
        raise RuntimeError(f"load_dataset() finds no data: FLOPS_DATA names {path}, where there is no file")
    # What `map`, `train_test_split` … write goes to a temporary directory instead of beside the shard, which others share.
    datasets.disable_caching()
    return datasets.Dataset.from_file(path)


def _decode_pgm(column: pa.ChunkedArray) -> Optional[np.ndarray]:
    """Images of a column as one array (n, height, width), or None when they are not PGM files of one size."""
    # Rows taken by index come as one chunk each.
    whole = column.combine_chunks()
    arrays = [_decode_chunk(chunk) for chunk in (whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole])]
    if not arrays or any(array is None or array.shape[1:] != arrays[0].shape[1:] for array in arrays):  # type: ignore[union-attr]
        return None
    return np.concatenate(arrays)  # type: ignore[arg-type]  # a copy: what is mapped cannot be written to


def _decode_chunk(chunk: pa.StructArray) -> Optional[np.ndarray]:
    encoded = chunk.field("bytes")
    if not len(chunk) or chunk.null_count or encoded.null_count or encoded.type != pa.binary():
        return None
    first = encoded[0].as_py()
    head = _HEAD.match(first)
    if head is None:
        return None
    width, height = int(head[1]), int(head[2])
    prefix = head.end()
    offsets = np.frombuffer(encoded.buffers()[1], np.int32)[encoded.offset : encoded.offset + len(encoded) + 1]
    if len(first) != prefix + width * height or (np.diff(offsets) != len(first)).any():
        return None
    raw = np.frombuffer(encoded.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(len(encoded), len(first))
    if (raw[:, :prefix] != raw[0, :prefix]).any():
        return None
    return raw[:, prefix:].reshape(len(encoded), height, width)
