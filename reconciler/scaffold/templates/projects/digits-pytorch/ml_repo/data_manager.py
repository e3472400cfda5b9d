"""This learner's images and labels in batches, four fifths to train on and one fifth to evaluate with."""

from typing import Any, Tuple

import torch
from flops_utils.ml_repo_building_blocks import load_dataset
from flops_utils.ml_repo_templates import DataManagerTemplate
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32


class DataManager(DataManagerTemplate):
    def __init__(self) -> None:
        self.train_loader, self.test_loader = self._prepare_data()

    def _prepare_data(self) -> Any:
        dataset = load_dataset()
        dataset.set_format("numpy")
        images = torch.from_numpy(dataset["image"]).float().unsqueeze(1) / 255  # (n, 1, 8, 8)
        labels = torch.from_numpy(dataset["label"])
        split = int(0.8 * len(images))
        train = TensorDataset(images[:split], labels[:split])
        test = TensorDataset(images[split:], labels[split:])
        return DataLoader(train, BATCH, shuffle=True), DataLoader(test, BATCH)

    def get_data(self) -> Tuple[Any, Any]:
        return self.train_loader, self.test_loader
