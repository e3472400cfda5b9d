"""The digits that scikit-learn ships: 1,797 real 8×8 images of handwritten digits (UCI's optical recognition set).

Nothing is fetched. Every fifth image is held out, in the order in which scikit-learn has them: no random generator, whose
numbers a release may change.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from reconciler.errors import DataError
from reconciler.federation.data import arrow_files
from reconciler.federation.data.known import DIGITS

_SPREAD = 15
"""Makes 0 to 240 of the pixels, so that they are seen as grey and are divided by 255 as those of other images."""
_HELD_OUT = 5


def tables() -> tuple[pa.Table, pa.Table]:
    """The 1,438 to train with and the 359 held out, with `image` (8×8, grey) and `label`. Raises DataError."""
    from sklearn.datasets import load_digits  # seconds that only the first use of this dataset pays

    found = load_digits()
    images, labels = np.rint(found.images).astype(np.uint8), found.target.astype(np.uint8)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != DIGITS:
        raise DataError(
            "FL4017",
            "The digits of the installed scikit-learn are not the known ones.",
            cure="Install the locked release of scikit-learn again.",
        )
    held_out = np.arange(len(labels)) % _HELD_OUT == _HELD_OUT - 1
    names = [str(digit) for digit in range(10)]
    train, holdout = (arrow_files.image_table(images[rows] * _SPREAD, labels[rows], names) for rows in (~held_out, held_out))
    return train, holdout
