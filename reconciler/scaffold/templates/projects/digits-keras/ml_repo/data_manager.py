"""This learner's images and labels, four fifths to train on and one fifth to evaluate with."""

from typing import Any, Tuple

import numpy as np
from flops_utils.ml_repo_building_blocks import load_dataset
from flops_utils.ml_repo_templates import DataManagerTemplate


class DataManager(DataManagerTemplate):
    def __init__(self) -> None:
        (self.x_train, self.x_test), (self.y_train, self.y_test) = self._prepare_data()

    def _prepare_data(self) -> Any:
        dataset = load_dataset()
        dataset.set_format("numpy")
        x = dataset["image"][..., np.newaxis].astype(np.float32) / 255  # (n, 8, 8, 1)
        y = dataset["label"]
        split = int(0.8 * len(x))
        return (x[:split], x[split:]), (y[:split], y[split:])

    def get_data(self) -> Tuple[Any, Any]:
        return (self.x_train, self.x_test), (self.y_train, self.y_test)
